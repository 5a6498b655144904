"""``torchqx::state_update``: its schema, and its shapes for tracing.

| | Mamba | Mamba2 |
|---|---|---|
| state, changed in place, contiguous, float32 or bfloat16 | [B, D, N] | [B, H, P, N] |
| x, dt, z | [B, D] | [B, H, P] |
| A | [D, N] | [H, P, N] |
| B, C | [B, N] | [B, G, N] (group g serves H/G heads) |
| D, dt_bias | [D] | [H, P] |

With dt = softplus(dt + dt_bias), or without the softplus:

    h <- exp(dt A) h + dt x Bᵀ        y = (h C + D x) · silu(z)

y has the shape of x. The state has no gradient. All but state and dt_bias may be codes; scales of x, dt, z and y belong
to the channels, D or H · P (H of them: to heads). An A that is expanded along N costs one exponential per row.
"""

import math

import torch
from torch import Tensor

from torchqx.errors import ShapeError, UnsupportedError
from torchqx.inductor_kernels.state_space.checks import check_operand, check_output

LIBRARY = torch.library.Library("torchqx", "FRAGMENT")
_SIGNATURE = (
    "(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, "
    "Tensor? dt_bias=None, bool dt_softplus=False, Tensor? x_scale=None, Tensor? dt_scale=None, Tensor? A_scale=None, "
    "Tensor? B_scale=None, Tensor? C_scale=None, Tensor? D_scale=None, Tensor? z_scale=None, Tensor? out_scale=None, "
    "ScalarType out_dtype=float) -> Tensor"
)
LIBRARY.define("state_update" + _SIGNATURE)
LIBRARY.define("state_update_naive" + _SIGNATURE)


def check(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = False, x_scale: Tensor | None = None,
    dt_scale: Tensor | None = None, A_scale: Tensor | None = None, B_scale: Tensor | None = None,
    C_scale: Tensor | None = None, D_scale: Tensor | None = None, z_scale: Tensor | None = None,
    out_scale: Tensor | None = None, out_dtype: torch.dtype = torch.float32,
) -> torch.dtype:
    """Refuse operands that do not fit together; returns ``out_dtype``.

    Raises:
        ShapeError: a shape, or a number of scales; a state that is not contiguous.
        UnsupportedError: a type.
    """
    op = "state_update"
    if state.dim() not in (3, 4) or B.dim() != state.dim() - 1 or not state.is_contiguous():
        raise ShapeError(f"state {tuple(state.shape)}, B {tuple(B.shape)}", where=op,
                         remedy="give a contiguous state [B, D, N] with B [B, N], or [B, H, P, N] with B [B, G, N].")
    if state.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise UnsupportedError(f"a state of {state.dtype}", where=op, remedy="keep it in float32 or bfloat16.")
    batch, *rows, states = state.shape
    heads, groups = (rows[0], B.shape[1]) if state.dim() == 4 else (1, 1)
    if groups == 0 or heads % groups != 0:
        raise ShapeError(f"{groups} groups for {heads} heads", where=op, remedy="give groups that divide them.")
    channels = math.prod(rows)
    grouped = (batch, groups, states) if state.dim() == 4 else (batch, states)
    check_operand(op, "x", x, (batch, *rows), x_scale, channels)
    check_operand(op, "dt", dt, (batch, *rows), dt_scale, channels)
    check_operand(op, "A", A, (*rows, states), A_scale)
    check_operand(op, "B", B, grouped, B_scale, groups)
    check_operand(op, "C", C, grouped, C_scale, groups)
    check_operand(op, "D", D, rows, D_scale)
    check_operand(op, "z", z, (batch, *rows), z_scale, channels)
    check_operand(op, "dt_bias", dt_bias, rows)
    check_output(op, out_scale, out_dtype, channels)
    return out_dtype


@torch.library.register_fake("torchqx::state_update_naive")
@torch.library.register_fake("torchqx::state_update")
def state_update_fake(state: Tensor, x: Tensor, *rest: Tensor | torch.dtype | bool | None,
                      **named: Tensor | torch.dtype | bool | None) -> Tensor:
    """Shape and type of y."""
    out_dtype = check(state, x, *rest, **named)
    return x.new_empty(x.shape, dtype=out_dtype)
