"""How the tensors of scans and causal convolutions are represented: a leaf word of the recipes."""

from dataclasses import dataclass

from torchqx.quantizers import AffineQuantizer

CODE = AffineQuantizer(8, symmetric=True, signed=True)


@dataclass(frozen=True)
class ScanQuantization:
    """Static symmetric int8 for a state-space site's operands: scale = limit / 127.

    Attributes:
        alphas: quantiles of |x| that may limit the scan's input, None for the largest; where there are several, each
            site takes the one with the smallest error of the scan's result.
        grouped: scales per head (x, z) and per group of states (B, C), where the operator has heads.
        shared: one scale for B and C, and one for the convolution's input and the scan's gate, as where an int8 matmul
            writes both.
    """

    alphas: tuple[float | None, ...] = (None,)
    grouped: bool = True
    shared: bool = False
