"""A histogram whose range grows without losing a count."""

import math

import torch
from torch import Tensor, nn

NARROWEST = -100


class Bins(nn.Module):
    """Counts in ``number`` bins of width 2^exponent around zero: bin i holds [i - number/2, i + 1 - number/2) · width.

    When a larger magnitude arrives the width doubles until it fits, and bins merge in pairs. Since all edges are
    multiples of powers of two nothing is re-estimated: the counts depend on the values alone, not on their order,
    and merging two histograms gives exactly the histogram of all values.
    """

    counts: Tensor
    exponent: Tensor

    def __init__(self, number: int) -> None:
        super().__init__()
        assert number >= 2
        assert number & (number - 1) == 0, "halving the bins needs a power of two"
        self.half = number // 2
        self.register_buffer("counts", torch.zeros(number, dtype=torch.int64))
        self.register_buffer("exponent", torch.tensor(NARROWEST, dtype=torch.int64))

    def add(self, values: Tensor, magnitude: float) -> None:
        """Count ``values``, none larger than ``magnitude`` in absolute value (finite)."""
        # magnitude = m · 2^k with m < 1, so width · half = 2^k lies above it.
        self._widen(math.frexp(magnitude)[1] - int(math.log2(self.half)) if magnitude else NARROWEST)
        index = torch.floor(values.reshape(-1).float() * 2.0 ** -int(self.exponent)).long() + self.half
        self.counts += torch.bincount(index, minlength=self.counts.numel())

    def merge(self, other: "Bins") -> None:
        """Add the counts of a histogram with the same number of bins."""
        self._widen(int(other.exponent))
        self.counts += other._at(int(self.exponent))

    def occupied(self) -> tuple[Tensor, Tensor]:
        """Centres (float32) and counts (float32) of the bins that hold something."""
        index = self.counts.nonzero().squeeze(1)
        return (index - self.half + 0.5) * 2.0 ** int(self.exponent), self.counts[index].float()

    def quantile(self, q: float) -> Tensor:
        """The value below which a part ``q`` of the values lies, linear inside a bin; float32, 0-dimensional."""
        cumulative = self.counts.cumsum(0).double()
        target = (q * cumulative[-1]).clamp(min=1e-6)  # q = 0: the first bin that holds something
        index = torch.searchsorted(cumulative, target).clamp(max=self.counts.numel() - 1)
        inside = (target - cumulative[index]) / self.counts[index].clamp(min=1) + 1
        return ((index - self.half + inside) * 2.0 ** int(self.exponent)).float()

    def _widen(self, exponent: int) -> None:
        if exponent > int(self.exponent):
            self.counts.copy_(self._at(exponent))
            self.exponent.fill_(exponent)

    def _at(self, exponent: int) -> Tensor:
        """The counts in bins of a width not below the present one."""
        index = torch.arange(self.counts.numel(), device=self.counts.device) - self.half
        index = (index >> min(exponent - int(self.exponent), 62)) + self.half
        return torch.zeros_like(self.counts).index_add_(0, index, self.counts)
