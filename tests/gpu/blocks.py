"""The computations whose GPU code is proved, each with what it must become under the versions of constraints.txt."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gpu.state_space import computations
from torchqx.inductor_kernels.int8_linear import int8_linear_aten, quantize_per_token, quantize_static

ROWS, K, N = 33, 100, 64  # odd: K is no multiple of any tile
WIDE = 1024  # a Hadamard matrix of two factors
CODES = (-128, 127)
FLOAT = (None, None, *CODES, torch.float32)


@dataclass(frozen=True)
class Block:
    """``fn(*inputs)``.

    Attributes:
        launches: the kinds of its kernels, in order.
        fused: ATen or own ops that one kernel must hold together.
        tolerance: of the relative error against eager.
    """

    name: str
    fn: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    launches: tuple[str, ...]
    fused: tuple[str, ...]
    tolerance: float = 1e-6


def _norm(x: Tensor, weight: Tensor, bias: Tensor, mul: Tensor, add: Tensor) -> Tensor:
    return quantize_static(F.layer_norm(x, x.shape[-1:], weight, bias), mul, add, *CODES)


def _rms_norm(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    y = F.rms_norm(x.float(), x.shape[-1:], weight)
    return quantize_per_token(y, None, None, -127, 127, True)[:2]  # the zero point is a constant


def _linear(activation: str, *, requantized: bool = False) -> Callable[..., Tensor]:
    def fn(x: Tensor, q: Tensor, scale: Tensor, column_sum: Tensor, x_scale: Tensor, zero: Tensor,
           bias: Tensor | None = None, residual: Tensor | None = None, mul: Tensor | None = None,
           add: Tensor | None = None) -> Tensor:
        y = int8_linear_aten(x, q, scale, column_sum, x_scale, zero, bias, "none", None, *FLOAT)
        y = {"none": lambda v: v, "relu": F.relu, "silu": F.silu, "gelu": F.gelu,
             "gelu_tanh": lambda v: F.gelu(v, approximate="tanh")}[activation](y)
        y = y if residual is None else y + residual
        return quantize_static(y, mul, add, *CODES) if requantized else y

    return fn


def _gated(x: Tensor, q: Tensor, scale: Tensor, column_sum: Tensor, x_scale: Tensor, zero: Tensor,
           mul: Tensor, add: Tensor) -> Tensor:
    y = int8_linear_aten(x, q, scale, column_sum, x_scale, zero, None, "none", None, *FLOAT)
    gate, up = y.chunk(2, -1)
    return quantize_static(F.silu(gate) * up, mul, add, *CODES)


def _rotated(g: Tensor, u: Tensor, mul: Tensor, add: Tensor) -> Tensor:
    return torch.ops.torchqx.hadamard_quantize_static(F.silu(g) * u, None, WIDE, mul, add, *CODES)


def _rotated_per_token(g: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.torchqx.hadamard_quantize_per_token(F.silu(g) * u, None, WIDE, None, None, *CODES, False)


def operands(rows: int = ROWS, k: int = K, n: int = N, per_token: bool = False) -> tuple[Tensor, ...]:
    """Codes, weight, its scale and sums, the codes' scale and zero point."""
    q = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    shape = (rows, 1) if per_token else (1,)
    return (torch.randint(-128, 128, (rows, k), dtype=torch.int8), q, torch.rand(n) * 0.01 + 0.001,
            q.sum(1, dtype=torch.int32), torch.rand(shape) * 0.02 + 0.001,
            torch.randint(-100, 100, shape, dtype=torch.int32))


def blocks() -> list[Block]:
    """All of them but whole layers of models; the inputs are the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, weight, bias = torch.randn(ROWS, K) * 3, torch.rand(K) + 0.5, torch.randn(K)
        mul, add = torch.rand(K) * 20 + 10, torch.randn(K) * 10
        out = (torch.rand(1) * 20 + 10, torch.tensor([-37.0]))
        column, residual = torch.randn(N), torch.randn(ROWS, N)
        template, matmul = ("template",), ("torchqx.int8_matmul", "aten.mul")
        o, wide = operands(), torch.randn(2, ROWS, WIDE)
        return [
            Block("norm, shift, scale, quantize", _norm, (x, weight, bias, mul, add), ("persistent_reduction",),
                  ("aten.native_layer_norm", "aten.mul", "aten.add", "aten.round", "aten.clamp")),
            Block("norm, quantize per token", _rms_norm, (x.bfloat16(), weight), ("persistent_reduction",),
                  ("aten.rsqrt", "aten.amax", "aten.amin", "aten.reciprocal")),
            Block("int8 linear", _linear("none"), o, template, matmul),
            Block("int8 linear, per token", _linear("none"), operands(per_token=True), template, matmul),
            Block("int8 linear, one row", _linear("none"), operands(rows=1), template, matmul),
            Block("int8 linear, bias", _linear("none"), (*o, column), template, (*matmul, "aten.add")),
            *(Block(f"int8 linear, bias, {name}", _linear(name), (*o, column), template,
                    (*matmul, f"aten.{name.removesuffix('_tanh')}")) for name in ("relu", "gelu", "gelu_tanh", "silu")),
            Block("int8 linear, bias, residual", _linear("none"), (*o, column, residual), template,
                  (*matmul, "aten.add")),
            Block("int8 linear, bias, gelu, residual, requantize", _linear("gelu", requantized=True),
                  (*o, column, residual, *out), template, (*matmul, "aten.gelu", "aten.round")),
            Block("int8 linear, gated product, quantize", _gated, (*o, *out), ("template", "pointwise"),
                  ("aten.silu", "aten.mul", "aten.round")),
            Block("rotation", lambda x: torch.ops.torchqx.hadamard(x, None, WIDE, False), (wide[0],), template,
                  ("torchqx.hadamard",)),
            Block("gated product, rotation, quantize", _rotated, (*wide, *out), template,
                  ("aten.silu", "torchqx.hadamard_quantize_static"), 1e-2),
            Block("gated product, rotation, quantize per token", _rotated_per_token, tuple(wide), template,
                  ("aten.silu", "torchqx.hadamard_quantize_per_token"), 1e-2),
            *(Block(*computation, (), 1e-2) for computation in computations()),
        ]
