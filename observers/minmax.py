"""Ranges from smallest and largest values: of everything, averaged over batches, and per channel."""

import math

import torch
from torch import Tensor

from torchqx.observers.base import TensorObserver


class MinMaxObserver(TensorObserver):
    """Smallest and largest value seen."""

    low: Tensor
    high: Tensor

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("low", torch.tensor(math.inf))
        self.register_buffer("high", torch.tensor(-math.inf))

    def _update(self, rows: Tensor) -> None:
        self._extend(*torch.aminmax(rows))

    def _range(self) -> tuple[Tensor, Tensor]:
        return self.low.clone(), self.high.clone()

    def _merge(self, other: "MinMaxObserver") -> None:
        self._extend(other.low, other.high)

    def _extend(self, low: Tensor, high: Tensor) -> None:
        torch.minimum(self.low, low.float(), out=self.low)
        torch.maximum(self.high, high.float(), out=self.high)


class MeanMinMaxObserver(TensorObserver):
    """Mean over the batches of each batch's smallest and largest value.

    One rare outlier moves the range by its share of the batches only (the OS+ paper's setting INT8*).
    """

    low_sum: Tensor
    high_sum: Tensor
    batches: Tensor

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for name in ("low_sum", "high_sum", "batches"):
            self.register_buffer(name, torch.zeros(()))

    def _update(self, rows: Tensor) -> None:
        low, high = torch.aminmax(rows)
        self.low_sum += low.float()
        self.high_sum += high.float()
        self.batches += 1

    def _range(self) -> tuple[Tensor, Tensor]:
        return self.low_sum / self.batches, self.high_sum / self.batches

    def _merge(self, other: "MeanMinMaxObserver") -> None:
        self.low_sum += other.low_sum
        self.high_sum += other.high_sum
        self.batches += other.batches


class ChannelMinMaxObserver(TensorObserver):
    """Smallest and largest value of each channel of the last dimension: ``low`` and ``high``, float32 [K].

    With a quantizer per channel the range is per channel, [K]; with any other it is that of all channels.
    """

    low: Tensor
    high: Tensor
    splits_channels = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("low", torch.empty(0))
        self.register_buffer("high", torch.empty(0))

    def channel_bounds(self) -> tuple[Tensor, Tensor]:
        """``(low, high)``, float32 [K] each; raises the errors of :meth:`bounds`."""
        self._require_data()
        self._require_finite(self.low, self.high)
        return self.low.clone(), self.high.clone()

    def _update(self, rows: Tensor) -> None:
        self._extend(rows.amin(0), rows.amax(0))  # 10 times faster than aminmax along a dimension

    def _range(self) -> tuple[Tensor, Tensor]:
        if self.quantizer.granularity == "channel":
            return self.low.clone(), self.high.clone()
        return self.low.amin(), self.high.amax()

    def _merge(self, other: "ChannelMinMaxObserver") -> None:
        self._extend(other.low, other.high)

    def _extend(self, low: Tensor, high: Tensor) -> None:
        if self.count == 0:
            self.low, self.high = low.float().clone(), high.float().clone()
            return
        self._require_channels(self.low.shape[0], low.shape[0])
        torch.minimum(self.low, low.float(), out=self.low)
        torch.maximum(self.high, high.float(), out=self.high)
