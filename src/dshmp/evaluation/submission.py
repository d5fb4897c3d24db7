"""The zip files that the servers of MeViS and Ref-YouTube-VOS take: written from predictions, and validated.

    mevis          <video>/<expression>/<frame>.png
    youtube_vos    Annotations/<video>/<expression>/<frame>.png

Every frame has its PNG, grey with 8 bits, of the frame's size, 0 and 255; nothing else lies in the file.
"""

import contextlib
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from dshmp.data.base import Split, frame_size
from dshmp.errors import UserError
from dshmp.evaluation.predictions import TOPS, UNREADABLE, open_png, read_entry
from dshmp.files import atomic_write, destination, digest, regular
from dshmp.progress import track

DATE = (1980, 1, 1, 0, 0, 0)
JUNK = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Folder:
    """The masks of one expression."""

    path: str
    """Below the predictions' folder or in the zip file."""
    video: str
    frames: tuple[str, ...]
    """Names of its files."""


def folders(split: Split, layout: str) -> list[Folder]:
    """All that a submission holds, in the split's order. Raises UserError where the layout has none."""
    if layout not in TOPS:
        raise UserError("only MeViS and Ref-YouTube-VOS take submissions; `dshmp score` scores this data set")
    return [
        Folder(
            f"{TOPS[layout]}{item.video}/{item.id}",
            item.video,
            tuple(dict.fromkeys(f"{frame}.png" for frame in split.videos[item.video].frames)),
        )
        for item in split.expressions
    ]


def zip_beside(out: Path) -> Path:
    """Where the zip file of a folder goes by default."""
    target = destination(out)
    return target.with_name(f"{target.name or 'predictions'}.zip")


def write_zip(out: Path, split: Split, layout: str, path: Path | None = None) -> Path:
    """Zip the predictions in `out`; what a second run writes is equal byte by byte.

    Args:
        path: of the zip file; `<out>.zip` beside the folder by default. It appears only once it is valid.

    Raises:
        UserError: the layout has no submission, a file of the split is missing, what is there is not valid, or `path`
            is there and not what is to be written.
    """
    path = path or zip_beside(out)
    with packed(out, split, layout, path) as made:
        if os.path.lexists(path) and not (path.is_file() and digest(path) == digest(made)):
            raise UserError(f"{path}: is there, and not of the predictions in {out}; move it away")
    return path


@contextlib.contextmanager
def packed(out: Path, split: Split, layout: str, path: Path) -> Iterator[Path]:
    """A valid zip file of the predictions in `out`, which gets its name `path` in the end. Raises as `write_zip`."""
    wanted = [f"{folder.path}/{frame}" for folder in folders(split, layout) for frame in folder.frames]
    missing = [name for name in wanted if not (out / name).is_file()]
    if missing:
        raise UserError(f"{out / missing[0]}: missing, {len(missing):,} of {len(wanted):,} masks are; predict again")
    with atomic_write(path) as part:
        with zipfile.ZipFile(part, "w") as file:  # stored: PNGs are compressed
            for name in track(sorted(wanted), "zipping"):
                entry = zipfile.ZipInfo(name, DATE)
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                file.writestr(entry, (out / name).read_bytes())
        findings = validate_zip(part, split, layout)
        if findings:
            more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
            raise UserError(f"{out}: no valid submission ({findings[0]}{more}); predict again")
        yield part


def validate_zip(path: Path, split: Split, layout: str) -> list[str]:
    """What is wrong with a submission, a line each: what, where, and how it should be; nothing where it is valid.

    Raises UserError where the layout has no submission, or a frame of the split cannot be read.
    """
    wanted = folders(split, layout)
    try:
        with open(path, "rb", opener=regular):
            file = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UNREADABLE as error:
        return [f"is no readable zip file ({error}); it may be cut off"]
    with file:
        return _Validator(file, split, wanted, TOPS[layout]).findings()


