"""The int8 weight in the order in which the CPU kernel reads it."""

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 64  # columns of one tile: four 512-bit registers of int32 sums
STEP = 4  # products that one multiply-add instruction sums


def pack_int8_weight(qdata: Tensor) -> Tensor:
    """[N, K] int8 -> [⌈N/64⌉, ⌈K/4⌉, 64, 4] int8, contiguous, padded with zeros."""
    columns, k = qdata.shape
    padded = F.pad(qdata, (0, -k % STEP, 0, -columns % PANEL))
    return padded.view(-1, PANEL, padded.shape[1] // STEP, STEP).transpose(1, 2).contiguous()


def unpack_int8_weight(packed: Tensor, columns: int, k: int) -> Tensor:
    """The inverse of :func:`pack_int8_weight`: [N, K] int8, contiguous."""
    return packed.transpose(1, 2).reshape(packed.shape[0] * PANEL, -1)[:columns, :k].contiguous()


def column_sums(qdata: Tensor) -> Tensor:
    """Σ_k q[..., n, k]: [..., N, K] int8 -> [..., N] int32. A zero point z of the activations adds z times this."""
    return qdata.sum(-1, dtype=torch.int32)
