"""The Hadamard kernels beside a copy, the dense matrix, and two butterflies in PyTorch, in turns.

    python -m benchmarks.hadamard [--length 576 ...] [--dtype float32 ...] [--mib 48] [--threads 2]

Nanoseconds per element; the last columns are times ours. Every arm makes its own output, a copy too, in memory that is
already mapped: pages new to the process would cost each arm more than the work does. Time of one thread is what it ran
for, so that others on the same core count less; each arm's best turn.

``limit`` is the arithmetic alone, times the copy: no kernel of this algorithm can be nearer to a copy, however well it
hides memory. Per element of a block of base n and power 2^k, in vector instructions, of which a core of AMD Zen 4 does
two a clock on 16 floats each (--rate):

    n / 4 + 2  for each base: results from sums of four rows, and those sums;   k  levels of butterflies;
    min(k, 4)  exchanges of lanes within vectors;                               1  scale
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
import typer
from torch import Tensor
from torchao.prototype.spinquant.hadamard_utils import get_hadK, matmul_hadU

from benchmarks.memory import keep_memory
from benchmarks.records import report
from torchqx.hadamard_matrices import bases_of, factors_of
from torchqx.inductor_kernels.hadamard import load
from torchqx.rotations import Hadamard, choose

LENGTHS = [576, 768, 960, 1536, 2048, 2304, 3072, 4096, 5120, 6912, 8960, 11008, 14336]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BESIDE = ("static", "token", "dense", "butterfly", "torchao")
HEADER = ("length", "dtype", "base", "copy ns", "ours ns", "x copy", "limit", *BESIDE)


def butterfly(x: Tensor, rotation: Hadamard, base: Tensor) -> Tensor:
    """Plain PyTorch: one stack of sums and differences per power of two, then the base."""
    power = rotation.block // len(base)
    y, width = x.reshape(-1, len(base), power), 1
    while width < power:
        pairs = y.reshape(len(y), len(base), -1, 2, width)
        y = torch.cat((pairs[..., :1, :] + pairs[..., 1:, :], pairs[..., :1, :] - pairs[..., 1:, :]), -2)
        width *= 2
    y = y.reshape(len(x), len(base), power)
    return (base.T @ y).reshape(x.shape) * rotation.block**-0.5


def arms(x: Tensor, few: Tensor, rotation: Hadamard, base: Tensor) -> dict[str, tuple[Callable[[], object], int]]:
    """Name -> call and the elements it works on: all of ``x``, or for the slow arms ``few`` of its rows."""
    k, block, signs = x.shape[-1], rotation.block, rotation.signs(x.shape[-1])
    mul, add = torch.full((k,), 30.0), torch.full((k,), 128.0)
    dense, ops = rotation.matrix(k, torch.float32).to(x.dtype), torch.ops.torchqx
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: x.clone(), x.numel()),
        "ours": (lambda: ops.hadamard(x, signs, block, False), x.numel()),
        "static": (lambda: ops.hadamard_quantize_static(x, signs, block, mul, add, 0, 255), x.numel()),
        "token": (lambda: ops.hadamard_quantize_per_token(x, signs, block, None, None, 0, 255, False), x.numel()),
        "dense": (lambda: few @ dense, few.numel()),
        "butterfly": (lambda: butterfly(few, rotation, base), few.numel()),
    }
    with contextlib.suppress(AssertionError):  # torchao knows few lengths
        factors = get_hadK(k)
        calls["torchao"] = lambda: matmul_hadU(few, *factors), few.numel()
    return calls


def instructions(block: int) -> float:
    """The vector instructions per element that the limit counts: see above."""
    base, power = factors_of(block)
    levels = power.bit_length() - 1
    return sum(n / 4 + 2 for n in bases_of(base)) + levels + min(levels, 4) + 1


def best_times(calls: dict[str, tuple[Callable[[], object], int]], rounds: int, threads: int) -> dict[str, float]:
    """Nanoseconds per element."""
    now = time.thread_time if threads == 1 else time.perf_counter
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(rounds + 1):
        for name, (call, elements) in calls.items():
            start = now()
            call()
            if turn:  # the first one warms up
                best[name] = min(best[name], (now() - start) / elements * 1e9)
    return best


def main(
    length: Annotated[list[int] | None, typer.Option(help="Elements of a row; default thirteen real models'.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(DTYPES)}.")] = None,
    mib: Annotated[int, typer.Option(help="Size of the tensor; more than the caches hold.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each arm.")] = 10,
    threads: Annotated[int, typer.Option(min=1, help="Of every arm.")] = 1,
    rate: Annotated[float, typer.Option(help="Elements a thread adds per ns; default 2 · 16 lanes · 3.6 GHz.")] = 116,
    record: Annotated[str | None, typer.Option(help="Name of the record; default hadamard-<threads>t.")] = None,
) -> None:
    """Time every arm on every length and dtype."""
    keep_memory()
    torch.set_num_threads(threads)
    load()
    table: list[Sequence[str]] = []
    results = []
    for k in length or LENGTHS:
        rotation = choose(k, seed=0)
        for name in dtype or DTYPES:
            base = torch.ops.torchqx.hadamard_base(torch.empty(0), rotation.block).to(DTYPES[name])
            x = torch.randn(mib * 2**20 // DTYPES[name].itemsize // k, k).to(DTYPES[name])
            with torch.inference_mode():
                ns = best_times(arms(x, x[: max(16, 2**17 // k)], rotation, base), rounds, threads)
            limit = instructions(rotation.block) / (rate * threads)
            table.append((str(k), name, str(len(base)), f"{ns['copy']:.3f}", f"{ns['ours']:.3f}",
                          f"{ns['ours'] / ns['copy']:.2f}", f"{limit / ns['copy']:.2f}",
                          *(f"{ns[arm] / ns['ours']:.2f}" if arm in ns else "" for arm in BESIDE)))
            results.append({"length": k, "dtype": name, "base": len(base),
                            "ns_per_element": ns, "limit_ns": limit})
    title = f"Hadamard rotation of {mib} MiB, {threads} thread{'s' * (threads > 1)}"
    report(record or f"hadamard-{threads}t", title, HEADER, table,
           {"mib": mib, "rounds": rounds, "threads": threads, "rate": rate, "results": results})


if __name__ == "__main__":
    typer.run(main)
