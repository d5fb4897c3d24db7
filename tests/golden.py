"""Access to the reference inputs and outputs, where a checkout has them beside it."""

import json
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "golden"


def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and description of one golden case; the calling test is skipped where the folder is absent."""
    if not (FOLDER / f"{name}.npz").exists():
        pytest.skip(f"reference arrays {name} are not beside this checkout")
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads((FOLDER / f"{name}.json").read_text())
