"""Tables on the terminal, and the same rows kept as markdown and JSON under benchmarks/records."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RECORDS = Path(__file__).with_name("records")
VERSIONED = ("torch", "torchao", "transformers")


def machine() -> dict[str, Any]:
    """Where and with what a record was made: CPU, cores, Python, library versions, UTC time."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONED},
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


@dataclass(frozen=True)
class Sheet:
    """One table of a record."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def report(name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], data: dict[str, Any]) -> Path:
    """Print the table and write ``name``.md and ``name``.json, ``data`` beside the machine; returns the JSON's path."""
    return report_sheets(name, title, [Sheet(title, header, rows)], data, machine(), RECORDS)


def report_sheets(name: str, title: str, sheets: Sequence[Sheet], data: dict[str, Any], where: dict[str, Any],
                  folder: Path) -> Path:
    """:func:`report` for several tables. ``where`` is :func:`machine`, with ``device`` and ``driver`` where one ran."""
    for sheet in sheets:
        print_table(sheet.title, sheet.header, sheet.rows)
    folder.mkdir(exist_ok=True)
    versions = ", ".join(f"{library} {number}" for library, number in where["versions"].items())
    device = f"{where['device']}, driver {where['driver']}, " if "device" in where else ""
    note = f"{device}{where['cpu']}, {where['cores']} cores, {versions}, {where['date']}."
    body = "\n".join(("" if sheet.title == title else f"## {sheet.title}\n\n") + markdown(sheet.header, sheet.rows)
                     for sheet in sheets)
    (folder / f"{name}.md").write_text(f"# {title}\n\n{note}\n\n{body}", encoding="utf-8")
    record = folder / f"{name}.json"
    record.write_text(json.dumps({"title": title, "machine": where, **data}, indent=2) + "\n", encoding="utf-8")
    print(f"written: {record} and {record.with_suffix('.md').name}")
    return record


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show a table on the terminal."""
    console = Console()
    console.width = max(console.width, 160)  # a pipe counts as 80 columns, and that cuts the numbers
    table = Table(title=title)
    for column in header:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, first column to the left and the others to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *rows))


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
