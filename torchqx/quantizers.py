"""The affine integer quantizer: how a tensor is represented by integers, a scale, and a zero point.

    q = clamp(round(x / scale) + zero_point, qmin, qmax)        x ≈ (q - zero_point) · scale
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchqx.errors import ConfigError

Granularity = Literal["tensor", "channel", "token", "group", "none"]
GRANULARITIES = ("tensor", "channel", "token", "group", "none")
SMALLEST_SCALE = 1e-12


@dataclass(frozen=True)
class AffineQuantizer:
    """Integer representation of a tensor.

    Attributes:
        bits: 2 to 8. Below 8 the same integer path runs with a narrower range.
        symmetric: the range is ``[-t, t]`` and the zero point its middle; else ``[lo, hi]`` with 0 inside.
        granularity: what shares one scale: the whole ``tensor``; one ``channel`` (a weight's row, [N, K] -> N
            scales); one ``token`` (an activation's row, [..., K] -> [...] scales); or ``group`` consecutive
            elements of a row (-> [..., K / group_size] scales). ``none``: values stay as they are, as the activations
            of weight-only quantization do.
        group_size: elements of a group, for granularity ``group``.
        dynamic: the range is measured at run time instead of at calibration.
        signed: storage is int8 around 0 (weights), else uint8 from 0 (activations: the CPU's fast u8·s8 matmuls).
        clip_ratio: the share of the range that the codes cover: finer steps, and what lies outside is cut off.

    Raises:
        ConfigError: for a field outside its range.
    """

    bits: int = 8
    symmetric: bool = False
    granularity: Granularity = "tensor"
    group_size: int | None = None
    dynamic: bool = False
    signed: bool = False
    clip_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9):
            raise ConfigError(f"{self.bits} bits", where="bits", remedy="choose 2 to 8.")
        if self.granularity not in GRANULARITIES:
            raise ConfigError(f"unknown granularity {self.granularity!r}", where="granularity",
                              remedy=f"choose one of {', '.join(GRANULARITIES)}.")
        if (self.granularity == "group") != (self.group_size is not None):
            raise ConfigError("group_size goes with granularity 'group', and only with it", where="group_size",
                              remedy="give both or neither.")
        if self.granularity == "none" and not self.dynamic:
            raise ConfigError("what is not quantized has no static range", where="dynamic", remedy="give dynamic=True.")
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"group of {self.group_size}", where="group_size", remedy="give a positive size.")
        if not isinstance(self.clip_ratio, int | float) or not 0 < self.clip_ratio <= 1:
            raise ConfigError(f"{self.clip_ratio!r} is no share of the range", where="clip_ratio",
                              remedy="give above 0, at most 1.")

    @property
    def qmin(self) -> int:
        """Smallest code. A symmetric quantizer leaves out the lowest code so that the range is balanced."""
        low = -(1 << (self.bits - 1)) if self.signed else 0
        return low + 1 if self.symmetric else low

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8 if self.signed else torch.uint8

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32) for ranges ``[low, high]``; same shape as the bounds."""
        low, high = low.float().clamp(max=0) * self.clip_ratio, high.float().clamp(min=0) * self.clip_ratio
        if self.symmetric:
            scale = torch.maximum(-low, high) * 2 / (self.qmax - self.qmin)
            zero_point = torch.full_like(scale, (self.qmax + self.qmin) // 2)
            return scale.clamp(min=SMALLEST_SCALE), zero_point.to(torch.int32)
        scale = ((high - low) / (self.qmax - self.qmin)).clamp(min=SMALLEST_SCALE)
        zero_point = torch.round(self.qmin - low / scale).clamp(self.qmin, self.qmax)
        return scale, zero_point.to(torch.int32)

    def range_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of ``x`` at this granularity, shaped to broadcast against :meth:`grouped`."""
        if self.granularity == "tensor":
            return torch.aminmax(x)
        x = self.grouped(x)
        return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)  # 20 times faster than aminmax along a dimension

    def grouped(self, x: Tensor) -> Tensor:
        """``x`` with its last dimension split into groups, [..., K] -> [..., K/g, g]; unchanged for other kinds."""
        if self.group_size is None:
            return x
        if x.shape[-1] % self.group_size:
            raise ConfigError(f"rows of {x.shape[-1]} do not split into groups of {self.group_size}",
                              where="group_size", remedy="choose a divisor of the row length.")
        return x.unflatten(-1, (-1, self.group_size))

    def quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Integer codes of ``x`` in :attr:`dtype`, shaped as ``x``. Bounds broadcast against ``grouped(x)``."""
        return self._rounded(x, scale, zero_point).to(self.dtype).reshape(x.shape)

    def dequantize(self, q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Real values of codes ``q``, in the dtype of ``scale``."""
        return ((self.grouped(q).to(scale.dtype) - zero_point) * scale).reshape(q.shape)

    def fake_quantize(self, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """``dequantize(quantize(x))`` with the given range, or with the range of ``x`` itself."""
        if self.granularity == "none":
            return x
        if low is None or high is None:
            low, high = self.range_of(x)
        scale, zero_point = self.parameters(low, high)
        q = self._rounded(x, scale, zero_point)
        return q.sub_(zero_point).mul_(scale).reshape(x.shape).to(x.dtype)

    def _rounded(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        # In place: solvers call this thousands of times, and most of it was allocating.
        return (self.grouped(x) / scale).round_().add_(zero_point).clamp_(self.qmin, self.qmax)
