"""``torchqx::stored``: the identity, and a mark for Inductor that a value is written once and read from there.

Inductor computes an elementwise expression again in every kernel that reads it, and in front of every operator that it
only calls. That is right for most; the mark is for what costs more than the read:

* sums of an int8 matmul on GPUs, four bytes each, that its epilogue turns into two;
* masks and position embeddings, with comparisons, gathers and cosines, that every layer reads;
* on CPUs, what quantizing a row needs of its range: divisions, which would be made anew for each vector of the row.
"""

import torch
from torch import Tensor
from torch._inductor import ir
from torch._inductor.lowering import clone, register_lowering

LIBRARY = torch.library.Library("torchqx", "FRAGMENT")
LIBRARY.define("stored(Tensor x) -> Tensor")
STORED = torch.ops.torchqx.stored.default


@torch.library.impl(LIBRARY, "stored", "CompositeExplicitAutograd")
def stored(x: Tensor) -> Tensor:
    """x, of any shape and dtype, as a copy where nothing is compiled."""
    return x.clone()


@torch.library.register_fake("torchqx::stored")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@register_lowering(STORED, type_promotion_kind=None)
def lower_stored(x: ir.TensorBox) -> ir.TensorBox:
    """Inductor's own mark; kernels may still be fused, and what is then read nowhere else is not written.

    The mark takes the place of its operand, which nothing else may read: what writes into the one would write into the
    other. An input, or a view of one, is copied for that reason, also where it became one in Inductor's hands.
    """
    base = x.data
    while isinstance(base, ir.BaseView):
        base = base.data
    if isinstance(base, ir.StorageBox) and isinstance(base.data, ir.InputBuffer):
        x = clone(x)
    x.realize()
    return x
