"""The recipes that others are measured against."""

from dataclasses import dataclass

from torchqx.errors import ConfigError
from torchqx.observers.solvers import MinMaxSolver, SmoothQuantSolver, Solver
from torchqx.recipe import AffineRecipe


@dataclass
class MinMaxConfig(AffineRecipe):
    """No transform: ranges from the smallest and largest value."""

    def solver(self) -> Solver:
        return MinMaxSolver()


@dataclass
class SmoothQuantScalingConfig(AffineRecipe):
    """SmoothQuant (Xiao et al., 2023): s_j = max|X_j|^alpha / max|W_j|^(1-alpha); alpha None searches it per site.

    Raises:
        ConfigError: for a value outside its range.
    """

    alpha: float | None = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not (isinstance(self.alpha, int | float) and 0 <= self.alpha <= 1):
            raise ConfigError(f"{self.alpha!r} is no share", where="alpha", remedy="give 0 to 1, or None to search it.")

    def solver(self) -> Solver:
        return SmoothQuantSolver(alpha=self.alpha)
