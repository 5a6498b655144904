"""The int8 linear operators, compiled, against their formula in float64: every epilogue, groups, stacked experts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.check import HALF, Check, code_distance, relative
from benchmarks.gpu.operands import EPILOGUES, QMAX, QMIN, Epilogue, codes, linear_arguments
from benchmarks.gpu.place import Place
from torchqx.inductor_kernels.int8_linear import experts
from torchqx.inductor_kernels.int8_linear.aten import int8_linear_aten, int8_linear_general_aten
from torchqx.inductor_kernels.int8_linear.gpu import INT8_MATMUL
from torchqx.inductor_kernels.int8_linear.naive import int8_experts_naive, int8_linear_naive

ODD = (33, 100, 64)
SIZES = ((1, 768, 3072), (16, 3072, 768), (1000, 576, 1536))
MATMULS = ((1, 1, 1), (1, 63, 100), (40, 1000, 9), (128, 4096, 4096))
QUICK = ((1, 63, 100),)
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 4e-3}  # bfloat16 rounds to 1.7e-3 at the mean
FLOAT = (None, "none", None, None, None, QMIN, QMAX, torch.float32)


def checks(place: Place) -> list[Check]:
    """All epilogues at one odd size; the biased and a requantized one at others."""
    few = [e for e in EPILOGUES if e.name in ("bias", "bias, gelu, requantize")]
    sizes = QUICK if place.quick else SIZES
    return [*(_matmul(place, *size) for size in (QUICK if place.quick else MATMULS)),
            *(_epilogue(place, *ODD, e) for e in EPILOGUES),
            *(_epilogue(place, *size, e) for size in sizes for e in few),
            *(_groups(place, *groups) for groups in ((4, 4), (4, 1), (1, 4))),
            _experts(place)]


def _matmul(place: Place, m: int, k: int, n: int) -> Check:
    def error(fn: Callable[..., Tensor]) -> float:
        x, q = codes(m, k), codes(n, k)
        return relative(fn(*place.moved((x, q))).double(), x.double() @ q.double().T)

    # A sum may be 0 by chance, so exact equality is what the bound 0 asks of int32.
    return Check(f"int8_matmul {m} x {k} x {n}, called and compiled", 0.0,
                 lambda: max(error(INT8_MATMUL), error(place.compiled(INT8_MATMUL))))


def _epilogue(place: Place, m: int, k: int, n: int, epilogue: Epilogue) -> Check:
    def error() -> float:
        arguments = linear_arguments(m, k, n, epilogue)
        x, qdata, weight_scale, _, x_scale, zero_point, *tail = arguments
        expected = int8_linear_naive(x, qdata, weight_scale, None, x_scale, zero_point, *tail[:-1])
        result = place.compiled(int8_linear_aten)(*place.moved(arguments))
        return code_distance(result, expected) if epilogue.requantize else relative(result, expected)

    bound = HALF if epilogue.requantize else BOUNDS[epilogue.dtype]
    return Check(f"int8 linear {m} x {k} x {n}: {epilogue.name}", bound, error)


def _groups(place: Place, row_groups: int, column_groups: int) -> Check:
    m, k, n = 33, 128, 72

    def error() -> float:
        x, q = codes(m, k), torch.randint(-127, 128, (n, k), dtype=torch.int8)
        scales = [torch.rand(rows, groups) * 0.01 + 0.01 for rows, groups in ((n, column_groups), (m, row_groups))]
        zeros = [torch.randint(-9, 9, (rows, groups), dtype=torch.int32)
                 for rows, groups in ((n, column_groups), (m, row_groups))]
        operands: tuple[Any, ...] = (x, q, scales[0], zeros[0], scales[1], zeros[1])
        result = place.compiled(int8_linear_general_aten)(*place.moved((*operands, *FLOAT)))
        return relative(result, int8_linear_naive(*operands))

    return Check(f"int8 linear {m} x {k} x {n}: {row_groups} groups per row, {column_groups} per asymmetric column",
                 BOUNDS[torch.float32], error)


def _experts(place: Place) -> Check:
    def error() -> float:
        x, q = codes(40, 100, unsigned=True), torch.randint(-127, 128, (3, 64, 100), dtype=torch.int8)
        scale, zero_point = torch.rand(40, 1) * 0.01 + 0.01, torch.randint(90, 150, (40, 1), dtype=torch.int32)
        weight_scale, bias = torch.rand(3, 64) * 0.01 + 0.01, torch.randn(3, 64)
        offsets = torch.tensor([7, 7, 33], dtype=torch.int32)
        arguments = (x, q, weight_scale, q.sum(2, dtype=torch.int32), scale, zero_point, bias, offsets)
        expected = int8_experts_naive(x, q, weight_scale, scale, zero_point, bias, offsets)
        return relative(experts.int8_experts_aten(*place.moved(arguments)), expected)

    return Check("int8 experts, one without rows", BOUNDS[torch.float32], error)
