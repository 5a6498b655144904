"""Accuracy of state-space recipes: ``python -m benchmarks.state_space_accuracy typeseg|mamba|mamba2``.

TypeSeg has real weights; the two others are trained by :mod:`benchmarks.train_mamba` (minutes, once), and measured
again with outliers planted by :mod:`benchmarks.planted_scan`.
"""

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, get_args

import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel

import torchqx
from benchmarks.models import ModelMissingError
from benchmarks.planted_scan import planted
from benchmarks.records import RECORDS as FOLDER
from benchmarks.records import Sheet, machine, report_sheets
from benchmarks.scores import perplexity
from benchmarks.train_mamba import trained, unigram_loss, windows
from benchmarks.typeseg import byte_accuracy, snippets, typeseg
from torchqx.mamba_ptq import outlier_channels
from torchqx.recipe import AffineRecipe
from torchqx.scan_recipe import ScanScales

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)
Only = Annotated[str, typer.Option(help="Only rows whose name contains this.")]

RECIPES: dict[str, Callable[[], AffineRecipe]] = {
    "weight-only, 8 bits": lambda: torchqx.MambaPTQConfig(activation="none", weight_granularity="channel"),
    "weight-only, 4 bits": lambda: torchqx.MambaPTQConfig(activation="none", weight_granularity="channel",
                                                          weight_bits=4),
    "projections only, static": lambda: torchqx.MambaPTQConfig(),
    "projections only, per token": lambda: torchqx.MambaPTQConfig(activation="token"),
    "projections only, outlier-aware": lambda: torchqx.MambaPTQConfig(smooth=0.5),
    "W8A8 static, outlier-aware": lambda: torchqx.MambaPTQConfig(scan=True, smooth=0.5),
    "naive static": lambda: torchqx.QuambaConfig(alpha=None, hadamard=False),
    "SmoothQuant": lambda: torchqx.QuambaConfig(alpha=None, hadamard=False, smooth=0.5),
    "percentile only": lambda: torchqx.QuambaConfig(hadamard=False),
    "Hadamard only": lambda: torchqx.QuambaConfig(alpha=None),
    "Quamba, percentile 0.99999": lambda: torchqx.QuambaConfig(alpha=0.99999),
    "Quamba, percentile 0.9995": lambda: torchqx.QuambaConfig(alpha=0.9995),
    "Quamba, percentile 0.995": lambda: torchqx.QuambaConfig(alpha=0.995),
    "Quamba, percentile searched": lambda: torchqx.QuambaConfig(),
    "Quamba, shared scales": lambda: torchqx.QuambaConfig(shared=True),
}
WITH_HEADS: dict[str, Callable[[], AffineRecipe]] = {
    f"Quamba, scales per {scales}": partial(torchqx.QuambaConfig, scan_scales=scales)
    for scales in get_args(ScanScales)
}


def scores(model: nn.Module, calibration: Sequence[Any], recipes: dict[str, Callable[[], AffineRecipe]],
           score: Callable[[nn.Module], float], console: Console) -> dict[str, float]:
    """The float model's score, and that of a copy quantized by each recipe and run by the backend's graph."""
    found = {"float": score(model)}
    console.log(f"float: {found['float']:.4f}")
    for name, recipe in recipes.items():
        started = time.perf_counter()
        quantized = torchqx.quantize(copy.deepcopy(model), recipe(), calibration)
        quantized.compile(backend="torchqx", options={"lowering": "eager"})
        found[name] = score(quantized)
        torch._dynamo.reset()
        console.log(f"{name}: {found[name]:.4f} in {time.perf_counter() - started:.0f} s")
    return found


def _chosen(recipes: dict[str, Callable[[], AffineRecipe]], only: str) -> dict[str, Callable[[], AffineRecipe]]:
    return {name: recipe for name, recipe in recipes.items() if only in name}


