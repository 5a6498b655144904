"""A float linear with few rows beside torch's, on the layers of SmolLM2-135M and its head.

Call after call reads another weight, as in a model: the weights come from memory.
"""

from collections.abc import Callable
from functools import partial
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.case import OURS, Arms, Case

LAYERS = [(576, 576), (576, 1536), (1536, 576), (576, 49152), (2048, 2048)]
ROWS = (1, 4, 8)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
BEYOND_CACHES = 1 << 27  # bytes of all weights of a case


def cases() -> list[Case]:
    """Every layer with every number of rows, in both dtypes."""
    return [Case(f"few rows {name}", f"{m} x {k} x {n}", partial(arms, m, k, n, dtype))
            for name, dtype in DTYPES.items() for m in ROWS for k, n in LAYERS]


def arms(m: int, k: int, n: int, dtype: torch.dtype) -> Arms:
    """Ours and torch's on the same operands."""
    x, bias = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype)
    weights = torch.randn(max(2, BEYOND_CACHES // (n * k * dtype.itemsize)), n, k, dtype=dtype)
    return {OURS: _on_each(weights, lambda weight: torch.ops.torchqx.few_rows_linear(x, weight, bias)),
            "torch": _on_each(weights, lambda weight: F.linear(x, weight, bias))}


def _on_each(weights: Tensor, call: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """Each call on the next weight."""
    turn = cycle(weights)
    return lambda: call(next(turn))
