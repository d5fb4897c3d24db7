"""The release's recorded inputs and outputs: the smaller ones in `tests/reference`, the others beside the checkout, or
all in the folder that DSHMP_REFERENCE names."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SMALL = Path(__file__).parent / "reference"
NAMED = os.environ.get("DSHMP_REFERENCE")
FOLDER = Path(NAMED) if NAMED else Path(__file__).resolve().parents[2] / "shared" / "golden"
"""All of them, where a checkout has them beside it; these are taken first."""


class Recorded(dict[str, Any]):
    """Arrays by name, which remembers those that anybody took."""

    def __init__(self, arrays: Mapping[str, Any], taken: set[str] | None = None, prefix: str = "") -> None:
        super().__init__(arrays)
        self.taken = set() if taken is None else taken
        self.prefix = prefix

    def __getitem__(self, name: str) -> Any:
        self.taken.add(self.prefix + name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401  (which is this)

    def tensors(self, prefix: str = "") -> "Recorded":
        """Those below a prefix, by their own names, as tensors."""
        below = {key[len(prefix) :]: torch.from_numpy(value) for key, value in self.items() if key.startswith(prefix)}
        return Recorded(below, self.taken, self.prefix + prefix)

    def chosen(self, wanted: Callable[[str], bool]) -> dict[str, Any]:
        """Those of the names that are wanted; all of these are taken."""
        return {key: self[key] for key in self if wanted(key)}

    @property
    def left(self) -> list[str]:
        """Names of those that nobody took."""
        return sorted(self.keys() - self.taken)


def load(name: str) -> tuple[Recorded, dict[str, Any]]:
    """Arrays and description of one golden case; the calling test is skipped where there is none."""
    folders = (FOLDER,) if NAMED else (FOLDER, SMALL)
    path = next((path for folder in folders if (path := folder / f"{name}.npz").exists()), None)
    if path is None:
        pytest.skip(f"reference arrays {name} are not beside this checkout")
    with np.load(path, allow_pickle=False) as file:
        arrays = Recorded({key: file[key] for key in file.files})
    return arrays, json.loads(path.with_suffix(".json").read_text())


def meaning(info: dict[str, Any], name: str) -> str:
    """What the description says of an array."""
    return str(next(entry["meaning"] for entry in info["arrays"] if entry["name"] == name))
