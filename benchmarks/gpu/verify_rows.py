"""What makes codes of rows, compiled, against float64: norms with quantizers after them, and Hadamard rotations."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.check import HALF, Check, code_distance, relative
from benchmarks.gpu.norm import EPSILON, layer_norm, layer_norm_static, rms_norm_per_token
from benchmarks.gpu.operands import QMAX, QMIN
from benchmarks.gpu.place import Place
from torchqx.inductor_kernels.hadamard.naive import hadamard_naive
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_group
from torchqx.rotations import choose

SIZES, QUICK_SIZES = ((33, 100), (5, 768), (64, 4096), (1000, 576)), ((3, 100),)
ROTATED, QUICK_ROTATED = (12, 64, 576, 3072, 4096, 11008), (12, 64)
ROTATIONS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
SCALE_BOUND = 1e-5


def checks(place: Place) -> list[Check]:
    """Norms at several sizes; every Hadamard operator at several lengths."""
    sizes, lengths = (QUICK_SIZES, QUICK_ROTATED) if place.quick else (SIZES, ROTATED)
    found = [make(place, *size) for size in sizes for make in (_static, _per_token, _per_group)]
    for k in lengths:
        found += [_rotation(place, k, torch.float32, transpose) for transpose in (False, True)]
        found += [_rotation(place, k, torch.bfloat16, False), _rotated_static(place, k), _rotated_per_token(place, k)]
    return found


def _static(place: Place, m: int, k: int) -> Check:
    def error() -> float:
        x, weight, bias = torch.randn(m, k) * 3, torch.rand(k) + 0.5, torch.randn(k)
        mul, add = torch.rand(k) * 20 + 10, torch.randn(k) * 10
        exact = layer_norm(x.double(), weight.double(), bias.double()) * mul + add
        result = place.compiled(layer_norm_static)(*place.moved((x, weight, bias, mul, add)))
        return code_distance(result, exact.clamp(QMIN, QMAX))

    return Check(f"layer norm, quantize {m} x {k}", HALF, error)


def _per_token(place: Place, m: int, k: int) -> Check:
    def error() -> float:
        x, weight = torch.randn(m, k) * 3 + 1, torch.rand(k) + 0.5
        result = place.compiled(rms_norm_per_token)(*place.moved((x, weight)))
        return span_error(*result, _rms_norm64(x, weight))

    return Check(f"RMSNorm, quantize per token {m} x {k}", HALF, error)


def _per_group(place: Place, m: int, k: int) -> Check:
    def error() -> float:
        size = k // 4
        x = torch.randn(m, k)
        q, scale, zero_point = place.compiled(_groups_of)(x.to(place.device), size)
        return span_error(*(t.reshape(m, 4, -1) for t in (q, scale, zero_point)), x.double().reshape(m, 4, size))

    return Check(f"quantize per group {m} x {k}", HALF, error)


def _rotation(place: Place, k: int, dtype: torch.dtype, transpose: bool) -> Check:
    def error() -> float:
        x, signs, block = _rotation_operands(k)
        x = x.to(dtype)
        result = place.compiled(_rotated)(x.to(place.device), signs.to(place.device), block, transpose)
        if result.dtype != dtype:
            raise ValueError(f"{result.dtype} from {dtype}")
        return relative(result, hadamard_naive(x, signs, block, transpose))

    return Check(f"hadamard {k}{', transposed' if transpose else ''}, {str(dtype).removeprefix('torch.')}",
                 ROTATIONS[dtype], error)


def _rotated_static(place: Place, k: int) -> Check:
    def error() -> float:
        x, signs, block = _rotation_operands(k)
        mul, add = torch.rand(k) * 20 + 10, torch.randn(k) * 10
        result = place.compiled(_rotated_to_codes)(*place.moved((x, signs, block, mul, add)))
        return code_distance(result, (hadamard_naive(x, signs, block, False) * mul + add).clamp(QMIN, QMAX))

    return Check(f"hadamard {k}, quantize", HALF, error)


def _rotated_per_token(place: Place, k: int) -> Check:
    def error() -> float:
        x, signs, block = _rotation_operands(k)
        result = place.compiled(_rotated_to_rows)(*place.moved((x, signs, block)))
        return span_error(*result, hadamard_naive(x, signs, block, False))

    return Check(f"hadamard {k}, quantize per token", HALF, error)


def _rotation_operands(k: int) -> tuple[Tensor, Tensor, int]:
    rotation = choose(k, seed=0)
    signs = rotation.signs(k)
    assert signs is not None
    return torch.randn(33, k), signs, rotation.block


def _rotated(x: Tensor, signs: Tensor, block: int, transpose: bool) -> Tensor:
    return torch.ops.torchqx.hadamard(x, signs, block, transpose)


def _rotated_to_codes(x: Tensor, signs: Tensor, block: int, mul: Tensor, add: Tensor) -> Tensor:
    return torch.ops.torchqx.hadamard_quantize_static(x, signs, block, mul, add, QMIN, QMAX)


def _rotated_to_rows(x: Tensor, signs: Tensor, block: int) -> Any:
    return torch.ops.torchqx.hadamard_quantize_per_token(x, signs, block, None, None, QMIN, QMAX, False)


def _groups_of(x: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    return quantize_per_group(x, None, None, QMIN, QMAX, False, size)


def _rms_norm64(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return weight.double() * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)


def span_error(q: Tensor, scale: Tensor, zero_point: Tensor, exact: Tensor) -> float:
    """Distance of codes and zero points from ``exact`` in each row's own scale, which must be the row's range."""
    scale, zero_point = scale.cpu().double(), zero_point.cpu().double()
    low, high = exact.amin(-1, keepdim=True).clamp(max=0), exact.amax(-1, keepdim=True).clamp(min=0)
    off = relative(scale, (high - low) / (QMAX - QMIN))
    if not off <= SCALE_BOUND:
        raise ValueError(f"scales are off by {off:.1e}")
    zero_error = float((zero_point - (QMIN - low / scale).clamp(QMIN, QMAX)).abs().max())
    return max(zero_error, code_distance(q, (exact / scale + zero_point).clamp(QMIN, QMAX)))
