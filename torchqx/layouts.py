"""How a parameter lies in memory against the matrix ``[out, in]`` that every weighted matmul is about."""

from enum import StrEnum

from torch import Tensor


class WeightLayout(StrEnum):
    """
    | layout | parameter | matrix | seen in |
    |---|---|---|---|
    | OUT_IN | [N, K] | [N, K] | linear, W @ x |
    | IN_OUT | [K, N] | [N, K] | addmm, x @ W |
    | CONV | [N, C, *kernel] | [N, C·kernel] | 1x1 and patch-embedding convolutions |
    | EXPERTS_OUT_IN | [E, N, K] | [E, N, K] | stacked experts |
    | EXPERTS_IN_OUT | [E, K, N] | [E, N, K] | stacked experts, transposed |
    """

    OUT_IN = "out_in"
    IN_OUT = "in_out"
    CONV = "conv"
    EXPERTS_OUT_IN = "experts_out_in"
    EXPERTS_IN_OUT = "experts_in_out"

    def to_matrix(self, parameter: Tensor) -> Tensor:
        """Parameter -> [N, K] or [E, N, K]; a view where possible."""
        if self in (WeightLayout.IN_OUT, WeightLayout.EXPERTS_IN_OUT):
            return parameter.transpose(-2, -1)
        if self is WeightLayout.CONV:
            return parameter.flatten(1)
        return parameter

    def from_matrix(self, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse of :meth:`to_matrix`; ``shape`` is the parameter's."""
        if self in (WeightLayout.IN_OUT, WeightLayout.EXPERTS_IN_OUT):
            return matrix.transpose(-2, -1)
        return matrix.reshape(shape)
