"""The pictures of an ablation's page: differences with their intervals, video tokens (Fig. 4), strips (Fig. 5)."""

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dshmp.ablation.page import Picture
from dshmp.ablation.results import ALL, CRITICAL, Results, average
from dshmp.ablation.rows import PARTS, TABLES
from dshmp.ablation.runs import Run, Score
from dshmp.ablation.statistics import LEVEL, Estimate
from dshmp.checkpoint import load_model
from dshmp.data.base import Expression, Split, times_shown
from dshmp.data.registry import open_split
from dshmp.device import find_device, to_device
from dshmp.files import owned_file
from dshmp.model.dshmp import DsHmp
from dshmp.model.frame_decoder import uses_language
from dshmp.model.frames import prepare_frames
from dshmp.model.tokenizer import TextTokenizer
from dshmp.predictor import Segmenter
from dshmp.training.held_out import strip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = "pictures"
DIFFERENCES, TOKENS, STRIPS = FILES = ("differences.png", "tokens.png", "strips.png")
WITH, WITHOUT, BASELINE = "full", "ds_hmp", "none"
"""With and without contrastive learning (Fig. 4); what stands above `full` in Fig. 5."""
OBJECTS, SENTENCES = 25, 3
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
MARKERS = ("o", "s", "^", "D", "P")
"""Their products tell 25 objects apart, for the colour-blind too."""
INK, QUIET, FAINT = "#1f2933", "#7b8794", "#dfe3e8"


def pictures(results: Results, tables: Sequence[str], out: Path, device: str) -> list[Picture]:
    """Draw into out/pictures what the finished runs allow."""
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    drawn = [differences(results, tables, out), tokens(results, out, device), strips(results, out, device)]
    return [picture for picture in drawn if picture is not None]


@contextmanager
def _saved(path: Path, figure: "Figure") -> Any:
    """The figure goes to `path` when it is drawn."""
    import matplotlib.pyplot as plt

    try:
        yield
        with owned_file(path.parent, path.name) as part:
            figure.savefig(part, format="png", dpi=130, facecolor="white")
    finally:
        plt.close(figure)


def _plots() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    )
    return plt


# --- differences ---


@dataclass(frozen=True)
class Line:
    """A line of the plot of differences: a heading, or a contrast in each subset with the paper's beside."""

    label: str
    values: tuple[Estimate, ...] = ()
    paper: float | None = None


def lines(results: Results, tables: Sequence[str], subsets: Sequence[str]) -> list[Line]:
    """The parts of Table 1, then every row of the tables against its reference."""
    found: list[Line] = []
    for name in tables:
        table, missing = results.ran(TABLES[name])
        seeds = results.seeds(list(table.labels))
        if table.reference not in table.labels or not seeds:
            continue

        def line(label: str, weights: dict[str, float], seeds: Sequence[int] = seeds) -> Line:
            values = tuple(results.contrast(weights, seeds, subset) for subset in subsets)
            return Line(label, values, results.paper(weights))

        if name == "1" and not missing:
            found.append(Line("What each part brings, mean of four settings"))
            found += [line(part, average(pairs)) for part, pairs in PARTS.items()]
        others = {
            row: label
            for row, label in table.labels.items()
            if results.rows[row].runs != results.rows[table.reference].runs
        }
        if others:
            found.append(Line(f"{table.title}, minus “{table.labels[table.reference]}”"))
            found += [line(label, {row: 1.0, table.reference: -1.0}) for row, label in others.items()]
    return found


