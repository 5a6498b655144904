"""What every observer shares: masks, counting, merging, and honest errors."""

import copy
from abc import abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor
from torchao.quantization.pt2e.observer import ObserverBase

from torchqx.errors import ConfigError, NoCalibrationDataError, NonFiniteError, ShapeError
from torchqx.observers.pt2e import PER_CHANNEL, quantizer_from_pt2e
from torchqx.quantizers import AffineQuantizer


class TensorObserver(ObserverBase):
    """Statistics of one tensor, in buffers of bounded size.

    Called with a tensor [..., K] of any dtype (and optionally which of its rows count), it updates its statistics
    in float32 and hands the tensor on untouched. The other arguments are those with which PT2E constructs an
    observer, so the class itself, or ``with_args(...)`` of it, can stand in a ``QuantizationSpec``.

    Args:
        quantizer: the representation :meth:`calculate_qparams` answers for; made from PT2E's arguments if absent.
        site: named by the errors.

    Subclasses implement ``_update``, ``_range`` and ``_merge``.
    """

    count: Tensor
    splits_channels = False

    def __init__(
        self,
        quantizer: AffineQuantizer | None = None,
        *,
        site: str = "",
        dtype: torch.dtype | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        eps: float = 0.0,
        is_dynamic: bool = False,
    ) -> None:
        if quantizer is None:
            quantizer = quantizer_from_pt2e(dtype, quant_min, quant_max, qscheme, is_dynamic)
        if quantizer.granularity == "channel" and not self.splits_channels:
            raise ConfigError(f"{type(self).__name__} keeps one range for all channels", where=site or "granularity",
                              remedy="use ChannelMinMaxObserver.")
        super().__init__(quantizer.dtype, quantizer.dynamic)
        self.quantizer = quantizer
        self.site = site
        self.eps = eps
        self.quant_min, self.quant_max = quantizer.qmin, quantizer.qmax
        self.ch_axis = -1
        kinds = PER_CHANNEL if quantizer.granularity == "channel" else (
            torch.per_tensor_affine, torch.per_tensor_symmetric)
        self.qscheme = kinds[int(quantizer.symmetric)]
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Record ``x`` and return it.

        Args:
            x: [..., K], any real dtype.
            mask: bool, shaped ``x.shape[:-1]``; rows where it is False (padding) do not count.

        Raises:
            ShapeError: the mask does not fit ``x``, or K is not what this observer saw before.
        """
        # Buffers must stay ordinary tensors even when the model runs under inference_mode.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            rows = self._rows(x.detach(), mask)
            if rows.numel():
                self._follow(x.device)
                self._update(rows)
                self.count += rows.shape[0]
        return x

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The range ``(low, high)`` that the statistics give, float32, 0-dimensional unless per channel.

        Raises:
            NoCalibrationDataError: nothing was observed.
            NonFiniteError: a NaN or an Inf was observed.
        """
        self._require_data()
        low, high = self._range()
        self._require_finite(low, high)
        return low, high

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32) of :attr:`quantizer` for :meth:`bounds`; raises the same errors."""
        scale, zero_point = self.quantizer.parameters(*self.bounds())
        return scale.clamp(min=self.eps), zero_point

    def merge(self, other: "TensorObserver") -> None:
        """Add what ``other`` saw, as if this observer had seen it after its own data; ``other`` stays as it is.

        Raises:
            ConfigError: ``other`` is of another kind.
            ShapeError: the two saw different numbers of channels.
        """
        if type(other) is not type(self):
            raise ConfigError(f"cannot merge {type(other).__name__} into {type(self).__name__}", where=self.site,
                              remedy="merge observers of one kind.")
        if other.count == 0:
            return
        with torch.inference_mode(False), torch.no_grad():
            device = other.count.device if self.count == 0 else self.count.device
            self._follow(device)
            peer = other if other.count.device == device else copy.deepcopy(other).to(device)
            self._merge(peer)
            self.count += peer.count

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Merge over the ranks of ``group``, in rank order: afterwards every rank holds the same statistics.

        Ranks that saw nothing take part. Statistics travel as Python objects because a rank without data does not
        know the number of channels.
        """
        device = self.count.device
        states: list[dict[str, Tensor] | None] = [None] * dist.get_world_size(group)
        dist.all_gather_object(states, {name: value.cpu() for name, value in self.state_dict().items()}, group=group)
        self.load_state_dict(states[0])
        for state in states[1:]:
            peer = copy.deepcopy(self)
            peer.load_state_dict(state)
            self.merge(peer)
        self._follow(device)

    @abstractmethod
    def _update(self, rows: Tensor) -> None:
        """Add ``rows`` [R, K], R > 0, in their own dtype. ``count`` is raised afterwards."""

    @abstractmethod
    def _range(self) -> tuple[Tensor, Tensor]:
        """The range, once something was observed; may be non-finite."""

    @abstractmethod
    def _merge(self, other: "TensorObserver") -> None:
        """Add the statistics of ``other``: same kind, same device, not empty. ``count`` is raised afterwards."""

    def _rows(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1] if x.dim() else 1)
        if mask is None:
            return rows
        if mask.shape != x.shape[:-1] or mask.dtype != torch.bool:
            raise ShapeError(f"{mask.dtype} mask {tuple(mask.shape)} for a tensor {tuple(x.shape)}", where=self.site,
                             remedy="give a bool mask with the tensor's shape but the last dimension.")
        return rows[mask.reshape(-1).to(x.device)]

    def _require_data(self) -> None:
        if self.count == 0:
            raise NoCalibrationDataError(f"{type(self).__name__} saw no data", where=self.site,
                                         remedy="run calibration batches that reach this site, not all padding.")

    def _require_finite(self, *tensors: Tensor) -> None:
        if not all(bool(t.isfinite().all()) for t in tensors):
            raise NonFiniteError("NaN or Inf in the calibration data", where=self.site,
                                 remedy="look for overflow in the model's dtype, or drop the offending batch.")

    def _require_channels(self, seen: int, new: int) -> None:
        if seen != new:
            raise ShapeError(f"{new} channels after {seen}", where=self.site,
                             remedy="calibrate each site with tensors of one width.")

    def _follow(self, device: torch.device) -> None:
        if self.count.device != device:
            self.to(device)

    def _apply(self, fn, recurse=True):
        # model.half() must not round statistics: follow the device only.
        device = fn(self.count).device
        return super()._apply(lambda t: t.to(device), recurse)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # Per-channel buffers get their size from the first data, so a fresh observer takes the saved one.
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != buffer.shape:
                setattr(self, name, torch.empty_like(saved, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
