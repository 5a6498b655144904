"""Activations of every form as rows, and results back."""

import pytest
import torch
from torch.nn import functional as F

from torchqx.rows import conv_result, conv_rows, left_result, left_rows


@pytest.mark.parametrize(("shape", "kernel"), [
    ((2, 3, 8), (1,)), ((2, 3, 9), (2,)), ((1, 3, 8, 12), (4, 4)), ((2, 3, 9, 13), (4, 3)),
    ((2, 3, 4, 6, 5), (2, 3, 5)),
])
def test_convolutions(shape: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    """Also where the last rows and columns fill no patch."""
    x, weight = torch.randn(shape), torch.randn(5, 3, *kernel)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    result = conv_result(conv_rows(x, kernel) @ weight.flatten(1).T)
    torch.testing.assert_close(result, convolve(x, weight, stride=kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(7,), (7, 3), (2, 7, 3), (2, 4, 7, 3)])
def test_weights_on_the_left(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape), torch.randn(5, 7)
    torch.testing.assert_close(left_result(left_rows(x) @ weight.T), weight @ x)
