"""The on-disk layout of Ref-DAVIS17: DAVIS 2017 (unsupervised, 480p), and expressions of four annotators.

    <root>/ImageSets/2017/{train,val}.txt                           names of the videos
    <root>/JPEGImages/480p/<video>/<00000>.jpg
    <root>/Annotations_unsupervised/480p/<video>/<00000>.png         palette indices: the object's id, 255 is void
    <root>/davis_text_annotations/Davis17_annot{1,2}{,_full_video}.txt   lines `<video> <object> "<expression>"`
    <root>/davis_semantics.json                                     {video: {object: category}}; may be missing

The four annotators are two people, each of whom saw the first frame, then the full video. Annotator a's expression of
a video's k-th object (in the order of their numbers as strings) has the id 4k + a.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.common.errors import UserError
from dshmp.data.base import Expression, Name, Video, read_shape, read_text, shaped
from dshmp.data.check import CheckReport, check_splits
from dshmp.data.images import IndexMaskSplit, index_mask, read_index_mask, save_palette_png
from dshmp.data.mini import draw_clips, first_frames, save_frames

SPLITS = ("train", "val")
COUNTS = {"train": ({"videos": 60},), "val": ({"videos": 30, "objects": 61, "expressions": 244, "frames": 1999},)}
VOID = 255  # the index of pixels that are not scored
ANNOTATORS = (
    ("Davis17_annot1.txt", "utf-8"),
    ("Davis17_annot1_full_video.txt", "utf-8"),
    ("Davis17_annot2.txt", "latin-1"),
    ("Davis17_annot2_full_video.txt", "latin-1"),
)
MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
_line = re.compile(r'\s*(\S+)\s+([1-9][0-9]{0,2})\s+"?(.*?)"?\s*')


class RefDavisSplit(IndexMaskSplit):
    """`train` or `val`. An expression's `extra` holds {"annotator": 0 to 3}."""

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, root / "davis_text_annotations", "Ref-DAVIS17", split, SPLITS)
        texts = [read_texts(self.folder, annotator) for annotator in range(len(ANNOTATORS))]
        semantics = self.folder / "davis_semantics.json"
        categories = read_shape(semantics, dict[str, dict[str, Any]]) if semantics.is_file() else {}
        found = []
        sets = root / "ImageSets" / "2017" / f"{split}.txt"
        for name in shaped(list[Name], list(dict.fromkeys(read_text(sets).split())), str(sets)):
            ids = sorted({number for said in texts for video, number in said if video == name})
            named = categories.get(name, {})
            objects = {int(i): {"category": named[i]} if i in named else {} for i in ids}
            self.videos[name] = Video(name, self._frame_names(name), objects)
            for k, number in enumerate(ids):
                meant, category = (int(number),), named.get(number)
                for annotator, said in enumerate(texts):
                    if (text := said.get((name, number))) is not None:
                        key, extra = str(len(ANNOTATORS) * k + annotator), {"annotator": annotator}
                        found.append(Expression(name, key, text, meant, meant, category, extra=extra))
        self.keep(found, f"{self.listed}: holds no expression of the split {split!r}")

    def image_folder(self, video: str) -> Path:
        return self.folder / "JPEGImages" / "480p" / video

    def mask_folder(self, video: str) -> Path:
        return self.folder / "Annotations_unsupervised" / "480p" / video

    def _frame_names(self, video: str) -> tuple[str, ...]:
        # frames have no list of their own: they are what either folder holds, so that none goes missing unseen
        files = *self.image_folder(video).glob("*.jpg"), *self.mask_folder(video).glob("*.png")
        names = {path.stem for path in files}
        if not names:
            raise UserError(f"{self.image_folder(video)}: has no frame; unpack JPEGImages again")
        return tuple(sorted(names))

    def index_masks(self, video: str, positions: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """(T, H, W) uint8: the object's id per pixel, 0 is background and 255 void; all frames by default."""
        files = self.mask_files(video)
        paths = files if positions is None else [files[i] for i in positions]
        first = read_index_mask(paths[0])
        return np.stack([first, *(read_index_mask(path, first.shape) for path in paths[1:])])


def read_texts(root: Path, annotator: int) -> dict[tuple[str, str], str]:
    """(video, object) -> what an annotator says of it, misspelt videos mended. Raises UserError."""
    file, encoding = ANNOTATORS[annotator]
    path = root / "davis_text_annotations" / file
    said = {}
    for number, line in enumerate(read_text(path, encoding).split("\n"), 1):
        if line.strip():
            match = _line.fullmatch(line)
            if match is None or int(match[2]) >= VOID:
                raise UserError(f'{path}: line {number} is not `<video> <object> "<expression>"`; fetch it again')
            video, object_id, text = match.groups()
            said[MISSPELT.get(video, video), object_id] = text.strip()
    return said


def check(root: Path, report: CheckReport) -> None:
    """Every split that ImageSets names."""
    report.mend = "unpack DAVIS-2017-Unsupervised-trainval-480p.zip again, or fetch the text files again"
    if not (root / "davis_semantics.json").is_file():
        report.note("davis_semantics.json is missing: objects have no category")
    there = [name for name in SPLITS if (root / "ImageSets" / "2017" / f"{name}.txt").is_file()]
    for _, split in check_splits(report, root, there or SPLITS, RefDavisSplit, COUNTS):
        said = {(item.video, item.objects[0], item.extra["annotator"]) for item in split.expressions}
        for video in split.videos.values():
            for number in video.objects:
                for annotator, (file, _) in enumerate(ANNOTATORS):
                    if (video.name, number, annotator) not in said:
                        report.found(split.listed / file, f"says nothing of object {number} of {video.name!r}")
            if not video.objects:
                report.found(split.listed, f"no text speaks of video {video.name!r}")


def write_mini(folder: Path, seed: int) -> None:
    """Two videos to train on, one of which the texts misspell, and two of val; every object has four expressions.

    Object 1 is not seen in some frames, void pixels border the objects, and the second person's texts have letters
    beyond ASCII, in Latin-1.
    """
    lines: list[list[str]] = [[] for _ in ANNOTATORS]
    categories: dict[str, Any] = {}
    wrong = {right: misspelt for misspelt, right in MISSPELT.items()}
    texts = folder / "davis_text_annotations"
    (folder / "ImageSets" / "2017").mkdir(parents=True)
    texts.mkdir()
    for number, (name, videos) in enumerate((("train", ("bear", "classic-car")), ("val", ("libby", "shooting")))):
        (folder / "ImageSets" / "2017" / f"{name}.txt").write_text("".join(f"{video}\n" for video in videos))
        for video, clip in zip(videos, draw_clips(2, seed + number, families=("easy", "relative")), strict=True):
            frames, tracks = first_frames(clip, hidden=(3, 5))
            for t, file in enumerate(save_frames(folder / "JPEGImages" / "480p" / video, frames)):
                indices = index_mask(tracks[:, t])
                indices[:-1][(indices[:-1] == 0) & (indices[1:] > 0)] = VOID  # just above objects
                save_palette_png(folder / "Annotations_unsupervised" / "480p" / video / f"{file}.png", indices)
            categories[video] = {str(k): item.look.shape for k, item in enumerate(clip.items, 1)}
            for k, item in enumerate(clip.items, 1):
                thing = f"{item.look.colour} {item.look.shape}"
                said = (f"a {thing}", f"a {thing} that moves", f"déjà vu: the {thing}", f"the {thing}, naïvely moving")
                for annotator, text in enumerate(said):
                    lines[annotator].append(f'{wrong.get(video, video)} {k} "{text}"\n')
    for (file, encoding), said_of in zip(ANNOTATORS, lines, strict=True):
        (texts / file).write_text("".join(said_of), encoding=encoding)
    (folder / "davis_semantics.json").write_text(json.dumps(categories))
