"""Invertible maps on an activation that a weighted matmul can absorb.

A transform T acts on rows X [..., K]; the matmul that reads T(X) keeps its result with another weight and bias:

    T(X) · weight(W)ᵀ + bias(W, b)  =  X Wᵀ + b        exactly, in real arithmetic
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Transform(Protocol):
    """What proofs and passes ask of any transform."""

    def activation(self, x: Tensor) -> Tensor: ...

    def weight(self, weight: Tensor) -> Tensor: ...

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None: ...


@dataclass(frozen=True)
class ShiftScale:
    """X~ = (X - shift) / scale per channel, absorbed by W~ = W · scale and b~ = b + W shift.

    Attributes:
        shift, scale: z and s, [K] each, or None for none (Outlier Suppression+; SmoothQuant has s alone).
    """

    shift: Tensor | None = None
    scale: Tensor | None = None

    @property
    def names(self) -> list[str]:
        """The parts that there are, in order."""
        return [name for name in ("shift", "scale") if getattr(self, name) is not None]

    def activation(self, x: Tensor) -> Tensor:
        """[..., K] -> the same, in the dtype of ``x``."""
        if self.shift is not None:
            x = x - self.shift.to(x.dtype)
        return x if self.scale is None else x / self.scale.to(x.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        """[..., N, K] -> the same."""
        return weight if self.scale is None else weight * self.scale.to(weight.dtype)

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """The original weight [..., N, K] and bias [..., N] -> the bias [..., N]; None where none is needed."""
        if self.shift is None:
            return bias
        moved = weight @ self.shift.to(weight.dtype)
        return moved if bias is None else bias + moved
