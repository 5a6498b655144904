"""Accuracy of state-space recipes on real weights: ``python -m benchmarks.state_space_accuracy``."""

import copy
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

import torchqx
from benchmarks.models import ModelMissingError
from benchmarks.records import RECORDS as FOLDER
from benchmarks.records import Sheet, machine, report_sheets
from benchmarks.typeseg import byte_accuracy, snippets, typeseg
from torchqx.mamba_ptq import outlier_channels
from torchqx.recipe import AffineRecipe

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)

RECIPES: dict[str, Callable[[], AffineRecipe]] = {
    "projections only, static": lambda: torchqx.MambaPTQConfig(),
    "projections only, per token": lambda: torchqx.MambaPTQConfig(activation="token"),
    "naive static": lambda: torchqx.QuambaConfig(alpha=None, hadamard=False),
    "SmoothQuant": lambda: torchqx.QuambaConfig(alpha=None, hadamard=False, smooth=0.5),
    "percentile only": lambda: torchqx.QuambaConfig(hadamard=False),
    "Hadamard only": lambda: torchqx.QuambaConfig(alpha=None),
    "Quamba, percentile 0.99999": lambda: torchqx.QuambaConfig(alpha=0.99999),
    "Quamba, percentile 0.9995": lambda: torchqx.QuambaConfig(alpha=0.9995),
    "Quamba, percentile searched": lambda: torchqx.QuambaConfig(),
    "Quamba, shared scales": lambda: torchqx.QuambaConfig(shared=True),
}


@app.command()
def main(
    length: Annotated[int, typer.Option(min=16, help="Bytes of a piece of a file.")] = 768,
    per_type: Annotated[int, typer.Option(min=1, help="Pieces per file type.")] = 24,
    calibrate: Annotated[int, typer.Option(min=1, help="Calibration pieces per file type.")] = 4,
    only: Annotated[str, typer.Option(help="Only rows whose name contains this.")] = "",
) -> None:
    """Byte accuracy of TypeSeg on source files of this Python installation."""
    model, console = typeseg(), Console()
    sample = [text[None] for text, _ in snippets(length, calibrate)]
    pieces = list(snippets(length, per_type, skip=calibrate))
    exact = byte_accuracy(model, pieces)
    console.log(f"float: {exact:.4f}")
    rows, results = [("float32", f"{exact:.2%}", "", "")], {"float": exact}
    for name, recipe in RECIPES.items():
        if only not in name:
            continue
        started = time.perf_counter()
        quantized = torchqx.quantize(copy.deepcopy(model), recipe(), [(text,) for text in sample])
        quantized.compile(backend="torchqx", options={"lowering": "eager"})
        results[name] = byte_accuracy(quantized, pieces)
        torch._dynamo.reset()
        seconds = time.perf_counter() - started
        rows.append((name, f"{results[name]:.2%}", f"{100 * (results[name] - exact):+.2f} points", f"{seconds:.0f}"))
        console.log(f"{name}: {results[name]:.4f} in {seconds:.0f} s")
    title = f"TypeSeg: {len(pieces)} pieces of {length} bytes, {len(sample)} calibration pieces"
    sheets = [Sheet(title, ("recipe", "byte accuracy", "against float", "seconds"), rows), outliers(model, sample)]
    report_sheets("accuracy-typeseg", title, sheets, {"results": results}, machine(), FOLDER)


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
