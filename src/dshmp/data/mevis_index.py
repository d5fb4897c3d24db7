"""Where each annotation stands in MeViS's mask_dict.json, so that masks are read without parsing a gigabyte.

The file is one JSON object, {annotation id: [COCO RLE or null, one per frame position]}. It is split once, in
bounded memory, into the byte range of every annotation; a mask is then read by seeking. The index of a large file is
kept in `$XDG_CACHE_HOME/dshmp/mask-index` (`~/.cache/dshmp/mask-index` by default), one small JSON file per
mask_dict.json, and holds as long as that file's size and time of change do. Where that folder can't be written,
every process makes its own.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dshmp.errors import UserError
from dshmp.files import locked, regular, save_json
from dshmp.progress import track as progress_bar

VERSION = 1
"""Of the index's format."""
SMALL = 16 * 2**20
"""Bytes up to which a file is split each time it is opened: it takes a moment, and is not worth a file."""
CHUNK = 2**20
"""Bytes read at once; memory grows with the longest annotation beyond that."""

Span = tuple[int, int]
Watch = Callable[[Iterable[bytes], str, int], Iterable[bytes]]
"""watch(chunks, description, count) yields the chunks and shows how many are done."""

_log = logging.getLogger(__name__)
_scan = json.JSONDecoder().raw_decode
_space = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class MaskIndex:
    """A mask_dict.json, opened. Nothing is held open, so processes share it freely."""

    path: Path
    stamp: Span
    """Size, and time of the last change in nanoseconds, of the file that was split."""
    spans: dict[str, Span]
    """First byte, and the one after the last, of each annotation."""

    def track(self, annotation: int) -> list[Any] | None:
        """What the file says of an annotation: per frame an RLE or None; None where it lacks the annotation.

        Raises UserError where the file is not as MeViS writes it.
        """
        span = self.spans.get(str(annotation))
        if span is None:
            return None
        with _open(self.path) as file:
            if _stamp(file.fileno()) != self.stamp:
                raise UserError(f"{self.path}: changed while it was in use; start again")
            file.seek(span[0])
            data = file.read(span[1] - span[0])
        try:
            track = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self.path}: annotation {annotation} is not valid JSON ({error}); fetch it again"
            ) from None
        if not isinstance(track, list):
            raise UserError(f"{self.path}: annotation {annotation} is no list of masks; fetch it again")
        return track


def open_index(path: Path, watch: Watch = progress_bar) -> MaskIndex:
    """The index of a mask_dict.json, from the cache where it is there; a large file shows `watch` how far it is.

    Raises UserError where the file is missing or no JSON object, or holds an annotation twice. Of several processes
    one makes the index and the others wait for it. Where files cannot be locked each writes to a file of its own and
    renames it, so whoever is last wins; a killed one leaves nothing half-written.
    """
    path = Path(path)
    cached = _cache_file(path)
    with _open(path) as file, contextlib.ExitStack() as alone:
        stamp = _stamp(file.fileno())
        small = stamp[0] <= SMALL
        spans = None if small else _load(cached, path, stamp)
        if spans is None and not small:
            with contextlib.suppress(OSError):  # where files cannot be locked, nobody waits
                alone.enter_context(locked(cached.parent))
            spans = _load(cached, path, stamp)  # another process may have made it meanwhile
        if spans is None:
            chunks: Iterable[bytes] = iter(lambda: file.read(CHUNK), b"")
            if not small:
                chunks = watch(chunks, f"indexing {path.name}", -(-stamp[0] // CHUNK))
            try:
                spans = {}
                for key, begin, end in split_object(chunks):
                    if key in spans:
                        raise ValueError(f"holds annotation {key[:50]!r} twice")
                    spans[key] = begin, end
            except ValueError as error:
                raise UserError(f"{path}: {error}; it may be cut off, fetch it again") from None
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
            if not small:
                _save(cached, path, stamp, spans)
    return MaskIndex(path, stamp, spans)


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb", opener=regular)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the data set's layout needs it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


# --- The cache ---


def _stamp(file: int) -> Span:
    status = os.fstat(file)
    return status.st_size, status.st_mtime_ns


def _cache_file(path: Path) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "dshmp", "mask-index", hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32] + ".json")


