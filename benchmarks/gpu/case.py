"""One comparison: what is computed, by which arms, and what the measured limits would allow."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.limits import Limits
from benchmarks.gpu.place import Place
from benchmarks.gpu.timing import Calls, Timing, interleaved

OURS = "torchqx"
HEADER = ("what", "size", "us", "x bf16", "x torchao", "GB/s", "TOP/s", "of limit", "by")


@dataclass(frozen=True)
class Case:
    """``arms(place)`` makes, for every arm, what builds its calls.

    Attributes:
        moved: the fewest bytes that our arm reads and writes.
        int8, bf16: multiply-adds of our arm.
        kept: arms that must not fail; the others are then reported as absent, with the reason.
    """

    what: str
    size: str
    arms: Callable[[Place], Mapping[str, Callable[[], Calls]]]
    moved: float
    int8: float = 0.0
    bf16: float = 0.0
    kept: tuple[str, ...] = (OURS, "bf16")


@dataclass
class Outcome:
    """Timings by arm, how they were made, and why other arms have none."""

    case: Case
    timings: dict[str, Timing] = field(default_factory=dict)
    how: str = ""
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> str:
        """Why the comparison is not what it should be, or nothing."""
        return "; ".join(f"{arm}: {reason}" for arm, reason in self.failed.items() if arm in self.case.kept)

    def times_faster_than(self, arm: str) -> float | None:
        both = OURS in self.timings and arm in self.timings
        return self.timings[OURS].times_faster_than(self.timings[arm]) if both else None

    def row(self, limits: Limits) -> tuple[str, ...]:
        """Cells of :data:`HEADER`."""
        case = self.case
        if OURS not in self.timings:
            return (case.what, case.size, "failed", *[""] * 6)
        seconds = self.timings[OURS].median()
        ratios = {arm: self.times_faster_than(arm) for arm in ("bf16", "torchao")}
        cells = {arm: "" if ratio is None else f"{ratio:.2f}" for arm, ratio in ratios.items()}
        cells |= dict.fromkeys(self.failed, "absent")
        rate = 2 * (case.int8 + case.bf16) / seconds / 1e12
        return (case.what, case.size, f"{1e6 * seconds:.1f}", cells["bf16"], cells["torchao"],
                f"{case.moved / seconds / 1e9:.0f}", f"{rate:.1f}" if rate else "",
                f"{self._least(limits) / seconds:.0%}", self.how)

    def as_json(self, limits: Limits) -> dict[str, Any]:
        case = self.case
        return {"what": case.what, "size": case.size, "timed_by": self.how, "bytes": case.moved, "int8_macs": case.int8,
                "bf16_macs": case.bf16, "limit_us": 1e6 * self._least(limits), "failed": self.failed,
                "round_us": {arm: [1e6 * s for s in t.rounds] for arm, t in self.timings.items()},
                "times_faster_than": {arm: self.times_faster_than(arm) for arm in self.timings if arm != OURS}}

    def _least(self, limits: Limits) -> float:
        return limits.seconds(moved=self.case.moved, int8=self.case.int8, bf16=self.case.bf16)


@torch.no_grad()
def run(case: Case, place: Place) -> Outcome:
    """Build and run every arm once, then time those that did."""
    outcome, calls = Outcome(case), {}
    torch._dynamo.reset()
    gc.collect()  # the operands of the case before
    for arm, build in case.arms(place).items():
        try:
            made = build()
            for call in made:
                call()
            if place.is_cuda:
                torch.cuda.synchronize()
        except Exception as error:  # a toolchain may fail in any way: the table says so, and the other arms still run
            outcome.failed[arm] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            calls[arm] = made
    try:
        outcome.timings, outcome.how = interleaved(place, calls)
    except RuntimeError as error:
        outcome.failed |= dict.fromkeys(calls, f"not timed: {error}".splitlines()[0])
    return outcome
