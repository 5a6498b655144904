"""How the tensors of scans and causal convolutions are represented: a leaf word of the recipes."""

from dataclasses import dataclass
from typing import Literal

from torchqx.quantizers import AffineQuantizer

CODE = AffineQuantizer(8, symmetric=True, signed=True)
ScanScales = Literal["tensor", "head", "cluster", "channel"]


@dataclass(frozen=True)
class ScanQuantization:
    """Static symmetric int8 for a state-space site's operands: scale = limit / 127.

    Attributes:
        alphas: quantiles of |x| that may limit the scan's input, None for the largest; where there are several, each
            site takes the one with the smallest error of the scan's result.
        scales: where the operator has heads, whether x and z have one scale per head, per cluster of channels of alike
            magnitude, or per channel; B and C then have one per group of states. "tensor": one each.
        clusters: how many at most.
        shared: one scale for B and C, and one for the convolution's input and the scan's gate, as where an int8 matmul
            writes both.
    """

    alphas: tuple[float | None, ...] = (None,)
    scales: ScanScales = "head"
    clusters: int = 16
    shared: bool = False
