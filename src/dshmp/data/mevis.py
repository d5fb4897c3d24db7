"""The on-disk layout of MeViS, which the synthetic data set shares.

    <root>/<split>/JPEGImages/<video>/<frame>.jpg
    <root>/<split>/meta_expressions.json   {"videos": {video: {"frames": [...], "expressions": {id: {...}}}}}
    <root>/<split>/mask_dict.json          {annotation id: [COCO RLE or null, one per frame position]}

Keys that MeViS does not have (the synthetic data set adds objects, subsets and candidates, version 2 of MeViS others)
are kept and never needed. An expression of version 2 may mean nothing: its `anno_id` is empty. Where the truth is
hidden there is no `anno_id` and no mask_dict.json; the same holds for one's own videos, for which nobody drew masks.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.data.base import Expression, Video, checked_name, checked_text, frame_names, integer, read_json
from dshmp.data.check import CheckReport, check_folders, check_frames
from dshmp.data.images import read_frames, save_jpeg
from dshmp.data.masks import decode_rle, rle_fault
from dshmp.data.mevis_index import MaskIndex, open_index
from dshmp.data.mini import draw_clips, hide
from dshmp.errors import UserError
from dshmp.files import regular
from dshmp.result import encode

SPLITS = ("train", "valid_u", "valid", "test")
COUNTS = {  # videos and expressions of version 1, and of version 2 where they are published
    "train": ((1662, 23051), (1662, 27502)),
    "valid_u": ((50, 793), (50, 907)),
    "valid": ((140, 2236), (140, 2523)),
    "test": ((154, 2490),),
}
SHA256 = {  # of version 1's mask_dict.json
    "train": "f9d9b01a2a6d7a004e2e7a664ce2b9b1576218e975030f8e4df4f66111fb253f",
    "valid_u": "6e711a3f713cd95a825f536323e434b4d80f85a8e4e66d0cd662408e8779db50",
}


class MevisSplit:
    """One split of a data set in MeViS's layout.

    `videos` maps names to `Video`, `expressions` lists every `Expression`; frames and masks are read on demand.
    Raises UserError naming the file where something is missing or malformed.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.folder = Path(root) / split
        if not self.folder.is_dir():
            known = split_names(Path(root))
            hint = f"splits there: {', '.join(known)}" if known else "make one with `dshmp synthetic make`"
            raise UserError(f"{self.folder}: no such data set split; {hint}")
        self.videos: dict[str, Video] = {}
        self.expressions: list[Expression] = []
        path = self.folder / "meta_expressions.json"
        hidden: list[str] = []
        name = ""
        try:
            for name, entry in read_json(path).get("videos", {}).items():
                hidden += self._add(path, name, entry)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: video {name!r} is not as MeViS writes it ({error!r}); fetch it again") from None
        if not self.expressions:
            raise UserError(f"{path}: holds no expression")
        self.has_truth = not hidden
        if 0 < len(hidden) < len(self.expressions):
            raise UserError(
                f"{path}: {hidden[0]} has no anno_id, while others have ({len(hidden)} of {len(self.expressions)} have "
                "none); fetch it again"
            )

    def _add(self, path: Path, name: str, entry: dict[str, Any]) -> list[str]:
        """Take in a video; the expressions of which the truth is hidden are returned."""
        hidden = []
        checked_name(path, "video", name)
        objects = {int(key): dict(value) for key, value in entry.get("objects", {}).items()}
        self.videos[name] = Video(name, frame_names(path, entry), objects)
        drawn = {key for key, value in objects.items() if integer(value.get("anno_id", -1)) >= 0}
        for key, item in entry["expressions"].items():
            checked_name(path, f"expression of video {name!r}", key)
            extra = {k: v for k, v in item.items() if k not in ("exp", "obj_id", "anno_id")}
            if not all(isinstance(subset, str) for subset in extra.get("subsets", ())):
                raise TypeError("subsets are no list of names")
            if objects and not drawn >= set(_integers(extra.get("static_ids", []))):
                raise ValueError("static_ids are no objects with an anno_id")
            if "anno_id" not in item:
                hidden.append(f"video {name!r}, expression {key!r}")
            ids, annotations = (_integers(item.get(ids_of, [])) for ids_of in ("obj_id", "anno_id"))
            if len(ids) != len(annotations):
                raise UserError(
                    f"{path}: video {name!r}, expression {key!r} has {len(ids)} "
                    f"obj_id and {len(annotations)} anno_id, which belong together in pairs; fetch the file again"
                )
            self.expressions.append(
                Expression(name, key, checked_text(item["exp"]), objects=ids, annotations=annotations, extra=extra)
            )
        return hidden

    @cached_property
    def _index(self) -> MaskIndex:
        return open_index(self.folder / "mask_dict.json")

    def frames(self, video: str, positions: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        """Frames (H, W, 3) uint8 RGB of a video at the given positions in its list; all by default."""
        return read_frames(self.folder / "JPEGImages" / video, self.videos[video].frames, positions)

    def masks(
        self, video: str, annotations: Sequence[int], positions: Sequence[int], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Masks (G, T, H, W) of the annotations at the frame positions; `size` is (H, W) of the frames."""
        out = np.zeros((len(annotations), len(positions), *size), dtype=bool)
        for g, annotation in enumerate(annotations):
            where = f"{self.folder / 'mask_dict.json'}: annotation {annotation}"
            track = self._index.track(annotation)
            if track is None:
                raise UserError(f"{where} is missing")
            for t, position in enumerate(positions):
                if position >= len(track):
                    raise UserError(f"{where} ends before frame {position}")
                rle = track[position]
                if rle is not None:
                    out[g, t] = decode_rle(rle, size, f"{where}, frame {position}")
        return out


def split_names(root: Path) -> list[str]:
    """The splits that are there, of whatever name: one's own data has names of its own."""
    return sorted(path.parent.name for path in root.glob("*/meta_expressions.json"))


def _integers(values: object) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{str(values)[:50]!r} is no list of ids")
    return tuple(integer(value) for value in values)


# --- Checking ---

_FETCH = "fetch or unpack it again"


def check(root: Path, report: CheckReport) -> None:
    """Every split that is there: expressions, frames, and where the truth is public its masks."""
    there = [name for name in SPLITS if (root / name).is_dir()]
    if not report.published:
        there += [name for name in split_names(root) if name not in SPLITS]
    for name in report.splits or (() if there else SPLITS[:1]):
        if name not in there:
            report.found(root / name, "the split's folder is missing", _FETCH)
    for name in there:
        if report.wants(name):
            _check_split(root, name, report)


def _check_split(root: Path, name: str, report: CheckReport) -> None:
    folder = root / name
    mend = f"fetch {name}/meta_expressions.json again"
    split = report.attempt(mend, lambda: MevisSplit(root, name))
    if split is None:
        return
    version = _check_counts(split, name, report, mend)
    _check_expressions(split, report, mend)
    images = folder / "JPEGImages"
    check_folders(report, images, split.videos, mend)
    frames = {images / video.name: [f"{frame}.jpg" for frame in video.frames] for video in split.videos.values()}
    sizes = check_frames(report, f"{name} frames", frames, f"unpack {name}/JPEGImages again")
    if split.has_truth:
        _check_masks(split, name, {path.name: size for path, size in sizes.items()}, version, report)
    elif report.published and name in SHA256:
        report.found(folder / "meta_expressions.json", "names no anno_id, which this split has", mend)


def _check_counts(split: MevisSplit, name: str, report: CheckReport, mend: str) -> int:
    """The version of MeViS that the counts fit; 1 where they fit none, or are not MeViS's."""
    if not report.published:
        return 1
    found = len(split.videos), len(split.expressions)
    if found in COUNTS[name]:
        return COUNTS[name].index(found) + 1
    path = split.folder / "meta_expressions.json"
    report.count(path, "videos", found[0], COUNTS[name][0][0], mend)
    expected = " or ".join(f"{item[1]:,} (version {i})" for i, item in enumerate(COUNTS[name], 1))
    if found[1] not in (item[1] for item in COUNTS[name]):
        report.found(path, f"holds {found[1]:,} expressions, the published data set has {expected}", mend)
    return 1


def _check_expressions(split: MevisSplit, report: CheckReport, mend: str) -> None:
    path = split.folder / "meta_expressions.json"
    for video in split.videos.values():
        if not video.frames:
            report.found(path, f"video {video.name!r} has no frame", mend)
        for frame, times in Counter(video.frames).items():
            if times > 1:
                report.found(path, f"video {video.name!r} lists frame {frame!r} {times} times", mend)
    pairs: dict[tuple[str, int], int] = {}
    for item in split.expressions:
        where = f"video {item.video!r}, expression {item.id!r}"
        if not item.text.strip():
            report.found(path, f"{where} has no text", mend)
        if any(number < 0 for number in (*item.objects, *item.annotations)):
            report.found(path, f"{where} has an obj_id or anno_id below 0", mend)
        for number, annotation in zip(item.objects, item.annotations, strict=True):
            known = pairs.setdefault((item.video, number), annotation)
            if known != annotation:
                report.found(path, f"{where} has anno_id {annotation} for object {number}, elsewhere {known}", mend)


def _check_masks(
    split: MevisSplit, name: str, sizes: dict[str, tuple[int, int]], version: int, report: CheckReport
) -> None:
    path = split.folder / "mask_dict.json"
    mend = f"fetch {name}/mask_dict.json again"
    expected = SHA256.get(name) if report.published and version == 1 else None
    if expected:
        mend += f", its SHA256 is {expected}"
    index = report.attempt(
        mend, lambda: open_index(path, lambda chunks, what, total: report.each(f"{name} {what}", chunks, total))
    )
    if index is None:
        return
    meant = {
        annotation: (item.video, item.id) for item in reversed(split.expressions) for annotation in item.annotations
    }
    for annotation, (video, expression) in sorted(meant.items(), key=str):
        if str(annotation) not in index.spans:
            where = f"video {video!r}, expression {expression!r}"
            report.found(path, f"annotation {annotation} is missing, which {where} means", mend)
    known = [(annotation, where[0]) for annotation, where in meant.items() if str(annotation) in index.spans]
    for annotation, video in report.each(f"{name} masks", report.sample(known)):
        track = report.attempt(mend, lambda annotation=annotation: index.track(annotation))  # type: ignore[misc]
        if track is not None:
            fault = _track_fault(track, len(split.videos[video].frames), sizes.get(video))
            if fault:
                report.found(path, f"annotation {annotation} (video {video!r}) {fault}", mend)
    if report.full and expected:
        found = _sha256(path, name, report)
        if found != expected:
            report.found(path, f"has the SHA256 {found}", mend)


def _track_fault(track: list[Any], frames: int, size: tuple[int, int] | None) -> str | None:
    """What is wrong with the masks of an annotation, of which the first is told; None if nothing is."""
    if len(track) != frames:
        return f"has masks for {len(track)} frames, the video has {frames}"
    for position, rle in enumerate(track):
        if rle is not None:
            own = rle.get("size") if isinstance(rle, dict) else None
            fault = rle_fault(rle, size or (tuple(own) if isinstance(own, list) and len(own) == 2 else (0, 0)))
            if fault:
                return f"in frame {position} {fault}"
    return None


def _sha256(path: Path, name: str, report: CheckReport) -> str:
    digest, step = hashlib.sha256(), 2**22
    with open(path, "rb", opener=regular) as file:
        count = -(-path.stat().st_size // step)
        for chunk in report.each(f"{name} SHA256", iter(lambda: file.read(step), b""), count):
            digest.update(chunk)
    return digest.hexdigest()


# --- A miniature ---


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
            frames, tracks = clip.frames[:8].copy(), clip.masks[:, :8].copy()
            hide(frames, tracks, 0, (0, 5))
            for t, frame in enumerate(frames):
                save_jpeg(folder / name / "JPEGImages" / video / f"{t:05d}.jpg", frame)
            meant = [(item.text, item.meant) for item in clip.expressions]
            meant += [("all of them", tuple(range(len(tracks)))), ("the elephant that lies down", ())]
            videos[video] = {
                "frames": [f"{t:05d}" for t in range(len(frames))],
                "expressions": {
                    str(key): {"exp": text, "obj_id": list(ids), "anno_id": [annotation + k for k in ids]}
                    if name != "valid"
                    else {"exp": text}
                    for key, (text, ids) in enumerate(meant)
                },
            }
            for track in tracks:
                masks[str(annotation)] = [encode(mask) if mask.any() else None for mask in track]
                annotation += 1
        (folder / name / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
        if name != "valid":
            (folder / name / "mask_dict.json").write_text(json.dumps(masks))
