"""Quantized models through the backend for a GPU that is not there: sizes that vary, models that still calibrate."""

import pytest
import torch
from torch import nn

import torchqx
from tests.gpu.checks import wrong_numbers
from torchqx.testing import torchqx_on_gpu


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 36), nn.GELU(), nn.Linear(36, 20)).requires_grad_(False)


@pytest.mark.parametrize("interpreted", [False, True])
@torch.no_grad()
def test_one_program_for_all_sizes(interpreted: bool) -> None:
    torch._dynamo.reset()
    model = torchqx.quantize(net(), torchqx.OutlierSuppressionPlusConfig(quantize_head=True), [(torch.randn(9, 20),)])
    with torchqx_on_gpu(interpreted=interpreted) as programs:
        compiled = torch.compile(model, backend="torchqx", dynamic=True)
        for rows in (7, 13):
            x = torch.randn(rows, 20)
            expected = model(x) if interpreted else torch.zeros(rows, 20)
            assert not wrong_numbers(compiled(x), expected, 2e-3)
    (program,) = programs
    assert program.kernel_count
    assert not program.extern_calls


@torch.no_grad()
def test_calibration_makes_no_program() -> None:
    torch._dynamo.reset()
    model, x = net(), torch.randn(7, 20)
    with torchqx_on_gpu(interpreted=False) as programs:
        compiled = torch.compile(model, backend="torchqx", dynamic=False, options={"calibration_steps": 1})
        torch.testing.assert_close(compiled(x), model(x))
        assert not programs
        compiled(x)
    assert len(programs) == 1
