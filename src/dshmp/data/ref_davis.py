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
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.data.base import Expression, Video, checked_name, read_json
from dshmp.data.check import CheckReport, check_frames, check_index_masks
from dshmp.data.images import read_frames, save_jpeg
from dshmp.data.masks import index_mask, read_index_mask, save_palette_png
from dshmp.data.mini import draw_clips, hide
from dshmp.errors import UserError
from dshmp.files import reason, regular

SPLITS = ("train", "val")
VOID = 255
"""The index of pixels that are not scored."""
ANNOTATORS = (
    ("Davis17_annot1.txt", "utf-8"),
    ("Davis17_annot1_full_video.txt", "utf-8"),
    ("Davis17_annot2.txt", "latin-1"),
    ("Davis17_annot2_full_video.txt", "latin-1"),
)
MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
_line = re.compile(r'\s*(\S+)\s+([1-9][0-9]{0,2})\s+"?(.*?)"?\s*')


class RefDavisSplit:
    """`train` or `val`; frames and masks are read on demand.

    An expression's `extra` holds {"annotator": 0 to 3}. Raises UserError naming the file where something is missing
    or malformed.
    """

    has_truth = True

    def __init__(self, root: Path, split: str) -> None:
        root = Path(root)
        if split not in SPLITS:
            raise UserError(f"{root}: Ref-DAVIS17 has no split {split!r}; choose from {', '.join(SPLITS)}")
        self.folder = root
        texts = [read_texts(root, annotator) for annotator in range(len(ANNOTATORS))]
        semantics = root / "davis_semantics.json"
        categories = read_json(semantics) if semantics.is_file() else {}
        self.videos: dict[str, Video] = {}
        self.expressions: list[Expression] = []
        for name in read_video_names(root, split):
            ids = sorted({number for said in texts for video, number in said if video == name})
            named = categories.get(name, {})
            if not isinstance(named, dict):
                raise UserError(f"{semantics}: video {name!r} has no categories by object; fetch it again")
            objects = {int(i): {"category": named[i]} if i in named else {} for i in ids}
            self.videos[name] = Video(name, _frame_names(root, name), objects)
            for k, number in enumerate(ids):
                for annotator, said in enumerate(texts):
                    if (name, number) in said:
                        self.expressions.append(
                            Expression(
                                name,
                                str(len(ANNOTATORS) * k + annotator),
                                said[name, number],
                                (int(number),),
                                (int(number),),
                                category=named.get(number),
                                extra={"annotator": annotator},
                            )
                        )
        if not self.expressions:
            raise UserError(f"{root / 'davis_text_annotations'}: holds no expression of the split {split!r}")

    def frames(self, video: str, positions: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        """Frames (H, W, 3) uint8 RGB of a video at the given positions in its list; all by default."""
        return read_frames(_images(self.folder, video), self.videos[video].frames, positions)

    def index_masks(self, video: str, positions: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """(T, H, W) uint8: the object's id per pixel, 0 is background and 255 void; all frames by default."""
        names = self.videos[video].frames
        chosen = names if positions is None else [names[i] for i in positions]
        paths = [_annotations(self.folder, video) / f"{name}.png" for name in chosen]
        indices = [read_index_mask(path) for path in paths]
        for path, mask in zip(paths, indices, strict=True):
            if mask.shape != indices[0].shape:
                raise UserError(f"{path}: has size {list(mask.shape)}, others {list(indices[0].shape)}; fetch it again")
        return np.stack(indices)

    def masks(
        self, video: str, annotations: Sequence[int], positions: Sequence[int], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Masks (G, T, H, W) of the annotations at the frame positions; `size` is (H, W) of the frames."""
        out = np.zeros((len(annotations), len(positions), *size), dtype=bool)
        if len(positions):
            indices = self.index_masks(video, positions)
            if indices.shape[1:] != tuple(size):
                folder = _annotations(self.folder, video)
                raise UserError(f"{folder}: masks have size {list(indices.shape[1:])}, frames {list(size)}")
            for g, annotation in enumerate(annotations):
                out[g] = indices == annotation
        return out


def read_video_names(root: Path, split: str) -> list[str]:
    """The videos of a split. Raises UserError."""
    path = root / "ImageSets" / "2017" / f"{split}.txt"
    names = [checked_name(path, "video", name) for name in _read_text(path, "utf-8").split()]
    for name, times in Counter(names).items():
        if times > 1:
            raise UserError(f"{path}: names video {name!r} {times} times; fetch it again")
    return names


def read_texts(root: Path, annotator: int) -> dict[tuple[str, str], str]:
    """(video, object) -> what an annotator says of it. Raises UserError."""
    return {(video, object_id): text for video, object_id, text in _read_lines(root, annotator)}


def _read_lines(root: Path, annotator: int) -> list[tuple[str, str, str]]:
    """Video, object and expression of each line, misspelt videos mended."""
    file, encoding = ANNOTATORS[annotator]
    path = root / "davis_text_annotations" / file
    said = []
    for number, line in enumerate(_read_text(path, encoding).split("\n"), 1):
        if line.strip():
            match = _line.fullmatch(line)
            if match is None or int(match[2]) >= VOID:
                raise UserError(f'{path}: line {number} is not `<video> <object> "<expression>"`; fetch it again')
            video, object_id, text = match.groups()
            said.append((MISSPELT.get(video, video), object_id, text.strip()))
    return said


def _read_text(path: Path, encoding: str) -> str:
    try:
        with open(path, encoding=encoding, opener=regular) as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the data set's layout needs it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as {encoding} text ({reason(error)}); fetch it again") from None


def _images(root: Path, video: str) -> Path:
    return root / "JPEGImages" / "480p" / video


def _annotations(root: Path, video: str) -> Path:
    return root / "Annotations_unsupervised" / "480p" / video


def _frame_names(root: Path, video: str) -> tuple[str, ...]:
    """Frames have no list of their own: they are what either folder holds, so that none goes missing unseen."""
    names = {path.stem for path in _images(root, video).glob("*.jpg")}
    names |= {path.stem for path in _annotations(root, video).glob("*.png")}
    if not names:
        raise UserError(f"{_images(root, video)}: has no frame; unpack JPEGImages again")
    return tuple(sorted(names))


# --- Checking ---

_UNPACK = "unpack DAVIS-2017-Unsupervised-trainval-480p.zip again"


def check(root: Path, report: CheckReport) -> None:
    """Every split that ImageSets names."""
    there = [name for name in SPLITS if (root / "ImageSets" / "2017" / f"{name}.txt").is_file()]
    for name in report.splits or (() if there else SPLITS):
        if name not in there:
            report.found(root / "ImageSets" / "2017" / f"{name}.txt", "is missing", _UNPACK)
    if not (root / "davis_semantics.json").is_file():
        report.note("davis_semantics.json is missing: objects have no category")
    for name in there:
        if report.wants(name):
            _check_split(root, name, report)
    if len(there) == len(SPLITS):
        _check_lines(root, report)


def _check_split(root: Path, name: str, report: CheckReport) -> None:
    split = report.attempt(_UNPACK, lambda: RefDavisSplit(root, name))
    if split is None:
        return
    listed = root / "ImageSets" / "2017" / f"{name}.txt"
    report.count(listed, "videos", len(split.videos), 60 if name == "train" else 30, _UNPACK)
    texts = root / "davis_text_annotations"
    if name == "val":
        objects = sum(len(video.objects) for video in split.videos.values())
        frames = sum(len(video.frames) for video in split.videos.values())
        report.count(texts, "objects of val", objects, 61, "fetch the text files again")
        report.count(texts, "expressions of val", len(split.expressions), 244, "fetch the text files again")
        report.count(root / "JPEGImages" / "480p", "frames of val", frames, 1999, _UNPACK)
    _check_texts(split, texts, report)
    videos = split.videos.values()
    sizes = check_frames(
        report,
        f"{name} frames",
        {_images(root, v.name): [f"{frame}.jpg" for frame in v.frames] for v in videos},
        _UNPACK,
    )
    shown = check_index_masks(
        report,
        f"{name} masks",
        {_annotations(root, v.name): [f"{frame}.png" for frame in v.frames] for v in videos},
        {_annotations(root, path.name): size for path, size in sizes.items()},
        _UNPACK,
    )
    for video in report.each(f"{name} objects", videos):
        path = _annotations(root, video.name) / f"{video.frames[0]}.png"
        if path.is_file() and path.stat().st_size:
            first = report.attempt(_UNPACK, lambda path=path: read_index_mask(path))  # type: ignore[misc]
            most = 0 if first is None else int(first[first != VOID].max(initial=0))
            for number in video.objects if first is not None else ():
                if not 1 <= number <= most:
                    report.found(path, f"shows objects 1 to {most}, the texts speak of {number}", _UNPACK)
        for number in video.objects:
            if number not in shown.get(path.parent, {number}):
                report.found(path.parent, f"no mask shows object {number}, of which the texts speak", _UNPACK)


def _check_lines(root: Path, report: CheckReport) -> None:
    mend = "fetch the text files again"
    lists = report.attempt(_UNPACK, lambda: [read_video_names(root, name) for name in SPLITS])
    for annotator, (file, _) in enumerate(ANNOTATORS):
        path = root / "davis_text_annotations" / file
        lines = report.attempt(mend, lambda annotator=annotator: _read_lines(root, annotator))  # type: ignore[misc]
        if lists is None or lines is None:
            continue
        said = Counter((video, object_id) for video, object_id, _ in lines)
        for video in sorted({video for video, _ in said} - {name for names in lists for name in names}):
            report.found(path, f"speaks of video {video!r}, which no split has", mend)
        for (video, object_id), times in said.items():
            if times > 1:
                report.found(path, f"speaks {times} times of object {object_id} of {video!r}; the last is read", mend)


def _check_texts(split: RefDavisSplit, texts: Path, report: CheckReport) -> None:
    said = {(item.video, item.objects[0], item.extra["annotator"]): item.text for item in split.expressions}
    for video in split.videos.values():
        if not video.objects:
            report.found(texts, f"no text speaks of video {video.name!r}", "fetch the text files again")
        for number in video.objects:
            for annotator, (file, _) in enumerate(ANNOTATORS):
                if not said.get((video.name, number, annotator)):
                    report.found(texts / file, f"says nothing of object {number} of {video.name!r}", "fetch it again")


# --- A miniature ---


def write_mini(folder: Path, seed: int) -> None:
    """Two videos to train on, one of which the texts misspell, and two of val; every object has four expressions.

    Object 1 is not seen in some frames, void pixels border the objects, and the second person's texts have letters
    beyond ASCII, in Latin-1.
    """
    lines: list[list[str]] = [[] for _ in ANNOTATORS]
    categories: dict[str, Any] = {}
    wrong = {right: misspelt for misspelt, right in MISSPELT.items()}
    for number, (name, videos) in enumerate((("train", ("bear", "classic-car")), ("val", ("libby", "shooting")))):
        for video, clip in zip(videos, draw_clips(2, seed + number, families=("easy", "relative")), strict=True):
            frames, tracks = clip.frames[:8].copy(), clip.masks[:, :8].copy()
            hide(frames, tracks, 0, (3, 5))
            for t, frame in enumerate(frames):
                save_jpeg(_images(folder, video) / f"{t:05d}.jpg", frame)
                save_palette_png(_annotations(folder, video) / f"{t:05d}.png", _with_void(tracks[:, t]))
            categories[video] = {str(k): item.look.shape for k, item in enumerate(clip.items, 1)}
            for k, item in enumerate(clip.items, 1):
                thing = f"{item.look.colour} {item.look.shape}"
                said = (f"a {thing}", f"a {thing} that moves", f"déjà vu: the {thing}", f"the {thing}, naïvely moving")
                for annotator, text in enumerate(said):
                    lines[annotator].append(f'{wrong.get(video, video)} {k} "{text}"')
        path = folder / "ImageSets" / "2017" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{video}\n" for video in videos))
    texts = folder / "davis_text_annotations"
    texts.mkdir()
    for (file, encoding), said_of in zip(ANNOTATORS, lines, strict=True):
        (texts / file).write_text("".join(f"{line}\n" for line in said_of), encoding=encoding)
    (folder / "davis_semantics.json").write_text(json.dumps(categories))


def _with_void(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Indices of masks (K, H, W), with void in the background just above objects."""
    indices = index_mask(masks)
    edge = np.zeros_like(masks[0])
    edge[:-1] = (indices[:-1] == 0) & (indices[1:] > 0)
    indices[edge] = VOID
    return indices
