"""``torchqx::attention``: its schema, and its shapes for tracing. The C++ kernel registers itself once built."""

import torch
from torch import Tensor

from torchqx.errors import ShapeError

LIBRARY = torch.library.Library("torchqx", "FRAGMENT")
LIBRARY.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, bool causal, Tensor? out_mul, Tensor? out_add, "
    "int qmin, int qmax) -> Tensor"
)


@torch.library.register_fake("torchqx::attention")
def attention_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    out_mul: Tensor | None,
    out_add: Tensor | None,
    qmin: int,
    qmax: int,
) -> Tensor:
    """Shape and dtype of the result: q's shape [B, H, S, D], lying in memory as [B, S, H, D].

    Raises:
        ShapeError: an operand does not have 4 dimensions.
    """
    if any(t.dim() != 4 for t in (q, k, v, *([] if mask is None else [mask]))):
        raise ShapeError("q, k, v and the mask have 4 dimensions", where="attention",
                         remedy="unsqueeze them to [batch, heads, rows, width].")
    batch, heads, rows, width = q.shape
    return q.new_empty((batch, rows, heads, width), dtype=q.dtype if out_mul is None else torch.uint8).transpose(1, 2)
