"""The int8 linear and its epilogues against compiled bfloat16 and torchao's int8 dynamic linear, from 1 row to 8192."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

from benchmarks.gpu.case import OURS, Case
from benchmarks.gpu.operands import EPILOGUES, Epilogue, linear_arguments
from benchmarks.gpu.place import Place
from benchmarks.gpu.timing import Calls
from torchqx.inductor_kernels.int8_linear.activations import activate
from torchqx.inductor_kernels.int8_linear.aten import int8_linear_aten
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_token

ROWS = (1, 16, 64, 128, 512, 1024, 2048, 4096, 8192)
WEIGHTS = ((768, 3072), (3072, 768), (4096, 4096), (4096, 11008), (576, 1536))
FEW, MANY = (128, 2048), 512
QUICK_ROWS, QUICK_WEIGHTS = (33,), ((48, 64),)
TIMED = ("bias, gelu", "bias, residual", "bias, gelu, requantize", "per token, bias, silu, residual, requantize")
BIAS = next(e for e in EPILOGUES if e.name == "bias")
TORCHAO_TUNING = {"coordinate_descent_tuning": True, "coordinate_descent_check_all_directions": True,
          "force_fuse_int_mm_with_mul": True}  # what torchao sets for the whole process


def cases(quick: bool) -> list[Case]:
    """With a bias, at all sizes: the many rows first, the few last. Between them from floats, and the epilogues."""
    rows, weights, few = (QUICK_ROWS, QUICK_WEIGHTS, QUICK_ROWS) if quick else (ROWS, WEIGHTS, FEW)
    biased = [(m, _from_codes(m, k, n, BIAS)) for m in sorted(rows, reverse=True) for k, n in weights]
    return [*(case for m, case in biased if m >= MANY),
            *(_from_floats(m, k, n) for m in few for k, n in weights),
            *(_from_codes(m, *weights[0], e) for e in EPILOGUES if e.name in TIMED for m in few),
            *(case for m, case in biased if m < MANY)]


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None) -> Tensor:
    """The same in floats: x [M, K] by weight [N, K] -> [M, N]."""
    y = activate(F.linear(x, weight, bias), activation)
    return y if residual is None else y + residual


def _from_codes(m: int, k: int, n: int, epilogue: Epilogue) -> Case:
    """Ours begins where a quantizer fused into the layer before has left off; bf16 begins with its bf16 activations."""
    def arms(place: Place) -> Mapping[str, Callable[[], Calls]]:
        sets = place.sets(m * k + n * k)

        def ours() -> Calls:
            compiled = place.compiled(int8_linear_aten)
            return [partial(compiled, *linear_arguments(m, k, n, epilogue, place.device)) for _ in range(sets)]

        def bf16() -> Calls:
            compiled = place.compiled(float_linear)
            return [partial(compiled, *_floats(place, m, k, n, epilogue)) for _ in range(sets)]

        return {OURS: ours, "bf16": bf16}

    written = 1 if epilogue.requantize else 2
    moved = m * k + n * k + m * n * (written + 2 * epilogue.residual)
    return Case(f"int8 linear: {epilogue.name}", f"{m} x {k} x {n}", arms, moved, int8=m * k * n)


def _from_floats(m: int, k: int, n: int) -> Case:
    """All begin with bf16 activations; ours and torchao quantize them per token."""
    def arms(place: Place) -> Mapping[str, Callable[[], Calls]]:
        sets = place.sets(2 * m * k + n * k)
        epilogue = replace(BIAS, bias=False)

        def inputs() -> list[Tensor]:
            return [torch.randn(m, k, device=place.device, dtype=torch.bfloat16) for _ in range(sets)]

        def ours() -> Calls:
            compiled = place.compiled(_per_token)
            operands = [linear_arguments(m, k, n, epilogue, place.device)[1:4] for _ in range(sets)]
            return [partial(compiled, x, *own) for x, own in zip(inputs(), operands, strict=True)]

        def torchao() -> Calls:
            compiled = place.compiled(F.linear, **TORCHAO_TUNING)
            return [partial(compiled, x, _torchao_weight(place, k, n)) for x in inputs()]

        def bf16() -> Calls:
            compiled = place.compiled(float_linear)
            return [partial(compiled, *_floats(place, m, k, n, epilogue)) for _ in range(sets)]

        return {OURS: ours, "bf16": bf16, "torchao": torchao}

    return Case("quantize per token, int8 linear", f"{m} x {k} x {n}", arms, 2 * m * k + n * k + 2 * m * n,
                int8=m * k * n)


def _per_token(x: Tensor, qdata: Tensor, weight_scale: Tensor, column_sum: Tensor) -> Tensor:
    q, scale, zero_point = quantize_per_token(x, None, None, -127, 127, True)
    return int8_linear_aten(q, qdata, weight_scale, column_sum, scale, zero_point, None, "none", None, None, None,
                            0, 0, torch.bfloat16)


def _torchao_weight(place: Place, k: int, n: int) -> Tensor:
    """[N, K], which makes ``F.linear`` quantize its activations per token."""
    linear = nn.Linear(k, n, bias=False, device=place.device, dtype=torch.bfloat16)
    quantize_(linear, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    return linear.weight


def _floats(place: Place, m: int, k: int, n: int, epilogue: Epilogue) -> tuple[Tensor | str | None, ...]:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=place.device, dtype=torch.bfloat16)

    return (random(m, k), random(n, k) * k**-0.5, random(n) if epilogue.bias else None, epilogue.activation,
            random(m, n) if epilogue.residual else None)
