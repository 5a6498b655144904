"""What every test sees: no hub, two threads at most, and a Dynamo that remembers nothing of the test before."""

import os

# Set before transformers is imported: it reads them once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator

import pytest
import torch

pytest_plugins = ["tests.real_models"]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Compiled code, and the count towards Dynamo's recompile limit, do not leak from one test into the next."""
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Random inputs are the same whichever tests ran before."""
    torch.manual_seed(0)
