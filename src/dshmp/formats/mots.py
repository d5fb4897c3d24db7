"""MOTS' text: per line frame, track, class, height, width, compressed run lengths."""

from collections import defaultdict
from pathlib import Path

from dshmp.common.errors import UserError
from dshmp.common.rle import Rle, encode
from dshmp.data.base import read_text
from dshmp.data.images import decode_mask
from dshmp.formats.answers import Answers
from dshmp.formats.index_pngs import MOTS_CLASS, MOTS_NAMES, MOTS_VOID, index_map
from dshmp.formats.tracks import Tracks, add_mask, seen_tracks
from dshmp.video.source import VideoSource

OBJECT = 3  # the class of what is neither a car nor a pedestrian


def read(path: Path, source: VideoSource) -> Tracks:
    size = source.height, source.width
    masks: dict[str, dict[int, Rle]] = defaultdict(dict)
    words: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            *numbers, counts = line.split()
            t, index, label, *own = map(int, numbers)
        except ValueError:
            raise UserError(f"{where} is no MOTS: frame, track, class, height, width, run lengths") from None
        mask = decode_mask({"size": own, "counts": counts}, size, where)
        if index == MOTS_VOID or label == MOTS_VOID // MOTS_CLASS:
            continue
        name = str(index)
        add_mask(masks, name, t, mask, where)
        words[name] = MOTS_NAMES.get(label, ())
    return seen_tracks(size, {name: (each, words[name]) for name, each in masks.items()}, None, path)


def save(answers: Answers, path: Path) -> None:
    """Masks do not overlap there: a pixel is the surer object's."""
    with open(path, "w", encoding="ascii") as file:
        for t, position in enumerate(answers.positions):
            index = index_map(answers, t)
            for each in answers.seen(t):
                if (own := index == each.id).any():
                    row = position, OBJECT * MOTS_CLASS + each.id, OBJECT, *index.shape, encode(own)["counts"]
                    file.write(" ".join(map(str, row)) + "\n")
