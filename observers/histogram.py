"""Ranges that clip: chosen from a histogram by the error they cause, or by the part of the values they keep."""

import math

import torch
from torch import Tensor

from torchqx.errors import ConfigError
from torchqx.observers.bins import Bins
from torchqx.observers.minmax import MinMaxObserver

NUMBER_OF_BINS = 8192


class BinnedObserver(MinMaxObserver):
    """Smallest and largest value, and a histogram of all values (:class:`~torchqx.observers.bins.Bins`)."""

    def __init__(self, *args, bins: int = NUMBER_OF_BINS, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.bins = Bins(bins)

    def _update(self, rows: Tensor) -> None:
        low, high = torch.aminmax(rows)
        self._extend(low, high)
        magnitude = max(-float(low), float(high))
        if math.isfinite(magnitude):  # otherwise the range says so, and is never asked for a clip
            self.bins.add(rows, magnitude)

    def _merge(self, other: "BinnedObserver") -> None:
        super()._merge(other)
        self.bins.merge(other.bins)


class PercentileObserver(BinnedObserver):
    """The range that leaves out ``100 - percentile`` percent of the values at each end."""

    def __init__(self, *args, percentile: float = 99.99, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not 50 < percentile <= 100:
            raise ConfigError(f"percentile {percentile}", where="percentile", remedy="choose above 50, at most 100.")
        self.percentile = percentile

    def _range(self) -> tuple[Tensor, Tensor]:
        self._require_finite(self.low, self.high)
        part = self.percentile / 100
        low, high = self.bins.quantile(1 - part), self.bins.quantile(part)
        return low.clamp(self.low, self.high), high.clamp(self.low, self.high)


class HistogramObserver(BinnedObserver):
    """The clipped range with the smallest squared quantization error, ``min Σ count · (Q(centre) - centre)²``.

    Both ends are first shrunk by a common factor, from 1 to 1/64, then each end by itself around the best.
    """

    def _range(self) -> tuple[Tensor, Tensor]:
        self._require_finite(self.low, self.high)
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)
        shrink = torch.logspace(0, -6, 64, base=2.0, device=low.device)
        low, high = self._best(low * shrink, high * shrink)
        nudge = torch.logspace(-0.75, 0.75, 31, base=2.0, device=low.device)
        for _ in range(2):
            low, high = self._best(low.expand(31), (high * nudge).clamp(max=self.high.clamp(min=0)))
            low, high = self._best((low * nudge).clamp(min=self.low.clamp(max=0)), high.expand(31))
        return low, high

    def _best(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        centres, counts = self.bins.occupied()
        low, high = low.unsqueeze(1), high.unsqueeze(1)
        centres = centres.expand(low.shape[0], -1)
        error = (self.quantizer.fake_quantize(centres, low, high) - centres).square_() @ counts
        best = error.argmin()
        return low[best, 0], high[best, 0]
