"""torchqx as another revision has it: its source extracted beside, and imported in place of what is installed."""

import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from io import BytesIO
from pathlib import Path
from types import ModuleType

FOLDERS = {"torchqx": "torchqx", "torchqx.fx_passes": "fx_passes", "torchqx.observers": "observers",
           "torchqx.inductor_kernels": "inductor_kernels"}


class UnknownRevisionError(ValueError):
    """git does not know the revision."""


def extract(revision: str, repository: Path, folder: Path) -> Path:
    """Write ``revision``'s files into ``folder``; the repository itself is only read. Returns ``folder``.

    Raises UnknownRevisionError.
    """
    done = subprocess.run(["git", "-C", str(repository), "archive", "--format=tar", revision], capture_output=True)
    if done.returncode:
        raise UnknownRevisionError(f"{revision}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Source(MetaPathFinder):
    """Finds torchqx's packages in the folders under ``root``; what is in them is then found as usual."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in FOLDERS:
            return None
        folder = self.root / FOLDERS[name]
        return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


def use_source(root: Path) -> None:
    """From here on, this process imports torchqx from ``root``."""
    assert "torchqx" not in sys.modules, "torchqx was imported before its source was chosen"
    sys.meta_path.insert(0, Source(root))
