"""The kernel table: ``make bench-kernels``, or any part of it with pytest's ``-k``."""

from collections.abc import Callable

import pytest

from benchmarks.kernels.case import Case
from benchmarks.kernels.every import CASES


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernel(case: Case, run: Callable[[Case], None]) -> None:
    run(case)
