"""Speed of torchqx beside compiled fp32, compiled bf16, torchao and PT2E: ``python -m benchmarks.speed``."""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.arms import ARMS
from benchmarks.crew import crew
from benchmarks.interleave import Timing, interleave
from benchmarks.records import report
from benchmarks.work import multiply_adds
from benchmarks.worker import Arm, Failed
from benchmarks.workloads import WORKLOADS

HEADER = ("workload", "arm", "ms", "x fp32", "x bf16", "error", "build s", "build MiB", "run MiB")


def main(
    workload: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(WORKLOADS)}; default all.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(ARMS)}; default all.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each arm.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each arm.")] = 15,
    turn_seconds: Annotated[float, typer.Option(min=0.0, help="Length of one turn.")] = 0.3,
    cold: Annotated[bool, typer.Option(help="Compile into an empty cache, as a first user does.")] = True,
    record: Annotated[str | None, typer.Option(help="Name of the record; default speed-THREADSt.")] = None,
) -> None:
    """Time every arm on every workload, in turns, one process per arm."""
    console = Console()
    rows: list[tuple[str, ...]] = []
    results = []
    for name in _known("--workload", workload, WORKLOADS):
        with TemporaryDirectory() as empty:
            arms = [Arm(known, ARMS[known], cache=Path(empty, known) if cold else None)
                    for known in _known("--arm", arm, ARMS)]
            with crew(arms, threads) as workers:
                timings, failed = interleave(WORKLOADS[name], workers, rounds=rounds, turn_seconds=turn_seconds,
                                             say=console.log)
        by_arm = {timing.arm: timing for timing in timings}
        rows += [_row(name, timing, by_arm) for timing in timings]
        rows += [(name, arm_name, "failed", *[""] * 6) for arm_name in failed]
        work = asdict(multiply_adds(WORKLOADS[name].load()))
        results.append({"workload": name, "multiply_adds": work, **_result(by_arm, failed)})
    title = f"Speed, {threads} thread{'s' if threads > 1 else ''}"
    data = {"threads": threads, "rounds": rounds, "results": results}
    report(record or f"speed-{threads}t", title, HEADER, rows, data)


def _known(option: str, asked: list[str] | None, known: dict[str, object]) -> list[str]:
    """The names asked for, or all. Raises a usage error on an unknown one."""
    unknown = sorted(set(asked or ()) - set(known))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(known)}", param_hint=option)
    return asked or list(known)


def _row(workload: str, timing: Timing, by_arm: dict[str, Timing]) -> tuple[str, ...]:
    fp32, bf16 = by_arm.get("fp32"), by_arm.get("bf16")
    return (
        workload,
        timing.arm,
        f"{1e3 * timing.median():.2f}",
        f"{timing.times_faster_than(fp32):.2f}" if fp32 else "",
        f"{timing.times_faster_than(bf16):.2f}" if bf16 else "",
        f"{timing.relative_error(fp32):.1e}" if fp32 else "",
        f"{timing.built.build_seconds:.0f}",
        f"{timing.built.build_peak_mib:.0f}",
        f"{timing.run_peak_mib:.0f}",
    )


def _result(by_arm: dict[str, Timing], failed: dict[str, Failed]) -> dict[str, object]:
    fp32 = by_arm.get("fp32")
    arms = {
        name: {
            "median_ms": 1e3 * timing.median(),
            "round_ms": [[1e3 * seconds for seconds in turn] for turn in timing.rounds],
            "relative_error": timing.relative_error(fp32) if fp32 else None,
            "build_seconds": timing.built.build_seconds,
            "build_peak_mib": timing.built.build_peak_mib,
            "run_peak_mib": timing.run_peak_mib,
        }
        for name, timing in by_arm.items()
    }
    return {"arms": arms, "failed": {name: failure.reason for name, failure in failed.items()}}


if __name__ == "__main__":
    typer.run(main)
