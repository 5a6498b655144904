"""A norm and the quantizer after it, in one kernel, against the compiled bfloat16 norm alone and a copy's bandwidth."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.case import OURS, Case
from benchmarks.gpu.operands import QMAX, QMIN
from benchmarks.gpu.place import Place
from benchmarks.gpu.timing import Calls
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_token, quantize_static

ROWS, COLUMNS = (128, 1024, 8192, 65536), (768, 4096)
QUICK_ROWS, QUICK_COLUMNS = (5,), (64,)
EPSILON = 1e-6


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[M, K] bfloat16 -> the same."""
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def layer_norm_static(x: Tensor, weight: Tensor, bias: Tensor, mul: Tensor, add: Tensor) -> Tensor:
    """Layer norm and a static quantizer: codes int8 [M, K]."""
    return quantize_static(layer_norm(x, weight, bias), mul, add, QMIN, QMAX)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """As models write it: float32 inside, [M, K] in the dtype of ``x``."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)).to(x.dtype)


def rms_norm_per_token(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """RMSNorm and one range per row: codes int8 [M, K], scale and zero point [M, 1]."""
    return quantize_per_token(rms_norm(x, weight), None, None, QMIN, QMAX, False)


def cases(quick: bool) -> list[Case]:
    """Both norms, many rows first."""
    rows, columns = (QUICK_ROWS, QUICK_COLUMNS) if quick else (ROWS, COLUMNS)
    kinds = (("layer norm, quantize", layer_norm_static, layer_norm, True),
             ("RMSNorm, quantize per token", rms_norm_per_token, rms_norm, False))
    return [_case(*kind, m, k) for m in sorted(rows, reverse=True) for k in columns for kind in kinds]


def _case(what: str, ours: Callable[..., object], floats: Callable[..., object], static: bool, m: int, k: int) -> Case:
    """``floats`` takes the activation and the norm's parameters; ``ours`` also the quantizer's, if it is static."""
    def arms(place: Place) -> Mapping[str, Callable[[], Calls]]:
        xs = [torch.randn(m, k, device=place.device, dtype=torch.bfloat16) for _ in range(place.sets(3 * m * k))]
        weight, bias = (torch.rand(k, device=place.device, dtype=torch.bfloat16) + 0.5 for _ in range(2))
        quantizer = (torch.rand(k, device=place.device) * 20 + 10, torch.randn(k, device=place.device) * 10)
        own = (weight, bias) if static else (weight,)

        def calls(fn: Callable[..., object], *parameters: Tensor) -> Calls:
            compiled = place.compiled(fn)
            return [partial(compiled, x, *parameters) for x in xs]

        return {OURS: lambda: calls(ours, *own, *(quantizer if static else ())),
                "bf16": lambda: calls(floats, *own)}

    return Case(what, f"{m} x {k}", arms, moved=3 * m * k)
