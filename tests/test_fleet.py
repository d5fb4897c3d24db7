"""Lists of videos on Ray, and answers at URLs."""

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest

from clips import write_clip
from dshmp import cli, fleet, remote
from dshmp.common.errors import UserError
from dshmp.common.options import Options
from dshmp.inference.segment import load
from dshmp.results.answer import RESULTS
from dshmp.results.folder import MASKS

SENTENCES = ("the one that moves right", "the red rectangle that keeps still")


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    """The command sets its log up for a process of its own."""
    log = logging.getLogger("dshmp")
    before = log.level, log.handlers, log.propagate
    yield
    log.setLevel(before[0])
    log.handlers, log.propagate = before[1:]


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A place in fsspec's memory, empty in the end."""
    yield f"memory://{request.node.name}"
    fsspec.filesystem("memory").store.clear()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def content_at(url: str) -> dict[str, bytes]:
    files, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def write_list(folder: Path, count: int, sentences: Sequence[str] = SENTENCES) -> Path:
    rows = ["video,expression"]
    for number in range(count):
        write_clip(folder / f"{number:02d}.mp4", 4 + number % 5, 64, 96)
        rows += [f"{number:02d}.mp4,{sentence}" for sentence in sentences]
    (folder / "list.csv").write_text("\n".join(rows))
    return folder / "list.csv"


def batch(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dshmp", "batch", *map(str, arguments), "--quiet"])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# --- Answers at a URL


def test_at_a_url_lies_what_lies_in_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str, url: str
) -> None:
    table = write_list(tmp_path, 2)
    assert batch(monkeypatch, table, "--model", model, "--out", tmp_path / "here") == 0
    assert batch(monkeypatch, table, "--model", model, "--out", url) == 0
    assert f"wrote {url}/00" in capsys.readouterr().out
    assert content_at(url) == content(tmp_path / "here")
    assert len(content_at(url)) == 2 * (1 + 2) + (4 + 5) * 2

    assert batch(monkeypatch, table, "--model", model, "--out", url) == 0
    assert "2 of 2 videos were finished before" in capsys.readouterr().out
    table.write_text(table.read_text() + "\n00.mp4,a cat\n")
    for out in (url, tmp_path / "here"):
        assert batch(monkeypatch, table, "--model", model, "--out", out) == 0
    assert content_at(url) == content(tmp_path / "here")
    assert len(json.loads(content_at(url)[f"00/{RESULTS}"])["results"]) == 3

    assert batch(monkeypatch, table, "--model", model, "--out", url, "--threshold", "0.9") == 2
    assert f"dshmp: {url}/00/0" in capsys.readouterr().err
    for out in (url, tmp_path / "here"):  # fewer frames, no overlay: what only the answer before had goes
        more = ("--threshold", "0.9", "--frames", "0:3", "--no-overlay", "--overwrite")
        assert batch(monkeypatch, table, "--model", model, "--out", out, *more) == 0
    assert content_at(url) == content(tmp_path / "here")
    assert len(content_at(url)) == 2 + 5 * 3


def test_a_stopped_upload_is_done_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str) -> None:
    """Whichever of its steps is the last; at a URL with folders, which may be left empty."""
    video, url = write_clip(tmp_path / "clip.mp4", 4, 64, 96), (tmp_path / "there").as_uri()
    given: dict[str, Any] = {"name": "clip", "load": load}
    options, other = Options(model=model), Options(model=model, threshold=0.9, overwrite=True)
    steps = {name: getattr(remote._Store, name) for name in ("write", "remove")}
    thresholds = dict(zip(SENTENCES, (0.9, None), strict=True))
    stopped = 0
    remote.segment_to_url(video, SENTENCES, (tmp_path / "whole").as_uri(), options=options, **given)
    for last in range(30):
        count = 0

        def stop(self: Any, *arguments: Any, name: str, last: int = last) -> None:
            nonlocal count
            count += 1
            if count > last:
                raise KeyboardInterrupt
            steps[name](self, *arguments)

        for sentences, how in ((SENTENCES, options), (SENTENCES[:1], other)):
            with monkeypatch.context() as patch:
                patch.setattr(remote._Store, "write", lambda *a: stop(*a, name="write"))
                patch.setattr(remote._Store, "remove", lambda *a: stop(*a, name="remove"))
                try:
                    remote.segment_to_url(video, sentences, url, options=how, **given)
                except KeyboardInterrupt:
                    stopped += 1
            known = [json.loads(path.read_bytes()) for path in (tmp_path / "there").rglob(RESULTS)]
            for answer in (answer for document in known for answer in document["results"]):
                folder = tmp_path / "there" / "clip" / answer["folder"]
                assert len(list((folder / MASKS).iterdir())) == 4
            remote.segment_to_url(video, sentences, url, options=how, **given)
            if how is options:
                assert content(tmp_path / "there") == content(tmp_path / "whole")
        document = json.loads((tmp_path / "there" / "clip" / RESULTS).read_bytes())
        assert {each["sentence"]: each["settings"]["threshold"] for each in document["results"]} == thresholds
        assert content(tmp_path / "there" / "clip").keys() == {RESULTS, *remote._files(document["results"])}
        assert not [path for path in (tmp_path / "there").rglob("*") if path.is_dir() and not any(path.iterdir())]
        remote._Store(url).files.rm(str(tmp_path / "there"), recursive=True)
        if count <= last:
            break
    assert stopped > 8


