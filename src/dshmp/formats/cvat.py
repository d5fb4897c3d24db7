"""CVAT for video 1.1: XML with tracks of masks, whose run lengths go row by row through a box, or of polygons.

CVAT does not follow masks through time: it writes each as a track of its own, takes in but the first mask of a track,
and keeps as `group_id` which belong together. So do we: an object is a group.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, iterparse
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from dshmp.common.errors import UserError, printable
from dshmp.common.files import reason, regular
from dshmp.common.rle import Rle, box, decode, encode
from dshmp.data.base import Size
from dshmp.data.images import decode_mask
from dshmp.formats.answers import Answers
from dshmp.formats.tracks import Tracks, seen_tracks, told
from dshmp.video.source import VideoSource

log = logging.getLogger("dshmp")

LABEL = 64  # characters that a label may have there
NOT_WORDS = re.compile(r"[\d.,+-]*|true|false", re.IGNORECASE)  # values of attributes that are no words


def read(path: Path, source: VideoSource) -> Tracks:
    """Masks of one group are one object, called `g` and the group's number; else a track is one. Raises UserError."""
    size = source.height, source.width
    found: dict[str, tuple[dict[int, Rle], tuple[str, ...]]] = {}
    others: set[str] = set()
    for number, track in enumerate(_tracks(path, size)):
        where = f"{path}: track {track.get('id', number)}"
        shapes = [shape for shape in track if shape.tag in ("mask", "polygon")]
        others |= {shape.tag for shape in track} - {"mask", "polygon"}
        if not shapes:
            continue
        group = track.get("group_id", "0") if shapes[0].tag == "mask" else "0"
        name = track.get("id", str(number)) if group == "0" else f"g{group}"
        masks, _ = found.setdefault(name, ({}, _words(track, shapes[0])))
        for shape in (shape for shape in shapes if shape.get("outside") != "1"):
            try:
                t = int(shape.attrib["frame"])
                mask = _mask(shape, size, f"{where}, frame {t}")
            except (KeyError, ValueError) as error:
                raise UserError(f"{where}: a {shape.tag} lacks or spoils {reason(error)}; export it again") from None
            if mask.any():  # several of one group are its parts
                masks[t] = encode(mask | decode([masks[t]])[0] if t in masks else mask)
    kinds = ", ".join(sorted(others))
    if not found:
        raise UserError(f"{path}: holds no masks or polygons, only {kinds or 'nothing'}; draw masks, boxes are none")
    if others:
        log.warning("%s: tracks of %s are no masks and left out", path, kinds)
    return seen_tracks(size, found, None, path)


def _tracks(path: Path, size: Size) -> Iterator[Element]:
    """One by one. Raises UserError for what is no such XML, or of a video of another size."""
    try:
        with open(path, "rb", opener=regular) as file:
            for _, element in iterparse(file):
                if element.tag == "image":
                    raise UserError(f"{path}: is CVAT for images; export as CVAT for video 1.1")
                if element.tag == "original_size":
                    own = element.findtext("height"), element.findtext("width")
                    if own != tuple(map(str, size)):
                        raise UserError(f"{path}: the video is {own[1]}x{own[0]} there, {told(size)}")
                if element.tag == "track":
                    yield element
                    element.clear()
    except (OSError, ParseError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as XML ({reason(error)}); export it again") from None


def _words(track: Element, shape: Element) -> tuple[str, ...]:
    """Label and other words, such as a colour."""
    values = [track.get("label", ""), *(each.text or "" for each in shape.iter("attribute"))]
    return tuple(word.lower() for value in values if not NOT_WORDS.fullmatch(value) for word in value.split())


def _mask(shape: Element, size: Size, where: str) -> NDArray[np.bool_]:
    """(H, W) of a mask or polygon. Raises UserError, KeyError, ValueError."""
    if shape.tag == "polygon":
        return decode_mask([[float(v) for v in re.split("[,;]", shape.attrib["points"])]], size, where)
    runs = [int(run) for run in shape.attrib["rle"].split(",")]
    left, top, width, height = (int(shape.attrib[key]) for key in ("left", "top", "width", "height"))
    if min(*runs, left, top, width, height) < 0 or left + width > size[1] or top + height > size[0]:
        raise UserError(f"{where}: its mask leaves the picture; {told(size)}")
    if sum(runs) != width * height:
        raise UserError(f"{where}: its run lengths cover {sum(runs):,} of {width * height:,} pixels; export it again")
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return mask


def save(answers: Answers, path: Path) -> None:
    """A track for each object and frame where it is seen: its mask, which ends with the next frame. Labels are the
    sentences, cut to the length that CVAT takes."""
    labels = [name[:LABEL] for name in answers.names]
    last = answers.positions[-1]
    with open(path, "w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task>')
        file.write(f"<name>{escape(printable(answers.name))}</name><size>{last + 1}</size><mode>interpolation</mode>")
        file.write(f"<start_frame>0</start_frame><stop_frame>{last}</stop_frame><labels>")
        file.writelines(f"<label><name>{escape(label)}</name></label>" for label in labels)
        file.write(f"</labels><original_size><width>{answers.width}</width><height>{answers.height}</height>")
        file.write("</original_size></task></meta>\n")
        number = 0
        for each in answers.objects:
            for t, position in enumerate(answers.positions):
                left, top, width, height = map(int, box(each.object.rle[t]))
                if not width:
                    continue
                part = decode([each.object.rle[t]])[0, top : top + height, left : left + width]
                place = f'occluded="0" keyframe="1" rle="{", ".join(map(str, _runs(part)))}" left="{left}" top="{top}"'
                place += f' width="{width}" height="{height}" z_order="0"'
                label = quoteattr(labels[each.category - 1])
                file.write(f'<track id="{number}" label={label} group_id="{each.id}" source="auto">\n')
                for frame, outside in [(position, 0), *[(position + 1, 1)] * (position < last)]:
                    file.write(f'<mask frame="{frame}" outside="{outside}" {place}></mask>\n')
                file.write("</track>\n")
                number += 1
        file.write("</annotations>\n")


def _runs(mask: NDArray[np.bool_]) -> list[int]:
    """Run lengths row by row, the first of what is not in the mask."""
    flat = np.concatenate([[False], mask.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(run) for run in np.diff([0, *changes, mask.size])]
