"""The range that a row finds when others have set it: what a static quantizer leaves of rows to come."""

import torch
from torch import Tensor

NEAR = 1e-3  # of the range: closer to its end, a channel is taken to set it


def others_bounds(rows: Tensor, low: Tensor, high: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Per channel, the ends of the range that the other rows give to the row which holds its extreme.

    A range holds every value that it was found on, so the error of those rows says little about other rows, and
    nothing where they are few. Left out, the row with a channel's extreme is clipped to the runner-up: in each channel
    where a transform has scaled several to the end of the range, and to the runner-up of all where one channel sets it.

    Args:
        rows: [R, K], as they are quantized; they may be a sample of what was seen.
        low, high: [K], the channels' ranges over all that was seen, likewise.
        symmetric: whether the range is that of the magnitudes.

    Returns:
        Two tensors [K] for ``torch.clamp``: infinite where the rows do not set the range, and zero for a single row,
        to which no other gives a range.
    """
    if len(rows) < 2:
        return torch.zeros_like(low), torch.zeros_like(high)
    near = NEAR * float(high.amax() - low.amin())
    if symmetric:
        top = _runner_up(rows.abs(), torch.maximum(-low, high), near)
        return -top, top
    return -_runner_up(-rows, -low, near), _runner_up(rows, high, near)


def _runner_up(rows: Tensor, high: Tensor, near: float) -> Tensor:
    first, second = rows.topk(2, dim=0).values
    second = second.clamp(min=0)  # every range holds zero
    sets = high >= high.amax() - near
    if int(sets.sum()) == 1 < len(high):
        second = second.clamp(min=high[~sets].amax())
    return torch.where(sets & (first >= high - near), second, torch.inf)
