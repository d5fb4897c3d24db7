"""What the page shows of the model's answers. All of it follows from what was computed once: no model is needed."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dshmp.common.errors import UserError
from dshmp.common.progress import Progress
from dshmp.common.rle import encode
from dshmp.results.answer import ObjectResult
from dshmp.results.result import Result
from dshmp.results.show import draw, masks_at
from dshmp.video.io import open_video
from dshmp.video.overlay import (
    OBJECTS,
    Colour,
    Masks,
    draw_masks,
    enlargement,
)
from dshmp.video.source import Pixels


@dataclass(frozen=True)
class View:
    """What was answered about a video, and what of it is shown. Candidates are numbered per sentence: those that the
    model means, then the others."""

    video: Path
    results: tuple[Result, ...]  # with all candidates
    threshold: float
    on: tuple[frozenset[int], ...]  # per sentence the numbers of the candidates that are shown
    colours: tuple[Colour, ...]  # by the candidate's number
    sentence: int = 0


def first_view(video: Path, results: Sequence[Result]) -> View:
    """As the model answered."""
    most = max(len(candidates(result)) for result in results)
    colours = tuple(OBJECTS[number % len(OBJECTS)] for number in range(most))
    on = tuple(frozenset(range(len(result.objects))) for result in results)
    return View(video, tuple(results), results[0].threshold, on, colours)


def with_threshold(view: View, threshold: float) -> View:
    """The candidates whose score is above a threshold are shown, whatever was switched before."""
    on = tuple(
        frozenset(n for n, item in enumerate(candidates(result)) if item.score > threshold) for result in view.results
    )
    return replace(view, threshold=threshold, on=on)


def with_sentence(view: View, number: int) -> View:
    """Another sentence is looked at."""
    return replace(view, sentence=range(len(view.results))[number])


def switched(view: View, number: int, on: bool) -> View:
    """A candidate of the sentence that is looked at, switched on or off."""
    shown = view.on[view.sentence] | {number} if on else view.on[view.sentence] - {number}
    return replace(view, on=(*view.on[: view.sentence], shown, *view.on[view.sentence + 1 :]))


def coloured(view: View, number: int, colour: str) -> View:
    """A candidate in another colour, `#rrggbb`. Raises ValueError where it is none."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return replace(view, colours=(*view.colours[:number], (red, green, blue), *view.colours[number + 1 :]))


def candidates(result: Result) -> tuple[ObjectResult, ...]:
    return result.objects + result.others


def meant(result: Result, on: Collection[int], threshold: float) -> Result:
    """The result that means the candidates with these numbers: objects, evidence and verdict are theirs; the union of
    their masks, which takes long, is not made."""
    items = candidates(result)
    objects = tuple(item for number, item in enumerate(items) if number in on)
    others = tuple(item for number, item in enumerate(items) if number not in on)
    rows = [item.evidence for item in objects or items[:1]] or [result.evidence]
    evidence = tuple(np.mean(rows, axis=0).tolist())
    return replace(result, found=bool(objects), threshold=threshold, evidence=evidence, objects=objects, others=others)


def current(view: View) -> Result:
    """The result that is looked at, as `meant`."""
    return meant(view.results[view.sentence], view.on[view.sentence], view.threshold)


def shown(view: View) -> list[Result]:
    """The sentences' results as the page shows them, with the union of the masks."""
    results = [meant(result, on, view.threshold) for result, on in zip(view.results, view.on, strict=True)]
    return [replace(result, rle=tuple(encode(mask) for mask in _unions(result))) for result in results]


def _unions(result: Result) -> Iterator[NDArray[np.bool_]]:
    return (np.asarray(masks_at(result, t).any(axis=0)) for t in range(result.frame_count))


def shown_colours(view: View, sentence: int) -> list[Colour]:
    """Of the objects of `shown`, in their order; one for none."""
    return [view.colours[number] for number in sorted(view.on[sentence])] or [OBJECTS[0]]


def draw_page_video(path: Path, view: View, progress: Progress) -> None:
    """The video with the masks of the sentence that is looked at: nothing is written below, the page tells it."""
    result, colours = current(view), shown_colours(view, view.sentence)
    scale = enlargement(result.width)
    height, width = (side * scale + side * scale % 2 for side in (result.height, result.width))

    def paint(image: Pixels, masks: Masks, index: int) -> Pixels:
        drawn = draw_masks(image, masks, scale=scale, colours=colours)
        margins = ((0, height - drawn.shape[0]), (0, width - drawn.shape[1]), (0, 0))
        return np.pad(drawn, margins, mode="edge")

    draw(path, open_video(view.video), result, paint, (height, width), progress)


def sentences_of(text: str) -> list[str]:
    """The lines of a text, each once. Raises UserError where there is none."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    if not (found := list(dict.fromkeys(filter(None, lines)))):
        raise UserError("no sentence given; say in words what to segment, one sentence per line")
    return found
