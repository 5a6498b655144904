"""Compiled float against torchqx, timed in turns in one process, so that a noisy minute hits every arm alike."""

import copy
import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch._inductor.config as inductor_config
from rich.table import Table
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchqx.errors import ConfigError, UnsupportedError
from torchqx.progress import Progress, quiet
from torchqx.storage import QuantizedWeight

ROUNDS = 5
TURN_SECONDS = 0.3
FLOAT_ARMS = {"float32, compiled": torch.float32, "bfloat16, compiled": torch.bfloat16}
OURS, BASE = "torchqx", "base"


@dataclass(frozen=True)
class Timing:
    """One arm's figures.

    Attributes:
        compile_seconds: the first call.
        seconds: median of the calls after it.
        weight_bytes: what the model's parameters and buffers hold.
        round_seconds: the median of each round.
    """

    arm: str
    compile_seconds: float
    seconds: float
    weight_bytes: int
    round_seconds: list[float]

    def times_faster_than(self, other: Self) -> float:
        """The median over rounds of the ratio of the two arms' medians: both saw each round's noise."""
        pairs = zip(other.round_seconds, self.round_seconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


class Arm:
    """A model compiled for one shape of inputs; compiles when made.

    Args:
        backend: "inductor" runs with its weights frozen, the fastest that it has on a CPU.
    """

    def __init__(self, name: str, model: Module, inputs: dict[str, Any], backend: str) -> None:
        self.name, self.model, self.inputs = name, model, inputs
        self._compiled = torch.compile(model, backend=backend, dynamic=False)
        self._freezing = backend == "inductor"
        start = time.perf_counter()
        self()
        self.compile_seconds = time.perf_counter() - start

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Any:
        """The model's output for its own inputs, or for others of the same shapes."""
        with inductor_config.patch(freezing=self._freezing):
            return self._compiled(**self.inputs | inputs)


def timed(arms: list[Arm], progress: Progress = quiet) -> list[Timing]:
    """Every arm's median over rounds in which each has its turn, after two calls that warm the caches again."""
    rounds: list[list[list[float]]] = [[] for _ in arms]
    for _ in progress(range(ROUNDS), "timing"):
        for arm, own in zip(arms, rounds, strict=True):
            warm = min(_once(arm), _once(arm))
            own.append([_once(arm) for _ in range(max(3, math.ceil(TURN_SECONDS / warm)))])
    return [Timing(arm.name, arm.compile_seconds, statistics.median(t for turn in own for t in turn),
                   weight_bytes(arm.model), [statistics.median(turn) for turn in own])
            for arm, own in zip(arms, rounds, strict=True)]


def bench(model: Any, batch: int, length: int, progress: Progress = quiet, base: Any = None) -> list[Timing]:
    """A quantized model against its own dequantized weights in float32 and bfloat16; see :func:`model_inputs`.

    Args:
        base: another quantized model of the same class, timed as the arm BASE.

    Raises:
        ConfigError: ``base`` is of another class.
    """
    if base is not None and type(base) is not type(model):
        raise ConfigError(f"the base is a {type(base).__name__}, not a {type(model).__name__}", where="--compare",
                          remedy="give a quantized directory of the same model.")
    quantized = {OURS: model} if base is None else {OURS: model, BASE: base}
    steps = progress([*FLOAT_ARMS, *quantized], "compiling")
    inputs = model_inputs(model, batch, length)
    arms = [Arm(name, quantized[name], model_inputs(quantized[name], batch, length), "torchqx") if name in quantized
            else Arm(name, *_cast(dequantized(model), inputs, FLOAT_ARMS[name]), "inductor") for name in steps]
    return timed(arms, progress)


def dequantized(model: Module) -> Module:
    """A copy of ``model`` with float parameters where it holds quantized ones."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if isinstance(parameter, QuantizedWeight):
            memo[id(parameter)] = Parameter(parameter.dequantize(), requires_grad=False)
    return copy.deepcopy(model, memo)


def model_inputs(model: Any, batch: int, length: int) -> dict[str, Any]:
    """Random inputs: tokens for text models (decoders compute the last token's logits alone), images for vision ones.

    Raises UnsupportedError for a model that reads anything else.
    """
    config = model.config
    if model.main_input_name == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        return {"pixel_values": torch.randn(batch, getattr(config, "num_channels", 3), *size, dtype=model.dtype)}
    if model.main_input_name != "input_ids" or config.is_encoder_decoder:
        raise UnsupportedError(f"inputs of {model.main_input_name!r}", where=type(model).__name__,
                               remedy="bench runs text encoders, decoders, and image models.")
    tokens = torch.randint(config.vocab_size, (batch, length))
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs |= {"logits_to_keep": 1, "use_cache": False}
    return inputs


def weight_bytes(model: Module) -> int:
    """Bytes of all parameters and buffers, shared ones once; of a storage tensor, those of its components."""
    return sum(part.numel() * part.element_size() for tensor in [*model.parameters(), *model.buffers()]
               for part in _parts(tensor))


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Run the block with ``count`` threads (None: as many as there are); gives the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def timings_table(timings: list[Timing], title: str) -> Table:
    """Latency, its ratio to the first arm's, first call and weight memory."""
    table = Table(title=title, header_style="bold")
    table.add_column("arm")
    for name in ("median ms", "speed", "first call s", "weights MiB"):
        table.add_column(name, justify="right")
    for t in timings:
        table.add_row(t.arm, f"{1e3 * t.seconds:.2f}", f"{timings[0].seconds / t.seconds:.2f}x",
                      f"{t.compile_seconds:.1f}", f"{t.weight_bytes / 2**20:.1f}")
    return table


def _once(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cast(model: Module, inputs: dict[str, Any], dtype: torch.dtype) -> tuple[Module, dict[str, Any]]:
    cast = {n: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in inputs.items()}
    return model.to(dtype), cast


def _parts(tensor: Tensor) -> list[Tensor]:
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]
