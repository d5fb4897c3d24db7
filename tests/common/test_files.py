"""What is written is there wholly or not at all, under the usual permissions, and nothing else is touched."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dshmp.common.errors import UserError
from dshmp.common.files import (
    LONGEST_NAME,
    atomic_folder,
    atomic_write,
    check_owned,
    destination,
    file_name,
    is_vacant,
    locked,
    move_into,
    name_fault,
    owned_file,
    reason,
    save_tensors,
    scratch,
)


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def fill(folder: Path, *names: str, text: str = "new") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_reasons_are_one_line() -> None:
    assert reason(ValueError("one\n\n  two\tparts\nthree")) == "one two parts"
    assert reason(OSError(28, "No space left on device", "/x")) == "No space left on device"
    assert reason(KeyError()) == "KeyError"
    assert len(reason(ValueError("x" * 10_000))) == 300


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_usual_permissions(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "a" / "b") as work:
            save_tensors({"w": torch.ones(3)}, work / "x")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "a", tmp_path / "a" / "b")} == {0o777 & ~mask}
    assert (tmp_path / "a" / "b" / "x").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_new_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "m") as work:
        fill(work, "a", "b/c")
        assert not (tmp_path / "deep" / "m").exists()
    assert content(tmp_path) == {"deep/m/a": "new", "deep/m/b/c": "new"}


def test_a_folder_that_is_there_stays_itself(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    fill(folder, "a", "b/c", "mine/d", text="old")
    number = folder.stat().st_ino
    with atomic_folder(folder) as work:
        fill(work, "a", "b/e", "f")
        assert content(folder)["a"] == "old"
    assert folder.stat().st_ino == number
    assert content(folder) == {"a": "new", "b/c": "old", "b/e": "new", "f": "new", "mine/d": "old"}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there")
    with atomic_folder(tmp_path / "link") as work:
        fill(work, "a")
    with atomic_write(tmp_path / "there" / "b") as part:
        part.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "there") == {"a": "new", "b": "new"}


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError, UserError])
def test_what_fails_leaves_all_as_it_was(fault: type[BaseException], fresh: bool, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "m"
    if not fresh:
        fill(folder, "a", text="old")
    before = sorted(tmp_path.rglob("*"))

    def write(place: AbstractContextManager[Path], name: str) -> None:
        with place as work:
            fill(work.parent, f"{work.name}{name}")
            raise fault

    with pytest.raises(fault):
        write(atomic_folder(folder), "/a")
    with pytest.raises(fault):
        write(atomic_write(folder / "a"), "")
    assert sorted(tmp_path.rglob("*")) == before
    assert fresh or content(folder) == {"a": "old"}


def test_a_move_that_was_stopped_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its steps it was stopped at."""
    move = os.replace
    for last in range(1, 4):
        fill(tmp_path / "m", "a", "b/c", "b/mine", text="old")
        fill(tmp_path / "work", "a", "b/c", "d/e")
        moves = []

        def fail(before: Path, after: Path, last: int = last, moves: list[Path] = moves) -> None:
            moves.append(after)
            if len(moves) == last:
                raise OSError(5, "Input/output error", str(before))
            move(before, after)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(OSError, match="Input/output"):
                move_into(tmp_path / "work", tmp_path / "m")
            assert content(tmp_path / "m")["a"] == "old"  # the files at the top come last
        move_into(tmp_path / "work", tmp_path / "m")
        assert content(tmp_path) == {"m/a": "new", "m/b/c": "new", "m/b/mine": "old", "m/d/e": "new"}
        shutil.rmtree(tmp_path / "m")


def test_faults_are_told_of_the_place_that_people_know(tmp_path: Path) -> None:
    def full(work: Path) -> None:
        raise OSError(28, "No space left on device")

    def lacking(work: Path) -> None:
        (work / "no" / "such").write_text("x")

    def told(work: Path) -> None:
        raise UserError(f"{work / 'x'}: cannot be written (why)")

    cases: dict[Callable[[Path], None], str] = {
        full: "m: cannot be written (No space left on device); free some space there, or name another place",
        lacking: "m: cannot be written (No such file or directory); free some space there, or name another place",
        told: "m/x: cannot be written (why)",
    }
    for write, message in cases.items():
        with pytest.raises(UserError) as caught, atomic_folder(tmp_path / "m") as work:
            write(work)
        assert str(caught.value) == f"{tmp_path}/{message}"
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "m"):  # not of ours
        (tmp_path / "nowhere").read_text()
    assert not list(tmp_path.iterdir())


