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
    """Smallest and largest value of each channel of the last dimension, and the ones next to them: float32 [K] each.

    With a quantizer per channel the range is per channel, [K]; with any other it is that of all channels.
    """

    low: Tensor
    high: Tensor
    next_low: Tensor
    next_high: Tensor
    splits_channels = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for name in ("low", "high", "next_low", "next_high"):
            self.register_buffer(name, torch.empty(0))

    def channel_bounds(self) -> tuple[Tensor, Tensor]:
        """``(low, high)``, float32 [K] each; raises the errors of :meth:`bounds`."""
        self._require_data()
        self._require_finite(self.low, self.high)
        return self.low.clone(), self.high.clone()

    def channel_extremes(self) -> tuple[Tensor, Tensor]:
        """The two smallest and the two largest values of each channel, of different rows, the extreme first: float32
        [2, K] each; infinite where a single row was seen. Raises the errors of :meth:`bounds`."""
        low, high = self.channel_bounds()
        return torch.stack((low, self.next_low)), torch.stack((high, self.next_high))

    def _update(self, rows: Tensor) -> None:
        self._extend(-largest_two(-rows), largest_two(rows))

    def _range(self) -> tuple[Tensor, Tensor]:
        if self.quantizer.granularity == "channel":
            return self.low.clone(), self.high.clone()
        return self.low.amin(), self.high.amax()

    def _merge(self, other: "ChannelMinMaxObserver") -> None:
        self._extend(torch.stack((other.low, other.next_low)), torch.stack((other.high, other.next_high)))

    def _extend(self, lows: Tensor, highs: Tensor) -> None:
        lows, highs = lows.float(), highs.float()
        if self.count:
            self._require_channels(self.low.shape[0], lows.shape[1])
            lows = torch.cat((lows, self.low[None], self.next_low[None]))
            highs = torch.cat((highs, self.high[None], self.next_high[None]))
        self.low, self.next_low = (t.clone() for t in lows.topk(2, dim=0, largest=False).values)
        self.high, self.next_high = (t.clone() for t in highs.topk(2, dim=0).values)


def largest_two(rows: Tensor) -> Tensor:
    """The two largest of each column, [R, K] -> [2, K]; of a single row, itself and minus infinity.

    What ``topk`` finds, in a fraction of its time: the largest of each of √R groups of rows, and then a look into the
    one group per column that has the largest of all.
    """
    count, columns = rows.shape
    groups = math.isqrt(count)
    each = count // groups
    grouped = rows[: groups * each].view(groups, each, columns)
    tops = grouped.amax(1)
    inside = grouped.gather(0, tops.argmax(0).expand(1, each, columns))[0]
    others = tops.topk(min(2, groups), dim=0).values[1:]
    best = inside.topk(min(2, each), dim=0).values
    least = rows.new_full((1, columns), -math.inf)
    return torch.cat((best, others, rows[groups * each :], least)).topk(2, dim=0).values
