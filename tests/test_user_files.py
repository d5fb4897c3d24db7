"""No command removes, replaces or overwrites a file that it did not write, whatever place it is told to write to."""

import sys
from pathlib import Path

import pytest

from clips import tiny_model, write_clip
from dshmp import cli
from dshmp.checkpoint import save_model
from dshmp.common.options import Options
from dshmp.data.mini import make_mini
from dshmp.data.registry import dataset
from dshmp.evaluation.predict import run as predict

MINE = (
    *(
        "look-alikes.mp4",
        "contact-sheet.png",
        "results.json",
        "videos.csv",
        "expressions.csv",
        "README.md",
        "notes.txt",
    ),
    *(
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "synthetic.json",
    ),
    *(
        "synthetic.json",
        "predict.json",
        "predictions.json",
        "mini.json",
        "mine.zip",
        "deep.zip",
        "pred.zip",
        "out.pth",
        "result.json",
    ),
    *("model/config.json", "model/README.md", "checkpoints/step-00000001.safetensors", "pictures/strips.png"),
    *("clip/0001.jpg", "clip/notes.txt", "look-alikes/notes.txt", "train/JPEGImages/v/00000.jpg", "runs/full-0/a"),
    *("predictions/notes.txt", ".partial/a", "deep.partial/a", "mine.partial/a", ".0.partial/a", "x.partial"),
    *("notes.txt", "deep/notes.txt", "cache/a", "parts/a.json", ".predict.json.abc.partial", "valid_u/mask_dict.json"),
)
"""Files of a user's, with all the names that commands write."""
PLACES = {
    "the folder itself": ".",
    "the folder above": "..",
    "above one that is not there": "nope/..",
    "beside one that is not there": "nope/../deep",
    "a link": "../link",
    "a file": "notes.txt",
    "home": "~",
    "a folder in it": "deep",
    "a folder of the video's name": "clip",
}

Ours = dict[str, str]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Ours:
    """What commands read: a video, a model, a data set and its predictions."""
    home = tmp_path_factory.mktemp("ours")
    make_mini("mevis", dataset("mevis").mini, home / "mevis")
    save_model(*tiny_model(), home / "model")
    write_clip(home / "clip.mp4", 3)
    (home / "list.csv").write_text("video,expression\nclip.mp4,a cat\n")
    options = Options(model=str(home / "model"), device="cpu")
    predict("mevis", home / "mevis", "valid_u", home / "pred", options, zipped=False)
    return {name: str(home / name) for name in ("mevis", "model", "clip.mp4", "list.csv", "pred")}


def commands(ours: Ours, place: str) -> dict[str, list[str]]:
    """Every command that writes, told to write to `place`."""
    model, mevis = ["--model", ours["model"], "--device", "cpu"], ["mevis", ours["mevis"], "--split", "valid_u"]
    data = f"data.mevis.root={ours['mevis']}"
    return {
        "segment": ["segment", ours["clip.mp4"], "a cat", *model, "--out", place],
        "segment anew": ["segment", ours["clip.mp4"], "a cat", *model, "--out", place, "--overwrite"],
        "batch": ["batch", ours["list.csv"], *model, "--out", place],
        "demo": ["demo", *model, "--out", place],
        "train": ["train", "perception", data, "--out", place],
        "ablate": ["ablate", "synthetic/ablation", data, "--page-only", "--out", place],
        "evaluate": ["evaluate", *mevis, *model, "--out", place],
        "predict": ["predict", *mevis, *model, "--out", place],
        "predict anew": ["predict", *mevis, *model, "--out", place, "--overwrite"],
        "predict zip": ["predict", *mevis, *model, "--out", f"{place}/new", "--zip", f"{place}/pred.zip"],
        "score": ["score", *mevis, "--pred", ours["pred"], "--out", place, "--workers", "1"],
        "submission": ["submission", "mevis", ours["mevis"], place, "--split", "valid_u"],
        "convert": ["convert", ours["model"], place, "--overwrite"],
        "convert back": ["convert", ours["model"], place, "--to-release", "--overwrite"],
        "convert back to a file": ["convert", ours["model"], f"{place}/out.pth", "--to-release", "--overwrite"],
        "synthetic make": ["synthetic", "make", place, "--train", "1", "--valid", "1", "--test", "0", "--workers", "1"],
        "data mini": ["data", "mini", "jhmdb", place],
    }


NAMES = list(commands({name: name for name in ("mevis", "model", "clip.mp4", "list.csv", "pred")}, ""))


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, in which the command is run and which is the home folder too."""
    folder = tmp_path / "above" / "mine"
    for number, name in enumerate(MINE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine {number}")
    (folder.parent / "link").symlink_to("mine")
    (folder.parent / "above.zip").write_text("mine")
    (tmp_path / "above.zip").write_text("mine")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def call(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["dshmp", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.slow
@pytest.mark.parametrize("command", NAMES)
def test_a_users_files_stay(
    command: str,
    ours: Ours,
    mine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for place in PLACES.values():
        before = files(tmp_path)
        place = place if place != "~" else str(mine)
        code = call(monkeypatch, commands(ours, place)[command])
        after = files(tmp_path)
        assert {name: after.get(name) for name in before} == before, (command, place)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dshmp: ")]
        if code:
            assert code == 2 or command == "submission", (command, place, lines)
            assert after == before, (command, place)
            assert any(lines) or code == 1, (command, place)
        else:  # what was written beside the user's files goes, so that every place is tried alike
            assert after != before or command == "submission", (command, place)
        for name in after.keys() - before.keys():
            (tmp_path / name).unlink()
        for folder in sorted((p for p in tmp_path.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
