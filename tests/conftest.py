"""What every test sees: no hub, threads that sleep, and a Dynamo that remembers nothing of the test before."""

import gc
import os

# Set before torch and transformers are imported: they read them once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads would spin on the core of the other worker

from collections.abc import Iterator

import pytest
import torch

from torchqx import lowering_choice
from torchqx.cost_model import Rates

pytest_plugins = ["tests.real_models"]

# As if integers took next to no time: what a test compiles does not depend on the machine's rates.
FREE_INTEGERS = Rates(
    rows=(1,),
    matmul={"packed": (0.0,), "integer": (0.0,), "group": (0.0,), "float32": (1.0,), "bfloat16": (1.0,),
            "float32 weight only": (1.0,), "bfloat16 weight only": (1.0,),
            "float32 weight only grouped": (1.0,), "bfloat16 weight only grouped": (1.0,)},
    call=dict.fromkeys(("packed", "integer", "group"), 1e-6)
    | dict.fromkeys(("float32", "bfloat16", "float32 weight only", "bfloat16 weight only",
                     "float32 weight only grouped", "bfloat16 weight only grouped"), 1.0),
    byte=0.0,
)


@pytest.fixture(autouse=True, scope="session")
def integers_pay() -> Iterator[None]:
    """The cost model measures nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering_choice, "machine_rates", lambda: FREE_INTEGERS)
        yield


def pytest_collection_finish() -> None:
    """Collecting garbage looks neither at what the imports made, which stays, nor every 700 objects."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Compiled code, and the count towards Dynamo's recompile limit, do not leak from one test into the next."""
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Random inputs are the same whichever tests ran before."""
    torch.manual_seed(0)
