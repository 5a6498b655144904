"""Accuracy of recipes at several bit widths: ``python -m benchmarks.accuracy minilm``, ``smollm2``, ``stories260k``."""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

import torchqx
from benchmarks import models
from benchmarks.data import DataMissingError, sick_pairs, wikitext_test, wikitext_valid
from benchmarks.records import report
from benchmarks.scores import encoder, perplexity, sentence_batches, sick_spearman, token_windows
from benchmarks.stories import stories, story_windows

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)

METHODS = {"min-max": "MinMaxConfig", "SmoothQuant": "SmoothQuantScalingConfig", "OS+": "OutlierSuppressionPlusConfig"}
ROTATED = {"rotated": {"shift_scale": "none"}, "rotated + OS+": {"shift_scale": "osplus"}}
PER_HEAD = {"rotated, heads folded": {"shift_scale": "none", "fold": "all"}}
WINDOW_TOKENS = 512

Batches = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class Setting:
    """One row: a method of METHODS, ROTATED or PER_HEAD, bits of weights and activations, and how these are quantized.

    ``activation``: "static", "token" or "auto".
    """

    method: str
    bits: int
    activation: str

    @property
    def name(self) -> str:
        return f"{self.method} W{self.bits}A{self.bits} {self.activation}"

    def quantize(self, model: nn.Module, calibration: Batches) -> nn.Module:
        """A quantized copy of ``model``, set to run on its integers.

        The rewritten graph runs without Inductor: the arithmetic is the same, and no row waits for a compilation.
        """
        config = getattr(torchqx, METHODS.get(self.method, "HadamardConfig"))
        recipe = config(weight_bits=self.bits, activation_bits=self.bits, activation=self.activation,
                        **(ROTATED | PER_HEAD).get(self.method, {}))
        quantized = torchqx.quantize(copy.deepcopy(model), recipe, calibration)
        quantized.compile(backend="torchqx", options={"lowering": "eager"})
        return quantized


