"""`dshmp segment --live`: masks and lines as they come, from files and pipes, until the end or Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clips import transport_stream, write_clip
from dshmp import cli
from dshmp.common.errors import UserError
from dshmp.common.rle import decode
from dshmp.inference.live import live_folder, parse_source
from dshmp.inference.segmenter import Segmenter

SENTENCES = ("the one that turns back", "a cat")
COMMAND = [sys.executable, "-c", "from dshmp.cli import main; main()", "segment"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dshmp", "segment", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    video, out = write_clip(tmp_path / "clip.mp4", 10), tmp_path / "out"
    run = (video, *SENTENCES, "--live", "--model", model, "--out", out, "--window", 6, "--overlap", 2)
    assert call(monkeypatch, *run) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert captured.err.splitlines()[1:] == [f"wrote {out / 'clip'}"]
    assert captured.err.startswith("dshmp: warning: 'a cat': 'cat' cannot be told here")
    assert [line["frame"] for line in lines] == list(range(10))
    assert lines[5]["time"] == 0.2
    assert [result["expression"] for result in lines[0]["results"]] == list(SENTENCES)
    batch = Segmenter.from_pretrained(model, "cpu")(video, SENTENCES, frames="0:6")
    for line in lines[:6]:
        for own, result in zip(line["results"], batch, strict=True):
            mask = np.asarray(Image.open(own["mask"]))
            assert (mask == result.mask(line["frame"]) * 255).all()
            assert own["score"] == round(result.score, 6)
            rles = [each["rle"] for each in own["objects"]]
            assert (decode(rles).any(0) == (mask > 0)).all()
            assert [each["id"] for each in own["objects"]] == [1, 2, 3, 4]
    assert len(list(out.rglob("*.png"))) == 20
    assert not list(out.rglob(".*"))
    assert call(monkeypatch, *run) == 2
    assert "clip: holds something already, and a stream goes to a new folder; choose another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--live", "--frames", "1:2"], "--frames: not with --live"),
        (["--live", "--tracks", "tracks.json"], "--tracks: not with --live"),
        (["--live", "--all-objects"], "--all-objects: not with --live"),
        (["--live", "--overwrite"], "--overwrite: not with --live"),
        (["--live", "--window", "1"], "a window of 1 frames"),
        (["--live", "--overlap", "wide"], "overlap must be a number of frames, or of seconds such as 2s, not 'wide'"),
        (["--live", "--set", "candidates.hold=3"], "candidates.hold=3: needs --candidates"),
        (["--window", "8"], "--window, --overlap and --memory are of --live"),
    ],
)
def test_wrong_options(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model: str,
    options: list[str],
    message: str,
) -> None:
    video = write_clip(tmp_path / "clip.mp4", 3)
    assert call(monkeypatch, video, "a cat", "--model", model, "--out", tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dshmp: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_source("0") == 0
    Path("0").touch()
    assert parse_source("0") == "0"
    assert parse_source("-") == "-"
    names = {
        0: "camera-0",
        "-": "stdin",
        "videos/clip.mp4": "clip",
        "rtsp://me:secret@camera.local:554/front door?key=1": "camera.local-554-front-door",
        "http://host/../x": "host-..-x",
    }
    for source, name in names.items():
        assert live_folder(source, tmp_path / "out").name == name
    (tmp_path / "out" / "stdin").mkdir(parents=True)
    (tmp_path / "out" / "stdin" / "note").touch()
    with pytest.raises(UserError, match="stdin: holds something already"):
        live_folder("-", tmp_path / "out")
    assert (tmp_path / "out" / "stdin" / "note").exists()


@pytest.mark.slow
def test_stdin_until_ctrl_c(tmp_path: Path, model: str) -> None:
    environment: dict[str, str] = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "-", "a cat", "--live", "--window=4", "--model", model, "--out", str(tmp_path / "out")]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(transport_stream(60))
        process.stdin.flush()  # and stays open, as that of a camera
        line = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert line["frame"] == 0
    assert Path(line["results"][0]["mask"]).is_file()
    assert process.returncode == 130
    assert told.decode().splitlines()[1:] == ["dshmp: interrupted"]
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
def test_stdin_to_its_end(tmp_path: Path, model: str) -> None:
    command = [*COMMAND, "-", "a cat", "--live", "--model", model, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, input=transport_stream(20), capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 20
    broken = subprocess.run([*command[:-1], str(tmp_path / "two")], input=b"no video" * 100, capture_output=True)
    assert broken.returncode == 2
    assert broken.stderr.startswith(b"dshmp: stdin: no video that can be read from a pipe")
    assert not (tmp_path / "two").exists()
