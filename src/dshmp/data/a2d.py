"""A2D-Sentences: one sentence per object, a few annotated frames per clip, one of which is scored at a time.

    <root>/Release/videoset.csv                  no header; see `Entry`
    <root>/Release/clips320H/<video>.mp4         CLIPS320 in some copies
    <root>/text_annotations/a2d_annotation.txt   CSV with a header: video_id, instance_id, query
    <root>/text_annotations/a2d_missed_videos.txt
    <root>/text_annotations/a2d_annotation_with_instances/<video>/<00001>.h5
                                                 "instance" (N), "reMask" (N, W, H), "reBBox" (4, N) of one frame,
                                                 counted from 1; where N = 1, the masks are (W, H)

A sample is a sentence in one annotated frame. Which ones, MTTR's list decides if it lies at the root
(`a2d_sentences_single_frame_<split>_annotations.json`); otherwise they are all annotated frames that hold the
sentence's instance, read from the HDF5 files.
"""

import contextlib
import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.data.base import (
    Expression,
    Video,
    centred_window,
    checked_name,
    checked_text,
    integer,
    read_json_list,
    read_rows,
)
from dshmp.data.check import CheckReport
from dshmp.data.mini import draw_clips, resized
from dshmp.errors import UserError
from dshmp.files import reason, regular
from dshmp.video.io import open_video
from dshmp.video.overlay import OverlayWriter

SPLITS = ("train", "test")
WINDOW = 8
"""Frames that a model is shown around the annotated one, as MTTR's loader does by default."""
COPY = "1 (copy)"
"""Instance of a row that entered the published file by mistake; it is left out."""
ACTORS = {1: "adult", 2: "baby", 3: "ball", 4: "bird", 5: "car", 6: "cat", 7: "dog"}
"""Tens of a clip's label; its units are the action."""

VIDEOSET = Path("Release", "videoset.csv")
ANNOTATION = Path("text_annotations", "a2d_annotation.txt")
MISSED = Path("text_annotations", "a2d_missed_videos.txt")
INSTANCES = Path("text_annotations", "a2d_annotation_with_instances")
VIDEOSET_ROWS, ANNOTATION_ROWS = 3782, 6655
LAST = 99_999
"""Greatest frame number that a file name of five digits holds."""
LARGEST = 2**28
"""Values of a file that are ever read: as many as a thousand masks have."""


@dataclass(frozen=True)
class Entry:
    """A clip in videoset.csv, of whose nine columns (start, end, height and width too) these are needed."""

    video: str
    label: int
    frames: int
    split: str


@dataclass(frozen=True)
class ListedVideo:
    """A sentence in a2d_annotation.txt."""

    video: str
    instance: int
    query: str


# Reading ----------------------------------------------------------------------------------------------------------


