"""Runs a graph in float and shows chosen values to observers. The graph itself is not changed."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from torchqx.fx_passes.sites.scans import named_arguments


class ObservingInterpreter(Interpreter):
    """Runs ``gm``; calls ``watch[node](value)`` when a node has its value, and keeps the values of ``keep``.

    ``before[node](arguments by name)`` is called before an operator runs, which may write into them.

    Attributes:
        kept: node -> value, detached copies, so that later in-place writes of the graph do not reach them.
    """

    def __init__(self, gm: GraphModule, watch: Mapping[Node, Callable[[Tensor], None]], keep: Collection[Node],
                 before: Mapping[Node, Callable[[dict[str, Any]], None]] | None = None) -> None:
        super().__init__(gm)
        self.watch, self.keep, self.before = watch, set(keep), before or {}
        self.kept: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        if n in self.before:
            with torch.inference_mode(False), torch.no_grad():
                self.before[n](map_arg(named_arguments(n), self.env.__getitem__))
        value = super().run_node(n)
        seen = self.watch.get(n)
        # What is kept may be read outside inference mode, and vmap's result is there before vmap's end.
        with torch.inference_mode(False), torch.no_grad(), temporarily_clear_interpreter_stack():
            if n in self.keep:
                self.kept[n] = value.detach().clone() if isinstance(value, Tensor) else value
            if seen is not None:
                seen(value)
        return value


def rows_mask(padding: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Which rows of an activation are real tokens: bool of ``shape[:-1]``, or None when that cannot be told.

    Args:
        padding: [B, T], nonzero for a real token. It says nothing of an activation of other length: later tokens than
            those in a cache, which are real, or those of a decoder whose encoder has the mask.
        shape: [B, T, K] or [B·T, K].
    """
    if padding is None or padding.dim() != 2:
        return None
    real = padding.bool()
    batch, total = real.shape
    if len(shape) == 3 and shape[:2] == (batch, total):
        return real
    if len(shape) == 2 and shape[0] == batch * total:
        return real.reshape(-1)
    return None


def result_mask(padding: Tensor | None, shape: torch.Size) -> Tensor | None:
    """The same for a region's result: [B, S, N], [B, H, S, D], [B, S, H, D] or [B·H, S, D]."""
    mask = rows_mask(padding, shape)
    if mask is not None or padding is None or padding.dim() != 2:
        return mask
    batch, total = padding.shape
    real = padding.bool()
    if len(shape) == 4 and shape[0] == batch and shape[2] == total:
        return real[:, None, :].expand(shape[:-1])
    if len(shape) == 4 and shape[0] == batch and shape[1] == total:
        return real[:, :, None].expand(shape[:-1])
    if len(shape) == 3 and shape[1] == total and shape[0] % batch == 0:
        return real.repeat_interleave(shape[0] // batch, 0)
    return None