def test_no_two_writers_share_a_name(tmp_path: Path) -> None:
    fill(tmp_path, "x.part", ".x.partial", text="mine")
    with atomic_write(tmp_path / "x") as one, atomic_write(tmp_path / "x") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert content(tmp_path) == {"x.part": "mine", ".x.partial": "mine", "x": "1"}


def test_tensors_of_any_layout(tmp_path: Path) -> None:
    values = torch.arange(6.0).view(2, 3)
    save_tensors({"a": values.T, "b": values.clone().requires_grad_()}, tmp_path / "x", {"step": "3"})
    found = load_file(tmp_path / "x")
    assert torch.equal(found["a"], values.T)
    assert torch.equal(found["b"], values)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: cannot be written \("):
        save_tensors({"a": values}, tmp_path / "folder")
    assert {p.name for p in tmp_path.iterdir()} == {"x", "folder"}


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file/x/y", "circle", "circle/x", "pipe", "pipe/x", "nul\0"):
        with pytest.raises(UserError, match="name another place"):
            destination(tmp_path / name)
    assert destination(tmp_path / "new" / "x") == tmp_path / "new" / "x"
    assert destination(tmp_path / "nope" / ".." / "file") == tmp_path / "file"


def test_names_of_files() -> None:
    for name in (
        "",
        ".",
        "..",
        ".x",
        "a/b",
        "a\\b",
        "a\x1bb",
        "a\nb",
        "CON",
        "nul.txt",
        "com1",
        "a.",
        "a ",
        "a:b",
        "x" * 300,
    ):
        assert name_fault(name), name
        assert name_fault(file_name(name, "video")) is None, name
    for name in ("clip", "a b", "狗", "été 2.1", "console", "x" * LONGEST_NAME):
        assert name_fault(name) is None
        assert file_name(name, "video") == name
    assert [file_name(name, "video") for name in ("", "..", "...", "a:b", "aux")] == ["video"] * 3 + ["a_b", "_aux"]
    assert file_name("x" * 300, "video") != file_name("x" * 301, "video")
    assert len(file_name("狗" * 300, "video").encode()) <= LONGEST_NAME


def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from dshmp.common.files import atomic_folder
with atomic_folder(Path({str(tmp_path / "m")!r})) as work:
    (work / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    lock, left = sorted(tmp_path.iterdir())
    assert left.name.startswith(".dshmp-")
    assert is_vacant(tmp_path)
    fill(tmp_path, ".mine.partial/a", ".dshmp-mine.partial/a", ".dshmp-mine.lock", text="mine")
    with scratch(tmp_path) as mine:
        fill(mine, "x")
        with scratch(tmp_path) as other:  # sweeps too, but not what a living one writes
            assert not left.exists()
            assert not lock.exists()
            assert (mine / "x").exists()
            assert other != mine
    assert content(tmp_path) == dict.fromkeys((".dshmp-mine.lock", ".dshmp-mine.partial/a", ".mine.partial/a"), "mine")


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "m", wait=False),
        pytest.raises(UserError, match=r"m: another run is writing there"),
        locked(tmp_path / "m", wait=False),
    ):
        pass
    with locked(tmp_path / "m"):
        pass
    assert not list((tmp_path / "m").iterdir())


def test_only_what_was_written_is_replaced(tmp_path: Path) -> None:
    fill(tmp_path, "b", text="mine")

    def write(name: str, text: str) -> None:
        with owned_file(tmp_path, name) as part:
            part.write_text(text)

    check_owned(tmp_path, ["a"])
    write("a", "1")
    write("a", "2")
    assert content(tmp_path)["a"] == "2"
    with pytest.raises(UserError, match=r"b: is there, and not as dshmp wrote it; move it away"):
        write("b", "1")
    fill(tmp_path, "a", text="2, and a note")
    with pytest.raises(UserError, match=r"a: is there"):
        check_owned(tmp_path, ["c", "a"])
    (tmp_path / ".dshmp.json").write_text("[1")
    with pytest.raises(UserError, match=r"a: is there"):
        write("a", "3")
    assert {name: text for name, text in content(tmp_path).items() if name in "ab"} == {
        "a": "2, and a note",
        "b": "mine",
    }


def test_vacant_is_what_a_killed_run_leaves(tmp_path: Path) -> None:
    assert is_vacant(tmp_path)
    with atomic_folder(tmp_path) as work:
        assert is_vacant(tmp_path)
        fill(work, "a")
    assert not is_vacant(tmp_path)


def test_json_holds_names_that_are_not_utf8(tmp_path: Path) -> None:
    """They are escaped, and read back as they were."""
    import json
    import os

    from dshmp.common.files import save_json

    document = {"video": os.fsdecode(b"a\xff.mp4"), "letter": "\xe9"}
    save_json(tmp_path / "a.json", document)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == document
