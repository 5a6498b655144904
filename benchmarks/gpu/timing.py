"""Time several arms in turns, A B A B: with CUDA events around replays of captured launches, or by the clock on a CPU.

An arm is a list of calls of one computation, each with operands of its own, so that together they exceed the cache.
One turn runs them all. On a GPU a turn is one CUDA graph: what Python and the launches cost stays out. Where some arm
waits for the device, and so cannot be captured, no arm of that comparison is, and the result says so.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu.place import Place

Calls = Sequence[Callable[[], object]]
ROUNDS, QUICK_ROUNDS = 25, 2
TURN_SECONDS = 1e-3  # a turn is repeated to be at least this long: events resolve half a microsecond
MOST_REPEATS = 200


@dataclass(frozen=True)
class Timing:
    """Seconds per call, by round."""

    rounds: tuple[float, ...]

    def median(self) -> float:
        return statistics.median(self.rounds)

    def times_faster_than(self, other: "Timing") -> float:
        """The median over rounds of the ratio: both saw the clock rate and the neighbours of each round."""
        return statistics.median(theirs / ours for theirs, ours in zip(other.rounds, self.rounds, strict=True))


def interleaved(place: Place, arms: dict[str, Calls]) -> tuple[dict[str, Timing], str]:
    """Timings of arms that have run before, and how they were made: "graphs", "calls", or "clock"."""
    if not place.is_cuda:
        return _rounds({name: _clocked(calls) for name, calls in arms.items()}, _counts(arms), QUICK_ROUNDS), "clock"
    captures = not any(_synchronizes(calls) for calls in arms.values())
    turns = {name: (_captured if captures else _all)(calls) for name, calls in arms.items()}
    rounds = QUICK_ROUNDS if place.quick else ROUNDS
    timings = _rounds({name: _evented(turn) for name, turn in turns.items()}, _counts(arms), rounds)
    return timings, "graphs" if captures else "calls"


def _counts(arms: dict[str, Calls]) -> dict[str, int]:
    return {name: len(calls) for name, calls in arms.items()}


def _rounds(turns: dict[str, Callable[[int], float]], calls: dict[str, int], count: int) -> dict[str, Timing]:
    """``turns`` take how often to repeat and return seconds for all of it."""
    repeats = {}
    for name, turn in turns.items():
        turn(1)
        repeats[name] = max(1, min(MOST_REPEATS, round(TURN_SECONDS / max(turn(1), 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(count):
        for name, turn in turns.items():
            seconds[name].append(turn(repeats[name]) / repeats[name] / calls[name])
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _all(calls: Calls) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call()

    return run


def _synchronizes(calls: Calls) -> bool:
    """Asked beforehand: a capture that fails leaves the allocator and the random generators unusable."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        _all(calls)()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def _captured(calls: Calls) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _all(calls)()
    return graph.replay


def _evented(turn: Callable[[], None]) -> Callable[[int], float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run(repeats: int) -> float:
        start.record()
        for _ in range(repeats):
            turn()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return run


def _clocked(calls: Calls) -> Callable[[int], float]:
    def run(repeats: int) -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            _all(calls)()
        return time.perf_counter() - started

    return run
