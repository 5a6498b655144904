"""Tensors on their way to another process: as bytes, since torch would otherwise share memory with it."""

import io
from typing import Any

import torch


def pack(value: Any) -> bytes:
    """Tensors and plain values as bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> Any:
    """The inverse of :func:`pack`."""
    return torch.load(io.BytesIO(data))
