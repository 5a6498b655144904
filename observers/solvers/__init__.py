"""Statistics, weights and samples -> parameters. Tensors only: any site that can state its problem is served."""

from torchqx.observers.solvers.left_out import others_bounds
from torchqx.observers.solvers.objective import Objective, measure
from torchqx.observers.solvers.outlier_suppression_plus import OutlierSuppressionPlusSolver
from torchqx.observers.solvers.problem import LinearProblem, LinearSolution, Sample
from torchqx.observers.solvers.ranges import HistogramSolver, MinMaxSolver, PercentileSolver
from torchqx.observers.solvers.smoothquant import SmoothQuantSolver
from torchqx.observers.solvers.solver import Solver

__all__ = [
    "HistogramSolver",
    "LinearProblem",
    "LinearSolution",
    "MinMaxSolver",
    "Objective",
    "OutlierSuppressionPlusSolver",
    "PercentileSolver",
    "Sample",
    "SmoothQuantSolver",
    "Solver",
    "measure",
    "others_bounds",
]
