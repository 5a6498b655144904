"""Every weighted matmul as rows [..., K] -> [..., N]: how an activation becomes rows, and how the result comes back."""

import math

from torch import Tensor


def conv_rows(x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Patches of a convolution whose stride is its kernel: [B, C, *spatial] -> [B, *patches, C·kernel].

    Positions past the last whole patch are left out, as the convolution does.
    """
    patches = [size // k for size, k in zip(x.shape[2:], kernel, strict=True)]
    for d, (count, k) in enumerate(zip(patches, kernel, strict=True)):
        x = x.narrow(2 + d, 0, count * k)
    split = [s for count, k in zip(patches, kernel, strict=True) for s in (count, k)]
    x = x.reshape(x.shape[0], x.shape[1], *split)
    n = len(kernel)
    order = [0, *(2 + 2 * i for i in range(n)), 1, *(3 + 2 * i for i in range(n))]
    return x.permute(order).reshape(x.shape[0], *patches, x.shape[1] * math.prod(kernel))


def conv_result(y: Tensor) -> Tensor:
    """[B, *patches, N] -> [B, N, *patches]."""
    return y.movedim(-1, 1)


def left_rows(x: Tensor) -> Tensor:
    """The activation of ``W @ x``: [..., K, T] -> [..., T, K]; a vector [K] stays."""
    return x if x.dim() == 1 else x.transpose(-2, -1)


def left_result(y: Tensor) -> Tensor:
    """[..., T, N] -> [..., N, T]; a vector [N] stays."""
    return y if y.dim() == 1 else y.transpose(-2, -1)
