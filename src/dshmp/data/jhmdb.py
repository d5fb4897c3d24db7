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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field

from dshmp.common.errors import UserError
from dshmp.common.files import reason
from dshmp.common.limits import FRAMES, VALUES
from dshmp.data.a2d import WINDOW, FrameNumber, centred_window
from dshmp.data.base import Expression, Name, Size, Text, Video, read_rows, read_shape
from dshmp.data.check import CheckReport, check_splits
from dshmp.data.images import ImageSplit
from dshmp.data.mini import draw_clips, resized, short_texts

ANNOTATION = "jhmdb_annotation.txt"
LIST = "jhmdb_sentences_samples_metadata.json"
SPLITS = ("test",)
FRAMES_PER_VIDEO = 3
COUNTS = {"test": ({"videos": 928, "expressions": 928 * FRAMES_PER_VIDEO},)}
SEED = 0  # of `drawn_frames`


class Sentence(BaseModel):
    """A row of jhmdb_annotation.txt."""

    video: Name
    query: str


class ListedSample(NamedTuple):
    """An entry of MTTR's list."""

    video: str
    frame: Annotated[FrameNumber, BeforeValidator(lambda path: Path(str(path)).stem)]  # of its image
    masks: str
    length: Annotated[FrameNumber, Field(strict=True, le=FRAMES)]  # frames of the video that have masks
    query: Text


class JhmdbSplit(ImageSplit):
    """The test split of JHMDB-Sentences; a person's masks are annotation 1.

    `shown`, `scored`, `extra["image_id"]` and `frame_list` are as in `A2dSplit`.
    """

    suffix = ".png"

    def __init__(self, root: Path, split: str = "test", window: int = WINDOW) -> None:
        listed = root / LIST if (root / LIST).is_file() else root / ANNOTATION
        super().__init__(root, listed, "JHMDB-Sentences", split, SPLITS)
        self._actions = _find_actions(root)
        if self.listed == root / LIST:
            self.frame_list = f"MTTR's list ({LIST})"
            samples = read_shape(self.listed, list[ListedSample])
        else:
            self.frame_list = f"three frames per video drawn with seed {SEED}, as {LIST} is not at the root"
            rows = read_rows(self.listed, Sentence, header=True)
            samples = [sample for row in rows for sample in self._drawn_samples(row)]
        found = []
        for video, frame, _, length, query in samples:
            names = tuple(f"{t + 1:05d}" for t in range(length))
            if video not in self._actions or frame > length:
                raise UserError(f"{self.listed}: frame {frame} of {length} of {video} is not there")
            if self.videos.setdefault(video, Video(video, names)).frames != names:
                raise UserError(f"{self.listed}: counts the frames of {video} differently; fetch it again")
            shown = centred_window(frame - 1, length, window)
            extra = {"image_id": f"v_{video}_f_{frame}", "action": self._actions[video]}
            found.append(Expression(video, str(frame), query, (1,), (1,), None, shown, (frame - 1,), extra))
        self.keep(found, f"{self.listed}: holds no sentence")

    def _drawn_samples(self, row: Sentence) -> list[ListedSample]:
        if row.video not in self._actions:
            raise UserError(f"{self.listed}: names {row.video}, which is not in Rename_Images; fetch the frames")
        path = _mask_file(self.folder, self._actions[row.video], row.video)
        count = _count_masks(path)
        if (self.folder / "Rename_Images").is_dir():
            count = min(len(list(self.image_folder(row.video).glob("*.png"))), count)
        if not count:
            raise UserError(f"{self.image_folder(row.video)}: holds no frames")
        return [ListedSample(row.video, frame, str(path), count, row.query) for frame in drawn_frames(row.video, count)]

    def image_folder(self, video: str) -> Path:
        return self.folder / "Rename_Images" / self._actions[video] / video

    def mask_size(self, video: str, annotations: Sequence[int], position: int) -> Size:
        """(H, W) of masks, without their frames."""
        height, width = _mask_shape(_mask_file(self.folder, self._actions[video], video))[:2]
        return height, width

    def track(self, video: str, annotation: int, positions: Sequence[int], size: Size) -> NDArray[np.bool_]:
        import scipy.io

        path = _mask_file(self.folder, self._actions[video], video)
        _count_masks(path)
        stored = _read_mat(scipy.io.loadmat, path, variable_names=["part_mask"])["part_mask"]
        volume = stored if stored.ndim == 3 else stored[..., None]  # MATLAB drops a last axis of one
        masks: NDArray[np.bool_] = volume.transpose(2, 0, 1) != 0  # (H, W, T) -> (T, H, W)
        if masks.shape[1:] != tuple(size):
            raise UserError(f"{path}: masks of size {list(masks.shape[1:])}, its frames have {list(size)}")
        if positions and max(positions) >= len(masks):
            raise UserError(f"{path}: ends before frame {max(positions) + 1}; fetch it again")
        return masks[list(positions)]


