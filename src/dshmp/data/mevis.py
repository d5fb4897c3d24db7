"""The on-disk layout of MeViS, which the synthetic data set shares.

    <root>/<split>/JPEGImages/<video>/<frame>.jpg
    <root>/<split>/meta_expressions.json   {"videos": {video: {"frames": [...], "expressions": {id: {...}}}}}
    <root>/<split>/mask_dict.json          {annotation id: [COCO RLE, polygons or null, one per frame position]}

Keys that MeViS does not have (the synthetic data set adds objects, subsets and candidates, version 2 of MeViS others)
are kept and never needed. An expression of version 2 may mean nothing: its `anno_id` is empty. Where the truth is
hidden there is no `anno_id` and no mask_dict.json; the same holds for one's own videos, for which nobody drew masks.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator

from dshmp.common.errors import UserError
from dshmp.common.files import digest, reason, regular
from dshmp.common.rle import encode
from dshmp.data.base import Expression, Id, Name, Side, Size, Text, Video, Videos, read_shape, shaped
from dshmp.data.check import CheckReport, check_splits
from dshmp.data.images import ImageSplit, decode_mask
from dshmp.data.mini import draw_clips, first_frames, save_frames

SPLITS = ("train", "valid_u", "valid", "test")
COUNTS = {  # of version 1, and of version 2 where they are published
    "train": ({"videos": 1662, "expressions": 23051}, {"videos": 1662, "expressions": 27502}),
    "valid_u": ({"videos": 50, "expressions": 793}, {"videos": 50, "expressions": 907}),
    "valid": ({"videos": 140, "expressions": 2236}, {"videos": 140, "expressions": 2523}),
    "test": ({"videos": 154, "expressions": 2490},),
}
SHA256 = {  # of version 1's mask_dict.json
    "train": "f9d9b01a2a6d7a004e2e7a664ce2b9b1576218e975030f8e4df4f66111fb253f",
    "valid_u": "6e711a3f713cd95a825f536323e434b4d80f85a8e4e66d0cd662408e8779db50",
}
MEND = "mend it, or fetch the file again"
CHUNK = 2**20  # bytes of mask_dict.json that are read at once
# An annotation's id. Nothing else in the file looks so: no other key is a number, and no string holds a quote.
KEY = re.compile(rb'"(-?\d{1,20})"[ \t\r\n]{0,9}:')
LONGEST_KEY = 40
END = re.compile(rb"[]{]\s*\}\s*$")
Span = tuple[int, int]  # first byte of an annotation's value, and the one after the last


# as a number, or as the text that mask_dict.json has
AnyId = Annotated[Id, BeforeValidator(lambda v: int(v) if isinstance(v, str) and re.fullmatch("[0-9]{1,18}", v) else v)]


class _Sentence(BaseModel, extra="allow"):
    exp: Text
    obj_id: tuple[AnyId, ...] = ()
    anno_id: tuple[AnyId, ...] | None = None  # where the truth is hidden
    subsets: list[str] = []
    static_ids: list[int] = []


class _Object(BaseModel, extra="allow"):
    anno_id: Id | None = None


class _Clip(BaseModel):
    frames: tuple[Name, ...]
    objects: dict[int, _Object] = {}
    expressions: dict[Name, _Sentence]


class _Mask(BaseModel):
    size: tuple[Side, Side]


class MaskIndex:
    """Where each annotation stands in a mask_dict.json: masks are read by seeking, as parsing all takes gigabytes.

    Nothing is held open, so processes share it freely; `stamp` tells if the file has changed. Raises UserError where it
    is missing, cut off or no JSON object, or holds an annotation twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _open(path) as file:
            self.stamp = _stamp(file)
            try:
                self.spans = find_spans(iter(lambda: file.read(CHUNK), b""))
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: {reason(error)}; it may be cut off, fetch it again") from None

    def track(self, annotation: int) -> list[Any] | None:
        """Per frame the mask of an annotation or None; None where the file lacks it. Raises UserError."""
        if str(annotation) not in self.spans:
            return None
        start, stop = self.spans[str(annotation)]
        with _open(self.path) as file:
            if _stamp(file) != self.stamp:
                raise UserError(f"{self.path}: changed while it was in use; start again")
            file.seek(start)
            data = file.read(stop - start).rstrip(b", \t\r\n")  # of the comma before the next one
        try:
            track = json.loads(data)
        except (ValueError, RecursionError):
            track = None
        if not isinstance(track, list):
            raise UserError(f"{self.path}: annotation {annotation} is no JSON list; {MEND}")
        return track


