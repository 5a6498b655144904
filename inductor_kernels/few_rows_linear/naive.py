"""The linear as its formula says, in float64: what the kernel is tested against."""

from torch import Tensor


def few_rows_linear_naive(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + bias in float64 [..., N], for x [..., K], weight [N, K] and bias [N]."""
    y = x.double() @ weight.double().T
    return y if bias is None else y + bias.double()
