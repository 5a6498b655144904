"""``torchqx::int8_linear``: its schema, and its shapes for tracing. The C++ kernel registers itself once built."""

import torch
from torch import Tensor

from torchqx.errors import ShapeError

GATE = 14
"""Position of the argument ``gate``, which calls without one leave out."""

LIBRARY = torch.library.Library("torchqx", "FRAGMENT")
LIBRARY.define(
    "int8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor column_sum, Tensor x_scale, Tensor x_zero_point, "
    "Tensor? bias, str activation, Tensor? residual, Tensor? out_mul, Tensor? out_add, int out_qmin, int out_qmax, "
    "ScalarType out_dtype, int? gate=None) -> Tensor"
)


@torch.library.register_fake("torchqx::int8_linear")
def int8_linear_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    column_sum: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    out_mul: Tensor | None,
    out_add: Tensor | None,
    out_qmin: int,
    out_qmax: int,
    out_dtype: torch.dtype,
    gate: int | None = None,
) -> Tensor:
    """Shape and dtype of the result: ``[*x.shape[:-1], N]``, contiguous.

    With a ``gate`` the weight is two packed weights of N columns, one behind the other, and what belongs to its columns
    has 2 N elements.

    Raises:
        ShapeError: the packed weight does not belong to rows of K elements and N columns.
    """
    parts = 1 if gate is None else 2
    columns = weight_scale.shape[0] // parts
    panels, steps = weight.shape[:2]
    expected = parts * -(-columns // weight.shape[2]), -(-x.shape[-1] // 4)
    if parts * columns != weight_scale.shape[0] or (panels, steps) != expected:
        raise ShapeError(f"a packed weight of shape {tuple(weight.shape)} does not fit rows of {x.shape[-1]} elements "
                         f"and {columns} columns", where="int8_linear", remedy="pack the weight of this site.")
    dtype = out_dtype if out_mul is None else torch.uint8
    return x.new_empty((*x.shape[:-1], columns), dtype=dtype)
