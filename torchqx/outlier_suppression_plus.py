"""Outlier Suppression+ (Wei et al., EMNLP 2023, arXiv 2304.09145): shift and scale per channel."""

from dataclasses import dataclass
from typing import Literal

from torchqx.errors import ConfigError
from torchqx.observers.solvers import OutlierSuppressionPlusSolver, Solver
from torchqx.recipe import AffineRecipe


@dataclass
class OutlierSuppressionPlusConfig(AffineRecipe):
    """X~ = (X - z) / s,  z_j = (max_j + min_j) / 2,  s_j = max(1, max|X_j - z_j| / t), t by grid search on the output.

    Attributes:
        shift: True or False everywhere, or "auto": where it lowers the site's loss.
        grid_steps: candidates for t; None for the released code's grid of max(100, amax / 0.5) equal steps.

    Raises:
        ConfigError: for a value outside its range.
    """

    shift: Literal["auto"] | bool = "auto"
    grid_steps: int | None = 14

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.shift, bool) or self.shift == "auto"):
            raise ConfigError(f"{self.shift!r} is no choice", where="shift", remedy="give True, False or 'auto'.")
        if self.grid_steps is not None and (not isinstance(self.grid_steps, int) or self.grid_steps < 1):
            raise ConfigError(f"{self.grid_steps!r} candidates", where="grid_steps", remedy="give 1 or more, or None.")

    def solver(self) -> Solver:
        return OutlierSuppressionPlusSolver(shift=self.shift, steps=self.grid_steps)
