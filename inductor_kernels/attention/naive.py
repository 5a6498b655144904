"""Attention as its formula says, in float64: what the kernel is tested against."""

import torch
from torch import Tensor


def attention_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool = False,
    out_mul: Tensor | None = None,
    out_add: Tensor | None = None,
    qmin: int = 0,
    qmax: int = 255,
) -> Tensor:
    """softmax(q kᵀ · scale + mask) v in float64 [B, H, S, D]; with ``out_mul`` the codes before rounding, clamped.

    A bool mask is true where a row sees a key; ``causal`` has row i see keys up to i. A row that sees none gives 0.
    """
    group = q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    scores = q.double() @ k.mT * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    hidden = (scores == float("-inf")).all(-1, keepdim=True)
    y = scores.softmax(-1).masked_fill(hidden, 0) @ v
    if out_mul is None:
        return y
    mul, add = (p.double() if p.numel() == 1 else p.double().view(q.shape[1], 1, -1) for p in (out_mul, out_add))
    return (y * mul + add).clamp(qmin, qmax)
