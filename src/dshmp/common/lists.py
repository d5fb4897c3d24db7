"""The list of `dshmp batch`: a video and an expression per row, as CSV (commas, semicolons or tabs), JSON lines or
a JSON array."""

import codecs
import csv
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from dshmp.common.errors import UserError
from dshmp.common.files import reason, regular

COLUMNS = ("video", "expression")


class Row(NamedTuple):
    """A row of a list."""

    where: str  # it stands, for messages
    video: Path
    place: Path  # that the video's path leads to
    expression: str
    columns: dict[str, Any]  # all


def read_list(path: Path) -> dict[Path, list[str]]:
    """Expressions per video, in the order of the file; paths are relative to it, and a video that is spelled in several
    ways is one. Raises UserError."""
    jobs: dict[Path, tuple[Path, dict[str, None]]] = {}  # by where the video's path leads
    for row in read_rows(path):
        _, expressions = jobs.setdefault(row.place, (row.video, {}))
        expressions[row.expression] = None
    return {video: list(expressions) for video, expressions in jobs.values()}


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a list. Raises UserError, also where there is none."""
    line, kind = 0, "entry" if path.suffix.lower() == ".json" else "line"
    try:
        with open(path, "rb", opener=regular) as start:  # as spreadsheets save "Unicode text"
            utf16 = start.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        with open(path, encoding="utf-16" if utf16 else "utf-8-sig", newline="", opener=regular) as file:
            for line, content in _rows(file, path.suffix.lower()):
                row = json.loads(content) if isinstance(content, str) else content
                name, expression = (row.get(column) if isinstance(row, dict) else None for column in COLUMNS)
                if not isinstance(name, str) or not isinstance(expression, str) or not name or not expression.strip():
                    raise ValueError("needs a video and an expression")
                sentence = re.sub(r"\s*[\r\n]\s*", " ", expression.strip("\r\n"))
                video = path.parent / name
                yield Row(f"{path}, {kind} {line}", video, video.resolve(), sentence, row)
    except UnicodeDecodeError:
        raise UserError(f"{path}: its letters are in no form of Unicode; save it as UTF-8 (CSV UTF-8)") from None
    except (OSError, ValueError, RuntimeError) as error:
        where = f"{path}, {kind} {line}" if line else path
        raise UserError(f"{where}: cannot be read as a list ({reason(error)})") from None
    if not line:
        raise UserError(f"{path}: the list is empty; give rows of video,expression")


def _rows(file: TextIO, suffix: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Numbered rows, of JSON lines their text."""
    if suffix == ".json":
        entries = json.load(file)
        if not isinstance(entries, list):
            raise ValueError('a .json list is an array: [{"video": ..., "expression": ...}, ...]')
        yield from ((number, entry if isinstance(entry, dict) else {}) for number, entry in enumerate(entries, 1))
        return
    if suffix in (".jsonl", ".ndjson"):
        yield from ((line, text) for line, text in enumerate(file, 1) if text.strip())
        return
    head = file.readline()
    if told := re.fullmatch(r'"?sep=([,;\t])"?\s*', head):  # which Excel reads, and others write for it
        head = file.readline()
    separator = told[1] if told else max(",;\t", key=head.count)  # the first of equals
    reader = csv.DictReader(
        itertools.chain([head], file), None, "", delimiter=separator, skipinitialspace=True, strict=True
    )
    try:
        reader.fieldnames = header = [name.strip() for name in reader.fieldnames or ()]
        if any(header.count(column) != 1 for column in COLUMNS):
            raise ValueError("the first line must name the columns video,expression, each once")
        for row in reader:
            if row.get(""):
                raise ValueError(f"line {reader.line_num} has too many fields; put a sentence with a comma in quotes")
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is no row of a CSV: {error}; is a quote missing?") from None
