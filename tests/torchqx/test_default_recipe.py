"""The default recipe on every architecture, untuned: all that can be quantized is, and the result stays close."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import torchqx
from tests.architectures import ARCHITECTURES

RECIPE = torchqx.OutlierSuppressionPlusConfig(grid_steps=3, sample_rows=64)
CLOSE = 0.1
LENGTH, OTHER = 16, 12
# A batch of another length is traced again, with symbolic sizes, which takes more time than all the rest.
TRACED_AGAIN = ("bert", "llama", "hand_written")
CASES = [pytest.param(name, OTHER, marks=[pytest.mark.slow] * (name not in TRACED_AGAIN)) for name in ARCHITECTURES]
CASES += [(name, LENGTH) for name in ARCHITECTURES if name not in TRACED_AGAIN]


def main_output(outputs: Any) -> Tensor:
    """The first floating-point tensor of what a model returns: logits, or the last hidden states."""
    return next(t for t in tree_leaves(dict(outputs) if hasattr(outputs, "keys") else outputs)
                if isinstance(t, Tensor) and t.is_floating_point())


def turned(inputs: dict[str, Any]) -> dict[str, Any]:
    """Other values in the same shapes: a batch that repeats the first would show nothing new."""
    return {key: value.roll(1, -1) if isinstance(value, Tensor) and key != "attention_mask" else value
            for key, value in inputs.items()}


@pytest.mark.parametrize(("name", "second_length"), CASES)
def test_default_recipe_is_safe(name: str, second_length: int) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    inputs = architecture.inputs(2, LENGTH)
    if "decoder_input_ids" in inputs:
        inputs["use_cache"] = False  # the two caches break the graph, and Dynamo starts again from break to break
    with torch.no_grad():
        before = main_output(model(**inputs)).clone()
        second = turned(inputs) if second_length == LENGTH else architecture.inputs(2, second_length)
        torchqx.quantize(model, RECIPE, [inputs, second])
        torch._dynamo.reset()
        after = main_output(torch.compile(model, backend="torchqx", options={"lowering": "eager"})(**inputs))
    linears = [s for s in torchqx.explain(model).sites if s.kind == "linear"]
    quantized = sum(len(s.operations) for s in linears if s.status == "quantized")
    assert quantized >= architecture.in_blocks
    assert all(s.reason for s in linears if s.status != "quantized")
    real = inputs.get("attention_mask")
    rows = real.bool() if real is not None and before.shape[:2] == real.shape else ...
    error = float((after - before)[rows].norm() / before[rows].norm())
    assert error < CLOSE, f"{error:.3f}"
