"""The generated code is the one that was reviewed."""

import pytest

from tests.gpu.checks import is_pinned
from tests.gpu.golden import FILES, KEPT, current, difference


@pytest.mark.skipif(not is_pinned(), reason="other versions write other code")
def test_the_code_is_the_kept_one() -> None:
    differences = [found for name, text in current().items() if (found := difference(name, text))]
    assert not differences, "\n".join([*differences, "rewrite with: python -m tests.gpu.golden --write"])


def test_every_file_belongs_to_a_block() -> None:
    assert {path.name for path in FILES.iterdir()} == set(KEPT.values())


def test_a_difference_is_seen() -> None:
    name = next(iter(KEPT.values()))
    kept = (FILES / name).read_text()
    assert not difference(name, kept)
    assert "+    tl.debug_barrier()" in difference(name, f"{kept}    tl.debug_barrier()\n")
