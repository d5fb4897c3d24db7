"""Access to the reference inputs and outputs, where a checkout has them beside it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(os.environ.get("DSHMP_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden"))


def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and description of one golden case; the calling test is skipped where the folder is absent."""
    if not (FOLDER / f"{name}.npz").exists():
        pytest.skip(f"reference arrays {name} are not beside this checkout")
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads((FOLDER / f"{name}.json").read_text())


def meaning(info: dict[str, Any], name: str) -> str:
    """What the description says of an array."""
    return str(next(entry["meaning"] for entry in info["arrays"] if entry["name"] == name))
