"""The command line: ``torchqx quantize``, ``torchqx explain`` and ``torchqx bench``."""

import functools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from torchqx.baselines import MinMaxConfig, SmoothQuantScalingConfig
from torchqx.cli_bench import bench, threads, timings_table
from torchqx.cli_data import Sampling, is_text, tensor_batches, text_batches
from torchqx.cli_models import Source, check_output
from torchqx.cli_record import Comparison, Record
from torchqx.errors import ConfigError, TorchqxError
from torchqx.explain import Report, explain
from torchqx.hadamard import HadamardConfig
from torchqx.mamba_ptq import MambaPTQConfig
from torchqx.outlier_suppression_plus import OutlierSuppressionPlusConfig
from torchqx.progress import STDERR, bar, working
from torchqx.quamba import QuambaConfig
from torchqx.recipe import AffineRecipe, make_recipe
from torchqx.workflow import quantize

RECIPES = {"osplus": OutlierSuppressionPlusConfig, "smoothquant": SmoothQuantScalingConfig, "minmax": MinMaxConfig,
           "hadamard": HadamardConfig, "quamba": QuambaConfig, "mamba-ptq": MambaPTQConfig}
WIDTH_OUTSIDE_TERMINALS = 200
MIB = 2**20

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Saved = Annotated[str, typer.Argument(metavar="DIR", help="What `torchqx quantize` wrote.")]


def readable(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with its errors as one line on stderr: code 2 for typed ones, 1 for others; --debug raises them."""

    @functools.wraps(command)
    def call(*args: Any, debug: bool, **options: Any) -> None:
        try:
            command(*args, debug=debug, **options)
        except Exception as error:
            if debug:
                raise
            typed = isinstance(error, TorchqxError)
            hint = "" if typed else " (not foreseen: run again with --debug and report it)"
            STDERR.print(f"{type(error).__name__}: {' '.join(str(error).split())}{hint}", style="red", markup=False,
                         highlight=False, soft_wrap=True)
            raise typer.Exit(2 if typed else 1) from error

    return call


@app.command("quantize")
@readable
def quantize_command(
    model: Annotated[str, typer.Argument(help="Hugging Face directory, hub name, GGUF file, or directory with one.")],
    data: Annotated[Path, typer.Option(help="Text, .json, .jsonl, .csv, .tsv; or tensors in .npz, .pt.")],
    output: Annotated[Path, typer.Option(help="Directory for the quantized model.")],
    recipe: Annotated[str, typer.Option(help=f"One of {', '.join(RECIPES)}.")] = "osplus",
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE",
                                                       help="A field of the recipe, such as weight_bits=6.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the text in a table.")] = None,
    samples: Annotated[int, typer.Option(help="Samples to calibrate on.")] = 128,
    length: Annotated[int, typer.Option(help="Tokens in a sample, at most.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Samples in a call.")] = 4,
    dtype: Annotated[str, typer.Option(help="auto (the checkpoint's), float32 or bfloat16.")] = "auto",
    debug: Debug = False,
) -> None:
    """Quantize MODEL, calibrated on a file, and save it."""
    chosen, sampling = read_recipe(recipe, settings or []), Sampling(samples, length, batch_size)
    text, source = is_text(data), Source.find(model)
    check_output(output, source)
    with working(f"loading {Path(model).name}"):
        loaded = source.float_model(dtype)
    if text:
        batches = text_batches(data, column, loaded, source.tokenizer, sampling)
    else:
        batches = tensor_batches(data, loaded, sampling)
    quantize(loaded, chosen, batches, progress=bar)
    report = explain(loaded)
    with working(f"saving {output.name}"):
        source.save(loaded, output, report.to_json(indent=2))
    stdout().print(summary_line(report, output))


@app.command("explain")
@readable
def explain_command(directory: Saved, as_json: Json = False, debug: Debug = False) -> None:
    """Print every site of a quantized model, what was done with it, and why."""
    report = explain(load(directory))
    if as_json:
        typer.echo(report.to_json(indent=2))
    else:
        stdout().print(report)


@app.command("bench")
@readable
def bench_command(
    directory: Saved,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a call.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a sample.")] = 128,
    thread_count: Annotated[int | None, typer.Option("--threads", min=1, help="Default: as many as cores.")] = None,
    compare: Annotated[Path | None, typer.Option(metavar="BASE", help="Print ratios to another quantized directory, "
                                                 "timed in the same run, or to a record of --output.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the record, JSON.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time a quantized model beside compiled float32 and bfloat16 with the same weights, all in one run."""
    if output is not None and not output.parent.is_dir():
        raise ConfigError("its directory does not exist", where=str(output), remedy="give another --output.")
    model, base, earlier = load_quantized(directory), None, None
    if compare is not None and compare.is_dir():
        base = load_quantized(str(compare))
    elif compare is not None:
        earlier = Record.read(compare)
    with threads(thread_count) as count:
        if earlier is not None:
            earlier.check_is_of(model=type(model).__name__, batch=batch, length=length, threads=count)
        timings = bench(model, batch, length, progress=bar, base=base)
    record = Record.of(type(model).__name__, batch, length, count, timings)
    if output is not None:
        record.write(output)
    compared = None
    if compare is not None:
        compared = (Comparison.with_arm(record, str(compare)) if earlier is None else
                    Comparison.with_record(record, earlier, str(compare)))
    if as_json:
        typer.echo(json.dumps(asdict(record) | ({"compared": compared.to_json()} if compared else {}), indent=2))
        return
    stdout().print(timings_table(timings, f"{record.model}, {batch} x {length}, {count} threads"))
    if compared is not None:
        stdout().print(compared.table())


def load(directory: str) -> Any:
    """A model as it was saved."""
    with working(f"loading {Path(directory).name}"):
        return Source.find(directory).quantized_model()


def load_quantized(directory: str) -> Any:
    """A quantized model; the typed error for any other comes here, before minutes of compiling."""
    model = load(directory)
    explain(model)
    return model


def read_recipe(name: str, settings: list[str]) -> AffineRecipe:
    """The recipe ``name`` with "field=value" settings; a value is JSON, or else plain text. Raises ConfigError."""
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}", where="--recipe", remedy=f"choose one of {', '.join(RECIPES)}.")
    values: dict[str, Any] = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} has no value", where="--set", remedy="write field=value.")
        try:
            values[field] = json.loads(text)
        except json.JSONDecodeError:
            values[field] = text
    return make_recipe(RECIPES[name], values)


def summary_line(report: Report, output: Path) -> str:
    """How many sites of which kind, the memory, and where it is."""
    summary = report.summary()
    linear = ", ".join(f"{count} {status}" for status, count in summary["sites"].get("linear", {}).items())
    return (f"linear sites: {linear}; their weights {summary['bytes_before'] / MIB:.1f} → "
            f"{summary['bytes_after'] / MIB:.1f} MiB; saved in {output}")


def stdout() -> Console:
    """Where results go; wide enough for the tables where nobody set a width."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_OUTSIDE_TERMINALS)


if __name__ == "__main__":
    app()
