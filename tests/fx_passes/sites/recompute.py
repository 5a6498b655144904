"""What a site says about itself, computed anew from its operands' values: a wrong operand, layout or number shows."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from torchqx.fx_passes.sites import AttentionSite, Form, LinearOp, NormSite


class Values(Interpreter):
    """Runs a graph and keeps every node's value as it was when it was made."""

    def __init__(self, gm: GraphModule, example_inputs: list[Any]) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.of: dict[Node, Any] = {}
        with torch.no_grad():
            self.run(*example_inputs)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.of[n] = value.clone() if isinstance(value, Tensor) else value
        return value


def linear(op: LinearOp, values: dict[Node, Any]) -> Tensor:
    """The op's result from its activation, weight, bias and form."""
    x, matrix = values[op.x], op.layout.to_matrix(values[op.weight])
    bias = values[op.bias] if op.bias is not None else None
    if op.form is Form.LINEAR:
        return x @ matrix.T + (bias if bias is not None else 0)
    if op.form is Form.LEFT:
        assert bias is None
        return matrix @ x
    if op.form is Form.EXPERTS:
        ends = values[op.offsets].tolist()
        parts = [x[a:b] @ m.T for a, b, m in zip([0, *ends[:-1]], ends, matrix, strict=True)]
        return torch.cat(parts)
    patches = x
    for dim, size in enumerate(values[op.weight].shape[2:], 2):
        patches = patches.unfold(dim, size, size)
    spatial = x.ndim - 2
    rows = patches.movedim(1, spatial + 1).flatten(spatial + 1) @ matrix.T
    return (rows + bias if bias is not None else rows).movedim(-1, 1)


def norm(site: NormSite, values: dict[Node, Any]) -> Tensor:
    """The norm's result from its input, weight, bias, eps and offset."""
    x = values[site.x].float()
    if site.style == "layer":
        x = x - x.mean(-1, keepdim=True)
    result = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + site.eps)
    if site.weight is not None:
        result = result * (values[site.weight].float() + site.weight_offset)
    if site.bias is not None:
        result = result + values[site.bias].float()
    return result.to(values[site.node].dtype)


def attention(site: AttentionSite, values: dict[Node, Any]) -> Tensor:
    """softmax(q kᵀ · scale + terms) v of a spelled-out attention whose terms are added."""
    q, k, v = values[site.q], values[site.k], values[site.v]
    scores = q @ (k if site.key_transposed else k.transpose(-2, -1)) * site.scale
    terms = [values[term] for term in (*site.biases, site.mask) if term is not None]
    for term in terms:
        scores = scores.reshape(-1, *scores.shape[-2:]) if term.ndim == 3 else scores.view(-1, *_heads(term, scores))
        scores = scores + term
    result = scores.softmax(-1).reshape(-1, *scores.shape[-2:]) @ v.reshape(-1, *v.shape[-2:])
    return result.view_as(values[site.node])


def _heads(term: Tensor, scores: Tensor) -> tuple[int, ...]:
    batch = term.shape[0]
    count = scores.shape[:-2].numel()
    return (count // batch, *scores.shape[-2:])
