"""What people should know of a model before they use it: the card in its config.json and the README.md made from it.

A card's texts are shown as they are: nothing in them is read as Markdown, HTML, YAML or a template.
"""

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

HERE = "path/to/this/folder"
"""What a README says to load while nobody knows where its folder will lie."""
TASK = "image-segmentation"
"""Of the hub's tasks the nearest: it has none for a video and a sentence."""
TAGS = ["dshmp", "referring-video-object-segmentation", "video-segmentation"]
SENTENCE = "the one that turns back"
MEANINGS = {
    "J&F": "mean of region similarity J and contour accuracy F (DAVIS), per cent",
    "N-acc": "absent targets answered with nothing, per cent",
    "T-acc": "present targets answered with something, per cent",
    "right of pair": "of two look-alikes told apart by direction alone the right one is on top, per cent",
}
"""Of the metrics that `dshmp evaluate` reports."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is not known stays empty, and the README says so."""

    name: str | None = None
    source: str | None = None
    """Where the weights come from."""
    data: str | None = None
    """What they were trained on."""
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
    """The card with what an evaluation on `name` (data set, split and subset) found, metric -> value.

    Earlier scores of the same name are replaced. Raises ValueError where a value is not finite.
    """
    for metric, value in scores.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: {metric} is {value}")
    values = {metric: float(value) for metric, value in scores.items()}
    return dataclasses.replace(card, scores={**card.scores, name: values})


def lacks(card: Card) -> list[str]:
    """What a card that goes to other people should state and does not."""
    return [name for name in ("data", "recipe", "scores", "limits") if not getattr(card, name)]


def model_card(card: Card, where: str = HERE) -> "ModelCard":
    """The README.md: YAML front matter for the Hugging Face hub, then text.

    Args:
        where: what `Segmenter.from_pretrained` and `--model` take to load this model.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        language="en",
        license=card.licence,
        library_name="dshmp",
        pipeline_tag=TASK,
        tags=TAGS,
        datasets=list(card.datasets) or None,
        metrics=_metrics(card) or None,
        model_name=(card.name or "dshmp") if card.scores else None,
        eval_results=_eval_results(card) or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(card, where)}")


def _body(card: Card, where: str) -> str:
    name = "A dshmp model" if card.name is None else _text(card.name)
    use = (
        "from dshmp import Segmenter\n\n"
        f"segmenter = Segmenter.from_pretrained({json.dumps(where)})\n"
        f'result = segmenter("clip.mp4", "{SENTENCE}")\n'
        "result.found, result.score, result.masks  # masks: (T, H, W) bool"
    )
    shell = f'dshmp segment clip.mp4 "{SENTENCE}" --model {shlex.quote(where)}'
    sections = {
        "What it is": (
            "A model for `dshmp`: a video and a sentence go in; the masks of what the sentence means come out, in "
            "every frame, or the answer that nothing matches. The method is DsHmp (He and Ding, CVPR 2024, "
            "[paper](https://arxiv.org/abs/2404.03645)).\n\n"
            f"Origin of the weights: {_text(card.source or 'not stated.')}"
        ),
        "Use it": f"```python\n{use}\n```\n\n```sh\n{shell}\n```",
        "Data": _text(card.data or "Not stated."),
        "Recipe": _recipe(card.recipe) if card.recipe else "Not stated.",
        "Scores": _table(card) if card.scores else "Not scored yet.",
        "Limits": "\n".join(f"- {_text(limit)}" for limit in card.limits) if card.limits else "None stated.",
    }
    return f"# {name}\n\n" + "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items()) + "\n"


def _text(value: str) -> str:
    """One line of Markdown that shows `value` and is nothing else: no list, link, emphasis, table cell or HTML."""
    line = re.sub(r"([\\`*_\[\]<>|#~$]|&(?=[#\w]+;))", r"\\\1", " ".join(value.split()))
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", line)


def _recipe(recipe: Mapping[str, Any]) -> str:
    """A code block by indentation, which no text within can end."""
    lines = yaml.safe_dump(dict(recipe), sort_keys=False, width=110).splitlines()
    return "\n".join(f"    {line}" for line in lines)


def _metrics(card: Card) -> list[str]:
    return list(dict.fromkeys(metric for values in card.scores.values() for metric in values))


def _table(card: Card) -> str:
    """Data sets down, metrics across; below it what those mean that are ours."""
    metrics = _metrics(card)

    def row(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rows = [row(["", *map(_text, metrics)]), row(["---", *["---:"] * len(metrics)])]
    for name, values in card.scores.items():
        rows.append(row([_text(name), *(f"{values[key]:.6g}" if key in values else "" for key in metrics)]))
    meanings = [f"{metric}: {MEANINGS[metric]}." for metric in metrics if metric in MEANINGS]
    return "\n".join(rows) + ("\n\n" + " ".join(meanings) if meanings else "")


def _eval_results(card: Card) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=TASK,
            task_name="Referring video segmentation",
            dataset_type=_slug(name),
            dataset_name=name,
            metric_type=_slug(metric),
            metric_name=metric,
            metric_value=float(value),
        )
        for name, values in card.scores.items()
        for metric, value in values.items()
    ]


def _slug(name: str) -> str:
    """An identifier of a name that has none on the hub: `J&F` -> `j-and-f`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("&", " and ")).strip("-")
