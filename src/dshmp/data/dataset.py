"""What every data set is read into: videos, expressions over them, and samples that read frames and masks lazily.

One file per data set turns its own layout into a `Split`; everything else (training, prediction, scoring) knows
only what stands here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dshmp.errors import UserError


@dataclass(frozen=True)
class Video:
    """One video: its frame names and what its data set says of its objects."""

    name: str
    frames: tuple[str, ...]
    """Names of its frames in order, as files of predictions are called."""
    objects: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Object id -> what is known of it; the generated world lists all objects with their `anno_id`."""


@dataclass(frozen=True)
class Expression:
    """One sentence of one video and what it means."""

    video: str
    id: str
    text: str
    objects: tuple[int, ...] = ()
    """Object ids meant, in the order of `annotations`; empty where nothing is meant or the truth is hidden."""
    annotations: tuple[int, ...] = ()
    """Keys of the masks in the video, one per object."""
    category: str | None = None
    """Of the objects meant, where the data set names it."""
    shown: tuple[int, ...] | None = None
    """Positions of the frames that a model is shown, in order and perhaps repeated; None is the whole video."""
    scored: tuple[int, ...] | None = None
    """Positions of the frames that are scored; None is all."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else the file says of it."""

    @property
    def subsets(self) -> tuple[str, ...]:
        return tuple(self.extra.get("subsets", ()))

    @property
    def target(self) -> tuple[str, frozenset[int]]:
        """The object or set of objects meant: what a row of the memory bank stands for."""
        return self.video, frozenset(self.objects)


class Split(Protocol):
    """One split of a data set, opened."""

    @property
    def folder(self) -> Path:
        """Where it lies, for messages."""

    @property
    def videos(self) -> Mapping[str, Video]:
        """By name, in the data set's order."""

    @property
    def expressions(self) -> Sequence[Expression]:
        """All of them, video by video."""

    @property
    def has_truth(self) -> bool:
        """Whether the masks are public."""

    def frames(self, video: str, positions: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        """Frames (H, W, 3) uint8 RGB at these positions in the video's list; all by default."""

    def masks(
        self, video: str, annotations: Sequence[int], positions: Sequence[int], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Masks (G, T, H, W) of the annotations at the frame positions; `size` is (H, W) of the frames."""


@dataclass(frozen=True)
class Sample:
    """One expression with its frames and masks, read when asked for."""

    split: Split
    expression: Expression
    target: int
    """Which target of the split it means: the row of the memory bank. Expressions that mean the same share it."""

    def frames(self, positions: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        """Frames (H, W, 3) uint8 RGB; those that a model is shown by default."""
        return self.split.frames(self.expression.video, self.expression.shown if positions is None else positions)

    def masks(self, positions: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Masks (G, T, H, W) of the G objects meant."""
        return self.split.masks(self.expression.video, self.expression.annotations, positions, size)


def samples(split: Split) -> list[Sample]:
    """A sample per expression of the split."""
    rows = target_rows(split.expressions)
    return [Sample(split, item, row) for item, row in zip(split.expressions, rows, strict=True)]


def target_rows(expressions: Sequence[Expression]) -> list[int]:
    """The target of each expression as a number counted from 0; those with the same set of objects share one."""
    known: dict[tuple[str, frozenset[int]], int] = {}
    return [known.setdefault(item.target, len(known)) for item in expressions]


def frame_names(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The frame names in a video's entry of a meta_expressions.json. Raises KeyError or TypeError."""
    names = entry["frames"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("frames are no list of names")
    return tuple(names)


def read_frame(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB. Raises UserError."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"{path}: frame is missing; the data set is not complete") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's PNG reader raises SyntaxError for a broken file
        raise UserError(f"{path}: cannot be read as an image ({error})") from None


def read_index_mask(path: Path) -> NDArray[np.uint8]:
    """(H, W) uint8, the raw indices of a palette or grey PNG. Raises UserError."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise UserError(f"{path}: is a {image.mode} image, masks are palette or grey; fetch it again")
            return np.asarray(image, dtype=np.uint8)
    except FileNotFoundError:
        raise UserError(f"{path}: mask is missing; the data set is not complete") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's PNG reader raises SyntaxError for a broken file
        raise UserError(f"{path}: cannot be read as an image ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises UserError."""
    value = _parse_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object at the top")
    return value


def read_json_list(path: Path) -> list[Any]:
    """The list of a JSON file. Raises UserError."""
    value = _parse_json(path)
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a JSON list at the top")
    return value


def _parse_json(path: Path) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the data set's layout needs it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}); it may be cut off, fetch it again") from None
