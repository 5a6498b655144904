"""The torch versions whose private corners torchqx has been fitted to."""

import warnings

import torch

from torchqx.errors import TorchqxWarning, UnsupportedError

OLDEST, NEWEST = (2, 11), (2, 15)


def check_torch(version: str = torch.__version__) -> None:
    """Raises UnsupportedError for a torch that is too old; warns about one that is newer than what was tried."""
    found = tuple(int(part) for part in version.split(".")[:2])
    supported = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if found < OLDEST:
        raise UnsupportedError(f"torch {version}", where="torch", remedy=f"install torch {supported}.")
    if found > NEWEST:
        warnings.warn(f"torch {version} is newer than the versions that torchqx was tried with ({supported})",
                      TorchqxWarning, stacklevel=2)