def differences(results: Results, tables: Sequence[str], out: Path) -> Picture | None:
    """A forest plot: all sentences and, where there are any, those that need motion."""
    subsets = [name for name in (ALL, CRITICAL) if name in results.subsets]
    drawn = lines(results, tables, subsets)
    if not drawn:
        return None
    plt = _plots()
    figure, panels = plt.subplots(
        1,
        len(subsets),
        figsize=(4.2 + 3.6 * len(subsets), 1.3 + 0.29 * len(drawn)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    with _saved(out / PICTURES / DIFFERENCES, figure):
        for column, (subset, axis) in enumerate(zip(subsets, panels[0], strict=True)):
            axis.axvline(0, color=QUIET, linewidth=1, zorder=1)
            for place, line in enumerate(drawn):
                if not line.values:
                    continue
                value = line.values[column]
                colour = COLOURS[0] if value.beyond else QUIET
                if np.isfinite(value.half):
                    axis.plot([value.low, value.high], [place, place], color=colour, linewidth=2.2, zorder=3)
                axis.plot(value.mean, place, "o", color=colour, markersize=6, zorder=4)
                if line.paper is not None:
                    axis.plot(line.paper, place, "D", mfc="white", mec=COLOURS[1], mew=1.4, markersize=5.5, zorder=5)
            axis.set_title(subset, fontsize=11, fontweight="bold", loc="left")
            axis.set_xlabel("difference, points")
            axis.grid(axis="x", color=FAINT, linewidth=0.8)
            axis.set_axisbelow(True)
            axis.spines[["top", "right", "left"]].set_visible(False)
            axis.tick_params(axis="y", length=0)
        first = panels[0][0]
        first.set_yticks(range(len(drawn)), [line.label for line in drawn])
        for line, label in zip(drawn, first.get_yticklabels(), strict=True):
            if not line.values:
                label.set_fontweight("bold")
        first.set_ylim(len(drawn) - 0.5, -0.7)
        level = f"{100 * LEVEL:.0f} %"
        handles = [
            plt.Line2D([], [], color=COLOURS[0], marker="o", linewidth=2.2, label=f"ours, {level} interval without 0"),
            plt.Line2D([], [], color=QUIET, marker="o", linewidth=2.2, label="ours, interval with 0"),
            plt.Line2D([], [], color="none", mfc="white", mec=COLOURS[1], mew=1.4, marker="D", label="the paper, all"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return Picture(
        f"{PICTURES}/{DIFFERENCES}",
        "Differences at a glance",
        "Paired differences in points, those of the tables above. The paper's figures are of J&F on all of MeViS's "
        "sentences; they stand in both panels for comparison of the sign and the order.",
    )


# --- Fig. 4 ---


def tokens(results: Results, out: Path, device: str) -> Picture | None:
    """Video tokens of objects that many sentences mean, with and without contrastive learning."""
    seeds = _seeds(results, WITH, WITHOUT)
    if not seeds:
        return None
    split = _held_out(results.run(WITH, seeds[0]))
    chosen = objects(split.expressions, OBJECTS)
    items = [item for group in chosen for item in group]
    owner = np.repeat(np.arange(len(chosen)), [len(group) for group in chosen])
    if len(chosen) < 2 or len(items) < 8:
        return None
    found = {
        (row, seed): _tokens_of_run(results.run(row, seed), split, items, device)
        for row in (WITH, WITHOUT)
        for seed in seeds
    }
    plt = _plots()
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.4), layout="constrained")
    names = {WITHOUT: "without contrastive learning", WITH: "with contrastive learning"}
    with _saved(out / PICTURES / TOKENS, figure):
        for axis, (row, name) in zip(panels, names.items(), strict=True):
            place = embed(found[row, seeds[0]])
            for number in range(len(chosen)):
                axis.scatter(
                    *place[owner == number].T,
                    s=46,
                    color=COLOURS[number % len(COLOURS)],
                    marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
                    alpha=0.85,
                    edgecolor="white",
                    linewidth=0.6,
                )
            axis.set_title(name, fontsize=12, fontweight="bold", loc="left")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.margins(0.06)
            axis.spines[:].set_color(FAINT)
    shares = {row: _over_seeds([100 * neighbours(found[row, seed], owner) for seed in seeds], ".0f") for row in names}
    widths = {row: _over_seeds([silhouette(found[row, seed], owner) for seed in seeds], ".2f") for row in names}
    over = f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    return Picture(
        f"{PICTURES}/{TOKENS}",
        "Video tokens with and without contrastive learning (the paper's Fig. 4)",
        f"t-SNE of {len(items)} video tokens of {len(chosen)} objects, colour and shape by object, seed {seeds[0]}: of "
        f"each of the held-out split's sentences that mean one object, the token with the best score; the objects are "
        f"those with the most sentences ({min(map(len, chosen))} to {max(map(len, chosen))}). The distances of a t-SNE "
        f"say little, so in numbers ({over}): the nearest token by cosine is of the same object for "
        f"{shares[WITH]} % with contrastive learning and {shares[WITHOUT]} % without; the silhouette of the objects is "
        f"{widths[WITH]} and {widths[WITHOUT]}.",
    )


def objects(expressions: Iterable[Expression], count: int) -> list[list[Expression]]:
    """The sentences that mean one object, of the `count` objects that have the most, two at least."""
    groups: dict[tuple[str, frozenset[int]], list[Expression]] = defaultdict(list)
    for item in expressions:
        if len(item.objects) == 1:
            groups[item.target].append(item)
    ranked = sorted(groups.values(), key=len, reverse=True)  # stable: in the split's order among equals
    return [group for group in ranked[:count] if len(group) > 1]


def _tokens_of_run(run: Run, split: Split, items: Sequence[Expression], device: str) -> NDArray[Any]:
    model, tokenizer = load_model(run.folder)
    return best_tokens(model.to(find_device(device)), tokenizer, split, items)


@torch.inference_mode()
def best_tokens(model: DsHmp, tokenizer: TextTokenizer, split: Split, items: Sequence[Expression]) -> NDArray[Any]:
    """(E, C): the video token with the best score of each expression, in their order."""
    device = next(model.parameters()).device
    alike: dict[tuple[str, tuple[int, ...] | None], list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        alike[item.video, item.shown].append(index)
    found: dict[int, NDArray[Any]] = {}
    step = model.whole_clips(model.config.input.chunk)
    for (video, shown), indices in alike.items():
        images = prepare_frames(split.frames(video, shown), model.config.input).to(device)
        text = model.language(to_device(tokenizer([items[index].text for index in indices]), device))
        heard = (
            text if uses_language(model.perception) else text.repeat(torch.zeros(1, dtype=torch.long, device=device))
        )
        parts = [model.encode(part, heard).tokens.unflatten(0, (len(heard.mask), -1)) for part in images.split(step)]
        seen = torch.cat(parts, 1).expand(len(indices), -1, -1, -1)  # (E, T, N, C)
        place = torch.tensor(times_shown(shown or range(seen.shape[1])), device=device).expand(seen.shape[:2])
        clip = model.decode_motion(seen, seen.new_ones(seen.shape[:2], dtype=torch.bool), text, place.float())
        best = clip.logits.softmax(2)[..., 0].argmax(1)
        for index, token in zip(indices, clip.tokens[torch.arange(len(indices)), best], strict=True):
            found[index] = token.float().cpu().numpy()
    return np.stack([found[index] for index in range(len(items))])


def embed(values: NDArray[Any]) -> NDArray[Any]:
    """t-SNE of (E, C) by cosine -> (E, 2)."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(values) - 1) / 3)
    directions = values / np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(directions))


def neighbours(values: NDArray[Any], owner: NDArray[Any]) -> float:
    """The share of vectors (E, C) whose nearest other one by cosine has the same owner."""
    directions = values / np.linalg.norm(values, axis=1, keepdims=True)
    cosines = directions @ directions.T
    np.fill_diagonal(cosines, -np.inf)
    return float((owner[cosines.argmax(1)] == owner).mean())


def silhouette(values: NDArray[Any], owner: NDArray[Any]) -> float:
    """Of vectors (E, C) grouped by owner, by cosine: -1 to 1."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(values, owner, metric="cosine"))


def _over_seeds(values: Sequence[float], form: str) -> str:
    mean = format(np.mean(values), form)
    return f"{mean} ± {format(np.std(values, ddof=1), form)}" if len(values) > 1 else mean


# --- Fig. 5 ---


def strips(results: Results, out: Path, device: str) -> Picture | None:
    """Frames of sentences under the baseline and under the whole method."""
    seeds = _seeds(results, WITH, BASELINE)
    if not seeds:
        return None
    subset = CRITICAL if CRITICAL in results.subsets else ALL
    before, after = (results.values(row, seeds[:1], subset)[0] for row in (BASELINE, WITH))
    chosen = extremes(after - before)
    sentences = [results.sentences[results.chosen[subset][number]] for number in chosen.values()]
    runs = {
        "without DS, HMP, CL": (results.run(BASELINE, seeds[0]), before),
        "DS + HMP + CL": (results.run(WITH, seeds[0]), after),
    }
    drawn = {
        name: _strips_of_run(run, sentences, device, len(results.run(WITH, seeds[0]).recipe.data) > 1)
        for name, (run, _) in runs.items()
    }
    plt = _plots()
    figure = plt.figure(figsize=(12, 1.0 + sum(0.75 + 22 * s.shape[0] / s.shape[1] for s, _ in drawn["DS + HMP + CL"])))
    parts = figure.subfigures(len(chosen), 1, squeeze=False)[:, 0]
    with _saved(out / PICTURES / STRIPS, figure):
        for number, (part, (why, place)) in enumerate(zip(parts, chosen.items(), strict=True)):
            text = drawn["DS + HMP + CL"][number][1]
            part.suptitle(
                f"“{textwrap.shorten(text, 110)}”",
                x=0.165,
                y=0.95,
                ha="left",
                va="center",
                fontsize=12,
                fontweight="bold",
            )
            axes = part.subplots(len(runs), 1)
            part.subplots_adjust(left=0.165, right=0.995, top=0.9, bottom=0.02, hspace=0.06)
            for axis, (name, (_, scores)) in zip(axes, runs.items(), strict=True):
                axis.imshow(drawn[name][number][0], aspect="auto")
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
                axis.set_ylabel(f"{name}\n{scores[place]:.0f}", rotation=0, ha="right", va="center", labelpad=8)
            part.text(0.155, 0.95, why, color=QUIET, ha="right", va="center")
    measure = next(iter(results.found.values())).measure
    return Picture(
        f"{PICTURES}/{STRIPS}",
        "What is answered, against the baseline (the paper's Fig. 5)",
        f"Chosen by rule, not by eye: of the {len(before):,} sentences ({subset}) the largest gain of the whole method "
        f"over the row without DS, HMP and CL, the median, and the largest loss, by {measure} (the numbers at the "
        f"left) with seed {seeds[0]}; the first of equals. Time runs from left to right; the truth is outlined in "
        "white, the answer is tinted, the rest is darkened.",
    )


def extremes(gains: NDArray[Any]) -> dict[str, int]:
    """Places of the largest gain, the median and the largest loss; the first of equals, none twice."""
    order = np.argsort(-gains, kind="stable")
    last = np.flatnonzero(gains == gains.min())[0]
    places = {"largest gain": int(order[0]), "median": int(order[len(order) // 2]), "largest loss": int(last)}
    first = {place: why for why, place in reversed(places.items())}
    return {why: place for why, place in places.items() if first[place] == why}


def _strips_of_run(
    run: Run, sentences: Sequence[Score], device: str, prefixed: bool
) -> list[tuple[NDArray[np.uint8], str]]:
    """A strip of the answer to each sentence, and what it says."""
    segmenter = Segmenter.from_pretrained(str(run.folder), device)
    found = []
    for sentence in sentences:
        data, _, video = sentence.video.rpartition("/") if prefixed else ("", "", sentence.video)
        split = _held_out(run, data)
        item = next(each for each in split.expressions if (each.video, each.id) == (video, sentence.id))
        shown = list(item.shown or range(len(split.videos[video].frames)))
        frames = np.stack(split.frames(video, shown))
        result = segmenter(frames, item.text)
        truth = np.asarray(split.masks(video, item.annotations, shown, (frames.shape[1], frames.shape[2])).any(0))
        masks = result.masks
        dark = np.where(masks[..., None], frames, frames // 2)  # so that the answer leaps to the eye
        found.append((strip(dark, masks, truth), item.text))
    return found


def _seeds(results: Results, *rows: str) -> list[int]:
    """Seeds with which all these rows are finished; none where a row is not of this ablation."""
    return results.seeds(rows) if results.rows.keys() >= set(rows) else []


def _held_out(run: Run, name: str = "") -> Split:
    """The split that a run was scored on; the first of several without a name."""
    data = {name: source for name, source in run.recipe.data.items() if source.validation}
    name = name or next(iter(data))
    validation = data[name].validation
    assert validation is not None
    return open_split(name, Path(data[name].root), validation)
