"""JHMDB-Sentences: one person and one sentence per video, three frames of which are scored. There is only a test split.

    <root>/Rename_Images/<action>/<video>/<00001>.png     frames, counted from 1
    <root>/puppet_mask/<action>/<video>/puppet_mask.mat   "part_mask" (H, W, T), at times fewer than frames
    <root>/jhmdb_annotation.txt                           CSV with a header: video, query

Frames without a mask are no part of a video. Published numbers hang on which frames are scored: MTTR's list,
`jhmdb_sentences_samples_metadata.json`, decides if it lies at the root; otherwise three frames per video are drawn by
`drawn_frames`, the same on every machine, and not those of any published number.
"""

import math
import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dshmp.data.a2d import LARGEST, LAST, WINDOW
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
from dshmp.data.images import read_frame, read_frames
from dshmp.data.mini import draw_clips, resized
from dshmp.errors import UserError
from dshmp.files import reason

SPLITS = ("test",)
ANNOTATION = "jhmdb_annotation.txt"
LIST = "jhmdb_sentences_samples_metadata.json"
ROWS, FRAMES_PER_VIDEO = 928, 3
SEED = 0
"""Of `drawn_frames`."""

Sample = tuple[str, str, int, int]
"""Video, query, frame counted from 1, and how many frames of the video have masks."""


# Reading ----------------------------------------------------------------------------------------------------------


