"""Splitting mask_dict.json as json.load does, in any chunks; an index that is never stale or half-written."""

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
from dshmp.data.mevis_index import open_index, split_object
from dshmp.errors import UserError
from dshmp.result import encode


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every file counts as large; the folder that the indices are kept in."""
    monkeypatch.setattr(mevis_index, "SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dshmp" / "mask-index"


def silent(chunks: Any, what: str, total: int) -> Any:
    return chunks


def write_masks(path: Path, count: int = 40, seed: int = 0) -> dict[str, Any]:
    """Tracks of four frames, the second without the object."""
    rng = np.random.default_rng(seed)
    rles = [encode(np.kron(rng.random((5, 6)) < 0.5, np.ones((4, 3), bool))) for _ in range(7)]
    masks = {str(i): [rles[i % 7], None, rles[i % 5], rles[i % 3]] for i in range(count)}
    path.write_text(json.dumps(masks))
    return masks


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
ascii_keys = st.text(st.characters(codec="ascii"), max_size=4)


@given(st.dictionaries(ascii_keys, values, max_size=5), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_object_in_any_chunks(value: dict[str, Any], size: int, indent: int | None, ascii_only: bool) -> None:
    data = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    found = {key: json.loads(data[start:stop]) for key, start, stop in split_object(pieces(data, size))}
    assert found == value


@given(st.dictionaries(ascii_keys, values, min_size=1, max_size=4), st.integers(1, 40), st.data())
@settings(max_examples=100, deadline=None)
def test_cut_off_anywhere(value: dict[str, Any], size: int, data: st.DataObject) -> None:
    text = json.dumps(value).encode()
    end = data.draw(st.integers(1, len(text) - 1))
    with pytest.raises(ValueError, match=f"cut off at {end:,} bytes|damaged at byte"):
        list(split_object(pieces(text[:end], size)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected a JSON object"),
        (b"[]", "expected a JSON object"),
        (b'{"1": [],}', "damaged at byte 9"),
        (b'{"1": [] "2": []}', "damaged at byte 9"),
        (b'{"1" []}', "damaged at byte 5"),
        (b"{1: []}", "damaged at byte 1"),
        (b'{"1": []} {', "damaged at byte 10"),
        (b'{"1": [], "2": [nul, null, null, null, null, null]}', "damaged at byte 1"),
        (b'{"1": ["' + b"0" * 50 + b"\0" * 99 + b'"]}', "damaged at byte 58"),
        (b'{"1": ' + b"[" * 100_000, "damaged at byte 6"),
    ],
)
def test_damage_says_where(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(split_object(pieces(text, 16)))


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mevis_index, "CHUNK", 2**16)
    path = tmp_path / "mask_dict.json"
    write_masks(path, 15_000)
    assert path.stat().st_size > 2_000_000
    tracemalloc.start()
    count = 0
    with open(path, "rb") as file:
        for _ in split_object(iter(lambda: file.read(2**16), b"")):
            count += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 15_000
    assert peak < 1_000_000


def test_a_damaged_file_is_not_read_to_its_end() -> None:
    """Else a gigabyte would be held to look for the end of what has none."""
    read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b'{"1": [null] ] ' + b"0" * 1000

    with pytest.raises(ValueError, match="damaged at byte 13"):
        list(split_object(chunks()))
    assert read <= 3


def test_second_opening_reads_the_index_only(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    masks = write_masks(path)
    seen: list[str] = []

    def watch(chunks: Any, what: str, total: int) -> Any:
        seen.append(f"{what} {total}")
        return chunks

    first = open_index(path, watch)
    assert seen == ["indexing mask_dict.json 1"]
    second = open_index(path, watch)
    assert len(seen) == 1
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
    old = open_index(path, silent)
    masks = write_masks(path, seed=1)
    os.utime(path, ns=(old.stamp[1], old.stamp[1] + 1))
    with pytest.raises(UserError, match="changed while it was in use"):
        old.track(0)
    new = open_index(path, silent)
    assert {key: new.track(int(key)) for key in masks} == masks
    assert len(list(cache.iterdir())) == 1  # of one file, the old index is not kept


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1', '{"version": 0}', "\0\0"])
def test_a_broken_or_foreign_index_is_made_anew(content: str, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    masks = write_masks(path)
    open_index(path, silent)
    (kept,) = cache.iterdir()
    good = kept.read_text()
    kept.write_text(content)
    assert open_index(path, silent).track(1) == masks["1"]
    assert kept.read_text() == good


def test_another_format_version_is_made_anew(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask_dict.json"
    write_masks(path)
    open_index(path, silent)
    monkeypatch.setattr(mevis_index, "VERSION", 2)
    open_index(path, silent)
    (kept,) = cache.iterdir()
    assert json.loads(kept.read_text())["version"] == 2


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mevis_index, "SMALL", 0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = tmp_path / "mask_dict.json"
    masks = write_masks(path)
    assert open_index(path, silent).track(2) == masks["2"]
    assert "can't keep the index" in caplog.text


BUILD = """
import os, signal, sys, time
from pathlib import Path
from dshmp.data import mevis_index

mevis_index.SMALL = 0
path = Path(sys.argv[1])

def build():
    mevis_index._cache_file(path).unlink(missing_ok=True)
    mevis_index.open_index(path, lambda chunks, what, total: chunks)

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
    whole = open_index(path, silent)
    rng = random.Random(0)
    builder = Builder(path)
    for _ in range(20):
        builder.start(rng.uniform(0.001, 0.08))
        builder.wait()
        index = open_index(path, silent)
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
    assert len(open_index(path, pytest.fail).spans) == 4000  # from the cache, without reading the file


def test_one_process_makes_the_index_and_the_others_wait(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    write_masks(path, 4000)
    script = (
        "import sys; from pathlib import Path; from dshmp.data import mevis_index\n"
        "mevis_index.SMALL = 0; sys.stdin.read(1)\n"
        "mevis_index.open_index(Path(sys.argv[1]), lambda chunks, what, total: print(what) or chunks)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
    said = [process.communicate()[0] for process in started]
    assert all(process.returncode == 0 for process in started)
    assert sorted(said) == [b"", b"", b"indexing mask_dict.json\n"]


def test_an_annotation_twice(tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    path.write_text('{"7": [null], "8": [null], "7": []}')
    with pytest.raises(UserError, match="holds annotation '7' twice"):
        open_index(path, silent)
