"""Invertible maps on an activation that a weighted matmul can absorb.

A transform T acts on rows X [..., K]; the matmul that reads T(X) keeps its result when its weight [N, K] and bias [N]
become ``absorb(W)`` and ``b + bias(W)``:

    T(X) · absorb(W)ᵀ + b + bias(W)  =  X Wᵀ + b        exactly, in real arithmetic
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Transform(Protocol):
    """An invertible map on the last dimension of an activation."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def inverse(self, x: Tensor) -> Tensor: ...

    def absorb(self, weight: Tensor) -> Tensor: ...

    def bias(self, weight: Tensor) -> Tensor | None: ...


@dataclass(frozen=True, eq=False)
class Shift:
    """X - z, with z [K]; the bias takes W z (Outlier Suppression+)."""

    amount: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x - self.amount.to(x.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        return x + self.amount.to(x.dtype)

    def absorb(self, weight: Tensor) -> Tensor:
        return weight

    def bias(self, weight: Tensor) -> Tensor | None:
        return weight @ self.amount.to(weight.dtype)


@dataclass(frozen=True, eq=False)
class Scale:
    """X / s, with s [K] positive; the weight's columns take s (SmoothQuant, Outlier Suppression+)."""

    amount: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x / self.amount.to(x.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.amount.to(x.dtype)

    def absorb(self, weight: Tensor) -> Tensor:
        return weight * self.amount.to(weight.dtype)

    def bias(self, weight: Tensor) -> Tensor | None:
        return None