def drawn_frames(video: str, count: int) -> list[int]:
    """Three of the frames 1 to `count`, in order; they depend on nothing but the arguments."""
    return sorted(random.Random(f"{SEED}/{video}").sample(range(1, count + 1), min(FRAMES_PER_VIDEO, count)))


def _find_actions(root: Path) -> dict[str, str]:
    """Video -> action, the folder that it lies in; of masks, which are all that scoring needs, without frames."""
    there = next(filter(Path.is_dir, (root / "Rename_Images", root / "puppet_mask")), root / "Rename_Images")
    actions = {folder.name: folder.parent.name for folder in sorted(there.glob("*/*"))}
    if not actions:
        raise UserError(f"{root / 'Rename_Images'}: missing or without videos; the frames of JHMDB belong there")
    return actions


def _mask_file(root: Path, action: str, video: str) -> Path:
    return root / "puppet_mask" / action / video / "puppet_mask.mat"


def _count_masks(path: Path) -> int:
    return _mask_shape(path)[2]


def _mask_shape(path: Path) -> tuple[int, int, int]:
    """The shape (H, W, T) of masks as a puppet_mask.mat says, without reading them."""
    import scipy.io

    stored = {name: (tuple(shape), kind) for name, shape, kind in _read_mat(scipy.io.whosmat, path)}
    shape, kind = stored.get("part_mask", ((), "nothing"))
    is_number = re.fullmatch(r"logical|single|double|u?int\d+", kind)
    if is_number is None or len(shape) not in (2, 3) or not 0 < math.prod(shape) <= VALUES:
        raise UserError(f"{path}: part_mask is {kind} of shape {shape}, not numbers (H, W, T); fetch it again")
    return shape[0], shape[1], shape[2] if len(shape) == 3 else 1


def _read_mat(read: Callable[..., Any], path: Path, **options: Any) -> Any:
    """What scipy reads; it has no one error for damage."""
    if not path.is_file():
        raise UserError(f"{path}: masks are missing; the data set is not complete")
    try:
        return read(path, **options)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a MATLAB file ({reason(error)}); fetch it again") from None


def check(root: Path, report: CheckReport) -> None:
    """Layout, published counts, that every video has frames and masks, and that they can be decoded."""
    report.mend = "fetch JHMDB's Rename_Images and puppet_mask, or A2D-Sentences' jhmdb_annotation.txt, again"
    if not (root / "Rename_Images").is_dir():
        report.found(root / "Rename_Images", "missing or without videos")
    actions = report.attempt(_find_actions, root) or {}
    for row in report.each("masks", report.attempt(read_rows, root / ANNOTATION, Sentence, True) or []):
        if row.video in actions:
            report.attempt(_count_masks, _mask_file(root, actions[row.video], row.video))
    if not (root / LIST).is_file():
        report.note(f"{LIST} is not at the root: the frames that are scored are drawn with seed {SEED}, not MTTR's")
    check_splits(report, root, SPLITS, JhmdbSplit, COUNTS)


def write_mini(folder: Path, seed: int) -> None:
    """Four videos of two actions; the second has fewer masks than frames. MTTR's list is not part of the data set."""
    import scipy.io

    lines = ["video_id,query"]
    for number, clip in enumerate(draw_clips(4, seed, families=("easy",))):
        frames, masks = resized(clip, 48, 64)
        action = ("clap", "run")[number % 2]
        video = f"mini_{number}_{action}_f_nm_np1_fr_med_{number}"
        lines.append(f'{video},"{short_texts(clip)[0]}"')
        images, path = folder / "Rename_Images" / action / video, _mask_file(folder, action, video)
        images.mkdir(parents=True)
        path.parent.mkdir(parents=True)
        for t, frame in enumerate(frames, 1):
            Image.fromarray(frame).save(images / f"{t:05d}.png")
        volume = masks[0, : -3 if number == 1 else None].transpose(1, 2, 0).astype(np.uint8)  # (T, H, W) -> (H, W, T)
        scipy.io.savemat(path, {"part_mask": volume}, do_compression=True)
    (folder / ANNOTATION).write_text("\n".join(lines) + "\n", encoding="utf-8")
