"""`dshmp ablate`: from a base and a folder of rows to README.md: what was run, and the paper's figures beside ours."""

import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from dshmp.ablation.figures import FILES, PICTURES, pictures
from dshmp.ablation.record import RECORD, read_record, write_record
from dshmp.ablation.results import ALL, LEVEL, Results, average, spread
from dshmp.ablation.rows import OURS, OWN, PARTS, TABLES, Table, chosen_tables, own_table, resolve
from dshmp.ablation.runs import devices, plan, run_all, shard
from dshmp.common.errors import UserError
from dshmp.common.files import check_owned, destination, owned_file
from dshmp.recipes import FOLDER, find_folder, find_recipe, recipe_name
from dshmp.training.cache import GRID

PAGE = "README.md"
MEASURES = {
    "IoU on the grid": "IoU of the union of what is answered with the truth, on the cache's grid of "
    f"{GRID[0]} x {GRID[1]} cells, mean over the frames, per cent; 100 where both are empty. The paper has J&F at full "
    "size. Each run answers at a threshold of its own, which half of the videos chose for the other half; *right of "
    "pair* knows no threshold",
    "J&F": "J&F as the data set's protocol has it, per cent, as in the paper",
}
CHEAP = """\
The cheap mode: static perception stays as it is and hears no words, and all rows learn from the same cached object
tokens, with losses of ours beside the paper's. So it is the rows' order that can be compared with the paper, not their
figures; and of DS only the motion half is tested: which words HMP and the motion decoder hear. The static half,
candidates by static cues (Eq. 1), is not."""
READING = f"""\
How to read it: *mean ± spread* is over the seeds (standard deviation of a run). A *difference* is paired by seed and
sentence; in brackets its {100 * LEVEL:.0f} % interval, which covers other videos (sentences of one video count as a
cluster) and, with more than one seed, other seeds. **Bold**: 0 lies outside of it. Many differences stand here, and of
twenty without any effect one would be bold; no correction is made for that."""


ALONE = "One seed says nothing of others, so nothing is concluded."
TIMELESS = """\
The base gives no row a position in time, as in the paper: rows without displacement and geometry know which frames are
neighbours, but not which comes first. Of a direction pair these choose the right one no better than by chance."""
TIMED = """\
What is ours and on in the paper's rows, too: a position in time, without which nothing tells which frame comes
first."""


