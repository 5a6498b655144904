"""Largest magnitudes and quantiles of them, for symmetric static scales."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchqx.errors import ConfigError
from torchqx.observers.base import TensorObserver
from torchqx.quantizers import AffineQuantizer

SMOOTHING = 0.01


class MagnitudeObserver(TensorObserver):
    """Of each channel of the last dimension [..., K]: the largest |x|, and quantiles of |x| smoothed over the calls.

        w <- w + 0.01 (quantile_alpha(|x|) - w),   starting with the first call's       (Quamba's running percentile)

    Args:
        alphas: the quantiles to keep, each in (0, 1).

    Raises:
        ConfigError: an alpha outside its range.
    """

    peak: Tensor
    quantiles: Tensor
    calls: Tensor

    def __init__(self, alphas: Sequence[float] = (), site: str = "") -> None:
        super().__init__(AffineQuantizer(symmetric=True, signed=True), site=site)
        if not all(0 < alpha < 1 for alpha in alphas):
            raise ConfigError(f"quantiles {list(alphas)}", where=site or "alphas", remedy="give values in (0, 1).")
        self.alphas = tuple(alphas)
        self.register_buffer("peak", torch.empty(0))
        self.register_buffer("quantiles", torch.empty(len(self.alphas), 0))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def limits(self, alpha: float | None) -> Tensor:
        """Largest magnitude (None), or the quantile ``alpha`` of it, per channel, float32 [K]; errors of ``bounds``."""
        self._require_data()
        self._require_finite(self.peak)
        return (self.peak if alpha is None else self.quantiles[self.alphas.index(alpha)]).clone()

    def _update(self, rows: Tensor) -> None:
        size = rows.abs().float()
        ranks = [len(size) - 1 - math.ceil(alpha * (len(size) - 1)) for alpha in self.alphas]
        largest = size.topk(max(ranks, default=0) + 1, dim=0).values
        found = largest[ranks] if ranks else self.quantiles.new_empty(0, size.shape[-1])
        if self.count == 0:
            self.peak, self.quantiles = largest[0].clone(), found.clone()
        else:
            self._require_channels(self.peak.shape[0], size.shape[-1])
            torch.maximum(self.peak, largest[0], out=self.peak)
            self.quantiles += SMOOTHING * (found - self.quantiles)
        self.calls += 1

    def _range(self) -> tuple[Tensor, Tensor]:
        return -self.peak.amax(), self.peak.amax()

    def _merge(self, other: "MagnitudeObserver") -> None:
        if self.count == 0:
            self.peak, self.quantiles = other.peak.clone(), other.quantiles.clone()
        else:
            self._require_channels(self.peak.shape[0], other.peak.shape[0])
            torch.maximum(self.peak, other.peak, out=self.peak)
            share = other.calls / (self.calls + other.calls)
            self.quantiles += share * (other.quantiles - self.quantiles)
        self.calls += other.calls
