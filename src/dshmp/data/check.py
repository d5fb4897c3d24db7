"""`dshmp data check`: is a data set on disk whole, and if not, which file is wrong, why, and what mends it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dshmp.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    path: Path
    reason: str
    mend: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; {self.mend}"


@dataclass
class Report:
    """What a check has found so far, and how far it is."""

    full: bool
    """Everything is decoded, instead of a sample of everything."""
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    """Told (what is being checked, how many are done, of how many)."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Facts worth telling that are no damage, such as counts of a part that is not published."""

    def found(self, path: Path, reason: str, mend: str) -> None:
        self.findings.append(Finding(path, reason, mend))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def count(self, path: Path, what: str, found: int, expected: int, mend: str) -> None:
        """A number that the data set's authors publish."""
        if found != expected:
            self.found(path, f"holds {found} {what}, the published data set has {expected}", mend)

    def attempt(self, mend: str, read: Callable[[], T]) -> T | None:
        """What `read` returns; a UserError (`path: reason`) becomes a finding, and None is returned."""
        try:
            return read()
        except UserError as error:
            path, _, reason = str(error).partition(": ")
            self.found(Path(path), reason.split("; ")[0], mend)
            return None

    def each(self, what: str, items: Sequence[T]) -> Iterator[T]:
        """The items one by one, told to the progress bar."""
        for done, item in enumerate(items):
            self.progress(what, done, len(items))
            yield item
        self.progress(what, len(items), len(items))

    def sample(self, items: Iterable[T], most: int = 50) -> list[T]:
        """All items of a full check, else at most `most`, spread evenly."""
        known = list(items)
        if self.full or len(known) <= most:
            return known
        return [known[i * len(known) // most] for i in range(most)]
