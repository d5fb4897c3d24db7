"""Zip files for the servers: what is written is valid and always the same, and each kind of damage is told."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dshmp.cli import main
from dshmp.common.errors import UserError
from dshmp.data.base import Expression, Video
from dshmp.evaluation.predictions import validate_zip, write_zip

H, W = 6, 9
Files = dict[str, bytes]


class FakeSplit:
    """Two videos of two frames, with two expressions and one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.videos = {name: Video(name, ("00000", "00005")) for name in ("cat", "dog")}
        self.expressions = [Expression("cat", "0", "a"), Expression("cat", "1", "b"), Expression("dog", "0", "c")]
        self.has_truth = False

    def frames(self, video: str, positions: list[int] | None = None) -> list[np.ndarray]:
        return [np.zeros((H, W, 3), np.uint8) for _ in positions or (0, 1)]

    def masks(self, *_: object) -> np.ndarray:
        raise AssertionError("the truth is hidden")


def png(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", **options)
    return stream.getvalue()


def masks(top: str = "") -> Files:
    """A valid submission's files."""
    half = np.zeros((H, W), np.uint8)
    half[:, :4] = 255
    return {
        f"{top}{folder}/{frame}.png": png(half)
        for folder in ("cat/0", "cat/1", "dog/0")
        for frame in ("00000", "00005")
    }


def pack(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


@pytest.fixture
def split(tmp_path: Path) -> FakeSplit:
    return FakeSplit(tmp_path)


@pytest.mark.parametrize(("layout", "top"), [("mevis", ""), ("youtube_vos", "Annotations/")])
def test_writing_is_valid_and_repeatable(split: FakeSplit, tmp_path: Path, layout: str, top: str) -> None:
    out = tmp_path / "out"
    for name, content in {**masks(top), "predict.json": b"{}", "cat/.DS_Store": b"x"}.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    path = write_zip(out, split, layout)
    assert path == tmp_path / "out.zip"
    assert validate_zip(path, split, layout) == []
    with zipfile.ZipFile(path) as file:
        assert file.namelist() == sorted(masks(top))
        assert {name: file.read(name) for name in file.namelist()} == masks(top)
    content = path.read_bytes()
    path.unlink()
    assert write_zip(out, split, layout).read_bytes() == content
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "out.zip"]


def test_no_zip_of_what_is_not_whole_or_not_valid(split: FakeSplit, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name, content in masks().items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    (out / "dog/0/00005.png").write_bytes(png(np.full((H, W), 7, np.uint8)))
    with pytest.raises(UserError, match=r"dog/0/00005\.png: holds the value 7"):
        write_zip(out, split, "mevis")
    (out / "dog/0/00005.png").unlink()
    with pytest.raises(UserError, match=r"00005\.png: missing, 1 of 6 masks"):
        write_zip(out, split, "mevis")
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def changed(name: str, content: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, name: content}


def without(start: str) -> Callable[[Files], Files]:
    return lambda files: {name: content for name, content in files.items() if not name.startswith(start)}


def below(top: str) -> Callable[[Files], Files]:
    return lambda files: {top + name: content for name, content in files.items()}


ZEROS = np.zeros((H, W), np.uint8)
DAMAGES: dict[str, tuple[Callable[[Files], Files], str]] = {
    "missing video": (without("dog"), "dog/0/00000.png: is missing (and 1 more of this folder)"),
    "missing expression": (without("cat/1"), "cat/1/00000.png: is missing (and 1 more of this folder)"),
    "missing frame": (without("cat/1/00005"), "cat/1/00005.png: is missing"),
    "extra video": (changed("fox/0/00000.png", png(ZEROS)), "fox/0/00000.png: the split has nothing of this name"),
    "extra expression": (changed("dog/1/00000.png", png(ZEROS)), "dog/1/00000.png: the split has nothing of this name"),
    "extra frame": (changed("dog/0/00001.png", png(ZEROS)), "dog/0/00001.png: the split has nothing of this name"),
    "note": (changed("predict.json", b"{}"), "predict.json: the split has nothing of this name"),
    "colours": (
        changed("dog/0/00000.png", png(np.zeros((H, W, 3), np.uint8))),
        "dog/0/00000.png: is a PNG of mode RGB, not L (grey, 8 bits)",
    ),
    "one bit": (
        changed("dog/0/00000.png", png(ZEROS > 0)),
        "dog/0/00000.png: is a PNG of mode 1, not L (grey, 8 bits)",
    ),
    "size": (changed("dog/0/00000.png", png(ZEROS.T)), "dog/0/00000.png: is 6x9, its frame is 9x6"),
    "values": (changed("dog/0/00000.png", png(ZEROS + 1)), "dog/0/00000.png: holds the value 1; only 0 and 255 are"),
    "no image": (changed("dog/0/00000.png", b"mask"), "dog/0/00000.png: is no PNG"),
    "cut off": (changed("dog/0/00000.png", png(ZEROS)[:-20]), "dog/0/00000.png: cannot be read"),
    "macOS": (changed("__MACOSX/cat/._0", b""), "__MACOSX/cat/._0: the split has nothing of this name"),
    "store": (changed("cat/.DS_Store", b""), "cat/.DS_Store: the split has nothing of this name"),
    "empty folder": (changed("fox/", b""), "fox/: the split has nothing of this name"),
    "top folder": (below("out/"), "holds no mask of this split, such as cat/0/00000.png"),
    "top of the other server": (below("Annotations/"), "holds no mask of this split"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told(split: FakeSplit, tmp_path: Path, damage: str) -> None:
    change, finding = DAMAGES[damage]
    findings = validate_zip(pack(tmp_path / "x.zip", change(masks())), split, "mevis")
    assert len(findings) == 1, findings
    assert findings[0].startswith(finding)


def test_what_is_wrong_alike_is_told_once(split: FakeSplit, tmp_path: Path) -> None:
    colours = png(np.zeros((H, W, 3), np.uint8))
    findings = validate_zip(pack(tmp_path / "x.zip", dict.fromkeys(masks(), colours)), split, "mevis")
    assert len(findings) == 3
    assert findings[0].endswith("(and 1 more of this folder)")


def test_top_folder_is_needed(split: FakeSplit, tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", masks())
    for files in (masks(), below("Annotations/Annotations/")(masks())):
        assert validate_zip(pack(path, files), split, "youtube_vos") == [
            "holds no mask of this split, such as Annotations/cat/0/00000.png; mind the folders above"
        ]


def test_folders_of_their_own_are_allowed(split: FakeSplit, tmp_path: Path) -> None:
    """As `zip -r` writes them."""
    files = {"Annotations/": b"", "Annotations/cat/": b"", "Annotations/cat/0/": b"", **masks("Annotations/")}
    assert validate_zip(pack(tmp_path / "x.zip", files), split, "youtube_vos") == []


def test_a_file_that_is_there_twice(split: FakeSplit, tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", masks())
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("cat/0/00000.png", png(ZEROS))
    assert validate_zip(path, split, "mevis") == ["cat/0/00000.png: is there 2 times"]


def test_damaged_bytes_of_the_zip(split: FakeSplit, tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", masks())
    content = path.read_bytes()
    for cut in range(0, len(content) - 1, 97):
        path.write_bytes(content[:cut])
        assert validate_zip(path, split, "mevis")[0].startswith("is no readable zip file")
    at = content.index(b"IDAT") + 6
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert validate_zip(path, split, "mevis")[0].startswith("cat/0/00000.png: cannot be read")  # the zip's checksum


def test_damage_of_packed_entries(split: FakeSplit, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(path, "w", method) as file:
            for name, content in masks().items():
                file.writestr(name, content)
        content = path.read_bytes()
        start = content.index(b"cat/0/00000.png") + 15
        for place in range(start + 4, start + 28, 3):
            path.write_bytes(content[:place] + b"\xff\xff\xff" + content[place + 3 :])
            (finding,) = validate_zip(path, split, "mevis")
            assert finding.startswith("cat/0/00000.png: cannot be read")
    damaged = bytearray(pack(path, masks()).read_bytes())
    entry = damaged.index(b"PK\x01\x02")
    damaged[entry + 8 : entry + 10], damaged[entry + 46] = b"\0\x08", 255  # its name is said to be UTF-8
    path.write_bytes(damaged)
    assert validate_zip(path, split, "mevis")[0].startswith("is no readable zip file")


def test_nothing_there_or_no_server(split: FakeSplit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        validate_zip(tmp_path / "x.zip", split, "mevis")
    assert len(validate_zip(pack(tmp_path / "x.zip", {}), split, "mevis")) == 1
    with pytest.raises(UserError, match="take submissions"):
        validate_zip(tmp_path / "x.zip", split, "coco")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from dshmp.data import registry

    fake = registry.Dataset("x", ("valid",), lambda r, s: FakeSplit(r), None, None, "many", "mevis")  # type: ignore[arg-type]
    monkeypatch.setitem(registry.DATASETS, "mevis", fake)
    path = pack(tmp_path / "x.zip", without("dog")(masks()))
    arguments = ["dshmp", "submission", "mevis", str(tmp_path), str(path), "--split", "valid"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert capsys.readouterr().out == "dog/0/00000.png: is missing (and 1 more of this folder)\n"
    pack(path, masks())
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "a valid submission" in capsys.readouterr().out
