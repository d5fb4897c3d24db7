"""`dshmp data import`: annotations and sentences become a data set that is whole and can be trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from answers import LENGTH, SIZE, drawn, result
from clips import picture, write_clip, write_frames
from dshmp.__main__ import main
from dshmp.data import mevis
from dshmp.data.check import examine
from dshmp.data.images import read_frame
from dshmp.data.imports import SUFFIXES
from dshmp.formats import write
from dshmp.video.io import open_video

SCORES = (0.7, 0.9, 0.8)
NAMES = {"coco": "{}", "ytvis": "{}", "cvat": "g{}", "mots": "300{}", "davis": "{}"}


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["dshmp", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def annotated(place: Path, kind: str, masks: np.ndarray, suffix: str = "") -> tuple[Path, Path]:
    """A folder of frames or, with `suffix`, a video file, and its annotations."""
    video = (
        write_clip(place / f"clip{suffix}", LENGTH, *SIZE) if suffix else write_frames(place / "clip", LENGTH, *SIZE)
    )
    write([kind], [result("x", masks, SCORES)], open_video(video), place / "made")
    return video, place / "made" / f"{kind}{SUFFIXES[kind]}"


def listed(place: Path, *rows: str) -> Path:
    path = place / "rows.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("suffix", ["", ".mp4"])
@pytest.mark.parametrize("kind", NAMES)
def test_annotations_become_a_data_set(
    kind: str, suffix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    masks = drawn()
    masks[1] &= ~masks[0]  # MOTS and DAVIS hold but one object a pixel
    video, annotations = annotated(tmp_path, kind, masks, suffix)
    one, two, three = (NAMES[kind].format(k) for k in (1, 2, 3))
    sentences = listed(
        tmp_path,
        "video,expression,objects",
        f"{video.name},the ring that goes right,{one}",
        f'{video.name},"both, the bars and the dot",{three} {two}',
        f"{video.name},the elephant,",
    )
    out = tmp_path / "data"
    assert run(monkeypatch, "data", "import", "--from", kind, annotations, "--sentences", sentences, out) == 0
    assert run(monkeypatch, "data", "check", "mevis", out, "--own", "--full") == 0
    assert "nothing is wrong" in capsys.readouterr().out
    split = mevis.MevisSplit(out, "train")
    assert [item.text for item in split.expressions] == [
        "the ring that goes right",
        "both, the bars and the dot",
        "the elephant",
    ]
    for item, meant in zip(split.expressions, ([0], [2, 1], []), strict=True):
        found = split.masks("clip", item.annotations, range(LENGTH), SIZE)
        assert np.array_equal(found, masks[meant])
    assert len(split.videos["clip"].objects) == 3
    frames = split.frames("clip")
    for frame, own in zip(frames, open_video(video), strict=True):
        assert frame.shape == own.image.shape
        assert np.abs(frame.astype(int) - own.image).mean() < 12


def test_jpegs_are_copied_and_turned_ones_written_upright(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for t in range(LENGTH):
        image = Image.fromarray(picture(t, *SIZE))
        exif = image.getexif()
        if t == 1:
            image, exif[274] = image.transpose(Image.Transpose.ROTATE_90), 6
        image.save(folder / f"f{t}.JPG" if t == 2 else folder / f"f{t}.jpg", "JPEG", quality=80, exif=exif)
    write(["coco"], [result("x", drawn(), SCORES)], open_video(folder), tmp_path)
    sentences = listed(tmp_path, "video,expression,objects", "clip,a ring,1")
    out = tmp_path / "data"
    given = "data", "import", "--from", "coco", tmp_path / "coco.json", "--sentences", sentences, out
    assert run(monkeypatch, *given) == 0
    written = out / "train" / "JPEGImages" / "clip"
    assert sorted(path.name for path in written.iterdir()) == [f"f{t}.jpg" for t in range(LENGTH)]
    for t in (0, 2, 3):
        original = folder / (f"f{t}.JPG" if t == 2 else f"f{t}.jpg")
        assert (written / f"f{t}.jpg").read_bytes() == original.read_bytes()
    assert read_frame(written / "f1.jpg").shape == (*SIZE, 3)


@pytest.mark.parametrize("kind", ["coco", "cvat", "davis"])
def test_several_videos_and_splits(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file, or a folder of PNGs, for each, called as the video is; a column says in which split a video is."""
    notes = tmp_path / "notes"
    for name, first in (("cats", 0), ("dogs", 1)):
        video = open_video(write_frames(tmp_path / name, LENGTH, *SIZE))
        answer = result("x", drawn()[first : first + 1], (0.5,))
        write([kind], [answer], video, tmp_path / f"{name} made")
        notes.mkdir(exist_ok=True)
        (tmp_path / f"{name} made" / f"{kind}{SUFFIXES[kind]}").rename(notes / f"{name}{SUFFIXES[kind]}")
    number = NAMES[kind].format(1)
    rows = f"cats,a cat,{number},train", f"dogs,a dog,{number},valid", f"cats,it,{number},", "dogs,x,,train"
    sentences = listed(tmp_path, "video,expression,objects,split", *rows)
    out = tmp_path / "data"
    out.mkdir()
    assert run(monkeypatch, "data", "import", "--from", kind, notes, "--sentences", sentences, out) == 0
    assert not examine(mevis.check, out, own=True, full=True).findings
    train, valid = mevis.MevisSplit(out, "train"), mevis.MevisSplit(out, "valid")
    assert [(item.video, item.text) for item in train.expressions] == [("cats", "a cat"), ("cats", "it"), ("dogs", "x")]
    assert [(item.video, item.text) for item in valid.expressions] == [("dogs", "a dog")]
    for split, name, k in ((train, "cats", 0), (valid, "dogs", 1)):
        item = next(item for item in split.expressions if item.video == name)
        assert np.array_equal(split.masks(name, item.annotations, range(LENGTH), SIZE)[0], drawn()[k])


