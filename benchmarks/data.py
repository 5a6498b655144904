"""Text for evaluation and calibration, and small checkpoints, read from two folders outside the repository.

The folders are ``$TORCHQX_DATA`` and ``$TORCHQX_MODELS``, or ``../shared/data`` and ``../shared/models`` beside the
repository. Nothing of them is shipped.
"""

import csv
import os
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent


class DataMissingError(FileNotFoundError):
    """A file is absent; the message says which, and how to point at it."""

    def __init__(self, path: Path, variable: str = "TORCHQX_DATA") -> None:
        super().__init__(f"data file {path} is missing: set {variable} to the folder that holds {path.name}")


class SickPair(NamedTuple):
    """Two sentences and how related people found them, 1 to 5."""

    first: str
    second: str
    score: float


def data_folder() -> Path:
    """The folder that holds sick.tsv and wikitext2/; it need not exist."""
    return Path(os.environ.get("TORCHQX_DATA") or REPOSITORY.parent / "shared" / "data")


def data_file(name: str) -> Path:
    """The path of one data file. Raises ``DataMissingError`` when it is absent."""
    path = data_folder() / name
    if not path.is_file():
        raise DataMissingError(path)
    return path


def model_file(name: str) -> Path:
    """The path of one checkpoint's file. Raises ``DataMissingError`` when it is absent."""
    path = Path(os.environ.get("TORCHQX_MODELS") or REPOSITORY.parent / "shared" / "models") / name
    if not path.is_file():
        raise DataMissingError(path, "TORCHQX_MODELS")
    return path


def sick_pairs(limit: int | None = None, start: int = 0) -> list[SickPair]:
    """``limit`` pairs of SICK-R from pair ``start`` on, in file order (all that are left when ``limit`` is None)."""
    with data_file("sick.tsv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    stop = None if limit is None else start + limit
    return [SickPair(r["sentence_A"], r["sentence_B"], float(r["relatedness_score"])) for r in rows[start:stop]]


def wikitext_test() -> str:
    """WikiText-2's raw test text: evaluate on this."""
    return data_file("wikitext2/test.raw").read_text(encoding="utf-8")


def wikitext_valid() -> str:
    """WikiText-2's tokenised validation text: calibrate on this."""
    return data_file("wikitext2/valid.txt").read_text(encoding="utf-8")


def tiny_stories() -> str:
    """Short stories for children, one after the other."""
    return data_file("tinystories.txt").read_text(encoding="utf-8")
