"""README.md of an ablation: what was run, tables with the paper's figures beside ours, and what follows from them."""

import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from dshmp.ablation.results import ALL, CRITICAL, Results, average
from dshmp.ablation.rows import PARTS, TABLES, Table
from dshmp.ablation.statistics import LEVEL, Estimate
from dshmp.data.base import read_json
from dshmp.errors import UserError
from dshmp.recipes import recipe_name
from dshmp.training.recipe import Recipe

MEASURES = {
    "IoU on the grid": (
        "IoU of the union of what is answered with the truth, on the cache's grid of 16 x 20 cells, mean over the "
        "frames, per cent; 100 where both are empty. The paper has J&F at full size"
    ),
    "J&F": "J&F as the data set's protocol has it, per cent, as in the paper",
}


@dataclass(frozen=True)
class Picture:
    """A picture in the page's folder and what is said of it."""

    path: str
    title: str
    text: str


def page(
    results: Results, base: Path, overrides: Sequence[str], tables: Sequence[str], pictures: Sequence[Picture]
) -> str:
    """The whole page in Markdown."""
    parts = ["# Ablations", *_what(results, base, overrides)]
    for name in tables:
        parts += _section(results, name)
    for picture in pictures:
        parts += [f"## {picture.title}", f"![{picture.title}]({picture.path})", picture.text]
    return "\n\n".join(parts) + "\n"


def _section(results: Results, name: str) -> list[str]:
    """A table with what is said of it; rows without any finished run are left out and named."""
    table, missing = results.ran(TABLES[name])
    parts = [f"## {table.title}"]
    if missing:
        parts.append(f"Without a finished run, and so left out: {', '.join(missing)}.")
    seeds = results.seeds(list(table.labels))
    if len(table.labels) < 2 or table.reference not in table.labels or not seeds:
        return [*parts, "No seed is finished in enough rows for a comparison."]
    parts += [_over(seeds), _table(results, name, table, seeds), *_facts(results, table, seeds)]
    if name == "1" and not missing:
        parts += ["### What each part brings", _parts(results, seeds)]
    return parts


# --- what was run ---


def _what(results: Results, base: Path, overrides: Sequence[str]) -> list[str]:
    first = next(iter(results.runs.values()))
    recipe = first.recipe
    seeds = list(dict.fromkeys(seed for _, seed in results.runs))
    changed = f" with `{' '.join(overrides)}`" if overrides else ""
    lines = [
        f"Base: `{recipe_name(base)}`{changed}: task `{recipe.task}`, {recipe.steps:,} steps of {recipe.batch}.",
        f"Data: {_data(recipe)}. Finished: {len(results.found)} of {len(results.runs)} runs, seeds "
        f"{', '.join(map(str, seeds))}.",
    ]
    if recipe.task == "motion":
        lines.append(
            "The cheap mode: static perception stays as it is, and all rows learn from the same cached object tokens, "
            "with losses of ours beside the paper's. So it is the rows' order that can be compared with the paper, "
            "not their figures."
        )
    if results.found:
        measure = next(iter(results.found.values())).measure
        minutes = [found.seconds / 60 for found in results.found.values()]
        lines.append(
            f"Measure: {MEASURES.get(measure, measure)}. {len(results.sentences):,} sentences of "
            f"{len({each.video for each in results.sentences}):,} videos"
            + "".join(f", {len(results.chosen[name]):,} {name}" for name in results.subsets if name != ALL)
            + "."
        )
        lines.append(f"Training of a run took {statistics.median(minutes):.1f} minutes (median). {_machine(results)}")
    lines.append(
        "How to read it: *mean ± spread* is over the seeds (standard deviation of a run). A *difference* is paired by "
        f"seed and sentence; in brackets its {100 * LEVEL:.0f} % interval, which covers other videos (sentences of one "
        "video count as a cluster) and, with more than one seed, other seeds. **Bold**: 0 lies outside of it. Many "
        "differences stand here, and of twenty without any effect one would be bold; no correction is made for that."
    )
    return lines


def _data(recipe: Recipe) -> str:
    parts = []
    for name, source in recipe.data.items():
        made = " (a synthetic data set)" if Path(source.root, "synthetic.json").is_file() else ""
        parts.append(f"{name}{made}, learned from {source.split}, compared on {source.validation}")
    return "; ".join(parts)


def _machine(results: Results) -> str:
    """Machines, versions and commits of the runs, as their run.json tell."""
    starts: list[dict[str, Any]] = []
    for key in results.found:
        with suppress(UserError, KeyError):  # a damaged one says nothing, and is no reason for no page
            starts += read_json(results.runs[key].folder / "run.json")["starts"]
    if not starts:
        return ""

    def every(texts: Sequence[str]) -> str:
        return " or ".join(dict.fromkeys(texts))

    places = every(
        [", ".join(s["gpus"]) or f"{s['cpus']} CPU cores, {s['threads']} thread(s) each run" for s in starts]
    )
    versions = every([", ".join(f"{name} {each}" for name, each in s["packages"].items() if each) for s in starts])
    commits = every(
        [f"{s['git']['commit'][:12]}{' with changes' if s['git']['changed'] else ''}" for s in starts if s.get("git")]
    )
    return f"Machine: {places}. Versions: {versions}." + (f" Commit: {commits}." if commits else "")


