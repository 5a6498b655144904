"""What this machine can do at best: matmul rates per type and copy bandwidth. ``python -m benchmarks.limits``."""

import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer

from benchmarks.records import report

SIZE = 2048
COPY_BYTES = 1 << 28  # far beyond any last-level cache
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


def matmul_rates(size: int, repeats: int) -> dict[str, float]:
    """Multiply-adds per second, in 1e9, of [size, size] x [size, size] per type, all from ATen."""
    unsigned = torch.randint(0, 256, (size, size), dtype=torch.uint8)
    signed = torch.randint(-128, 128, (size, size), dtype=torch.int8)
    single = torch.randn(size, size)
    half = single.to(torch.bfloat16)
    calls: dict[str, Callable[[], object]] = {
        "int8 (u8 x s8)": lambda: torch._int_mm(unsigned, signed),
        "bfloat16": lambda: half @ half,
        "float32": lambda: single @ single,
    }
    return {name: size**3 / least_seconds(call, repeats) / 1e9 for name, call in calls.items()}


def copy_rate(size: int, repeats: int) -> float:
    """Bytes read and written per second, in 1e9, when ``size`` bytes are copied."""
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * size / least_seconds(lambda: target.copy_(source), repeats) / 1e9


def main(
    threads: Annotated[int, typer.Option(min=1)] = 2,
    repeats: Annotated[int, typer.Option(min=1)] = 15,
) -> None:
    """Measure and record this machine's limits."""
    torch.set_num_threads(threads)
    rates = matmul_rates(SIZE, repeats)
    copy = copy_rate(COPY_BYTES, repeats)
    rows = [(f"matmul {name}", f"{rate:.0f}", "G multiply-adds/s") for name, rate in rates.items()]
    rows.append(("copy, read + write", f"{copy:.1f}", "GB/s"))
    data = {"threads": threads, "matmul_gmacs": rates, "copy_gbytes": copy}
    report(f"limits-{threads}t", f"Limits, {threads} thread{'s' if threads > 1 else ''}", HEADER, rows, data)


if __name__ == "__main__":
    typer.run(main)
