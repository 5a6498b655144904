"""State-space operators as a quantized model calls them: codes in, codes out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BATCH, STEPS, CHANNELS, STATES, HEADS, WIDTH = 2, 20, 100, 16, 3, 20  # odd where a model's may be
ops = torch.ops.torchqx
INT8 = {"out_dtype": torch.int8}


def _codes(*shape: int) -> Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor, s: Tensor, out: Tensor) -> Tensor:
    return ops.causal_conv1d(x.mT, weight, bias, activation="silu", x_scale=s, weight_scale=s, out_scale=out, **INT8)


def _scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, z: Tensor, s: Tensor,
          out: Tensor) -> tuple[Tensor, Tensor]:
    scales = {f"{name}_scale": s for name in ("u", "delta", "A", "B", "C", "z")}
    return ops.selective_scan(u.mT, delta.mT, a, b.mT, c.mT, z=z.mT, delta_softplus=True, **scales, out_scale=out,
                              **INT8)


def _chunks(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, s: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    scales = {f"{name}_scale": s for name in ("x", "dt", "A", "B", "C")}
    return ops.chunk_scan(x, dt, a, b, c, dt_softplus=True, **scales, out_scale=out, **INT8)


def _step(state: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, s: Tensor,
          out: Tensor) -> tuple[Tensor, Tensor]:
    scales = {f"{name}_scale": s for name in ("x", "dt", "A", "B", "C")}
    after = state.clone()
    return ops.state_update(after, x, dt, a, b, c, dt_softplus=True, **scales, out_scale=out, **INT8), after


def computations() -> list[tuple[str, Callable[..., Any], tuple[Tensor, ...], tuple[str, ...]]]:
    """Name, function, inputs, and the kinds of its kernels."""
    scale, sequence, grouped = torch.tensor([0.02]), (BATCH, STEPS, CHANNELS), (BATCH, STEPS, STATES)
    heads = (BATCH, STEPS, HEADS)
    return [
        ("causal convolution, SiLU, int8", _convolution,
         (_codes(*sequence), _codes(CHANNELS, 4), torch.randn(CHANNELS), scale, 10 * scale), ("user_autotune",)),
        ("selective scan, int8", _scan,
         (_codes(*sequence), _codes(*sequence), _codes(CHANNELS, STATES), _codes(*grouped), _codes(*grouped),
          _codes(*sequence), scale, 10 * scale), ("user_autotune",)),
        ("chunk scan, int8", _chunks,
         (_codes(*heads, WIDTH), _codes(*heads), _codes(HEADS), _codes(BATCH, STEPS, 1, STATES),
          _codes(BATCH, STEPS, 1, STATES), scale, 10 * scale), ("user_autotune",)),
        ("scan step, int8, after a copy of the state", _step,
         (torch.randn(BATCH, CHANNELS, STATES), _codes(BATCH, CHANNELS), _codes(BATCH, CHANNELS),
          _codes(CHANNELS, STATES), _codes(BATCH, STATES), _codes(BATCH, STATES), scale, 10 * scale),
         ("pointwise", "user_autotune")),
    ]
