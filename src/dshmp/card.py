"""What people should know of a model before they use it: the card in its config.json and the README.md made from it.

A card's texts are shown as they are: nothing in them is read as Markdown, HTML, YAML or a template.
"""

import dataclasses
import json
import re
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

HERE = "path/to/this/folder"  # what a README says to load while nobody knows where its folder will lie
TASK = "image-segmentation"  # of the hub's tasks the nearest: it has none for a video and a sentence
MEANINGS = {
    "J&F": "mean of region similarity J and contour accuracy F (DAVIS), per cent",
    "N-acc": "absent targets answered with nothing, per cent",
    "T-acc": "present targets answered with something, per cent",
    "right of pair": "of two look-alikes told apart by direction alone the right one is on top, per cent",
}
"""Of the metrics that `dshmp evaluate` reports."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Where the weights come from (`source`), what they were trained on (`data`), and so on; what is not known stays
    empty, and the README says so."""

    name: str | None = None
    source: str | None = None
    data: str | None = None
    datasets: tuple[str, ...] = ()
    """Ids of these data sets on the Hugging Face hub, where they have one."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The training recipe, or its name and main numbers; plain values as in YAML."""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """Data set, split and subset -> metric -> value."""
    limits: tuple[str, ...] = ()
    """What the model cannot do, a sentence each."""
    licence: str | None = None
    """Of the weights, as the hub spells it: `apache-2.0`."""


def with_scores(card: Card, name: str, scores: Mapping[str, float]) -> Card:
    """With the scores, metric -> value, on `name` (data set, split and subset) added or replaced."""
    return dataclasses.replace(card, scores={**card.scores, name: {key: float(value) for key, value in scores.items()}})


def lacks(card: Card) -> list[str]:
    """What a card that goes to other people should state and does not."""
    return [name for name in ("data", "recipe", "scores", "limits") if not getattr(card, name)]


def model_card(card: Card, where: str = HERE) -> "ModelCard":
    """The README.md: YAML front matter for the Hugging Face hub, then text. `where` is what `--model` takes to load
    this model."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    metrics = list(dict.fromkeys(metric for values in card.scores.values() for metric in values))
    results = []
    for name, values in card.scores.items():
        on = {"task_type": TASK, "task_name": "Referring video segmentation", "dataset_name": name}
        on["dataset_type"] = _slug(name)
        for metric, value in values.items():
            results.append(EvalResult(**on, metric_type=_slug(metric), metric_name=metric, metric_value=float(value)))
    data = ModelCardData(
        language="en",
        license=card.licence,
        library_name="dshmp",
        pipeline_tag=TASK,
        tags=["dshmp", "referring-video-object-segmentation", "video-segmentation"],
        datasets=list(card.datasets) or None,
        metrics=metrics or None,
        model_name=(card.name or "dshmp") if card.scores else None,
        eval_results=results or None,
    )
    recipe = yaml.safe_dump(card.recipe, sort_keys=False, width=110) if card.recipe else ""
    body = Template((resources.files("dshmp") / "assets" / "model_card.md").read_text(encoding="utf-8")).substitute(
        name=_text(card.name or "A dshmp model"),
        source=_text(card.source or "not stated."),
        quoted=json.dumps(where),
        argument=shlex.quote(where),
        data=_text(card.data or "Not stated."),
        recipe=textwrap.indent(recipe, "    ", lambda _: True).rstrip() or "Not stated.",
        scores=_table(card, metrics) if card.scores else "Not scored yet.",
        limits="\n".join(f"- {_text(limit)}" for limit in card.limits) or "None stated.",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _text(value: str) -> str:
    """One line of Markdown that shows `value` and is nothing else: no list, link, emphasis, table cell or HTML."""
    line = re.sub(r"([\\`*_\[\]<>|#~$]|&(?=[#\w]+;))", r"\\\1", " ".join(value.split()))
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", line)


def _table(card: Card, metrics: list[str]) -> str:
    """Data sets down, metrics across; below it what those mean that are ours."""
    rows = [["", *map(_text, metrics)], ["---", *["---:"] * len(metrics)]]
    for name, values in card.scores.items():
        rows.append([_text(name), *(f"{values[key]:.6g}" if key in values else "" for key in metrics)])
    meanings = " ".join(f"{metric}: {MEANINGS[metric]}." for metric in metrics if metric in MEANINGS)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + (f"\n\n{meanings}" if meanings else "")


def _slug(name: str) -> str:
    """An identifier of a name that has none on the hub: `J&F` -> `j-and-f`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("&", " and ")).strip("-")
