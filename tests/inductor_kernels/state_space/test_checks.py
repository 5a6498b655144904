"""Operands that do not fit are refused: with a typed error by checks and while tracing, and by C++."""

import pytest
import torch

import torchqx
from torchqx.errors import ConfigError, ShapeError, UnsupportedError
from torchqx.inductor_kernels.selective_scan import check

U, A, B = torch.ones(2, 6, 5), torch.ones(6, 3), torch.ones(2, 3, 5)
SCALE = torch.ones(1)
CODES = U.to(torch.int8)


@pytest.mark.parametrize(("change", "error", "match"), [
    ({"u": U[0]}, ShapeError, "u "),
    ({"delta": U[:1]}, ShapeError, "delta"),
    ({"B": torch.ones(2, 4, 3, 5)}, ShapeError, "4 groups for 6 channels"),
    ({"D": torch.ones(5)}, ShapeError, "D has"),
    ({"z": CODES}, UnsupportedError, "int8 without a scale"),
    ({"z": U, "z_scale": SCALE}, UnsupportedError, "float32 with a scale"),
    ({"z_scale": SCALE}, UnsupportedError, "z has a scale"),
    ({"u": CODES, "u_scale": torch.ones(4)}, ShapeError, "4 scales"),
    ({"out_scale": SCALE}, UnsupportedError, "an output of torch.float32 with"),
    ({"out_dtype": torch.int32}, UnsupportedError, "torch.int32"),
])
def test_refused(change, error, match):
    operands = {"u": U, "delta": U, "A": A, "B": B, "C": B} | change
    with pytest.raises(error, match=match):
        check(**operands)
    with pytest.raises(Exception):  # noqa: B017  a plain RuntimeError from C++
        torch.ops.torchqx.selective_scan(**operands)
    with pytest.raises(error, match=match), torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        torch.ops.torchqx.selective_scan(**operands)


def test_public_functions_refuse():
    with pytest.raises(ShapeError, match="delta"):
        torchqx.selective_scan(U, U[:1], A, B, B)
    with pytest.raises(UnsupportedError, match="seq_idx"):
        torchqx.chunk_scan(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3), torch.ones(3), torch.ones(1, 2, 1, 5),
                           torch.ones(1, 2, 1, 5), seq_idx=torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="gelu"):
        torchqx.causal_conv1d(U, torch.ones(6, 4), activation="gelu")
    with pytest.raises(ShapeError, match="contiguous"):
        torchqx.selective_state_update(torch.ones(2, 3, 6).mT, U[..., 0], U[..., 0], A, B[..., 0], B[..., 0])
