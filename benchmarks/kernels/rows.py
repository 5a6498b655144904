"""What acts on rows, beside a copy of the same tensor: a norm with its quantizer, and the Hadamard rotation."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.norm import layer_norm, rms_norm
from benchmarks.kernels.case import OURS, Arms, Case
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_token, quantize_static
from torchqx.inductor_kernels.quantize_norm import QUANTIZE_NORM
from torchqx.rotations import choose

NORM_SIZES = [(128, 384), (1024, 768), (512, 576), (32768, 768)]  # the last exceeds the caches
ROTATED_SIZES = [(128, 384), (512, 576), (1024, 768), (512, 2048), (16384, 576), (8192, 3072)]


def cases() -> list[Case]:
    """bfloat16 throughout; the rotation in float32 too."""
    norms = [Case(kernel, f"{m} x {k}", partial(arms, m, k))
             for kernel, arms in (("layer norm, quantize", static_norm), ("RMSNorm, quantize per token", token_norm))
             for m, k in NORM_SIZES]
    rotations = [Case(f"hadamard {str(dtype).removeprefix('torch.')}", f"{m} x {k}", partial(rotation, m, k, dtype))
                 for dtype in (torch.float32, torch.bfloat16) for m, k in ROTATED_SIZES]
    return norms + rotations


def static_norm(m: int, k: int) -> Arms:
    """Layer norm and a static quantizer, as the kernel, and as Inductor fuses them."""
    x, weight, bias = torch.randn(m, k).bfloat16(), torch.rand(k).bfloat16() + 0.5, torch.randn(k).bfloat16()
    mul, add = torch.rand(k) * 20 + 10, torch.randn(k) * 10 + 128
    fused = torch.compile(_layer_norm_static, dynamic=False)
    alone = torch.compile(layer_norm, dynamic=False)
    return {OURS: lambda: QUANTIZE_NORM(x, weight, bias, 1e-5, mul, add, 0, 255, False),
            "generated": lambda: fused(x, weight, bias, mul, add), "bf16 norm alone": lambda: alone(x, weight, bias),
            "copy": _copy(x)}


def token_norm(m: int, k: int) -> Arms:
    """RMSNorm and one range per row, as Inductor fuses them."""
    x, weight = torch.randn(m, k).bfloat16(), torch.rand(k).bfloat16() + 0.5
    fused = torch.compile(_rms_norm_per_token, dynamic=False)
    alone = torch.compile(rms_norm, dynamic=False)
    return {OURS: lambda: fused(x, weight), "bf16 norm alone": lambda: alone(x, weight), "copy": _copy(x)}


def rotation(m: int, k: int, dtype: torch.dtype) -> Arms:
    """The rotation alone and with either quantizer, and as one dense matrix."""
    x, chosen, ops = torch.randn(m, k).to(dtype), choose(k, seed=0), torch.ops.torchqx
    block, signs = chosen.block, chosen.signs(k)
    mul, add, dense = torch.full((k,), 30.0), torch.full((k,), 128.0), chosen.matrix(k, torch.float32).to(dtype)
    return {OURS: lambda: ops.hadamard(x, signs, block, False),
            "torchqx static u8": lambda: ops.hadamard_quantize_static(x, signs, block, mul, add, 0, 255),
            "torchqx per token u8":
                lambda: ops.hadamard_quantize_per_token(x, signs, block, None, None, 0, 255, False),
            "dense": lambda: x @ dense, "copy": _copy(x)}


def _layer_norm_static(x: Tensor, weight: Tensor, bias: Tensor, mul: Tensor, add: Tensor) -> Tensor:
    return quantize_static(layer_norm(x, weight, bias), mul, add, 0, 255)


def _rms_norm_per_token(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return quantize_per_token(rms_norm(x, weight), None, None, 0, 255, False)


def _copy(x: Tensor) -> partial[Tensor]:
    """Into memory that is mapped already: fresh pages would cost more than the copy."""
    return partial(torch.empty_like(x).copy_, x)
