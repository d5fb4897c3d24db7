"""Draws docs/arrow_of_time.png from the results of a model and of its baseline without temporal position.

    dshmp evaluate mevis ROOT --split valid_u --single --out OURS
    dshmp evaluate mevis ROOT --split valid_u --single --model BASELINE_MODEL --out BASELINE
    python docs/arrow_of_time.py ROOT OURS/results.json BASELINE/results.json

Above: one sentence asked of a clip and of the same frames in reverse order; the right answer is the other of two
look-alikes. Below: how often the right one is chosen, by kind of motion.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dshmp import Segmenter
from dshmp.data.mevis import MevisSplit

OURS, BASELINE, TRUTH = "#1b7f4d", "#b0483a", "#ffffff"
SHOWN = 6


def kind(motion: str) -> str:
    """The pair of motions that a program belongs to."""
    phases = motion.split(">")
    if motion in ("left", "right"):
        return "left / right"
    if motion in ("up", "down"):
        return "rising / falling"
    if "clockwise" in motion:
        return "clockwise / counter"
    if "stop" in phases or "wait" in phases or motion in ("stop", "wait"):
        return "then stop / wait, then"
    if len(phases) > 1 or motion == "turn":
        return "one way, then another"
    if motion.startswith(("enter", "leave")):
        return "enter / leave"
    if motion in ("appear", "vanish"):
        return "appear / vanish"
    if motion in ("grow", "shrink"):
        return "grow / shrink"
    return "dash one way / other"


def pairs(results: dict[str, Any], split: MevisSplit) -> list[dict[str, Any]]:
    """The sentences of direction pairs: video, text, motion, J, and whether the right one was chosen."""
    motions = {(item.video, item.id): item.extra["motion"] for item in split.expressions}
    return [
        {
            "video": row["video"],
            "text": row["text"],
            "motion": motions[row["video"], row["id"]],
            "j": row["terms"]["J"][0],
            "right": bool(row["terms"]["right of pair"][0]),
        }
        for row in results["expressions"]
        if "right of pair" in row["terms"]
    ]


def shares(sentences: list[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """Per cent of pairs in which the right one was chosen, and how many there are, by kind."""
    groups = defaultdict(list)
    for item in sentences:
        groups["all"].append(item["right"])
        groups[kind(item["motion"])].append(item["right"])
    return {name: (100 * float(np.mean(values)), len(values)) for name, values in groups.items()}


def example(ours: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> tuple[str, str, str]:
    """A video, its reverse and a sentence that ours answers rightly both ways."""
    right, baselines = ({(item["video"], item["text"]): item for item in items} for items in (ours, baseline))
    for (video, text), item in right.items():
        other = right.get((f"{video}_r", text))
        if not (other and item["right"] and other["right"] and item["motion"] in ("left", "right")):
            continue
        told_apart = baselines[video, text]["right"] != baselines[f"{video}_r", text]["right"]
        if told_apart and min(item["j"], other["j"]) > 0.7:
            return video, f"{video}_r", text
    raise SystemExit("no pair of the split fits the picture")


def main(root: str, *paths: str) -> None:
    results = [json.loads(Path(path).read_text()) for path in paths]
    split = MevisSplit(Path(root), results[0]["split"])
    sentences = [pairs(each, split) for each in results]
    video, reverse, text = example(*sentences)
    ours, baseline = (each["prediction"]["model"] for each in results)
    models = {name: Segmenter.from_pretrained(name) for name in (ours, baseline)}
    figure = plt.figure(figsize=(12, 8.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    above.suptitle(f"“{text}”", fontsize=17, fontweight="bold")
    strips = above.subplots(4, SHOWN)
    rows = [(video, ours), (video, baseline), (reverse, ours), (reverse, baseline)]
    for axes, (name, model) in zip(strips, rows, strict=True):
        frames = split.frames(name)
        result = models[model](np.stack(frames), text, targets="single", fps=8.0)
        item = next(e for e in split.expressions if e.video == name and e.text == text)
        chosen = np.linspace(0, len(frames) - 1, SHOWN).round().astype(int)
        truth = split.masks(name, item.annotations, chosen, frames[0].shape[:2]).any(0)
        colour = OURS if model == ours else BASELINE
        for axis, t, real in zip(axes, chosen, truth, strict=True):
            picture = frames[t].astype(float)
            mask = result.mask(int(t))
            tint = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
            picture[mask] = 0.25 * picture[mask] + 0.75 * tint
            axis.imshow(picture.astype(np.uint8))
            axis.contour(real, [0.5], colors=TRUTH, linewidths=1.4)
            axis.set_xticks([])
            axis.set_yticks([])
        order = "time runs forward" if name == video else "same frames, reversed"
        who = "with a position in time" if model == ours else "baseline without temporal position"
        axes[0].set_ylabel(f"{who}\n{order}", rotation=0, ha="right", va="center", color=colour, fontsize=10)
    chart = below.subplots()
    figures = [shares(each) for each in sentences]
    names = sorted(figures[0], key=lambda name: (name != "all", -figures[0][name][1]))
    places = np.arange(len(names))
    for offset, label, colour, values in zip(
        (-0.2, 0.2),
        ("with a position in time", "baseline without temporal position"),
        (OURS, BASELINE),
        figures,
        strict=True,
    ):
        heights = [values[name][0] for name in names]
        bars = chart.bar(places + offset, heights, 0.38, color=colour, label=label)
        chart.bar_label(bars, [f"{height:.0f}" for height in heights], fontsize=9)
    chart.axhline(50, color="#555555", linestyle="--", linewidth=1)
    labels = [f"{name}\n({figures[0][name][1]})".replace(", then", ",\nthen").replace(" / ", " /\n") for name in names]
    chart.set_xticks(places, labels, fontsize=9)
    chart.set_ylim(0, 124)
    chart.set_yticks(range(0, 101, 20))
    chart.set_ylabel("right one of two look-alikes, %")
    chart.legend(loc="upper right", ncols=2, frameon=False)
    chart.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_name("arrow_of_time.png"), dpi=100)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
