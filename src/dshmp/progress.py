"""Progress of long work, on stderr."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description, total=total, console=Console(stderr=True), transient=True)


def columns() -> "list[ProgressColumn]":
    """Of the progress of several phases: a bar, or a spinner while it is not known how many steps there are."""
    from rich.console import RenderableType
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Bar(ProgressColumn):
        bar, spinner = BarColumn(), SpinnerColumn()

        def render(self, task: Task) -> RenderableType:
            return (self.spinner if task.total is None else self.bar).render(task)

    class Steps(MofNCompleteColumn):
        def render(self, task: Task) -> Text:
            return Text() if task.total is None and not task.completed else super().render(task)

    remaining = TimeRemainingColumn(compact=True, elapsed_when_finished=True)
    return [TextColumn("{task.description}"), Bar(), Steps(), remaining]