def test_one_file_of_several_videos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    documents = []
    for number, name in enumerate(("cats", "dogs"), 1):
        video = open_video(write_frames(tmp_path / name, LENGTH, *SIZE))
        document = result("x", drawn()[number - 1 : number], (0.5,)).to_ytvis(video)
        for row in document["annotations"]:
            row["video_id"] = number
        document["videos"][0]["id"] = number
        documents.append(document)
    document = {key: [row for each in documents for row in each[key]] for key in ("videos", "annotations")}
    (tmp_path / "all.json").write_text(json.dumps(document))
    sentences = listed(tmp_path, "video,expression,objects", "cats,a cat,1", "dogs,a dog,1")
    given = "--from", "ytvis", tmp_path / "all.json", "--sentences", sentences, tmp_path / "data"
    assert run(monkeypatch, "data", "import", *given) == 0
    split = mevis.MevisSplit(tmp_path / "data", "train")
    for k, item in enumerate(split.expressions):
        assert np.array_equal(split.masks(item.video, item.annotations, range(LENGTH), SIZE)[0], drawn()[k])


@pytest.mark.parametrize(
    ("rows", "change", "told"),
    [
        ("video,expression\nclip,a ring", "", "line 2: has no objects; add a column"),
        ("video,expression,objects\nclip,a ring,7", "", "has no track '7'; it has 1, 2, 3"),
        ("video,expression,objects\nclip,,7", "", "needs a video and an expression"),
        ("video,expression,objects\nnone,a ring,1", "", "none: cannot be read"),
        ("video,expression,objects", "", "the list is empty"),
        ("video,expression,objects,split\nclip,a ring,1,a/b", "", "rename it"),
        ("video,expression,objects\nclip,a ring,1\nother/clip,a ring,1", "", "tracks of one video, the list names 2"),
        ("video,expression,objects\nclip,a ring,1", "longer", "the tracks have a mask in frame 5, the video has 5"),
        ("video,expression,objects\nclip,a ring,1", "gone", "coco.json: is missing, or not a file .json"),
        ("video,expression,objects\nclip,a ring,1", "full", "data: is there already"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_written(
    rows: str,
    change: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    _, annotations = annotated(tmp_path, "coco", drawn())
    (tmp_path / "other").mkdir()
    write_frames(tmp_path / "other" / "clip", LENGTH, *SIZE)
    out = tmp_path / "data"
    if change == "longer":
        document = json.loads(annotations.read_text())
        for each in document["images"]:
            each["frame_index"], each["file_name"] = each["frame_index"] + 1, ""
        annotations.write_text(json.dumps(document))
    elif change == "gone":
        annotations.unlink()
    elif change == "full":
        out.mkdir()
        (out / "mine").write_text("mine")
    sentences = listed(tmp_path, rows)
    given = "data", "import", "--from", "coco", annotations, "--sentences", sentences, out
    assert run(monkeypatch, *given) == 2
    lines = capsys.readouterr().err.splitlines()
    assert told in lines[-1]
    assert lines[-1].startswith("dshmp: ")
    assert [path.name for path in out.iterdir()] == ["mine"] if change == "full" else not out.exists()
    assert not list(tmp_path.glob(".dshmp*"))
