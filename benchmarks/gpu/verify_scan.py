"""The state-space operators, compiled, against their formulas in float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.check import Check, relative
from benchmarks.gpu.place import Place
from benchmarks.gpu.scan import Work, compute, mamba2_scan, mamba2_step, mamba_scan
from torchqx.inductor_kernels.chunk_scan import chunk_scan_naive
from torchqx.inductor_kernels.selective_scan import selective_scan_naive
from torchqx.inductor_kernels.state_update import state_update_naive

BOUNDS = {False: 6e-3, True: 2e-2}  # a rounding to bfloat16; codes that TF32 moves from next to the middle of two


def checks(place: Place) -> list[Check]:
    """Each operator at odd sizes, on bfloat16 and on codes."""
    works: list[tuple[Work, Callable[..., Any]]] = [(mamba_scan(2, 63, 37, 16), selective_scan_naive),
                                                    (mamba2_scan(2, 100, 3, 33, 64), chunk_scan_naive),
                                                    (mamba2_step(2, 3, 63, 128), state_update_naive)]
    return [_check(place, work, naive, codes) for work, naive in works for codes in (False, True)]


def _check(place: Place, work: Work, naive: Callable[..., Any], codes: bool) -> Check:
    def error() -> float:
        operands = work.operands(place.device, codes)
        exact = {n: t.cpu().double() if t.is_floating_point() and "scale" not in n else t.cpu().clone()
                 for n, t in operands.items()}
        found, wanted = place.compiled(compute(work, codes))(**operands), naive(
            **exact, **work.options(codes) | {"out_dtype": torch.int8 if codes else torch.float64})
        after = [(operands["state"], exact["state"])] if "state" in operands else []
        return max(relative(f, w) for f, w in (*zip(_tensors(found), _tensors(wanted), strict=True), *after))

    return Check(f"{work.what} {work.size}, {'int8' if codes else 'bfloat16'}", BOUNDS[codes], error)


def _tensors(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
