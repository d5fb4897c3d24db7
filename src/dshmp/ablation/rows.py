"""Which rows there are, and what each is over a base: what its file says, laid over the base's values."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dshmp.common.errors import UserError
from dshmp.config import nearest
from dshmp.training.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Table:
    """A table of the paper, or of ours: rows by their names, with the labels they have there; the others are compared
    with the `reference`. Each row has so many `seeds` unless the command says how many."""

    title: str
    reference: str
    seeds: int
    labels: dict[str, str]


OURS = "+ours"  # what rows are called that have what is ours, too
_PARTS = (
    "none=none (LMPM-like); ds=DS; hmp=HMP; cl=CL; ds_hmp=DS + HMP; ds_cl=DS + CL; hmp_cl=HMP + CL; full=DS + HMP + CL"
)
_TABLES = f"""\
1; Table 1: the parts; full; 5; {_PARTS}
2a; Table 2a: decoupling; full; 3; hmp_cl=the sentence whole; cues_words=words without the sentence embedding; \
cues_direct=without learnable queries; full=full
2b; Table 2b: stages of HMP; full; 3; ds_cl=0 stages; stages_1=1 stage; stages_2=2 stages; full=3 stages
2c; Table 2c: negatives of CL; full; 3; ds_hmp=0 negatives; negatives_10=10 negatives; full=100 negatives; \
negatives_200=200 negatives
2d; Table 2d: matching of trajectories; full; 3; matching_none=none; full=Hungarian; \
matching_tracks=ours, by geometry, too
time; Ours: the arrow of time; time; 3; time_none=neither position nor displacement; \
time_position=position in time alone; time_displacement=displacement alone; time=position in time and displacement
1{OURS}; Table 1 with what is ours: the parts; full{OURS}; 3; {re.sub("=", f"{OURS}=", _PARTS)}
ours; Ours: what candidates tell; full{OURS}; 3; full=neither geometry nor static score; \
full{OURS}+no_static=without the static score; full{OURS}+no_camera=without the camera's motion; \
full{OURS}+soft=soft pointing; full{OURS}+tokens_kept=tokens never hidden; \
full{OURS}+tokens_hidden=tokens always hidden; full{OURS}=all of ours
"""  # name, title, reference and seeds, then the rows
TABLES = {
    name: Table(title, reference, int(seeds), dict(label.split("=") for label in labels))
    for name, title, reference, seeds, *labels in (line.split("; ") for line in _TABLES.splitlines())
}
"""In the order in which they are shown; a row of several tables runs once."""
OWN = "own"  # a table of rows that a user names
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
    seeds: int


def chosen_tables(text: str) -> list[str]:
    """Of names separated by commas. Raises UserError."""
    wanted = text.replace(" ", "").strip(",").split(",")
    for name in wanted:
        if name not in TABLES:
            raise UserError(f"--tables: {name!r} is no table; {nearest(name.lower(), TABLES)}")
    return [name for name in TABLES if name in wanted]


def own_table(names: Sequence[str], reference: str = "full") -> Table:
    """Of a user's own rows, beside the reference."""
    return Table("Rows of one's own", reference, 3, {**{name: Path(name).stem for name in names}, reference: reference})


def resolve(
    base: Path, overrides: Sequence[str], folder: Path, tables: Iterable[Table], seeds: int | None = None
) -> dict[str, Row]:
    """The rows of these tables by name, in the order in which they first occur, with as many seeds as asked for, or as
    any of the tables has. "a+b" is what a.yaml and b.yaml say. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of rows; leave --rows out for the packaged ones")
    load_recipe(base, list(overrides))  # what is wrong without any row is told without one
    rows: dict[str, Row] = {}
    for table in tables:
        for name in table.labels:
            count = table.seeds if seeds is None else seeds
            if name not in rows:
                recipe = load_recipe(base, list(overrides), [_file(part, folder, table) for part in name.split("+")])
                shown = load_recipe(_file(name.split("+")[0], folder, table)) if name.endswith(OURS) else recipe
                paper = re.search(r"J&F ([0-9.]+)", (shown.about.paper if shown.about else None) or "")
                alike = next((row.runs for row in rows.values() if row.recipe == recipe), name)
                rows[name] = Row(name, recipe, float(paper[1]) if paper else None, alike, 0)
            for each in {name, rows[name].runs}:
                rows[each] = replace(rows[each], seeds=max(rows[each].seeds, count))
    return rows


def _file(name: str, folder: Path, table: Table) -> Path:
    """A row's file: one in the folder, or one that a user names."""
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"{path}: missing, but {table.title!r} needs this row; name another folder with --rows")
    return path
