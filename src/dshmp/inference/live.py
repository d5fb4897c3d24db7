"""Answers about a stream as files and lines of JSON, as they come."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dshmp.candidates import find_source
from dshmp.common import files as disk
from dshmp.common.errors import UserError
from dshmp.common.options import Kind, Options
from dshmp.inference.segment import CANDIDATES, load
from dshmp.inference.stream import Extent
from dshmp.results.folder import MASKS, folder_name, slug
from dshmp.video.live import STDIN, without_password
from dshmp.video.overlay import save_png


def parse_source(text: str) -> str | int:
    """What the command's argument means: a number is a camera, unless a file is called so."""
    return int(text) if re.fullmatch(r"\d{1,2}", text) and not os.path.lexists(text) else text


def live_folder(source: str | int, out: Path) -> Path:
    """Where the answers go, new or empty. Raises UserError where something is there."""
    name = f"camera-{source}" if isinstance(source, int) else "stdin" if source == STDIN else folder_name(Path(source))
    if isinstance(source, str) and "://" in source:
        address = without_password(source).partition("://")[2].partition("?")[0]
        name = disk.file_name(re.sub(r"[^\w.]+", "-", address).strip("-"), "video")
    folder = disk.destination(out / name, folder=True)
    if folder.is_dir() and not disk.is_vacant(folder):
        raise UserError(f"{folder}: holds something already, and a stream goes to a new folder; choose another --out")
    return folder


def stream_to_folder(
    source: str | int,
    sentences: Sequence[str],
    folder: Path,
    options: Options,
    fps: float | None = None,
    window: Extent | None = None,
    overlap: Extent | None = None,
    memory: Extent | None = None,
    candidates: Kind | None = None,
    still_camera: bool = False,
) -> Iterator[dict[str, Any]]:
    """Per frame what is told of it, once its masks `folder/<NN-slug>/masks/<frame>.png` (0 and 255) are written."""
    chosen = [each.removeprefix(CANDIDATES) for each in options.overrides or () if each.startswith(CANDIDATES)]
    if chosen and candidates is None:
        raise UserError(f"{CANDIDATES}{chosen[0]}: needs --candidates")
    find = None if candidates is None else find_source(candidates, chosen)
    stream = load(options).stream(
        source,
        sentences := list(dict.fromkeys(sentences)),
        fps=fps,
        window=window,
        overlap=overlap,
        memory=memory,
        threshold=options.threshold,
        targets=options.targets,
        candidates=find,
        still_camera=still_camera,
    )
    places = [folder / f"{number:02d}-{slug(text)}" / MASKS for number, text in enumerate(sentences, 1)]
    part = folder / ".dshmp.partial"
    with disk.writing(folder, folder):
        for place in places:
            place.mkdir(parents=True)
        try:
            for results in stream:
                told = []
                for result, place in zip(results, places, strict=True):
                    file = place / f"{result.number:05d}.png"
                    save_png(part, result.mask.astype(np.uint8) * 255)
                    os.replace(part, file)
                    told.append(result.to_json() | {"mask": str(file)})
                yield {"frame": results[0].number, "time": round(results[0].time, 6), "results": told}
        finally:
            part.unlink(missing_ok=True)
