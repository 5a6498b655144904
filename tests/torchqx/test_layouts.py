"""Parameters as matrices and back."""

import pytest
import torch
from torch.nn import functional as F

from torchqx.layouts import WeightLayout
from torchqx.rows import conv_result, conv_rows

SHAPES = {WeightLayout.OUT_IN: (5, 7), WeightLayout.IN_OUT: (7, 5), WeightLayout.CONV: (5, 3, 2, 4),
          WeightLayout.EXPERTS_OUT_IN: (2, 5, 7), WeightLayout.EXPERTS_IN_OUT: (2, 7, 5)}


@pytest.mark.parametrize("layout", WeightLayout)
def test_there_and_back(layout: WeightLayout) -> None:
    parameter = torch.randn(SHAPES[layout])
    matrix = layout.to_matrix(parameter)
    assert matrix.shape[-2] == 5
    assert torch.equal(layout.from_matrix(matrix, parameter.shape), parameter)


def test_meaning() -> None:
    x, w = torch.randn(4, 7), torch.randn(7, 5)
    torch.testing.assert_close(x @ WeightLayout.IN_OUT.to_matrix(w).T, x @ w)
    image, kernel = torch.randn(2, 3, 6, 8), torch.randn(5, 3, 2, 4)
    rows = conv_rows(image, (2, 4)) @ WeightLayout.CONV.to_matrix(kernel).T
    torch.testing.assert_close(conv_result(rows), F.conv2d(image, kernel, stride=(2, 4)), rtol=1e-4, atol=1e-5)