def test_exports_are_added_at_a_url(tmp_path: Path, model: str, url: str) -> None:
    video = write_clip(tmp_path / "clip.mp4", 4, 64, 96)
    given: dict[str, Any] = {"options": Options(model=model), "load": load, "name": "clip"}
    remote.segment_to_url(video, SENTENCES, url, **given)
    before = content_at(url)
    for _ in range(2):
        remote.segment_to_url(video, SENTENCES[:1], url, exports=["mots", "csv"], **given)
        after = content_at(url)
        added = "clip/01-the-one-that-moves-right/export/"
        assert after.keys() - before.keys() == {
            f"{added}{name}" for name in ("mots.txt", "csv/objects.csv", "csv/objects.json")
        }
        assert all(after[name] == before[name] for name in before if not name.endswith(RESULTS))


def test_what_others_have_at_a_url_stays(tmp_path: Path, model: str, url: str) -> None:
    video, files = write_clip(tmp_path / "clip.mp4", 4, 64, 96), fsspec.filesystem("memory")
    files.pipe(f"{url}/clip/01-the-one-that-moves-right/notes.txt", b"mine")
    given: dict[str, Any] = {"options": Options(model=model), "load": load}
    with pytest.raises(UserError, match=r"clip: exists and is not a result of dshmp; choose another --out"):
        remote.segment_to_url(video, SENTENCES, url, name="clip", **given)
    remote.segment_to_url(video, SENTENCES[:1], url, name="new", **given)
    files.pipe(f"{url}/new/02-notes/notes.txt", b"mine")
    remote.segment_to_url(video, SENTENCES, url, name="new", **given)
    tops = {name.split("/")[1] for name in content_at(url) if name.startswith("new/")}
    assert tops == {RESULTS, "01-the-one-that-moves-right", "02-notes", "03-the-red-rectangle-that-keeps-still"}
    files.pipe(f"{url}/odd/{remote.MARKER}", b'["../new/result.json"]')
    with pytest.raises(UserError, match="odd: exists and is not a result"):
        remote.segment_to_url(video, SENTENCES, url, name="odd", **given)
    assert files.exists(f"{url}/new/{RESULTS}")


def test_videos_of_one_name_at_a_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, url: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_clip(tmp_path / name / "clip [1].mp4", 3, 64, 96)
    table = tmp_path / "list.csv"
    for row in ("b/clip [1].mp4,a cat\n", "a/clip [1].mp4,a cat\nb/clip [1].mp4,a cat\n"):
        table.write_text("video,expression\n" + row)
        assert batch(monkeypatch, table, "--model", model, "--out", url) == 0
    documents = {name: json.loads(text) for name, text in content_at(url).items() if name.endswith(RESULTS)}
    assert len(documents) == 2
    assert documents[f"clip [1]/{RESULTS}"]["video"] == str(tmp_path / "b" / "clip [1].mp4")


@pytest.mark.parametrize(
    ("url", "told"),
    [("gs://bucket/folder", "gcsfs"), ("nonsense://bucket", "nonsense"), ("file:///proc/nowhere", "/proc/nowhere")],
)
def test_urls_that_lead_nowhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str, url: str, told: str
) -> None:
    assert batch(monkeypatch, write_list(tmp_path, 1), "--model", model, "--out", url) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("dshmp: ") for line in lines), lines
    assert told in lines[0]


# --- Ray


