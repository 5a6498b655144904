"""Rotation by Hadamard matrices (the QuaRot class, Ashkboos et al., NeurIPS 2024, arXiv 2404.00456)."""

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from torchqx.errors import ConfigError
from torchqx.observers.solvers import MinMaxSolver, OutlierSuppressionPlusSolver, SmoothQuantSolver, Solver
from torchqx.quantizers import AffineQuantizer
from torchqx.recipe import AffineRecipe
from torchqx.rotations import SMALLEST_BLOCK, Hadamard, choose

FOLDS = ("stream", "all", "none")
SOLVERS: dict[str, type[Solver]] = {
    "none": MinMaxSolver, "smoothquant": SmoothQuantSolver, "osplus": OutlierSuppressionPlusSolver}


@dataclass
class HadamardConfig(AffineRecipe):
    """X~ = (X R - z) / s: every activation is rotated, and then shifted and scaled where asked for.

    Attributes:
        seed: of the random signs in front of the Hadamard matrix; None for no signs.
        where: patterns of the keys of sites that are rotated; others are quantized as they are, as are those whose
            rows split into no Hadamard block of 16 or more (the report says so).
        shift_scale: how z and s are found on the rotated activation: "none", "smoothquant" or "osplus".
        clip_ratio: the share of an activation's range that its codes cover.
        fold: which rotations may move into neighbouring weights, of which those that stay float (embeddings, the
            head) get rotated copies. "stream": those of whole rows; "all": also one per head, from the values to the
            projection behind attention, which saves an online rotation but mixes only the channels of one head;
            "none": no rotation.
        rotate_keys: whether queries and keys are rotated by one matrix of a head's width behind their position
            embeddings, so that a cache holds rotated keys; attention scores stay as they are. Caches must be filled
            by models that rotate alike.

    Raises:
        ConfigError: for a value outside its range.
    """

    activation: Literal["auto", "static", "token", "group"] = "token"
    seed: int | None = 0
    where: list[str] = field(default_factory=lambda: ["*"])
    shift_scale: str = "none"
    clip_ratio: float = 1.0
    fold: Literal["stream", "all", "none"] = "stream"
    rotate_keys: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is not None and (type(self.seed) is not int or self.seed < 0):
            raise ConfigError(f"{self.seed!r} is no seed", where="seed", remedy="give 0 or more, or None for no signs.")
        if self.shift_scale not in SOLVERS:
            raise ConfigError(f"unknown value {self.shift_scale!r}", where="shift_scale",
                              remedy=f"choose one of {', '.join(map(repr, SOLVERS))}.")
        if self.fold not in FOLDS:
            raise ConfigError(f"unknown value {self.fold!r}", where="fold",
                              remedy=f"choose one of {', '.join(map(repr, FOLDS))}.")
        if type(self.rotate_keys) is not bool:
            raise ConfigError(f"{self.rotate_keys!r} is neither True nor False", where="rotate_keys",
                              remedy="choose one.")
        if isinstance(self.where, str):
            raise ConfigError("expects a list of patterns", where="where", remedy="put the pattern into a list.")
        self.where = list(self.where)

    def solver(self) -> Solver:
        return SOLVERS[self.shift_scale]()

    def rotation(self, key: str, columns: int, after_scan: bool = False) -> tuple[Hadamard | None, str]:
        """The rotation with the largest block; None, and why, where the recipe or the size leaves none."""
        if not any(fnmatchcase(key, pattern) for pattern in self.where):
            return None, "not rotated: left out by the recipe's where patterns"
        found = choose(columns, self.seed)
        if found.block < SMALLEST_BLOCK:
            return None, f"not rotated: rows of {columns} split into no Hadamard block of {SMALLEST_BLOCK} or more"
        return found, ""

    def activation_ladder(self) -> list[AffineQuantizer]:
        return [replace(quantizer, clip_ratio=self.clip_ratio) for quantizer in super().activation_ladder()]
