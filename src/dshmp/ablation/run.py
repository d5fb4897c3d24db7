"""`dshmp ablate`: from a base and a folder of rows to a page."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from dshmp.ablation.figures import FILES, PICTURES, pictures
from dshmp.ablation.page import page
from dshmp.ablation.results import Results
from dshmp.ablation.rows import chosen_tables, resolve
from dshmp.ablation.runs import devices, plan, run_all
from dshmp.errors import UserError
from dshmp.files import check_owned, destination, owned_file
from dshmp.recipes import FOLDER, find_folder, find_recipe

PAGE = "README.md"


def run(
    base: str | Path,
    overrides: Sequence[str],
    out: Path,
    *,
    rows: str | Path | None = None,
    tables: str,
    seeds: int = 3,
    jobs: int | None = None,
    device: str = "auto",
    page_only: bool = False,
) -> tuple[Path, list[str]]:
    """Run what is not finished, then write the page from what is. Returns its path, and the failures, a line each.

    `base` is a recipe's file, `rows` a folder of them, or either the name of what is packaged. Raises UserError before
    anything is run.
    """
    out = destination(out, folder=True)
    check_owned(out, [PAGE])
    check_owned(out / PICTURES, FILES)
    names = chosen_tables(tables)
    base = find_recipe(base)
    resolved = resolve(base, overrides, find_folder(rows or FOLDER / "ablations"), names)
    runs = plan(list(resolved.values()), seeds, out)
    places = devices(device)
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: must be at least 1, found {jobs}")
    for library in ("matplotlib", "sklearn"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{library}: is not installed, but the page's plots need it; pip install 'dshmp[plots]'")
    failures = [] if page_only else run_all(runs, places, jobs or len(places))
    results = Results(resolved, runs)
    if not results.found:
        raise UserError("; ".join(failures) or f"{out}: no run is finished, so there is nothing to write")
    drawn = pictures(results, names, out, places[0])
    with owned_file(out, PAGE) as part:
        part.write_text(page(results, base, overrides, names, drawn), encoding="utf-8")
    return out / PAGE, failures
