"""Names that are not UTF-8: every command works with them, or says at once that it cannot; and JSON on stdout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from clips import write_clip
from dshmp.checkpoint import save_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
ODD = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model beside a folder of such a name, with a data set and a video."""
    root = tmp_path_factory.mktemp("names")
    save_model(tiny.model(), tiny.tokenizer(), root / "model")
    (root / ODD).mkdir()
    clip = write_clip(root / "clip.mp4", 3)
    shutil.copy(clip, root / ODD / f"{ODD}.mp4")
    dshmp(root, "data", "mini", "mevis", f"{ODD}/mini")
    return root


def dshmp(root: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What the real command says on stdout and stderr."""
    command = [sys.executable, "-m", "dshmp", *arguments]
    run = subprocess.run([*map(os.fsencode, command)], capture_output=True, cwd=root)
    assert run.returncode == code, run.stderr.decode()
    return run.stdout.decode(), run.stderr.decode()


@pytest.mark.slow
def test_scores(place: Path) -> None:
    data = ("mevis", f"{ODD}/mini", "--split", "valid_u")
    said, told = dshmp(place, "predict", *data, "--model", "model", "--out", f"{ODD}/a", "--json")
    assert "wrote" in told
    facts = json.loads((place / ODD / "a" / "predict.json").read_text(encoding="utf-8"))
    assert json.loads(said) == {"folder": f"{ODD}/a", **facts}
    said, told = dshmp(place, "score", *data, "--pred", f"{ODD}/a", "--out", f"{ODD}/scores", "--json")
    assert "J&F" in told
    results = json.loads((place / ODD / "scores" / "results.json").read_text(encoding="utf-8"))
    assert json.loads(said) == results
    assert results["predictions"] == f"{ODD}/a"
    compared = ("--compare", f"{ODD}/scores/results.json")
    said, _ = dshmp(place, "evaluate", *data, "--model", "model", "--out", f"{ODD}/b", *compared, "--json")
    assert json.loads(said)["figures"] == results["figures"]
    assert {path.name for path in (place / ODD / "b").iterdir()} >= {"results.json", "expressions.csv", "videos.csv"}
    dshmp(place, "submission", "mevis", f"{ODD}/mini", f"{ODD}/a.zip", "--split", "valid_u")
    dshmp(place, "data", "check", "mevis", f"{ODD}/mini")


@pytest.mark.slow
def test_answers(place: Path) -> None:
    where = ("--model", "model", "--out", f"{ODD}/results")
    said, _ = dshmp(place, "segment", f"{ODD}/{ODD}.mp4", "a cat", *where, "--json")
    document = json.loads((place / ODD / "results" / "caf_" / "result.json").read_text(encoding="utf-8"))
    assert document["video"] == str((place / ODD / f"{ODD}.mp4").resolve())
    assert json.loads(said)["results"][0]["rle"] == document["results"][0]["rle"]
    rows = [{"video": f"{ODD}.mp4", "expression": text} for text in ("a cat", "a dog")]
    (place / ODD / "list.json").write_text(json.dumps(rows))
    _, told = dshmp(place, "batch", f"{ODD}/list.json", *where)
    assert "caf\\udce9.mp4 masks" in told
    _, told = dshmp(place, "batch", f"{ODD}/list.json", *where)
    assert "Traceback" not in told
    dshmp(place, "synthetic", "make", f"{ODD}/synthetic", "--train", "1", "--valid", "1", "--test", "0")


@pytest.mark.slow
def test_weights_lie_in_no_such_place(place: Path) -> None:
    shutil.copytree(place / "model", place / ODD / "model", dirs_exist_ok=True)
    for arguments in (
        ("segment", f"{ODD}/{ODD}.mp4", "a cat", "--model", f"{ODD}/model"),
        ("train", "--init", "model", "data.mevis.root=mini", "--out", f"{ODD}/run"),
        ("convert", "a.pth", f"{ODD}/converted"),
    ):
        _, told = dshmp(place, *arguments, code=2)
        assert "this name is not UTF-8, and weights can lie in no such place; rename it" in told
        assert len(told.strip().splitlines()) == 1
    assert not (place / ODD / "run").exists()
