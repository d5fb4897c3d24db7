"""Where each annotation stands in MeViS's mask_dict.json, so that masks are read without parsing a gigabyte.

The file is one JSON object, {annotation id: [a mask or null, one per frame position]}. Its keys are looked up on
opening, in bounded memory; a mask is then read by seeking, and only then parsed.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dshmp.errors import UserError
from dshmp.files import reason, regular

CHUNK = 2**20  # bytes read at once
# An annotation's id. Nothing else in the file looks so: no other key is a number, and no string holds a quote.
KEY = re.compile(rb'"(-?\d{1,20})"[ \t\r\n]{0,9}:')
LONGEST_KEY = 40
END = re.compile(rb"[]{]\s*\}\s*$")
Span = tuple[int, int]  # first byte of an annotation's value, and the one after the last


@dataclass(frozen=True)
class MaskIndex:
    """A mask_dict.json of which nothing is held open, so processes share it freely; `stamp` tells if it has changed."""

    path: Path
    stamp: tuple[int, int]
    spans: dict[str, Span]

    def track(self, annotation: int) -> list[Any] | None:
        """Per frame the mask of an annotation or None; None where the file lacks it. Raises UserError."""
        if str(annotation) not in self.spans:
            return None
        start, stop = self.spans[str(annotation)]
        with _open(self.path) as file:
            if _stamp(file) != self.stamp:
                raise UserError(f"{self.path}: changed while it was in use; start again")
            file.seek(start)
            data = file.read(stop - start).rstrip(b", \t\r\n")  # of the comma before the next one
        try:
            track = json.loads(data)
        except (ValueError, RecursionError):
            track = None
        if not isinstance(track, list):
            raise UserError(f"{self.path}: annotation {annotation} is no JSON list; mend it, or fetch the file again")
        return track


def open_index(path: Path) -> MaskIndex:
    """The index of a mask_dict.json.

    Raises UserError where the file is missing, cut off or no JSON object, or holds an annotation twice.
    """
    with _open(path) as file:
        try:
            return MaskIndex(path, _stamp(file), find_spans(iter(lambda: file.read(CHUNK), b"")))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {reason(error)}; it may be cut off, fetch it again") from None


def find_spans(chunks: Iterable[bytes]) -> dict[str, Span]:
    """The bytes of every annotation in the JSON object that the chunks make up; what they hold is not looked at.

    Memory: a chunk and the spans. Raises ValueError where the object does not begin or end, or has a key twice.
    """
    keys: list[tuple[str, int, int]] = []
    text, offset = b"", 0
    for chunk in chunks:
        text += chunk
        if not offset and text.lstrip()[:1] != b"{":
            raise ValueError("expected a JSON object at the top")
        done = 0
        for match in KEY.finditer(text):
            keys.append((match[1].decode(), offset + match.start(), offset + match.end()))
            done = match.end()
        done = max(done, len(text) - LONGEST_KEY)
        text, offset = text[done:], offset + done
    if not END.search(text):
        raise ValueError(f"is not valid JSON (cut off at {offset + len(text):,} bytes)")
    ends = [start for _, start, _ in keys[1:]] + [offset + text.rindex(b"}")]
    spans: dict[str, Span] = {}
    for (key, _, begin), end in zip(keys, ends, strict=False):
        if key in spans:
            raise ValueError(f"holds annotation {key!r} twice")
        spans[key] = begin, end
    return spans


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb", opener=regular)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the data set's layout needs it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None


def _stamp(file: BinaryIO) -> tuple[int, int]:
    """Size and time of change."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
