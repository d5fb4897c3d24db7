"""The release's recorded inputs and outputs: the smaller ones in `tests/reference`, the others beside the checkout."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SMALL = Path(__file__).parent / "reference"
FOLDER = Path(os.environ.get("DSHMP_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden"))
"""All of them, where a checkout has them beside it; these are taken first."""


def load(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and description of one golden case; the calling test is skipped where there is none."""
    path = next((path for folder in (FOLDER, SMALL) if (path := folder / f"{name}.npz").exists()), None)
    if path is None:
        pytest.skip(f"reference arrays {name} are not beside this checkout")
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(path.with_suffix(".json").read_text())


def meaning(info: dict[str, Any], name: str) -> str:
    """What the description says of an array."""
    return str(next(entry["meaning"] for entry in info["arrays"] if entry["name"] == name))
