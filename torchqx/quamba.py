"""Quamba (Chiang et al., ICLR 2025, arXiv 2410.13229): static int8 for state-space models."""

from dataclasses import dataclass
from typing import Literal, get_args

from torchqx.errors import ConfigError
from torchqx.observers.solvers import MinMaxSolver, SmoothQuantSolver, Solver
from torchqx.quantizers import Granularity
from torchqx.rotations import SMALLEST_BLOCK, Hadamard, choose
from torchqx.scan_recipe import ScanQuantization, ScanScales
from torchqx.state_space_recipe import StateSpaceRecipe

SEARCHED = (None, 0.99999, 0.9999, 0.9995, 0.999, 0.995, 0.99)


@dataclass
class QuambaConfig(StateSpaceRecipe):
    """Every tensor that a selective scan reads in static symmetric int8, its input by a percentile, its result rotated.

        h -Q-> in_proj -> x, z      x -Q-> conv, SiLU -> u      u -Qp-> x_proj, scan      dt, B, C, z -Q-> scan
        y -> H -Q-> out_proj with W H

    | baseline of the paper | fields |
    |---|---|
    | naive static | alpha=None, hadamard=False |
    | percentile only | hadamard=False |
    | Hadamard only | alpha=None |
    | SmoothQuant | alpha=None, hadamard=False, smooth=0.5 |

    Attributes:
        alpha: the quantile of |u| that limits the scan's input; None for the largest value; "search": for each scan
            the one of several with the smallest error of the scan's result.
        hadamard: whether what reads a scan's result is rotated in front of its quantizer (orders 12, 20, 28, ... times
            a power of two included).
        smooth: SmoothQuant's exponent for the projections; None for no smoothing.
        scan: whether scans and convolutions are quantized, not the projections alone.
        scan_scales: for Mamba2, what has a scale of its own in the scan's x and z: the "tensor" (it then loses much), a
            "head", a "cluster" of channels of alike magnitude (Quamba2), or a "channel"; but for "tensor", B and C have
            one per group of states.
        clusters: how many. Quamba2's kernel reads channels in order, so it has 4 groups of heads times 4 of channels;
            ours reads a scale per channel, and any channels may share one.
        shared: one scale for B and C, and one for the convolution's input and the gate, as the paper's kernels have.

    Raises:
        ConfigError: for a value outside its range.
    """

    weight_granularity: Granularity = "tensor"
    activation: Literal["auto", "static", "token", "group", "none"] = "static"
    activation_symmetric: bool = True
    alpha: float | str | None = "search"
    hadamard: bool = True
    smooth: float | None = None
    scan: bool = True
    scan_scales: ScanScales = "cluster"
    clusters: int = 16
    shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scan_scales not in get_args(ScanScales):
            raise ConfigError(f"unknown value {self.scan_scales!r}", where="scan_scales",
                              remedy=f"choose one of {', '.join(map(repr, get_args(ScanScales)))}.")
        if not isinstance(self.clusters, int) or self.clusters < 1:
            raise ConfigError(f"{self.clusters!r} is not a positive integer", where="clusters",
                              remedy="give 1 or more.")
        for name in ("alpha", "smooth"):
            value = getattr(self, name)
            words = (None, "search") if name == "alpha" else (None,)
            if value not in words and not (isinstance(value, float) and 0 < value < 1):
                raise ConfigError(f"{value!r} is no share", where=name,
                                  remedy=f"give a number in (0, 1), or {' or '.join(map(repr, words))}.")

    def solver(self) -> Solver:
        return MinMaxSolver() if self.smooth is None else SmoothQuantSolver(alpha=self.smooth)

    def rotation(self, key: str, columns: int, after_scan: bool = False) -> tuple[Hadamard | None, str]:
        """A Hadamard matrix without signs for what reads a scan's result; None for everything else."""
        if not self.hadamard or not after_scan:
            return None, ""
        found = choose(columns, None)
        if found.block < SMALLEST_BLOCK:
            return None, f"not rotated: rows of {columns} split into no Hadamard block of {SMALLEST_BLOCK} or more"
        return found, ""

    def scan_quantization(self) -> ScanQuantization | None:
        if not self.scan:
            return None
        alphas = SEARCHED if self.alpha == "search" else (self.alpha,)
        return ScanQuantization(alphas, self.scan_scales, self.clusters, self.shared)
