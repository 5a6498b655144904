"""What this machine can do at best: matmul rates per type and copy bandwidth. ``python -m benchmarks.limits``."""

import math
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer

from benchmarks.records import report

# A large product, and a short one of few columns, of which some call runs undisturbed even on a busy machine.
SIZES = ((2048, 2048, 2048), (384, 2048, 384))
SHORT = 10  # a short call is repeated so many times more often
COPY_BYTES = 1 << 28  # far beyond any last-level cache
INT8, BF16 = "int8 (u8 x s8)", "bfloat16"
HEADER = ("what", "rate", "unit")


def least_seconds(call: Callable[[], object], repeats: int) -> float:
    """Shortest wall time of ``repeats`` calls, after one that is not counted: a limit is what nothing disturbed."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def matmul_rates(repeats: int) -> dict[str, float]:
    """Multiply-adds per second, in 1e9, per type: the best that ATen reaches on any of SIZES."""
    rates: dict[str, float] = {}
    for m, k, n in SIZES:
        times = repeats if m * k * n == max(map(math.prod, SIZES)) else SHORT * repeats
        for name, call in _matmuls(m, k, n).items():
            rates[name] = max(rates.get(name, 0.0), m * k * n / least_seconds(call, times) / 1e9)
    return rates


def _matmuls(m: int, k: int, n: int) -> dict[str, Callable[[], object]]:
    unsigned = torch.randint(0, 256, (m, k), dtype=torch.uint8)
    signed = torch.randint(-128, 128, (n, k), dtype=torch.int8).T
    single, right = torch.randn(m, k), torch.randn(k, n)
    half, half_right = single.bfloat16(), right.bfloat16()
    return {INT8: lambda: torch._int_mm(unsigned, signed), BF16: lambda: half @ half_right,
            "float32": lambda: single @ right}


def copy_rate(repeats: int) -> float:
    """Bytes read and written per second, in 1e9, when COPY_BYTES are copied."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / least_seconds(lambda: target.copy_(source), repeats) / 1e9


def main(
    threads: Annotated[int, typer.Option(min=1)] = 2,
    repeats: Annotated[int, typer.Option(min=1)] = 15,
) -> None:
    """Measure and record this machine's limits."""
    torch.set_num_threads(threads)
    rates = matmul_rates(repeats)
    copy = copy_rate(repeats)
    rows = [(f"matmul {name}", f"{rate:.0f}", "G multiply-adds/s") for name, rate in rates.items()]
    rows.append(("copy, read + write", f"{copy:.1f}", "GB/s"))
    data = {"threads": threads, "matmul_gmacs": rates, "copy_gbytes": copy}
    report(f"limits-{threads}t", f"Limits, {threads} thread{'s' if threads > 1 else ''}", HEADER, rows, data)


if __name__ == "__main__":
    typer.run(main)
