"""`dshmp data check`: is a data set on disk whole, and if not, which file is wrong, why, and what mends it.

A check opens each split as every command does and reads all of it, or a sample: what a reader refuses is a finding.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from dshmp.data.base import Split, frame_size
from dshmp.data.images import ImageSplit, read_frame
from dshmp.data.masks import IndexMaskSplit, read_index_mask
from dshmp.data.mini import is_mini
from dshmp.errors import UserError, printable

T = TypeVar("T")
Size = tuple[int, int]
"""(H, W)."""


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
    """What a check has found so far, and how far it is."""

    full: bool
    """Everything is decoded, instead of a sample of everything."""
    splits: tuple[str, ...] | None = None
    """Only these are checked; None is all that are there."""
    own: bool = False
    """It is the user's own data, which nobody publishes."""
    published: bool = True
    """Whether counts and checksums that the authors publish have to fit."""
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    """Told (what is being checked, how many are done, of how many)."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Facts worth telling that are no damage."""

    def found(self, path: Path, reason: str, mend: str) -> None:
        """Add a finding, unless it is known."""
        if self.own:
            mend = "mend the entry" if path.suffix == ".json" else "write the file anew, or take it out of the list"
        if (item := Finding(path, reason, mend)) not in self.findings:
            self.findings.append(item)

    def note(self, text: str) -> None:
        self.notes.append(printable(text))

    def wants(self, split: str) -> bool:
        return self.splits is None or split in self.splits

    def count(self, path: Path, what: str, found: int, expected: int, mend: str) -> None:
        """A number that the data set's authors publish."""
        if self.published and found != expected:
            self.found(path, f"holds {found:,} {what}, the published data set has {expected:,}", mend)

    def attempt(self, mend: str, read: Callable[..., T], *arguments: object) -> T | None:
        """What `read` returns; a UserError (`path: reason; advice`) becomes a finding, and None is returned."""
        try:
            return read(*arguments)
        except UserError as error:
            path, _, reason = str(error).partition(": ")
            self.found(Path(path), reason.split("; ")[0], mend)
            return None

    def each(self, what: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
        """The items one by one, told to the progress bar; `total` where `items` has no length."""
        if total is None:
            items = list(items)
            total = len(items)
        for done, item in enumerate(items):
            self.progress(what, done, total)
            yield item
        self.progress(what, total, total)

    def sample(self, items: Iterable[T], most: int = 50) -> list[T]:
        """All items of a full check, else at most `most`, spread evenly."""
        known = list(items)
        if self.full or len(known) <= most:
            return known
        return [known[i * len(known) // most] for i in range(most)]


def examine(
    check: Callable[[Path, CheckReport], None],
    root: Path,
    *,
    full: bool = False,
    splits: tuple[str, ...] | None = None,
    own: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> CheckReport:
    """What a data set's check finds below `root`, with paths relative to it.

    full: decode everything. splits: only these. own: it is the user's own data in the data set's layout, so that
    published counts and checksums are not compared. Raises UserError where there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that the data set was unpacked into")
    report = CheckReport(full, splits, own, published=not own, progress=progress)
    if is_mini(root):
        report.published = False
        report.note("a miniature data set: published counts are not compared")
    try:
        check(root, report)
    except Exception as error:
        # damage that the check did not foresee must not hide what it found before
        report.findings.append(
            Finding(root, f"the check could not go on ({error!r})", "mend what is named above and check again")
        )
    report.findings = [
        replace(item, path=item.path.relative_to(root)) if item.path.is_relative_to(root) else item
        for item in report.findings
    ]
    return report


def check_expressions(report: CheckReport, path: Path, split: Split, mend: str) -> None:
    """Every video has frames, each listed once, and every sentence words and an id of its own."""
    for video in split.videos.values():
        if not video.frames or len(set(video.frames)) < len(video.frames):
            report.found(path, f"video {video.name!r} lists no frame, or one of them twice", mend)
    times = Counter((item.video, item.id) for item in split.expressions)
    for item in split.expressions:
        where = f"video {item.video!r}, expression {item.id!r}"
        if not item.text.strip():
            report.found(path, f"{where} has no text", mend)
        if times[item.video, item.id] > 1:
            report.found(path, f"{where} is there {times[item.video, item.id]} times", mend)


def check_frames(report: CheckReport, what: str, split: ImageSplit, mend: str) -> dict[str, Size]:
    """All frames are there, whole and of one size per video, which is returned where a frame can be read.

    A sample is decoded, or all in a full check.
    """
    files = {
        name: [split.image_folder(name) / f"{frame}{split.suffix}" for frame in video.frames]
        for name, video in split.videos.items()
    }
    sampled = set(report.sample(path for paths in files.values() for path in paths))
    sizes: dict[str, Size] = {}
    for name, paths in report.each(f"{what} frames", files.items()):
        for path in _whole(report, paths, mend):
            if name in sizes and path not in sampled:
                continue
            frame = report.attempt(mend, read_frame, path)
            if frame is not None:
                size = frame.shape[0], frame.shape[1]
                if sizes.setdefault(name, size) != size:
                    known = sizes[name]
                    report.found(path, f"is {size[1]}x{size[0]}, other frames of the video {known[1]}x{known[0]}", mend)
    return sizes


def _whole(report: CheckReport, paths: list[Path], mend: str) -> Iterator[Path]:
    """The files that are there and not empty."""
    for folder in {path.parent for path in paths}:
        if not folder.is_dir():
            report.found(folder, "the folder is missing", mend)
    for path in paths:
        if path.is_file() and path.stat().st_size:
            yield path
        elif path.parent.is_dir():
            report.found(path, "is empty (0 bytes)" if path.is_file() else "is missing", mend)


def check_index_masks(
    report: CheckReport, what: str, split: IndexMaskSplit, sizes: Mapping[str, Size], mend: str
) -> None:
    """All palette masks are there, whole and of their frames' size; of a video read wholly, they show what is meant.

    A sample is decoded, or all in a full check.
    """
    files = {name: [split.mask_folder(name) / f"{frame}.png" for frame in v.frames] for name, v in split.videos.items()}
    sampled = set(report.sample(path for paths in files.values() for path in paths))
    meant: dict[str, set[int]] = {name: set() for name in files}
    for item in split.expressions:
        meant[item.video].update(item.objects)
    for name, paths in report.each(f"{what} masks", files.items()):
        chosen = [path for path in _whole(report, paths, mend) if path in sampled]
        read = [report.attempt(mend, read_index_mask, path, sizes.get(name)) for path in chosen]
        seen = [set(np.unique(indices).tolist()) for indices in read if indices is not None]
        if len(seen) == len(paths):
            for number in sorted(meant[name].difference(*seen)):
                report.found(split.mask_folder(name), f"no mask shows object {number}, which a sentence means", mend)


def check_masks(report: CheckReport, what: str, split: Split, mend: str) -> None:
    """Masks of a sample of the sentences, or all in a full check, can be read and fit their frames."""
    sizes: dict[str, Size | None] = {}
    for item in report.each(f"{what} masks", report.sample(split.expressions)):
        if item.video not in sizes:
            sizes[item.video] = report.attempt(mend, frame_size, split, item.video)
        if sizes[item.video]:
            report.attempt(mend, split.masks, item.video, item.annotations, item.scored or (0,), sizes[item.video])
