"""How time grows with sequence length, batch and depth, beside compiled bfloat16: ``python -m benchmarks.growth``."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.arms import ARMS
from benchmarks.crew import crew
from benchmarks.interleave import Timing, interleave
from benchmarks.records import report
from benchmarks.worker import Arm
from benchmarks.workloads import Encoder

OURS, FLOAT = "torchqx-bf16", "bf16"
LAYERS = {384: 6, 768: 12}  # MiniLM, BERT-base
HEADER = ("layers", "batch", "tokens", "bf16 ms", "torchqx ms", "x bf16", "us a token")
LENGTHS, BATCHES, DEPTHS = (128, 256, 512, 1024, 2048), (1, 2, 4, 8, 16, 32), (2, 4, 6, 12, 24)


def points(width: int, lengths: Sequence[int], batches: Sequence[int], depths: Sequence[int]) -> list[Encoder]:
    """Each quantity alone, the others at 128 tokens, batch 1 and the real model's depth; no encoder comes twice."""
    usual = Encoder(width, LAYERS[width], batch=1, tokens=128)
    grown = [*(replace(usual, tokens=n) for n in lengths), *(replace(usual, batch=n) for n in batches),
             *(replace(usual, layers=n) for n in depths)]
    return list(dict.fromkeys(grown))


def main(
    width: Annotated[int, typer.Option(help=f"One of {', '.join(map(str, LAYERS))}.")] = 384,
    tokens: Annotated[list[int] | None, typer.Option(help="Sequence lengths; default 128 to 2048.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batches; default 1 to 32.")] = None,
    layers: Annotated[list[int] | None, typer.Option(help="Depths; default 2 to 24.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each arm.")] = 7,
    turn_seconds: Annotated[float, typer.Option(min=0.0, help="Length of one turn.")] = 0.2,
    record: Annotated[str | None, typer.Option(help="Name of the record; default growth-WIDTH-THREADSt.")] = None,
) -> None:
    """Time a BERT of many sizes in both arms, one process each."""
    if width not in LAYERS:
        raise typer.BadParameter(f"choose from {', '.join(map(str, LAYERS))}", param_hint="--width")
    console = Console()
    rows, results = [], []
    with crew([Arm(name, ARMS[name]) for name in (FLOAT, OURS)], threads) as workers:
        for encoder in points(width, tokens or LENGTHS, batch or BATCHES, layers or DEPTHS):
            timings, failed = interleave(encoder, workers, rounds=rounds, turn_seconds=turn_seconds, say=console.log,
                                         build_together=True)
            by_arm = {timing.arm: timing for timing in timings}
            result = asdict(encoder) | {"median_ms": {name: 1e3 * t.median() for name, t in by_arm.items()},
                                        "failed": {name: f.reason for name, f in failed.items()}}
            if not failed:
                result["times_faster"] = by_arm[OURS].times_faster_than(by_arm[FLOAT])
            results.append(result)
            rows.append(_row(encoder, by_arm))
    title = f"BERT of width {width}: time against work, {threads} thread{'s' if threads > 1 else ''}"
    report(record or f"growth-{width}-{threads}t", title, HEADER, rows,
           {"width": width, "threads": threads, "rounds": rounds, "results": results})


def _row(encoder: Encoder, by_arm: dict[str, Timing]) -> tuple[str, ...]:
    ours, floats = by_arm.get(OURS), by_arm.get(FLOAT)
    return (
        str(encoder.layers), str(encoder.batch), str(encoder.tokens),
        f"{1e3 * floats.median():.2f}" if floats else "failed",
        f"{1e3 * ours.median():.2f}" if ours else "failed",
        f"{ours.times_faster_than(floats):.2f}" if ours and floats else "",
        f"{1e6 * ours.median() / (encoder.batch * encoder.tokens):.1f}" if ours else "",
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
