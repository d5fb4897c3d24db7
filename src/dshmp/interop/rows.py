"""Weights from elsewhere into a part of a model, and what became of them: one row per group of parameters."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from dshmp.checkpoint import check_match
from dshmp.interop.keymap import NameTable

Fate = Literal["loaded", "fresh", "left out"]
Told = tuple[str, Fate, str, Tensor]  # a tensor with its name or part, fate and reason


@dataclass(frozen=True)
class LoadedPart:
    """Parameters of one part that share a fate for the same reason. Loaded and fresh add up to the model, loaded and
    left out to the file, which may hold them split or packed."""

    part: str
    tensors: int
    parameters: int
    fate: Fate
    reason: str = ""


def load_weights(
    module: nn.Module, weights: Mapping[str, Tensor], fresh: Callable[[str], str | None], path: str | Path, advice: str
) -> list[Told]:
    """Load the weights; UserError, with `path` and `advice`, and nothing changed where they do not fit. `fresh` says
    why a tensor of this name starts fresh; None where it must be among the weights."""
    own = module.state_dict()
    whys = {key: fresh(key) for key in own}
    check_match(path, weights, {key: own[key] for key, why in whys.items() if why is None}, advice)
    module.load_state_dict(weights, strict=False)
    return [(key, "fresh" if why else "loaded", why or "", own[key]) for key, why in whys.items()]


def left_out(rest: Mapping[str, Tensor], names: NameTable, otherwise: str) -> list[Told]:
    """What has no place here, with the table's reason or the one given."""
    found = {key: names.find(key, left=True) for key in rest}
    return [(key, "left out", rule[0].reason if rule else otherwise, rest[key]) for key, rule in found.items()]


def grouped(tensors: Iterable[Told]) -> tuple[LoadedPart, ...]:
    """A row for all that share part (what a name begins with), fate and reason."""
    sizes: dict[tuple[str, Fate, str], list[int]] = defaultdict(list)
    for name, fate, why, tensor in tensors:
        sizes[name.partition(".")[0], fate, why].append(tensor.numel())
    return tuple(LoadedPart(name, len(found), sum(found), fate, why) for (name, fate, why), found in sizes.items())


def report(rows: Iterable[LoadedPart], title: str, stderr: bool = True) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    counts = (Column(name, justify="right") for name in ("tensors", "parameters"))
    table = Table("part", *counts, "fate", "reason", title=title, title_justify="left", title_style="")
    for item in rows:
        table.add_row(item.part, f"{item.tensors:,}", f"{item.parameters:,}", item.fate, item.reason)
    Console(stderr=stderr, markup=False, highlight=False).print(table)
