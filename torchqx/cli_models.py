"""Models as the command line names them: a Hugging Face directory, a hub name, a GGUF file or a directory with one."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from torchqx.errors import AlreadyQuantizedError, CheckpointError, ConfigError, TorchqxError, UnsupportedError

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16}
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
REPORT = "torchqx-plan.json"


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        folder: directory, or hub name.
        gguf: file name of the GGUF in ``folder``; None for a Hugging Face checkpoint.
    """

    folder: str
    gguf: str | None = None

    @classmethod
    def find(cls, name: str) -> Self:
        """What ``name`` means. Raises CheckpointError for a directory without a model, or with several GGUF files."""
        path = Path(name)
        if path.is_file():
            if path.suffix != ".gguf":
                raise CheckpointError("a file that is no GGUF", where=name, remedy="give its directory.")
            return cls(str(path.parent), path.name)
        if not path.is_dir() or (path / "config.json").is_file():
            return cls(name)
        found = sorted(f.name for f in path.glob("*.gguf"))
        if len(found) != 1:
            raise CheckpointError("neither a config.json nor exactly one GGUF file is in the directory", where=name,
                                  remedy=f"name one of {', '.join(found)}." if found else "give a model's directory.")
        return cls(name, found[0])

    @property
    def _gguf(self) -> dict[str, str]:
        return {} if self.gguf is None else {"gguf_file": self.gguf}

    def config(self) -> Any:
        """The model's configuration; raises CheckpointError, and UnsupportedError where GGUF support is missing."""
        return self._read(AutoConfig.from_pretrained, **self._gguf)

    def float_model(self, dtype: str = "auto") -> PreTrainedModel:
        """The float model in eval mode, of the class that its configuration names.

        Args:
            dtype: a key of ``DTYPES``; "auto" is the checkpoint's own, and float32 for a GGUF.

        Raises:
            AlreadyQuantizedError: the checkpoint is quantized (a GGUF is not refused: it is dequantized).
            CheckpointError, ConfigError, UnsupportedError: it cannot be read, or not as asked.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {dtype!r}", where="--dtype", remedy=f"choose one of {', '.join(DTYPES)}.")
        config = self.config()
        if self.gguf is None:
            if getattr(config, "quantization_config", None) is not None:
                raise AlreadyQuantizedError("the checkpoint is quantized already", where=self.folder,
                                            remedy="start from the float model.")
            return self._model(model_class(config), dtype=DTYPES[dtype])
        model = self._model(AutoModelForCausalLM, dtype=torch.float32 if dtype == "auto" else DTYPES[dtype],
                            quantization_config=GgufConfig(dequantize=True))
        if hasattr(model.config, "quantization_config"):  # some versions of transformers leave the GGUF's
            del model.config.quantization_config
        return model

    def quantized_model(self) -> PreTrainedModel:
        """The model as :func:`save` left it, in eval mode; raises CheckpointError or UnsupportedError."""
        return self._model(model_class(self.config()), dtype="auto")

    def tokenizer(self) -> Any:
        """The model's tokenizer; raises CheckpointError if it has none."""
        return self._read(AutoTokenizer.from_pretrained, **self._gguf)

    def save(self, model: PreTrainedModel, output: Path, report: str) -> None:
        """Write ``model``, the tokenizer and preprocessor files that stand beside the source, and the report."""
        model.save_pretrained(output)
        with suppress(CheckpointError):  # a vision model has no tokenizer
            self.tokenizer().save_pretrained(output)
        for name in PREPROCESSORS:
            found = cached_file(self.folder, name, _raise_exceptions_for_gated_repo=False,
                                _raise_exceptions_for_missing_entries=False,
                                _raise_exceptions_for_connection_errors=False)
            if found:
                shutil.copy(found, output / name)
        (output / REPORT).write_text(report + "\n", encoding="utf-8")

    def _model(self, cls: Any, **settings: Any) -> PreTrainedModel:
        disable_progress_bar()
        return self._read(cls.from_pretrained, **self._gguf, **settings).eval()

    def _read(self, read: Callable[..., Any], **settings: Any) -> Any:
        try:
            return read(self.folder, **settings)
        except TorchqxError:
            raise
        except ImportError as error:
            raise UnsupportedError(_first_line(error), where=self.folder,
                                   remedy="for GGUF: pip install 'torchqx[gguf]'.") from error
        except Exception as error:  # a damaged file makes its reader fail in any way
            raise CheckpointError(f"cannot be read: {_first_line(error)}", where=self.folder,
                                  remedy="give a Hugging Face directory or hub name, or a GGUF file.") from error


def model_class(config: Any) -> Any:
    """The class that ``config.architectures`` names, so that heads come along; AutoModel where that is none we have."""
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    return AutoModel


def check_output(output: Path, source: Source) -> None:
    """Raises ConfigError if ``output`` is a file, or the directory that the model comes from."""
    if output.exists() and not output.is_dir():
        raise ConfigError("is a file", where=str(output), remedy="give a directory to --output.")
    if output.resolve() == Path(source.folder).resolve():
        raise ConfigError("would overwrite the model itself", where=str(output), remedy="give another --output.")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
