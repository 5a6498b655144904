"""Fixtures with real models and real text; each skips, saying why, where its package or its file is absent."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from benchmarks import models
from benchmarks.data import DataMissingError, data_file

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def need_data(name: str) -> None:
    """Skip the calling test when data file ``name`` (such as sick.tsv) is absent."""
    try:
        data_file(name)
    except DataMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def minilm() -> Loaded:
    """all-MiniLM-L6-v2 in float32 and its tokenizer. Shared: a test that changes the model takes a deep copy."""
    return _load(models.minilm)


@pytest.fixture(scope="session")
def smollm2() -> Loaded:
    """SmolLM2-135M in float32 and its tokenizer. Shared: a test that changes the model takes a deep copy."""
    pytest.importorskip("gguf", reason="SmolLM2 is stored as GGUF: pip install gguf accelerate")
    pytest.importorskip("accelerate", reason="SmolLM2 is stored as GGUF: pip install gguf accelerate")
    return _load(models.smollm2)


def _load(builder: Callable[[], Loaded]) -> Loaded:
    disable_progress_bar()
    try:
        return builder()
    except models.ModelMissingError as missing:
        pytest.skip(str(missing))
