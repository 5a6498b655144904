"""How the state-space operators get to their Triton kernels: called on CUDA tensors, and compiled for a GPU.

Called, a kernel is launched. Compiled, the operator comes apart into the launch when AOTAutograd makes the graph
functional, as ``torch.library.triton_op`` does for operators of its own: Inductor then sees which tensors the kernel
writes, and launches it without a call through the dispatcher.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.library import Library, wrap_triton

Given = Mapping[str, Any]


def register(library: Library, name: str, run: Callable[[Given], Any]) -> None:
    """Let ``run`` compute ``torchqx::name`` on CUDA devices; float64 goes to the formula, ``torchqx::name_naive``.

    Args:
        run: takes the operator's arguments by name, all of them, and launches by :func:`launch`.
    """
    op, naive = (getattr(torch.ops.torchqx, n).default for n in (name, f"{name}_naive"))

    def traced(mode: FunctionalTensorMode, op: OpOverload, types: Sequence[type], args: tuple[Any, ...],
               kwargs: dict[str, Any] | None = None) -> Any:
        given = named(op, args, kwargs or {})
        if not _is_on_cuda(given) or _in_double(given) or torch.compiler.is_exporting():
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return run(given)

    library.impl(name, on_device(op, naive, run), "CUDA")
    torch.library.register_torch_dispatch(f"torchqx::{name}", FunctionalTensorMode, traced, lib=library)


def on_device(op: OpOverload, naive: Callable[..., Any], run: Callable[[Given], Any]) -> Callable[..., Any]:
    """What a call of ``op`` on CUDA tensors does; Triton launches on the current device."""
    def called(*args: Any, **kwargs: Any) -> Any:
        given = named(op, args, kwargs)
        if _in_double(given):
            return naive(*args, **kwargs)
        with torch.cuda.device(next(v.device for v in given.values() if isinstance(v, Tensor))):
            return run(given)

    return called


def launch(kernel: Any, grid: tuple[Any, ...], arguments: Given, **options: int) -> None:
    """Launch ``kernel``, or put its launch into the graph that is being traced.

    Args:
        options: num_warps and num_stages, where not Triton's own.
    """
    traced = any(isinstance(value, FunctionalTensor) for value in arguments.values())
    (wrap_triton(kernel) if traced else kernel)[grid](**arguments, **options)


def operand(given: Given, name: str, axes: str, channels: int = 0, **absent: int) -> dict[str, Any]:
    """A kernel's arguments for the operand ``name``: itself, and the stride of each of ``axes`` as ``name_axis``.

    Args:
        channels: where more than 0, also ``name_per``, how many of so many channels share a scale.
        absent: strides of axes that it has not.
    """
    t, scale = given[name], given.get(f"{name}_scale")
    strides = [0] * len(axes) if t is None else t.stride()
    found = {name: t} | {f"{name}_{axis}": s for axis, s in zip(axes, strides, strict=True)}
    found |= {f"{name}_{axis}": stride for axis, stride in absent.items()}
    if f"{name}_scale" in given:
        found[f"{name}_scale"] = scale
    if channels:
        found[f"{name}_per"] = per_scale(scale, channels)
    return found


def per_scale(scale: Tensor | None, channels: int) -> int:
    """How many of ``channels`` neighbours share one scale."""
    return channels if scale is None else channels // scale.numel()


def blocks(size: int, block: int) -> int:
    """How many ``block`` cover ``size``."""
    return -(-size // block)


def named(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name, with the schema's defaults; it names dtypes by numbers."""
    schema = op._schema.arguments
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()} | {"out_dtype": torch.float32}
    return defaults | dict(zip((a.name for a in schema), args, strict=False)) | dict(kwargs)


def _is_on_cuda(given: Given) -> bool:
    return any(isinstance(value, Tensor) and value.device.type == "cuda" for value in given.values())


def _in_double(given: Given) -> bool:
    return any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in given.values())
