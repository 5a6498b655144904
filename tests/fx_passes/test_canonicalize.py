"""Nodes that do nothing are gone, and nothing else is."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

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


def test_a_matmul_of_flattened_rows() -> None:
    assert targets(Conv1D(7, 5), torch.randn(2, 3, 5)) == ["t", torch._C._nn.linear]


@torch.compiler.allow_in_graph
def scaled(*, input: Tensor, by: int) -> Tensor:
    return input * by


@pytest.mark.parametrize(("code", "positional", "named"), [
    (lambda x: torch.flatten(input=x, start_dim=0), 1, {"start_dim"}),
    (lambda x: torch.unflatten(input=x, dim=1, sizes=(1, 5)), 1, {"dim", "sizes"}),
    (lambda x: torch.transpose(input=x, dim0=0, dim1=1), 1, {"dim0", "dim1"}),
    (lambda x: F.softmax(input=x, dim=-1), 1, {"dim"}),
    (lambda x: torch.mul(input=x, other=0.5), 2, set()),
    (lambda x: torch.add(x, other=x, alpha=2), 2, {"alpha"}),
    (lambda x: F.linear(input=x, weight=x), 1, {"weight"}),
    (lambda x: scaled(input=x, by=2), 0, {"input", "by"}),
    (lambda x: torch.where(condition=x > 0, input=x, other=-x), 0, {"condition", "input", "other"}),
    (lambda x: torch.searchsorted(sorted_sequence=x, input=x), 0, {"sorted_sequence", "input"}),
], ids=["flatten", "unflatten", "transpose", "softmax", "mul", "add", "linear",
        "by keyword only", "where", "searchsorted"])
def test_the_input_by_keyword_comes_first(code, positional, named) -> None:
    gm, (x,) = capture_one(code, torch.randn(3, 5).sort().values)
    before = gm(x)
    torch.testing.assert_close(canonicalize(gm)(x), before, rtol=0, atol=0)
    node = next(n for n in gm.graph.nodes if n.op == "output").all_input_nodes[0]
    assert (len(node.args), set(node.kwargs)) == (positional, named)


def written_later(x: Tensor) -> Tensor:
    rows = x.reshape(-1, 5)
    x[..., 0] = 100.0
    return rows


@pytest.mark.parametrize("code", [
    lambda x, b, w: torch.addmm(b, x.view(-1, 5), w),
    lambda x, b, w: torch.addmm(b, x.view(-1, 5), w).view(3, 2, 7),
    lambda x, b, w: torch.addmm(b, x.view(-1, 5), w).view(2, 3, 7, 1),
    lambda x, b, w: torch.addmm(b, x.view(-1, 5), w, alpha=2).view(2, 3, 7),
    lambda x, b, w: torch.addmm(b * 2, x.view(-1, 5), w).view(2, 3, 7),
    lambda x, b, w: torch.addmm(b, x.transpose(0, 1).reshape(-1, 5), w).view(2, 3, 7),
    lambda x, b, w: torch.addmm(b, written_later(x.clone()), w).view(2, 3, 7),
    lambda x, b, w: torch.addmm(b, written_later(x.mT.contiguous().mT), w).view(2, 3, 7),
    lambda x, b, w: torch.addmm(b, x.view(-1, 5), w).view(torch.int32).view(2, 3, 7),
    lambda x, b, w: torch.addmm(b, x.view(torch.int32).view(torch.float32).view(-1, 5), w).view(torch.int32),
], ids=["flat result", "other shape", "more dimensions", "scaled", "computed bias", "other rows", "written", "copied",
        "result's bits", "bits"])
def test_other_addmms_stay(code) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.weight = nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(5, 7))

        def forward(self, x: Tensor) -> Tensor:
            return code(x, self.bias, self.weight)

    assert torch.addmm in targets(Model(), torch.randn(2, 3, 5))


def test_rows_that_two_products_read() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.weight = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5, 5))

        def forward(self, x: Tensor) -> Tensor:
            rows = x.view(-1, 5)
            return torch.addmm(self.bias, rows, self.weight).view(x.shape) + torch.mm(rows, self.weight).view(x.shape)

    names = targets(Model(), torch.randn(2, 3, 5))
    assert torch._C._nn.linear in names
    assert torch.mm in names
    assert torch.addmm not in names


def test_a_site_is_named_after_its_product() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.weight = nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(5, 7))

        def forward(self, rows: Tensor) -> Tensor:
            return torch.addmm(self.bias, rows, self.weight)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Flat()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.view(-1, 5)).view(2, 3, 7)

    gm, _ = capture_one(Outer(), torch.randn(2, 3, 5))
    canonicalize(gm)
    (linear,) = [n for n in gm.graph.nodes if n.target is torch._C._nn.linear]
    assert any("inner" in path for path, _ in linear.meta["nn_module_stack"].values())
    assert linear.meta["example_value"].shape == (2, 3, 7)
