"""What README and site say is so: commands parse, files exist, the code runs."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import typer.main

import documents
from dshmp.cli import app
from dshmp.recipes import find_recipe

ROOT, PAGES = documents.ROOT, documents.PAGES
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
COMMANDS = sorted({line for text in TEXTS.values() for line in documents.commands(text)})
PLACEHOLDERS = {"RECIPE", "my_recipe.yaml"}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    name, *arguments = shlex.split(line.replace("\n", " "), comments=True)
    if arguments in (["train"], ["evaluate"]) or name != "dshmp":
        return
    name, *arguments = arguments
    command = typer.main.get_command(app)
    while isinstance(command, typer.core.TyperGroup):
        context = command.make_context(name, [name, *arguments])
        found, command, arguments = command.resolve_command(context, [name, *arguments])
        assert found is not None
        if isinstance(command, typer.core.TyperGroup):
            name, *arguments = arguments
    command.make_context(name, arguments)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.split()[1] in ("train", "ablate")])
def test_recipes_have_the_names_that_the_documents_give(line: str) -> None:
    name = shlex.split(line, comments=True)[2]
    if name == "--init":  # which means this one
        name = "finetune"
    assert name in PLACEHOLDERS or find_recipe(name).is_file()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith("api/"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.is_file(), link
        if anchor:
            lines = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in lines}, link


def test_the_map_of_the_paper_names_files() -> None:
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    names = re.findall(r"`(\w+/\w+\.py)`", text)
    assert len(names) > 12
    assert [name for name in names if not (ROOT / "src" / "dshmp" / name).is_file()] == []


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert "docs/demo.png" in "".join(lines)


@pytest.mark.slow
def test_the_examples_of_extend_run(tmp_path: Path) -> None:
    """From top to bottom, in a process of its own: they register a data set."""
    program = tmp_path / "extend.py"
    program.write_text(documents.code(ROOT / "docs" / "extend.md"))
    done = subprocess.run([sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segment", "train"])
def test_the_notebooks_run(name: str, tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    run = "import sys; sys.path.insert(0, 'docs'); from pathlib import Path; import build; build.run_notebook"
    code = f"{run}(Path('docs/notebooks/{name}.ipynb'), Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["segment", "train"])
def test_the_notebooks_hold_no_path_of_a_machine(name: str) -> None:
    text = (ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not re.search(r'"(text|evalue)": \[[^\]]*((?<![\w./])/\w+/|site-packages)', text)
    assert '"stderr"' not in text
    assert '"output_type": "error"' not in text


@pytest.mark.slow
def test_the_wheel_works_without_the_clone(tmp_path: Path) -> None:
    """The wheel alone, in an environment of its own outside the clone: the demo, and a recipe by name.

    The dependencies, several GB, are not downloaded again: the new environment reads those of the environment that runs
    this test, by a path file. So that dshmp comes from the wheel and not from the clone, its editable install is not
    read (path files of a folder that a path file names are not), and the test looks where it was imported from.
    """
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("dshmp-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    recipes = {
        path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "dshmp" / "recipes").glob("*/*.yaml")
    }
    assert recipes <= set(names)
    home = tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-m", "venv", str(home / "venv")], check=True)
    python = home / "venv" / "bin" / "python"
    (packages,) = (home / "venv" / "lib").glob("python3*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"COLUMNS": "200"}

    def call(*words: str) -> str:
        done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(str(python), "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
    assert str(packages) in call(str(python), "-c", "import dshmp; print(dshmp.__file__)")
    dshmp = str(home / "venv" / "bin" / "dshmp")
    assert call(dshmp, "demo", "--out", "demo", "--device", "cpu").count("IoU") == 3
    assert (home / "demo" / "contact-sheet.png").is_file()
    assert "mevis_release" in call(dshmp, "configs", "paper")
    call(dshmp, "data", "mini", "mevis", "mini")
    call(dshmp, "train", "--init", "default", "data.mevis.root=mini", "steps=1", "--out", "run", "--device", "cpu")
    assert (home / "run" / "model" / "model.safetensors").is_file()
