"""Finding the annotations in a mask_dict.json, in any chunks; an index that is never stale or half-written."""

import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dshmp.data import mevis_index
from dshmp.data.mevis_index import find_spans, open_index
from dshmp.errors import UserError
from dshmp.result import encode


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every file counts as large; the folder that the indices are kept in."""
    monkeypatch.setattr(mevis_index, "SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dshmp" / "mask-index"


def write_masks(path: Path, count: int = 40, seed: int = 0) -> dict[str, Any]:
    """Tracks of four frames, the second without the object."""
    rng = np.random.default_rng(seed)
    rles = [encode(np.kron(rng.random((5, 6)) < 0.5, np.ones((4, 3), bool))) for _ in range(7)]
    masks = {str(i): [rles[i % 7], None, rles[i % 5], rles[i % 3]] for i in range(count)}
    path.write_text(json.dumps(masks))
    return masks


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


@given(st.integers(0, 6), st.integers(1, 40), st.sampled_from([None, 1]))
@settings(max_examples=60, deadline=None)
def test_any_chunks(count: int, size: int, indent: int | None) -> None:
    rles = [{"size": [3, 4], "counts": "0\\`[]{}:,12"}, None, {"size": [3, 4], "counts": [5, 7]}, [[0, 1, 2, 3, 4, 5]]]
    masks = {str(i * 999): rles[: i % 5] for i in range(count)}
    data = json.dumps(masks, indent=indent).encode()
    found = {key: data[start:stop].rstrip(b", \n") for key, (start, stop) in find_spans(pieces(data, size)).items()}
    assert {key: json.loads(track) for key, track in found.items()} == masks


@pytest.mark.parametrize("end", range(1, 40))
def test_cut_off_anywhere(end: int) -> None:
    text = b'{"1": [{"size": [3, 4], "counts": "a]}"}]}'
    if not text[:end].endswith(b"]}"):
        with pytest.raises(ValueError, match=f"cut off at {end} bytes"):
            find_spans(pieces(text[:end], 16))


@pytest.mark.parametrize("text", [b"[]", b'"1": []', b'[{"1": []}]'])
def test_no_object(text: bytes) -> None:
    with pytest.raises(ValueError, match="expected a JSON object"):
        find_spans(pieces(text, 16))


@pytest.mark.parametrize("text", ['{"1": [nul]}', '{"1": [] []}', '{"1": {"a": []}, "2": []}', '{"1": [null]] }'])
def test_a_damaged_entry_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "mask_dict.json").write_text(text)
    with pytest.raises(UserError, match=r"mask_dict.json: annotation 1 is no"):
        open_index(tmp_path / "mask_dict.json").track(1)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    write_masks(path, 15_000)
    assert path.stat().st_size > 2_000_000
    tracemalloc.start()
    with open(path, "rb") as file:
        count = len(find_spans(iter(lambda: file.read(2**16), b"")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 15_000
    assert peak < 400 * count  # the spans themselves


def test_second_opening_reads_the_index_only(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask_dict.json"
    masks = write_masks(path)
    first = open_index(path)
    monkeypatch.setattr(mevis_index, "find_spans", pytest.fail)
    second = open_index(path)
    assert second == first
    assert {key: second.track(int(key)) for key in masks} == masks
    assert second.track(999) is None


def test_a_small_file_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "mask_dict.json"
    masks = write_masks(path)
    assert open_index(path).track(3) == masks["3"]
    assert not (tmp_path / "cache").exists()


def test_a_changed_file_is_split_anew(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    write_masks(path)
    old = open_index(path)
    masks = write_masks(path, seed=1)
    changed = path.stat().st_mtime_ns
    os.utime(path, ns=(changed, changed + 1))
    with pytest.raises(UserError, match="changed while it was in use"):
        old.track(0)
    new = open_index(path)
    assert {key: new.track(int(key)) for key in masks} == masks
    assert len(list(cache.iterdir())) == 1  # of one file, the old index is not kept


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1', '{"version": 0}', "\0\0"])
def test_a_broken_or_foreign_index_is_made_anew(content: str, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    masks = write_masks(path)
    open_index(path)
    (kept,) = cache.iterdir()
    good = kept.read_text()
    kept.write_text(content)
    assert open_index(path).track(1) == masks["1"]
    assert kept.read_text() == good


def test_another_format_version_is_made_anew(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask_dict.json"
    write_masks(path)
    open_index(path)
    monkeypatch.setattr(mevis_index, "VERSION", 99)
    open_index(path)
    (kept,) = cache.iterdir()
    assert json.loads(kept.read_text())["stamp"][0] == 99


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mevis_index, "SMALL", 0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = tmp_path / "mask_dict.json"
    masks = write_masks(path)
    assert open_index(path).track(2) == masks["2"]
    assert "can't keep the index" in caplog.text


BUILD = """
import os, signal, sys, time
from pathlib import Path
from dshmp.data import mevis_index

mevis_index.SMALL = 0
path = Path(sys.argv[1])

def build():
    mevis_index._cache_file(path).unlink(missing_ok=True)
    mevis_index.open_index(path)

for seconds in map(float, sys.stdin):
    if seconds:
        child = os.fork()
        while not child:
            build()
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    else:
        build()
    print("done", flush=True)
"""


class Builder:
    """A process that builds the index once, or over and over until it's killed some seconds later."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BUILD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, seconds: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


def test_builds_killed_at_any_moment(cache: Path, tmp_path: Path) -> None:
    """An opening after any of twenty killed builds is as if none had been."""
    path = tmp_path / "mask_dict.json"
    masks = write_masks(path, 4000)
    whole = open_index(path)
    rng = random.Random(0)
    builder = Builder(path)
    for _ in range(20):
        builder.start(rng.uniform(0.001, 0.08))
        builder.wait()
        index = open_index(path)
        assert index == whole
        for key in rng.sample(sorted(masks), 20):
            assert index.track(int(key)) == masks[key]
    builder.end()


def test_two_builds_at_once(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    write_masks(path, 4000)
    builders = [Builder(path) for _ in range(2)]
    for _ in range(15):
        for builder in builders:
            builder.start(0)
        for builder in builders:
            builder.wait()
    for builder in builders:
        builder.end()
    assert [item.suffix for item in cache.iterdir()] == [".json"]
    assert len(open_index(path).spans) == 4000  # from the cache, without reading the file


def test_an_annotation_twice(tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    path.write_text('{"7": [null], "8": [null], "7": []}')
    with pytest.raises(UserError, match="holds annotation '7' twice"):
        open_index(path)
