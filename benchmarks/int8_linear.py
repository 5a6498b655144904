"""The int8 linear kernel beside oneDNN's: interleaved, best of several rounds, microseconds and share of the peak rate.

    python -m benchmarks.int8_linear [--rows 1 4 16 128 512 1024] [--threads 1 2]

`_int_mm` is the bare integer matmul on a plain weight; `qlinear` is prepacked, with scales, bias and a float result,
and as `qlinear gelu u8` with activation and requantization too. Ours come with the same, and as `ours + bf16` with a
scale and zero point per row and a residual. The peak is `_int_mm`'s where little but the products costs: on few rows
and columns of many elements.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.limits import least_seconds
from torchqx.inductor_kernels.int8_linear import column_sums, load, pack_int8_weight

SHAPES = [(384, 1152), (384, 384), (384, 1536), (1536, 384), (768, 2304), (768, 768), (768, 3072), (3072, 768),
          (576, 960), (576, 3072), (1536, 576), (576, 49152)]
PEAK_SHAPE = (384, 2048, 384)  # short, so that some call runs undisturbed
SCALE, ZERO_POINT, OUT_SCALE, OUT_ZERO_POINT = 0.02, 117, 0.05, 100


def arms(m: int, k: int, n: int) -> dict[str, Callable[[], torch.Tensor]]:
    """The calls to compare, on the same random operands."""
    x = torch.randint(0, 256, (m, k), dtype=torch.uint8)
    qdata = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    weight_scale, bias = torch.rand(n) * 0.01 / k**0.5, torch.randn(n)
    packed, sums = pack_int8_weight(qdata), column_sums(qdata)
    scale, zero_point = torch.tensor([SCALE]), torch.tensor([ZERO_POINT], dtype=torch.int32)
    out_mul, out_add = torch.tensor([1 / OUT_SCALE]), torch.tensor([float(OUT_ZERO_POINT)])
    prepacked = torch.ops.onednn.qlinear_prepack(qdata, list(x.shape))
    zeros = torch.zeros(n, dtype=torch.int32)
    row_scale, row_zero_point = scale.expand(m).contiguous(), zero_point.expand(m).contiguous()
    residual = torch.randn(m, n, dtype=torch.bfloat16)

    def ours(activation: str, mul: torch.Tensor | None, add: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.torchqx.int8_linear.default(x, packed, weight_scale, sums, scale, zero_point, bias, activation,
                                                     None, mul, add, 0, 255, torch.float32)

    def per_token() -> torch.Tensor:
        return torch.ops.torchqx.int8_linear.default(x, packed, weight_scale, sums, row_scale, row_zero_point, bias,
                                                     "none", residual, None, None, 0, 255, torch.bfloat16)

    def qlinear(activation: str, dtype: torch.dtype, out_scale: float, out_zero: int) -> torch.Tensor:
        return torch.ops.onednn.qlinear_pointwise.default(x, SCALE, ZERO_POINT, prepacked, weight_scale, zeros, bias,
                                                          out_scale, out_zero, dtype, activation, [], "none")

    return {
        "_int_mm": lambda: torch._int_mm(x, qdata.T),
        "qlinear": lambda: qlinear("none", torch.float32, 1.0, 0),
        "ours": lambda: ours("none", None, None),
        "ours + bf16": per_token,
        "qlinear gelu u8": lambda: qlinear("gelu", torch.uint8, OUT_SCALE, OUT_ZERO_POINT),
        "ours gelu u8": lambda: ours("gelu", out_mul, out_add),
    }


def peak_rate() -> float:
    """Multiply-adds a second."""
    m, k, n = PEAK_SHAPE
    x, weight = torch.randint(0, 256, (m, k), dtype=torch.uint8), torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return m * k * n / least_seconds(lambda: torch._int_mm(x, weight.T), 100)


def best_times(calls: Sequence[Callable[[], object]], rounds: int, round_seconds: float) -> list[float]:
    """Seconds per call: the best round of each, the rounds taking turns."""
    best = [float("inf")] * len(calls)
    for call in calls:
        call()
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start, count = time.perf_counter(), 0
            while count < 2 or time.perf_counter() - start < round_seconds:
                call()
                count += 1
            best[i] = min(best[i], (time.perf_counter() - start) / count)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 128, 512, 1024])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--round-seconds", type=float, default=0.002)
    arguments = parser.parse_args()
    load()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        peak = peak_rate()
        print(f"{threads} threads  peak {peak / 1e9:.0f} G multiply-adds a second", flush=True)
        for m in arguments.rows:
            for k, n in SHAPES:
                calls = arms(m, k, n)
                with torch.inference_mode():
                    times = best_times(list(calls.values()), arguments.rounds, arguments.round_seconds)
                cells = "  ".join(f"{name} {t * 1e6:8.1f} us {m * k * n / t / peak:4.0%}"
                                  for name, t in zip(calls, times, strict=True))
                print(f"{threads} threads  {m:5d} x {k:4d} x {n:4d}  {cells}", flush=True)


if __name__ == "__main__":
    main()
