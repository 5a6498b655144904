"""The activation functions that the kernels know, by name."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqx.errors import ConfigError


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the activation of CLIP: any shape and dtype. Torch has no name for it."""
    return x * torch.sigmoid(1.702 * x)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}
ACTIVATIONS = ("none", *FUNCTIONS)


def activate(y: Tensor, activation: str, gate: int | None = None) -> Tensor:
    """One of ``ACTIVATIONS``. With a ``gate``, 0 or 1, that half of the columns takes the activation and multiplies
    the other: [..., 2 N] -> [..., N].

    Raises:
        ConfigError: no kernel knows the activation.
    """
    if gate is not None:
        halves = y.chunk(2, -1)
        return activate(halves[gate], activation) * halves[1 - gate]
    if activation == "none":
        return y
    if activation not in FUNCTIONS:
        raise ConfigError(f"unknown activation {activation!r}", where="int8_linear",
                          remedy=f"use {', '.join(ACTIVATIONS)}.")
    return FUNCTIONS[activation](y)
