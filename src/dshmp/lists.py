"""The list of `dshmp batch`: a video and an expression per row, as CSV or JSON lines."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dshmp.errors import UserError
from dshmp.files import reason, regular

COLUMNS = ("video", "expression")


def read_list(path: Path) -> dict[Path, list[str]]:
    """Expressions per video, in the order of the file; paths are relative to it. A video that is spelled in several
    ways is one.

    Raises:
        UserError: the file cannot be read, a row is not of two fields, or there is none.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="", opener=regular) as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list ({reason(error)})") from None
    rows = _json_rows if path.suffix.lower() in (".jsonl", ".ndjson") else _csv_rows
    spelled: dict[Path, Path] = {}
    jobs: dict[Path, list[str]] = {}
    for line, row in rows(path, text):
        name, expression = (row.get(column) for column in COLUMNS)
        if not isinstance(name, str) or not isinstance(expression, str) or not name or not expression.strip():
            raise UserError(f"{path}, line {line}: needs a video and an expression")
        video = path.parent / name
        try:
            video = spelled.setdefault(video.resolve(), video)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{path}, line {line}: {name!r} is no name of a video ({reason(error)})") from None
        expressions = jobs.setdefault(video, [])
        expression = re.sub(r"\s*[\r\n]\s*", " ", expression.strip("\r\n"))
        if expression not in expressions:
            expressions.append(expression)
    if not jobs:
        raise UserError(f"{path}: the list is empty; give rows of video,expression")
    return jobs


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV with a header, and the line where each ends."""
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", skipinitialspace=True, strict=True)
    try:
        reader.fieldnames = header = [name.strip() for name in reader.fieldnames or ()]
        if any(header.count(column) != 1 for column in COLUMNS):
            raise UserError(f"{path}: the first line must name the columns video,expression, each once")
        for row in reader:
            if row.get(""):
                raise UserError(
                    f"{path}, line {reader.line_num}: has more fields than the first line names; put a sentence with a "
                    "comma in quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: is no row of a CSV ({error}); is a quote missing?") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows of JSON lines."""
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                row = json.loads(content)
            except (ValueError, RecursionError):
                raise UserError(f"{path}, line {line}: is not JSON") from None
            yield line, row if isinstance(row, dict) else {}
