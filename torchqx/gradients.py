"""Quantized graphs run forward only; whoever asks for a gradient through one is told so."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from torchqx.errors import TrainingError


class _Forward(torch.autograd.Function):
    """Identity whose backward raises."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, source: Tensor) -> Tensor:
        return value.detach()  # no view of ``value``: autograd lets nobody write into a function's views

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise TrainingError("a quantized model has no backward", where="backward()",
                            remedy="train the float model and quantize it afterwards, or call under torch.no_grad().")


def refuse_gradients(args: Sequence[Any], outputs: Any) -> Any:
    """``outputs``, such that backward through them raises TrainingError if any of ``args`` requires a gradient."""
    source = next((a for a in args if isinstance(a, Tensor) and a.requires_grad), None)
    if source is None:
        return outputs

    def attach(value: Tensor) -> Tensor:
        return _Forward.apply(value, source) if value.is_floating_point() else value

    return tree_map_only(Tensor, attach, outputs)
