"""Old torch is refused, new torch is warned about."""

import pytest

from torchqx.errors import TorchqxWarning, UnsupportedError
from torchqx.versions import check_torch


@pytest.mark.parametrize("version", ["2.10.1", "1.13.0+cpu"])
def test_old_torch_is_refused_with_the_remedy(version: str) -> None:
    with pytest.raises(UnsupportedError, match=r"install torch 2\.11 to 2\.15"):
        check_torch(version)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "2.15.1a0+gitabc"])
def test_supported_torch_passes_silently(version: str) -> None:
    check_torch(version)


def test_newer_torch_is_warned_about() -> None:
    with pytest.warns(TorchqxWarning, match=r"2\.16\.0 is newer"):
        check_torch("2.16.0")
