"""The recipes that others are measured against."""

from dataclasses import dataclass

from torchqx.observers.solvers import MinMaxSolver, SmoothQuantSolver, Solver
from torchqx.recipe import AffineRecipe


@dataclass
class MinMaxConfig(AffineRecipe):
    """No transform: ranges from the smallest and largest value."""

    def solver(self) -> Solver:
        return MinMaxSolver()


@dataclass
class SmoothQuantConfig(AffineRecipe):
    """SmoothQuant (Xiao et al., 2023): s_j = max|X_j|^alpha / max|W_j|^(1-alpha); alpha None searches it per site."""

    alpha: float | None = 0.5

    def solver(self) -> Solver:
        return SmoothQuantSolver(alpha=self.alpha)
