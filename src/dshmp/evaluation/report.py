"""From rows to figures, ratios of sums and how far they may be off, and all that is told of them: results.json, tables,
warnings, and whether two results may be compared."""

import csv
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat

from dshmp import __version__
from dshmp.common.errors import UserError, printable
from dshmp.common.files import owned_file, to_json
from dshmp.common.revision import revision
from dshmp.data.base import Split
from dshmp.evaluation.coco import frame_list
from dshmp.evaluation.predictions import Problem
from dshmp.evaluation.protocols import SampleScore

log = logging.getLogger(__name__)

RESULTS, EXPRESSIONS, VIDEOS = FILES = ("results.json", "expressions.csv", "videos.csv")
SHOWN = 20  # damaged files named one by one; results.json names all
SUBSET_COLUMNS = ("J&F", "J", "F", "static oracle", "right of pair", "N-acc", "T-acc")
ESCAPED = "backslashreplace"  # half a surrogate pair
RESAMPLES, LEVEL, SEED = 1000, 0.95, 0  # of the bootstrap


class Results(BaseModel, strict=True):
    """What a comparison reads of a results.json."""

    dataset: str
    split: str
    figures: dict[str, FiniteFloat]
    intervals: dict[str, Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]]
    frame_list: dict[str, Any]
    prediction: dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """All rows of a split in the split's order, figures over them in per cent, and what stood in the way."""

    split: Split
    rows: tuple[SampleScore, ...]
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    problems: tuple[Problem, ...]

    @property
    def damaged(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.kind == "damaged"]


def figures(rows: Sequence[SampleScore]) -> dict[str, float]:
    """Each figure over all rows that have it, per cent."""
    return {name: float(100 * n.sum() / d.sum()) for name, (n, d) in _sums(rows).items()}


def by_subset(
    rows: Sequence[SampleScore], names: Callable[[SampleScore], Sequence[str]] = lambda row: row.subsets
) -> dict[str, dict[str, float]]:
    """Figures and the number of expressions of each named subset, in the order in which they occur."""
    groups: dict[str, list[SampleScore]] = {}
    for row in rows:
        for name in names(row):
            groups.setdefault(name, []).append(row)
    return {name: {"expressions": len(group), **figures(group)} for name, group in groups.items()}


def intervals(rows: Sequence[SampleScore], seed: int = SEED) -> dict[str, tuple[float, float]]:
    """Bootstrap percentile intervals of each figure at `LEVEL`, per cent. Videos are drawn with replacement, not
    expressions, which are about the same pixels; draws in which a figure is not defined are left out."""
    videos = len({row.video for row in rows})
    rng = np.random.default_rng(seed)
    # how often each video is drawn: (RESAMPLES, V)
    drawn = rng.multinomial(videos, np.full(videos, 1 / videos), RESAMPLES).astype(np.float64)
    tails = [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)]
    found = {}
    for name, (n, d) in _sums(rows).items():
        above, below = drawn @ n, drawn @ d
        low, high = np.percentile(100 * above[below > 0] / below[below > 0], tails)
        found[name] = (float(low), float(high))
    return found


def _sums(rows: Sequence[SampleScore]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Figure -> numerators and denominators, both (V,), summed per video; undefined figures are left out."""
    number = {video: v for v, video in enumerate(dict.fromkeys(row.video for row in rows))}
    names = dict.fromkeys(name for row in rows for name in row.terms)
    sums = {name: np.zeros((2, len(number))) for name in names}
    for row in rows:
        for name, term in row.terms.items():
            sums[name][:, number[row.video]] += term
    return {name: (n, d) for name, (n, d) in sums.items() if d.sum() > 0}


def document(scores: Scores, name: str, split_name: str, pred: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """results.json: the figures and all they depend on; `facts` are predict.json's."""
    frames = {name: video.frames for name, video in scores.split.videos.items()}
    scored = [
        (item.video, item.id, frames[item.video][t])
        for item in scores.split.expressions
        for t in (range(len(frames[item.video])) if item.scored is None else item.scored)
    ]
    lines = "".join(f"{video}\t{expression}\t{frame}\n" for video, expression, frame in scored)
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
            "frames": len({(video, frame) for video, _, frame in scored}),
            "expression frames": len(scored),
        },
        "frame_list": {"sha256": hashlib.sha256(lines.encode()).hexdigest(), "source": frame_list(scores.split)},
        "prediction": facts,
        "code": {"version": __version__, "revision": revision()},
        "subsets": by_subset(scores.rows),
        "problems": [asdict(problem) for problem in scores.problems],
        "videos": by_subset(scores.rows, lambda row: (row.video,)),
        "expressions": [asdict(row) for row in scores.rows],
    }


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
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
        one, two = (results["prediction"].get(key) or "unknown" for results in (ours, theirs))
        if one != two:
            found.append(f"{key} {one} and {two}")
    return found


