"""Calibration data as the command line names it: a file of text, or of tensors, turned into batches for a model."""

import csv
import inspect
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchqx.errors import (
    CalibrationError,
    ConfigError,
    NoCalibrationDataError,
    NonFiniteError,
    ShapeError,
    UnsupportedError,
)

Batch = dict[str, Tensor]
TENSORS = (".npz", ".pt")
TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Sampling:
    """How much of the data is used: ``samples`` of at most ``length`` tokens, ``batch_size`` a call."""

    samples: int = 128
    length: int = 512
    batch_size: int = 4

    def __post_init__(self) -> None:
        for name in ("samples", "length", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)} is not positive", where=f"--{name.replace('_', '-')}",
                                  remedy="give 1 or more.")


def is_text(path: Path) -> bool:
    """Whether ``path`` holds text, by its name. Raises NoCalibrationDataError if there is no such file."""
    if not path.is_file():
        raise NoCalibrationDataError("no such file", where=str(path), remedy="give --data an existing file.")
    return path.suffix not in TENSORS


def read_texts(path: Path, column: str | None = None) -> Iterator[str]:
    """The non-empty texts of a .json, .jsonl, .csv or .tsv file, or the non-empty lines of any other.

    Raises:
        ConfigError: ``column`` does not exist, or has to be given.
        CalibrationError: the file is not what its name says.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in _rows(file, path.suffix):
                text = row if isinstance(row, str) else _pick(row, column, path)
                if text.strip():
                    yield text.strip()
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise CalibrationError(f"cannot be read: {error}", where=str(path), remedy="check its format.") from error


def text_batches(path: Path, column: str | None, model: Any, read_tokenizer: Callable[[], Any], sampling: Sampling
                 ) -> list[Batch]:
    """Batches for a text model: one text a sample for encoders, packed windows of tokens for decoders.

    A decoder's file of fewer tokens than one window gives one shorter window. The tokenizer is read only once it is
    clear that the model takes text.

    Raises:
        NoCalibrationDataError: the file holds no text.
        UnsupportedError: the model reads more than token ids.
    """
    if model.main_input_name != "input_ids" or model.config.is_encoder_decoder:
        raise UnsupportedError("its inputs cannot be made from text alone", where=type(model).__name__,
                               remedy="save its inputs by name with torch.save or numpy.savez and give that file.")
    texts, tokenizer = read_texts(path, column), read_tokenizer()
    limit = getattr(model.config, "max_position_embeddings", None) or sampling.length
    length = min(sampling.length, limit, tokenizer.model_max_length)
    batches = list((_windows if model.can_generate() else _padded)(texts, tokenizer, sampling, length))
    if not batches:
        raise NoCalibrationDataError("the file holds no text", where=str(path), remedy="give one sample a line.")
    return batches


def tensor_batches(path: Path, model: Any, sampling: Sampling) -> list[Batch]:
    """Batches from a .npz or .pt file of arrays by argument name, samples first; a bare tensor is the main input.

    Floats are given in the model's dtype.

    Raises:
        CalibrationError: the file cannot be read, or holds something else.
        ConfigError: a name that is no argument of the model.
        ShapeError: the arrays differ in their number of samples.
        NoCalibrationDataError, NonFiniteError: no samples; NaN or Inf in them.
    """
    named = _tensors(path, model.main_input_name)
    arguments = [n for n, p in inspect.signature(model.forward).parameters.items() if p.kind is not p.VAR_KEYWORD]
    if unknown := sorted(set(named) - set(arguments)):
        raise ConfigError(f"{type(model).__name__} has no argument {', '.join(unknown)}", where=str(path),
                          remedy=f"its arguments are {', '.join(arguments)}.")
    counts = {name: len(value) if value.ndim else 0 for name, value in named.items()}
    if len(set(counts.values())) > 1:
        raise ShapeError(f"different numbers of samples: {counts}", where=str(path), remedy="give each sample to all.")
    if not any(counts.values()):
        raise NoCalibrationDataError("the file holds no samples", where=str(path), remedy="samples come first.")
    for name, value in named.items():
        if value.is_floating_point():
            named[name] = value.to(model.dtype)
            if not named[name].isfinite().all():
                raise NonFiniteError("NaN or Inf in the calibration data", where=f"{path}[{name}]",
                                     remedy="clean the data.")
    count, size = min(next(iter(counts.values())), sampling.samples), sampling.batch_size
    return [{n: v[i:min(i + size, count)] for n, v in named.items()} for i in range(0, count, size)]


def _rows(file: Any, suffix: str) -> Iterator[Any]:
    if suffix in TABLES:
        yield from csv.DictReader(file, delimiter=TABLES[suffix])
    elif suffix == ".jsonl":
        yield from (json.loads(line) for line in file if line.strip())
    elif suffix == ".json":
        rows = json.load(file)
        yield from rows if isinstance(rows, list) else [rows]
    else:
        yield from file


def _pick(row: Any, column: str | None, path: Path) -> str:
    if not isinstance(row, dict):
        raise CalibrationError("a row is neither text nor named columns", where=str(path), remedy="check its format.")
    found = [name for name, value in row.items() if isinstance(value, str)]
    name = column or ("text" if "text" in found else found[0] if len(found) == 1 else None)
    if name not in found:
        raise ConfigError(f"no column of text named {name!r}" if name else "which column?", where=str(path),
                          remedy=f"give --column one of {', '.join(found) or 'the columns that hold text'}.")
    return row[name]


def _padded(texts: Iterator[str], tokenizer: Any, sampling: Sampling, length: int) -> Iterator[Batch]:
    chosen = [text for _, text in zip(range(sampling.samples), texts, strict=False)]
    if chosen and tokenizer.pad_token is None and sampling.batch_size > 1:
        raise ConfigError("the tokenizer has no padding token", where="--batch-size", remedy="give --batch-size 1.")
    for i in range(0, len(chosen), sampling.batch_size):
        yield dict(tokenizer(chosen[i:i + sampling.batch_size], truncation=True, max_length=length,
                             padding=sampling.batch_size > 1, return_tensors="pt"))


def _windows(texts: Iterator[str], tokenizer: Any, sampling: Sampling, length: int) -> Iterator[Batch]:
    tokens: list[int] = []
    for text in texts:
        tokens += tokenizer(text + "\n", add_special_tokens=False)["input_ids"]
        if len(tokens) >= sampling.samples * length:
            break
    length = min(length, len(tokens))
    count = min(sampling.samples, len(tokens) // length if length else 0)
    windows = torch.tensor(tokens[:count * length]).view(count, length)
    for batch in windows.split(sampling.batch_size) if count else ():
        yield {"input_ids": batch, "attention_mask": torch.ones_like(batch)}


def _tensors(path: Path, main_input: str) -> Batch:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        loaded = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, ValueError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CalibrationError(f"cannot be read: {reason}", where=str(path), remedy="check its format.") from error
    named = {main_input: loaded} if isinstance(loaded, Tensor) else loaded
    if not isinstance(named, dict) or not named or not all(isinstance(v, Tensor) for v in named.values()):
        raise CalibrationError("holds something else than tensors by argument name", where=str(path),
                               remedy="save a dict of tensors.")
    return dict(named)
