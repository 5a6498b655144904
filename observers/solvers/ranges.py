"""Solvers that choose a range and transform nothing."""

from dataclasses import dataclass

from torchqx.errors import ConfigError
from torchqx.observers.histogram import BinnedObserver, HistogramObserver, PercentileObserver
from torchqx.observers.solvers.objective import Objective
from torchqx.observers.solvers.problem import LinearProblem, LinearSolution
from torchqx.observers.solvers.solver import Solver, candidate
from torchqx.transforms import ShiftScale


@dataclass
class MinMaxSolver(Solver):
    """The exact range over the calibration set."""

    def _search(self, problem: LinearProblem, objective: Objective) -> LinearSolution:
        return candidate(problem, objective, ShiftScale())


@dataclass
class PercentileSolver(Solver):
    """The range that holds all but ``100 - percentile`` percent of the samples' values at each end."""

    percentile: float = 99.99

    def _search(self, problem: LinearProblem, objective: Objective) -> LinearSolution:
        observer = PercentileObserver(problem.activation, site=problem.site, percentile=self.percentile)
        return _observed(problem, objective, observer)


@dataclass
class HistogramSolver(Solver):
    """The range with the smallest squared error of the samples' values themselves."""

    def _search(self, problem: LinearProblem, objective: Objective) -> LinearSolution:
        return _observed(problem, objective, HistogramObserver(problem.activation, site=problem.site))


def _observed(problem: LinearProblem, objective: Objective, observer: BinnedObserver) -> LinearSolution:
    if not problem.static:
        raise ConfigError("a dynamic quantizer measures its own range", where=problem.site,
                          remedy="choose another solver, or a static activation quantizer.")
    for sample in problem.samples:
        observer(sample.rows)
    return candidate(problem, objective, ShiftScale(), bounds=observer.bounds())
