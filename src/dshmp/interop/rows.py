"""Weights from elsewhere into a part of a model, and what became of them: one row per group of parameters."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from dshmp.checkpoint import check_match

Fate = Literal["loaded", "fresh", "left out"]
Told = tuple[str, Fate, str, Tensor]
"""A tensor with its part, fate and reason."""


@dataclass(frozen=True, kw_only=True)
class LoadedPart:
    """Parameters of one part that share a fate for the same reason."""

    part: str
    """A part of the model; for what is left out also one that the model lacks."""
    tensors: int
    """Of the model where loaded or fresh, of the file where left out; the file may hold them split or packed."""
    parameters: int
    """Numbers in them. Loaded and fresh add up to the model, loaded and left out to the file."""
    fate: Fate
    reason: str = ""


def load_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    fresh: Callable[[str], str | None],
    part: Callable[[str], str],
    source: str | Path,
    advice: str,
) -> list[Told]:
    """Load the weights if everything fits.

    Args:
        fresh: why a tensor of this name starts fresh; None where it must be among the weights.
        part: to which part it belongs.
        source, advice: for the message where they do not fit.
    """
    own = module.state_dict()
    whys = {key: fresh(key) for key in own}
    check_match(source, weights, {key: own[key] for key, why in whys.items() if why is None}, advice)
    module.load_state_dict(weights, strict=False)
    return [(part(key), "fresh" if why else "loaded", why or "", own[key]) for key, why in whys.items()]


def grouped(tensors: Iterable[Told]) -> tuple[LoadedPart, ...]:
    """A row for all that share part, fate and reason."""
    sizes: dict[tuple[str, Fate, str], list[int]] = defaultdict(list)
    for part, fate, why, tensor in tensors:
        sizes[part, fate, why].append(tensor.numel())
    return tuple(
        LoadedPart(part=part, tensors=len(found), parameters=sum(found), fate=fate, reason=why)
        for (part, fate, why), found in sizes.items()
    )


def report(rows: Iterable[LoadedPart], title: str, stderr: bool = True) -> None:
    """Print the rows as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "tensors", "parameters", "fate", "reason", title=title, title_justify="left", title_style="")
    for column in table.columns[1:3]:
        column.justify = "right"
    for item in rows:
        table.add_row(item.part, f"{item.tensors:,}", f"{item.parameters:,}", item.fate, item.reason)
    Console(stderr=stderr, markup=False, highlight=False).print(table)
