"""The on-disk layout of Ref-YouTube-VOS.

    <root>/meta_expressions/<split>/meta_expressions.json  {"videos": {video: {"frames": [...], "expressions": {...}}}}
    <root>/train/meta.json                                  {"videos": {video: {"objects": {"1": {"category": ...}}}}}
    <root>/<split>/JPEGImages/<video>/<frame>.jpg
    <root>/<split>/Annotations/<video>/<frame>.png          palette indices: the object's id, 0 is background

An expression means exactly one object; its `obj_id` is a string. The file of `valid` also lists the videos of `test`,
which that split's own file names; they are left out.

The truth of `valid` was hidden for years. It counts as public where `valid/Annotations` has a mask for every frame
(YouTube-VOS itself ships those of first frames only) and every expression has its `obj_id`, in the split's
meta_expressions.json or, under the same keys, in `valid/meta.json`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.data.base import Expression, Video, checked_name, checked_text, frame_names, read_json
from dshmp.data.check import CheckReport, check_folders, check_frames, check_index_masks
from dshmp.data.images import read_frames, save_jpeg
from dshmp.data.masks import index_mask, read_index_mask, save_palette_png
from dshmp.data.mini import draw_clips, hide
from dshmp.errors import UserError

SPLITS = ("train", "valid")


class RefYoutubeVosSplit:
    """`train` or `valid`; frames and masks are read on demand.

    Raises UserError naming the file where something is missing or malformed.
    """

    def __init__(self, root: Path, split: str) -> None:
        root = Path(root)
        if split not in SPLITS:
            raise UserError(f"{root}: Ref-YouTube-VOS has no split {split!r} here; choose from {', '.join(SPLITS)}")
        self.folder = root / split
        self.meta = expressions_file(root, split)
        left_out = _entries(expressions_file(root, "test")).keys() if split == "valid" else set()
        self.videos: dict[str, Video] = {}
        self.expressions: list[Expression] = []
        described = self.folder / "meta.json"
        known = _entries(described) if split == "train" or described.is_file() else {}
        name = ""
        try:
            for name, entry in _entries(self.meta).items():
                if name not in left_out:
                    self._add(name, entry, known.get(name, {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.meta}: video {name!r} is not as Ref-YouTube-VOS writes it ({error!r}); fetch it again"
            ) from None
        if not self.expressions:
            raise UserError(f"{self.meta}: holds no expression")
        self.has_truth = all(item.objects for item in self.expressions) and (split == "train" or self._has_masks())

    def _add(self, name: str, entry: dict[str, Any], known: dict[str, Any]) -> None:
        objects = {int(key): dict(value) for key, value in known.get("objects", {}).items()}
        checked_name(self.meta, "video", name)
        self.videos[name] = Video(name, frame_names(self.meta, entry), objects)
        for key, item in entry["expressions"].items():
            checked_name(self.meta, f"expression of video {name!r}", key)
            named = item.get("obj_id", known.get("expressions", {}).get(key, {}).get("obj_id"))
            ids = () if named is None else (_object_id(named),)
            category = objects.get(ids[0], {}).get("category") if ids else None
            extra = {k: v for k, v in item.items() if k not in ("exp", "obj_id")}
            self.expressions.append(
                Expression(name, key, checked_text(item["exp"]), ids, ids, category=category, extra=extra)
            )

    def _has_masks(self) -> bool:
        """Whether every frame has a mask file."""
        return all(
            {f"{frame}.png" for frame in video.frames} <= _names(self.folder / "Annotations" / video.name)
            for video in self.videos.values()
        )

    def frames(self, video: str, positions: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        """Frames (H, W, 3) uint8 RGB of a video at the given positions in its list; all by default."""
        return read_frames(self.folder / "JPEGImages" / video, self.videos[video].frames, positions)

    def masks(
        self, video: str, annotations: Sequence[int], positions: Sequence[int], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Masks (G, T, H, W) of the annotations at the frame positions; `size` is (H, W) of the frames."""
        out = np.zeros((len(annotations), len(positions), *size), dtype=bool)
        for t, position in enumerate(positions):
            path = self.folder / "Annotations" / video / f"{self.videos[video].frames[position]}.png"
            indices = read_index_mask(path, size)
            for g, annotation in enumerate(annotations):
                out[g, t] = indices == annotation
        return out


def expressions_file(root: Path, split: str) -> Path:
    return root / "meta_expressions" / split / "meta_expressions.json"


