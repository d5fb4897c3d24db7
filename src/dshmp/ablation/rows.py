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
    """A table of the paper, or of ours: rows by the names of their files, with the labels they have there; the others
    are compared with the `reference`."""

    title: str
    labels: dict[str, str]
    reference: str


_TABLES = """\
1; Table 1: the parts; full
none=none; ds=DS; hmp=HMP; cl=CL; ds_hmp=DS + HMP; ds_cl=DS + CL; hmp_cl=HMP + CL; full=DS + HMP + CL
2a; Table 2a: decoupling; full
hmp_cl=the sentence whole; cues_words=words without the sentence embedding; \
cues_direct=without learnable queries; full=full
2b; Table 2b: stages of HMP; full
ds_cl=0 stages; stages_1=1 stage; stages_2=2 stages; full=3 stages
2c; Table 2c: negatives of CL; full
ds_hmp=0 negatives; negatives_10=10 negatives; full=100 negatives; negatives_200=200 negatives
2d; Table 2d: matching of trajectories; full
matching_none=none; full=Hungarian
time; Ours: the arrow of time; time
time_none=neither position nor displacement; time_displacement=displacement alone; \
time=position in time and displacement
"""  # name, title and reference, then the rows
_LINES = [line.split("; ") for line in _TABLES.splitlines()]
TABLES = {
    name: Table(title, dict(label.split("=") for label in labels), reference)
    for (name, title, reference), labels in zip(_LINES[::2], _LINES[1::2], strict=True)
}
"""In the order in which they are shown; a row of several tables runs once."""
# Each part of Table 1: the rows without and with it, in the four settings of the other two.
PARTS = {
    "DS": (("none", "ds"), ("hmp", "ds_hmp"), ("cl", "ds_cl"), ("hmp_cl", "full")),
    "HMP": (("none", "hmp"), ("ds", "ds_hmp"), ("cl", "hmp_cl"), ("ds_cl", "full")),
    "CL": (("none", "cl"), ("ds", "ds_cl"), ("hmp", "hmp_cl"), ("ds_hmp", "full")),
}


@dataclass(frozen=True)
class Row:
    """A row over its base, with J&F in the paper, per cent. Its `runs` are another row's where both say the same."""

    name: str
    recipe: Recipe
    paper: float | None
    runs: str


def chosen_tables(text: str) -> list[str]:
    """Of names separated by commas. Raises UserError."""
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
