"""``torchqx::chunk_scan``: its schema, and its shapes for tracing.

x, z [B, L, H, P]; dt [B, L, H]; A, dt_bias [H]; B, C [B, L, G, N] (group g serves H/G heads); D [H] or [H, P];
initial_states [B, H, P, N]. With dt = clamp(softplus(dt + dt_bias), dt_min, dt_max), or without the softplus:

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ        y_t = (h_t C_t + D x_t) · silu(z_t)

y [B, L, H, P] in ``out_dtype``, and the last h, float32 [B, H, P, N]. Every operand except dt_bias and initial_states
may be codes: the scales of x, z and the output belong to the H · P channels (H of them: to heads), that of dt to heads,
those of B and C to groups of states.
"""

import torch
from torch import Tensor

from torchqx.errors import ShapeError
from torchqx.inductor_kernels.state_space.checks import check_operand, check_output
from torchqx.inductor_kernels.state_space.codes import precision

LIBRARY = torch.library.Library("torchqx", "FRAGMENT")
_SIGNATURE = (
    "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, Tensor? dt_bias=None, "
    "Tensor? initial_states=None, bool dt_softplus=False, float? dt_min=None, float? dt_max=None, "
    "Tensor? x_scale=None, Tensor? dt_scale=None, Tensor? A_scale=None, Tensor? B_scale=None, Tensor? C_scale=None, "
    "Tensor? D_scale=None, Tensor? z_scale=None, Tensor? out_scale=None, ScalarType out_dtype=float) "
    "-> (Tensor y, Tensor last_states)"
)
LIBRARY.define("chunk_scan" + _SIGNATURE)
LIBRARY.define("chunk_scan_naive" + _SIGNATURE)
LIBRARY.define(
    "chunk_scan_backward(Tensor grad_y, Tensor grad_last, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, "
    "Tensor? D, Tensor? z, Tensor? dt_bias, Tensor? initial_states, bool dt_softplus, float? dt_min, float? dt_max) "
    "-> Tensor[]"
)


def check(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    dt_bias: Tensor | None = None, initial_states: Tensor | None = None, dt_softplus: bool = False,
    dt_min: float | None = None, dt_max: float | None = None,
    x_scale: Tensor | None = None, dt_scale: Tensor | None = None, A_scale: Tensor | None = None,
    B_scale: Tensor | None = None, C_scale: Tensor | None = None, D_scale: Tensor | None = None,
    z_scale: Tensor | None = None, out_scale: Tensor | None = None, out_dtype: torch.dtype = torch.float32,
) -> torch.dtype:
    """Refuse operands that do not fit together; returns ``out_dtype``.

    Raises:
        ShapeError: a shape, or a number of scales.
        UnsupportedError: a type.
    """
    op = "chunk_scan"
    if x.dim() != 4 or B.dim() != 4:
        raise ShapeError(f"x {tuple(x.shape)}, B {tuple(B.shape)}", where=op,
                         remedy="give x [B, L, H, P] and B [B, L, G, N].")
    batch, steps, heads, width = x.shape
    groups, states = B.shape[2:]
    if groups == 0 or heads % groups != 0:
        raise ShapeError(f"{groups} groups for {heads} heads", where=op, remedy="give groups that divide them.")
    check_operand(op, "x", x, x.shape, x_scale, heads * width)
    check_operand(op, "dt", dt, (batch, steps, heads), dt_scale, heads)
    check_operand(op, "A", A, (heads,), A_scale)
    check_operand(op, "B", B, (batch, steps, groups, states), B_scale, groups)
    check_operand(op, "C", C, (batch, steps, groups, states), C_scale, groups)
    check_operand(op, "D", D, (heads,) if D is not None and D.dim() == 1 else (heads, width), D_scale)
    check_operand(op, "z", z, x.shape, z_scale, heads * width)
    check_operand(op, "dt_bias", dt_bias, (heads,))
    check_operand(op, "initial_states", initial_states, (batch, heads, width, states))
    check_output(op, out_scale, out_dtype, heads * width)
    return out_dtype


@torch.library.register_fake("torchqx::chunk_scan_naive")
@torch.library.register_fake("torchqx::chunk_scan")
def chunk_scan_fake(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *rest: Tensor | torch.dtype | float | None,
                    **named: Tensor | torch.dtype | float | None) -> tuple[Tensor, Tensor]:
    """Shapes and types of both results."""
    out_dtype = check(x, dt, A, B, *rest, **named)
    batch, _, heads, width = x.shape
    return x.new_empty(x.shape, dtype=out_dtype), x.new_empty((batch, heads, width, B.shape[3]), dtype=precision(x))


@torch.library.register_fake("torchqx::chunk_scan_backward")
def chunk_scan_backward_fake(grad_y: Tensor, grad_last: Tensor, *operands: Tensor | float | None) -> list[Tensor]:
    """One gradient per operand that is given, of its shape and type."""
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in operands[:9] if t is not None]
