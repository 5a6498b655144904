"""Whether one arm is slower than another beyond noise: the bootstrap interval of the median ratio of their rounds."""

from dataclasses import dataclass

import numpy as np

from benchmarks.interleave import Timing

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """Time of the new arm over that of the old, round by round.

    Attributes:
        ratio: the median; above 1 the new one is slower.
        low, high: the interval that holds the median of 95% of the resamples of the rounds.
    """

    ratio: float
    low: float
    high: float

    def is_slower(self, threshold: float) -> bool:
        """The median is above 1 + ``threshold``, and the whole interval above 1."""
        return self.ratio > 1 + threshold and self.low > 1


def judge(new: Timing, old: Timing) -> Verdict:
    """Compare two arms that took turns."""
    ratios = np.array(old.ratios(new))
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Verdict(float(np.median(ratios)), float(low), float(high))
