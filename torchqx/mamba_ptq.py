"""Mamba-PTQ (Pierro & Abreu, 2024, arXiv 2407.12397): baselines for state-space models, and their outlier channels."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchqx.errors import ConfigError
from torchqx.observers.solvers import MinMaxSolver, SmoothQuantSolver, Solver
from torchqx.quantizers import Granularity
from torchqx.scan_recipe import ScanQuantization
from torchqx.state_space_recipe import StateSpaceRecipe

DEVIATIONS = 6.0


@dataclass
class MambaPTQConfig(StateSpaceRecipe):
    """Symmetric round-to-nearest of projections, and of the scan's tensors where asked for.

    | baseline of the paper | fields |
    |---|---|
    | weight-only, 8 and 4 bits | activation="none", weight_bits=8 or 4, weight_granularity="channel" |
    | W8A8, static activations | scan=True |
    | W8A8, dynamic activations | activation="token" (one range per token), scan=False |
    | projections only | scan=False |
    | outlier-aware scaling | smooth=0.5 |

    Attributes:
        scan: whether the tensors of scans and convolutions are quantized too, statically, by their largest magnitude.
        smooth: a in s_j = max|X_j|^a / max|W_j|^(1-a), which takes outliers out of a projection's input; None for none.

    Raises:
        ConfigError: for a value outside its range.
    """

    weight_granularity: Granularity = "tensor"
    activation: Literal["auto", "static", "token", "group", "none"] = "static"
    activation_symmetric: bool = True
    scan: bool = False
    smooth: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smooth is not None and not (isinstance(self.smooth, float) and 0 < self.smooth < 1):
            raise ConfigError(f"{self.smooth!r} is no share", where="smooth", remedy="give one in (0, 1), or None.")
        if self.scan and self.activation == "none":
            raise ConfigError("weight-only quantization leaves the scan's tensors in float", where="scan",
                              remedy="leave it False, or quantize activations.")

    def solver(self) -> Solver:
        return MinMaxSolver() if self.smooth is None else SmoothQuantSolver(alpha=self.smooth)

    def scan_quantization(self) -> ScanQuantization | None:
        return ScanQuantization() if self.scan else None


def outlier_channels(rows: Tensor, among: Literal["channels", "entries"] = "channels") -> Tensor:
    """Channels whose largest magnitude lies more than six standard deviations above the mean: bool [K].

        max_t |X_tj| > mean + 6 σ,   of all channels' maxima ("channels"), or of all |X_tj| ("entries")

    The paper's sentence allows both readings.

    Args:
        rows: a layer's input, [..., K].

    Raises:
        ConfigError: another reading.
    """
    if among not in ("channels", "entries"):
        raise ConfigError(f"unknown reading {among!r}", where="among", remedy="choose 'channels' or 'entries'.")
    size = rows.detach().abs().float().reshape(-1, rows.shape[-1])
    peaks = size.amax(0)
    deviation, mean = torch.std_mean(peaks if among == "channels" else size, correction=0)
    return peaks > mean + DEVIATIONS * deviation
