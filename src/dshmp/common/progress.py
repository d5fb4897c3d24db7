"""Progress of long work, on stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich import progress as rich

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, steps done, and steps in all, None where that is unknown."""

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description, total=total, console=Console(stderr=True), transient=True)


def progress_bars() -> "rich.Progress":
    """Several on stderr, a line each."""
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    names = rich.TextColumn("{task.description}", markup=False)
    left = rich.TimeRemainingColumn(compact=True, elapsed_when_finished=True)
    columns = names, rich.BarColumn(), rich.MofNCompleteColumn(), left
    # lines on stdout go above the bars, and to stderr with them, but not where they are piped to another program
    redirect = sys.stdout.isatty()
    return rich.Progress(*columns, console=console, redirect_stdout=redirect)
