"""Hand-written kernels compiled for GPUs that are not there."""

import pytest

from tests.torchqx.testing import kernels
from torchqx.errors import UnsupportedError
from torchqx.testing import ARCHITECTURES, compile_offline

INT8 = ({"a_ptr": "*i8", "b_ptr": "*i8", "out_ptr": "*i32"}, {"n": 32, "k": 64})
FLOAT = {"x_ptr": "*fp32", "out_ptr": "*fp32"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture(arch: str) -> None:
    report = compile_offline(kernels.int8_dot, *INT8, arch=arch)
    assert report.arch == arch
    assert 0 < report.registers <= 255
    assert report.spills == 0
    assert report.shared > 0
    assert {"IMMA", "mfma"} & set(report.matrix_instructions)


def test_spills_are_seen() -> None:
    assert compile_offline(kernels.greedy, FLOAT, {"n": 32}, num_warps=1, maxnreg=32).spills > 0


def test_the_process_may_end_and_another_takes_its_place() -> None:
    with pytest.raises(UnsupportedError, match="ended"):
        compile_offline(kernels.nvidia_only, FLOAT, {"n": 64}, arch="gfx942")
    assert compile_offline(kernels.nvidia_only, FLOAT, {"n": 64}).spills == 0


def test_unknown_architecture() -> None:
    with pytest.raises(UnsupportedError, match="sm_90"):
        compile_offline(kernels.int8_dot, *INT8, arch="sm_10")
