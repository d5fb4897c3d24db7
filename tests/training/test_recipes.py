"""Recipes by name: those that ship with the package, and how a name is told from a file."""

import os
import sys
from pathlib import Path

import pytest

import tiny
from dshmp import cli
from dshmp.ablation import page as ablation
from dshmp.common.errors import UserError
from dshmp.recipes import FOLDER, find_folder, find_recipe, recipe_name, recipe_names
from dshmp.training import train
from dshmp.training.recipe import load_recipe


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["mevis", "mevis.yaml", "paper/mevis", "paper/mevis.yaml", Path("paper/mevis")])
def test_a_packaged_recipe_has_a_name(name: str | Path) -> None:
    assert find_recipe(name) == FOLDER / "paper" / "mevis.yaml"


def test_every_packaged_recipe_has_one_name_and_the_paper_comes_first() -> None:
    names = recipe_names()
    assert set(names.values()) == set(FOLDER.glob("**/*.yaml"))
    assert all(find_recipe(name) == path and recipe_name(path) == name for name, path in names.items())
    assert find_recipe("ours/mevis") == FOLDER / "ours" / "mevis.yaml"
    assert next(iter(names)).startswith("paper/")
    assert find_recipe("motion").stem == "motion"


def test_a_file_is_taken_before_a_name(tmp_path: Path) -> None:
    (tmp_path / "mevis").mkdir()  # a folder is no recipe
    assert find_recipe("mevis") == FOLDER / "paper" / "mevis.yaml"
    (tmp_path / "mevis.yaml").write_text("steps: 3\n")
    assert find_recipe("mevis.yaml") == Path("mevis.yaml")
    assert find_recipe("mevis") == FOLDER / "paper" / "mevis.yaml"
    assert find_recipe(tmp_path / "none.yaml") == tmp_path / "none.yaml"
    os.mkfifo(tmp_path / "pipe")
    assert find_recipe("pipe") == Path("pipe")  # the reader refuses it
    assert recipe_name(Path("mevis.yaml")) == "mevis.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mevi", "the nearest packaged ones are paper/mevis"),
        ("paper/mevs.yaml", "the nearest packaged ones are paper/mevis"),
        ("configs/paper/mevis.yaml", "paper/mevis"),
        ("stage_1", "ablations/stages_1"),
        ("xyzzy", "`dshmp configs` lists the packaged ones"),
        ("../paper/mevis", "paper/mevis"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        find_recipe(name)
    text = str(caught.value)
    assert text.startswith(f"{name}: no such recipe")
    assert hint in text
    assert "\n" not in text


def test_folders_by_name(tmp_path: Path) -> None:
    assert find_folder("ablations") == FOLDER / "ablations"
    assert find_folder("nowhere") == Path("nowhere")
    (tmp_path / "ablations").mkdir()
    assert find_folder("ablations") == Path("ablations")


def test_a_base_may_be_packaged(tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path / "mine.yaml", {"base": "paper/mevis", "steps": 20_000})
    assert load_recipe(path).steps == 20_000
    assert load_recipe(path).text_encoder == "roberta-base"
    tiny.write_recipe(tmp_path / "mine.yaml", {"base": "mevis.yaml"})  # with its suffix it is a file beside it
    with pytest.raises(UserError, match=r"mevis\.yaml: cannot be read as a recipe \(No such file"):
        load_recipe(path)


def test_train_takes_a_name(tmp_path: Path) -> None:
    """The recipe is found; its data set is not."""
    with pytest.raises(UserError, match=r"data/mevis/train: no such data set split"):
        train.run("mevis", [], tmp_path / "run", "cpu")


def test_ablate_takes_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is finished"):
        ablation.run("full", [], tmp_path / "out", rows="ablations", tables="2d", page_only=True)


def call(*arguments: str) -> int | str | None:
    sys.argv = ["dshmp", *arguments]
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


@pytest.mark.slow
def test_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("COLUMNS", "200")
    assert not call("configs")
    assert " paper/mevis_release " in capsys.readouterr().out
    assert not call("configs", "ours")
    listed = capsys.readouterr().out
    assert " mevis " in listed
    assert "mevis_release" not in listed
    assert call("train", "mevsi") == 2
    assert capsys.readouterr().err.startswith("dshmp: mevsi: no such recipe")
    assert call("ablate", "full", "--rows", "ablatoins") == 2
    assert "ablatoins: no such folder of rows" in capsys.readouterr().err
