"""`dshmp data check`: is a data set on disk whole, and if not, which file is wrong, why, and what mends it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from dshmp.data.images import read_frame
from dshmp.data.masks import read_index_mask
from dshmp.data.mini import is_mini
from dshmp.errors import UserError, printable

T = TypeVar("T")


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
    published: bool = True
    """Whether counts and checksums that the authors publish have to fit; not those of a miniature or one's own data."""
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    """Told (what is being checked, how many are done, of how many)."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Facts worth telling that are no damage, such as counts of a part that is not published."""

    def found(self, path: Path, reason: str, mend: str) -> None:
        self.findings.append(Finding(path, reason, mend))

    def note(self, text: str) -> None:
        self.notes.append(printable(text))

    def wants(self, split: str) -> bool:
        return self.splits is None or split in self.splits

    def count(self, path: Path, what: str, found: int, expected: int, mend: str) -> None:
        """A number that the data set's authors publish."""
        if self.published and found != expected:
            self.found(path, f"holds {found:,} {what}, the published data set has {expected:,}", mend)

    def attempt(self, mend: str, read: Callable[[], T]) -> T | None:
        """What `read` returns; a UserError (`path: reason`) becomes a finding, and None is returned."""
        try:
            return read()
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
    report = CheckReport(full, splits, published=not own, progress=progress)
    if is_mini(root):
        report.published = False
        report.note("a miniature data set: published counts are not compared")
    try:
        check(root, report)
    except Exception as error:
        # damage that the check did not foresee must not hide what it found before
        report.found(root, f"the check could not go on ({error!r})", "mend what is named above and check again")
    report.findings = [replace(item, path=_relative(item.path, root)) for item in report.findings]
    return report


def check_files(
    report: CheckReport, folder: Path, names: Sequence[str], mend: str, suffixes: Iterable[str] | None = None
) -> list[str]:
    """The folder holds exactly these files, none empty; returns those that can be read.

    suffixes: files that end otherwise are not looked at; by default those that `names` end with.
    """
    if not folder.is_dir():
        report.found(folder, "the folder is missing", mend)
        return []
    sizes = {item.name: item.stat().st_size for item in folder.iterdir() if item.is_file()}
    for name in names:
        if name not in sizes:
            report.found(folder / name, "is missing", mend)
        elif not sizes[name]:
            report.found(folder / name, "is empty (0 bytes)", mend)
    ours = {Path(name).suffix for name in names} if suffixes is None else set(suffixes)
    for name in sorted(sizes.keys() - set(names)):
        if Path(name).suffix in ours:
            report.found(folder / name, "is a frame that the data set does not list", "remove it, or " + mend)
    return [name for name in names if sizes.get(name)]


def check_frames(
    report: CheckReport, what: str, folders: Mapping[Path, Sequence[str]], mend: str
) -> dict[Path, tuple[int, int]]:
    """Each folder holds exactly these image files, whole and all of one size; returns that size (H, W) per folder.

    A sample is decoded, or all in a full check. Folders without a readable frame are left out of what is returned.
    """
    sampled = set(report.sample((folder, name) for folder, names in folders.items() for name in names))
    sizes: dict[Path, tuple[int, int]] = {}
    for folder, names in report.each(what, folders.items()):
        for i, name in enumerate(check_files(report, folder, names, mend)):
            if i and (folder, name) not in sampled:
                continue
            path = folder / name
            frame = report.attempt(mend, partial(read_frame, path))
            if frame is None:
                continue
            size = frame.shape[0], frame.shape[1]
            if sizes.setdefault(folder, size) != size:
                known = sizes[folder]
                report.found(path, f"is {size[1]}x{size[0]}, other frames of the video {known[1]}x{known[0]}", mend)
    return sizes


def check_index_masks(
    report: CheckReport,
    what: str,
    folders: Mapping[Path, Sequence[str]],
    sizes: Mapping[Path, tuple[int, int]],
    mend: str,
) -> dict[Path, set[int]]:
    """Each folder holds exactly these palette masks, whole and of its frames' size (H, W).

    A sample is decoded, or all in a full check. Returned are the indices that masks show, of folders that were read
    wholly.
    """
    shown: dict[Path, set[int]] = {}
    sampled = set(report.sample((folder, name) for folder, names in folders.items() for name in names))
    for folder, names in report.each(what, folders.items()):
        seen = []
        for name in check_files(report, folder, names, mend):
            if (folder, name) in sampled:
                indices = report.attempt(mend, partial(read_index_mask, folder / name, sizes.get(folder)))
                if indices is not None:
                    seen.append(set(np.unique(indices).tolist()))
        if len(seen) == len(names):
            shown[folder] = set().union(*seen)
    return shown


def check_folders(report: CheckReport, folder: Path, names: Iterable[str], mend: str) -> None:
    """The folder holds no other folders than these."""
    if folder.is_dir():
        for name in sorted({item.name for item in folder.iterdir() if item.is_dir()} - set(names)):
            report.found(folder / name, "is a video that the data set does not list", "remove it, or " + mend)


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
