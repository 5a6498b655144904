"""Outlier Suppression+ (arXiv 2304.09145): shift each channel to its middle, scale down those that stick out."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchqx.errors import ConfigError
from torchqx.observers.solvers.objective import Objective
from torchqx.observers.solvers.problem import LinearProblem, LinearSolution
from torchqx.observers.solvers.solver import Solver, candidate
from torchqx.transforms import ShiftScale

REFINEMENTS = 2
PROMISING = 3  # with two, 2 of 208 searches of MiniLM and SmolLM2 missed the best point of their grid


@dataclass
class OutlierSuppressionPlusSolver(Solver):
    """One search over a threshold t that minimises the change of the output:

        z_j = (max X_j + min X_j) / 2        s_j = max(1, max|X_j - z_j| / t)

    Thresholds above the largest half-range change nothing, nor do (but for one common factor) those below the
    smallest: the default grid lies between, evenly in log t, and is refined around its best point.

    Attributes:
        shift: whether to shift. "auto": whichever of shifting, not shifting, and leaving the site as it is has the
            smallest loss. (A shift spoils inputs whose mass sits at one end of the range, such as GELU's outputs.)
        steps: thresholds of the grid, with and without shift if "auto"; the loss is smooth in t, so every second is
            tried first. None: the released code's grid, max(100, a / 0.5) equal steps from the largest half-range a
            down to ``smallest``, all of them, keeping the first strict improvement.
        smallest: the grid's lower end. None: 1.0 with the released grid (0.1 for models like LLaMA), else where 95%
            of the channels are scaled. Where it would leave nothing to search, a hundredth of the largest half-range.
    """

    shift: Literal["auto"] | bool = "auto"
    steps: int | None = 14
    smallest: float | None = None

    def __post_init__(self) -> None:
        if self.shift not in ("auto", True, False):
            raise ConfigError(f"shift {self.shift!r}", where="shift", remedy="choose 'auto', True, or False.")
        if self.steps is not None and self.steps < 2:
            raise ConfigError(f"{self.steps} steps", where="steps", remedy="give at least 2, or None.")
        if self.smallest is not None and self.smallest <= 0:
            raise ConfigError(f"smallest threshold {self.smallest}", where="smallest", remedy="give a positive one.")

    def _search(self, problem: LinearProblem, objective: Objective) -> LinearSolution:
        middle = problem.channel_low / 2 + problem.channel_high / 2
        shifts = {"auto": (None, middle), True: (middle,), False: (None,)}[self.shift]
        sweeps = [Sweep(problem, objective, z if z is not None and bool(z.any()) else None) for z in shifts]
        if len(sweeps) > 1 and sweeps[1].shift is None:  # nothing to shift: both are one search
            sweeps.pop()
        best, sweep = self._best(sweeps)
        return best if self.steps is None else self._refined(best, sweep)

    def _best(self, sweeps: list["Sweep"]) -> tuple[LinearSolution, "Sweep"]:
        """The best point of the grids: of all their points, or of every second and the neighbours of the best three."""
        grids = [self._grid(sweep) for sweep in sweeps]
        found: dict[tuple[int, int], LinearSolution] = {}

        def order(place: tuple[int, int]) -> tuple:
            # Of equals the first: without shift before with, larger thresholds before smaller. The first of all,
            # without shift at the largest threshold, leaves the site as it is.
            return found[place].loss, place

        stride = 1 if self.steps is None else 2
        for k, grid in enumerate(grids):
            for i in sorted({*range(0, len(grid), stride), len(grid) - 1}):
                found[k, i] = sweeps[k].at(grid[i])
        if self.steps is not None:
            beside = {(k, i + d) for k, i in sorted(found, key=order)[:PROMISING] for d in (-1, 1)}
            for k, i in beside - found.keys():
                if 0 <= i < len(grids[k]):
                    found[k, i] = sweeps[k].at(grids[k][i])
        place = min(found, key=order)
        return found[place], sweeps[place[0]]

    def _grid(self, sweep: "Sweep") -> list[float]:
        top, bottom = sweep.top, self._bottom(sweep)
        if top <= bottom:
            return [top]
        if self.steps is None:
            number = max(100, int(top / 0.5))
            return [top - (top - bottom) * i / number for i in range(number + 1)]
        return [top * (bottom / top) ** (i / (self.steps - 1)) for i in range(self.steps)]

    def _bottom(self, sweep: "Sweep") -> float:
        wanted = self.smallest if self.smallest is not None or self.steps is not None else 1.0
        if wanted is None:
            return max(sweep.low, sweep.top * 1e-3)
        return wanted if wanted < sweep.top else sweep.top / 100

    def _refined(self, best: LinearSolution, sweep: "Sweep") -> LinearSolution:
        top, bottom = sweep.top, self._bottom(sweep)
        if top <= bottom:
            return best
        ratio = (top / bottom) ** (1 / (self.steps - 1))
        for _ in range(REFINEMENTS):
            ratio = math.sqrt(ratio)
            around = [t for t in (best.threshold * ratio, best.threshold / ratio) if bottom <= t <= top]
            best = min([best, *map(sweep.at, around)], key=lambda solution: solution.loss)
        return best


class Sweep:
    """The solutions along t for one shift.

    Attributes:
        shift: [K] or None.
        top: the largest half-range: above it no channel is scaled.
        low: 95% of the channels that are not constant have a half-range above it.
    """

    def __init__(self, problem: LinearProblem, objective: Objective, shift: Tensor | None) -> None:
        self.problem, self.objective, self.shift = problem, objective, shift
        low, high = problem.channel_low, problem.channel_high
        self.reach = torch.maximum(-low, high) if shift is None else torch.maximum(high - shift, shift - low)
        self.top = float(self.reach.amax())
        moving = self.reach[self.reach > 0]
        self.low = float(moving.sort().values[len(moving) // 20]) if len(moving) else 0.0

    def at(self, threshold: float) -> LinearSolution:
        """The solution with s = max(1, half-range / threshold), and its loss."""
        scale = None
        if threshold < self.top:
            scale = (self.reach / threshold).clamp(min=1)
        transform = ShiftScale(self.shift, scale)
        return candidate(self.problem, self.objective, transform, threshold=threshold)
