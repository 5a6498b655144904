"""How the ranges of single tokens are distributed."""

import math

import torch
from torch import Tensor

from torchqx.errors import ConfigError
from torchqx.observers.bins import Bins
from torchqx.observers.minmax import MinMaxObserver


class TokenQuantileObserver(MinMaxObserver):
    """Quantiles, over the tokens, of each token's (row's) smallest and largest value.

    A few massive tokens make a range over everything useless for all the others: compare ``quantiles([0.5, 1.0])``.
    As a range it gives the one that holds a part ``quantile`` of the tokens whole at each end.
    """

    def __init__(self, *args, quantile: float = 0.99, bins: int = 4096, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < quantile <= 1:
            raise ConfigError(f"quantile {quantile}", where="quantile", remedy="choose above 0, at most 1.")
        self.quantile = quantile
        self.lows, self.highs = Bins(bins), Bins(bins)

    def quantiles(self, levels: list[float]) -> tuple[Tensor, Tensor]:
        """For each level q: what a part q of the tokens stays above (lows), and below (highs); float32 [levels].

        Raises the errors of :meth:`bounds`.
        """
        self._require_data()
        self._require_finite(self.low, self.high)
        lows = torch.stack([self.lows.quantile(1 - q) for q in levels])
        highs = torch.stack([self.highs.quantile(q) for q in levels])
        return lows.clamp(min=self.low), highs.clamp(max=self.high)

    def _update(self, rows: Tensor) -> None:
        lows, highs = rows.amin(1), rows.amax(1)
        self._extend(lows.amin(), highs.amax())
        # Rows' minima are not below the least one, but may all be positive: both ends bound both histograms.
        magnitude = max(-float(lows.amin()), float(highs.amax()))
        if math.isfinite(magnitude):
            self.lows.add(lows, magnitude)
            self.highs.add(highs, magnitude)

    def _range(self) -> tuple[Tensor, Tensor]:
        lows, highs = self.quantiles([self.quantile])
        return lows[0], highs[0]

    def _merge(self, other: "TokenQuantileObserver") -> None:
        super()._merge(other)
        self.lows.merge(other.lows)
        self.highs.merge(other.highs)