@app.command()
def minilm(
    pairs: Annotated[int, typer.Option(min=10, help="Pairs of SICK-R, from the first.")] = 1000,
    sentences: Annotated[int, typer.Option(min=1, help="Calibration sentences, from the pairs after those.")] = 128,
    only: Annotated[str, typer.Option(help="Only rows whose name contains this.")] = "",
) -> None:
    """Spearman correlation on SICK-R of mean-pooled MiniLM sentence embeddings."""
    model, tokenizer = models.minilm()
    evaluated = sick_pairs(pairs)
    spare = [text for pair in sick_pairs((sentences + 1) // 2, start=pairs) for text in (pair.first, pair.second)]
    calibration = list(sentence_batches(tokenizer, spare[:sentences]))
    settings = [Setting(method, bits, "static") for bits, method in product((8, 6, 4), METHODS)]
    settings.append(Setting("OS+", 8, "auto"))
    settings += _per_token((8, 6, 4), ("min-max", "OS+", *ROTATED))
    header = ("method", "SICK-R Spearman", "against float", "seconds")
    title = f"MiniLM on SICK-R: {pairs} pairs, {len(spare[:sentences])} calibration sentences"
    _tabulate(
        _record("accuracy-minilm", only), title, header, model, calibration, _chosen(settings, only),
        score=lambda candidate: sick_spearman(encoder(candidate, tokenizer), evaluated),
        against=lambda score, float_score: f"{100 * (score - float_score):+.2f} points",
    )  # fmt: skip


@app.command()
def smollm2(
    windows: Annotated[int, typer.Option(min=1, help="Windows of 512 tokens of the raw test text.")] = 12,
    calibrate: Annotated[int, typer.Option(min=1, help="Windows of 512 tokens of the validation text.")] = 8,
    only: Annotated[str, typer.Option(help="Only rows whose name contains this.")] = "",
) -> None:
    """Perplexity of SmolLM2-135M on WikiText-2."""
    model, tokenizer = models.smollm2()
    evaluated = token_windows(tokenizer, wikitext_test(), windows, WINDOW_TOKENS)
    sample = token_windows(tokenizer, wikitext_valid(), calibrate, WINDOW_TOKENS)
    settings = [
        Setting(method, bits, activation)
        for bits, activation, method in product((8, 6), ("static", "token", "auto"), METHODS)
        if activation != "auto" or method == "OS+"
    ]
    settings += [*_per_token((8, 6), ROTATED), *_per_token((4,), (*METHODS, *ROTATED, *PER_HEAD))]
    title = f"SmolLM2-135M on WikiText-2: {windows} windows of 512, {calibrate} calibration windows"
    _tabulate_perplexity(_record("accuracy-smollm2", only), title, model, sample, evaluated, _chosen(settings, only))


@app.command()
def stories260k(
    windows: Annotated[int, typer.Option(min=1, help="Windows of 512 tokens, from the first.")] = 20,
    calibrate: Annotated[int, typer.Option(min=1, help="Windows of 512 tokens, those after.")] = 8,
    only: Annotated[str, typer.Option(help="Only rows whose name contains this.")] = "",
) -> None:
    """Perplexity of stories260K on TinyStories."""
    text = story_windows(windows + calibrate)
    title = f"stories260K on TinyStories: {windows} windows of 512, {calibrate} calibration windows"
    settings = _chosen(_per_token((8, 6, 4), (*METHODS, *ROTATED)), only)
    _tabulate_perplexity(_record("accuracy-stories260k", only), title, stories(), text[windows:], text[:windows],
                         settings)


def _per_token(bits: Iterable[int], methods: Iterable[str]) -> list[Setting]:
    """Weights per channel and activations per token, which is how rotations are compared."""
    return [Setting(method, width, "token") for width, method in product(bits, methods)]


def _chosen(settings: Iterable[Setting], only: str) -> list[Setting]:
    chosen = [setting for setting in settings if only in setting.name]
    if only and not chosen:
        raise typer.BadParameter(f"no row's name contains {only!r}", param_hint="--only")
    return chosen


def _record(name: str, only: str) -> str:
    """A part of a table has a record of its own, beside that of the whole."""
    return f"{name}-{only.lower().replace(' ', '-')}" if only else name


def _tabulate_perplexity(record: str, title: str, model: nn.Module, calibration: Tensor, evaluated: Tensor,
                         settings: Sequence[Setting]) -> None:
    """:func:`_tabulate` for a decoder, whose windows are int64 [count, length]."""
    _tabulate(
        record, title, ("method", "perplexity", "against float", "seconds"), model,
        [{"input_ids": window[None], "use_cache": False} for window in calibration], settings,
        score=lambda candidate: perplexity(candidate, evaluated),
        against=lambda score, float_score: f"{100 * (score / float_score - 1):+.2f}%",
    )  # fmt: skip


def _tabulate(
    record: str,
    title: str,
    header: Sequence[str],
    model: nn.Module,
    calibration: Batches,
    settings: Sequence[Setting],
    *,
    score: Callable[[nn.Module], float],
    against: Callable[[float, float], str],
) -> None:
    """Score the float model and each setting; print the table and write the record."""
    console = Console()
    float_score = score(model)
    console.log(f"float: {float_score:.4f}")
    rows = [("float32", f"{float_score:.4f}", "", "")]
    results = []
    for setting in settings:
        started = time.perf_counter()
        value = score(setting.quantize(model, calibration))
        seconds = time.perf_counter() - started
        torch._dynamo.reset()  # the next model is another copy; its code would only add to this one's guards
        console.log(f"{setting.name}: {value:.4f} in {seconds:.0f} s")
        rows.append((setting.name, f"{value:.4f}", against(value, float_score), f"{seconds:.0f}"))
        results.append({**asdict(setting), "score": value, "seconds": seconds})
    report(record, title, header, rows, {"float": float_score, "results": results})


if __name__ == "__main__":
    disable_progress_bar()
    try:
        app()
    except (DataMissingError, models.ModelMissingError) as missing:
        raise SystemExit(str(missing)) from None
