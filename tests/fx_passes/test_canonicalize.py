"""Nodes that do nothing are gone, and nothing else is."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.capture import capture_one
from torchqx.fx_passes.canonicalize import canonicalize


def targets(code, *inputs: Tensor) -> list:
    gm, example_inputs = capture_one(code, *inputs)
    before = gm(*example_inputs)
    canonicalize(gm)
    torch.testing.assert_close(gm(*example_inputs), before, rtol=0, atol=0)
    return [n.target for n in gm.graph.nodes if n.op in ("call_function", "call_method")]


@pytest.mark.parametrize("code", [
    lambda x: F.dropout(x, 0.5, False) + 1,
    lambda x: F.dropout(x, 0.5, training=False) + 1,
    lambda x: torch.dropout(x, 0.5, False) + 1,
    lambda x: x.to(torch.float32) + 1,
], ids=["dropout", "dropout by keyword", "torch.dropout", "same dtype"])
def test_nothing_but_the_sum_is_left(code) -> None:
    assert len(targets(code, torch.randn(3, 5))) == 1


@pytest.mark.parametrize("code", [
    lambda x: x.to(torch.bfloat16),
    lambda x: F.relu(x),
    lambda x: F.dropout(x, 0.0, True),
], ids=["cast", "relu", "dropout while training"])
def test_what_acts_stays(code) -> None:
    assert len(targets(code, torch.randn(3, 5))) == 1


def test_a_dropout_module_in_evaluation() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Dropout(), nn.ReLU()).eval()
    assert targets(model, torch.randn(2, 5)) == [torch._C._nn.linear, F.relu]
