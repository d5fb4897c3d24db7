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
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from dshmp.common.errors import UserError
from dshmp.data.base import Expression, Name, Text, Video, Videos, read_shape
from dshmp.data.check import CheckReport, Finding, check_splits
from dshmp.data.images import IndexMaskSplit, index_mask, save_palette_png
from dshmp.data.mini import draw_clips, first_frames, save_frames

SPLITS = ("train", "valid")
COUNTS = {"train": ({"videos": 3471},), "valid": ({"videos": 202, "expressions": 834, "frames": 5486},)}

NO_TESTS = (
    "it is no longer published, and names the videos that valid's file has too many: take a colleague's copy, or if "
    'valid\'s file lists no video of test, write {"videos": {}} there'
)


class _Named(BaseModel, extra="allow"):
    obj_id: Annotated[int, Field(ge=1, le=255)] | None = None  # an index of masks other than the background's


class _Sentence(_Named):
    exp: Text


class _Clip(BaseModel):
    frames: tuple[Name, ...]
    expressions: dict[Name, _Sentence]


class _Description(BaseModel):
    objects: dict[int, dict[str, Any]] = {}
    expressions: dict[str, _Named] = {}


class _Descriptions(BaseModel):
    videos: dict[str, _Description] = {}


class RefYoutubeVosSplit(IndexMaskSplit):
    """`train` or `valid`."""

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root / split, expressions_file(root, split), "Ref-YouTube-VOS", split, SPLITS)
        tests = expressions_file(root, "test")
        if split == "valid" and not tests.is_file():
            raise UserError(f"{tests}: missing; {NO_TESTS}")
        left_out = read_shape(tests, Videos[_Clip]).videos if split == "valid" else {}
        path = self.folder / "meta.json"
        described = read_shape(path, _Descriptions) if split == "train" or path.is_file() else _Descriptions()
        found = []
        for name, clip in read_shape(self.listed, Videos[_Clip]).videos.items():
            if name in left_out:
                continue
            known = described.videos.get(name, _Description())
            self.videos[name] = Video(name, clip.frames, known.objects)
            for key, item in clip.expressions.items():
                number = item.obj_id or known.expressions.get(key, _Named()).obj_id
                ids = () if number is None else (number,)
                category = known.objects.get(number or 0, {}).get("category")
                found.append(Expression(name, key, item.exp, ids, ids, category, extra=item.model_extra or {}))
        self.keep(found, f"{self.listed}: holds no expression")
        self.has_truth = all(item.objects for item in self.expressions)
        if split == "valid":
            self.has_truth &= all(path.is_file() for name in self.videos for path in self.mask_files(name))


def expressions_file(root: Path, split: str) -> Path:
    return root / "meta_expressions" / split / "meta_expressions.json"


def check(root: Path, report: CheckReport) -> None:
    """Every split whose expressions or frames are there."""
    there = [name for name in SPLITS if (root / name).is_dir() or expressions_file(root, name).parent.is_dir()]
    tests = expressions_file(root, "test")
    for name, split in check_splits(report, root, there or SPLITS, RefYoutubeVosSplit, COUNTS):
        named = all(item.objects for item in split.expressions)
        if name == "train" and not named:
            report.found(split.listed, "has expressions without obj_id, which this split has")
        elif not split.has_truth and named and (split.folder / "Annotations").is_dir():
            report.found(split.folder / "Annotations", "lacks masks of some frames")
    report.findings = [
        Finding(tests, "missing", NO_TESTS) if item.path == tests and not tests.exists() else item
        for item in report.findings
    ]


def write_mini(folder: Path, seed: int) -> None:
    """Three videos to train on; a file of valid that lists three of valid, with hidden truth, and two of test.

    Frame names go up by 5. In every video, object 1 is not seen in some of the frames.
    """
    listed: dict[str, dict[str, Any]] = {"train": {}, "valid": {}, "test": {}}
    described: dict[str, Any] = {}
    for number, (name, count) in enumerate((("train", 3), ("valid", 3), ("test", 2))):
        home, is_train = folder / ("valid" if name == "test" else name), name == "train"
        for i, clip in enumerate(draw_clips(count, seed + number, families=("easy", "alike", "relative"))):
            video = f"{number}{i:02d}b7f{seed:02x}"
            frames, tracks = first_frames(clip, hidden=(0, 5))
            names = save_frames(home / "JPEGImages" / video, frames, step=5)
            single = [(item.text, item.meant[0] + 1) for item in clip.expressions if len(item.meant) == 1]
            single.append(("the one that is gone at first", 1))
            told = [{"exp": text} | ({"obj_id": str(meant)} if is_train else {}) for text, meant in single]
            listed[name][video] = {"expressions": {str(k): item for k, item in enumerate(told)}, "frames": names}
            if is_train:
                for t, file in enumerate(names):
                    save_palette_png(home / "Annotations" / video / f"{file}.png", index_mask(tracks[:, t]))
                objects = [{"category": item.look.shape, "frames": names} for item in clip.items]
                described[video] = {"objects": {str(k): item for k, item in enumerate(objects, 1)}}
    (folder / "train" / "meta.json").write_text(json.dumps({"videos": described}))
    listed["valid"] |= listed["test"]
    for name, entries in listed.items():
        path = expressions_file(folder, name)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"videos": entries}))
