"""The range that a row finds when others have set it: what a static quantizer leaves of rows to come."""

import torch
from torch import Tensor

NEAR = 1e-3  # of the range: closer to its end, a value is taken to set it


def others_bounds(rows: Tensor, low: Tensor, high: Tensor, scale: Tensor | None,
                  symmetric: bool) -> tuple[Tensor, Tensor]:
    """Per channel, the ends of the range that the other rows give to the row which set it.

    A range holds every value that it was found on, so the error of those rows says little about other rows, and
    nothing where they are few. Left out, the row with the largest value of all is clipped to what the others reach.
    Where a transform has scaled channels to the end of the range, each by its own largest value, the row that has it is
    clipped in that channel to the runner-up.

    Args:
        rows: [R, K], as they are quantized; they may be a sample of what was seen.
        low, high: [2, K], the two smallest and the two largest values of each channel over all that was seen, likewise.
        scale: [K], what the transform has divided the channels by.
        symmetric: whether the range is that of the magnitudes.

    Returns:
        Two tensors [K] for ``torch.clamp``; zero for a single row, to which no other gives a range.
    """
    if symmetric:
        top = _others_end(rows.abs(), torch.cat((high, -low)).topk(2, dim=0).values, scale)
        return -top, top
    return -_others_end(-rows, -low, scale), _others_end(rows, high, scale)


def _others_end(rows: Tensor, largest: Tensor, scale: Tensor | None) -> Tensor:
    first, second = largest.clamp(min=0)  # every range holds zero
    end = (1 - NEAR) * first.amax()
    reached = rows.amax(1).topk(min(2, len(rows))).values
    sampled = reached[1:] if reached[0] >= end else reached  # of the others; not all that were seen are in the sample
    others = torch.cat((sampled, second)).amax()
    if scale is None:
        return others.expand_as(first)
    # Without the row its channel would have been divided by less: down to the runner-up, or not at all.
    own = torch.maximum(second, first / scale)
    return torch.where((scale != 1) & (first >= end), own, others).clamp(max=others)
