"""C++ operators compiled by Inductor's own code cache: no build step, one compilation per machine and source."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._inductor.codecache import CppCodeCache
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

from torchqx.errors import UnsupportedError

TENSORS = Path(__file__).with_name("tensors.h")


class _TorchCppCodeCache(CppCodeCache):
    """The code cache with torch's headers and libraries. File locks in the cache folder make processes take turns."""

    cache = {}  # noqa: RUF012 (the base class's own shape: one dictionary per kind of code)
    cpp_compile_command_flags = {"include_pytorch": True, "shared": True}  # noqa: RUF012


@functools.cache
def has_compiler() -> bool:
    """Whether Inductor finds a C++ compiler."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


@functools.cache
def load_operators(sources: tuple[Path, ...], flags: tuple[str, ...] = ()) -> None:
    """Compile ``sources``, joined behind ``tensors.h`` into one file, and run their operator registrations.

    One file, because the code cache keys on text: a header it does not see would not be noticed when it changes.

    Raises:
        UnsupportedError: the compiler failed.
    """
    code = "\n".join(f'#line 1 "{source.name}"\n{source.read_text()}' for source in (TENSORS, *sources))
    try:
        _TorchCppCodeCache.load(code, device_type="cpu", extra_flags=flags)
    except CppCompileError as error:
        raise UnsupportedError(f"the C++ compiler failed: {error}", where=sources[-1].name,
                               remedy="install a C++20 compiler (g++ 11 or later), or compile with "
                                      "options={'lowering': 'eager'}.") from error


def build_at_first_call(library: torch.library.Library, name: str, supported: Callable[..., bool],
                        load: Callable[[], None], formula: Callable[..., Any]) -> Callable[..., Any]:
    """Register what ``torchqx::name`` does where no compiled kernel is registered, and return it: ``load`` builds the
    kernel where the call's arguments are ``supported`` (a graph from Inductor's cache may be the first to call it);
    elsewhere ``formula`` computes.
    """

    def first_call(*args: Any) -> Any:
        if not supported(*args):
            return formula(*args)
        load()
        return getattr(torch.ops.torchqx, name).default(*args)

    library.impl(name, first_call, "CompositeExplicitAutograd")
    return first_call
