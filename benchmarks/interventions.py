"""What each part of a model carries: J&F on a split when that part alone is taken away or said wrong, nothing learned
anew.

Usage: python benchmarks/interventions.py synthetic/v1 [--model MODEL] [--split valid_u] [--videos 60]
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dshmp import Segmenter
from dshmp.common.progress import track
from dshmp.data.base import Expression, Split, by_video
from dshmp.data.registry import open_split
from dshmp.evaluation.metrics import jf
from dshmp.model.candidates import Candidates
from dshmp.training.held_out import shown_video

Setting = Callable[[Segmenter, dict[str, str]], Any]  # a context in which a part is away; other sentences by sentence


@contextmanager
def as_it_is(segmenter: Segmenter, other: dict[str, str]) -> Iterator[None]:
    yield


def told(*parts: str) -> Setting:
    """Parts of the text are those of another sentence about the same video."""

    @contextmanager
    def setting(segmenter: Segmenter, other: dict[str, str]) -> Iterator[None]:
        own = segmenter._query

        def query(expression: str) -> Any:
            right, wrong = own(expression), own(other[expression])
            return replace(right, text=replace(right.text, **{part: getattr(wrong.text, part) for part in parts}))

        segmenter._query = query  # type: ignore[method-assign]
        try:
            yield
        finally:
            del segmenter._query  # type: ignore[method-assign]

    return setting


def seen(change: Callable[[Candidates], Candidates]) -> Setting:
    """The motion part reads other candidates."""

    @contextmanager
    def setting(segmenter: Segmenter, other: dict[str, str]) -> Iterator[None]:
        own = segmenter.model.decode_motion

        def decode(candidates: Candidates, *rest: Any, **options: Any) -> Any:
            found = change(candidates)
            if found.linked or segmenter.config.motion.matching != "tracks":
                return own(found, *rest, **options)
            order = candidates.order()  # the links stay as they are
            return own(found.in_order(order), *rest, **options).unlinked(order)

        segmenter.model.decode_motion = decode  # type: ignore[method-assign]
        try:
            yield
        finally:
            del segmenter.model.decode_motion  # type: ignore[method-assign]

    return setting


@contextmanager
def without_stages(segmenter: Segmenter, other: dict[str, str]) -> Iterator[None]:
    """Eq. 4 to 7 add nothing."""
    blocks: Any = segmenter.model.motion.blocks
    last = [block.cross_attention.gate[2].weight for block in blocks]
    kept: list[Tensor] = [weight.detach().clone() for weight in last]
    with torch.no_grad():
        for weight in last:
            weight.zero_()
        try:
            yield
        finally:
            for weight, value in zip(last, kept, strict=True):
                weight.copy_(value)


SETTINGS: dict[str, Setting] = {
    "as it is": as_it_is,
    "geometry alone": seen(lambda found: replace(found, tokens=None)),
    "tokens alone": seen(lambda found: replace(found, geometry=None)),
    "the camera held to be still": seen(lambda found: replace(found, camera=None, sure=None)),
    "another's static cues": told("static"),
    "another's motion cues": told("motion"),
    "another's sentence embedding": told("sentence"),
    "another's words in the fusion": told("words", "tokens", "mask"),
    "Eq. 4 to 7 off": without_stages,
}


def others(items: list[Expression]) -> dict[str, str]:
    """Of each sentence another one about the same video that means something else, where there is one."""
    found = {}
    for number, item in enumerate(items):
        rest = [each.text for each in items[number + 1 :] + items[:number] if each.objects != item.objects]
        found[item.text] = rest[0] if rest else item.text
    return found


def score(segmenter: Segmenter, split: Split, videos: int, setting: Setting) -> dict[str, float]:
    """J&F of all sentences and of some subsets, per cent."""
    names = list(by_video(split))
    values: dict[str, list[float]] = {}
    for name in track([names[int(i)] for i in np.linspace(0, len(names) - 1, videos)], "videos"):
        items = [item for item in split.expressions if item.video == name]
        frames, source = shown_video(split, name, None)
        with setting(segmenter, others(items)):
            results = segmenter.answer(source, [item.text for item in items])
        for item, result in zip(items, results, strict=True):
            truth = split.masks(name, item.annotations, range(len(frames)), frames.shape[1:3])
            value = 50 * sum(jf(result.masks, np.asarray(truth.any(0))))
            for subset in ("all", *item.subsets):
                values.setdefault(subset, []).append(value)
    return {name: float(np.mean(each)) for name, each in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--split", default="valid_u")
    parser.add_argument("--videos", type=int, default=60)
    chosen = parser.parse_args()
    segmenter = Segmenter.from_pretrained(chosen.model, device="cpu")
    split = open_split("mevis", chosen.root, chosen.split)
    rows = {
        name: score(segmenter, split, min(chosen.videos, len(split.videos)), setting)
        for name, setting in SETTINGS.items()
    }
    subsets = [name for name in rows["as it is"] if name != "all"]
    print("| | all | " + " | ".join(subsets) + " |")
    print("|---" * (len(subsets) + 2) + "|")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{values[each]:.1f}" for each in ("all", *subsets)) + " |")


if __name__ == "__main__":
    main()
