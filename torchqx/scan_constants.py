"""Parameters of a scan as the values that their int8 codes stand for."""

import torch
from torch import Tensor

from torchqx.scan_recipe import CODE


def coded_constant(role: str, value: Tensor) -> Tensor:
    """``value`` as symmetric int8 codes with one scale say it, float32: A through A_log = log(-A), others as they are.

    A dimension that ``expand`` repeats is repeated still: the state update is faster for it.
    """
    repeated = [size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride(), strict=True)]
    narrow = value.float()
    for dim, again in enumerate(repeated):
        narrow = narrow.narrow(dim, 0, 1) if again else narrow
    coded = -CODE.fake_quantize(torch.log(-narrow)).exp() if role == "A" else CODE.fake_quantize(narrow)
    return coded.expand(value.shape) if any(repeated) else coded
