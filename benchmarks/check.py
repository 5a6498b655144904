"""Is torchqx slower than it was? Two revisions on this machine in one run: ``python -m benchmarks.check --base REV``.

Each revision has one process and an Inductor cache of its own; every workload is built in both and timed in turns. Two
processes that run the same code differ by a few per cent, so a workload that looks slower is measured once more in
fresh processes: it counts if both measurements say so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.crew import crew
from benchmarks.interleave import interleave
from benchmarks.records import print_table
from benchmarks.revision import UnknownRevisionError, extract
from benchmarks.verdict import Verdict, judge
from benchmarks.worker import Arm, Failed, Loadable
from benchmarks.workloads import SMALL

REPOSITORY = Path(__file__).resolve().parent.parent
NEW, OLD = "new", "old"
HEADER = ("workload", "old ms", "new ms", "new / old", "95%", "")
REVISION_ARM = "benchmarks.arms.revision:run"


@dataclass(frozen=True)
class Row:
    """One workload: the verdict, or the arms that failed."""

    workload: str
    verdict: Verdict | None
    milliseconds: dict[str, float]
    failed: dict[str, Failed]

    def is_worse(self, threshold: float) -> bool:
        """Slower, or the new revision alone cannot run it."""
        if self.verdict is None:
            return NEW in self.failed and OLD not in self.failed
        return self.verdict.is_slower(threshold)

    def cells(self, threshold: float) -> tuple[str, ...]:
        """The row of HEADER."""
        times = [f"{self.milliseconds[name]:.3f}" if name in self.milliseconds else "" for name in (OLD, NEW)]
        word = "SLOWER" if self.is_worse(threshold) else ""
        if self.verdict is None:
            return (self.workload, *times, "", "", "FAILED" if word else "not compared")
        v = self.verdict
        return (self.workload, *times, f"{v.ratio:.3f}", f"{v.low:.3f} to {v.high:.3f}", word)


def compare(workloads: Sequence[Loadable], arms: Sequence[Arm], *, threads: int, rounds: int, turn_seconds: float,
            say: Callable[[str], None]) -> list[Row]:
    """Time the two arms, named OLD and NEW, on every workload."""
    rows = []
    with crew(arms, threads) as workers:
        for workload in workloads:
            timings, failed = interleave(workload, workers, rounds=rounds, turn_seconds=turn_seconds, say=say,
                                         build_together=True)
            by_name = {timing.arm: timing for timing in timings}
            rows.append(Row(workload.name, None if failed else judge(by_name[NEW], by_name[OLD]),
                            {name: 1e3 * timing.median() for name, timing in by_name.items()}, failed))
    return rows


def check(workloads: Sequence[Loadable], arms: Sequence[Arm], *, threshold: float, say: Callable[[str], None],
          **timing: Any) -> list[Row]:
    """:func:`compare`, and again in fresh processes for what looks slower; such a row holds the second measurement."""
    rows = compare(workloads, arms, say=say, **timing)
    suspects = [w for w, row in zip(workloads, rows, strict=True) if row.is_worse(threshold)]
    if suspects:
        say(f"once more: {', '.join(w.name for w in suspects)}")
    again = {row.workload: row for row in compare(suspects, arms, say=say, **timing)}
    return [again.get(row.workload, row) for row in rows]


def main(
    base: Annotated[str, typer.Option(help="The old revision: anything that git can name.")] = "main~1",
    head: Annotated[str | None, typer.Option(help="The new revision; default: the working tree.")] = None,
    only: Annotated[str, typer.Option(help="Only workloads whose name contains this.")] = "",
    threshold: Annotated[float, typer.Option(min=0.0, help="How much slower is too slow.")] = 0.05,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=5, help="Turns of each revision.")] = 25,
    turn_seconds: Annotated[float, typer.Option(min=0.0, help="Length of one turn.")] = 0.1,
) -> None:
    """Fail where the working tree is slower than BASE beyond noise."""
    console = Console()
    chosen = [workload for workload in SMALL if only in workload.name]
    if not chosen:
        raise typer.BadParameter(f"no workload's name contains {only!r}", param_hint="--only")
    with TemporaryDirectory(prefix="torchqx-check-") as name:
        folder = Path(name)
        try:
            sources = {OLD: extract(base, REPOSITORY, folder / OLD),
                       NEW: REPOSITORY if head is None else extract(head, REPOSITORY, folder / NEW)}
        except UnknownRevisionError as unknown:
            raise typer.BadParameter(str(unknown)) from None
        arms = [Arm(arm, REVISION_ARM, source, folder / f"cache-{arm}") for arm, source in sources.items()]
        rows = check(chosen, arms, threshold=threshold, say=console.log, threads=threads, rounds=rounds,
                     turn_seconds=turn_seconds)
    print_table(f"{head or 'working tree'} against {base}, {threads} thread{'s' if threads > 1 else ''}", HEADER,
                [row.cells(threshold) for row in rows])
    if all(row.verdict is None for row in rows):
        console.print("nothing could be compared")
        raise typer.Exit(1)
    if any(row.is_worse(threshold) for row in rows):
        console.print(f"slower by more than {threshold:.0%} beyond noise, twice")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