class JhmdbSplit:
    """The test split of JHMDB-Sentences.

    `shown` of an expression is a window of `window` frames centred on the scored one; where it reaches over an end of
    the video, the end's frame is repeated. `extra["image_id"]` is the image id that ground truth and predictions in
    COCO's format share. `frame_list` tells which list of frames is used: report it beside every number.

    Raises UserError naming the file where something is missing or malformed.
    """

    def __init__(self, root: Path, split: str = "test", window: int = WINDOW) -> None:
        if split not in SPLITS:
            raise UserError(f"{root}: JHMDB-Sentences has no split {split!r}, only test")
        self.folder = Path(root)
        self.has_truth = True
        self._actions = find_actions(self.folder)
        self._kept: tuple[str, NDArray[np.bool_]] | None = None
        if (self.folder / LIST).is_file():
            self.frame_list = f"MTTR's list ({LIST})"
            samples = _listed_samples(self.folder / LIST, self._actions)
        else:
            self.frame_list = f"three frames per video drawn with seed {SEED}, as {LIST} is not at the root"
            samples = _drawn_samples(self.folder, self._actions)
        self.videos: dict[str, Video] = {}
        self.expressions: list[Expression] = []
        places = {video: place for place, video in enumerate(dict.fromkeys(sample[0] for sample in samples))}
        for video, query, frame, count in sorted(samples, key=lambda sample: places[sample[0]]):
            self.videos[video] = Video(video, tuple(f"{t + 1:05d}" for t in range(count)))
            self.expressions.append(
                Expression(
                    video,
                    str(frame),
                    query,
                    objects=(1,),
                    annotations=(1,),
                    shown=centred_window(frame - 1, count, window),
                    scored=(frame - 1,),
                    extra={"image_id": f"v_{video}_f_{frame}", "action": self._actions[video]},
                )
            )
        if not self.expressions:
            raise UserError(f"{self.folder / ANNOTATION}: holds no sentence")

    def frames(self, video: str, positions: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        """Frames (H, W, 3) uint8 RGB of a video at the given positions; all that have masks by default."""
        folder = self.folder / "Rename_Images" / self._actions[video] / video
        return read_frames(folder, self.videos[video].frames, positions, ".png")

    def masks(
        self, video: str, annotations: Sequence[int], positions: Sequence[int], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Masks (G, T, H, W) of the person, annotation 1, at the frame positions; `size` is (H, W) of the frames."""
        path = _mask_file(self.folder, self._actions[video], video)
        kept = self._kept
        if kept is None or kept[0] != video:
            kept = video, read_part_mask(path)
            self._kept = kept
        masks = kept[1]
        if masks.shape[1:] != tuple(size):
            raise UserError(f"{path}: masks of size {list(masks.shape[1:])}, its frames have {list(size)}")
        if positions and max(positions) >= len(masks):
            raise UserError(f"{path}: ends before frame {max(positions) + 1}; fetch it again")
        chosen = masks[list(positions)]
        return np.stack([chosen for _ in annotations]) if annotations else np.zeros((0, *chosen.shape), dtype=bool)


def drawn_frames(video: str, count: int) -> list[int]:
    """Three of the frames 1 to `count`, in order; they depend on nothing but the arguments."""
    return sorted(random.Random(f"{SEED}/{video}").sample(range(1, count + 1), min(FRAMES_PER_VIDEO, count)))


def find_actions(root: Path) -> dict[str, str]:
    """Video -> action, the folder that it lies in. Raises UserError."""
    actions = {folder.name: folder.parent.name for folder in sorted((root / "Rename_Images").glob("*/*"))}
    if not actions:
        raise UserError(f"{root / 'Rename_Images'}: missing or without videos; the frames of JHMDB belong there")
    return actions


def read_sentences(root: Path) -> list[tuple[str, str]]:
    """(Video, query) of jhmdb_annotation.txt. Raises UserError."""
    path = root / ANNOTATION
    rows = [row for _, row in read_rows(path, 2)]
    if rows and (root / "Rename_Images").is_dir() and rows[0][0] in find_actions(root):
        raise UserError(f"{path}: lacks the line of column names at the top; fetch it again")
    return [(checked_name(path, "video", video), query) for video, query in rows[1:]]


def read_part_mask(path: Path) -> NDArray[np.bool_]:
    """Masks (T, H, W) of a puppet_mask.mat. Raises UserError."""
    import scipy.io

    _shape(path)
    stored = _mat(path, partial(scipy.io.loadmat, path, variable_names=["part_mask"]))["part_mask"]
    volume = stored if stored.ndim == 3 else stored[..., None]  # MATLAB drops a last axis of one
    return np.asarray(volume.transpose(2, 0, 1) != 0)  # (H, W, T) -> (T, H, W)


def count_masks(path: Path) -> int:
    """How many masks a puppet_mask.mat says it has, without reading them. Raises UserError."""
    shape = _shape(path)
    return shape[2] if len(shape) == 3 else 1


def _shape(path: Path) -> tuple[int, ...]:
    """The shape of part_mask, (H, W, T) or, where T is 1, (H, W)."""
    import scipy.io

    stored = {name: (tuple(shape), kind) for name, shape, kind in _mat(path, partial(scipy.io.whosmat, path))}
    shape, kind = stored.get("part_mask", ((), ""))
    if not re.fullmatch(r"logical|single|double|u?int\d+", kind):
        raise UserError(f"{path}: holds no part_mask of numbers; fetch it again")
    if len(shape) not in (2, 3) or not 0 < math.prod(shape) <= LARGEST:
        raise UserError(f"{path}: part_mask has shape {shape}, not (H, W, T); fetch it again")
    return shape


def _mat(path: Path, read: Any) -> Any:
    """What scipy reads; it has no one error for damage."""
    if not path.is_file():
        raise UserError(f"{path}: masks are missing; the data set is not complete")
    try:
        return read()
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a MATLAB file ({reason(error)})") from None


def _mask_file(root: Path, action: str, video: str) -> Path:
    return root / "puppet_mask" / action / video / "puppet_mask.mat"


def _frame_files(root: Path, action: str, video: str) -> list[Path]:
    return sorted((root / "Rename_Images" / action / video).glob("*.png"))


def _listed_samples(path: Path, actions: dict[str, str]) -> list[Sample]:
    """Samples of MTTR's list [[video, path of the frame, path of the masks, frames with masks, query], ...]."""
    samples: dict[tuple[str, int], Sample] = {}
    counts: dict[str, int] = {}
    for number, item in enumerate(read_json_list(path)):
        try:
            video, frame_path, _, count, query = item
            sample = checked_text(video), checked_text(query), int(Path(frame_path).stem), integer(count)
        except (TypeError, ValueError):
            raise UserError(
                f"{path}: entry {number} is not [video, frame, masks, number of frames, query]; fetch it again"
            ) from None
        if sample[0] not in actions:
            raise UserError(f"{path}: entry {number} names {sample[0]}, which is not in Rename_Images")
        if not 1 <= sample[2] <= sample[3] <= LAST:
            raise UserError(f"{path}: entry {number} names frame {sample[2]} of {sample[3]}; fetch it again")
        if counts.setdefault(sample[0], sample[3]) != sample[3]:
            raise UserError(
                f"{path}: entry {number} counts {sample[3]} frames of {sample[0]}, an earlier one {counts[sample[0]]}; "
                "fetch it again"
            )
        if (sample[0], sample[2]) in samples:
            raise UserError(f"{path}: entry {number} names frame {sample[2]} of {sample[0]} again; fetch it again")
        samples[sample[0], sample[2]] = sample
    return list(samples.values())


def _drawn_samples(root: Path, actions: dict[str, str]) -> list[Sample]:
    samples = []
    for video, query in read_sentences(root):
        if video not in actions:
            raise UserError(f"{root / ANNOTATION}: names {video}, which is not in Rename_Images; fetch the frames")
        frames = len(_frame_files(root, actions[video], video))
        count = min(frames, count_masks(_mask_file(root, actions[video], video)))
        samples += [(video, query, frame, count) for frame in drawn_frames(video, count)]
    return samples


# Checking ---------------------------------------------------------------------------------------------------------

MEND = "fetch it again from JHMDB's page (Rename_Images, puppet_mask) or A2D-Sentences' page (jhmdb_annotation.txt)"


def check(root: Path, report: CheckReport) -> None:
    """Layout, published counts, that every video has frames and masks, and that they can be decoded."""
    sentences = report.attempt(MEND, lambda: read_sentences(root))
    actions = report.attempt(MEND, lambda: find_actions(root))
    if not (root / "puppet_mask").is_dir():
        report.found(root / "puppet_mask", "missing", MEND)
    if sentences is None or actions is None or not (root / "puppet_mask").is_dir():
        return
    report.count(root / ANNOTATION, "rows", len(sentences), ROWS, MEND)
    if len({video for video, _ in sentences}) < len(sentences):
        report.found(root / ANNOTATION, "names a video twice", MEND)
    if (root / LIST).is_file():
        _check_list(root, actions, report)
    else:
        report.note(f"{LIST} is not at the root: the frames that are scored are drawn with seed {SEED}, not MTTR's")
    decoded = {video for video, _ in report.sample(sentences)}
    shorter = 0
    for video, _ in report.each("videos", sentences):
        if video in actions:
            shorter += _check_video(root, actions[video], video, video in decoded, report)
        else:
            report.found(root / ANNOTATION, f"names {video}, which is not in Rename_Images", MEND)
    if shorter:
        report.note(f"{shorter} video(s) have fewer masks than frames; the frames without are left out")


def _check_list(root: Path, actions: dict[str, str], report: CheckReport) -> None:
    mend = "fetch it again from MTTR's repository (datasets/jhmdb_sentences)"
    samples = report.attempt(mend, lambda: _listed_samples(root / LIST, actions))
    if samples is None:
        return
    report.count(root / LIST, "samples", len(samples), ROWS * FRAMES_PER_VIDEO, mend)
    for video, count in {video: count for video, _, _, count in samples}.items():
        path = _mask_file(root, actions[video], video)
        masks = report.attempt(MEND, partial(count_masks, path)) if path.is_file() else None
        if masks is not None and masks < count:
            report.found(path, f"has {masks} masks, {LIST} counts {count} frames with masks", MEND)
        frames = len(_frame_files(root, actions[video], video))
        if frames < count:
            report.found(root / LIST, f"counts {count} frames of {video}, which has {frames}", mend)


def _check_video(root: Path, action: str, video: str, decode: bool, report: CheckReport) -> bool:
    """Whether it has fewer masks than frames, which is no damage; what is wrong is reported."""
    files = _frame_files(root, action, video)
    folder = root / "Rename_Images" / action / video
    masks = _mask_file(root, action, video)
    if not files:
        report.found(folder, "holds no frames", MEND)
    missing = [t for t, file in enumerate(files, 1) if file.name != f"{t:05d}.png"]
    if missing:
        report.found(folder / f"{missing[0]:05d}.png", "missing, frames are counted from 1 without a gap", MEND)
    if not masks.is_file():
        report.found(masks, "missing", MEND)
        return False
    if not decode:
        return False
    stored = report.attempt(MEND, lambda: read_part_mask(masks))
    frames = [report.attempt(MEND, partial(read_frame, file)) for file in report.sample(files, most=3)]
    if stored is None:
        return False
    for file, frame in zip(report.sample(files, most=3), frames, strict=True):
        if frame is not None and frame.shape[:2] != stored.shape[1:]:
            report.found(
                masks, f"masks of size {list(stored.shape[1:])}, {file.name} has {list(frame.shape[:2])}", MEND
            )
            break
    return len(stored) < len(files)


# Miniature --------------------------------------------------------------------------------------------------------


def write_mini(folder: Path, seed: int) -> None:
    """Four videos of two actions; the second has fewer masks than frames. MTTR's list is not part of the data set."""
    import scipy.io

    lines = ["video_id,query"]
    for number, clip in enumerate(draw_clips(4, seed, families=("easy",))):
        frames, masks = resized(clip, 48, 64)
        action = ("clap", "run")[number % 2]
        video = f"mini_{number}_{action}_f_nm_np1_fr_med_{number}"
        texts = {i: f"the {item.look.colour} {item.look.shape}" for i, item in enumerate(clip.items)}
        texts |= {item.meant[0]: item.text for item in clip.expressions if len(item.meant) == 1}
        lines.append(f'{video},"{texts[0]}"')
        images = folder / "Rename_Images" / action / video
        images.mkdir(parents=True)
        for t, frame in enumerate(frames, 1):
            Image.fromarray(frame).save(images / f"{t:05d}.png")
        covered = masks[0] if number != 1 else masks[0, :-3]
        path = _mask_file(folder, action, video)
        path.parent.mkdir(parents=True)
        volume = covered.transpose(1, 2, 0).astype(np.uint8)  # (T, H, W) -> (H, W, T)
        scipy.io.savemat(path, {"part_mask": volume}, do_compression=True)
    (folder / ANNOTATION).write_text("\n".join(lines) + "\n", encoding="utf-8")
