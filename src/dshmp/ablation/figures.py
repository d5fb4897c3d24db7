"""The pictures of an ablation's page: video tokens (the paper's Fig. 4) and strips (Fig. 5)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby, product
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.ablation.results import ALL, CRITICAL, Results, spread
from dshmp.ablation.rows import OURS
from dshmp.ablation.runs import Run, held_out_sources
from dshmp.common.files import owned_file
from dshmp.data.base import Expression, Split
from dshmp.data.registry import open_split
from dshmp.inference.segmenter import Segmenter
from dshmp.training.held_out import shown_video, strip

Figure = Any  # matplotlib's
PICTURES, FILES = "pictures", ("tokens.png", "strips.png")
OBJECTS = 25  # as many as these tell apart, for the colour-blind too
COLOURS, MARKERS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"), "os^DP"


def pictures(results: Results, out: Path, device: str) -> dict[str, str]:
    """Draw into out/pictures what the models at hand allow. Returns sections of the page, in Markdown, by file."""
    from matplotlib import figure as plots

    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    sections = {}
    for name, draw in zip(FILES, (tokens, strips), strict=True):
        figure = plots.Figure(layout="constrained")
        if told := draw(figure, results, device):
            with owned_file(out / PICTURES, name) as part:
                figure.savefig(part, format="png", dpi=130)
            sections[name] = f"## {told[0]}\n\n![{told[0]}]({PICTURES}/{name})\n\n{told[1]}"
    return sections


def tokens(figure: Figure, results: Results, device: str) -> tuple[str, str] | None:
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    (without, whole), seeds = drawn_rows(results, "ds_hmp", "full")
    if not seeds:
        return None
    names = {without: "without contrastive learning", whole: "with contrastive learning"}
    split, _item = next(iter(held_out(results.run(whole, seeds[0])).values()))
    groups = objects(split.expressions, OBJECTS)
    items = [item for group in groups for item in group]
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    if len(groups) < 2 or len(items) < 8:
        return None
    figure.set_size_inches(11, 5.4)
    told = []
    for axis, (row, name) in zip(figure.subplots(1, 2), names.items(), strict=True):
        found = [best_tokens(results.run(row, seed), split, items, device) for seed in seeds]
        place = TSNE(perplexity=min(30, (len(items) - 1) / 3), init="pca", random_state=0).fit_transform(found[0])
        for number, (marker, colour) in zip(range(len(groups)), product(MARKERS, COLOURS), strict=False):
            axis.scatter(*place[owner == number].T, color=colour, marker=marker, alpha=0.85)
        axis.set(title=name, xticks=[], yticks=[])
        width = spread([float(silhouette_score(each, owner, metric="cosine")) for each in found], ".2f")
        told.append(f"{width} {name}")
    text = (
        f"Rows `{without}` and `{whole}`: t-SNE of {len(items)} video tokens of {len(groups)} objects, colour and "
        f"shape by object, seed {seeds[0]}: of each of the held-out split's sentences that mean one "
        "object, the token with the best score; the objects are those with the most sentences. "
        f"Their silhouette by cosine, over {len(seeds)} seed(s): {', '.join(told)}."
    )
    return "Video tokens with and without contrastive learning (the paper's Fig. 4)", text


def drawn_rows(results: Results, *rows: str) -> tuple[list[str], list[int]]:
    """Which of these rows are drawn, those with what is ours where there are any, and the seeds whose models are at
    hand."""
    for chosen in ([row + OURS for row in rows], list(rows)):
        if seeds := results.trained(*chosen):
            return chosen, seeds
    return list(rows), []


def objects(expressions: Iterable[Expression], count: int) -> list[list[Expression]]:
    """The sentences that mean one object, of the `count` objects that have the most, two at least."""
    groups: dict[tuple[str, frozenset[int]], list[Expression]] = defaultdict(list)
    for item in expressions:
        if len(item.objects) == 1:
            groups[item.target].append(item)
    ranked = sorted(groups.values(), key=len, reverse=True)  # stable: in the split's order among equals
    return [group for group in ranked[:count] if len(group) > 1]


def best_tokens(run: Run, split: Split, items: Sequence[Expression], device: str) -> NDArray[Any]:
    """(E, C): of each expression the video token with the best score, as a vector of length 1."""
    segmenter = Segmenter.from_pretrained(str(run.folder), device)
    found = []
    for _, alike in groupby(items, lambda item: (item.video, item.shown)):
        group = list(alike)
        _, source = shown_video(split, group[0].video, group[0].shown)
        with segmenter.ask(source, [item.text for item in group]) as clip:
            for video in (answer.video for answer in clip.answers):
                assert video is not None
                token = video.tokens[0, video.logits[0].softmax(1)[:, 0].argmax()].float().cpu().numpy()
                found.append(token / np.linalg.norm(token))
    return np.stack(found)


def strips(figure: Figure, results: Results, device: str) -> tuple[str, str] | None:
    (without, whole), seeds = drawn_rows(results, "none", "full")
    if not seeds:
        return None
    names = {without: "without DS, HMP, CL", whole: "DS + HMP + CL"}
    subset = CRITICAL if CRITICAL in results.subsets else ALL
    scores = {row: results.values(row, seeds[:1], subset)[0] for row in names}
    chosen = extremes(scores[whole] - scores[without])
    items = held_out(results.run(whole, seeds[0]))
    figure.set_size_inches(16, 2.4 * len(chosen))
    panels = figure.subplots(len(chosen), 2, squeeze=False)
    for (row, name), column in zip(names.items(), panels.T, strict=True):
        segmenter = Segmenter.from_pretrained(str(results.run(row, seeds[0]).folder), device)
        for (why, place), axis in zip(chosen.items(), column, strict=True):
            asked = results.sentences[results.places[subset][place]]
            split, item = items[asked.video, asked.id]
            frames, source = shown_video(split, item.video, item.shown)
            shown, size = item.shown or range(len(frames)), (frames.shape[1], frames.shape[2])
            truth = np.asarray(split.masks(item.video, item.annotations, shown, size).any(0))
            masks = segmenter.answer(source, [item.text])[0].masks
            dark = np.where(masks[..., None], frames, frames // 2)  # so that the answer leaps to the eye
            axis.imshow(strip(dark, masks, truth))
            axis.set(title=f"{why}: “{shorten(item.text, 80)}”", xlabel=f"{name}: {scores[row][place]:.0f}")
            axis.set(xticks=[], yticks=[])
    text = (
        f"Rows `{without}` and `{whole}`. Chosen by rule, not by eye: of the {len(scores[whole]):,} sentences "
        f"({subset}) the largest gain of the whole method over the row without DS, HMP and CL, the median, and the "
        f"largest loss, by {results.measure} with seed {seeds[0]}; the first of equals. "
        "Time runs from left to right; the truth is outlined in white, the answer is tinted, the rest is darkened."
    )
    return "What is answered, against the baseline (the paper's Fig. 5)", text


def extremes(gains: NDArray[Any]) -> dict[str, int]:
    """Places of the largest gain, the median and the largest loss; the first of equals, none twice."""
    order = np.argsort(-gains, kind="stable")
    places = {"largest gain": order[0], "median": order[len(order) // 2], "largest loss": np.argmin(gains)}
    first = {int(place): why for why, place in reversed(places.items())}
    return {why: int(place) for why, place in places.items() if first[int(place)] == why}


def held_out(run: Run) -> dict[tuple[str, str], tuple[Split, Expression]]:
    """What a run was scored on, by the videos and ids in its scores."""
    found: dict[tuple[str, str], tuple[Split, Expression]] = {}
    for prefix, name, source in held_out_sources(run.recipe):
        split = open_split(name, Path(source.root), str(source.validation))
        found |= {(f"{prefix}{item.video}", item.id): (split, item) for item in split.expressions}
    return found
