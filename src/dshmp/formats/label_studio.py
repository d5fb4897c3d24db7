"""Label Studio's JSON: a task per frame, whose prediction has a brush mask per object.

A brush mask is a picture of four equal channels, 0 and 255, packed bit by bit: its length (32 bits), bits of a word
less 1 (5), bits of four kinds of counts less 1 (4 each); then blocks of a flag that a word repeats (1), the kind of its
count (2), the count less 1, and the word.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from dshmp.common.rle import decode
from dshmp.formats.answers import Answers

CHANNELS = 4
COUNTS = (3, 4, 8, 16)  # bits of each kind of count


def tasks(answers: Answers) -> Iterator[dict[str, Any]]:
    """One per frame, called as its file."""
    size = {"original_width": answers.width, "original_height": answers.height, "image_rotation": 0}
    for t, name in enumerate(answers.files):
        shown = answers.seen(t)
        found = [
            {
                **{"id": f"{t}-{each.id}", "type": "brushlabels", "from_name": "label", "to_name": "image", **size},
                **{"score": each.score, "meta": {"text": [f"track {each.id}"]}},
                "value": {"format": "rle", "rle": brush(decode([each.object.rle[t]])[0]), "brushlabels": [each.name]},
            }
            for each in shown
        ]
        best = max((each.score for each in shown), default=0.0)
        yield {"data": {"image": name}, "predictions": [{"model_version": "dshmp", "score": best, "result": found}]}


def save(answers: Answers, path: Path) -> None:
    """`tasks.json`, and `config.xml`, the labelling interface that the tasks need."""
    with open(path / "tasks.json", "w", encoding="utf-8") as file:
        for t, task in enumerate(tasks(answers)):
            file.write("[\n" if not t else ",\n")
            json.dump(task, file)
        file.write("\n]\n")
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in dict.fromkeys(answers.names))
    view = f'<View><Image name="image" value="$image"/><BrushLabels name="label" toName="image">{labels}</BrushLabels>'
    (path / "config.xml").write_text(f"{view}</View>\n", encoding="utf-8")


def brush(mask: NDArray[np.bool_]) -> list[int]:
    """(H, W) bool -> bytes."""
    flat = mask.ravel()
    ends = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1), flat.size]
    bits = [f"{CHANNELS * flat.size:032b}{7:05b}", *(f"{size - 1:04b}" for size in COUNTS)]
    for begin, left in zip(ends, CHANNELS * np.diff(ends), strict=False):
        while left:
            count = min(left, 1 << COUNTS[-1])
            kind = next(k for k, size in enumerate(COUNTS) if count <= 1 << size)
            bits.append(f"1{kind:02b}{count - 1:0{COUNTS[kind]}b}{255 * flat[begin]:08b}")
            left -= count
    text = "".join(bits)
    return list(int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8)))
