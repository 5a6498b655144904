"""Calibrating calls that show nothing new."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def digest_of(code: str, args: Sequence[Any]) -> bytes:
    """Equal for two calls of one graph with the same parameters and equal other inputs.

    A row that another call repeats would find the range that it set itself, and seem to fit what others give it.

    Args:
        code: of the graph.
    """
    digest = blake2b(code.encode(), digest_size=16)
    for argument in args:
        if isinstance(argument, Tensor) and not isinstance(argument, Parameter):
            digest.update(f"{argument.dtype} {tuple(argument.shape)}".encode())
            dense = argument.detach().cpu().contiguous().resolve_conj().resolve_neg()
            digest.update(dense.reshape(-1).view(torch.uint8).numpy())
        else:
            digest.update(str(id(argument) if isinstance(argument, Parameter) else argument).encode())
    return digest.digest()
