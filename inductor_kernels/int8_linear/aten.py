"""The int8 linear operators in plain ATen, for every device: Inductor fuses what stands after the integer matmul."""

import math

import torch
from torch import Tensor

from torchqx.inductor_kernels.int8_linear import gpu as _gpu  # noqa: F401  registers the operator
from torchqx.inductor_kernels.int8_linear.activations import activate
from torchqx.inductor_kernels.int8_linear.quantize import code_dtype
from torchqx.inductor_kernels.stored import STORED

MOST_INTEGER_GROUPS = 32  # each group is a matmul and a pass over the output; with more, one float matmul is faster


def _takes_unsigned() -> bool:
    """Whether torch's integer matmul takes uint8 codes on the CPU."""
    try:
        torch._int_mm(torch.ones(1, 16, dtype=torch.uint8, device="cpu"),
                      torch.ones(16, 16, dtype=torch.int8, device="cpu"))
    except RuntimeError:
        return False
    return True


TAKES_UNSIGNED = _takes_unsigned()


def int_matmul(x: Tensor, qdata: Tensor, zero_point: Tensor, column_sum: Tensor) -> Tensor:
    """Σ_k (x - z) q in int32: x uint8 or int8 [M, K], qdata int8 [N, K], z int32 (one element or [M, 1]) -> [M, N].

    CPUs multiply uint8 by int8, GPUs (and torch 2.11 everywhere) int8 by int8: there codes of the other kind move down
    by 128, with z.
    """
    if x.dtype == torch.uint8 and (x.is_cuda or not TAKES_UNSIGNED):
        x, zero_point = (x.to(torch.int16) - 128).to(torch.int8), zero_point - 128
    if x.dtype == torch.int8:
        sums = torch.ops.torchqx.int8_matmul(x, qdata)
    elif x.shape[1] == 1:  # _int_mm is wrong here on the CPU: it takes the one row of the weight for a column
        sums = x.to(torch.int32) * qdata.T
    else:
        sums = torch._int_mm(x, qdata.T)
    return sums - zero_point * column_sum


def int8_linear_aten(
    x: Tensor,
    qdata: Tensor,
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
    """``torchqx::int8_linear`` on the plain weight ``qdata`` int8 [N, K]; all else as in the operator:

    x uint8 or int8 [..., K]; weight_scale float32 and column_sum int32 [N]; x_scale float32 and x_zero_point int32,
    one element or one per row ([...] or [..., 1]); bias [N]; residual [..., N]; out_mul and out_add float32, [N] or one
    element.

    y = act((Σ_k (x - z) q) · s_x · s_w + bias) + residual, then, with ``out_mul``, the codes
    clamp(round(y · out_mul + out_add)) as uint8 (int8 if out_qmin is negative) [..., N], else y in ``out_dtype``.

    With a ``gate``, 0 or 1, the weight stands for two of N columns, side by side, of which that one is the gate:
    y = act(y[gate]) · y[1 - gate] + residual, each of the two with its bias.
    """
    flat = x.reshape(-1, x.shape[-1])
    sums = int_matmul(flat, qdata, _per_row(x_zero_point), column_sum)
    y = sums.float() * _per_row(x_scale) * weight_scale
    result = _finish(y, x.shape, bias, activation, residual, out_mul, out_add, out_qmin, out_qmax, out_dtype,
                     gate)
    # A norm that reads the result would otherwise read the sums, twice the bytes of bfloat16, and scale them itself.
    return STORED(result) if x.is_cuda else result


def int8_linear_general_aten(
    x: Tensor,
    qdata: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
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
) -> Tensor:
    """:func:`int8_linear_aten` for any granularity: weight_scale and weight_zero_point [N] or [N, K/g], x_scale and
    x_zero_point one element, one per row, or [..., K/g]. The two group sizes may differ if one divides the other.

    Per group Σ (x - z_x)(q - z_w) = Σ (x - z_x) q - z_w Σ (x - z_x): integer matmuls, up to a number of groups.
    """
    flat = x.reshape(-1, x.shape[-1])
    rows = {"scale": _per_row(x_scale, flat.shape[0]), "zero": _per_row(x_zero_point, flat.shape[0])}
    columns = {"scale": weight_scale.reshape(qdata.shape[0], -1),
               "zero": None if weight_zero_point is None else weight_zero_point.reshape(qdata.shape[0], -1)}
    groups = math.lcm(*(p.shape[1] for p in (*rows.values(), *columns.values()) if p is not None))
    rows = {name: p.repeat_interleave(groups // p.shape[1], 1) for name, p in rows.items()}
    columns = {name: p if p is None else p.repeat_interleave(groups // p.shape[1], 1) for name, p in columns.items()}

    size = x.shape[-1] // groups
    if groups > MOST_INTEGER_GROUPS:
        activations = (flat.unflatten(1, (groups, size)).float() - rows["zero"][..., None]) * rows["scale"][..., None]
        weight = qdata.unflatten(1, (groups, size)).float()
        weight = weight if columns["zero"] is None else weight - columns["zero"][..., None]
        y = activations.flatten(1) @ (weight * columns["scale"][..., None]).flatten(1).T
    else:
        y = torch.zeros((), dtype=torch.float32, device=x.device)
        for g in range(groups):
            part, weight = flat[:, g * size : (g + 1) * size], qdata[:, g * size : (g + 1) * size]
            zero = rows["zero"][:, g : g + 1]
            sums = int_matmul(part, weight, zero, weight.sum(1, dtype=torch.int32))
            if columns["zero"] is not None:
                sums = sums - (part.sum(1, keepdim=True, dtype=torch.int32) - size * zero) * columns["zero"][:, g]
            y = y + sums.float() * rows["scale"][:, g : g + 1] * columns["scale"][:, g]
    return _finish(y, x.shape, bias, activation, residual, out_mul, out_add, out_qmin, out_qmax, out_dtype)


def _per_row(parameter: Tensor, rows: int | None = None) -> Tensor:
    """[M, groups] from one element, [...], [..., 1] or [..., groups]; one element stays one without ``rows``."""
    if parameter.numel() == 1:
        return parameter.reshape(1, 1)
    return parameter.reshape(-1, 1) if rows is None else parameter.reshape(rows, -1)


def _finish(
    y: Tensor, x_shape: torch.Size, bias: Tensor | None, activation: str, residual: Tensor | None,
    out_mul: Tensor | None, out_add: Tensor | None, out_qmin: int, out_qmax: int, out_dtype: torch.dtype,
    gate: int | None = None,
) -> Tensor:
    y = activate(y if bias is None else y + bias.float(), activation, gate)
    y = y.reshape(*x_shape[:-1], y.shape[-1])
    if residual is not None:
        y = y + residual.float()
    if out_mul is None:
        return y.to(out_dtype)
    return torch.round(y * out_mul + out_add).clamp(out_qmin, out_qmax).to(code_dtype(out_qmin))
