"""What lets torch's caches recognise a rewritten graph, so that a second process compiles nothing.

The outer cache, AOTAutograd's, skips tracing through ATen altogether, but takes only graphs of functions that it knows
to be safe to name, and of methods of what it can see to be tensors.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node

from torchqx import fx_passes, inductor_kernels

PACKAGE = "torchqx"
SUFFIXES = (".py", ".h", ".cpp")


def digest_of(paths: Iterable[Path]) -> str:
    """Of the files' content, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def sources_digest() -> str:
    """Changes with any of torchqx's sources: what a cached graph was made with."""
    folders = [Path(file).parent for file in (__file__, fx_passes.__file__, inductor_kernels.__file__)]
    return digest_of(sorted({path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES}))


def cacheable_functions(gm: GraphModule) -> dict[str, str]:
    """The graph's calls of this package's functions, for Inductor's ``unsafe_marked_cacheable_functions``.

    The package itself is always among them: a graph may call operators alone, whose code the caches do not look at.
    """
    modules = [(getattr(n.target, "__module__", None) or "", n.target) for n in gm.graph.nodes
               if n.op == "call_function"]
    names = {f"{module}.{target.__name__}" for module, target in modules if module.split(".")[0] == PACKAGE}
    return dict.fromkeys(sorted({PACKAGE, *names}), sources_digest())


class _Missing(Interpreter):
    """Runs only the nodes that have no example value, on those of the others: nothing is mutated twice."""

    def run_node(self, n: Node) -> Any:
        if n.op == "output":
            return None
        if n.op == "placeholder" or "example_value" not in n.meta:
            n.meta["example_value"] = super().run_node(n)
        return n.meta["example_value"]


def show_values(gm: GraphModule, fakes: Sequence[Any], mode: FakeTensorMode) -> None:
    """Give every node of ``gm`` that a pass has written its ``example_value``.

    Args:
        fakes: the graph's inputs in ``mode``.
    """
    with mode:
        _Missing(gm, garbage_collect_values=False).run(*fakes, enable_io_processing=False)
