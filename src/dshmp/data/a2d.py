"""A2D-Sentences: one sentence per object, a few annotated frames per clip, one of which is scored at a time.

    <root>/Release/videoset.csv                  no header; see `Clip`
    <root>/Release/clips320H/<video>.mp4         CLIPS320 in some copies
    <root>/text_annotations/a2d_annotation.txt   CSV with a header: video_id, instance_id, query
    <root>/text_annotations/a2d_missed_videos.txt
    <root>/text_annotations/a2d_annotation_with_instances/<video>/<00001>.h5
                                                 "instance" (N), "reMask" (N, W, H), "reBBox" (4, N) of one frame,
                                                 counted from 1; where N = 1, the masks are (W, H)

A sample is a sentence in one annotated frame. Which ones, MTTR's list decides if it lies at the root
(`a2d_sentences_single_frame_<split>_annotations.json`); otherwise all annotated frames that hold its instance.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field

from dshmp.common.errors import UserError
from dshmp.common.files import reason, regular
from dshmp.common.limits import VALUES
from dshmp.data.base import DataSplit, Expression, Name, Size, Text, Video, read_rows, read_shape, read_text
from dshmp.data.check import CheckReport, check_splits
from dshmp.data.mini import draw_clips, resized, short_texts
from dshmp.video.io import open_video

SPLITS = ("train", "test")
WINDOW = 8  # frames that a model is shown around the annotated one, as MTTR's loader does by default
COPY = "1 (copy)"  # the instance of a row that entered the published file by mistake; here it is 0, and left out
ACTORS = dict(enumerate(("adult", "baby", "ball", "bird", "car", "cat", "dog"), 1))  # tens of a clip's label
VIDEOSET = Path("Release", "videoset.csv")
ANNOTATION = Path("text_annotations", "a2d_annotation.txt")
MISSED = Path("text_annotations", "a2d_missed_videos.txt")
INSTANCES = Path("text_annotations", "a2d_annotation_with_instances")
FrameNumber = Annotated[int, Field(ge=1, le=99_999)]  # counted from 1; file names have five digits


class Clip(BaseModel):
    """A row of videoset.csv."""

    video: Name
    label: int
    start: str
    end: str
    height: str
    width: str
    frames: FrameNumber
    annotated: str
    subset: Annotated[int, Field(ge=0, le=1)]


class Sentence(BaseModel):
    """A row of a2d_annotation.txt."""

    video: Name
    instance: Annotated[int, BeforeValidator(lambda cell: 0 if str(cell).strip() == COPY else cell)]
    query: str


class ListedSample(NamedTuple):
    """An entry of MTTR's list."""

    query: Text
    video: str
    frame: Annotated[FrameNumber, Field(strict=True)]
    instance: Annotated[int, Field(strict=True)]


