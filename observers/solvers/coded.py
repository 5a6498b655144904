"""The quantized matmul that candidates are judged by: integer where the CPU computes it exactly, else float."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqx.quantizers import AffineQuantizer

Range = tuple[Tensor, Tensor] | None


class CodedLinear:
    """x -> Q(x) Q(weight)ᵀ, float32 [..., K] -> [..., N]; the weight [N, K] by min-max at its granularity.

    On a CPU with exact u8·s8 products, symmetric weights of one scale per row (or one in all) and activations of one
    scale per row (or one in all) are multiplied as integers, about 8 times faster:

        Q(x) Q(w)ᵀ = (q_x q_wᵀ - z_x Σ_k q_w) · s_x · s_w
    """

    def __init__(self, activation: AffineQuantizer, quantizer: AffineQuantizer, weight: Tensor) -> None:
        self.activation = activation
        self.integer = (
            weight.device.type == "cpu"
            and quantizer.symmetric
            and quantizer.granularity in ("channel", "tensor")
            and activation.granularity in ("token", "tensor")
            and weight.shape[1] > 1  # torch._int_mm returns uninitialised memory for rows of one element
            and exact_integer_matmul()
        )
        if not self.integer:
            self.weight = quantizer.fake_quantize(weight)
            return
        scale, zero_point = quantizer.parameters(*quantizer.range_of(weight))
        codes = quantizer.quantize(weight, scale, zero_point)
        self.codes, self.scale = codes.t(), scale.reshape(1, -1)
        self.sums = codes.sum(1, dtype=torch.int32)

    def __call__(self, x: Tensor, bounds: Range, bias: Tensor | None) -> Tensor:
        """``bounds``: the range of a static activation, None for its own."""
        low, high = bounds if bounds is not None else self.activation.range_of(x)
        if not self.integer:
            return F.linear(self.activation.fake_quantize(x, low, high), self.weight, bias)
        scale, zero_point = self.activation.parameters(low, high)
        codes = self.activation.quantize(x, scale, zero_point)
        products = torch._int_mm(codes.flatten(0, -2), self.codes).unflatten(0, x.shape[:-1])
        y = products.sub_(zero_point * self.sums).float().mul_(scale * self.scale)
        return y if bias is None else y.add_(bias)


@functools.cache
def exact_integer_matmul() -> bool:
    """Whether u8·s8 products add up exactly here: CPUs without VNNI saturate pairs of them, torch 2.11 has none."""
    x, w = torch.full((16, 64), 255, dtype=torch.uint8), torch.full((64, 16), 127, dtype=torch.int8)
    try:
        return bool((torch._int_mm(x, w) == 255 * 127 * 64).all())
    except RuntimeError:
        return False