def _load(cached: Path, path: Path, stamp: Span) -> dict[str, Span] | None:
    try:
        value = json.loads(cached.read_bytes())
        if [value["version"], value["path"], value["stamp"]] == [VERSION, str(path.resolve()), list(stamp)]:
            return {key: (int(start), int(stop)) for key, (start, stop) in value["spans"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # none yet, or not ours: it is made anew
    return None


def _save(cached: Path, path: Path, stamp: Span, spans: dict[str, Span]) -> None:
    value = {"version": VERSION, "path": str(path.resolve()), "stamp": stamp, "spans": spans}
    try:
        save_json(cached, value)
    except UserError as error:
        _log.warning("can't keep the index of %s (%s); set XDG_CACHE_HOME", path, error)


# --- Splitting ---


def split_object(chunks: Iterable[bytes]) -> Iterator[tuple[str, int, int]]:
    """Key, first byte, and the byte after the last, of every entry of the JSON object that the chunks make up.

    Every value is parsed, so what is yielded is valid JSON. Memory: two chunks, or about three times the longest
    entry. Raises ValueError, saying where, if it is not one JSON object.
    """
    window = _Window(chunks)
    if window.symbol() != "{":
        raise ValueError("expected a JSON object at the top")
    symbol = window.symbol()
    while symbol != "}":
        key, _, _ = window.value(begins=window.expect('"', symbol))
        window.expect(":", window.symbol())
        _, start, stop = window.value(window.symbol())
        yield key, start, stop
        symbol = window.symbol()
        if symbol != "}":
            window.expect(",", symbol)
            symbol = window.expect('"', window.symbol())
    if window.symbol():
        raise window.damaged()


class _Window:
    """A view that slides over the text of a file: `text[at:]` is what is not read yet.

    The text is decoded as Latin-1, so that a character is a byte; JSON's own syntax is ASCII.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._text, self._at = "", 0
        self._start = 0  # the byte of the file that the text begins with

    def symbol(self) -> str:
        """The next character that is not white space, taken; empty at the end."""
        while True:
            self._at = _space.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                self._at += 1
                return self._text[self._at - 1]
            if not self._grow():
                return ""

    def expect(self, wanted: str, symbol: str) -> str:
        """The symbol just taken, which has to be this one."""
        if symbol != wanted:
            raise self.damaged() if symbol else self.cut()
        return symbol

    def value(self, begins: str) -> tuple[Any, int, int]:
        """The value whose first character was just taken, its first byte, and the byte after its last."""
        if not begins:
            raise self.cut()
        self._at -= 1
        while True:
            try:
                value, end = _scan(self._text, self._at)
            except json.JSONDecodeError as error:
                # what is only unfinished goes wrong at the end of the text, or in a string that has no end yet
                unfinished = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 16
                if unfinished and self._grow():
                    continue
                if unfinished:
                    raise self.cut() from None
                self._at = error.pos + 1
                raise self.damaged() from None
            except RecursionError:
                self._at += 1
                raise self.damaged() from None
            if end > len(self._text) - 3 and self._grow():  # a number may go on, "1e+" being but a 1 so far
                continue
            start, self._at = self._start + self._at, end
            return value, start, self._start + end

    def damaged(self) -> ValueError:
        return ValueError(f"is not valid JSON (damaged at byte {self._start + self._at - 1:,})")

    def cut(self) -> ValueError:
        return ValueError(f"is not valid JSON (cut off at {self._start + len(self._text):,} bytes)")

    def _grow(self) -> bool:
        """Forget what was read, and read at least as much as is left, so that a long value costs linear time.

        At the file's end nothing changes, and False is returned.
        """
        left, got = len(self._text) - self._at, 0
        pieces = [self._text[self._at :]]
        for chunk in self._chunks:
            pieces.append(chunk.decode("latin-1"))
            got += len(chunk)
            if got >= left:
                break
        if got:
            self._start += self._at
            self._text, self._at = "".join(pieces), 0
        return got > 0
