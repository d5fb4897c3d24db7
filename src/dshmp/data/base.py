"""What every data set is read into: videos, expressions over them, and frames and masks read when asked for.

One file per data set turns its own layout into a `Split`; training, prediction and scoring know only that.
"""

import copy
import csv
import io
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from dshmp.common.errors import UserError, printable
from dshmp.common.files import name_fault, reason, regular
from dshmp.config import told

Size = tuple[int, int]  # (H, W)


@dataclass(frozen=True)
class Video:
    """One video; of objects, by their ids, whatever the data set says."""

    name: str
    frames: tuple[str, ...]  # names in order, as files of predictions are called
    objects: dict[int, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Expression:
    """One sentence of one video and what it means.

    `objects` are the ids of the objects meant, and `annotations` the keys of their masks in the same order; both are
    empty where nothing is meant or the truth is hidden. `shown` are the positions of the frames that a model is shown,
    in order and perhaps repeated, `scored` of those that are scored; None is the whole video. `extra` is whatever else
    the data set says.
    """

    video: str
    id: str
    text: str
    objects: tuple[int, ...] = ()
    annotations: tuple[int, ...] = ()
    category: str | None = None
    shown: tuple[int, ...] | None = None
    scored: tuple[int, ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

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
    """One split of a data set, opened; what is missing or malformed raises a UserError that names the file."""

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

    def masks(self, video: str, annotations: Sequence[int], positions: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """Masks (G, T, H, W) of the annotations at the frame positions; `size` is (H, W) of the frames."""

    def with_named_objects(self) -> Self:
        """Where a video's objects are not listed, with those that its sentences name. Raises UserError."""


class DataSplit:
    """What the splits here have in common: the file or folder `listed` lists their sentences.

    Raises UserError where `splits`, those of the data set `title`, do not have this one; empty stands for any.
    """

    has_truth = True

    def __init__(
        self, folder: Path, listed: Path, title: str = "", split: str = "", splits: Collection[str] = ()
    ) -> None:
        if splits and split not in splits:
            raise UserError(f"{folder}: {title} has no split {split!r}; choose from {', '.join(splits)}")
        self.folder, self.listed = folder, listed
        self.videos: dict[str, Video] = {}
        self.expressions: list[Expression] = []

    def keep(self, expressions: Iterable[Expression], none: str) -> None:
        """Keep the expressions, in the order of their videos. UserError, which says `none`, if there are none."""
        places = {video: place for place, video in enumerate(self.videos)}
        self.expressions = sorted(expressions, key=lambda item: places[item.video])
        if not self.expressions:
            raise UserError(none)

    def track(self, video: str, annotation: int, positions: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """Masks (T, H, W) of one annotation."""
        raise NotImplementedError

    def masks(self, video: str, annotations: Sequence[int], positions: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """As `Split.masks`."""
        out = np.zeros((len(annotations), len(positions), *size), dtype=bool)
        for g, annotation in enumerate(annotations):
            out[g] = self.track(video, annotation, positions, size)
        return out

    def with_named_objects(self) -> Self:
        """As `Split.with_named_objects`."""
        named: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        for item in self.expressions:
            for key, annotation in annotated(item).items():
                if (first := named[item.video].setdefault(key, {"anno_id": annotation})["anno_id"]) != annotation:
                    told = f"has annotation {annotation} of object {key}, another one {first}"
                    raise UserError(f"{self.listed}: expression {expression_name(item)} {told}; mend them to train")
        found = copy.copy(self)
        found.videos = {
            name: video if video.objects else replace(video, objects=dict(sorted(named[name].items())))
            for name, video in self.videos.items()
        }
        return found


def annotated(item: Expression) -> dict[int, int]:
    """The objects that an expression means, each with its annotation. Raises UserError."""
    if len(item.objects) != len(item.annotations):
        raise UserError(f"expression {expression_name(item)}: its obj_id and anno_id are not pairs; mend them to train")
    return dict(zip(item.objects, item.annotations, strict=True))


def by_video(split: Split) -> dict[str, list[Expression]]:
    """The expressions of each video that has any, in the split's order."""
    found: dict[str, list[Expression]] = defaultdict(list)
    for item in split.expressions:
        found[item.video].append(item)
    return dict(found)


def frame_size(split: Split, video: str, position: int = 0) -> Size:
    """(H, W) of a frame."""
    height, width = split.frames(video, [position])[0].shape[:2]
    return height, width


def mask_size(split: Split, video: str, annotations: Sequence[int], position: int = 0) -> Size:
    """(H, W) of the masks, which a split may know without a picture; of the frame where nothing is annotated."""
    known = getattr(split, "mask_size", None)
    told = known(video, annotations, position) if known is not None and annotations else None
    return told or frame_size(split, video, position)


def times_shown(shown: Sequence[int]) -> tuple[int, ...]:
    """The place in time of each frame that a model is shown, in frames from the first one of them."""
    return tuple(position - shown[0] for position in shown)


T = TypeVar("T")
Row = TypeVar("Row", bound=BaseModel)
LAYOUT = "mend it, or compare it with the layout in the documentation (docs/data.md)"  # what is whole, but no such file
RESERVED = ("Annotations", "predict.json")  # names that folders of predictions use themselves


def checked_name(name: object) -> str:
    """The name of a video, frame or expression: one that a file of predictions can have. Raises ValueError."""
    fault = name_fault(name) if isinstance(name, str) else "is no text"
    if name in RESERVED:
        fault = "is reserved for predictions"
    if fault is not None:
        raise ValueError(f"{ascii(name)[:60]} {fault}, so no file can be called so")
    return str(name)


def _text(text: str) -> str:
    text.encode()  # half a surrogate pair is no character
    return text


Name = Annotated[str, BeforeValidator(checked_name)]
Text = Annotated[str, AfterValidator(_text)]
Id = Annotated[int, Field(strict=True, ge=0)]  # a number that JSON gives as such, not as text

Side = Annotated[int, Field(strict=True, ge=1, le=2**15)]  # pixels


class Videos(BaseModel, Generic[T]):
    """A JSON file that says something of each video, beside other things."""

    videos: dict[Name, T]


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A text file. Raises UserError."""
    try:
        with open(path, encoding=encoding, newline="", opener=regular) as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the data set's layout needs it") from None
    except (OSError, ValueError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as {encoding} text ({reason(error)}); fetch it again") from None


def read_rows(path: Path, kind: type[Row], header: bool = False) -> list[Row]:
    """The rows of a CSV file that aren't blank, as models of their columns, without its header. Raises UserError."""
    names = list(kind.model_fields)
    try:
        reader = csv.reader(io.StringIO(read_text(path, "utf-8-sig"), newline=""))
        rows = [(reader.line_num, row) for row in reader if row][header:]
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV text ({error}); fetch it again") from None
    for line, row in rows:
        if len(row) != len(names):
            raise UserError(f"{path}: line {line} has {len(row)} columns, not {len(names)}; {LAYOUT}")
    return [shaped(kind, dict(zip(names, row, strict=True)), f"{path}: line {line}") for line, row in rows]


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises UserError."""
    return read_shape(path, dict[str, Any])


def read_shape(path: Path, kind: type[T]) -> T:
    """A JSON file as `kind`, a class of pydantic's or a type. Raises UserError."""
    try:
        value = json.loads(read_text(path), object_pairs_hook=_unique)
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: is not valid JSON ({reason(error)}); it may be cut off, fetch it again") from None
    return shaped(kind, value, str(path))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"an object holds {key[:50]!a} twice")
        found[key] = value
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def shaped(kind: type[T], value: object, where: str) -> T:
    """The value as `kind`, by pydantic. Raises UserError, whose message begins with `where`."""
    try:
        return _adapter(kind).validate_python(value)  # type: ignore[arg-type, no-any-return]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if part != "[key]")
    fault = ": ".join(filter(None, (where, place, told(first))))
    raise UserError(printable(f"{fault}; {LAYOUT}"))
