"""The package as others install and import it."""

import ast
import graphlib
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
PUBLIC = [
    "DsHmp",
    "EncodedVideo",
    "FrameObject",
    "FrameResult",
    "ModelConfig",
    "ObjectResult",
    "Result",
    "Segmenter",
    "UserError",
]
PUBLIC += ["load_model", "load_results"]
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


def fresh(code: str) -> tuple[str, set[str]]:
    """What a fresh interpreter prints for `code`, and the top-level modules it has loaded then."""
    report = "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    *lines, modules = done.stdout.splitlines()
    return "\n".join(lines), set(modules.split())


def command_line(arguments: str) -> tuple[str, set[str]]:
    """The same for the command `dshmp ARGUMENTS`."""
    code = f"import sys\nsys.argv = {['dshmp', *arguments.split()]!r}\nfrom dshmp.cli import main\n"
    return fresh(code + "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code")


def test_torchvision_is_not_in_the_dependency_tree():
    tree = dependency_tree(
        [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"], *PROJECT["optional-dependencies"]["docs"]]
    )
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
    _, modules = fresh("import dshmp")
    assert not modules & HEAVY


def test_data_sets_need_no_model():
    code = "import dshmp.data.registry, dshmp.data.transforms, sys\n"
    text, _ = fresh(code + "print(*sorted(name for name in sys.modules if name.startswith('dshmp.')))")
    forbidden = ("dshmp.model", "dshmp.video.overlay", "dshmp.evaluation", "dshmp.training", "dshmp.interop")
    assert not [name for name in text.split() if name.startswith(forbidden)]


def test_version_is_printed_without_heavy_imports():
    text, modules = command_line("--version")
    assert text == f"dshmp {dshmp.__version__}"
    assert not modules & HEAVY


COMMAND_NAMES = [
    *("segment", "batch", "demo", "train", "evaluate", "predict", "submission", "score", "convert"),
    *("export", "serve", "synthetic make", "data check", "data mini"),
]


@pytest.mark.parametrize("command", COMMAND_NAMES)
def test_help_gives_an_example_without_heavy_imports(command: str):
    text, modules = command_line(f"{command} --help")
    assert f"Example: dshmp {command} " in text
    assert not modules & HEAVY


def test_make_targets_of_the_documents_exist():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test", "lint", "types"} <= named
    assert named <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_modules_import_each_other_in_one_direction() -> None:
    """Imports inside of functions and for types alone count, too."""
    above: dict[str, set[str]] = {}
    source = Path(dshmp.__file__).parent
    modules = {".".join(path.relative_to(source.parent).with_suffix("").parts): path for path in source.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    for name, path in modules.items():
        found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        named = {f"{node.module}.{each.name}": str(node.module) for node in found for each in node.names}
        above[name] = {full if full in modules else short for full, short in named.items()} & (
            modules.keys() - {"dshmp"}
        )
    tuple(graphlib.TopologicalSorter(above).static_order())  # a circle is an error