class A2dSplit(DataSplit):
    """A split of A2D-Sentences, `train` or `test`.

    `shown` of an expression is a window of `window` frames centred on the annotated one; where it reaches over an end
    of the clip, the end's frame is repeated. `scored` is the annotated frame. `extra["image_id"]` is the image id that
    ground truth and predictions in COCO's format share. `category` is the clip's main actor. `frame_list` tells
    which list of samples is used: report it beside every number.
    """

    def __init__(self, root: Path, split: str, window: int = WINDOW) -> None:
        mttr = root / f"a2d_sentences_single_frame_{split}_annotations.json"
        super().__init__(root, mttr if mttr.is_file() else root / ANNOTATION, "A2D-Sentences", split, SPLITS)
        self.clips = next((root / "Release").glob("CLIPS320"), root / "Release" / "clips320H")
        self._kept: tuple[str, dict[int, NDArray[np.uint8]]] = ("", {})
        clips = {clip.video: clip for clip in read_rows(root / VIDEOSET, Clip) if SPLITS[clip.subset] == split}
        if self.listed == mttr:
            self.frame_list = f"MTTR's list ({mttr.name})"
            samples = read_shape(mttr, list[ListedSample])
        else:
            self.frame_list = f"all annotated frames, as {mttr.name} is not at the root"
            samples = _derived_samples(root, clips)
        lengths: dict[str, int] = {}
        for number, (_, video, frame, _) in enumerate(samples):
            if video not in clips:
                raise UserError(f"{mttr}: entry {number} is no frame of a video of this split in {VIDEOSET.name}")
            lengths[video] = max(lengths.get(video, clips[video].frames), frame)
        for video, count in lengths.items():
            self.videos[video] = Video(video, tuple(f"{t + 1:05d}" for t in range(count)))
        found = []
        for query, video, frame, instance in samples:
            shown, meant = centred_window(frame - 1, lengths[video], window), (instance,)
            extra, name = {"image_id": f"v_{video}_f_{frame}_i_{instance}"}, f"{frame}_{instance}"
            category = ACTORS.get(clips[video].label // 10)
            found.append(Expression(video, name, query, meant, meant, category, shown, (frame - 1,), extra))
        self.keep(found, f"{root / INSTANCES}: holds no annotated frame of the split {split!r}")

    def frames(self, video: str, positions: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        """As `Split.frames`; a clip that ends before videoset.csv says repeats its last frame.

        The clip is decoded up to the last position; what has been asked of the video last read stays in memory.
        """
        wanted = range(len(self.videos[video].frames)) if positions is None else positions
        if not self.clips.is_dir():
            raise UserError(f"{self.clips}: missing; A2D's clips belong there")
        name, known = self._kept
        if name != video or not known.keys() >= set(wanted):
            known = _decode(self.clips / f"{video}.mp4", wanted) | (known if name == video else {})
            self._kept = (video, known)  # at once, as another thread may be reading
        return [known[position] for position in wanted]

    def mask_size(self, video: str, annotations: Sequence[int], position: int) -> Size:
        """(H, W) of the masks of an annotated frame, which may be a pixel off the clip's, as published."""
        height, width = read_masks(self._mask_file(video, position))[1].shape[1:]
        return height, width

    def _mask_file(self, video: str, position: int) -> Path:
        return self.folder / INSTANCES / video / f"{position + 1:05d}.h5"

    def masks(self, video: str, annotations: Sequence[int], positions: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """As `Split.masks`, in annotated frames, each read once; masks of another size than the frames' are resized."""
        out = np.zeros((len(annotations), len(positions), *size), dtype=bool)
        for t, position in enumerate(positions if annotations else ()):
            path = self._mask_file(video, position)
            instances, masks = read_masks(path)
            for g, annotation in enumerate(annotations):
                if annotation not in instances:
                    raise UserError(f"{path}: has no instance {annotation}; fetch the annotations again")
                mask = masks[instances.index(annotation)].astype(np.uint8)
                out[g, t] = cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
        return out


def centred_window(centre: int, count: int, width: int) -> tuple[int, ...]:
    """Positions of `width` frames around `centre` in a video of `count`; the ends are repeated."""
    start = centre - width // 2
    return tuple(min(max(t, 0), count - 1) for t in range(start, start + width))


def read_masks(path: Path) -> tuple[list[int], NDArray[np.bool_]]:
    """The instances of an HDF5 file and their masks (N, H, W). Raises UserError."""
    instances, stored = _read_h5(path, "instance", "reMask")
    if stored.ndim == 2:
        stored = stored[None]
    if stored.ndim != 3 or len(stored) != instances.size:
        raise UserError(f"{path}: holds {instances.size} instances and masks of shape {stored.shape}; fetch it again")
    return instances.ravel().tolist(), stored.transpose(0, 2, 1) != 0  # (N, W, H) -> (N, H, W)


def _read_h5(path: Path, *names: str) -> list[NDArray[Any]]:
    """Datasets of numbers that lie in this very HDF5 file, which may name others to be read in its place."""
    import h5py

    try:
        with open(path, "rb", opener=regular), h5py.File(path, "r") as file:
            for name in names:
                linked = isinstance(file.get(name, getlink=True), h5py.SoftLink | h5py.ExternalLink)
                if linked or file[name].is_virtual or file[name].external:
                    raise UserError(f"{path}: {name!r} is kept in another file, which is not read; fetch it again")
                if file[name].size > VALUES:
                    raise UserError(f"{path}: {name!r} holds {file[name].size:,} values, too many; fetch it again")
            arrays = [np.asarray(file[name]) for name in names]
            if not all(np.isfinite(array).all() for array in arrays):
                raise ValueError("infinity or no number")
            return arrays
    except FileNotFoundError:
        raise UserError(f"{path}: masks are missing; the data set is not complete") from None
    except (OSError, AttributeError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as HDF5 ({reason(error)}); fetch it again") from None


def _said(rows: Iterable[Sentence], clips: dict[str, Clip], missed: list[str]) -> list[Sentence]:
    return [row for row in rows if row.video in clips and row.video not in missed and row.instance]


def _derived_samples(root: Path, clips: dict[str, Clip]) -> list[ListedSample]:
    """Every sentence with every annotated frame that holds its instance."""
    rows = _said(read_rows(root / ANNOTATION, Sentence, header=True), clips, read_text(root / MISSED).split())
    annotated: dict[str, list[tuple[int, NDArray[Any]]]] = {row.video: [] for row in rows}
    for video, found in annotated.items():
        for path in sorted((root / INSTANCES / video).glob("*.h5")):
            if not path.stem.isdecimal() or not 1 <= int(path.stem) <= 99_999:
                raise UserError(f"{path}: its name is no frame number of five digits counted from 1; remove it")
            found.append((int(path.stem), _read_h5(path, "instance")[0]))
    return [
        ListedSample(row.query, row.video, frame, row.instance)
        for row in rows
        for frame, instances in annotated[row.video]
        if row.instance in instances
    ]


def _decode(path: Path, positions: Iterable[int]) -> dict[int, NDArray[np.uint8]]:
    """Frames at these positions, decoded in one pass; past the end, the last one."""
    wanted = set(positions)
    if not wanted:
        return {}
    found: dict[int, NDArray[np.uint8]] = {}
    for position, frame in enumerate(open_video(path, (0, max(wanted) + 1))):
        last = frame.image
        if position in wanted:
            found[position] = last
    return found | dict.fromkeys(wanted - found.keys(), last)


def check(root: Path, report: CheckReport) -> None:
    """Layout, published counts, that sentences, clips and masks belong together, and that they can be decoded."""
    report.mend = "fetch it again from A2D's page (Release) or A2D-Sentences' page (text_annotations)"
    clips = {clip.video: clip for clip in report.attempt(read_rows, root / VIDEOSET, Clip) or ()}
    rows = report.attempt(read_rows, root / ANNOTATION, Sentence, True) or []
    missed = (report.attempt(read_text, root / MISSED) or "").split()
    if not clips or not rows:
        return
    report.count(root / VIDEOSET, {"rows": len(clips)}, {"rows": 3782})
    report.count(root / ANNOTATION, {"rows": len(rows)}, {"rows": 6655})
    for video in sorted({row.video for row in rows} - clips.keys() - {*missed}):
        report.found(root / ANNOTATION, f"has sentences of {video}, which {VIDEOSET.name} does not list")
    rows = _said(rows, clips, missed)
    decoded = report.sample(dict.fromkeys(row.video for row in rows))
    files = [file for video in decoded for file in sorted((root / INSTANCES / video).glob("*.h5"))]
    sizes: dict[str, set[Size]] = {}
    for file in report.each("HDF5 files", files):
        if (found := report.attempt(read_masks, file)) is not None:
            height, width = found[1].shape[1:]
            sizes.setdefault(file.parent.name, set()).add((height, width))
    for name, split in check_splits(report, root, SPLITS, A2dSplit, {}):
        said = [row for row in rows if SPLITS[clips[row.video].subset] == name]
        for video in report.each(f"{name} clips", list(dict.fromkeys(row.video for row in said))):
            path = split.clips / f"{video}.mp4"
            if not path.is_file():
                report.found(path, "missing")
            if video in decoded and (source := report.attempt(open_video, path)) is not None:
                count = sum(1 for _ in source)
                if count < (source.expected or 0):
                    report.found(path, f"only {count} of its {source.expected} frames can be decoded")
                elif count != clips[video].frames:
                    report.note(f"{path.name}: {count} frames, {VIDEOSET.name} says {clips[video].frames}")
                for height, width in sorted(sizes.get(video, set()) - {(source.height, source.width)}):
                    own = f"the clip {source.width}x{source.height}"
                    report.note(f"{path.name}: masks of {width}x{height}, {own}; scored at the masks' size")
        meant = {(item.video, item.objects[0]) for item in split.expressions}
        for row in said if split.listed == root / ANNOTATION else ():
            if (row.video, row.instance) not in meant:
                told = f"no annotated frame holds instance {row.instance}, which a sentence means"
                report.found(root / INSTANCES / row.video, told)


def write_mini(folder: Path, seed: int) -> None:
    """Eight clips: four to train, three to test, one missed.

    Of the training clips, the first has a row `1 (copy)`, the second one instance only, the third a frame that lacks
    an instance, and the fourth masks of twice its frames' size.
    """
    import h5py

    from dshmp.video.overlay import overlay_writer

    clips = folder / "Release" / "clips320H"
    clips.mkdir(parents=True)
    videoset: list[list[object]] = []
    sentences: list[list[object]] = [["video_id", "instance_id", "query"]]
    for number, clip in enumerate(draw_clips(8, seed, families=("alike", "easy"))):
        video = f"a2dmini{number:04d}"
        frames, masks = resized(clip, 80, 112)
        if number == 3:
            masks = masks.repeat(2, axis=2).repeat(2, axis=3)
        objects, texts = range(1 if number == 1 else min(len(masks), 3)), short_texts(clip)
        annotated = (1, len(frames) // 2, len(frames))
        label = 10 * (1 + number % len(ACTORS)) + 8
        videoset.append([video, label, "00:00:01", "00:00:03", 80, 112, len(frames), len(annotated), int(number > 3)])
        sentences += [[video, i + 1, texts[i]] for i in objects]
        if number == 0:
            sentences.append([video, COPY, texts[0]])
        with overlay_writer(clips / f"{video}.mp4", 80, 112, fps=8) as write:
            for t, frame in enumerate(frames):
                write(frame, t / 8)
        for t in annotated if number != 7 else ():
            lost = 1 if number == 2 and t == annotated[1] else None
            present = [i for i in objects if masks[i, t - 1].any() and i != lost]
            here = masks[present, t - 1].astype(np.uint8)
            boxes = np.array([cv2.boundingRect(mask) for mask in here], dtype=np.float64).reshape(-1, 4).T
            boxes[2:] += boxes[:2] - 1  # x, y, width, height -> x1, y1, x2, y2
            one = 0 if len(present) == 1 else slice(None)
            stored = here.transpose(0, 2, 1)[one]  # (N, H, W) -> (N, W, H)
            path = folder / INSTANCES / video / f"{t:05d}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file.create_dataset("instance", data=np.array(present, dtype=np.uint8) + 1)
                file.create_dataset("reMask", data=stored, compression="gzip" if stored.size else None)
                file.create_dataset("reBBox", data=boxes[:, one])
    for name, rows in ((VIDEOSET, videoset), (ANNOTATION, sentences)):
        with open(folder / name, "w", encoding="utf-8", newline="") as table:
            csv.writer(table, lineterminator="\n").writerows(rows)
    (folder / MISSED).write_text("a2dmini0007\n")
