"""Codes with one range per row, in one pass over the rows: ``torch.ops.torchqx.quantize_rows``.

| where | what runs |
|---|---|
| CPU | C++: a row's range and its codes while it is in the first-level cache |
| elsewhere | ``int8_linear.quantize.quantize_per_token`` |

For what a kernel wrote. What generated code computes is quantized there, in the loop that computes it.
"""

from torchqx.inductor_kernels.quantize_rows.cpu import is_supported, load

__all__ = ["is_supported", "load"]
