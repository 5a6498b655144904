"""How long loops show how far they are: silently in the library, as bars on stderr in the command line and the demo."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""Hands on the items of a long loop, whose name is the second argument, and may show how far it is."""

STDERR = Console(stderr=True)


def quiet(items: Iterable[Any], what: str) -> Iterable[Any]:
    """A :data:`Progress` that shows nothing."""
    return items


def bar(items: Iterable[Any], what: str) -> Iterator[Any]:
    """A :data:`Progress` that draws a bar on stderr; where that is no terminal, a line at the loop's end."""
    with _bar(MofNCompleteColumn()) as shown:
        yield from shown.track(items, description=what)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A moving bar and the elapsed time on stderr while the block runs."""
    with _bar() as shown:
        task = shown.add_task(what, total=None)
        yield
        shown.update(task, total=1, completed=1)


def _bar(*columns: Any) -> Bar:
    return Bar(TextColumn("{task.description:<32}"), BarColumn(), *columns, TimeElapsedColumn(), console=STDERR)
