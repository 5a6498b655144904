"""docs/performance.md and its figures, written from the records: ``python -m benchmarks.page``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.performance import (
    build_sheet,
    growth_sheet,
    kernel_sheet,
    limit_sheet,
    losses,
    matmul_sheet,
    model_sheet,
    runs,
)
from benchmarks.plots import plot_growth
from benchmarks.records import RECORDS, Sheet, markdown

DOCS = Path(__file__).resolve().parent.parent / "docs"
INTRODUCTION = """\
# Performance

Written by `python -m benchmarks.page` from `benchmarks/records`. The arms of a row ran in one run, taking turns, one
process each. Times are medians of calls, ratios medians over rounds. Float arms, torchao and PT2E are compiled with
Inductor's freezing. Times do not carry over between machines, ratios do better: `make bench` measures yours, and
`make bench-check` compares two revisions on it.
"""


def records(folder: Path, prefix: str) -> list[dict[str, Any]]:
    """The records whose names begin with ``prefix``."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{prefix}*.json"))]


def page(folder: Path, docs: Path) -> str:
    """The page of the records in ``folder``; its figures go into ``docs``. What was not recorded is left out."""
    return "\n".join([INTRODUCTION, *_machines(folder), *_models(folder), *_kernels(folder), *_growth(folder, docs)])


def _machines(folder: Path) -> Iterator[str]:
    machines = (record["machine"] for prefix in ("speed", "kernels", "growth", "limits")
                for record in records(folder, prefix))
    for line in sorted({f"{m['cpu']}, {m['cores']} cores, torch {m['versions']['torch']}" for m in machines}):
        yield f"Machine: {line}.\n"


def _models(folder: Path) -> Iterator[str]:
    measured = runs(records(folder, "speed"))
    if not measured:
        return
    yield _section(model_sheet(measured))
    lost = list(losses(measured))
    yield "Where a peer is ahead:\n\n" + "".join(f"* {line}\n" for line in lost) if lost else "No peer is ahead.\n"
    limits = limit_sheet(measured, {record["threads"]: record for record in records(folder, "limits")})
    if limits.rows:
        yield _section(limits) + ("\nThe limit: products with weights at the measured int8 rate, attention's at the "
                                  "bfloat16 rate, nothing else.\n")
    yield _section(build_sheet(measured))


def _kernels(folder: Path) -> Iterator[str]:
    for kernels in records(folder, "kernels"):
        yield f"The kernels ran on {kernels['threads']} thread(s), {kernels['machine']['date']}.\n"
        yield _section(matmul_sheet(kernels))
        yield _section(kernel_sheet(kernels))


def _growth(folder: Path, docs: Path) -> Iterator[str]:
    for growth in records(folder, "growth"):
        figure = f"growth-{growth['width']}-{growth['threads']}t.svg"
        plot_growth(growth, docs / figure)
        yield _section(growth_sheet(growth)) + f"\n![time against tokens, batch and depth]({figure})\n"


def _section(sheet: Sheet) -> str:
    return f"## {sheet.title}\n\n{markdown(sheet.header, sheet.rows)}"


def main(
    folder: Annotated[Path, typer.Option("--records", help="Where the records are.")] = RECORDS,
    docs: Annotated[Path, typer.Option(help="Where the page goes.")] = DOCS,
) -> None:
    """Write the page."""
    (docs / "performance.md").write_text(page(folder, docs), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
