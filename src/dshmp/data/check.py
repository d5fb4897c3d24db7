"""`dshmp data check`: is a data set on disk whole, and if not, which file is wrong, why, and what mends it.

A check opens each split as every command does and reads all of it, or a sample: what a reader refuses is a finding.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dshmp.common.errors import UserError, printable
from dshmp.data.base import LAYOUT, Split, frame_size
from dshmp.data.images import ImageSplit, IndexMaskSplit, open_data_image, read_frame, read_index_mask
from dshmp.data.mini import MARK

T = TypeVar("T")
S = TypeVar("S", bound=Split)
Counts = Mapping[str, Sequence[Mapping[str, int]]]  # of each split what its authors count, in each of its versions


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    path: Path
    reason: str
    mend: str

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.reason}; {self.mend}")


@dataclass
class CheckReport:
    """What a check has found so far, notes that are no damage, and how the check is done.

    A check is of everything (`full`) or of a sample, of all `splits` that are there (None) or of these. Data in the
    layout may be the user's `own`; if not, counts and checksums have to be the `published` ones. `progress` is told
    what is being checked, how many are done and of how many, and `mend` is what is advised of a file that is wrong.
    """

    full: bool = False
    splits: tuple[str, ...] | None = None
    own: bool = False
    published: bool = True
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    mend: str = "fetch or unpack it again"
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def found(self, path: Path, reason: str, mend: str | None = None) -> None:
        mend = mend or self.mend
        if self.own:
            mend = "mend the entry" if path.suffix == ".json" else "put it right, or take it out of the list"
        self.findings.append(Finding(path, reason, mend))

    def note(self, text: str) -> None:
        self.notes.append(printable(text))

    def attempt(self, read: Callable[..., T], *arguments: object) -> T | None:
        """What `read` returns; a UserError (`path: reason; advice`) becomes a finding, and None is returned."""
        try:
            return read(*arguments)
        except UserError as error:
            path, _, told = str(error).partition(": ")
            reason, _, advice = told.partition("; ")
            self.found(Path(path), reason, LAYOUT if advice == LAYOUT else None)
            return None

    def count(self, path: Path, found: Mapping[str, int], *published: Mapping[str, int]) -> None:
        """Numbers, which should be one of those that the data set's authors publish, each for a version."""

        def told(numbers: Mapping[str, int]) -> str:
            return ", ".join(f"{number:,} {what}" for what, number in numbers.items())

        if self.published and published and not any(each.items() <= found.items() for each in published):
            here = told({what: found[what] for what in published[0]})
            self.found(path, f"holds {here}, the published data set has {' or '.join(map(told, published))}")

    def each(self, what: str, items: Sequence[T]) -> Iterator[T]:
        """The items one by one, told to the progress bar."""
        for done, item in enumerate(items):
            self.progress(what, done, len(items))
            yield item
        self.progress(what, len(items), len(items))

    def sample(self, items: Iterable[T], most: int = 50) -> list[T]:
        """All items of a full check, else at most `most`, spread evenly."""
        known = list(items)
        count = len(known) if self.full else min(most, len(known))
        return [known[i * len(known) // count] for i in range(count)]


def examine(check: Callable[[Path, CheckReport], None], root: Path, **options: Any) -> CheckReport:
    """What a data set's check finds below `root`, with paths relative to it; the options are those of `CheckReport`.

    Raises UserError where there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that the data set was unpacked into")
    report = CheckReport(**options)
    mini = (root / MARK).is_file()
    report.published = not report.own and not mini
    if mini:
        report.note("a miniature data set: published counts are not compared")
    try:
        check(root, report)
    except Exception as error:  # damage that the check did not foresee must not hide what it found before
        told = f"the check could not go on ({error!r})"
        report.findings.append(Finding(root, told, "mend what is named above and check again"))
    report.findings = [
        replace(item, path=item.path.relative_to(root)) if item.path.is_relative_to(root) else item
        for item in dict.fromkeys(report.findings)  # what several readers say is told once
    ]
    return report


def check_splits(
    report: CheckReport, root: Path, names: Iterable[str], opened: Callable[[Path, str], S], counts: Counts
) -> list[tuple[str, S]]:
    """Compares splits with the published numbers, looks at their sentences and reads frames and masks; gives those that
    can be opened."""
    checked = []
    for name in report.splits or names:
        split = report.attempt(opened, root, name)
        if split is None:
            continue
        videos = split.videos.values()
        found = {
            "videos": len(videos),
            "objects": sum(len(video.objects) for video in videos),
            "expressions": len(split.expressions),
            "frames": sum(len(video.frames) for video in videos),
        }
        listed: Path = getattr(split, "listed", split.folder)
        report.count(listed, found, *counts.get(name, ()))
        for video in videos:
            if not video.frames or len(set(video.frames)) < len(video.frames):
                report.found(listed, f"video {video.name!r} lists no frame, or one of them twice")
        times = Counter((item.video, item.id) for item in split.expressions)
        for item in split.expressions:
            where = f"video {item.video!r}, expression {item.id!r}"
            if not item.text.strip():
                report.found(listed, f"{where} has no text")
            if times[item.video, item.id] > 1:
                report.found(listed, f"{where} is there {times[item.video, item.id]} times")
        if isinstance(split, ImageSplit):
            _check_frames(report, name, split)
        if isinstance(split, IndexMaskSplit) and split.has_truth:
            _check_index_masks(report, name, split)
        elif split.has_truth:
            _check_masks(report, name, split)
        checked.append((name, split))
    return checked


def _check_files(report: CheckReport, what: str, files: Mapping[str, list[Path]]) -> Iterator[tuple[str, Path]]:
    """Videos and files: tells which are missing or empty, and gives a sample of the others, or all in a full check."""
    sampled = set(report.sample(path for paths in files.values() for path in paths))
    for video, paths in report.each(f"{what}s", list(files.items())):
        for path in paths:
            if not path.parent.is_dir():
                report.found(path.parent, "the folder is missing")
            elif not path.is_file():
                report.found(path, f"{what.split()[-1]} is missing")
            elif not path.stat().st_size:
                report.found(path, "is empty (0 bytes)")
            elif path in sampled:
                yield video, path


def _check_frames(report: CheckReport, name: str, split: ImageSplit) -> None:
    """Frames are whole, and those of a video of one size."""
    sizes: dict[str, tuple[int, ...]] = {}
    files = {video: split.frame_files(video) for video in split.videos}
    for video, path in _check_files(report, f"{name} frame", files):
        frame = report.attempt(read_frame, path)
        if frame is not None and frame.shape != (first := sizes.setdefault(video, frame.shape)):
            height, width = frame.shape[:2]
            report.found(path, f"is {width}x{height}, other frames of the video {first[1]}x{first[0]}")


def _check_index_masks(report: CheckReport, name: str, split: IndexMaskSplit) -> None:
    """Masks are whole and of their frames' size; those of a video, where all are read, show every object meant."""

    def read(path: Path, frame: Path) -> set[int]:
        with open_data_image(frame) as image:
            return set(np.unique(read_index_mask(path, (image.height, image.width))).tolist())

    files = {video: split.mask_files(video) for video in split.videos}
    shown: dict[str, list[set[int]]] = {video: [] for video in files}
    for video, path in _check_files(report, f"{name} mask", files):
        found = report.attempt(read, path, split.image_folder(video) / f"{path.stem}{split.suffix}")
        if found is not None:
            shown[video].append(found)
    for item in split.expressions:
        seen = shown[item.video]
        for number in set(item.objects).difference(*seen) if len(seen) == len(files[item.video]) else ():
            report.found(split.mask_folder(item.video), f"no mask shows object {number}, which a sentence means")


def _check_masks(report: CheckReport, name: str, split: Split) -> None:
    """Masks of a sample of the objects meant, or all in a full check, can be read and fit their frames."""
    asked = dict.fromkeys((item.video, each, item.scored) for item in split.expressions for each in item.annotations)
    for video, annotation, scored in report.each(f"{name} masks", report.sample(asked)):
        positions = range(len(split.videos[video].frames)) if scored is None else scored
        size = report.attempt(frame_size, split, video) if positions else None
        if size is not None:
            report.attempt(split.masks, video, [annotation], positions, size)