def print_table(
    report: dict[str, Any], other: dict[str, Any] | None = None, label: str = "", stderr: bool = False
) -> None:
    """Figures down with their intervals, to stdout or stderr; another result beside if given."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    counts = report["counts"]
    split = f"{report['dataset']} {printable(report['split'])}"
    title = f"{split}: {counts['videos']} videos, {counts['expressions']} expressions"
    if source := report["frame_list"]["source"]:
        title += f"\nframes: {source}"
    results = [report, *([other] if other else [])]
    headings = [heading for label in ("score", label)[: len(results)] for heading in (label, f"{100 * LEVEL:.0f} %")]
    tables = [Table("figure", *(Column(Text(printable(heading)), justify="right") for heading in headings))]
    for figure in dict.fromkeys(key for result in results for key in result["figures"]):
        cells = []
        for result in results:
            value, ends = result["figures"].get(figure), result["intervals"].get(figure)
            cells += ["" if value is None else f"{value:.1f}", f"{ends[0]:.1f} - {ends[1]:.1f}" if ends else ""]
        tables[0].add_row(Text(printable(figure)), *cells)
    if report["subsets"]:
        columns = [name for name in SUBSET_COLUMNS if name in report["figures"]]
        tables.append(Table("subset", *(Column(name, justify="right") for name in ("expressions", *columns))))
        for name, values in report["subsets"].items():
            cells = [f"{values[column]:.1f}" if column in values else "" for column in columns]
            tables[1].add_row(Text(printable(name)), str(values["expressions"]), *cells)
    Console(width=120, stderr=stderr).print(Text(title), *tables, sep="\n", highlight=False)


def warn(scores: Scores, layout: str) -> None:
    """One line per kind of missing part and per damaged one."""
    texts = {
        "video": "video folder(s) missing, all their expressions",
        "expression": "sample(s) without a detection" if layout == "coco" else "expression folder(s) missing",
        "frame": "frame(s) missing",
    }
    for kind, text in texts.items():
        paths = [problem.path for problem in scores.problems if problem.kind == kind]
        if paths:
            log.warning("%d %s count 0, the first is %s", len(paths), text, paths[0])
    for problem in scores.damaged[:SHOWN]:
        log.warning("%s: %s; it counts 0", problem.path, problem.reason)
    if len(scores.damaged) > SHOWN:
        log.warning("and %d more damaged files", len(scores.damaged) - SHOWN)
    palettes = [problem for problem in scores.problems if problem.kind == "palette"]
    if palettes:
        told = "masks are read as grey, as MeViS's script does, though their palette's index 0 is not black"
        log.warning("%d %s, the first is %s", len(palettes), told, palettes[0].path)
    source = frame_list(scores.split)
    if source is not None and not source.startswith("MTTR's list"):
        log.warning("the frames are %s: these are not the frames of published figures", source)
    missing = {problem.path for problem in scores.problems if problem.kind == "video"}
    kept = [row for row in scores.rows if row.complete or row.video in missing]
    if layout == "mevis" and len(kept) < len(scores.rows):
        rest = f" and gives J&F {figures(kept)['J&F']:.1f}" if kept else ""
        left_out = len(scores.rows) - len(kept)
        log.warning("MeViS's own script leaves out the %d incomplete expression(s)%s", left_out, rest)


def write(out: Path, scores: Scores, report: dict[str, Any]) -> None:
    """results.json, and its expressions and videos as CSV."""
    columns = list(dict.fromkeys(name for row in scores.rows for name in row.terms))
    expressions = [{"video": r.video, "expression": r.id, "text": r.text, **figures([r])} for r in scores.rows]
    videos = [{"video": video, **values} for video, values in report["videos"].items()]
    for name, rows in ((EXPRESSIONS, expressions), (VIDEOS, videos)):
        first = [key for key in rows[0] if key not in columns]
        with owned_file(out, name) as part, open(part, "w", encoding="utf-8", errors=ESCAPED, newline="") as file:
            writer = csv.DictWriter(file, [*first, *columns], lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    with owned_file(out, RESULTS) as part:
        part.write_text(to_json(report), encoding="utf-8")


def own_card(source: Path, pred: Path, facts: Mapping[str, Any]) -> Path:
    """The folder of the model whose card may take the scores. Raises UserError where it is none (`own_folder`), or the
    predictions' predict.json, `facts`, does not say that they are that model's."""
    from dshmp.checkpoint import load_model, own_folder
    from dshmp.evaluation.predict import fingerprint

    folder = own_folder(source)
    if facts.get("weights") != fingerprint(load_model(folder)[0]):
        raise UserError(f"{pred}: its predict.json does not say that the predictions are of {folder}; name their model")
    return folder


def fill_card(folder: Path, scores: Scores, report: dict[str, Any], root: Path, targets: str) -> None:
    """Figures over all expressions and over each subset into the card, in config.json and README.md; not where
    predictions are missing or damaged, as the figures are not the model's then."""
    from dshmp.card import with_scores
    from dshmp.checkpoint import CONFIG, load_config, save_card

    if scores.problems:
        log.warning("%s: its card stays as it is, since predictions are missing or damaged", folder)
        return
    title = f"{report['dataset']} ({root.resolve().name}), {report['split']}"
    if report["prediction"].get("targets") == "single" and targets == "many":
        title += ", the best object only"
    found = {f"all ({len(scores.rows)})": scores.figures}
    found |= {f"{key} ({values.pop('expressions')})": values for key, values in by_subset(scores.rows).items()}
    card = load_config(folder / CONFIG).card
    for subset, values in found.items():
        card = with_scores(card, f"{title}, {subset}", {key: round(value, 4) for key, value in values.items()})
    save_card(folder, card)
