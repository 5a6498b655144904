"""The Hadamard operators as their formula says: one product with the whole matrix.

What the kernels are tested against.
"""

from torch import Tensor

from torchqx.hadamard_matrices import hadamard_matrix


def hadamard_naive(x: Tensor, signs: Tensor | None, block: int, transpose: bool) -> Tensor:
    """x R, or x Rᵀ, in float64: [..., K] -> the same."""
    h = hadamard_matrix(block).double() * block**-0.5
    before, after = (None, signs) if transpose else (signs, None)
    y = x.double() if before is None else x.double() * before
    y = (y.unflatten(-1, (-1, block)) @ (h.T if transpose else h)).flatten(-2)
    return y if after is None else y * after
