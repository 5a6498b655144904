"""Outlier Suppression+ (Wei et al., EMNLP 2023, arXiv 2304.09145): channel-wise shift and scale, moved into the consumer."""

from dataclasses import dataclass
from typing import Literal

from torchqx.observers.solvers import OutlierSuppressionPlusSolver, Solver
from torchqx.recipe import AffineRecipe


@dataclass
class OutlierSuppressionPlusConfig(AffineRecipe):
    """X~ = (X - z) / s,  z_j = (max_j + min_j) / 2,  s_j = max(1, max|X_j - z_j| / t), t by grid search on the output.

    Attributes:
        shift: True or False everywhere, or "auto": where it lowers the site's loss.
        grid_steps: candidates for t; None for the released code's grid of max(100, amax / 0.5) equal steps.
    """

    shift: Literal["auto"] | bool = "auto"
    grid_steps: int | None = 14

    def solver(self) -> Solver:
        return OutlierSuppressionPlusSolver(shift=self.shift, steps=self.grid_steps)
