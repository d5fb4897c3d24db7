"""PNGs: an index per object in one per frame, as DAVIS and MOTS have them, or a folder per object."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.common.errors import UserError
from dshmp.common.rle import Rle, decode, encode
from dshmp.data.base import Size
from dshmp.data.images import open_data_image, save_palette_png
from dshmp.formats.answers import Answers
from dshmp.formats.tracks import Tracks, seen_tracks, told
from dshmp.video.source import VideoSource

VOID, MOTS_VOID = 255, 10_000  # what index PNGs say of pixels that nobody judged
MOTS_CLASS = 1000  # a MOTS index is class * 1000 + number
MOTS_NAMES = {1: ("car",), 2: ("pedestrian", "person")}


def read(path: Path, source: VideoSource) -> Tracks:
    folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    size = source.height, source.width
    found: dict[str, tuple[dict[int, Rle], tuple[str, ...]]] = {}
    if folders:
        for folder in folders:
            masks = {}
            for t, file in _frames(folder, source):
                values = _values(file, size)
                mask = values > (127 if values.max() > 1 else 0)  # drawn with soft edges, or as 0 and 1
                if mask.any():
                    masks[t] = encode(mask)
            found[folder.name] = masks, ()
        return seen_tracks(size, found, None, path)
    for t, file in _frames(path, source):
        values = _values(file, size)
        for index in np.unique(values).tolist():
            if index in (0, VOID if values.dtype == np.uint8 else MOTS_VOID):
                continue
            label = index // MOTS_CLASS if values.dtype != np.uint8 else 0
            found.setdefault(str(index), ({}, MOTS_NAMES.get(label, ())))[0][t] = encode(values == index)
    return seen_tracks(size, dict(sorted(found.items(), key=lambda each: int(each[0]))), None, path)


def _frames(folder: Path, source: VideoSource) -> list[tuple[int, Path]]:
    """The PNGs of a folder, with the positions of their frames in the video."""
    files = sorted(each for each in folder.iterdir() if each.suffix.lower() == ".png")
    known = {name: place for place, name in enumerate(source.names or ())}
    found = []
    for file in files:
        place = known.get(file.stem)
        if place is None and not known and re.fullmatch(r"\d{1,9}", file.stem):
            place = int(file.stem)
        if place is None:
            names = f"such as {next(iter(known))}.png" if known else "their numbers in the video, such as 00000.png"
            raise UserError(f"{file}: is called as no frame of the video is; the names are {names}")
        found.append((place, file))
    return found


def _values(file: Path, size: Size) -> NDArray[Any]:
    """The numbers of a PNG's pixels (H, W): uint8, or more bits where it has them."""
    with open_data_image(file, "mask") as image:
        values = np.asarray(image if image.mode in ("P", "L", "1", "I", "I;16") else image.convert("L"))
    if values.shape != size:
        raise UserError(f"{file}: is {values.shape[1]}x{values.shape[0]}, {told(size)}")
    return values.astype(np.uint8) if values.dtype == bool else values


def index_map(answers: Answers, t: int) -> NDArray[np.uint16]:
    """(H, W) of frame t: whose a pixel is, by the objects' numbers; the surer object's where they overlap."""
    index = np.zeros((answers.height, answers.width), np.uint16)
    for each in sorted(answers.seen(t), key=lambda each: (each.score, -each.id)):
        index[decode([each.object.rle[t]])[0]] = each.id
    return index


def save(answers: Answers, path: Path) -> None:
    """As DAVIS has them. Raises UserError where there are more objects than indices."""
    if len(answers.objects) >= VOID:
        raise UserError(f"{len(answers.objects)} objects are too many for DAVIS' PNGs, which hold {VOID - 1}")
    for t, name in enumerate(answers.files):
        save_palette_png(path / f"{Path(name).stem}.png", index_map(answers, t).astype(np.uint8))
