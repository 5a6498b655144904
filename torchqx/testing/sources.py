"""Kernel source text as a module with a file behind it: Triton reads the source of what it compiles from there."""

import hashlib
import importlib.util
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="torchqx_kernels_")


def load_source(source: str) -> ModuleType:
    """The module that ``source`` defines, executed anew."""
    name = f"torchqx_kernel_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    path = Path(_folder().name, f"{name}.py")
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