def find_spans(chunks: Iterable[bytes]) -> dict[str, Span]:
    """The bytes of every annotation in the JSON object that the chunks make up; what they hold is not looked at.

    Memory: a chunk and the spans. Raises ValueError where the object does not begin or end, or has a key twice.
    """
    keys: list[tuple[str, int, int]] = []
    text, offset = b"", 0
    for chunk in chunks:
        text += chunk
        if not offset and text.lstrip()[:1] != b"{":
            raise ValueError("expected a JSON object at the top")
        found = list(KEY.finditer(text))
        keys += [(match[1].decode(), offset + match.start(), offset + match.end()) for match in found]
        done = max(len(text) - LONGEST_KEY, *(match.end() for match in found[-1:]), 0)
        text, offset = text[done:], offset + done
    if not END.search(text):
        raise ValueError(f"is not valid JSON (cut off at {offset + len(text):,} bytes)")
    ends = [start for _, start, _ in keys[1:]] + [offset + text.rindex(b"}")]
    spans: dict[str, Span] = {}
    for (key, _, begin), end in zip(keys, ends, strict=False):
        if key in spans:
            raise ValueError(f"holds annotation {key!r} twice")
        spans[key] = begin, end
    return spans


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb", opener=regular)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the data set's layout needs it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None


def _stamp(file: BinaryIO) -> tuple[int, int]:
    """Size and time of change."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


class MevisSplit(ImageSplit):
    """One split of a data set in MeViS's layout."""

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root / split, root / split / "meta_expressions.json")
        self.mask_file = self.folder / "mask_dict.json"
        if not self.folder.is_dir():
            known = ", ".join(split_names(root))
            hint = f"splits there: {known}" if known else "make one with `dshmp synthetic make`"
            raise UserError(f"{self.folder}: no such data set split; {hint}")
        found, hidden = [], []
        for name, clip in read_shape(self.listed, Videos[_Clip]).videos.items():
            objects = {key: item.model_dump(exclude_unset=True) for key, item in clip.objects.items()}
            self.videos[name] = Video(name, clip.frames, objects)
            drawn = {key for key, item in clip.objects.items() if item.anno_id is not None}
            for key, item in clip.expressions.items():
                where = f"{self.listed}: video {name!r}, expression {key!r}"
                ids, annotations = item.obj_id, item.anno_id or ()
                if item.anno_id is None:
                    hidden.append(where)
                if objects and not drawn >= set(item.static_ids):
                    raise UserError(f"{where} has static_ids that are no objects with an anno_id; {MEND}")
                extra = item.model_dump(exclude={"exp", "obj_id", "anno_id"}, exclude_unset=True)
                found.append(Expression(name, key, item.exp, ids, annotations, extra=extra))
        self.keep(found, f"{self.listed}: holds no expression")
        self.has_truth = not hidden
        if 0 < len(hidden) < len(self.expressions):
            raise UserError(f"{hidden[0]} has no anno_id, as {len(hidden)} of all, while others have; {MEND}")

    @cached_property
    def _index(self) -> MaskIndex:
        return MaskIndex(self.mask_file)

    def mask_size(self, video: str, annotations: Sequence[int], position: int) -> Size | None:
        """(H, W) of masks as their run lengths say, where the frame is not there."""
        frame = self.frame_files(video)[position]
        for annotation in annotations if not frame.exists() else ():
            for mask in filter(None, self._index.track(annotation) or ()):
                return shaped(_Mask, mask, f"{self.mask_file}: annotation {annotation}").size
        return None

    def track(self, video: str, annotation: int, positions: Sequence[int], size: Size) -> NDArray[np.bool_]:
        where, count = f"{self.mask_file}: annotation {annotation}", len(self.videos[video].frames)
        track = self._index.track(annotation)
        if track is None:
            raise UserError(f"{where} is missing, which a sentence of {video!r} means; {MEND}")
        if len(track) != count:
            raise UserError(f"{where} has masks for {len(track)} frames, the video has {count}; {MEND}")
        out = np.zeros((len(positions), *size), dtype=bool)
        for t, position in enumerate(positions):
            if track[position] is not None:
                out[t] = decode_mask(track[position], size, f"{where}, frame {position}")
        return out