def _object_id(value: object) -> int:
    """An object's id, "1" or 1 in the files: an index of masks other than the background's."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if type(number) is not int or not 1 <= number <= 255:
        raise ValueError(f"obj_id {str(value)[:50]!r} is no number from 1 to 255")
    return number


def _entries(path: Path) -> dict[str, Any]:
    entries = read_json(path).get("videos")
    if not isinstance(entries, dict):
        raise UserError(f"{path}: has no object 'videos' at the top; fetch it again")
    return entries


def _names(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()} if folder.is_dir() else set()


# --- Checking ---


def check(root: Path, report: CheckReport) -> None:
    """Every split whose expressions or frames are there."""
    there = [name for name in SPLITS if (root / name).is_dir() or expressions_file(root, name).parent.is_dir()]
    for name in report.splits or (() if there else SPLITS):
        if name not in there:
            report.found(root / name, "the split's folder is missing", "fetch or unpack it again")
    for name in there:
        if report.wants(name):
            _check_split(root, name, report)


def _check_split(root: Path, name: str, report: CheckReport) -> None:
    mend = f"fetch meta_expressions/{name}/meta_expressions.json again"
    split = report.attempt("fetch it again", lambda: RefYoutubeVosSplit(root, name))
    if split is None:
        return
    if name == "train":
        report.count(split.meta, "videos", len(split.videos), 3471, mend)
    else:
        report.count(split.meta, "videos that are not the test split's", len(split.videos), 202, mend)
        report.count(split.meta, "expressions over these videos", len(split.expressions), 834, mend)
        frames = sum(len(video.frames) for video in split.videos.values())
        report.count(split.meta, "frames of these videos", frames, 5486, mend)
    _check_expressions(split, name, report, mend)
    images = split.folder / "JPEGImages"
    # the folder of valid holds the videos of test, too
    listed = {*split.videos, *_entries(expressions_file(root, "test"))} if name == "valid" else {*split.videos}
    check_folders(report, images, listed, f"unpack {name}/JPEGImages again")
    files = {images / video.name: [f"{frame}.jpg" for frame in video.frames] for video in split.videos.values()}
    sizes = check_frames(report, f"{name} frames", files, f"unpack {name}/JPEGImages again")
    if split.has_truth:
        shown = check_index_masks(
            report,
            f"{name} masks",
            {
                split.folder / "Annotations" / v.name: [f"{frame}.png" for frame in v.frames]
                for v in split.videos.values()
            },
            {split.folder / "Annotations" / path.name: size for path, size in sizes.items()},
            f"unpack {name}/Annotations again",
        )
        meant = sorted({(item.video, item.objects[0]) for item in split.expressions})
        for folder, number in ((split.folder / "Annotations" / video, number) for video, number in meant):
            if number not in shown.get(folder, {number}):
                report.found(folder, f"no mask shows object {number}, which an expression means", mend)
    elif name == "train":
        report.found(split.meta, "has expressions without obj_id, which this split has", mend)
    elif (split.folder / "Annotations").is_dir() and all(item.objects for item in split.expressions):
        report.found(split.folder / "Annotations", "lacks masks of some frames", f"unpack {name}/Annotations again")


def _check_expressions(split: RefYoutubeVosSplit, name: str, report: CheckReport, mend: str) -> None:
    for video in split.videos.values():
        if not video.frames or len(set(video.frames)) < len(video.frames):
            report.found(split.meta, f"video {video.name!r} lists no frame, or one of them twice", mend)
    for item in split.expressions:
        where = f"video {item.video!r}, expression {item.id!r}"
        if not item.text.strip():
            report.found(split.meta, f"{where} has no text", mend)
        if name == "train" and item.objects and item.objects[0] not in split.videos[item.video].objects:
            report.found(
                split.folder / "meta.json",
                f"does not list object {item.objects[0]} of video {item.video!r}, which expression {item.id!r} means",
                f"fetch {name}/meta.json again",
            )


# --- A miniature ---


def write_mini(folder: Path, seed: int) -> None:
    """Three videos to train on; a file of valid that lists three of valid, with hidden truth, and two of test.

    Frame names go up by 5. In every video, object 1 is not seen in some of the frames.
    """
    listed: dict[str, dict[str, Any]] = {"train": {}, "valid": {}, "test": {}}
    described: dict[str, Any] = {}
    for number, (name, count) in enumerate((("train", 3), ("valid", 3), ("test", 2))):
        for i, clip in enumerate(draw_clips(count, seed + number, families=("easy", "alike", "relative"))):
            video = f"{number}{i:02d}b7f{seed:02x}"
            frames, tracks = clip.frames[:8].copy(), clip.masks[:, :8].copy()
            hide(frames, tracks, 0, (0, 5))
            names = [f"{5 * t:05d}" for t in range(len(frames))]
            images = folder / ("train" if name == "train" else "valid") / "JPEGImages" / video
            for file, frame in zip(names, frames, strict=True):
                save_jpeg(images / f"{file}.jpg", frame)
            single = [(item.text, item.meant[0] + 1) for item in clip.expressions if len(item.meant) == 1]
            expressions = {
                str(key): {"exp": text, "obj_id": str(object_id)} if name == "train" else {"exp": text}
                for key, (text, object_id) in enumerate([*single, ("the one that is gone at first", 1)])
            }
            listed[name][video] = {"expressions": expressions, "frames": names}
            if name == "train":
                for t, file in enumerate(names):
                    save_palette_png(folder / "train" / "Annotations" / video / f"{file}.png", index_mask(tracks[:, t]))
                described[video] = {
                    "objects": {
                        str(k): {"category": item.look.shape, "frames": names} for k, item in enumerate(clip.items, 1)
                    }
                }
    for name, entries in listed.items():
        path = expressions_file(folder, name)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"videos": listed["valid"] | listed["test"] if name == "valid" else entries}))
    (folder / "train" / "meta.json").write_text(json.dumps({"videos": described}))
