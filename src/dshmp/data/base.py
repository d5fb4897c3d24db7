"""What every data set is read into: videos, expressions over them, and samples that read frames and masks lazily.

One file per data set turns its own layout into a `Split`; everything else (training, prediction, scoring) knows
only what stands here.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dshmp.errors import UserError
from dshmp.files import name_fault, reason, regular


@dataclass(frozen=True)
class Video:
    """One video: its frame names and what its data set says of its objects."""

    name: str
    frames: tuple[str, ...]
    """Names of its frames in order, as files of predictions are called."""
    objects: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Object id -> what is known of it; the synthetic data set lists all objects with their `anno_id`."""


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


def expression_name(item: Expression) -> str:
    """An expression as messages name it."""
    return f"{item.video}/{item.id}"


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


def by_video(split: Split) -> dict[str, list[Expression]]:
    """The expressions of each video that has any, in the split's order."""
    found: dict[str, list[Expression]] = defaultdict(list)
    for item in split.expressions:
        found[item.video].append(item)
    return dict(found)


def frame_size(split: Split, video: str, position: int = 0) -> tuple[int, int]:
    """(H, W) of a frame."""
    height, width = split.frames(video, [position])[0].shape[:2]
    return height, width


def times_shown(shown: Sequence[int]) -> tuple[int, ...]:
    """The place in time of each frame that a model is shown, in frames from the first one of them."""
    return tuple(position - shown[0] for position in shown)


def centred_window(centre: int, count: int, width: int) -> tuple[int, ...]:
    """Positions of `width` frames around `centre` in a video of `count`; the ends are repeated."""
    start = centre - width // 2
    return tuple(min(max(t, 0), count - 1) for t in range(start, start + width))


# --- What files may say ---

RESERVED = frozenset({"Annotations", "predict.json"})
"""Names that folders of predictions use themselves."""


def checked_name(path: Path, what: str, name: object) -> str:
    """The name of a video, frame or expression that `path` gives: one that a file of predictions can have.

    Raises UserError.
    """
    if not isinstance(name, str):
        fault: str | None = "is no text"
    else:
        fault = name_fault(name) or ("is reserved for predictions" if name in RESERVED else None)
        if fault is None:
            return name
    shown = ascii(name)
    raise UserError(
        f"{path}: the {what} {shown if len(shown) < 80 else shown[:60] + '...'} {fault}, so no file can be called so; "
        "rename it, or fetch the file again"
    )


def checked_text(text: object) -> str:
    """What an expression says, as a file gives it. Raises TypeError or ValueError."""
    if not isinstance(text, str):
        raise TypeError(f"the text is {str(text)[:50]!r}, no string")
    text.encode()  # half a surrogate pair is no character
    return text


def integer(value: object) -> int:
    """A number that a file gives and that has to be whole. Raises TypeError."""
    if type(value) is not int:
        raise TypeError(f"{str(value)[:50]!r} is no integer")
    return value


def frame_names(path: Path, entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The frame names in a video's entry of a meta_expressions.json. Raises KeyError, TypeError or UserError."""
    names = entry["frames"]
    if not isinstance(names, list):
        raise TypeError("frames are no list of names")
    return tuple(checked_name(path, "frame", name) for name in names)


# --- Text files ---


def read_rows(path: Path, columns: int) -> list[tuple[int, list[str]]]:
    """(Line number, cells) of the rows of a CSV file that aren't blank. Raises UserError."""
    try:
        with open(path, encoding="utf-8-sig", newline="", opener=regular) as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the data set's layout needs it") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV text ({reason(error)}); fetch it again") from None
    for line, row in rows:
        if len(row) != columns:
            raise UserError(f"{path}: line {line} has {len(row)} columns, not {columns}; fetch it again")
    return rows


def read_json(path: Path, keep: Callable[[dict[str, Any]], Any] = lambda entry: entry) -> dict[str, Any]:
    """The object of a JSON file; of every object in it there remains what `keep` returns, at once. Raises UserError."""
    value = _parse_json(path, keep)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object at the top")
    return value


def read_json_list(path: Path) -> list[Any]:
    """The list of a JSON file. Raises UserError."""
    value = _parse_json(path, lambda entry: entry)
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a JSON list at the top")
    return value


def _parse_json(path: Path, keep: Callable[[dict[str, Any]], Any]) -> Any:
    def entry(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise UserError(f"{path}: one of its objects holds {ascii(twice)[:50]} twice; fetch it again")
        return keep(found)

    try:
        with open(path, encoding="utf-8", opener=regular) as file:
            return json.load(file, object_pairs_hook=entry)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the data set's layout needs it") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: is not valid JSON ({reason(error)}); it may be cut off, fetch it again") from None
