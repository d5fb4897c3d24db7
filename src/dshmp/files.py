"""Files and folders that are written wholly or not at all, under the usual permissions; faults are told in a line."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from dshmp.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_UNFINISHED = re.compile(r"\..+\.(partial|old)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def reason(error: BaseException) -> str:
    """What went wrong, in one line: of several the first two, as the first is often but a status."""
    text = getattr(error, "strerror", None) or str(error)
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def is_vacant(folder: Path) -> bool:
    """Whether nothing is in a folder but what a killed run may have left."""
    return all(_UNFINISHED.fullmatch(item.name) for item in folder.iterdir())


def writable(path: Path) -> Path:
    """Where `path` leads, told before the long work that is to end there.

    Raises:
        UserError: nothing can be written there: a file is in the way, links run in a circle, or it is not allowed.
    """
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: leads nowhere ({reason(error)}); name another place") from None
    there = next(place for place in (target, *target.parents) if os.path.lexists(place))
    if there != target and not there.is_dir():
        raise UserError(f"{path}: {there} is a file, not a folder; name another place")
    folder = there if there.is_dir() else there.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path}: {folder} may not be written; name another place")
    return target


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to, in the same folder, which becomes `path` in the end.

    Raises:
        UserError: it cannot be written.
    """
    target = writable(path)
    with _parents(target):
        part = _aside(target.parent, target.name)
        try:
            yield part
            os.replace(part, target)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({reason(error)})") from None
        except (RuntimeError, SafetensorError) as error:  # torch's and safetensors' ways to tell
            raise UserError(f"{path}: cannot be written ({reason(error)}); is the disk full?") from None
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path, keep: bool = False) -> Iterator[Path]:
    """A folder to write to, whose content is in the folder `path` in the end.

    A folder that is there stays itself, as somebody may be in it or a disk be mounted on it. Of its content everything
    goes, or with `keep` only what the new one replaces; if anything fails, nothing.

    Raises:
        UserError: it cannot be written.
    """
    target = writable(path)
    with _parents(target):
        work = _aside(target if target.is_dir() else target.parent, target.name)
        try:
            work.mkdir()
            yield work
            if keep and target.is_dir():
                for item in _content(work):
                    os.replace(item, target / item.name)
                work.rmdir()
            else:
                publish(work, target)
        except UserError as error:
            raise UserError(str(error).replace(str(work), str(path))) from None
        except OSError as error:
            if error.errno in _FULL or str(error.filename).startswith(str(work)):
                raise UserError(f"{path}: cannot be written ({reason(error)})") from None
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def publish(work: Path, target: Path) -> None:
    """Give a finished file or folder its name; what was there goes only once the new one stands.

    A folder that is there stays itself and takes over the content.
    """
    if not (work.is_dir() and target.is_dir()):
        os.replace(work, target)
        return
    old = _aside(work.parent, target.name, "old")
    old.mkdir()
    moved: list[tuple[Path, Path]] = []

    def move(item: Path, folder: Path) -> None:
        moved.append((item, folder / item.name))
        os.replace(*moved[-1])

    try:
        for item in reversed(_content(target)):
            move(item, old)
        for item in _content(work):
            move(item, target)
    except BaseException:
        for before, after in reversed(moved):
            if os.path.lexists(after) and not os.path.lexists(before):
                os.replace(after, before)
        old.rmdir()
        raise
    work.rmdir()
    shutil.rmtree(old, ignore_errors=True)


def save_tensors(state: Mapping[str, "Tensor"], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        UserError: it cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with whole_file(path) as part:
        part.touch()
        mode = part.stat().st_mode
        save_file(tensors, part, metadata)
        part.chmod(mode)  # safetensors shuts out all but the owner


def _aside(folder: Path, name: str, kind: str = "partial") -> Path:
    """A hidden name in `folder` that nobody has. Not made, so that what is made has the usual permissions."""
    return folder / f".{name}.{secrets.token_hex(4)}.{kind}"


def _content(folder: Path) -> list[Path]:
    """Folders, then files, without what is unfinished: a file at the top, as result.json, says that all is there."""
    items = [item for item in folder.iterdir() if not _UNFINISHED.fullmatch(item.name)]
    return sorted(items, key=lambda item: (item.is_file(), item.name))


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Make the folders above; what fails leaves none that it made and nobody has used."""
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:  # innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def regular(path: str, flags: int) -> int:
    """An `opener` of `open` for people's files, which refuses a pipe, that may keep one waiting, or a device, that may
    have no end.

    Raises:
        OSError: it is one of these, or cannot be opened.
    """
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # of a folder `open` tells itself
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, "is a pipe or a device where a regular file is needed", path)
