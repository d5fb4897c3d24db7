"""The recipes that ship with the package, by name: `mevis`, `paper/mevis`, `paper/mevis.yaml`.

Without its folder, a name is looked up in one folder after the other (`FOLDERS`).
"""

import difflib
from pathlib import Path

from dshmp.common.errors import UserError

FOLDER = Path(__file__).resolve().parent
FOLDERS = ("paper", "ours", "ablations", "synthetic")
"""In the order in which they are searched."""


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: one that exists is taken as it is, else it is the name of a packaged one. Raises UserError,
    which tells the nearest names, where it is neither."""
    path = Path(name)
    if path.is_absolute() or (path.exists() and not path.is_dir()):
        return path
    wanted, named = path.as_posix().removesuffix(".yaml"), recipe_names()
    for known, file in named.items():
        if wanted in (known, file.stem):
            return file
    if path.is_dir():
        return path
    near = difflib.get_close_matches(wanted, named, 3)
    near += [name for name in named if difflib.get_close_matches(wanted, [Path(name).name], 1) and name not in near]
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
    files = [file for folder in FOLDERS for file in sorted((FOLDER / folder).glob("*.yaml"))]
    return {f"{file.parent.name}/{file.stem}": file for file in files}


def recipe_name(path: Path) -> str:
    """A recipe as people name it: a packaged one by folder and name, another by its path."""
    return next((name for name, file in recipe_names().items() if file == path), str(path))
