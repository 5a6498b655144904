"""What every solver shares: the surroundings, and the way from a transform to a solution."""

import math
from abc import ABC, abstractmethod

from torchqx.errors import NonFiniteError
from torchqx.observers.solvers.coded import Range
from torchqx.observers.solvers.objective import Objective, measure, plain_float32
from torchqx.observers.solvers.problem import LinearProblem, LinearSolution, transformed_range
from torchqx.transforms import ShiftScale


class Solver(ABC):
    """A problem -> its parameters. Settings are the fields of the subclasses, which are dataclasses."""

    def solve(self, problem: LinearProblem) -> LinearSolution:
        """Parameters for one site, with the loss and the error they leave.

        Raises:
            NoCalibrationDataError: the problem has no rows to measure on.
            NonFiniteError: NaN or Inf in the samples, or a transform that overflows.
        """
        with plain_float32(problem.channel_low.device):
            solution = self._search(problem, Objective(problem))
            if not math.isfinite(solution.loss):
                raise NonFiniteError("the outputs overflow after quantization", where=problem.site,
                                     remedy="leave this site in float.")
            solution.error = measure(problem, solution)
        return solution

    @abstractmethod
    def _search(self, problem: LinearProblem, objective: Objective) -> LinearSolution:
        """The best candidate; its ``error`` is filled in afterwards."""


def candidate(
    problem: LinearProblem,
    objective: Objective,
    transform: ShiftScale,
    *,
    bounds: Range = None,
    threshold: float | None = None,
) -> LinearSolution:
    """The solution that ``transform`` is, with its loss. ``bounds``: other than the exact range."""
    if problem.static and bounds is None:
        bounds = transformed_range(problem, transform)
    low, high = bounds if problem.static else (None, None)
    loss = objective(transform, (low, high) if problem.static else None)
    return LinearSolution(transform.shift, transform.scale, low, high, loss, math.nan, threshold)
