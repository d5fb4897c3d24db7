import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest

from dshmp.common.errors import UserError
from dshmp.data.a2d import (
    ANNOTATION,
    COPY,
    INSTANCES,
    MISSED,
    SPLITS,
    VIDEOSET,
    A2dSplit,
    centred_window,
    check,
    read_masks,
    write_mini,
)
from dshmp.data.check import examine
from dshmp.data.mini import draw_clips, make_mini, resized

SEED = 3
SIZE = (80, 112)
LISTED = "a2d_sentences_single_frame_train_annotations.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("a2d") / "mini"
    make_mini("a2d", write_mini, root, SEED)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of the miniature to damage."""
    return Path(shutil.copytree(whole, tmp_path, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames (T, H, W, 3) and masks (K, T, H, W) of the miniature's clips."""
    return [resized(clip, *SIZE) for clip in draw_clips(8, SEED, families=("alike", "easy"))]


def test_frames_and_masks_are_those_drawn(whole: Path, drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    seen = set()
    for name in SPLITS:
        split = A2dSplit(whole, name)
        assert split.has_truth
        assert split.frame_list.startswith("all annotated frames, as a2d_sentences_single_frame_")
        for item in split.expressions:
            frames, masks = drawn[int(item.video[-4:])]
            (position,) = item.scored or ()
            assert item.extra["image_id"] == f"v_{item.video}_f_{position + 1}_i_{item.objects[0]}"
            assert item.shown == centred_window(position, len(frames), 8)
            assert item.category in ("adult", "baby", "ball", "bird", "car", "cat", "dog")
            for frame, t in zip(split.frames(item.video, item.shown), item.shown, strict=True):
                assert np.abs(frame.astype(int) - frames[t]).mean() < 8  # a lossy codec
            found = split.masks(item.video, item.annotations, [position], SIZE)
            np.testing.assert_array_equal(found[0, 0], masks[item.objects[0] - 1, position])
            seen.add(item.video)
    assert seen == {f"a2dmini{i:04d}" for i in range(7)}  # the eighth is missed
    assert sum(f.stat().st_size for f in whole.rglob("*") if f.is_file()) < 3e6


def test_a_window_is_centred_and_its_ends_repeated() -> None:
    assert centred_window(5, 20, 8) == (1, 2, 3, 4, 5, 6, 7, 8)
    assert centred_window(0, 20, 5) == (0, 0, 0, 1, 2)
    assert centred_window(19, 20, 4) == (17, 18, 19, 19)
    assert centred_window(0, 1, 3) == (0, 0, 0)


def test_hard_cases(whole: Path) -> None:
    split = A2dSplit(whole, "train")
    with open(whole / ANNOTATION, newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows if row[1] == COPY] == ["a2dmini0000"]
    ids = [(item.video, item.id) for item in split.expressions]
    assert len(set(ids)) == len(ids)
    # one instance only: (W, H) in the file
    (single,) = {item.objects for item in split.expressions if item.video == "a2dmini0001"}
    path = next((whole / INSTANCES / "a2dmini0001").glob("*.h5"))
    with h5py.File(path) as file:
        assert file["reMask"].shape == (112, 80)
        assert file["reBBox"].shape == (4,)
    assert single == (1,)
    assert read_masks(path)[1].shape == (1, *SIZE)
    # a frame without the second instance is no sample
    third = [item for item in split.expressions if item.video == "a2dmini0002"]
    frames = {i: {item.scored for item in third if item.objects == (i,)} for i in (1, 2)}
    assert len(frames[1] - frames[2]) == 1
    with pytest.raises(UserError, match="has no instance 2"):
        split.masks("a2dmini0002", [2], next(iter(frames[1] - frames[2])), SIZE)  # type: ignore[arg-type]
    # masks drawn at the clip's original size
    path = next((whole / INSTANCES / "a2dmini0003").glob("*.h5"))
    assert read_masks(path)[1].shape[1:] == (160, 224)


def test_the_clip_is_decoded_up_to_what_is_asked(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def spy(path: Path, frames: tuple[int, int]) -> Any:
        from dshmp.video.io import open_video

        asked.append(frames)
        return open_video(path, frames)

    monkeypatch.setattr("dshmp.data.a2d.open_video", spy)
    split = A2dSplit(whole, "train")
    first = split.frames("a2dmini0000", [3, 1, 1])
    again = split.frames("a2dmini0000", [1, 3])
    assert asked == [(0, 4)]
    np.testing.assert_array_equal(first[0], again[1])
    np.testing.assert_array_equal(first[1], first[2])
    split.frames("a2dmini0000", [6])
    split.frames("a2dmini0001", [0])
    assert asked == [(0, 4), (0, 7), (0, 1)]
    assert len(split.frames("a2dmini0000")) == len(split.videos["a2dmini0000"].frames)


def test_listed_samples_decide(root: Path) -> None:
    item = A2dSplit(root, "train").expressions[0]
    frame = item.scored[0] + 1  # type: ignore[index]
    (root / LISTED).write_text(json.dumps([["the one", item.video, frame, 1]]))
    split = A2dSplit(root, "train", window=3)
    assert split.frame_list == f"MTTR's list ({LISTED})"
    (only,) = split.expressions
    assert (only.text, only.video, only.scored, len(only.shown or ())) == ("the one", item.video, item.scored, 3)
    assert len(A2dSplit(root, "test").expressions) > 1


def test_a_clip_shorter_than_listed_repeats_its_last_frame(root: Path) -> None:
    edit(VIDEOSET, lambda rows: rows[0].__setitem__(6, "60"))(root)
    split = A2dSplit(root, "train")
    a, b = split.frames("a2dmini0000", [50, 59])
    np.testing.assert_array_equal(a, b)
    report = examine(check, root, full=True)
    assert not report.findings
    assert any("videoset.csv says 60" in note for note in report.notes)


def test_a_whole_data_set_has_no_findings(whole: Path) -> None:
    for full in (False, True):
        report = examine(check, whole, full=full)
        assert [str(item) for item in report.findings] == []


def test_published_counts_are_compared(root: Path) -> None:
    (root / "mini.json").unlink()
    lines = [str(item) for item in examine(check, root).findings]
    assert any(
        line.startswith("Release/videoset.csv: holds 8 rows, the published data set has 3,782") for line in lines
    )
    assert any("the published data set has 6,655" in line for line in lines)


def edit(name: Path, change: Callable[[list[list[str]]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        with open(root / name, newline="") as file:
            rows = list(csv.reader(file))
        change(rows)
        with open(root / name, "w", newline="") as file:
            csv.writer(file).writerows(rows)

    return apply


def rewrite_h5(key: str, value: Any) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        with h5py.File(root / H5, "a") as file:
            del file[key]
            if value is not None:
                file[key] = value

    return apply


def cut(name: Path) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-400]) and None


def silence(root: Path) -> None:
    """An MP4 without a picture."""
    with av.open(str(root / MP4), "w") as output:
        sound = output.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))


def listed(*samples: list[Any]) -> Callable[[Path], Any]:
    """MTTR's list of these videos, frames and instances."""
    return lambda root: (root / LISTED).write_text(json.dumps([["the one", *sample] for sample in samples]))


def vast(root: Path) -> None:
    with h5py.File(root / H5, "w") as file:
        file["instance"] = np.array([1], np.uint8)
        file.create_dataset("reMask", shape=(1, 60_000, 60_000), dtype="u1", chunks=(1, 1000, 1000))


def groups(root: Path) -> None:
    with h5py.File(root / H5, "w") as file:
        file.create_group("instance")
        file.create_group("reMask")


MP4 = Path("Release", "clips320H", "a2dmini0000.mp4")
H5 = INSTANCES / "a2dmini0000" / "00001.h5"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no videoset": (lambda r: (r / VIDEOSET).unlink(), "Release/videoset.csv: missing; "),
    "a column too few": (edit(VIDEOSET, lambda v: v[2].pop()), "Release/videoset.csv: line 3 has 8 columns, not 9; "),
    "subset 2": (
        edit(VIDEOSET, lambda v: v[1].__setitem__(8, "2")),
        "videoset.csv: line 2: subset: must be at most",
    ),
    "videoset is binary": (
        lambda r: (r / VIDEOSET).write_bytes(b"\xff\x00"),
        "videoset.csv: cannot be read as utf-8-sig text",
    ),
    "a row without a query": (edit(ANNOTATION, lambda v: v[4].pop()), "a2d_annotation.txt: line 5 has 2 columns"),
    "instance is no number": (
        edit(ANNOTATION, lambda v: v[1].__setitem__(1, "x")),
        "line 2: instance: must be a valid integer",
    ),
    "row of an unknown video": (
        edit(ANNOTATION, lambda v: v.append(["nobody", "1", "him"])),
        "a2d_annotation.txt: has sentences of nobody, which videoset.csv does not list",
    ),
    "row of an unknown instance": (
        edit(ANNOTATION, lambda v: v.append(["a2dmini0000", "9", "him"])),
        "a2dmini0000: no annotated frame holds instance 9, which a sentence means",
    ),
    "no missed videos": (lambda r: (r / MISSED).unlink(), "a2d_missed_videos.txt: missing"),
    "missed video not listed": (
        lambda r: (r / MISSED).write_text(""),
        "a2dmini0007: no annotated frame holds instance 2",
    ),
    "no clips": (lambda r: (r / MP4).parent.rename(r / "clips"), "Release/clips320H: missing"),
    "no clip": (lambda r: (r / MP4).unlink(), "Release/clips320H/a2dmini0000.mp4: missing"),
    "clip is empty": (lambda r: (r / MP4).write_bytes(b""), "a2dmini0000.mp4: not a video"),
    "clip is text": (lambda r: (r / MP4).write_text("<html>"), "a2dmini0000.mp4: not a video"),
    "clip cut off": (cut(MP4), "a2dmini0000.mp4: "),
    "clip without pictures": (silence, "a2dmini0000.mp4: no video in this file"),
    "no masks": (
        lambda r: (r / INSTANCES).rename(r / "h5"),
        "a2d_annotation_with_instances: holds no annotated frame of the split 'train'",
    ),
    "h5 cut off": (cut(H5), "a2dmini0000/00001.h5: cannot be read as HDF5"),
    "h5 is text": (lambda r: (r / H5).write_text("no"), "00001.h5: cannot be read as HDF5"),
    "h5 without masks": (rewrite_h5("reMask", None), "00001.h5: cannot be read as HDF5"),
    "h5 of another shape": (
        rewrite_h5("reMask", np.zeros((9, 112, 80), np.uint8)),
        "instances and masks of shape (9, 112, 80)",
    ),
    "h5 of text": (rewrite_h5("instance", ["one"]), "00001.h5: cannot be read as HDF5"),
    "h5 without a number": (lambda r: (r / H5).rename((r / H5).with_name("x.h5")), "x.h5: its name is no frame number"),
    "list cut off": (lambda r: (r / LISTED).write_text('[["a", "b"'), f"{LISTED}: is not valid JSON"),
    "list of another form": (lambda r: (r / LISTED).write_text('[["a", "b"]]'), f"{LISTED}: 0.2: is missing"),
    "list of other videos": (
        lambda r: (r / LISTED).write_text('[["a", "b", 1, 1]]'),
        f"{LISTED}: entry 0 is no frame of a video of this split",
    ),
    "list of text": (listed(["a2dmini0000", "1", "1"]), f"{LISTED}: 0.2: must be a valid integer, found '1'"),
    "list of fractions": (listed(["a2dmini0000", 1.5, 1]), f"{LISTED}: 0.2: must be a valid integer, found 1.5"),
    "list of a frame without masks": (
        listed(["a2dmini0000", 2, 1]),
        "a2dmini0000/00002.h5: masks are missing",
    ),
    "list of no such instance": (
        listed(["a2dmini0000", 1, 77]),
        "a2dmini0000/00001.h5: has no instance 77",
    ),
    "list with a sample twice": (
        listed(["a2dmini0000", 1, 1], ["a2dmini0000", 1, 1]),
        f"{LISTED}: video 'a2dmini0000', expression '1_1' is there 2 times",
    ),
    "two sentences of an instance": (
        edit(ANNOTATION, lambda v: v.append(["a2dmini0000", "1", "again the same"])),
        "a2d_annotation.txt: video 'a2dmini0000', expression '1_1' is there 2 times",
    ),
    "a billion frames": (
        edit(VIDEOSET, lambda v: v[1].__setitem__(6, "1000000000")),
        "videoset.csv: line 2: frames: must be",
    ),
    "frames below 0": (edit(VIDEOSET, lambda v: v[1].__setitem__(6, "-5")), "videoset.csv: line 2: frames: must be"),
    "h5 of many gigabytes": (vast, "a2dmini0000/00001.h5: 'reMask' holds 3,600,000,000 values, too many"),
    "h5 of groups": (groups, "a2dmini0000/00001.h5: cannot be read as HDF5"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, root: Path) -> None:
    damage, line = DAMAGE[kind]
    damage(root)
    lines = [str(item) for item in examine(check, root, full=True).findings]
    assert any(line in item for item in lines), lines
    assert not any("\n" in item or "could not go on" in item for item in lines)


def test_masks_of_another_size_are_told(root: Path) -> None:
    report = examine(check, root, full=True)
    assert report.findings == []
    assert "a2dmini0003.mp4: masks of 224x160, the clip 112x80; scored at the masks' size" in report.notes
    assert not any("a2dmini0000" in note for note in report.notes)


def test_reading_damage(root: Path) -> None:
    with pytest.raises(UserError, match="has no split 'val'; choose from train, test"):
        A2dSplit(root, "val")
    split = A2dSplit(root, "train")
    cut(H5)(root)
    (root / MP4).unlink()
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        split.masks("a2dmini0000", [1], [0], SIZE)
    with pytest.raises(UserError, match="No such file"):
        split.frames("a2dmini0000", [0])
    with pytest.raises(UserError, match=r"00002\.h5: masks are missing"):
        split.masks("a2dmini0000", [1], [1], SIZE)
