"""Files that the page gives away."""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from dshmp.export import MASKS, OVERLAY, slug
from dshmp.result import EVIDENCE, RESULTS, Result
from dshmp.rle import decode
from dshmp.serve.session import View, draw_overlay, shown, shown_colours
from dshmp.video.io import open_video

Writer = Callable[[View, Path], list[Path]]


def write_masks(view: View, folder: Path) -> list[Path]:
    """masks.zip: a PNG per sentence and frame, 0 and 255."""
    path = folder / f"{MASKS}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for result, name in zip(shown(view), _names(view), strict=True):
            for index, rle in enumerate(result.rle):
                picture = cv2.imencode(".png", decode([rle])[0].astype(np.uint8) * 255)[1]
                archive.writestr(f"{name}/{index:05d}.png", picture.tobytes())
    return [path]


def write_overlays(view: View, folder: Path) -> list[Path]:
    """A video per sentence."""
    paths = [folder / f"{name}-{OVERLAY}" for name in _names(view)]
    source = open_video(view.video)
    for number, (result, path) in enumerate(zip(shown(view), paths, strict=True)):
        draw_overlay(path, source, result, shown_colours(view, number))
    return paths


def write_json(view: View, folder: Path) -> list[Path]:
    return [write_results(view, shown(view), folder)]


def write_results(view: View, results: Sequence[Result], folder: Path) -> Path:
    """result.json, as `dshmp.load_results` reads it."""
    size = {"height": results[0].height, "width": results[0].width}
    document = {"video": view.video.name, **size, "evidence": EVIDENCE, "results": [each.to_json() for each in results]}
    path = folder / RESULTS
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def _names(view: View) -> list[str]:
    return [f"{number:02d}-{slug(result.expression)}" for number, result in enumerate(view.results, 1)]


WRITERS: dict[str, Writer] = {"result.json": write_json, "masks (PNG)": write_masks, "overlay.mp4": write_overlays}


def write(kinds: Sequence[str], view: View, folder: Path) -> list[Path]:
    """Files of these kinds, in `folder`."""
    return [path for kind in kinds for path in WRITERS[kind](view, folder)]
