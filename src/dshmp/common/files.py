"""Files and folders of a user's: written wholly or not at all, and nothing touched that this program did not write.

What is being written lies in a hidden folder (`scratch`), which the next process removes if this one is killed. Results
with fixed names in a folder of the user's choice are known again by their digests (`owned_file`).
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from dshmp.common import limits
from dshmp.common.errors import UserError
from dshmp.common.signals import held

if TYPE_CHECKING:
    from torch import Tensor

LOCK = ".dshmp.lock"  # in a folder while a run has it to itself
MANIFEST = ".dshmp.json"  # in a folder that holds owned files: their digests
_HIDDEN = re.compile(r"\.dshmp(-[0-9a-f]{12})?\.(partial|ready|lock|json)")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # how systems tell a full disk
_NAME = re.compile(r'(?!(con|prn|aux|nul|(com|lpt)[1-9])\s*(\.|$))[^./\\<>:"|?*][^/\\<>:"|?*]*(?<![. ])', re.IGNORECASE)
LONGEST_NAME = 200  # bytes of a name made of a video's or a sentence's; file systems take 255, and parts are added


def reason(error: BaseException) -> str:
    """What went wrong, as one line of the first two: the first is often but a status."""
    text = getattr(error, "strerror", None) or str(error)
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def name_fault(name: str) -> str | None:
    """Why no file should be called so, on any system that people use; None where nothing is wrong."""
    if _NAME.fullmatch(name) and name.isprintable() and len(os.fsencode(name)) <= LONGEST_NAME:
        return None
    faults = 'holds one of / \\ < > : " | ? * or a control code, begins with a dot, ends in one or a space, is empty'
    return f"{faults}, longer than {LONGEST_NAME} bytes, or a device on Windows"


def file_name(text: str, instead: str) -> str:
    """`text` as a name without `name_fault`: what does not do becomes `_`, a name that is too long is cut and marked,
    and one of which nothing is left is `instead`."""
    if name_fault(text) is None:
        return text
    kept = "".join("_" if name_fault(f"a{c}a") else c for c in text).strip(". ")
    if len(os.fsencode(kept)) > LONGEST_NAME:
        mark = hashlib.sha256(os.fsencode(text)).hexdigest()[:8]
        kept = f"{os.fsencode(kept)[: LONGEST_NAME - 9].decode(errors='ignore')}-{mark}"
    if name_fault(kept) is not None:
        kept = f"_{kept}"
    return kept if kept.strip("_") else instead


def destination(path: Path, folder: bool = False) -> Path:
    """Where `path` leads, without links and dots. Raises UserError, before the long work that is to end there, where
    nothing can be written, or it is a file and should be a `folder`."""
    try:
        target = path.resolve()
        there = next(place for place in (target, *target.parents) if os.path.lexists(place))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: leads nowhere ({reason(error)}); name another place") from None
    if not there.is_dir() and not (there == target and target.is_file()):
        raise UserError(f"{path}: {there} is a file, not a folder; name another place")
    if not os.access(holder := there if there.is_dir() else there.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: {holder} may not be written; name another place")
    if folder and target.is_file():
        raise UserError(f"{path}: is a file; name a folder")
    return target


def is_vacant(folder: Path) -> bool:
    """Whether nothing is in a folder but what this program leaves beside its results."""
    return all(_HIDDEN.fullmatch(item.name) for item in folder.iterdir())


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True, name: str = LOCK) -> Iterator[None]:
    """Have a folder, made if need be, to oneself. Raises UserError where another process has it and we don't `wait`."""
    lock = FileLock(folder / name)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            raise UserError(f"{folder}: another run is writing there; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows the lock itself removes it, once it is released
            os.unlink(lock.lock_file)
        lock.release()


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A hidden folder in `folder` to write in, removed in the end, as is `folder` if it was made here and is empty.
    What dead processes have left in `folder` is removed first: a living one holds the lock beside it."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]  # innermost first
    place = folder / f".dshmp-{secrets.token_hex(6)}.partial"
    own = contextlib.ExitStack()
    try:
        with held():  # a signal may not come between what is made and its removal
            _remove_left(folder)
            own.enter_context(locked(folder, name=place.with_suffix(".lock").name))
            with writing(folder):
                place.mkdir()
        yield place
    finally:
        with held():
            shutil.rmtree(place, ignore_errors=True)
            own.close()
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()


def _remove_left(folder: Path) -> None:
    """What dead processes have left in a folder."""
    for left in folder.glob(".dshmp-*"):
        lock = left.with_suffix(".lock").name
        if _HIDDEN.fullmatch(left.name) and left.suffix != ".ready":
            with contextlib.suppress(UserError, OSError), locked(folder, wait=False, name=lock):
                shutil.rmtree(left.with_suffix(".partial"), ignore_errors=True)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` in the end; what `path` was is replaced. Raises UserError."""
    target = destination(path)
    with writing(path), scratch(target.parent) as work:
        yield work / target.name
        os.replace(work / target.name, target)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, whose content is in the folder `path` in the end. One that is there stays itself, as
    somebody may be in it or a disk be mounted on it, and keeps all files but those that new ones replace."""
    target = destination(path)
    with scratch(target if target.is_dir() else target.parent) as work, writing(path, work):
        yield work
        move_into(work, target)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """As `atomic_folder`. Raises UserError, before the work, where `path` is there and not an empty folder."""
    target = destination(path, folder=True)
    if target.exists() and not is_vacant(target):
        raise UserError(f"{path}: is there already; remove it or choose another folder")
    with atomic_folder(path) as folder:
        yield folder


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """As `atomic_write`. Raises UserError, before the work, where `path` is there."""
    if os.path.lexists(path):
        raise UserError(f"{path}: is there already; remove it or choose another name")
    with atomic_write(path) as part:
        yield part


@contextlib.contextmanager
def writing(path: Path, work: Path | None = None) -> Iterator[None]:
    """What cannot be written, on a full disk above all, as a UserError that names `path`; faults of other files than
    these are passed on where `work`, which becomes `path`, is given."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(work or path), str(path))) from None
    except (OSError, RuntimeError, SafetensorError) as error:  # the latter are torch's and safetensors' ways to tell
        place, number = str(getattr(error, "filename", None)), getattr(error, "errno", None)
        if work is not None and number not in FULL and not place.startswith((str(work), str(path))):
            raise
        fault = f"cannot be written ({reason(error)})"
        raise UserError(f"{path}: {fault}; free some space there, or name another place") from None


def move_into(work: Path, target: Path) -> None:
    """Move a folder to `target`, or its content there where `target` is a folder: a folder joins its namesake, a file
    replaces it. Stopped halfway, it can be done again: files at the top, such as result.json, come last."""
    if not target.is_dir():
        os.replace(work, target)
        return
    for item in sorted(work.iterdir(), key=lambda item: (item.is_file(), item.name)):
        if item.is_dir():
            move_into(item, target / item.name)
        else:
            os.replace(item, target / item.name)
    work.rmdir()


def check_utf8(path: Path) -> Path:
    """The path. Raises UserError where safetensors, which takes UTF-8 alone, could not open it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: this name is not UTF-8, and weights can lie in no such place; rename it") from None
    return path


def to_json(document: Mapping[str, Any]) -> str:
    """One line of JSON that is UTF-8: half a surrogate, of a name that is not, becomes its escape."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def save_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON, wholly or not at all. Raises UserError."""
    with atomic_write(path) as part:
        part.write_text(to_json(document), encoding="utf-8")


def save_tensors(state: Mapping[str, "Tensor"], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, wholly or not at all. Raises UserError."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with atomic_write(check_utf8(path)) as part:
        part.touch()
        mode = part.stat().st_mode
        save_file(tensors, part, metadata)
        part.chmod(mode)  # safetensors shuts out all but the owner


def check_owned(folder: Path, names: Sequence[str]) -> None:
    """Raises UserError, before the work, where `folder` has a file of such a name, not as this program wrote it."""
    known = _manifest(folder)
    for path in (folder / name for name in names):
        if os.path.lexists(path) and (not path.is_file() or digest(path) not in known.get(path.name, [])):
            raise UserError(f"{path}: is there, and not as dshmp wrote it; move it away, or name another folder")


@contextlib.contextmanager
def owned_file(folder: Path, name: str) -> Iterator[Path]:
    """A name to write to, which becomes `folder/name` in the end; as `check_owned`."""
    check_owned(folder, [name])
    with atomic_write(folder / name) as part:
        yield part
        known = _manifest(folder)
        # the one before stays known: a process that is killed here leaves that
        save_json(folder / MANIFEST, known | {name: [*known.get(name, [])[-1:], digest(part)]})


def _manifest(folder: Path) -> dict[str, list[str]]:
    """The last digests of the owned files in a folder, by name; of a damaged manifest nothing."""
    try:
        with open(folder / MANIFEST, encoding="utf-8", opener=regular) as file:
            return {name: list(digests) for name, digests in json.load(file).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def read_settings(path: Path) -> str:
    """A small file of text, UTF-8. Raises OSError or ValueError where it is none."""
    with open(path, "rb", opener=regular) as file:
        content = file.read(limits.SETTINGS + 1)
    if len(content) > limits.SETTINGS:
        raise ValueError(f"is larger than {limits.SETTINGS:,} bytes")
    return content.decode("utf-8")


def digest(path: Path) -> str:
    """SHA256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def regular(path: str, flags: int) -> int:
    """An `opener` of `open` that refuses (OSError) a pipe, which may keep one waiting, or a device without an end."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # of a folder `open` tells itself
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, "is a pipe or a device where a regular file is needed", path)