@app.command("typeseg")
def typeseg_table(
    length: Annotated[int, typer.Option(min=16, help="Bytes of a piece of a file.")] = 768,
    per_type: Annotated[int, typer.Option(min=1, help="Pieces per file type.")] = 24,
    calibrate: Annotated[int, typer.Option(min=1, help="Calibration pieces per file type.")] = 4,
    only: Only = "",
) -> None:
    """Byte accuracy of TypeSeg on source files of this Python installation."""
    model = typeseg()
    sample = [text[None] for text, _ in snippets(length, calibrate)]
    pieces = list(snippets(length, per_type, skip=calibrate))
    results = scores(model, [(text,) for text in sample], _chosen(RECIPES, only),
                     lambda candidate: byte_accuracy(candidate, pieces), Console())
    rows = [(name, f"{value:.2%}", f"{100 * (value - results['float']):+.2f} points")
            for name, value in results.items()]
    title = f"TypeSeg: {len(pieces)} pieces of {length} bytes, {len(sample)} calibration pieces"
    sheets = [Sheet(title, ("recipe", "byte accuracy", "against float"), rows), outliers(model, sample)]
    report_sheets("accuracy-typeseg", title, sheets, {"results": results}, machine(), FOLDER)


@app.command("mamba")
def mamba_table(count: Annotated[int, typer.Option(min=1, help="Windows of text.")] = 16,
                length: Annotated[int, typer.Option(min=2, help="Bytes of a window.")] = 512,
                only: Only = "") -> None:
    """Perplexity per byte of a small Mamba, as it was trained and with planted outliers."""
    _trained_table(trained("mamba"), RECIPES, count, length, only)


@app.command("mamba2")
def mamba2_table(count: Annotated[int, typer.Option(min=1, help="Windows of text.")] = 16,
                 length: Annotated[int, typer.Option(min=2, help="Bytes of a window.")] = 512,
                 only: Only = "") -> None:
    """Perplexity per byte of a small Mamba2, likewise."""
    _trained_table(trained("mamba2"), RECIPES | WITH_HEADS, count, length, only)


def _trained_table(model: PreTrainedModel, recipes: dict[str, Callable[[], AffineRecipe]], count: int, length: int,
                   only: str) -> None:
    kind = model.config.model_type
    sample, evaluated = windows(False, count, length, seed=2), windows(True, count, length)
    calibration = [{"input_ids": row[None], "use_cache": False} for row in sample]
    results = {}
    for name, candidate in {"trained": model, "planted": planted(model, sample[:1])}.items():
        results[name] = scores(candidate, calibration, _chosen(recipes, only), lambda m: perplexity(m, evaluated),
                               Console())
    rows = [(name, *(cell for found in results.values()
                     for cell in (f"{found[name]:.4f}", f"{100 * (found[name] / found['float'] - 1):+.2f}%")))
            for name in results["trained"]]
    title = (f"{kind} trained on Python's reference: perplexity per byte, {count} windows of {length}, as many to "
             f"calibrate; a unigram model has {torch.tensor(unigram_loss()).exp():.2f}")
    header = ("recipe", "trained", "against float", "with outliers", "against float")
    report_sheets(f"accuracy-{kind}", title, [Sheet(title, header, rows)], {"results": results}, machine(), FOLDER)


@torch.no_grad()
def outliers(model: nn.Module, sample: list[Tensor]) -> Sheet:
    """Share of outlier channels in each projection's input, by both readings of the definition."""
    seen: dict[str, list[Tensor]] = {}
    handles = [module.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0]))
               for name, module in model.named_modules() if isinstance(module, nn.Linear) and "blocks" in name]
    for text in sample:
        model(text)
    for handle in handles:
        handle.remove()
    rows = []
    for kind in dict.fromkeys(name.rpartition(".")[2] for name in seen):
        found = [torch.cat([x.flatten(0, -2) for x in parts]) for name, parts in seen.items() if name.endswith(kind)]
        shares = [torch.cat([outlier_channels(x, among) for x in found]).float().mean()
                  for among in ("channels", "entries")]
        rows.append((kind, *(f"{float(share):.2%}" for share in shares)))
    header = ("projection", "of the channels' maxima", "of all entries")
    return Sheet("Outlier channels: maximum over mean + 6 standard deviations", header, rows)


if __name__ == "__main__":
    try:
        app()
    except ModelMissingError as missing:
        raise SystemExit(str(missing)) from None
