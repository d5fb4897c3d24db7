"""The package as others install and import it."""

import re
import subprocess
import sys
import tomllib
from importlib import resources
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dshmp

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PUBLIC = ["DsHmp", "ModelConfig", "ObjectResult", "Result", "Segmenter", "UserError", "load_model"]
HEAVY = {"torch", "transformers", "spacy", "av", "cv2", "scipy", "numpy"}


def dependency_tree(requirements: list[str]) -> set[str]:
    """Names of everything that the requirements bring along on this machine, extras that are asked for included."""
    names: set[str] = set()
    done: set[str] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        extras = requirement.extras or {""}
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        key = f"{canonicalize_name(requirement.name)}{sorted(extras)}"
        if key in done:
            continue
        done.add(key)
        names.add(canonicalize_name(requirement.name))
        try:
            found = distribution(requirement.name).requires or []
        except PackageNotFoundError:
            continue
        for text in found:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                child.marker = None
                todo.append(child)
    return names


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running `code`."""
    report = "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_torchvision_is_not_in_the_dependency_tree():
    tree = dependency_tree([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
    assert {"torch", "transformers", "spacy", "filelock"} <= tree  # the walk goes all the way down
    assert not {"torchvision", "torchaudio", "timm"} & tree


def test_constraints_pin_every_direct_dependency():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[^*+,]+", str(pin.specifier)) and pin.url is None for pin in pins)
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert not [name for name in versions if name.startswith(("nvidia", "cuda", "torchvision", "triton"))]
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    for text in [*PROJECT["dependencies"], *extras]:
        wanted = Requirement(text)
        assert versions[canonicalize_name(wanted.name)] in wanted.specifier


def test_the_package_says_that_it_is_typed():
    assert resources.files("dshmp").joinpath("py.typed").is_file()


def test_version_is_that_of_the_changelog():
    versions = re.findall(r"^## \[([0-9.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == dshmp.__version__


def test_public_names():
    assert sorted(dshmp.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(dshmp))
    for name in PUBLIC:
        assert getattr(dshmp, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = dshmp.Segmentor


def test_import_is_instant():
    assert not modules_after("import dshmp") & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        *[[name, "--help"] for name in ("segment", "batch", "demo", "train", "evaluate", "world")],
        ["world", "make", "--help"],
    ],
    ids=" ".join,
)
def test_help_and_version_answer_without_heavy_imports(arguments: list[str]):
    code = f"import sys\nsys.argv = {['dshmp', *arguments]!r}\nfrom dshmp.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    assert not modules_after(code) & HEAVY


def test_version_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "dshmp.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"dshmp {dshmp.__version__}\n"


@pytest.mark.parametrize("command", ["segment", "batch", "demo", "train", "evaluate", "world make"])
def test_help_gives_an_example(command: str):
    done = subprocess.run(
        [sys.executable, "-m", "dshmp.cli", *command.split(), "--help"], capture_output=True, text=True, check=True
    )
    assert f"Example: dshmp {command} " in done.stdout
