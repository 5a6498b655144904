"""A uniform sample of rows, of bounded size."""

import torch
import torch.distributed as dist
from torch import Tensor

from torchqx.errors import ConfigError
from torchqx.observers.base import TensorObserver

KEYS = 1 << 62


class RowReservoir(TensorObserver):
    """A uniform sample of ``capacity`` of the rows seen, without replacement, float32 [capacity, K].

    Every row draws a random key as it arrives and the rows with the smallest keys stay, so the sample of a union is
    found from the samples of its parts: merging needs no randomness. Rows are kept in the order of their keys, so
    any first part of them is a uniform sample too. :attr:`count` is the number of rows seen.

    Args:
        seed: of the keys. The same data in the same batches give the same sample. By default the rank in
            ``torch.distributed``: with equal keys all ranks would keep the rows at the same places.
    """

    keys: Tensor
    sample: Tensor

    def __init__(self, *args, capacity: int = 512, seed: int | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if capacity < 1:
            raise ConfigError(f"capacity {capacity}", where="capacity", remedy="keep at least one row.")
        self.capacity = capacity
        self.seed = _rank() if seed is None else seed
        self.register_buffer("keys", torch.empty(0, dtype=torch.int64))
        self.register_buffer("sample", torch.empty(0, 0))

    @property
    def rows(self) -> Tensor:
        """The sample, float32 [min(count, capacity), K].

        Raises:
            NoCalibrationDataError: nothing was observed.
            NonFiniteError: a sampled row holds a NaN or an Inf.
        """
        self._require_data()
        self._require_finite(self.sample)
        return self.sample

    def _update(self, rows: Tensor) -> None:
        # Seeded by what was seen so far: state lives in the buffers alone, and survives saving and loading.
        generator = torch.Generator().manual_seed(self.seed * 0x9E3779B9 + int(self.count))
        keys = torch.randint(KEYS, (rows.shape[0],), generator=generator).to(rows.device)
        if self.keys.shape[0] == self.capacity:
            chosen = keys < self.keys[-1]
            keys, rows = keys[chosen], rows[chosen]
        self._keep(keys, rows)

    def _range(self) -> tuple[Tensor, Tensor]:
        return torch.aminmax(self.sample)

    def _merge(self, other: "RowReservoir") -> None:
        self._keep(other.keys, other.sample)

    def _keep(self, keys: Tensor, rows: Tensor) -> None:
        if self.count:
            self._require_channels(self.sample.shape[1], rows.shape[1])
            if not len(keys):
                return
            keys, order = torch.cat((self.keys, keys)).sort(stable=True)
            order = order[: self.capacity]
            kept = self.keys.shape[0]
            fresh = order >= kept
            sample = rows.new_empty((len(order), rows.shape[1]), dtype=torch.float32)
            sample[~fresh] = self.sample[order[~fresh]]
            sample[fresh] = rows[order[fresh] - kept].float()
        else:
            keys, order = keys.sort(stable=True)
            sample = rows[order[: self.capacity]].float()
        self.keys, self.sample = keys[: self.capacity].clone(), sample


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
