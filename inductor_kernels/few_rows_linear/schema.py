"""``torchqx::few_rows_linear``: its schema, and its shapes for tracing. The C++ kernel registers itself once built."""

import torch
from torch import Tensor

from torchqx.errors import ShapeError, UnsupportedError

LIBRARY = torch.library.Library("torchqx", "FRAGMENT")
LIBRARY.define("few_rows_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
DTYPES = (torch.float32, torch.bfloat16)


@torch.library.register_fake("torchqx::few_rows_linear")
def few_rows_linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Shape and dtype of the result: ``[*x.shape[:-1], N]`` in the dtype of x [..., K], contiguous.

    Raises:
        ShapeError: weight [N, K] or bias [N] does not fit the rows of x.
        UnsupportedError: a dtype other than float32 and bfloat16, or more than one.
    """
    if x.dim() == 0 or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ShapeError(f"a weight of shape {tuple(weight.shape)} does not fit x of shape {tuple(x.shape)}",
                         where="few_rows_linear", remedy="give a weight [N, K] and rows of K elements.")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        raise ShapeError(f"a bias of shape {tuple(bias.shape)} does not fit {weight.shape[0]} results per row",
                         where="few_rows_linear", remedy="give one element per row of the weight.")
    dtypes = {t.dtype for t in (x, weight, bias) if t is not None}
    if len(dtypes) > 1 or x.dtype not in DTYPES:
        raise UnsupportedError(f"operands of {', '.join(sorted(map(str, dtypes)))}", where="few_rows_linear",
                               remedy="convert them all to float32 or all to bfloat16.")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
