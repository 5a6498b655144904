"""The rates of this machine, for the cost model: measured once in a few hundred milliseconds, then read from a file.

They lie in a folder in Inductor's cache, by processor, versions, C++ kernel, this file, and number of threads.
"""

import functools
import hashlib
import json
import math
import platform
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor.codecache import write_atomic
from torch._inductor.runtime.cache_dir_utils import cache_dir

from torchqx.cost_model import Rates
from torchqx.inductor_kernels.int8_linear import column_sums, load, pack_int8_weight, weight_only_linear
from torchqx.inductor_kernels.int8_linear.aten import TAKES_UNSIGNED, int8_linear_general_aten
from torchqx.inductor_kernels.int8_linear.cpu import SOURCES, is_supported
from torchqx.warm_start import PACKAGE, digest_of

ROWS = (1, 4, 16, 64, 128)
SIZE, CALL_SIZE = 768, 24  # of the timed weights, and of those that are next to nothing
GROUPS = 12  # of every row
PASS_ELEMENTS = 1 << 18
NO_EPILOGUE = ("none", None, None, None, 0, 255, torch.float32)
FEWEST, ROUNDS, SMALL_REPEATS = 3, 12, 5
SECONDS = 3.0  # after which a busy machine gets no more rounds than the fewest: several times what a quiet one takes
CPU = torch.device("cpu")
MEASURED = (*SOURCES, Path(__file__))

_LOCK = threading.Lock()  # two measurements at once would time each other


def machine_rates() -> Rates:
    """For the number of threads that torch has now."""
    with _LOCK:
        return _rates(torch.get_num_threads())


@functools.cache
def _rates(threads: int) -> Rates:
    versions = torch.__version__, version(PACKAGE), digest_of(MEASURED)
    key = json.dumps([processor(), *versions, is_supported(CPU), threads])
    path = Path(cache_dir()) / "torchqx" / f"rates-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if path.exists():
        return decode(path.read_text())
    rates, undisturbed = measure()
    if undisturbed:
        write_atomic(str(path), encode(rates), make_dirs=True)
    return rates


def processor() -> str:
    """The model's name as the system gives it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line for line in lines if line.startswith(("model name", "cpu family", "model\t", "stepping"))]
    return "; ".join(sorted(set(models))) or f"{platform.machine()} {platform.processor()}"


def encode(rates: Rates) -> str:
    """As JSON text."""
    return json.dumps({"rows": rates.rows, "matmul": rates.matmul, "call": rates.call, "byte": rates.byte})


def decode(text: str) -> Rates:
    """The inverse of :func:`encode`."""
    data = json.loads(text)
    return Rates(tuple(data["rows"]), {k: tuple(v) for k, v in data["matmul"].items()}, data["call"], data["byte"])


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def measure() -> tuple[Rates, bool]:
    """Time the kernels on random operands, outside of any graph, with the threads that torch has.

    Returns the rates, and whether there was time for all rounds. The caller's default dtype and device, autocast and
    random numbers have no part in it.

    All in turns, so that what disturbs the machine for a while spoils no kernel's times altogether, and so that a
    weight comes from where it is in a model, which is not the nearest cache.
    """
    smallest = {name: make(1) for name, (_, make) in _kernels(CALL_SIZE).items()}
    kernels = _kernels(SIZE)
    calls: dict[tuple[str, int], Callable[[], object]] = {(name, 0): call for name, call in smallest.items()}
    calls |= {(name, rows): make(rows) for name, (_, make) in kernels.items() for rows in ROWS}
    source = _ones(PASS_ELEMENTS)
    target = torch.empty_like(source)
    calls["pass", 0] = lambda: target.copy_(source)
    best = dict.fromkeys(calls, math.inf)
    started = time.perf_counter()
    done = 0
    while done < FEWEST or (done < ROUNDS and time.perf_counter() - started <= SECONDS):
        done += 1
        for key, call in calls.items():
            best[key] = min(best[key], *(_seconds(call) for _ in range(1 if key[1] else SMALL_REPEATS)))
    byte, matmul = best["pass", 0] / (2 * source.nbytes), {}
    for name in kernels:
        each = [max(byte, (best[name, rows] - best[name, 0]) / SIZE**2) for rows in ROWS]  # noise makes no weight free
        matmul[name] = tuple(min(each[i:]) for i in range(len(ROWS)))  # fewer rows never take longer
    call = {name: best[name, 0] / inside for name, (inside, _) in kernels.items()}
    return Rates(ROWS, matmul, call, byte), done >= ROUNDS


Make = Callable[[int], Callable[[], Tensor]]


def _kernels(size: int) -> dict[str, tuple[int, Make]]:
    """Kernel -> how many calls are in one, and rows -> what to time, on a weight [size, size]."""
    weight = torch.randint(-127, 128, (size, size), generator=torch.Generator(CPU).manual_seed(0), dtype=torch.int8,
                           device=CPU)
    scales = _ones(size), _ones(size, GROUPS)
    kernels: dict[str, tuple[int, Make]] = {
        "integer": (1, functools.partial(_integer, weight)),
        "group": (GROUPS, functools.partial(_grouped, weight, scales[1])),
    }
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        kernels[name] = 1, functools.partial(_floating, weight.to(dtype))
        kernels[f"{name} weight only"] = 1, functools.partial(_weight_only, weight, scales[0], dtype)
        kernels[f"{name} weight only grouped"] = 1, functools.partial(_weight_only, weight, scales[1], dtype)
    if is_supported(CPU):
        load()
        kernels["packed"] = 1, functools.partial(_packed, pack_int8_weight(weight), column_sums(weight))
    return kernels


def _ones(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(size, dtype=dtype, device=CPU)


def _integer(weight: Tensor, rows: int) -> Callable[[], Tensor]:
    codes = _ones(rows, len(weight), dtype=torch.uint8 if TAKES_UNSIGNED else torch.int8)
    return lambda: torch._int_mm(codes, weight.T)


def _grouped(weight: Tensor, scales: Tensor, rows: int) -> Callable[[], Tensor]:
    codes, zero_points = _ones(rows, len(weight), dtype=torch.uint8), _ones(rows, 1, dtype=torch.int32)
    operands = (codes, weight, scales, None, _ones(rows, 1), zero_points, None, *NO_EPILOGUE)
    return lambda: int8_linear_general_aten(*operands)


def _floating(weight: Tensor, rows: int) -> Callable[[], Tensor]:
    x, bias = weight.new_ones(rows, len(weight)), weight.new_ones(len(weight))
    return lambda: F.linear(x, weight, bias)


def _weight_only(weight: Tensor, scales: Tensor, dtype: torch.dtype, rows: int) -> Callable[[], Tensor]:
    operands = _ones(rows, len(weight), dtype=dtype), weight, scales, None, None, dtype
    return lambda: weight_only_linear(*operands)


def _packed(weight: Tensor, sums: Tensor, rows: int) -> Callable[[], Tensor]:
    size = len(sums)
    operands = (_ones(rows, size, dtype=torch.uint8), weight, _ones(size), sums, _ones(1), _ones(1, dtype=torch.int32),
                _ones(size), *NO_EPILOGUE)
    return lambda: torch.ops.torchqx.int8_linear.default(*operands)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
