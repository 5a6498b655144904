"""Small state-space models, quantized, through the backend for a GPU: prompts and single steps, no library calls."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchqx
from tests.gpu.checks import wrong_numbers
from tests.state_space_blocks import Mamba, Mamba2, batch, build, step_by_step
from tests.state_space_models import MODELS, prompt
from torchqx.testing import GpuProgram, torchqx_on_gpu

TOLERANCE = 2e-3  # one code that rounds the other way


def on_both(call: Callable[[Any], Tensor], model: nn.Module,
            dynamic: bool = False) -> tuple[GpuProgram, Tensor, Tensor]:
    """The program, its result, and that of the same quantized graph on the CPU."""
    torch._dynamo.reset()
    here = call(torch.compile(model, backend="torchqx", dynamic=dynamic, options={"lowering": "eager"}))
    torch._dynamo.reset()
    with torchqx_on_gpu() as programs:
        there = call(torch.compile(model, backend="torchqx", dynamic=dynamic))
    torch._dynamo.reset()
    (program,) = programs
    return program, there, here


@pytest.mark.parametrize(("kind", "steps", "kernels"), [
    (Mamba, False, {"convolve", "scan_channels"}), (Mamba, True, {"convolve", "update_rows"}),
    (Mamba2, False, {"convolve", "scan_head"})])
@torch.no_grad()
def test_quantized_models(kind: type, steps: bool, kernels: set[str]) -> None:
    model, x = torchqx.quantize(build(kind), torchqx.QuambaConfig(), [batch(i) for i in range(3)]), batch(5)
    program, there, here = on_both(
        lambda compiled: step_by_step(compiled, x[:, :2], model) if steps else compiled(x), model)
    assert not wrong_numbers(there, here, TOLERANCE)
    assert not program.extern_calls
    assert kernels <= {kernel.name for kernel in program.kernels}


@pytest.mark.parametrize(("name", "scan", "recipe", "dynamic"), [
    ("mamba", "scan_channels", torchqx.QuambaConfig(), True),
    ("mamba2", "scan_head", torchqx.OutlierSuppressionPlusConfig(), True),
    pytest.param("mamba", "scan_channels", torchqx.OutlierSuppressionPlusConfig(), False, marks=pytest.mark.slow),
    pytest.param("mamba2", "scan_head", torchqx.QuambaConfig(), False, marks=pytest.mark.slow)])
@torch.no_grad()
def test_models_of_transformers(name: str, scan: str, recipe: Any, dynamic: bool) -> None:
    """The first recipe leaves scans in float, the second has them read and write codes."""
    model = MODELS[name]()
    model.backbone.layers = model.backbone.layers[:1]
    torchqx.quantize(model, recipe, [prompt(2, 9, seed) for seed in range(3)])
    program, there, here = on_both(lambda compiled: compiled(**prompt(2, 9, 7), use_cache=False).logits, model, dynamic)
    assert not wrong_numbers(there, here, TOLERANCE)
    assert not program.extern_calls
    assert {"convolve", scan} <= {kernel.name for kernel in program.kernels}
