"""`dshmp ablate`: from a base and a folder of rows to README.md: what was run, and the paper's figures beside ours."""

import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dshmp.ablation.figures import FILES, PICTURES, pictures
from dshmp.ablation.results import ALL, LEVEL, Results, average, spread
from dshmp.ablation.rows import PARTS, TABLES, Table, chosen_tables, resolve
from dshmp.ablation.runs import devices, plan, run_all
from dshmp.data.base import read_json
from dshmp.errors import UserError
from dshmp.files import check_owned, destination, owned_file
from dshmp.recipes import FOLDER, find_folder, find_recipe, recipe_name

PAGE = "README.md"
MEASURES = {
    "IoU on the grid": "IoU of the union of what is answered with the truth, on the cache's grid of 16 x 20 cells, "
    "mean over the frames, per cent; 100 where both are empty. The paper has J&F at full size",
    "J&F": "J&F as the data set's protocol has it, per cent, as in the paper",
}
CHEAP = """\
The cheap mode: static perception stays as it is, and all rows learn from the same cached object tokens, with losses of
ours beside the paper's. So it is the rows' order that can be compared with the paper, not their figures."""
READING = f"""\
How to read it: *mean ± spread* is over the seeds (standard deviation of a run). A *difference* is paired by seed and
sentence; in brackets its {100 * LEVEL:.0f} % interval, which covers other videos (sentences of one video count as a
cluster) and, with more than one seed, other seeds. **Bold**: 0 lies outside of it. Many differences stand here, and of
twenty without any effect one would be bold; no correction is made for that."""


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
    drawn = pictures(results, out, places[0])
    with owned_file(out, PAGE) as part:
        part.write_text(page(results, base, overrides, names, drawn), encoding="utf-8")
    return out / PAGE, failures


def page(results: Results, base: Path, overrides: Sequence[str], tables: Sequence[str], pictures: Sequence[str]) -> str:
    """The whole page in Markdown; `pictures` are its last sections."""
    parts = ["# Ablations", *_what(results, base, overrides)]
    for name in tables:
        parts += _section(results, TABLES[name], name == "1")
    return "\n\n".join([*parts, *pictures]) + "\n"


def _what(results: Results, base: Path, overrides: Sequence[str]) -> list[str]:
    recipe = next(iter(results.runs.values())).recipe
    changed = f" with `{' '.join(overrides)}`" if overrides else ""
    data = []
    for name, source in recipe.data.items():
        made = " (a synthetic data set)" if Path(source.root, "synthetic.json").is_file() else ""
        data.append(f"{name}{made}, learned from {source.split}, compared on {source.validation}")
    seeds = ", ".join(dict.fromkeys(str(seed) for _, seed in results.runs))
    subsets = [f"{len(places):,} {name}" for name, places in results.subsets.items() if name != ALL]
    videos = len({each.video for each in results.sentences})
    minutes = statistics.median(found.seconds / 60 for found in results.found.values())
    return [
        f"Base: `{recipe_name(base)}`{changed}: task `{recipe.task}`, {recipe.steps:,} steps of {recipe.batch}.",
        f"Data: {'; '.join(data)}. Finished: {len(results.found)} of {len(results.runs)} runs, seeds {seeds}.",
        *[CHEAP] * (recipe.task == "motion"),
        f"Measure: {MEASURES.get(results.measure, results.measure)}. "
        f"{', '.join([f'{len(results.sentences):,} sentences of {videos:,} videos', *subsets])}.",
        f"Training of a run took {minutes:.1f} minutes (median). {_machine(results)}",
        READING,
    ]


def _machine(results: Results) -> str:
    """Machines, versions and commits of the runs, as their run.json tell; a damaged one says nothing."""
    lines: dict[str, None] = {}
    for key in results.found:
        with suppress(UserError, KeyError, TypeError, AttributeError):
            for start in read_json(results.runs[key].folder / "run.json")["starts"]:
                place = ", ".join(start["gpus"]) or f"{start['cpus']} CPU cores, {start['threads']} thread(s) each run"
                versions = ", ".join(f"{name} {each}" for name, each in start["packages"].items() if each)
                git = start.get("git")
                commit = f" Commit: {git['commit'][:12]}{' with changes' * git['changed']}." if git else ""
                lines[f"Machine: {place}. Versions: {versions}.{commit}"] = None
    return " ".join(lines)


def _section(results: Results, table: Table, parts: bool) -> list[str]:
    lines, known = [f"## {table.title}"], {row for row, _ in results.found}
    labels = {row: label for row, label in table.labels.items() if results.rows[row].runs in known}
    if missing := [label for row, label in table.labels.items() if row not in labels]:
        lines.append(f"Without a finished run, and so left out: {', '.join(missing)}.")
    seeds = results.seeds(*labels)
    if len(labels) < 2 or table.reference not in labels or not seeds:
        return [*lines, "No seed is finished in enough rows for a comparison."]
    lines.append(f"Over {len(seeds)} seeds ({', '.join(map(str, seeds))}).")
    if len(seeds) == 1:
        lines[-1] = f"Over one seed ({seeds[0]}): the intervals cover other videos, not other seeds."
    against = labels[table.reference]
    body = [["row", "paper J&F", *results.subsets, *[f"{name}: minus *{against}*" for name in results.subsets]]]
    for row, label in labels.items():
        levels = [spread(results.values(row, seeds, name).mean(1), ".1f") for name in results.subsets]
        contrasts, paper = _contrasts(results, results.differs(row, table.reference), seeds), results.rows[row].paper
        body.append([label, "" if paper is None else f"{paper:.1f}", *levels, *contrasts])
    lines.append(_markdown(body, 1))
    if parts and not missing:
        body = [["part", "beside", "paper J&F", *results.subsets]]
        for part, pairs in PARTS.items():
            settings = {labels[pair[0]]: [pair] for pair in pairs} | {"mean of the four": list(pairs)}
            for beside, chosen in settings.items():
                weights = average(chosen)
                paper = results.paper(weights)
                cells = ["" if paper is None else f"{paper:+.1f}", *_contrasts(results, weights, seeds)]
                body.append([part, beside, *cells])
        lines += ["### What each part brings", _markdown(body, 2)]
    return lines


def _contrasts(results: Results, weights: Mapping[str, float], seeds: Sequence[int]) -> list[str]:
    return [str(results.contrast(weights, seeds, name)) if weights else "" for name in results.subsets]


def _markdown(lines: Sequence[Sequence[str]], left: int) -> str:
    """A table whose first line is its head; so many columns stand at the left."""
    marks = ["---"] * left + ["--:"] * (len(lines[0]) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [lines[0], marks, *lines[1:]])
