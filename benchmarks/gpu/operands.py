"""Operands of int8 linears whose results are of the order of 1, and the epilogues that they are run with."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

QMIN, QMAX = -128, 127


@dataclass(frozen=True)
class Epilogue:
    """What stands after the sums; scale and zero point of the codes are one, or with ``per_token`` one per row."""

    name: str
    bias: bool = True
    activation: str = "none"
    residual: bool = False
    requantize: bool = False
    per_token: bool = False
    unsigned: bool = False
    dtype: torch.dtype = torch.bfloat16


EPILOGUES = (
    Epilogue("plain", bias=False, dtype=torch.float32),
    Epilogue("per token", bias=False, per_token=True, dtype=torch.float32),
    Epilogue("unsigned codes", unsigned=True, dtype=torch.float32),
    Epilogue("bias"),
    *(Epilogue(f"bias, {name}", activation=name) for name in ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu")),
    Epilogue("bias, residual", residual=True),
    Epilogue("bias, gelu, requantize", activation="gelu", requantize=True),
    Epilogue("per token, bias, silu, residual, requantize", activation="silu", residual=True, requantize=True,
             per_token=True),
)


def codes(*shape: int, unsigned: bool = False, device: torch.device | str = "cpu") -> Tensor:
    """Random codes of the whole range."""
    low, dtype = (0, torch.uint8) if unsigned else (QMIN, torch.int8)
    return torch.randint(low, low + 256, shape, dtype=dtype, device=device)


def linear_arguments(
    m: int, k: int, n: int, epilogue: Epilogue, device: torch.device | str = "cpu"
) -> tuple[Any, ...]:
    """All arguments of ``int8_linear_aten`` for rows [m, k] and a weight [n, k]."""
    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, device=device)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    qdata = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
    parameters = (m, 1) if epilogue.per_token else (1,)
    middle = 128 if epilogue.unsigned else 0
    zero_point = torch.randint(middle - 40, middle + 40, parameters, dtype=torch.int32, device=device)
    weight_scale = (uniform(n) + 0.5) / (5400 * 0.015 * k**0.5)  # a product of two codes has a deviation of 5400
    out = (uniform(n) * 20 + 20, normal(n) * 10) if epilogue.requantize else (None, None)
    return (codes(m, k, unsigned=epilogue.unsigned, device=device), qdata, weight_scale,
            qdata.sum(1, dtype=torch.int32), uniform(*parameters) * 0.01 + 0.01, zero_point,
            normal(n) if epilogue.bias else None, epilogue.activation,
            normal(m, n, dtype=torch.bfloat16) if epilogue.residual else None, *out, QMIN, QMAX, epilogue.dtype)