def _over(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"Over one seed ({seeds[0]}): the intervals cover other videos, not other seeds."
    return f"Over {len(seeds)} seeds ({', '.join(map(str, seeds))})."


# --- tables ---


def _table(results: Results, name: str, table: Table, seeds: Sequence[int]) -> str:
    against = table.labels[table.reference]
    paper = any(results.rows[row].paper is not None for row in table.labels)
    head = list(PARTS) if name == "1" else ["row"]
    head += ["paper J&F"] * paper + [f"{subset}" for subset in results.subsets]
    head += [f"{subset}: minus *{against}*" for subset in results.subsets]
    lines = [head, [":-:" if name == "1" else "---"] * (3 if name == "1" else 1)]
    lines[1] += ["--:"] * (len(head) - len(lines[1]))
    for row, label in table.labels.items():
        cells = ["✓" if part in label.split(" + ") else "" for part in PARTS] if name == "1" else [label]
        figure = results.rows[row].paper
        cells += [_plain(figure)] * paper
        cells += [_level(*results.level(row, seeds, subset)) for subset in results.subsets]
        for subset in results.subsets:
            same = results.rows[row].runs == results.rows[table.reference].runs
            cells.append("" if same else shown(results.difference(row, table.reference, seeds, subset)))
        lines.append(cells)
    return _markdown(lines)


def _parts(results: Results, seeds: Sequence[int]) -> str:
    labels = TABLES["1"].labels
    head = ["part", "beside", "paper J&F", *results.subsets]
    lines = [head, ["---", "---", *["--:"] * (len(head) - 2)]]
    for part, pairs in PARTS.items():
        settings = [(labels[without], [(without, with_it)]) for without, with_it in pairs]
        for beside, chosen in [*settings, ("mean of the four", list(pairs))]:
            weights = average(chosen)
            figure = results.paper(weights)
            cells = ["" if figure is None else f"{figure:+.1f}"]
            cells += [shown(results.contrast(weights, seeds, subset)) for subset in results.subsets]
            lines.append([part, beside, *cells])
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def shown(value: Estimate) -> str:
    """A difference with its interval; bold where 0 lies outside."""
    text = f"{value.mean:+.1f} [{value.low:+.1f}, {value.high:+.1f}]"
    return f"**{text}**" if value.beyond else text


def _level(mean: float, deviation: float) -> str:
    return f"{mean:.1f}" if deviation != deviation else f"{mean:.1f} ± {deviation:.1f}"


def _plain(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.1f}"


# --- what follows ---


def _facts(results: Results, table: Table, seeds: Sequence[int]) -> list[str]:
    """What can be said, as a list: which rows differ from the reference, and where our order is not the paper's."""
    lines = []
    for subset in [name for name in (ALL, CRITICAL) if name in results.subsets]:
        beyond: list[str] = []
        within: list[str] = []
        for row, label in table.labels.items():
            if results.rows[row].runs == results.rows[table.reference].runs:
                continue
            value = results.difference(row, table.reference, seeds, subset)
            (beyond if value.beyond else within).append(f"{label} ({value.mean:+.1f})")
        against = table.labels[table.reference]
        lines += [f"- {subset}: differs from *{against}* beyond its interval: {', '.join(beyond)}."] if beyond else []
        lines += [f"- {subset}: not told apart from *{against}*: {', '.join(within)}."] if within else []
    if ALL in results.subsets:
        lines += _order(results, table, seeds)
    return ["\n".join(lines)] if lines else []


def _order(results: Results, table: Table, seeds: Sequence[int]) -> list[str]:
    known = [row for row in table.labels if results.rows[row].paper is not None]
    if len(known) < 2:
        return []
    beyond: list[str] = []
    within: list[str] = []
    pairs = 0
    for one, other in combinations(known, 2):
        paper = results.paper({one: 1.0, other: -1.0})
        ours = results.difference(one, other, seeds, ALL)
        pairs += 1
        if paper is None or paper * ours.mean > 0:
            continue
        better, worse = (one, other) if paper > 0 else (other, one)
        text = f"{table.labels[worse]} above {table.labels[better]} by {abs(ours.mean):.1f}, paper {-abs(paper):.1f}"
        (beyond if ours.beyond else within).append(text)
    lines = [f"- Order: {pairs - len(beyond) - len(within)} of {pairs} pairs of rows stand as in the paper."]
    if beyond:
        lines.append(f"- Against the paper beyond the interval: {'; '.join(beyond)}.")
    if within:
        lines.append(
            f"- The other way round than in the paper, but within the interval, so no difference: {'; '.join(within)}."
        )
    return lines
