"""Names of places: the same for every trace of one model, whatever the entry point, the shapes, or the graph."""

import re
from collections import Counter
from collections.abc import Iterable

from torch.fx import Node

_ROOT = re.compile(r"^(?:[A-Z]\['[^']*'\]|self\b)")
_INDEX = re.compile(r"\[['\"]?([^'\"\]]*)['\"]?\]")
_CONTAINERS = re.compile(r"\._(?:modules|parameters|buffers)(?=\[)")
_MANGLED_ROOT = re.compile(r"^[a-zA-Z]_[A-Za-z0-9_]*?_(?=modules_|parameters_|buffers_)")


def clean_path(name: str) -> str:
    """``L['self'].encoder.layer[0]`` or ``L['fn']._modules['encoder']...`` -> ``encoder.layer.0``."""
    inner = re.sub(r"^.*\.cell_contents\b", "", name)  # a model that a function holds
    bare = _INDEX.sub(r".\1", _CONTAINERS.sub("", _ROOT.sub("", inner)))
    return ".".join(part for part in bare.split(".") if part not in ("", "_orig_mod", "__self__"))


def _root(name: str) -> str:
    """``L['self'].a.b`` -> ``L['self']``."""
    found = _ROOT.match(name)
    return found.group() if found else ""


def source_path(placeholder: Node) -> str:
    """Dotted name of a parameter placeholder, as the traced frame reaches it ("layers.0.linear1.weight").

    Dynamo's record of the source is there only while the backend runs; later the placeholder's own name is read.
    """
    source = getattr(placeholder.meta.get("grapharg"), "source", None)
    if source is not None:
        name = source.name
        return clean_path(name() if callable(name) else name)
    bare = _MANGLED_ROOT.sub("", str(placeholder.target)).removesuffix("_")
    bare = re.sub(r"(?:^|_)(?:modules|parameters|buffers)_", ".", "_" + bare)
    return bare.strip("._")


def path_of(node: Node, weight: Node | None = None) -> str:
    """Path of the module whose code made ``node``; of ``weight``'s owner where the node does not tell."""
    stack = node.meta.get("nn_module_stack")
    if stack:
        entries = [entry[0] for entry in stack.values()]
        root = _root(entries[0])
        return clean_path([entry for entry in entries if _root(entry) == root][-1])
    return "" if weight is None else source_path(weight).rpartition(".")[0]


def common_path(paths: Iterable[str]) -> str:
    """The deepest module that contains all the paths."""
    split = [path.split(".") if path else [] for path in paths]
    shared: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


class KeyMaker:
    """Hands out ``path:kind:ordinal``; call it in graph order."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, str]] = Counter()

    def __call__(self, path: str, kind: str) -> str:
        ordinal = self._seen[path, kind]
        self._seen[path, kind] += 1
        return f"{path}:{kind}:{ordinal}"
