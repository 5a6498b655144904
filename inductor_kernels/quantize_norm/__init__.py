"""A layer norm with a static quantizer behind it, in one pass over the rows: ``torch.ops.torchqx.quantize_norm``.

| where | what runs |
|---|---|
| CPU | C++: statistics, result and codes of a row while it is in the first-level cache |
| elsewhere | ``quantize_norm_aten``: ``norms`` and ``int8_linear.quantize.quantize_static`` |

For what a kernel wrote. What generated code computes is normalized and quantized there, in the loop that computes it.
"""

import torch

from torchqx.inductor_kernels.quantize_norm.cpu import is_supported, load, quantize_norm_aten
from torchqx.inductor_kernels.quantize_norm.schema import DTYPES

QUANTIZE_NORM = torch.ops.torchqx.quantize_norm.default

__all__ = ["DTYPES", "QUANTIZE_NORM", "is_supported", "load", "quantize_norm_aten"]
