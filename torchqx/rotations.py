"""Orthogonal rotations of an activation's rows by Hadamard matrices, with random signs (QuIP#, QuaRot).

    x R = ((x · signs) as blocks) @ H / sqrt(block)        x Rᵀ = (x as blocks) @ Hᵀ / sqrt(block) · signs
"""

import functools
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from torchqx.errors import ConfigError, ShapeError
from torchqx.hadamard_matrices import is_known, times_hadamard
from torchqx.made_apart import made_apart

SMALLEST_BLOCK = 16  # that recipes and plans use: a smaller one mixes too few channels


@dataclass(frozen=True)
class Hadamard:
    """One rotation, for rows of every length that ``block`` divides: R Rᵀ = I.

    Attributes:
        block: order of the Hadamard matrix on the block diagonal.
        seed: of the random signs in front; None for no signs.

    Raises:
        ConfigError: no Hadamard matrix of that order is known.
    """

    block: int
    seed: int | None = None

    def __post_init__(self) -> None:
        if not is_known(self.block):
            raise ConfigError(f"no Hadamard matrix of order {self.block}", where="block",
                              remedy="choose(K) gives the largest block for rows of K elements.")

    def signs(self, k: int, device: torch.device | str = "cpu") -> Tensor | None:
        """float32 [k] of +-1, the same on every device and in every process; None without a seed."""
        return None if self.seed is None else _signs(k, self.seed).to(device)

    def apply(self, x: Tensor) -> Tensor:
        """x R: [..., K] -> the same, in the dtype of ``x``, in plain torch.

        Raises:
            ShapeError: ``block`` does not divide K.
        """
        signs = self.signs(self._length(x), x.device)
        return times_hadamard(x if signs is None else x * signs.to(x.dtype), self.block)

    def apply_transpose(self, x: Tensor) -> Tensor:
        """x Rᵀ, the inverse of :meth:`apply`: [..., K] -> the same.

        Raises:
            ShapeError: ``block`` does not divide K.
        """
        signs = self.signs(self._length(x), x.device)
        y = times_hadamard(x, self.block, transpose=True)
        return y if signs is None else y * signs.to(x.dtype)

    def matrix(self, k: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """R itself, [k, k].

        Raises:
            ShapeError: ``block`` does not divide ``k``.
        """
        return self.apply(torch.eye(k, dtype=dtype))

    def words(self, k: int) -> str:
        """The rotation of rows of ``k`` elements, for the report: "hadamard 576", or "hadamard 3 x 4" in blocks."""
        count = k // self.block
        return f"hadamard {self.block}" if count == 1 else f"hadamard {count} x {self.block}"

    def to_json(self) -> dict[str, int | None]:
        """Plain JSON values; ``Hadamard(**values)`` is the way back."""
        return asdict(self)

    def _length(self, x: Tensor) -> int:
        if x.shape[-1] % self.block:
            raise ShapeError(f"rows of {x.shape[-1]} elements do not split into blocks of {self.block}",
                             where="hadamard", remedy="take the block from choose(K).")
        return x.shape[-1]


def choose(k: int, seed: int | None = None) -> Hadamard:
    """The rotation with the largest block that divides ``k`` and whose order is known."""
    divisors = (k // count for count in range(1, k + 1) if k % count == 0)
    return Hadamard(next(block for block in divisors if is_known(block)), seed)


@functools.lru_cache(maxsize=64)
@made_apart
def _signs(k: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (k,), generator=generator).mul(2).sub(1).float()
