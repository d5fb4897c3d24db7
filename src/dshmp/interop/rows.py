"""What became of weights from elsewhere, said to people: one row per group of parameters, a table on stderr."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LoadedPart:
    """Parameters of one part that share a fate for the same reason."""

    part: str
    """`backbone`, `pixel_decoder`, `frame_decoder`, `language`, `motion` or `decoder`; for what is left out also the
    name of a part that the model lacks."""
    tensors: int
    """Of the model where loaded or fresh, of the file where left out; the file may hold them split or packed."""
    parameters: int
    """Numbers in them. Loaded and fresh add up to the model, loaded and left out to the file."""
    fate: Literal["loaded", "fresh", "left out"]
    reason: str = ""


def row(
    part: str, tensors: Iterable[Tensor], fate: Literal["loaded", "fresh", "left out"], reason: str = ""
) -> LoadedPart:
    """The row of some tensors."""
    sizes = [tensor.numel() for tensor in tensors]
    return LoadedPart(part=part, tensors=len(sizes), parameters=sum(sizes), fate=fate, reason=reason)


def report(rows: Iterable[LoadedPart], title: str) -> None:
    """Print the rows as a table on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="")
    table.add_column("part")
    for name in ("tensors", "parameters"):
        table.add_column(name, justify="right")
    table.add_column("fate")
    table.add_column("reason")
    for item in rows:
        table.add_row(item.part, f"{item.tensors:,}", f"{item.parameters:,}", item.fate, item.reason)
    Console(stderr=True, markup=False, highlight=False).print(table)