class A2dSplit:
    """A split of A2D-Sentences, `train` or `test`.

    `shown` of an expression is a window of `window` frames centred on the annotated one; where it reaches over an end
    of the clip, the end's frame is repeated. `scored` is the annotated frame. `extra["image_id"]` is the image id that
    ground truth and predictions in COCO's format share. `category` is the clip's main actor. `frame_list` tells
    which list of samples is used: report it beside every number.

    Raises UserError naming the file where something is missing or malformed.
    """

    def __init__(self, root: Path, split: str, window: int = WINDOW) -> None:
        if split not in SPLITS:
            raise UserError(f"{root}: A2D-Sentences has no split {split!r}; choose from {', '.join(SPLITS)}")
        self.folder = Path(root)
        self.has_truth = True
        self._clips = _clips_folder(self.folder)
        self._kept: tuple[str, dict[int, NDArray[np.uint8]]] = ("", {})
        entries = {entry.video: entry for entry in read_videoset(self.folder) if entry.split == split}
        listed = self.folder / f"a2d_sentences_single_frame_{split}_annotations.json"
        if listed.is_file():
            self.frame_list = f"MTTR's list ({listed.name})"
            samples = _listed_samples(listed, entries)
        else:
            self.frame_list = f"all annotated frames, as {listed.name} is not at the root"
            samples = _derived_samples(self.folder, entries)
        self.videos: dict[str, Video] = {}
        self.expressions: list[Expression] = []
        for video, here in _by_video(samples).items():
            entry = entries[video]
            count = max(entry.frames, *(frame for _, frame in here))
            self.videos[video] = Video(video, tuple(f"{t + 1:05d}" for t in range(count)))
            self.expressions += [_expression(row, frame, count, window, entry.label) for row, frame in here]
        if not self.expressions:
            raise UserError(f"{self.folder}: no expression of the split {split!r} has an annotated frame")

    def frames(self, video: str, positions: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        """Frames (H, W, 3) uint8 RGB of a video at the given positions; all by default.

        A clip that ends before videoset.csv says repeats its last frame. The clip is decoded up to the last position;
        what has been asked of the video last read stays in memory.
        """
        wanted = range(len(self.videos[video].frames)) if positions is None else positions
        name, known = self._kept
        if name != video or not known.keys() >= set(wanted):
            known = _decode(self._clips / f"{video}.mp4", wanted) | (known if name == video else {})
            self._kept = (video, known)  # at once, as another thread may be reading
        return [known[position] for position in wanted]

    def masks(
        self, video: str, annotations: Sequence[int], positions: Sequence[int], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Masks (G, T, H, W) of the instances at the frame positions, which must be annotated; `size` is (H, W).

        Masks that were drawn at another size than that of the frames are resized, nearest pixel.
        """
        out = np.zeros((len(annotations), len(positions), *size), dtype=bool)
        for t, position in enumerate(positions):
            path = self.folder / INSTANCES / video / f"{position + 1:05d}.h5"
            instances, masks = read_masks(path)
            for g, annotation in enumerate(annotations):
                if annotation not in instances:
                    raise UserError(f"{path}: has no instance {annotation}; fetch the annotations again")
                out[g, t] = _at_size(masks[instances.index(annotation)], size)
        return out


def read_videoset(root: Path) -> list[Entry]:
    """The clips of videoset.csv. Raises UserError."""
    entries = []
    for line, row in read_rows(root / VIDEOSET, 9):
        try:
            label, frames, subset = int(row[1]), int(row[6]), SPLITS[("0", "1").index(row[8].strip())]
        except ValueError:
            frames = 0
        if not 1 <= frames <= LAST:
            raise UserError(
                f"{root / VIDEOSET}: line {line} needs a label, 1 to {LAST:,} frames, and 0 or 1 as the subset; "
                "fetch it again"
            )
        entries.append(Entry(checked_name(root / VIDEOSET, "video", row[0]), label, frames, subset))
    return entries


def read_annotation(root: Path) -> list[ListedVideo]:
    """The sentences of a2d_annotation.txt without `1 (copy)`. Raises UserError."""
    path, rows = root / ANNOTATION, []
    (_, header), *lines = read_rows(path, 3) or [(1, [""] * 3)]
    if _is_number(header[1]):
        raise UserError(f"{path}: lacks the line of column names at the top; fetch it again")
    for line, (video, instance, query) in lines:
        if instance.strip() == COPY:
            continue
        if not _is_number(instance):
            raise UserError(f"{path}: line {line} has instance {instance[:50]!r}, no number; fetch it again")
        rows.append(ListedVideo(checked_name(path, "video", video), int(instance), query))
    return rows


def _is_number(cell: str) -> bool:
    return cell.strip().isdecimal() and len(cell) < 10


def read_missed(root: Path) -> set[str]:
    """The videos that the authors left out. Raises UserError."""
    try:
        with open(root / MISSED, encoding="utf-8", opener=regular) as file:
            return set(file.read().split())
    except FileNotFoundError:
        raise UserError(f"{root / MISSED}: missing; the data set's layout needs it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{root / MISSED}: is no text ({reason(error)}); fetch it again") from None


def read_instances(path: Path) -> tuple[int, ...]:
    """The instances annotated in the frame of an HDF5 file. Raises UserError."""
    return _ids(path, _read_h5(path, "instance")[0])


def read_masks(path: Path) -> tuple[tuple[int, ...], NDArray[np.bool_]]:
    """The instances of an HDF5 file and their masks (N, H, W). Raises UserError."""
    instances, stored = _read_h5(path, "instance", "reMask")
    ids = _ids(path, instances)
    if stored.ndim == 2:
        stored = stored[None]
    if stored.ndim != 3 or len(stored) != len(ids):
        raise UserError(f"{path}: holds {len(ids)} instances and masks of shape {stored.shape}; fetch it again")
    return ids, stored.transpose(0, 2, 1) != 0  # (N, W, H) -> (N, H, W)


def _ids(path: Path, instances: NDArray[Any]) -> tuple[int, ...]:
    if not np.isfinite(instances).all():
        raise UserError(f"{path}: its instances are not numbers; fetch it again")
    return tuple(int(value) for value in instances.ravel())


def _is_within(file: Any, name: str) -> bool:
    """Whether a dataset lies in this very file, which may name others to be read in its place."""
    import h5py

    if isinstance(file.get(name, getlink=True), h5py.SoftLink | h5py.ExternalLink):
        return False
    return not (file[name].is_virtual or file[name].external)


def _read_h5(path: Path, *names: str) -> list[NDArray[Any]]:
    """Datasets of numbers of an HDF5 file."""
    import h5py

    try:
        with open(path, "rb", opener=regular), h5py.File(path, "r") as file:
            for name in names:
                if not _is_within(file, name):
                    raise UserError(f"{path}: {name!r} is kept in another file, which is not read; fetch it again")
                if file[name].size > LARGEST:
                    raise UserError(f"{path}: {name!r} holds {file[name].size:,} values, too many; fetch it again")
            arrays = [np.asarray(file[name]) for name in names]
    except FileNotFoundError:
        raise UserError(f"{path}: masks are missing; the data set is not complete") from None
    except (OSError, AttributeError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as HDF5 ({reason(error)})") from None
    for name, array in zip(names, arrays, strict=True):
        if array.dtype.kind not in "iufb":
            raise UserError(f"{path}: {name!r} holds {array.dtype}, not numbers; fetch it again")
    return arrays


def _clips_folder(root: Path) -> Path:
    for name in ("clips320H", "CLIPS320"):
        if (root / "Release" / name).is_dir():
            return root / "Release" / name
    raise UserError(f"{root / 'Release' / 'clips320H'}: missing; A2D's clips belong there")


def _listed_samples(path: Path, entries: dict[str, Entry]) -> list[tuple[ListedVideo, int]]:
    """Samples of MTTR's list [[query, video, frame, instance], ...]; frames count from 1."""
    samples: dict[tuple[str, int, int], tuple[ListedVideo, int]] = {}
    for number, item in enumerate(read_json_list(path)):
        try:
            query, video, frame, instance = item
            key = checked_text(video), integer(frame), integer(instance)
            sample = ListedVideo(key[0], key[2], checked_text(query)), key[1]
        except (TypeError, ValueError):
            raise UserError(f"{path}: entry {number} is not [query, video, frame, instance]; fetch it again") from None
        if key[0] not in entries or not 1 <= key[1] <= LAST:
            raise UserError(f"{path}: entry {number} is no frame of a video of this split in {VIDEOSET.name}")
        if key in samples:
            raise UserError(f"{path}: entry {number} names frame {key[1]} and instance {key[2]} of {key[0]} again")
        samples[key] = sample
    return list(samples.values())


def _derived_samples(root: Path, entries: dict[str, Entry]) -> list[tuple[ListedVideo, int]]:
    """Every sentence with every annotated frame that holds its instance."""
    missed = read_missed(root)
    annotated: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    samples = []
    for row in read_annotation(root):
        if row.video not in entries or row.video in missed:
            continue
        if row.video not in annotated:
            annotated[row.video] = [(_number(path), read_instances(path)) for path in _h5_files(root, row.video)]
        samples += [(row, frame) for frame, instances in annotated[row.video] if row.instance in instances]
    return samples


def _h5_files(root: Path, video: str) -> list[Path]:
    return sorted((root / INSTANCES / video).glob("*.h5"))


def _number(path: Path) -> int:
    number = int(path.stem) if path.stem.isdecimal() else 0
    if not 1 <= number <= LAST:
        raise UserError(f"{path}: its name is no frame number of five digits counted from 1; remove it")
    return number


def _by_video(samples: Iterable[tuple[ListedVideo, int]]) -> dict[str, list[tuple[ListedVideo, int]]]:
    grouped: dict[str, list[tuple[ListedVideo, int]]] = {}
    for row, frame in samples:
        grouped.setdefault(row.video, []).append((row, frame))
    return grouped


def _expression(row: ListedVideo, frame: int, count: int, window: int, label: int) -> Expression:
    return Expression(
        row.video,
        f"{frame}_{row.instance}",
        row.query,
        objects=(row.instance,),
        annotations=(row.instance,),
        category=ACTORS.get(label // 10),
        shown=centred_window(frame - 1, count, window),
        scored=(frame - 1,),
        extra={"image_id": f"v_{row.video}_f_{frame}_i_{row.instance}"},
    )


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


def _at_size(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask (H', W') at `size` (H, W), nearest pixel."""
    if mask.shape == size:
        return mask
    import cv2

    resized = cv2.resize(mask.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, dtype=bool)


# Checking ---------------------------------------------------------------------------------------------------------

MEND = "fetch it again from A2D's page (Release) or A2D-Sentences' page (text_annotations)"


def check(root: Path, report: CheckReport) -> None:
    """Layout, published counts, that sentences, clips and masks belong together, and that they can be decoded."""
    entries = report.attempt(MEND, lambda: read_videoset(root))
    rows = report.attempt(MEND, lambda: read_annotation(root))
    missed = report.attempt(MEND, lambda: read_missed(root))
    clips = report.attempt(MEND, lambda: _clips_folder(root))
    if not (root / INSTANCES).is_dir():
        report.found(root / INSTANCES, "missing", MEND)
    if entries is None or rows is None or missed is None or clips is None or not (root / INSTANCES).is_dir():
        return
    lines = len(read_rows(root / ANNOTATION, 3)) - 1
    if lines > len(rows):
        report.note(f"{ANNOTATION.name}: {lines - len(rows)} row(s) of instance `{COPY}` left out")
    report.count(root / VIDEOSET, "rows", len(entries), VIDEOSET_ROWS, MEND)
    report.count(root / ANNOTATION, "rows", lines, ANNOTATION_ROWS, MEND)
    known = {entry.video: entry for entry in entries}
    if len(known) < len(entries):
        report.found(root / VIDEOSET, f"names {len(entries) - len(known)} video(s) twice", MEND)
    for (video, instance), times in Counter((row.video, row.instance) for row in rows).items():
        if times > 1:
            report.found(root / ANNOTATION, f"has {times} sentences of instance {instance} of {video}", MEND)
    needed: dict[str, set[int]] = {}
    for row in rows:
        if row.video not in missed:
            needed.setdefault(row.video, set()).add(row.instance)
    left_out = sum(row.video in missed for row in rows)
    if left_out:
        report.note(f"{left_out} sentence(s) of {len(missed)} videos in {MISSED.name} left out")
    for video in sorted(needed.keys() - known.keys()):
        report.found(root / ANNOTATION, f"has sentences of {video}, which {VIDEOSET.name} does not list", MEND)
    videos = [video for video in needed if video in known and report.wants(known[video].split)]
    decoded = set(report.sample(videos))
    for video in report.each("clips", videos):
        _check_video(root, clips / f"{video}.mp4", known[video], needed[video], video in decoded, report)
    for split in SPLITS:
        path = root / f"a2d_sentences_single_frame_{split}_annotations.json"
        if path.is_file() and report.wants(split):
            here = {video: entry for video, entry in known.items() if entry.split == split}
            _check_list(root, path, here, report)


def _check_list(root: Path, path: Path, entries: dict[str, Entry], report: CheckReport) -> None:
    """Every frame of MTTR's list is annotated and holds the instance; a sample of the files is read."""
    mend = "fetch it again from MTTR's repository"
    samples = report.attempt(mend, partial(_listed_samples, path, entries))
    named: dict[Path, set[int]] = {}
    for row, frame in samples or ():
        named.setdefault(root / INSTANCES / row.video / f"{frame:05d}.h5", set()).add(row.instance)
    read = set(report.sample(named))
    for file in report.each(path.name, named):
        if not file.is_file():
            report.found(path, f"names frame {int(file.stem)} of {file.parent.name}, which has no masks", mend)
        elif file in read:
            with contextlib.suppress(UserError):  # a damaged file is told above
                for instance in sorted(named[file] - set(read_instances(file))):
                    where = f"frame {int(file.stem)} of {file.parent.name}"
                    report.found(path, f"names instance {instance} in {where}, which lacks it", mend)


def _check_video(root: Path, path: Path, entry: Entry, instances: set[int], decode: bool, report: CheckReport) -> None:
    """One clip and its HDF5 files, whose shapes are looked at only where `decode` is set."""
    length = entry.frames
    if not path.is_file():
        report.found(path, "missing", MEND)
    elif decode:
        length = _check_clip(path, entry, report) or length
    files = _h5_files(root, entry.video)
    if not files:
        report.found(root / INSTANCES / entry.video, f"holds no masks, {len(instances)} sentence(s) need them", MEND)
        return
    seen: set[int] = set()
    for file in files:
        frame = report.attempt("remove it", partial(_number, file))
        if frame is not None and frame > length:
            report.found(file, f"its clip has {length} frames only", MEND)
        if decode:
            read = report.attempt(MEND, partial(read_masks, file))
            if read is None:
                seen |= instances  # what it held is unknown
            else:
                seen |= set(read[0])
    if decode:
        for instance in sorted(instances - seen):
            report.found(root / INSTANCES / entry.video, f"no frame holds instance {instance}, which a row names", MEND)


def _check_clip(path: Path, entry: Entry, report: CheckReport) -> int | None:
    """How many frames of a clip decode, or None where none does."""
    try:
        source = open_video(path)
        count = sum(1 for _ in source)
    except UserError as error:
        report.found(path, str(error).removeprefix(f"{path}: ").split("; ")[0], MEND)
        return None
    except Exception as error:  # whatever a decoder makes of damage
        report.found(path, f"cannot be decoded ({reason(error)})", MEND)
        return None
    if source.expected is not None and count < source.expected:
        report.found(path, f"only {count} of its {source.expected} frames can be decoded", MEND)
    elif count != entry.frames:
        report.note(f"{path.name}: {count} frames, {VIDEOSET.name} says {entry.frames}")
    return count


# Miniature --------------------------------------------------------------------------------------------------------


def write_mini(folder: Path, seed: int) -> None:
    """Eight clips: four to train, three to test, one missed.

    Of the training clips, the first has a row `1 (copy)`, the second one instance only, the third a frame that lacks
    an instance, and the fourth masks of twice its frames' size.
    """
    import h5py

    height, width, rate = 80, 112, 8.0
    clips_folder = folder / "Release" / "clips320H"
    clips_folder.mkdir(parents=True)
    videoset: list[list[object]] = []
    sentences: list[list[object]] = []
    for number, clip in enumerate(draw_clips(8, seed, families=("alike", "easy"))):
        video, missed, split = f"a2dmini{number:04d}", number == 7, int(number > 3)
        frames, masks = resized(clip, height, width)
        if number == 3:
            masks = masks.repeat(2, axis=2).repeat(2, axis=3)
        objects = range(1 if number == 1 else min(len(masks), 3))
        texts = {i: f"the {item.look.colour} {item.look.shape}" for i, item in enumerate(clip.items)}
        texts |= {item.meant[0]: item.text for item in clip.expressions if len(item.meant) == 1}
        annotated = (1, len(frames) // 2, len(frames))
        label = 10 * (1 + number % len(ACTORS)) + 8
        videoset.append([video, label, "00:00:01", "00:00:03", height, width, len(frames), len(annotated), split])
        sentences += [[video, i + 1, texts[i]] for i in objects]
        if number == 0:
            sentences.append([video, COPY, texts[0]])
        with OverlayWriter(clips_folder / f"{video}.mp4", height, width, rate) as output:
            for t, frame in enumerate(frames):
                output.write(frame, t / rate)
        if missed:
            continue
        target = folder / INSTANCES / video
        target.mkdir(parents=True)
        for frame_number in annotated:
            present = [i for i in objects if masks[i, frame_number - 1].any()]
            if number == 2 and frame_number == annotated[1]:
                present = [i for i in present if i != 1]
            here = masks[present, frame_number - 1]
            stored = here.transpose(0, 2, 1).astype(np.uint8)  # (N, H, W) -> (N, W, H)
            boxes = np.array([_box(mask) for mask in here], dtype=np.float64).reshape(-1, 4).T
            if len(present) == 1:
                stored, boxes = stored[0], boxes[:, 0]
            with h5py.File(target / f"{frame_number:05d}.h5", "w") as file:
                file.create_dataset("instance", data=np.array(present, dtype=np.uint8) + 1)
                file.create_dataset("reMask", data=stored, compression="gzip" if stored.size else None)
                file.create_dataset("reBBox", data=boxes)
    _write_csv(folder / VIDEOSET, videoset)
    _write_csv(folder / ANNOTATION, [["video_id", "instance_id", "query"], *sentences])
    (folder / MISSED).write_text("a2dmini0007\n")


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of a mask (H, W) that isn't empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
