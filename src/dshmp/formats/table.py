"""A table of what is seen: a row per frame and object, as CSV and as JSON."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dshmp.common.rle import area, box, decode
from dshmp.formats.answers import Answers

COLUMNS = ("frame", "time", "track", "expression", "score", "x", "y", "width", "height", "area", "centre_x", "centre_y")


def rows(answers: Answers) -> Iterator[dict[str, Any]]:
    """Boxes in pixels; the centre is the mean of a mask's pixels, whose middles are at .5."""
    for t, (position, time) in enumerate(zip(answers.positions, answers.results[0].times, strict=True)):
        for each in answers.seen(t):
            rle = each.object.rle[t]
            y, x = (round(float(place.mean()) + 0.5, 2) for place in np.nonzero(decode([rle])[0]))
            values = position, round(time, 6), each.id, each.name, each.score, *map(int, box(rle)), area(rle), x, y
            yield dict(zip(COLUMNS, values, strict=True))


def save(answers: Answers, path: Path) -> None:
    """`objects.csv` and `objects.json`."""
    save_csv(answers, path / "objects.csv")
    with open(path / "objects.json", "w", encoding="utf-8") as file:
        json.dump(list(rows(answers)), file, indent=0)


def save_csv(answers: Answers, path: Path) -> None:
    """CSV."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows(answers))
