"""What is told of scores: results.json, tables, warnings, and whether two results may be compared."""

import csv
import hashlib
import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dshmp import __version__
from dshmp.data.base import read_json
from dshmp.errors import UserError
from dshmp.evaluation.coco import frame_list
from dshmp.evaluation.figures import LEVEL, RESAMPLES, SEED, Scores, by_subset, figures
from dshmp.evaluation.predictions import UNREADABLE, Kind, Predictions
from dshmp.evaluation.protocols import SampleScore
from dshmp.files import owned_file, to_json
from dshmp.revision import revision

log = logging.getLogger(__name__)

SHOWN = 20  # damaged files named one by one; results.json names all


SUBSET_COLUMNS = ("J&F", "J", "F", "static oracle", "right of pair", "N-acc", "T-acc")


def document(scores: Scores, name: str, split_name: str, pred: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """results.json: the figures and all they depend on; `facts` are those of `read_facts`."""
    frames = hashlib.sha256()
    count = 0
    names: set[tuple[str, str]] = set()
    for item in scores.split.expressions:
        listed = scores.split.videos[item.video].frames
        for frame in listed if item.scored is None else (listed[t] for t in item.scored):
            frames.update(f"{item.video}\t{item.id}\t{frame}\n".encode())
            names.add((item.video, frame))
            count += 1
    return {
        "dataset": name,
        "split": split_name,
        "predictions": str(pred),
        "figures": {key: round(value, 4) for key, value in scores.figures.items()},
        "intervals": {key: [round(value, 4) for value in ends] for key, ends in scores.intervals.items()},
        "bootstrap": {"unit": "video", "level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "counts": {
            "videos": len({item.video for item in scores.split.expressions}),
            "expressions": len(scores.split.expressions),
            "frames": len(names),
            "expression frames": count,
        },
        "frame_list": {
            "sha256": frames.hexdigest(),  # of the lines "video <tab> expression <tab> frame"
            "source": frame_list(scores.split)[0],
        },
        "prediction": facts,
        "code": {"version": __version__, "revision": revision()},
        "subsets": by_subset(scores.rows),
        "problems": [asdict(problem) for problem in scores.problems],
        "videos": _per_video(scores.rows),
        "expressions": [asdict(row) for row in scores.rows],
    }


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Why two results are not comparable; nothing where they are."""
    found = []
    if ours["dataset"] != theirs["dataset"]:
        found.append(f"data sets {ours['dataset']} and {theirs['dataset']}")
    elif ours["split"] != theirs["split"]:
        found.append(f"splits {ours['split']} and {theirs['split']}")
        if {ours["split"], theirs["split"]} == {"valid_u", "valid"}:
            found[-1] += ": valid_u gives several points more than valid"
    elif ours["frame_list"].get("sha256") != theirs["frame_list"].get("sha256"):
        found.append("other frames or expressions were scored")
    for key in ("resolution", "pretraining"):
        one, two = (results["prediction"].get(key) for results in (ours, theirs))
        if one != two:
            found.append(f"{key} {_or_unknown(one)} and {_or_unknown(two)}")
    return found


def print_table(report: dict[str, Any], other: dict[str, Any] | None = None, label: str = "") -> None:
    """Figures down with their intervals, to stdout; another result beside if given."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    counts, level = report["counts"], f"{100 * LEVEL:.0f} %"
    title = f"{report['dataset']} {report['split']}: {counts['videos']} videos, {counts['expressions']} expressions"
    source = report["frame_list"]["source"]
    if source:
        title += f"\nframes: {source}"
    table = Table("figure")
    results = [report] + ([other] if other else [])
    for heading in ["", label][: len(results)]:
        table.add_column(_shown(heading) or "score")
        table.add_column(level)
    for figure in dict.fromkeys(key for result in results for key in result["figures"]):
        cells = []
        for result in results:
            value, ends = result["figures"].get(figure), result["intervals"].get(figure)
            cells += ["" if value is None else f"{value:.1f}", f"{ends[0]:.1f} - {ends[1]:.1f}" if ends else ""]
        table.add_row(_shown(figure), *cells)
    tables = [table]
    if report["subsets"]:
        columns = [name for name in SUBSET_COLUMNS if name in report["figures"]]
        tables.append(Table("subset", "expressions", *columns))
        for name, values in report["subsets"].items():
            cells = [f"{values[column]:.1f}" if column in values else "" for column in columns]
            tables[-1].add_row(_shown(name), str(values["expressions"]), *cells)
    for each in tables:
        for column in each.columns[1:]:
            column.justify = "right"
    Console(width=120).print(escape(title), *tables, sep="\n", highlight=False)


def _shown(text: str) -> str:
    """What a file says, as a cell of a table."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def tell(scores: Scores, layout: str) -> None:
    """One line per kind of missing part and per damaged one, as warnings."""
    counts = Counter(problem.kind for problem in scores.problems)
    first = {problem.kind: problem.path for problem in reversed(scores.problems)}
    texts: dict[Kind, str] = {
        "video": "video folder(s) missing, all their expressions",
        "expression": "sample(s) without a detection" if layout == "coco" else "expression folder(s) missing",
        "frame": "frame(s) missing",
    }
    for kind, text in texts.items():
        if counts[kind]:
            log.warning("%d %s count 0, the first is %s", counts[kind], text, first[kind])
    for problem in scores.damaged[:SHOWN]:
        log.warning("%s: %s; it counts 0", problem.path, problem.reason)
    if len(scores.damaged) > SHOWN:
        log.warning("and %d more damaged files", len(scores.damaged) - SHOWN)
    source, published = frame_list(scores.split)
    if not published:
        log.warning("the frames are %s: these are not the frames of published figures", source)
    left_out = {(problem.path.split("/")[0]) for problem in scores.problems if problem.kind == "video"}
    kept = [row for row in scores.rows if row.complete or row.video in left_out]
    if layout == "mevis" and len(kept) < len(scores.rows):
        log.warning(
            "MeViS's own script leaves out the %d incomplete expression(s)%s",
            len(scores.rows) - len(kept),
            f" and gives J&F {figures(kept)['J&F']:.1f}" if kept else "",
        )


RESULTS, EXPRESSIONS, VIDEOS = FILES = ("results.json", "expressions.csv", "videos.csv")


def write(out: Path, scores: Scores, report: dict[str, Any]) -> None:
    """results.json, and its expressions and videos as CSV."""
    columns = list(dict.fromkeys(name for row in scores.rows for name in row.terms))
    rows = [[row.video, row.id, row.text, *_cells(figures([row]), columns)] for row in scores.rows]
    videos = [[video, *_cells(values, ["expressions", *columns])] for video, values in report["videos"].items()]
    _write_csv(out, EXPRESSIONS, ["video", "expression", "text", *columns], rows)
    _write_csv(out, VIDEOS, ["video", "expressions", *columns], videos)
    with owned_file(out, RESULTS) as part:
        part.write_text(to_json(report), encoding="utf-8")


def _write_csv(out: Path, name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with (
        owned_file(out, name) as part,
        open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _cells(values: dict[str, float], columns: Sequence[str]) -> list[object]:
    return [round(values[name], 4) if name in values else "" for name in columns]


def _per_video(rows: Sequence[SampleScore]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[SampleScore]] = defaultdict(list)
    for row in rows:
        groups[row.video].append(row)
    return {video: {"expressions": len(group), **figures(group)} for video, group in groups.items()}


def read_facts(pred: Path) -> dict[str, Any]:
    """What predict.json says of the model and how it was run; nothing where there is none."""
    content = Predictions(pred).read_json("predict.json")
    try:
        facts = json.loads(content) if content is not None else {}
    except UNREADABLE as error:
        raise UserError(f"{pred}/predict.json: is not valid JSON ({error}); remove it or predict again") from None
    if not isinstance(facts, dict):
        raise UserError(f"{pred}/predict.json: expected a JSON object at the top")
    return facts


def read_results(path: Path) -> dict[str, Any]:
    """A results.json. Raises UserError."""
    results = read_json(path)
    kinds = {"dataset": str, "split": str, "figures": dict, "intervals": dict, "frame_list": dict, "prediction": dict}
    if not all(isinstance(results.get(key), kind) for key, kind in kinds.items()) or not _are_numbers(
        [*results["figures"].values(), *(end for ends in results["intervals"].values() for end in _pair(ends))]
    ):
        raise UserError(f"{path}: is not the results.json of `dshmp score`")
    return results


def _are_numbers(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _pair(value: object) -> Sequence[object]:
    return value if isinstance(value, list) and len(value) == 2 else (None,)


def _or_unknown(value: object) -> str:
    return "unknown" if value is None else str(value)