def run(
    base: str | Path,
    overrides: Sequence[str],
    out: Path,
    *,
    rows: str | Path | None = None,
    tables: str,
    seeds: int | None = None,
    own: Sequence[str] = (),
    part: str | None = None,
    jobs: int | None = None,
    device: str = "auto",
    page_only: bool = False,
) -> tuple[Path, list[str]]:
    """Run what is not finished, then write the page from what is. Returns its path, and the failures, a line each.

    `base` is a recipe's file, `rows` a folder of them, or either the name of what is packaged; `own` are more rows,
    `part` is this machine's, as 1/2. Runs that are not in `out`, but recorded there, are not run again. Raises
    UserError before anything is run.
    """
    out = destination(out, folder=True)
    check_owned(out, [PAGE, RECORD])
    check_owned(out / PICTURES, FILES)
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds: must be at least 1, found {seeds}")
    chosen = {name: TABLES[name] for name in chosen_tables(tables)} | ({OWN: own_table(own)} if own else {})
    base = find_recipe(base)
    resolved = resolve(base, overrides, find_folder(rows or FOLDER / "ablations"), chosen.values(), seeds)
    runs = plan(list(resolved.values()), out)
    here = runs if part is None else shard(runs, part)
    asked = _told(base, overrides)
    recorded, sections = read_record(out, asked)
    places = devices(device)
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: must be at least 1, found {jobs}")
    for library in ("matplotlib", "sklearn"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{library}: is not installed, but the page's plots need it; pip install 'dshmp[plots]'")
    here = [] if page_only else [run for run in here if run.folder.name not in recorded]
    failures = run_all(here, places, jobs or len(places)) if here else []
    results = Results(resolved, runs, recorded)
    if not results.found:
        raise UserError("; ".join(failures) or f"{out}: no run is finished, so there is nothing to write")
    drawn = sections | pictures(results, out, places[0])
    named = {results.runs[key].folder.name: found for key, found in results.found.items()}
    write_record(out, asked, recorded | named, drawn)
    with owned_file(out, PAGE) as file:
        file.write_text(page(results, asked, chosen, list(drawn.values())), encoding="utf-8")
    return out / PAGE, failures


def page(results: Results, base: str, tables: Mapping[str, Table], pictures: Sequence[str]) -> str:
    """The whole page in Markdown; `base` tells what the rows change, `pictures` are its last sections."""
    parts = ["# Ablations", *_what(results, base)]
    compared = {name: _compared(results, table) for name, table in tables.items()}
    if left := [tables[name].title for name, labels in compared.items() if not labels]:
        parts.append(f"Left out, as no two rows of theirs are finished with the same seed: {'; '.join(left)}.")
    for name, labels in compared.items():
        if labels:
            suffix = {"1": "", f"1{OURS}": OURS}.get(name)
            parts += _section(results, tables[name], labels, suffix)
    return "\n\n".join([*parts, *pictures]) + "\n"


def _told(base: Path, overrides: Sequence[str]) -> str:
    """What the rows change, in Markdown."""
    return f"`{' '.join([recipe_name(base), *overrides])}`"


def _what(results: Results, base: str) -> list[str]:
    recipe = next(iter(results.runs.values())).recipe
    data = []
    for name, source in recipe.data.items():
        made = " (a synthetic data set)" if Path(source.root, "synthetic.json").is_file() else ""
        data.append(f"{name}{made}, learned from {source.split}, compared on {source.validation}")
    seeds = ", ".join(dict.fromkeys(str(seed) for _, seed in results.runs))
    subsets = [f"{len(results.places[name]):,} {name}" for name in results.subsets if name != ALL]
    videos = len({each.video for each in results.sentences})
    minutes = statistics.median(found.seconds / 60 for found in results.found.values())
    hours = sum(found.seconds for found in results.found.values()) / 3600
    machines: dict[str, dict[str, None]] = {}
    for found in results.found.values():
        machine, _, commit = found.machine.partition(" Commit: ")
        machines.setdefault(machine, {})[commit.rstrip(".")] = None
    where = [f"{each} Commit: {', '.join(commits)}." if any(commits) else each for each, commits in machines.items()]
    return [
        f"Base: {base}: task `{recipe.task}`, {recipe.steps:,} steps of {recipe.batch}.",
        f"Data: {'; '.join(data)}. Finished: {len(results.found)} of {len(results.runs)} runs, seeds {seeds}.",
        *[CHEAP] * (recipe.task == "motion"),
        TIMED if recipe.model.motion.position else TIMELESS,
        f"Measure: {MEASURES.get(results.measure, results.measure)}. "
        f"{', '.join([f'{len(results.sentences):,} sentences of {videos:,} videos', *subsets])}.",
        f"Training of a run took {minutes:.1f} minutes (median), of all {hours:.1f} hours. {' '.join(where)}",
        READING,
    ]


def _compared(results: Results, table: Table) -> dict[str, str]:
    """The table's rows that have finished runs, with their labels; none where no seed is finished in all of these, or
    the reference is not among them."""
    known = {row for row, _ in results.found}
    labels = {row: label for row, label in table.labels.items() if results.rows[row].runs in known}
    return labels if len(labels) > 1 and table.reference in labels and results.seeds(*labels) else {}


def _section(results: Results, table: Table, labels: Mapping[str, str], suffix: str | None) -> list[str]:
    """The table of the rows that have `labels`. `suffix`: of rows' names, where what each part brings is told, too."""
    lines = [f"## {table.title}"]
    if missing := [label for row, label in table.labels.items() if row not in labels]:
        lines.append(f"Without a finished run, and so left out: {', '.join(missing)}.")
    seeds = results.seeds(*labels)
    lines.append(f"Over {len(seeds)} seeds ({', '.join(map(str, seeds))}).")
    if len(seeds) == 1:
        lines[-1] = f"Over one seed ({seeds[0]}): the intervals cover other videos, not other seeds."
    against = labels[table.reference]
    body = [["row", "paper J&F", *results.subsets, *[f"{name}: minus *{against}*" for name in results.subsets]]]
    for row, label in labels.items():
        levels = [spread(results.values(row, seeds, name).mean(1), ".1f") for name in results.subsets]
        contrasts, paper = _contrasts(results, results.differs(row, table.reference), seeds), results.rows[row].paper
        body.append([label, "" if paper is None else f"{paper:.1f}", *levels, *contrasts])
    lines += [_markdown(body, 1), _verdict(results, labels, table.reference, seeds) if len(seeds) > 1 else ALONE]
    if results.abilities:
        body = [["row", *results.abilities]]
        for row, label in labels.items():
            body.append([label, *(f"{results.values(row, seeds, name).mean():.1f}" for name in results.abilities)])
        lines += ["By ability:", _markdown(body, 1)]
    if suffix is not None and not missing:
        body = [["part", "beside", "paper J&F", *results.subsets]]
        for part, pairs in PARTS.items():
            named = [(f"{without}{suffix}", f"{having}{suffix}") for without, having in pairs]
            settings = {labels[pair[0]]: [pair] for pair in named} | {"mean of the four": named}
            for beside, chosen in settings.items():
                weights = average(chosen)
                paper = results.paper(weights)
                cells = ["" if paper is None else f"{paper:+.1f}", *_contrasts(results, weights, seeds)]
                body.append([part, beside, *cells])
        told = [_gain(results, part, suffix, seeds) for part in PARTS]
        lines += ["### What each part brings", _markdown(body, 2)]
        lines.append("\n".join(told) if len(seeds) > 1 else ALONE)
    return lines


def _verdict(results: Results, labels: Mapping[str, str], reference: str, seeds: Sequence[int]) -> str:
    """What may be said of the rows beside the reference, by all sentences: no more than the intervals do."""
    better, worse, alike = list[str](), list[str](), list[str]()
    for row, label in labels.items():
        if weights := results.differs(row, reference):
            found = results.contrast(weights, seeds, ALL)
            side = alike if abs(found.mean) <= found.half else better if found.mean > 0 else worse
            side.append(f"{label} ({found.mean:+.1f}{f' ± {found.half:.1f}' if side is alike else ''})")
    told = [("above", better), ("below", worse), ("not told apart", alike)]
    parts = [f"{what}: {', '.join(rows)}" for what, rows in told if rows]
    return f"Beside *{labels[reference]}*, over {ALL}, {'; '.join(parts)}."


def _gain(results: Results, part: str, suffix: str, seeds: Sequence[int]) -> str:
    """What may be said of a part, in the mean of its four settings."""
    weights = average([(f"{without}{suffix}", f"{having}{suffix}") for without, having in PARTS[part]])
    found, paper = results.contrast(weights, seeds, ALL), results.paper(weights)
    low, high = found.mean - found.half, found.mean + found.half
    says = "helps" if low > 0 else "harms" if high < 0 else "cannot be told from what does nothing"
    beside = ""
    if paper is not None:
        where = "lies in the interval" if low <= paper <= high else "lies outside of the interval"
        beside = f"; the paper's {paper:+.1f} {where}"
    return f"- {part} {says} on this data: {low:+.1f} to {high:+.1f}{beside}."


def _contrasts(results: Results, weights: Mapping[str, float], seeds: Sequence[int]) -> list[str]:
    return [str(results.contrast(weights, seeds, name)) if weights else "" for name in results.subsets]


def _markdown(lines: Sequence[Sequence[str]], left: int) -> str:
    """A table whose first line is its head; so many columns stand at the left."""
    marks = ["---"] * left + ["--:"] * (len(lines[0]) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [lines[0], marks, *lines[1:]])
