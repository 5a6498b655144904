"""A Mamba of 130M's shape beside transformers: ``python -m benchmarks.state_space_models``.

A pass over 512 tokens (the last one's logits), a step of decoding, and how the time of int8 grows to 16384 tokens.
Random weights, one thread, one process for each arm, turns A B C A B C. ``limit`` divides what has to be computed by
what this machine reaches: multiply-adds of the matmuls and of the scans' inner loops at the rates of the best matmuls,
the scan's always in float32, and for a step the bytes of the weights at the rate of a copy.
"""

from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.crew import crew
from benchmarks.interleave import Timing, interleave
from benchmarks.limits import INT8, copy_rate, matmul_rates
from benchmarks.mamba_work import MambaWork
from benchmarks.records import RECORDS as FOLDER
from benchmarks.records import Sheet, machine, report_sheets
from benchmarks.worker import Arm

ARMS = {"transformers, float32": "mamba:eager", "transformers compiled, bf16": "mamba:compiled_bf16",
        "torchqx, bf16": "mamba_ours:bf16", "torchqx int8": "mamba_ours:quamba",
        "torchqx int8, head too": "mamba_ours:quamba_and_head"}
EAGER, COMPILED, INTEGER = "transformers, float32", "transformers compiled, bf16", "torchqx int8"
HEADER = ("workload", "arm", "ms", "x transformers", "x compiled bf16")


def limits(work: MambaWork, rates: dict[str, float], copy: float) -> dict[str, float]:
    """Seconds that ``work`` takes at the least, in float32 and in int8 (its head in bf16)."""
    linear, scan = work.multiply_adds()
    if work.tokens > 1:
        return {"limit, float32": (linear + scan) / rates["float32"] / 1e9,
                "limit, int8": (linear / rates[INT8] + scan / rates["float32"]) / 1e9}
    head = work.width * work.vocabulary
    return {"limit, float32": 4 * linear / copy / 1e9, "limit, int8": (linear - head + 2 * head) / copy / 1e9}


def main(
    layers: Annotated[int, typer.Option(min=1)] = 24,
    width: Annotated[int, typer.Option(min=16)] = 768,
    vocabulary: Annotated[int, typer.Option(min=2)] = 50280,
    tokens: Annotated[int, typer.Option(min=2, help="Of the pass that all arms run.")] = 512,
    grow: Annotated[list[int] | None, typer.Option(help="Tokens of int8's other passes; default 2048, 16384.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help=f"Any of {'; '.join(ARMS)}. Default all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each arm.")] = 5,
    turn_seconds: Annotated[float, typer.Option(min=0.0, help="Length of one turn.")] = 0.5,
    record: Annotated[str, typer.Option(help="Name of the record.")] = "state-space-models-1t",
) -> None:
    """Time every arm in a pass and in a step, then int8 alone in longer passes."""
    console, pairs = Console(), dict.fromkeys(arm or ARMS)
    torch.set_num_threads(1)
    rates, copy = matmul_rates(5), copy_rate(5)
    rows, results, first = [], [], {}
    works = [MambaWork(layers, width, vocabulary, n) for n in (tokens, 1, *(grow or (2048, 16384)))]
    with crew([Arm(name, f"benchmarks.arms.{ARMS[name]}") for name in pairs], threads=1) as workers:
        for i, work in enumerate(works):
            busy = workers if i < 2 else [w for w in workers if w.arm.name == INTEGER]
            timings, failed = interleave(work, busy, rounds=rounds if i < 2 else 1, turn_seconds=turn_seconds,
                                         say=console.log, build_together=True)
            by_arm = {timing.arm: timing for timing in timings}
            seconds = limits(work, rates, copy)
            rows += [_row(work, timing, by_arm) for timing in timings]
            rows += [(work.name, name, f"{1e3 * least:.2f}", "", "") for name, least in seconds.items()]
            rows += [(work.name, name, failure.reason, "", "") for name, failure in failed.items()]
            if INTEGER in by_arm and work.tokens > 1:
                first[work.tokens] = by_arm[INTEGER].median() / work.tokens
            results.append({"workload": work.name, "median_ms": {n: 1e3 * t.median() for n, t in by_arm.items()},
                            "limit_ms": {n: 1e3 * least for n, least in seconds.items()},
                            "failed": {n: f.reason for n, f in failed.items()}})
    growth = [(str(n), f"{1e6 * each:.1f}", f"{each / first[tokens]:.2f}") for n, each in first.items()]
    title = f"Mamba of {layers} layers, width {width}: one thread"
    sheets = [Sheet(title, HEADER, rows), Sheet("int8: growth", ("tokens", "us a token", "of the first"), growth)]
    data = {"matmul_gmacs": rates, "copy_gbytes": copy, "results": results}
    report_sheets(record, title, sheets, data, machine(), FOLDER)


def _row(work: MambaWork, timing: Timing, by_arm: dict[str, Timing]) -> tuple[str, ...]:
    ratios = [f"{timing.times_faster_than(by_arm[other]):.2f}" if other in by_arm else ""
              for other in (EAGER, COMPILED)]
    return work.name, timing.arm, f"{1e3 * timing.median():.2f}", *ratios


if __name__ == "__main__":
    typer.run(main)
