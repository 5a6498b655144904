"""What the device does at best, measured: the bandwidth of a copy, and bfloat16 and int8 matmuls of torch's library."""

from dataclasses import asdict, dataclass

import torch

from benchmarks.gpu.place import Place
from benchmarks.gpu.timing import Calls, interleaved

SIZES, QUICK_SIZE = (4096, 8192), 64
COPY_BYTES, QUICK_COPY_BYTES = 1 << 30, 1 << 12


@dataclass(frozen=True)
class Limits:
    """Bytes read and written a second; multiply-adds a second."""

    copy: float
    bf16: float
    int8: float

    def seconds(self, *, moved: float, int8: float = 0.0, bf16: float = 0.0) -> float:
        """The least time for ``moved`` bytes and so many multiply-adds of each kind."""
        return max(moved / self.copy, int8 / self.int8 + bf16 / self.bf16)

    def described(self) -> str:
        return (f"copy {self.copy / 1e9:.0f} GB/s (read + write), bf16 matmul {2 * self.bf16 / 1e12:.0f} TFLOP/s, "
                f"int8 matmul {2 * self.int8 / 1e12:.0f} TOP/s")

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def measure(place: Place) -> Limits:
    """The best medians over a few sizes, on random operands: zeros are faster on some devices."""
    size = QUICK_COPY_BYTES if place.quick else COPY_BYTES
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    copy = interleaved(place, {"copy": [lambda: target.copy_(source)]})[0]["copy"]
    rates: dict[str, list[float]] = {"bf16": [], "int8": []}
    for n in (QUICK_SIZE,) if place.quick else SIZES:
        calls = _matmuls(n, place.device)
        for name, timing in interleaved(place, calls)[0].items():
            rates[name].append(n**3 / timing.median())
    return Limits(2 * size / copy.median(), max(rates["bf16"]), max(rates["int8"]))


def _matmuls(n: int, device: torch.device) -> dict[str, Calls]:
    """Both matmuls of [n, n], each run once."""
    x, y = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    p, q = (torch.randint(-128, 128, (n, n), device=device, dtype=torch.int8) for _ in range(2))
    calls: dict[str, Calls] = {"bf16": [lambda: x @ y.T], "int8": [lambda: torch._int_mm(p, q.T)]}
    for call in (c for made in calls.values() for c in made):
        call()
    return calls
