"""The overfitting check: from random weights, through the real commands, four clips are learned by heart.

What cannot learn four clips cannot learn four thousand: a loss, a gradient or a target is wrong somewhere.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = "overfit"
CLIPS = ("--train", "4", "--valid", "0", "--test", "0", "--family", "close", "--version", "1", "--workers", "1")


def dshmp(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "dshmp", *map(str, arguments)], check=True)


@pytest.mark.long
@pytest.mark.slow
def test_four_clips_are_learned_by_heart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    synthetic, run, scores = tmp_path / "synthetic", tmp_path / "run", tmp_path / "scores"
    with capfd.disabled():  # ten minutes without a sign of life would be long
        dshmp("synthetic", "make", synthetic, *CLIPS)
        started = time.monotonic()
        dshmp("train", RECIPE, f"data.mevis.root={synthetic}", "--out", run, "--device", "cpu")
        print(f"\ntrained in {time.monotonic() - started:.0f} s")
        dshmp("evaluate", "mevis", synthetic, "--split", "train", "--model", run, "--out", scores, "--device", "cpu")
    assert json.loads((scores / "results.json").read_text())["figures"]["J&F"] > 95
