"""Channels of alike magnitude share one scale (the sort-and-cluster of Quamba2, Chiang et al., arXiv 2503.22879).

A channel whose values reach l loses log2(L / l) of its bits to a scale that reaches L. Clusters are neighbours in
sorted order, so the fewest bits lost in all are found by dynamic programming over the sorted channels. With W_j
channels up to the j-th largest value l_j:

    lost_k(j) = min_{i < j} lost_{k-1}(i) + (W_j - W_i) log2 l_j          (less Σ log2 l, which is the same for all)

For each j, what is minimised is a line in log2 l_j: the lower hull of the lines makes a step over all j linear.
"""

import math

import torch
from torch import Tensor

SMALLEST = torch.finfo(torch.float32).tiny


def shared_limits(limits: Tensor, clusters: int) -> Tensor:
    """Each channel's limit, raised to the largest in its cluster: float32 [K] -> float32 [K].

    Args:
        limits: the largest magnitude per channel, not negative and finite.
        clusters: at most so many different limits result, those by which the fewest bits are lost.
    """
    values, place, held = limits.unique(return_inverse=True, return_counts=True)
    logs = values.double().clamp(min=SMALLEST).log2().tolist()
    last = torch.tensor(_last_of_each(logs, [0, *held.cumsum(0).tolist()], min(clusters, len(values))))
    return values[last[torch.searchsorted(last, place.cpu())].to(limits.device)]


def _last_of_each(logs: list[float], upto: list[int], clusters: int) -> list[int]:
    """The index of each cluster's largest value; ``upto[j]`` channels have the first j of the values."""
    lost, steps = [0.0] + [math.inf] * len(logs), []
    for _ in range(clusters):
        lost, before = _one_more(lost, logs, upto)
        steps.append(before)
    ends = [len(logs)]
    for before in reversed(steps):
        ends.append(before[ends[-1]])
    return [end - 1 for end in ends[-2::-1]]


def _one_more(lost: list[float], logs: list[float], upto: list[int]) -> tuple[list[float], list[int]]:
    """lost_k from lost_{k-1}, and the i that each j took."""
    found, taken = [math.inf], [0]
    hull: list[int] = []
    first = 0  # the lines before it are above another from here on
    for j, log in enumerate(logs, 1):
        if lost[j - 1] < math.inf:
            while len(hull) - first > 1 and _hidden(hull[-2], hull[-1], j - 1, lost, upto):
                hull.pop()
            hull.append(j - 1)
        if not hull:
            found.append(math.inf)
            taken.append(0)
            continue
        while first + 1 < len(hull) and _line(hull[first + 1], log, lost, upto) <= _line(hull[first], log, lost, upto):
            first += 1
        found.append(upto[j] * log + _line(hull[first], log, lost, upto))
        taken.append(hull[first])
    return found, taken


def _line(i: int, log: float, lost: list[float], upto: list[int]) -> float:
    return lost[i] - upto[i] * log


def _hidden(a: int, b: int, c: int, lost: list[float], upto: list[int]) -> bool:
    """Whether line b lies nowhere below both a and c; a's slope is the largest, c's the smallest."""
    return (lost[c] - lost[a]) * (upto[b] - upto[a]) <= (lost[b] - lost[a]) * (upto[c] - upto[a])
