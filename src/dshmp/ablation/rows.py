"""Which rows there are, and what each is over a base: what its file says, laid over the base's values."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dshmp.config import nearest
from dshmp.errors import UserError
from dshmp.training.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Table:
    """A table of the paper, or of ours: rows by the names of their files, with the labels they have there."""

    title: str
    labels: dict[str, str]
    reference: str = "full"
    """The row that the others are compared with."""


# In the order in which they are shown. A row of several tables runs once.
TABLES = {
    "1": Table(
        "Table 1: the parts",
        {"none": "none", "ds": "DS", "hmp": "HMP", "cl": "CL"}
        | {"ds_hmp": "DS + HMP", "ds_cl": "DS + CL", "hmp_cl": "HMP + CL", "full": "DS + HMP + CL"},
    ),
    "2a": Table(
        "Table 2a: decoupling",
        {"hmp_cl": "the sentence whole", "cues_words": "words without the sentence embedding"}
        | {"cues_direct": "without learnable queries", "full": "full"},
    ),
    "2b": Table(
        "Table 2b: stages of HMP",
        {"ds_cl": "0 stages", "stages_1": "1 stage", "stages_2": "2 stages", "full": "3 stages"},
    ),
    "2c": Table(
        "Table 2c: negatives of CL",
        {"ds_hmp": "0 negatives", "negatives_10": "10 negatives"}
        | {"full": "100 negatives", "negatives_200": "200 negatives"},
    ),
    "2d": Table("Table 2d: matching of trajectories", {"matching_none": "none", "full": "Hungarian"}),
    "time": Table(
        "Ours: the arrow of time",
        {"time_none": "neither position nor displacement", "time_displacement": "displacement alone"}
        | {"time": "position in time and displacement"},
        reference="time",
    ),
}
# Each part of Table 1: the rows without and with it, in the four settings of the other two.
PARTS = {
    "DS": (("none", "ds"), ("hmp", "ds_hmp"), ("cl", "ds_cl"), ("hmp_cl", "full")),
    "HMP": (("none", "hmp"), ("ds", "ds_hmp"), ("cl", "hmp_cl"), ("ds_cl", "full")),
    "CL": (("none", "cl"), ("ds", "ds_cl"), ("hmp", "hmp_cl"), ("ds_hmp", "full")),
}


@dataclass(frozen=True)
class Row:
    """A row over its base."""

    name: str
    recipe: Recipe
    paper: float | None
    """J&F there, per cent."""
    runs: str
    """Whose runs are its own: another row's where both say the same over this base."""


def chosen_tables(text: str) -> list[str]:
    """Names of tables separated by commas, in the order in which they are shown. Raises UserError."""
    wanted = text.replace(" ", "").strip(",").split(",")
    for name in wanted:
        if name not in TABLES:
            raise UserError(f"--tables: {name!r} is no table; {nearest(name.lower(), TABLES)}")
    return [name for name in TABLES if name in wanted]


def resolve(base: Path, overrides: Sequence[str], folder: Path, tables: Iterable[str]) -> dict[str, Row]:
    """The rows of these tables by name, in the order in which they first occur. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of rows; leave --rows out for the packaged ones")
    load_recipe(base, list(overrides))  # what is wrong without any row is told without one
    rows: dict[str, Row] = {}
    for table in tables:
        for name in [each for each in TABLES[table].labels if each not in rows]:
            path = folder / f"{name}.yaml"
            if not path.is_file():
                raise UserError(f"{path}: missing, but table {table} needs this row; name another folder with --rows")
            recipe = load_recipe(base, list(overrides), path)
            paper = re.search(r"J&F ([0-9.]+)", (recipe.about.paper if recipe.about else None) or "")
            alike = next((row.runs for row in rows.values() if row.recipe == recipe), name)
            rows[name] = Row(name, recipe, float(paper[1]) if paper else None, alike)
    return rows