def split_names(root: Path) -> list[str]:
    """The splits that are there, of whatever name: one's own data has names of its own."""
    return sorted(path.parent.name for path in root.glob("*/meta_expressions.json"))


def check(root: Path, report: CheckReport) -> None:
    """Every split that is there: expressions, frames, and where the truth is public its masks."""
    there = [name for name in SPLITS if (root / name).is_dir()]
    if not report.published:
        there += [name for name in split_names(root) if name not in SPLITS]
    for name, split in check_splits(report, root, there or SPLITS[:1], MevisSplit, COUNTS):
        known: dict[tuple[str, int], int] = {}
        for item in split.expressions:
            ids, annotations = item.objects, item.annotations
            if len(ids) != len(annotations):
                told = f"has {len(ids)} obj_id and {len(annotations)} anno_id, not pairs"
                report.found(split.listed, f"video {item.video!r}, expression {item.id!r} {told}")
            for number, annotation in zip(ids, annotations, strict=False):
                if (first := known.setdefault((item.video, number), annotation)) != annotation:
                    told = f"has anno_id {annotation} for object {number}, elsewhere {first}"
                    report.found(split.listed, f"video {item.video!r}, expression {item.id!r} {told}")
        is_first = name in SHA256 and len(split.expressions) == COUNTS[name][0]["expressions"]
        if is_first and report.full and report.published and (found := digest(split.mask_file)) != SHA256[name]:
            report.found(split.mask_file, f"has the SHA256 {found}, published is {SHA256[name]}")


def write_mini(folder: Path, seed: int) -> None:
    """Two splits with masks and one with hidden truth, of three videos each, as version 2 writes them.

    Among the expressions are some that mean several objects and some that mean nothing; an object of every video is
    not seen in some of its frames, and mask_dict.json holds null for it there.
    """
    annotation = 0
    for number, name in enumerate(SPLITS[:3]):
        videos: dict[str, Any] = {}
        masks: dict[str, Any] = {}
        for i, clip in enumerate(draw_clips(3, seed + number, families=("alike", "easy", "relative"))):
            video = f"{name[0]}{number}{i:02d}a3c{seed:02x}"
            frames, tracks = first_frames(clip, hidden=(0, 5))
            names = save_frames(folder / name / "JPEGImages" / video, frames)
            meant = [(item.text, item.meant) for item in clip.expressions]
            meant += [("all of them", tuple(range(len(tracks)))), ("the elephant that lies down", ())]
            told: dict[str, dict[str, Any]] = {str(key): {"exp": text} for key, (text, _) in enumerate(meant)}
            for item, (_, ids) in zip(told.values(), meant if name != "valid" else (), strict=False):
                item |= {"obj_id": list(ids), "anno_id": [annotation + k for k in ids]}
            videos[video] = {"frames": names, "expressions": told}
            for k, track in enumerate(tracks, annotation):
                masks[str(k)] = [encode(mask) if mask.any() else None for mask in track]
            annotation += len(tracks)
        (folder / name / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
        if name != "valid":
            (folder / name / "mask_dict.json").write_text(json.dumps(masks))
