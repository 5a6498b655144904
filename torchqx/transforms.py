"""Invertible maps on an activation that a weighted matmul can absorb.

A transform T acts on rows X [..., K]; the matmul that reads T(X) keeps its result with another weight and bias:

    T(X) · weight(W)ᵀ + bias(W, b)  =  X Wᵀ + b        exactly, in real arithmetic
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from torchqx.rotations import Hadamard


class Transform(Protocol):
    """What proofs, solvers and storage ask of any transform."""

    @property
    def names(self) -> list[str]: ...

    def activation(self, x: Tensor) -> Tensor: ...

    def weight(self, weight: Tensor) -> Tensor: ...

    def original(self, weight: Tensor) -> Tensor:
        """The inverse of :meth:`weight`."""

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

    def original(self, weight: Tensor) -> Tensor:
        """The inverse of :meth:`weight`."""
        return weight if self.scale is None else weight / self.scale.to(weight.dtype)

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """The original weight [..., N, K] and bias [..., N] -> the bias [..., N]; None where none is needed."""
        if self.shift is None:
            return bias
        moved = weight @ self.shift.to(weight.dtype)
        return moved if bias is None else bias + moved


class NormDivisor(ShiftScale):
    """X~ = X / g, absorbed by W~ = W diag(g): takes a norm's weight g out of its result, so that it can be rotated."""

    @property
    def names(self) -> list[str]:
        return ["norm weight"]


@dataclass(frozen=True)
class Rotation:
    """X~ = X R with R Rᵀ = I, absorbed by W~ = W R.

    Attributes:
        columns: K, the length of the rows.
    """

    hadamard: Hadamard
    columns: int

    @property
    def names(self) -> list[str]:
        seed = self.hadamard.seed
        return [self.hadamard.words(self.columns) + ("" if seed is None else f" (seed {seed})")]

    def activation(self, x: Tensor) -> Tensor:
        """[..., K] -> the same, in the dtype of ``x``."""
        return _exactly(self.hadamard.apply, x)

    def weight(self, weight: Tensor) -> Tensor:
        """[..., N, K] -> the same."""
        return _exactly(self.hadamard.apply, weight)

    def original(self, weight: Tensor) -> Tensor:
        """The inverse of :meth:`weight`."""
        return _exactly(self.hadamard.apply_transpose, weight)

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """``bias`` as it is."""
        return bias


@dataclass(frozen=True)
class Chain:
    """Transforms one after the other; the identity where there are none.

        X~ = T_n(… T_1(X))      W~ = W_n(… W_1(W))
    """

    parts: tuple[Transform, ...] = ()

    @property
    def names(self) -> list[str]:
        """Those of the parts, in order."""
        return [name for part in self.parts for name in part.names]

    def activation(self, x: Tensor) -> Tensor:
        """[..., K] -> the same, in the dtype of ``x``."""
        for part in self.parts:
            x = part.activation(x)
        return x

    def weight(self, weight: Tensor) -> Tensor:
        """[..., N, K] -> the same."""
        for part in self.parts:
            weight = part.weight(weight)
        return weight

    def original(self, weight: Tensor) -> Tensor:
        """The inverse of :meth:`weight`."""
        for part in reversed(self.parts):
            weight = part.original(weight)
        return weight

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """The original weight [..., N, K] and bias [..., N] -> the bias [..., N]; None where none is needed."""
        for part in self.parts:
            bias, weight = part.bias(weight, bias), part.weight(weight)
        return bias


def rotated(norm: Tensor | None, rotation: Hadamard | None, columns: int) -> Chain:
    """(X / g) R: what comes before a site's shift and scale. ``norm`` is g [K]."""
    divided = () if norm is None else (NormDivisor(scale=norm),)
    return Chain(divided if rotation is None else (*divided, Rotation(rotation, columns)))


@dataclass(frozen=True)
class OutputRotation:
    """Y~ = Y R of a matmul's result, by another weight and bias; Y = Y~ Rᵀ undoes it.

        X W~ᵀ + b~ = (X Wᵀ + b) R   with   W~ = Rᵀ W,  b~ = b R
    """

    hadamard: Hadamard

    def weight(self, weight: Tensor) -> Tensor:
        """[..., N, K] -> the same."""
        return _exactly(self.hadamard.apply, weight.transpose(-2, -1)).transpose(-2, -1)

    def original(self, weight: Tensor) -> Tensor:
        """The inverse of :meth:`weight`."""
        return _exactly(self.hadamard.apply_transpose, weight.transpose(-2, -1)).transpose(-2, -1)

    def bias(self, bias: Tensor) -> Tensor:
        """[..., N] -> the same; the results of the matmul rotate alike."""
        return _exactly(self.hadamard.apply, bias)

    def result(self, y: Tensor) -> Tensor:
        """The rotated results [..., N] -> the matmul's own."""
        return _exactly(self.hadamard.apply_transpose, y)


def _exactly(turn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``turn(x)`` in the dtype of ``x``, also where the caller's autocast would take matmuls down to 16 bits."""
    if isinstance(x, FakeTensor):
        return x.clone()  # the matrices and signs that are kept have values, which do not mix with tensors without
    with torch.autocast(x.device.type, enabled=False):
        return turn(x)
