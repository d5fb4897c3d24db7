"""The list of `dshmp batch`: a video and an expression per row, as CSV or JSON lines."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

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
    except FileNotFoundError:
        raise UserError(f"{path}: no such list") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list ({reason(error)})") from None
    lines = path.suffix.lower() in (".jsonl", ".ndjson")
    spelled: dict[Path, Path] = {}
    jobs: dict[Path, list[str]] = {}
    for line, row in _json_rows(path, text) if lines else _csv_rows(path, text):
        name, expression = (row.get(column) for column in COLUMNS)
        if not isinstance(name, str) or not isinstance(expression, str) or not name or not expression.strip():
            raise UserError(f"{path}, line {line}: needs a video and an expression")
        video = path.parent / name
        try:
            video = spelled.setdefault(video.resolve(), video)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{path}, line {line}: {name!r} is no name of a video ({reason(error)})") from None
        expression = re.sub(r"\s*[\r\n]\s*", " ", expression.strip("\r\n"))
        expressions = jobs.setdefault(video, [])
        if expression not in expressions:
            expressions.append(expression)
    if not jobs:
        raise UserError(f"{path}: the list is empty; give rows of video,expression")
    return jobs


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Numbered rows of a CSV with a header."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    begins = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        if not set(COLUMNS) <= set(header) or len(set(header)) < len(header):
            raise UserError(f"{path}: the first line must name the columns video,expression, each once")
        begins = reader.line_num + 1
        for record in reader:
            if len(record) > len(header):
                raise UserError(
                    f"{path}, line {begins}: has {len(record)} fields, the first line names {len(header)}; put a "
                    f'sentence with a comma in quotes: {record[0]},"{", ".join(record[1:])}"'
                )
            if record:
                yield begins, dict(zip(header, record, strict=False))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {begins}: is no row of a CSV ({error}); is a quote missing?") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Numbered rows of JSON lines."""
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                row = json.loads(content)
            except (ValueError, RecursionError):
                raise UserError(f"{path}, line {line}: is not JSON") from None
            yield line, row if isinstance(row, dict) else {}
