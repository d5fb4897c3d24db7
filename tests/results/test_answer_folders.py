"""`--export`: other formats beside an answer are its own, as its masks are: added, replaced and removed with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from answers import LENGTH, SIZE, drawn
from clips import write_frames
from dshmp import cli
from dshmp.common.errors import UserError
from dshmp.common.options import Options
from dshmp.formats.reading import read_tracks
from dshmp.inference import segment
from dshmp.inference.segment import segment_to_folder
from dshmp.inference.segmenter import Segmenter
from dshmp.results.folder import remove_answers
from dshmp.results.result import load_results
from dshmp.video.io import open_video

SENTENCES = ["the red star", "the one that turns back"]
Ask = Callable[..., tuple[Path, int]]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(tiny.geometry_model(), tiny.tokenizer(), device="cpu")


@pytest.fixture
def loads() -> list[Options]:
    """When the model was asked for."""
    return []


@pytest.fixture
def ask(tmp_path: Path, segmenter: Segmenter, loads: list[Options]) -> Ask:
    video = write_frames(tmp_path / "clip", LENGTH, *SIZE)
    (tmp_path / "tracks").mkdir()
    for k, masks in enumerate(drawn()[:2]):
        folder = tmp_path / "tracks" / str(k)
        folder.mkdir()
        for t, mask in enumerate(masks):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"f{t:03d}.png")

    def load(options: Options) -> Segmenter:
        loads.append(options)
        return segmenter

    def asked(*kinds: str, sentences: list[str] = SENTENCES, threshold: float = 0.0, **more: Any) -> tuple[Path, int]:
        overwrite, frames = more.pop("overwrite", False), more.pop("frames", None)
        options = Options(threshold=threshold, overwrite=overwrite)
        given = video, sentences, tmp_path / "out", options, load, frames
        folder, _, new = segment_to_folder(
            *given, fps=8.0, tracks=tmp_path / "tracks", still_camera=True, exports=kinds, overlay=False
        )
        return folder, new

    return asked


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path, answer: str) -> set[str]:
    return {path.relative_to(folder / answer).as_posix() for path in (folder / answer).rglob("*") if path.is_file()}


def test_an_answer_has_its_exports(ask: Ask) -> None:
    folder, new = ask("coco", "davis", "alpha", "csv")
    assert new == 2
    document = json.loads((folder / "result.json").read_text())
    for answer, result in zip(document["results"], load_results(folder), strict=True):
        own = names(folder, answer["folder"])
        assert set(answer["exports"]) == {"coco", "davis", "alpha", "csv"}
        listed = {f"export/{name}" for written in answer["exports"].values() for name in written}
        assert listed == {name for name in own if name.startswith("export/")}
        assert {
            "export/coco.json",
            "export/davis/f000.png",
            "export/alpha/cutout.webm",
            "export/csv/objects.csv",
        } <= own
        assert answer["exports"]["coco"] == ["coco.json"]
        found = read_tracks(folder / answer["folder"] / "export" / "coco.json", open_video(Path(document["video"])))
        for track, item in zip(found.items, result.objects, strict=True):
            for t, mask in enumerate(item.masks):
                assert np.array_equal(found.masks(t).get(track.name, np.zeros(SIZE, bool)), mask)


def test_exports_are_added_without_the_model(ask: Ask, loads: list[Options]) -> None:
    folder, _ = ask()
    before, count = files(folder), len(loads)
    assert ask("coco", "alpha")[1] == 0
    assert len(loads) == count
    between = files(folder)
    assert {name: between[name] for name in before if name != "result.json"} == {
        name: data for name, data in before.items() if name != "result.json"
    }
    assert ask("mots", "coco", sentences=SENTENCES[:1])[1] == 0
    assert len(loads) == count
    after = files(folder)
    assert {name for name in after if name not in between} == {"01-the-red-star/export/mots.txt"}
    assert all(after[name] == data for name, data in between.items() if name != "result.json")
    kinds = [set(answer["exports"]) for answer in json.loads(after["result.json"])["results"]]
    assert kinds == [{"coco", "alpha", "mots"}, {"coco", "alpha"}]
    assert ask("mots", "coco", sentences=SENTENCES[:1])[1] == 0
    assert files(folder) == after
    one = folder / "01-the-red-star" / "export" / "coco.json"
    one.unlink()
    ask("coco")
    assert one.read_bytes() == after["01-the-red-star/export/coco.json"]


def test_new_answers_and_old_ones_in_one_go(ask: Ask) -> None:
    ask("csv", sentences=SENTENCES[:1])
    folder, new = ask("ytvis")
    assert new == 1
    kinds = [set(answer["exports"]) for answer in json.loads((folder / "result.json").read_text())["results"]]
    assert kinds == [{"csv", "ytvis"}, {"ytvis"}]


def test_they_are_replaced_and_removed_with_their_answer(ask: Ask) -> None:
    folder, _ = ask("coco", "davis", "yolo")
    mine = folder / "01-the-red-star" / "export" / "davis" / "notes.txt"
    mine.write_text("mine")
    ask("coco", threshold=1.0, overwrite=True, sentences=SENTENCES[:1])
    own = {name for name in names(folder, "01-the-red-star") if name.startswith("export/")}
    assert own == {"export/coco.json", "export/davis/notes.txt"}
    assert mine.read_text() == "mine"
    assert json.loads((folder / "01-the-red-star" / "export" / "coco.json").read_text())["annotations"] == []
    assert any(name.startswith("export/yolo") for name in names(folder, "02-the-one-that-turns-back"))
    remove_answers(folder)
    assert files(folder) == {"01-the-red-star/export/davis/notes.txt": b"mine"}
    mine.unlink()


def test_nothing_of_others_is_replaced(ask: Ask) -> None:
    folder, _ = ask()
    theirs = folder / "01-the-red-star" / "export" / "coco.json"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    before = files(folder)
    with pytest.raises(UserError, match=r"coco\.json: is not of the answer that is replaced; move it away"):
        ask("coco")
    assert files(folder) == before
    shutil.rmtree(theirs.parent)
    ask("csv")
    theirs.write_text("mine")
    before = files(folder)
    with pytest.raises(UserError, match=r"coco\.json: is not of the answer that is replaced"):
        ask("coco", "ytvis")
    assert files(folder) == before


def test_a_range_keeps_its_places(ask: Ask) -> None:
    folder, _ = ask("davis", "mots", "csv", frames="2:4")
    own = names(folder, "01-the-red-star")
    assert {name for name in own if name.startswith("export/davis")} == {
        "export/davis/f002.png",
        "export/davis/f003.png",
    }
    lines = (folder / "01-the-red-star" / "export" / "mots.txt").read_text().splitlines()
    assert {line.split()[0] for line in lines} <= {"2", "3"}


def test_stopped_halfway_the_answer_is_whole(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> list[Path]:
        raise UserError("no room")

    monkeypatch.setattr(segment, "write", broken)
    with pytest.raises(UserError, match="no room"):
        ask("coco")
    monkeypatch.undo()
    folder, new = ask("coco")
    assert new == 0
    assert "export/coco.json" in names(folder, "01-the-red-star")
    assert not list(folder.glob(".dshmp*"))


@pytest.mark.parametrize("name", ["../../mine", "/mine", "a/../../../mine", ".hidden", ""])
def test_a_result_that_lists_files_elsewhere_is_none_of_ours(name: str, ask: Ask, tmp_path: Path) -> None:
    """What is listed is removed, so it must lie in the answer's folder."""
    folder, _ = ask("coco")
    document = json.loads((folder / "result.json").read_text())
    document["results"][0]["exports"]["coco"] = [name]
    (folder / "result.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="is not a result of dshmp"):
        ask("coco", overwrite=True)


@pytest.mark.parametrize("command", ["segment", "batch"])
def test_a_wrong_name_is_told_before_anything(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text("video,expression\nnone.mp4,a dog\n")
    given = ["none.mp4", "a dog"] if command == "segment" else [str(tmp_path / "list.csv")]
    monkeypatch.setattr(segment, "load", lambda _: pytest.fail("the model was loaded"))
    words = [command, *given, "--export", "coco,kitti", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["dshmp", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    told = capsys.readouterr().err.splitlines()
    known = "coco, ytvis, yolo, cvat, labelstudio, mots, davis, alpha, csv"
    assert told == [f"dshmp: 'kitti' is no format that is written here; choose from {known}"]
    assert not (tmp_path / "out").exists()


def test_batch_writes_them_too(monkeypatch: pytest.MonkeyPatch, segmenter: Segmenter, tmp_path: Path) -> None:
    write_frames(tmp_path / "clip", LENGTH, *SIZE)
    (tmp_path / "list.csv").write_text("video,expression\nclip,the red star\n")
    monkeypatch.setattr(segment, "load", lambda _: segmenter)
    words = ["batch", tmp_path / "list.csv", "--out", tmp_path / "out", "--export", "coco, csv", "--no-overlay"]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["dshmp", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code
    (answer,) = json.loads((tmp_path / "out" / "clip" / "result.json").read_text())["results"]
    assert answer["exports"] == {"coco": ["coco.json"], "csv": ["csv/objects.csv", "csv/objects.json"]}