def test_without_ray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    table = write_list(tmp_path, 1)
    assert batch(monkeypatch, table, "--out", tmp_path / "out", "--ray", "local") == 2
    assert capsys.readouterr().err == "dshmp: --ray needs Ray; pip install 'dshmp[ray]'\n"
    assert batch(monkeypatch, table, "--out", tmp_path / "out", "--workers", "2") == 2
    assert "--workers needs --ray" in capsys.readouterr().err


def test_room_on_a_cluster() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    assert fleet._needs(nodes[:1], "auto", 4) == {"CPU": 4}
    assert fleet._needs(nodes, "cpu", 4) == {"CPU": 4}
    assert fleet._room(nodes, {"CPU": 4}) == 6
    assert fleet._room(nodes, {"CPU": 9}) == 1
    assert fleet._room(nodes, fleet._needs(nodes, "auto", 4)) == 2
    assert fleet._room(nodes[:1], fleet._needs(nodes[:1], "cuda", 4)) == 0


def run(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "dshmp", "batch", *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, **pipes)


def at_work(mark: str) -> list[int]:
    """Workers of Ray that answer a video and have `mark` in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            titled = process.joinpath("cmdline").read_bytes().startswith(b"ray::Worker.answer")
            if titled and mark.encode() in process.joinpath("environ").read_bytes():
                found.append(int(process.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_fleet_survives_kills_and_gives_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    table = write_list(tmp_path, 20)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    table.write_text(table.read_text() + "\nbroken.mp4,a cat\n")
    mark = f"fleet-{random.getrandbits(64):x}"
    out = tmp_path / "fleet"
    process = run(table, "--out", out, "--ray", "local", "--workers", 2, "--json", DSHMP_TEST=mark)
    killed: set[int] = set()
    deadline = time.monotonic() + 240
    while len(killed) < 2 and process.poll() is None and time.monotonic() < deadline:
        halves = [path for path in out.glob(".dshmp-*.partial") if any(path.rglob("*.png"))]
        if halves and (found := set(at_work(mark)) - killed):  # something is half-written
            os.kill(victim := found.pop(), signal.SIGKILL)
            killed.add(victim)
            time.sleep(1)
    told, complaints = process.communicate(timeout=300)
    assert len(killed) == 2, complaints
    assert process.returncode == 2, complaints
    assert complaints.count("its worker died") == 2
    errors = [line for line in complaints.splitlines() if line.startswith("dshmp: ") and "warning" not in line]
    assert "broken.mp4: not a video of a kind that can be read" in errors[0]
    assert errors[1:] == ["dshmp: 1 of 21 videos failed; see above"]
    answers = [json.loads(line) for line in told.splitlines()]
    assert sorted(Path(each["folder"]).name for each in answers) == [f"{number:02d}" for number in range(20)]

    plain = run(table, "--out", tmp_path / "plain")
    assert plain.communicate(timeout=300)
    assert plain.returncode == 2
    assert content(out) == content(tmp_path / "plain")  # and no scratch folder
    assert len(content(out)) == 20 * 3 + 2 * sum(4 + number % 5 for number in range(20))

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob(RESULTS)}
    (out / "07" / RESULTS).unlink()
    (out / "07").rename(tmp_path / "07")
    again = run(table, "--out", out, "--ray", "local", "--workers", 2)
    assert "19 of 21 videos were finished before" in again.communicate(timeout=300)[0]
    assert [path.parent.name for path, time in stamps.items() if path.stat().st_mtime_ns != time] == ["07"]
    assert content(out) == content(tmp_path / "plain")


@pytest.mark.slow
def test_a_fleet_fills_a_url(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    """In this process, so that what Ray changes in it is seen."""
    pytest.importorskip("ray")
    table = write_list(tmp_path, 3, SENTENCES[:1])
    assert batch(monkeypatch, table, "--model", model, "--out", tmp_path / "plain") == 0
    capsys.readouterr()
    arguments = (table, "--model", model, "--out", (tmp_path / "there").as_uri(), "--ray", "local", "--workers", 1)
    assert batch(monkeypatch, *arguments) == 0
    assert capsys.readouterr().err == ""
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert content(tmp_path / "there") == content(tmp_path / "plain")
    assert batch(monkeypatch, table, "--ray", "ray://127.0.0.1:1", "--out", tmp_path / "plain") == 2
    assert "--ray ray://127.0.0.1:1: no Ray cluster is there" in capsys.readouterr().err
