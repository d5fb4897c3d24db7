"""Draws docs/arrow_of_time.png from the results of a model and of its blind twin.

    dshmp evaluate MODEL ROOT --out model.json
    dshmp evaluate BLIND ROOT --out blind.json
    python docs/arrow_of_time.py model.json blind.json

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

OURS, BLIND, TRUTH = "#1b7f4d", "#b0483a", "#ffffff"
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


def shares(expressions: list[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """Per cent of pairs in which the right one was chosen, and how many there are, by kind."""
    groups = defaultdict(list)
    for item in expressions:
        if item["right_of_pair"] is not None:
            groups["all"].append(item["right_of_pair"])
            groups[kind(item["motion"])].append(item["right_of_pair"])
    return {name: (100 * float(np.mean(values)), len(values)) for name, values in groups.items()}


def example(report: dict[str, Any], split: MevisSplit, ours: str, blind: str) -> tuple[str, str, str]:
    """A video, its reverse and a sentence that ours answers rightly both ways."""
    by_key = {
        name: {(e["video"], e["text"]): e for e in report["models"][name]["expressions"]} for name in (ours, blind)
    }
    for (video, text), item in by_key[ours].items():
        twin = by_key[ours].get((f"{video}_r", text))
        good = item["right_of_pair"] and twin and twin["right_of_pair"]
        if good and item["motion"] in ("left", "right") and min(item["j"], twin["j"]) > 70:
            one, other = by_key[blind][video, text], by_key[blind][f"{video}_r", text]
            if one["right_of_pair"] != other["right_of_pair"]:
                return video, f"{video}_r", text
    raise SystemExit("no pair of the split fits the picture")


def main(*results: str) -> None:
    reports = [json.loads(Path(path).read_text()) for path in results]
    report = reports[0] | {"models": {name: item for each in reports for name, item in each["models"].items()}}
    ours, blind = report["models"]
    split = MevisSplit(Path(report["root"]), report["split"])
    video, reverse, text = example(report, split, ours, blind)
    models = {ours: Segmenter.from_pretrained(ours), blind: Segmenter.from_pretrained(blind)}
    figure = plt.figure(figsize=(12, 8.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    above.suptitle(f"“{text}”", fontsize=17, fontweight="bold")
    strips = above.subplots(4, SHOWN)
    rows = [(video, ours), (video, blind), (reverse, ours), (reverse, blind)]
    for axes, (name, model) in zip(strips, rows, strict=True):
        frames = split.frames(name)
        result = models[model](np.stack(frames), text, targets="single", fps=8.0)
        item = next(e for e in split.expressions if e.video == name and e.text == text)
        chosen = np.linspace(0, len(frames) - 1, SHOWN).round().astype(int)
        truth = split.masks(item.annotations, chosen, frames[0].shape[:2]).any(0)
        colour = OURS if model == ours else BLIND
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
        who = "with a position in time" if model == ours else "blind twin"
        axes[0].set_ylabel(f"{who}\n{order}", rotation=0, ha="right", va="center", color=colour, fontsize=10)
    chart = below.subplots()
    figures = [shares(report["models"][name]["expressions"]) for name in (ours, blind)]
    names = sorted(figures[0], key=lambda name: (name != "all", -figures[0][name][1]))
    places = np.arange(len(names))
    for offset, label, colour, values in zip(
        (-0.2, 0.2), ("with a position in time", "blind twin"), (OURS, BLIND), figures, strict=True
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
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
