"""What Inductor's generated program says about itself, read from its text."""

import ast
import re
from dataclasses import dataclass

from torchqx.errors import UnsupportedError

_LOADED = "async_compile.triton"
_EXTERN = ("extern_kernels.", "torch.ops.", "aten.")
_NO_WORK = ("torch.ops.inductor._reinterpret_tensor",)


@dataclass(frozen=True)
class GeneratedKernel:
    """A kernel that Inductor wrote, or a user's kernel as Inductor keeps it.

    Attributes:
        origins: the ATen ops it computes, as "aten.name", in the order in which Inductor lists them.
        kind: the heuristic that launches it: "pointwise", "reduction", "persistent_reduction", "template", ...
        source: a module that defines it under ``name``, decorated.
    """

    name: str
    origins: tuple[str, ...]
    kind: str
    source: str


@dataclass(frozen=True)
class Launch:
    """One launch; ``numbers`` are its arguments where those are literal integers, else None."""

    kernel: GeneratedKernel
    numbers: tuple[int | None, ...]


@dataclass(frozen=True)
class WrapperText:
    """``launches`` and ``extern_calls`` (library and operator calls) in the order of the program."""

    kernels: tuple[GeneratedKernel, ...]
    launches: tuple[Launch, ...]
    extern_calls: tuple[str, ...]


def read_wrapper(code: str) -> WrapperText:
    """The kernels of a generated program, and the order in which it calls them.

    Raises:
        UnsupportedError: the text has not the form that the supported torch versions give it.
    """
    tree, lines = ast.parse(code), code.splitlines()
    kernels: dict[str, GeneratedKernel] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and \
                ast.unparse(node.value.func) == _LOADED:
            name, source = (ast.literal_eval(argument) for argument in node.value.args[:2])
            kernels[ast.unparse(node.targets[0])] = GeneratedKernel(
                name, _origins(lines, node.lineno), _kind(source), source)
    launches, extern = [], []
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        if function.name != "call" and not function.name.startswith("partition_"):
            continue
        for call in (n for n in ast.walk(function) if isinstance(n, ast.Call)):
            name = ast.unparse(call.func)
            if name.removesuffix(".run") in kernels:
                launches.append((call.lineno, Launch(kernels[name.removesuffix(".run")], _numbers(call))))
            elif name.startswith(_EXTERN) and name not in _NO_WORK:
                extern.append((call.lineno, name))
    if len({launch.kernel.name for _, launch in launches}) != len(kernels):
        raise UnsupportedError("a generated kernel that nothing launches", where="torchqx.testing.wrapper",
                               remedy="see how this torch version writes launches.")
    launches.sort(key=lambda item: item[0])
    return WrapperText(tuple(kernels.values()), tuple(launch for _, launch in launches),
                       tuple(name for _, name in sorted(extern)))


def _origins(lines: list[str], lineno: int) -> tuple[str, ...]:
    """Of the comment right above line ``lineno``."""
    above = lineno - 2
    while above >= 0 and lines[above].startswith("#"):
        found = re.search(r"Original ATen: \[(.*?)\]", lines[above])
        if found:
            return tuple(name.strip() for name in found[1].split(",") if name.strip())
        above -= 1
    return ()


def _kind(source: str) -> str:
    found = re.search(r"@triton_heuristics\.(\w+)\(", source)
    if found is None:
        raise UnsupportedError("a kernel without a launching heuristic", where="torchqx.testing.wrapper",
                               remedy="see how this torch version decorates kernels.")
    return found[1]


def _numbers(call: ast.Call) -> tuple[int | None, ...]:
    values = (a.value if isinstance(a, ast.Constant) else None for a in call.args)
    return tuple(v if isinstance(v, int) else None for v in values)
