"""Which values a CPU kernel has written to memory: generated code that reads them cannot compute them too."""

from torch.fx import Node

from torchqx.fx_passes.attention_kernel import ATTENTION
from torchqx.fx_passes.fuse_codes import VIEWS
from torchqx.fx_passes.lower import PACKED
from torchqx.fx_passes.sites.ops import op_name
from torchqx.inductor_kernels.quantize_norm import QUANTIZE_NORM

_KERNELS = (PACKED, ATTENTION, QUANTIZE_NORM)


def kernel_wrote(node: Node) -> bool:
    """Whether ``node``, or the tensor that it is a view of, is what a kernel wrote."""
    while op_name(node) in VIEWS:
        node = node.args[0]
    return node.target in _KERNELS
