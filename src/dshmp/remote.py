"""Answers at a URL (s3://, gs://, file:// ...), by fsspec: written into a temporary folder here, then uploaded.

result.json comes last, so that its presence says that what it tells of is whole. A marker lists meanwhile what is
written and removed: what a stopped upload has left there is removed by the next.
"""

import contextlib
import json
import posixpath
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dshmp.common import files as disk
from dshmp.common.errors import UserError
from dshmp.inference.segment import segment_to_folder
from dshmp.results.answer import RESULTS
from dshmp.results.folder import answer_files, folder_names, read_document
from dshmp.results.result import Result

MARKER = ".dshmp-upload.json"
AT_ONCE = 64  # files that are read together


def is_url(place: str) -> bool:
    return "://" in place


def url_names(videos: Sequence[Path], url: str) -> dict[Path, str]:
    """As `folder_names`, of folders at a URL. Raises UserError."""
    store = _Store(url)

    def owners(names: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, content in zip(names, store.read([f"{name}/{RESULTS}" for name in names]), strict=True):
            with contextlib.suppress(ValueError, TypeError, LookupError):  # damaged, which is told when it is opened
                found |= {} if content is None else {name: json.loads(content)["video"]}
        return found

    return folder_names(videos, owners)


def segment_to_url(
    video: Path, sentences: Sequence[str], url: str, *, name: str, **given: Any
) -> tuple[str, list[Result], int]:
    """As `segment_to_folder`, the folder being `url/<name>`, for one process at a time. Raises UserError."""
    store = _Store(f"{url.rstrip('/')}/{name}")
    with disk.scratch(Path(tempfile.gettempdir()).resolve()) as work:
        work.chmod(0o700)
        folder = work / name
        _fetch(store, folder)
        before: Mapping[str, Any] = (folder.is_dir() and read_document(folder)) or {}
        try:
            _, results, new = segment_to_folder(video, sentences, work, name=name, **given)
        except UserError as error:
            raise UserError(str(error).replace(str(folder), store.url)) from None
        after: Mapping[str, Any] = (folder.is_dir() and read_document(folder)) or {}
        if after != before:
            _upload(store, folder, before, after)
    return store.url, results, new


class _Store:
    """Files below a URL, named by their path from there. Whatever goes wrong is a UserError."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        try:
            self.files, self.root = url_to_fs(self.url)
        except Exception as error:  # an unknown scheme, or a package that is missing, which the message names
            raise UserError(f"{url}: no place that can be reached ({disk.reason(error)})") from None
        self.has_folders = not self.files.async_impl  # object stores, which are asynchronous, have none

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # no network, no permission, no such bucket: each package has its own
            fault = f"cannot be read or written ({disk.reason(error)})"
            raise UserError(f"{self.url}: {fault}; see whether you may, or name another place") from None

    def paths(self, names: Iterable[str]) -> list[str]:
        return [posixpath.join(self.root, name) for name in names]

    def names(self) -> set[str]:
        """What is at the top."""
        with self.reached():
            try:
                listed = self.files.ls(self.root, detail=False, refresh=True)
            except FileNotFoundError:
                return set()
        return {posixpath.basename(path.rstrip("/")) for path in listed} - {""}

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """What files hold; None where there is none."""
        found: list[Any] = []
        with self.reached():
            for start in range(0, len(names), AT_ONCE):
                paths = self.paths(names[start : start + AT_ONCE])
                found += self.files.cat_ranges(paths, None, None, on_error="return")
            if faults := [each for each in found if not isinstance(each, bytes | FileNotFoundError)]:
                raise faults[0]
        return [each if isinstance(each, bytes) else None for each in found]

    def write(self, folder: Path, names: Sequence[str]) -> None:
        """Files below a folder here."""
        paths = self.paths(names)
        with self.reached():
            for parent in sorted({posixpath.dirname(path) for path in paths}) if self.has_folders else ():
                self.files.makedirs(parent, exist_ok=True)
            self.files.put([str(folder / name) for name in names], paths)

    def remove(self, names: Iterable[str]) -> None:
        """Files, and the folders that are empty then."""
        names = list(names)
        with self.reached():
            for path in self.paths(names):
                with contextlib.suppress(FileNotFoundError):
                    self.files.rm_file(path)
            above = {parent.as_posix() for name in names for parent in Path(name).parents} - {"."}
            for path in self.paths(sorted(above, key=len, reverse=True)) if self.has_folders else ():
                with contextlib.suppress(OSError):  # something else is in it, or it is gone
                    self.files.rmdir(path)


def _fetch(store: _Store, folder: Path) -> None:
    """The result.json that is there, to be added to, in `folder`; what a stopped upload left there is removed. Raises
    UserError where there is something else."""
    if not (there := store.names()):
        return
    results, marker = store.read([RESULTS, MARKER])
    folder.mkdir()
    if results is not None:
        (folder / RESULTS).write_bytes(results)
    document = read_document(folder)
    try:
        left = [] if marker is None else json.loads(marker)
        if document is None or (results is None and marker is None):
            raise ValueError
        if any(disk.name_fault(part) for name in left for part in name.split("/")):
            raise ValueError
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{store.url}: exists and is not a result of dshmp; choose another --out") from None
    if marker is not None:
        store.remove(set(left) - _files(document.get("results", ())))
        store.remove([MARKER])
        there = store.names()
    for name in there - {RESULTS}:
        (folder / name).mkdir()  # so that a new answer's folder is called otherwise
    if results is None and not there:
        folder.rmdir()


def _upload(store: _Store, folder: Path, before: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    """Write what is new since `before`. An answer that is replaced is not in result.json meanwhile."""
    old, new = before.get("results", []), document["results"]
    fresh = {name for name in _files(each for each in new if each not in old) if (folder / name).is_file()}
    stale = _files(old) - _files(new)
    (folder / MARKER).write_text(json.dumps(sorted(fresh | stale)), encoding="utf-8")
    store.write(folder, [MARKER])
    kept = [each for each in old if not _files([each]) & (fresh | stale)]
    if len(kept) < len(old):
        whole = folder.parent / "kept"
        whole.mkdir()
        disk.save_json(whole / RESULTS, {**before, "results": kept})
        store.write(whole, [RESULTS])
    store.remove(stale)
    store.write(folder, sorted(fresh))
    store.write(folder, [RESULTS])
    store.remove([MARKER])


def _files(answers: Iterable[Mapping[str, Any]]) -> set[str]:
    return {f"{each['folder']}/{name}" for each in answers for name in answer_files(each)}
