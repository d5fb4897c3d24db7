"""Progress of long work, on stderr."""

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description, total=total, console=Console(stderr=True), transient=True)


def progress_bars() -> "Progress":
    """Several on stderr, a line each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    remaining = TimeRemainingColumn(compact=True, elapsed_when_finished=True)
    console = Console(stderr=True)
    names = TextColumn("{task.description}", markup=False)
    # lines on stdout go above the bars, and to stderr with them, but not where they are piped to another program
    redirect = sys.stdout.isatty()
    return Progress(names, BarColumn(), MofNCompleteColumn(), remaining, console=console, redirect_stdout=redirect)
