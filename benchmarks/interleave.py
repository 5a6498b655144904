"""Time several arms fairly: every arm is a process, and turns go round A B C A B C, so a noisy minute hits them all."""

import math
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np

from benchmarks.worker import Built, Failed, serve
from benchmarks.workloads import Workload

DIED = Failed("the worker died: see its output above (out of memory?)")


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

    def times_faster_than(self, other: "Timing") -> float:
        """The median over rounds of the ratio of the two arms' round medians: both saw each round's noise."""
        pairs = zip(other.rounds, self.rounds, strict=True)
        return statistics.median(statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs)

    def relative_error(self, reference: "Timing") -> float:
        """Euclidean norm of the difference of the two arms' outputs over the reference's norm."""
        difference = self.built.output - reference.built.output
        return float(np.linalg.norm(difference) / np.linalg.norm(reference.built.output))


def interleave(
    workload: Workload,
    arms: Sequence[str],
    *,
    threads: int,
    rounds: int,
    turn_seconds: float,
    cold: bool,
    say: Callable[[str], None],
) -> tuple[list[Timing], dict[str, Failed]]:
    """Build the arms one after another, then time them in turns. Returns the timings and why other arms failed."""
    workers: list[tuple[Timing, Connection, BaseProcess]] = []
    failed: dict[str, Failed] = {}
    spawn = multiprocessing.get_context("spawn")
    try:
        for arm in arms:
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=serve, args=(theirs, arm, workload, threads, cold), daemon=False)
            process.start()
            theirs.close()
            match _answer(ours):
                case Built() as built:
                    workers.append((Timing(arm, built), ours, process))
                    say(f"{workload.name}: {arm} built in {built.build_seconds:.0f} s")
                case Failed() as failure:
                    failed[arm] = failure
                    process.join()
                    say(f"{workload.name}: {arm} failed: {failure.reason}")
        for _ in range(rounds):
            for timing, connection, _process in workers:
                timing.rounds.append(_turn(connection, turn_seconds))
        for timing, connection, _process in workers:
            connection.send(0)
            timing.run_peak_mib = connection.recv()
    finally:
        for _timing, connection, process in workers:
            if process.is_alive():
                connection.send(None)
            process.join()
    return [timing for timing, _connection, _process in workers], failed


def _turn(connection: Connection, seconds: float) -> list[float]:
    """One arm's turn: two calls to warm the caches that the other arms have emptied, then calls for ``seconds``."""
    connection.send(2)
    warm = connection.recv()[-1]
    connection.send(max(3, math.ceil(seconds / warm)))
    return connection.recv()


def _answer(connection: Connection) -> Built | Failed:
    try:
        return connection.recv()
    except EOFError:
        return DIED
