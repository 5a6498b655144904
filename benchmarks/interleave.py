"""Time several arms fairly: every arm is a process, and turns go round A B C A B C, so a noisy minute hits them all."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.crew import Worker
from benchmarks.worker import Built, Failed, Loadable


@dataclass
class Timing:
    """One arm's measurements: seconds per call by round, and what its worker reported."""

    arm: str
    built: Built
    rounds: list[list[float]] = field(default_factory=list)
    run_peak_mib: float = math.nan

    def median(self) -> float:
        """Median seconds of all calls."""
        return statistics.median(seconds for turn in self.rounds for seconds in turn)

    def ratios(self, other: "Timing") -> list[float]:
        """The other arm's median over this one's, round by round: both saw each round's noise."""
        pairs = zip(other.rounds, self.rounds, strict=True)
        return [statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs]

    def times_faster_than(self, other: "Timing") -> float:
        """The median of ``ratios``."""
        return statistics.median(self.ratios(other))

    def relative_error(self, reference: "Timing") -> float:
        """Euclidean norm of the difference of the two arms' outputs over the reference's norm."""
        difference = self.built.output - reference.built.output
        return float(np.linalg.norm(difference) / np.linalg.norm(reference.built.output))


def interleave(
    workload: Loadable,
    workers: Sequence[Worker],
    *,
    rounds: int,
    turn_seconds: float,
    say: Callable[[str], None],
    build_together: bool = False,
) -> tuple[list[Timing], dict[str, Failed]]:
    """Build the arms, then time them in turns. Returns the timings and why other arms failed.

    Args:
        build_together: build all at once, where no build's time or memory is wanted; else one after another.
    """
    if build_together:
        for worker in workers:
            worker.order(workload)
    ready: list[tuple[Timing, Worker]] = []
    failed: dict[str, Failed] = {}
    for worker in workers:
        if not build_together:
            worker.order(workload)
        match worker.built():
            case Built() as built:
                ready.append((Timing(worker.arm.name, built), worker))
                say(f"{workload.name}: {worker.arm.name} built in {built.build_seconds:.0f} s")
            case Failed() as failure:
                failed[worker.arm.name] = failure
                say(f"{workload.name}: {worker.arm.name} failed: {failure.reason}")
    for _ in range(rounds):
        for timing, worker in ready:
            timing.rounds.append(worker.turn(turn_seconds))
    for timing, worker in ready:
        timing.run_peak_mib = worker.peak_mib()
    return [timing for timing, _ in ready], failed
