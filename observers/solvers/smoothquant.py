"""SmoothQuant (arXiv 2211.10438): share the outliers between activations and weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchqx.errors import ConfigError
from torchqx.observers.solvers.objective import Objective
from torchqx.observers.solvers.problem import LinearProblem, LinearSolution
from torchqx.observers.solvers.solver import Solver, candidate
from torchqx.transforms import ShiftScale

SEARCHED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SMALLEST, LARGEST = 1e-5, 1e5


@dataclass
class SmoothQuantSolver(Solver):
    """s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), over all members' weights; X~ = X / s, W~ = W · s.

    Attributes:
        alpha: how much of the outliers goes to the weights, 0 to 1; None: the alpha of 0, 0.1 … 1 with the smallest
            loss.
    """

    alpha: float | None = 0.5

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha {self.alpha}", where="alpha", remedy="choose 0 to 1, or None to search.")

    def _search(self, problem: LinearProblem, objective: Objective) -> LinearSolution:
        alphas = SEARCHED if self.alpha is None else (self.alpha,)
        found = (candidate(problem, objective, ShiftScale(scale=smoothing(problem, a))) for a in alphas)
        return min(found, key=lambda solution: solution.loss)


def smoothing(problem: LinearProblem, alpha: float) -> Tensor:
    """SmoothQuant's s, float32 [K]; 1 for a channel whose activations or weights are all zero."""
    activation = torch.maximum(-problem.channel_low, problem.channel_high)
    weight = torch.stack([w.abs().amax(0) for w in problem.weights]).amax(0)
    scale = (activation**alpha / weight ** (1 - alpha)).clamp(SMALLEST, LARGEST)
    return torch.where((activation > 0) & (weight > 0), scale, 1.0)