class _Validator:
    """One zip file beside what it should hold."""

    def __init__(self, file: zipfile.ZipFile, split: Split, wanted: Sequence[Folder], top: str) -> None:
        self.file, self.split, self.wanted, self.top = file, split, wanted, top
        self.videos = {folder.video for folder in wanted}

    def findings(self) -> list[str]:
        """The big things first; files that are wrong in one way are told together."""
        return [*self._junk(), *self._twice(), *self._misplaced(), *self._missing(), *self._extra(), *self._damaged()]

    @cached_property
    def _names(self) -> list[str]:
        """All entries but junk."""
        return [name for name in self.file.namelist() if not _is_junk(name)]

    @cached_property
    def _place(self) -> str:
        """What lies above the videos; as it should be where no video is found."""
        places: Counter[str] = Counter()
        for name in self._names:
            parts = PurePosixPath(name).parts
            at = next((i for i, part in enumerate(parts) if part in self.videos), None)
            if at is not None:
                places["".join(f"{part}/" for part in parts[:at])] += 1
        return self.top if not places or self.top in places else places.most_common(1)[0][0]

    @cached_property
    def _entries(self) -> Mapping[str, str]:
        """Path as it should be -> path in the file; for what lies elsewhere, its own."""
        place, top = self._place, self.top
        return {top + n.removeprefix(place) if n.startswith(place) else n: n for n in self._names}

    @cached_property
    def _groups(self) -> Mapping[str, set[str]]:
        """Folder -> its files."""
        groups: defaultdict[str, set[str]] = defaultdict(set)
        for name in self._entries:
            if not name.endswith("/"):
                folder, _, last = name.rpartition("/")
                groups[folder].add(last)
        return groups

    def _junk(self) -> Iterable[str]:
        junk = [name for name in self.file.namelist() if _is_junk(name)]
        if junk:
            yield f"{junk[0]}: {_many(len(junk), 'file')} of the operating system, no part of a submission; leave out"

    def _twice(self) -> Iterable[str]:
        for name, times in Counter(self._names).items():
            if times > 1:
                yield f"{name}: is there {times} times"

    def _misplaced(self) -> Iterable[str]:
        if self._place != self.top:
            should = f"inside {self.top}" if self.top else "at the top"
            where = f"inside {self._place}" if self._place else "at the top"
            yield f"the videos' folders lie {where}; they must lie {should}"

    def _missing(self) -> Iterable[str]:
        there = {folder.video for folder in self.wanted if self._groups.get(folder.path)}
        for video in dict.fromkeys(folder.video for folder in self.wanted if folder.video not in there):
            yield f"{self.top}{video}: the video is missing"
        for folder in self.wanted:
            files = self._groups.get(folder.path, set())
            missing = [name for name in folder.frames if name not in files]
            if folder.video in there and not files:
                yield f"{folder.path}: the expression is missing"
            elif files and missing:
                yield f"{folder.path}/{missing[0]}: {_many(len(missing), 'frame')} of {len(folder.frames)} missing"

    def _extra(self) -> Iterable[str]:
        known = {folder.path: set(folder.frames) for folder in self.wanted}
        parents = {*known, *(str(parent) for path in known for parent in PurePosixPath(path).parents)}
        unknown: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._entries:
            path = PurePosixPath(name)
            if str(path) in parents if name.endswith("/") else path.name in known.get(str(path.parent), ()):
                continue
            above = [str(parent) for parent in reversed(path.parents) if str(parent) not in parents]
            unknown[above[0] if above else name].append(name)
        for where, names in unknown.items():
            files = f" ({_many(len(names), 'entry', 'entries')})" if where != names[0] else ""
            yield f"{where}: the split has nothing of this name{files}"

    def _damaged(self) -> Iterable[str]:
        sizes: dict[str, tuple[int, int]] = {}
        for folder in track(self.wanted, "validating"):
            files = self._groups.get(folder.path, set())
            wrong: defaultdict[str, list[str]] = defaultdict(list)
            for name in folder.frames:
                if name in files:
                    if folder.video not in sizes:
                        sizes[folder.video] = frame_size(self.split, folder.video)
                    fault = self._fault(self._entries[f"{folder.path}/{name}"], sizes[folder.video])
                    if fault:
                        wrong[fault].append(f"{folder.path}/{name}")
            for fault, names in wrong.items():
                more = f" (and {len(names) - 1} more of this expression)" if len(names) > 1 else ""
                yield f"{names[0]}: {fault}{more}"

    def _fault(self, name: str, size: tuple[int, int]) -> str | None:
        """What is wrong with a mask of a frame of `size` (H, W)."""
        try:
            image = open_png(read_entry(self.file, name), size)
        except UNREADABLE as error:
            return f"cannot be read ({error})"
        if isinstance(image, str):
            return image
        if image.mode != "L":
            return f"is a PNG of mode {image.mode}, not L (grey, 8 bits)"
        counts = image.histogram()
        other = [value for value in range(1, 255) if counts[value]]
        return f"holds the value {other[0]}; only 0 and 255 are allowed" if other else None


def _is_junk(name: str) -> bool:
    return any(part in JUNK or part.startswith("._") for part in PurePosixPath(name).parts)


def _many(count: int, one: str, several: str | None = None) -> str:
    return f"1 {one}" if count == 1 else f"{count:,} {several or one + 's'}"
