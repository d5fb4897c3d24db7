"""The recipes that ship with the package, by name: `mevis`, `paper/mevis`, `paper/mevis.yaml`.

Without its folder, a name is looked up in `paper` first, then `ours`, `ablations` and the others by name.
"""

import difflib
from pathlib import Path

from dshmp.errors import UserError

FOLDER = Path(__file__).resolve().parent
FIRST = ("paper", "ours", "ablations")
"""Folders that are searched before the others."""


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: one that exists is taken as it is, else it is the name of a packaged one.

    Raises:
        UserError: neither; the nearest names are told.
    """
    path = Path(name)
    if path.is_absolute() or (path.exists() and not path.is_dir()):
        return path
    named = recipe_names()
    short = path.with_suffix("") if path.suffix == ".yaml" else path
    for known, file in named.items():
        if short.as_posix() in (known, Path(known).name):
            return file
    if path.is_dir():
        return path
    wanted = short.as_posix()
    near = difflib.get_close_matches(wanted, named, 3)
    near += [known for known in named if difflib.get_close_matches(wanted, [Path(known).name], 1) and known not in near]
    hint = f"the nearest packaged ones are {', '.join(near[:3])}" if near else "`dshmp configs` lists the packaged ones"
    raise UserError(f"{name}: no such recipe, neither a file nor a packaged one; {hint}")


def find_folder(name: str | Path) -> Path:
    """A folder of recipes: one that exists, else a packaged one, such as `ablations`. The name is returned as it is
    where there is neither."""
    path = Path(name)
    packaged = FOLDER / path
    return packaged if not path.is_dir() and packaged.is_dir() else path


def recipe_names() -> dict[str, Path]:
    """Every packaged recipe by folder and name, in the order in which names without a folder are looked up."""

    def order(path: Path) -> tuple[int, Path]:
        folder = path.parent.name
        return FIRST.index(folder) if folder in FIRST else len(FIRST), path

    files = sorted(FOLDER.glob("*/*.yaml"), key=order)
    return {file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in files}


def recipe_name(path: Path) -> str:
    """A recipe as people name it: a packaged one by folder and name, another by its path."""
    return next((name for name, file in recipe_names().items() if file == path), str(path))
