"""``torchqx::selective_scan``: its schema, and its shapes for tracing.

u, delta, z [B, D, L] and B, C [B, N, L] or [B, G, N, L] (group g serves D/G channels) of any strides; A [D, N];
D, delta_bias [D]; initial_state [B, D, N]. With dt = softplus(delta + delta_bias), or without the softplus:

    h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t        y_t = (Σ_n h_t C_t + D u_t) · silu(z_t)

y [B, D, L] in ``out_dtype``, with neighbouring channels next to each other in memory, and the last h, float32
[B, D, N]. Every operand except delta_bias and initial_state may be codes (see torchqx.inductor_kernels.state_space).
"""

import torch
from torch import Tensor

from torchqx.errors import ShapeError
from torchqx.inductor_kernels.state_space.checks import check_operand, check_output
from torchqx.inductor_kernels.state_space.codes import precision

LIBRARY = torch.library.Library("torchqx", "FRAGMENT")
_SIGNATURE = (
    "(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, Tensor? delta_bias=None, "
    "Tensor? initial_state=None, bool delta_softplus=False, Tensor? u_scale=None, Tensor? delta_scale=None, "
    "Tensor? A_scale=None, Tensor? B_scale=None, Tensor? C_scale=None, Tensor? D_scale=None, Tensor? z_scale=None, "
    "Tensor? out_scale=None, ScalarType out_dtype=float) -> (Tensor y, Tensor last_state)"
)
LIBRARY.define("selective_scan" + _SIGNATURE)
LIBRARY.define("selective_scan_naive" + _SIGNATURE)
LIBRARY.define(
    "selective_scan_backward(Tensor grad_y, Tensor grad_last, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
    "Tensor? D, Tensor? z, Tensor? delta_bias, Tensor? initial_state, bool delta_softplus) -> Tensor[]"
)


def check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, initial_state: Tensor | None = None, delta_softplus: bool = False,
    u_scale: Tensor | None = None, delta_scale: Tensor | None = None, A_scale: Tensor | None = None,
    B_scale: Tensor | None = None, C_scale: Tensor | None = None, D_scale: Tensor | None = None,
    z_scale: Tensor | None = None, out_scale: Tensor | None = None, out_dtype: torch.dtype = torch.float32,
) -> torch.dtype:
    """Refuse operands that do not fit together; returns ``out_dtype``.

    Raises:
        ShapeError: a shape, or a number of scales.
        UnsupportedError: a type.
    """
    op = "selective_scan"
    if u.dim() != 3 or A.dim() != 2 or B.dim() not in (3, 4):
        raise ShapeError(f"u {tuple(u.shape)}, A {tuple(A.shape)}, B {tuple(B.shape)}", where=op,
                         remedy="give u [B, D, L], A [D, N] and B [B, N, L] or [B, G, N, L].")
    batch, channels, steps = u.shape
    states = A.shape[1]
    groups = B.shape[1] if B.dim() == 4 else 1
    if groups == 0 or channels % groups != 0:
        raise ShapeError(f"{groups} groups for {channels} channels", where=op, remedy="give groups that divide them.")
    grouped = (batch, groups, states, steps) if B.dim() == 4 else (batch, states, steps)
    check_operand(op, "u", u, (batch, channels, steps), u_scale, channels)
    check_operand(op, "delta", delta, (batch, channels, steps), delta_scale, channels)
    check_operand(op, "A", A, (channels, states), A_scale)
    check_operand(op, "B", B, grouped, B_scale, groups)
    check_operand(op, "C", C, grouped, C_scale, groups)
    check_operand(op, "D", D, (channels,), D_scale)
    check_operand(op, "z", z, (batch, channels, steps), z_scale, channels)
    check_operand(op, "delta_bias", delta_bias, (channels,))
    check_operand(op, "initial_state", initial_state, (batch, channels, states))
    check_output(op, out_scale, out_dtype, channels)
    return out_dtype


@torch.library.register_fake("torchqx::selective_scan_naive")
@torch.library.register_fake("torchqx::selective_scan")
def selective_scan_fake(u: Tensor, delta: Tensor, A: Tensor, *rest: Tensor | torch.dtype | bool | None,
                        **named: Tensor | torch.dtype | bool | None) -> tuple[Tensor, Tensor]:
    """Shapes, strides and types of both results."""
    out_dtype = check(u, delta, A, *rest, **named)
    batch, channels, steps = u.shape
    y = torch.empty_strided((batch, channels, steps), (channels * steps, 1, channels), dtype=out_dtype, device=u.device)
    return y, u.new_empty((batch, channels, A.shape[1]), dtype=precision(u))


@torch.library.register_fake("torchqx::selective_scan_backward")
def selective_scan_backward_fake(grad_y: Tensor, grad_last: Tensor, *operands: Tensor | bool | None) -> list[Tensor]:
    """One gradient per operand that is given, of its shape and type."""
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in operands[:9] if t is not None]
