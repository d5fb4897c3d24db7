"""Scoring by the official protocols: what is perfect, missing or damaged, matching, COCO's figures, intervals."""

import io
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dshmp.cli import app
from dshmp.common import limits
from dshmp.common.errors import UserError
from dshmp.common.rle import encode
from dshmp.data import registry
from dshmp.data.base import Expression, Video
from dshmp.data.mevis import MevisSplit
from dshmp.data.registry import Dataset
from dshmp.evaluation.coco import frame_list, mean_average_precision
from dshmp.evaluation.metrics import jf
from dshmp.evaluation.predictions import Predictions
from dshmp.evaluation.protocols import SampleScore
from dshmp.evaluation.report import differences, figures, intervals, warn
from dshmp.evaluation.score import run, score_split

SIGNATURE = b"\x89PNG\r\n\x1a\n"
H, W, T = 24, 31, 11  # more frames than are held at once
FRAMES = [f"{5 * t:05d}" for t in range(T)]


def box(left: int, top: int = 5) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[top : top + 10, left : left + 8] = True
    return mask


def track(start: int, gone: Sequence[int] = ()) -> np.ndarray:
    """(T, H, W) of a box that drifts and is not there in the frames `gone`."""
    return np.stack([box(start + t % 5) & (t not in gone) for t in range(T)])


OBJECTS = {7: track(2), 8: track(15, gone=(3, 4)), 9: np.zeros((T, H, W), bool)}
TARGETS = {
    ("bird", "0"): (7,),
    ("bird", "1"): (7, 8),
    ("bird", "2"): (),
    ("cat", "0"): (8,),
    ("cat", "1"): (9,),  # annotated, and never to be seen
}


def truth(video: str, key: str) -> np.ndarray:
    return np.any([np.zeros((T, H, W), bool), *(OBJECTS[a] for a in TARGETS[video, key])], axis=0)


def data(layout: Any, opening: Callable[..., Any]) -> Dataset:
    def unused(*_: Any) -> None:
        raise AssertionError

    return Dataset("made by hand", ("valid_u",), opening, unused, unused, "many", layout)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two videos in MeViS's layout; one expression means nothing."""
    folder = tmp_path / "root" / "valid_u"
    videos: dict[str, Any] = {}
    for (video, key), ids in TARGETS.items():
        entry = videos.setdefault(video, {"frames": FRAMES, "expressions": {}})
        entry["expressions"][key] = {"exp": f"{video} {key}", "obj_id": list(ids), "anno_id": list(ids)}
    for video in videos:
        (folder / "JPEGImages" / video).mkdir(parents=True)
        for name in FRAMES:
            Image.new("RGB", (W, H)).save(folder / "JPEGImages" / video / f"{name}.jpg")
    masks = {str(a): [encode(m) if m.any() else None for m in frames] for a, frames in OBJECTS.items()}
    (folder / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (folder / "mask_dict.json").write_text(json.dumps(masks))
    return tmp_path / "root"


@pytest.fixture
def pred(tmp_path: Path) -> Path:
    """Perfect predictions."""
    folder = tmp_path / "pred"
    for video, key in TARGETS:
        write_pngs(folder / video / key, truth(video, key))
    return folder


def write_pngs(folder: Path, masks: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in zip(FRAMES, masks, strict=True):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}.png")


def score(root: Path, pred: Path, workers: int = 1, layout: str = "mevis") -> Any:
    return score_split(data(layout, MevisSplit), root, "valid_u", pred, workers)


def by_key(scores: Any) -> dict[tuple[str, str], SampleScore]:
    return {(row.video, row.id): row for row in scores.rows}


# ------------------------------------------------------------------------------------------- masks per expression


def test_perfect_predictions(root: Path, pred: Path) -> None:
    scores = score(root, pred)
    assert scores.figures == {"J&F": 100, "J": 100, "F": 100, "T-acc": 75, "N-acc": 100}
    assert scores.problems == ()
    assert [(row.video, row.id) for row in scores.rows] == list(TARGETS)
    assert scores.intervals["J&F"] == (100, 100)


def test_empty_predictions(root: Path, pred: Path) -> None:
    """Frames where nothing is to be seen are right."""
    for video, key in TARGETS:
        write_pngs(pred / video / key, np.zeros((T, H, W), bool))
    scores = score(root, pred)
    share = {("bird", "0"): 0.0, ("bird", "1"): 0.0, ("bird", "2"): 1.0, ("cat", "0"): 2 / T, ("cat", "1"): 1.0}
    assert {key: row.terms["J"][0] for key, row in by_key(scores).items()} == pytest.approx(share)
    assert {key: row.terms["F"][0] for key, row in by_key(scores).items()} == pytest.approx(share)
    assert scores.figures["J&F"] == pytest.approx(100 * sum(share.values()) / 5)
    assert (scores.figures["N-acc"], scores.figures["T-acc"]) == (100, 0)


def test_mean_over_frames_then_expressions(root: Path, pred: Path) -> None:
    answers = {key: np.roll(truth(*key), 1 + i, axis=2) for i, key in enumerate(TARGETS)}
    for (video, key), masks in answers.items():
        write_pngs(pred / video / key, masks)
    expected = [jf(answers[key], truth(*key)) for key in TARGETS]
    scores = score(root, pred)
    assert scores.figures["J"] == pytest.approx(100 * np.mean([j for j, _ in expected]))
    assert scores.figures["F"] == pytest.approx(100 * np.mean([f for _, f in expected]))
    assert scores.figures["J&F"] == pytest.approx(50 * np.mean([j + f for j, f in expected]))


def test_something_where_nothing_is_meant(root: Path, pred: Path) -> None:
    spot = np.zeros((T, H, W), bool)
    spot[7, 3, 3] = True
    write_pngs(pred / "bird" / "2", spot)
    scores = score(root, pred)
    assert scores.figures["N-acc"] == 0
    assert by_key(scores)["bird", "2"].terms["J"][0] == pytest.approx((T - 1) / T)


def test_no_accuracies_where_nothing_is_absent(root: Path, pred: Path) -> None:
    path = root / "valid_u" / "meta_expressions.json"
    meta = json.loads(path.read_text())
    del meta["videos"]["bird"]["expressions"]["2"]
    path.write_text(json.dumps(meta))
    assert score(root, pred).figures.keys() == {"J&F", "J", "F"}


def test_missing_video(root: Path, pred: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pred / "cat").rename(pred / "dog")
    scores = score(root, pred)
    assert scores.figures["J&F"] == pytest.approx(60)
    assert [(p.kind, p.path) for p in scores.problems] == [("video", "cat")]
    assert not scores.damaged
    assert not any(row.complete for row in scores.rows if row.video == "cat")


def test_missing_expression_and_frame_count_zero(root: Path, pred: Path) -> None:
    """The frame is one in which nothing is to be seen: an answer left out is not right by chance."""
    (pred / "bird" / "2").rename(pred / "bird" / "22")
    (pred / "cat" / "0" / f"{FRAMES[3]}.png").unlink()
    scores = score(root, pred)
    assert [(p.kind, p.path) for p in scores.problems] == [
        ("expression", "bird/2"),
        ("frame", f"cat/0/{FRAMES[3]}.png"),
    ]
    rows = by_key(scores)
    assert rows["bird", "2"].terms["J"] == (0, 1)
    assert scores.figures["N-acc"] == 0
    assert rows["cat", "0"].terms["F"][0] == pytest.approx((T - 1) / T)
    assert scores.figures["J"] == pytest.approx(100 * (3 + (T - 1) / T) / 5)


def test_extra_files_change_nothing(root: Path, pred: Path) -> None:
    write_pngs(pred / "bird" / "99", track(1))
    write_pngs(pred / "horse" / "0", track(1))
    Image.new("L", (5, 5)).save(pred / "cat" / "0" / "00001.png")
    (pred / "cat" / "0" / "notes.txt").write_text("no mask")
    assert score(root, pred).figures["J&F"] == 100


@pytest.mark.parametrize("kind", ["one", "bit", "palette", "rgb", "rgba", "sixteen"])
def test_any_pixel_that_is_not_zero_is_foreground(kind: str, root: Path, pred: Path) -> None:
    for name, mask in zip(FRAMES, truth("cat", "0"), strict=True):
        values = mask.astype(np.uint8)
        image = {
            "one": lambda v: Image.fromarray(v),
            "bit": lambda v: Image.fromarray(v * 255).convert("1"),
            "palette": lambda v: with_palette(v * 3),
            "rgb": lambda v: Image.fromarray(np.stack([v * 0, v * 0, v * 9], 2)),
            "rgba": lambda v: Image.fromarray(np.stack([v * 9, v * 0, v, v * 0 + 255], 2)),
            "sixteen": lambda v: Image.fromarray(v.astype(np.uint16) * 256),
        }[kind](values)
        image.save(pred / "cat" / "0" / f"{name}.png")
    assert by_key(score(root, pred))["cat", "0"].terms["J&F"] == (1, 1)


def with_palette(indices: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    return image


def test_damaged_files_are_named_and_count_zero(root: Path, pred: Path) -> None:
    folder = pred / "bird" / "0"
    Image.new("L", (W, H + 1)).save(folder / f"{FRAMES[0]}.png")
    whole = (folder / f"{FRAMES[1]}.png").read_bytes()
    (folder / f"{FRAMES[1]}.png").write_bytes(whole[: len(whole) // 2])
    (folder / f"{FRAMES[2]}.png").write_bytes(b"")
    (folder / f"{FRAMES[5]}.png").unlink()
    (folder / f"{FRAMES[5]}.png").mkdir()
    scores = score(root, pred)
    assert [p.path for p in scores.damaged] == [f"bird/0/{FRAMES[t]}.png" for t in (0, 1, 2, 5)]
    assert "is 31x25, its frame is 31x24" in scores.damaged[0].reason
    assert scores.damaged[1].reason.startswith("cannot be read")
    assert scores.damaged[2].reason == "is no PNG"
    assert scores.damaged[3].reason == "cannot be read (Is a directory)"
    assert by_key(scores)["bird", "0"].terms["J"][0] == pytest.approx((T - 4) / T)


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 0]))


def test_nothing_but_a_png_of_the_right_size_is_decoded(
    root: Path, pred: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pred / "bird" / "0"
    stream = io.BytesIO()
    Image.new("L", (W, H)).save(stream, "EPS")  # which would start another program
    image = chunk(b"IDAT", zlib.compress(bytes(H * (W + 1)))) + chunk(b"IEND", b"")
    wrong = [
        stream.getvalue(),
        SIGNATURE + header(60_000, 60_000) + image,
        SIGNATURE + header(W, H) + header(9_000, 9_000) + image,
        (folder / f"{FRAMES[0]}.png").read_bytes()[:-5],  # decoders would not mind
        SIGNATURE + header(W, H) + chunk(b"IDAT", b"x") + chunk(b"IEND", b""),
    ]
    for name, content in zip(FRAMES, wrong, strict=False):
        (folder / f"{name}.png").write_bytes(content)
    (folder / f"{FRAMES[5]}.png").unlink()
    os.mkfifo(folder / f"{FRAMES[5]}.png")  # would never end
    opened: list[Any] = []
    monkeypatch.setattr("dshmp.common.limits.MASK", 4_000)
    (folder / f"{FRAMES[6]}.png").write_bytes(bytes(4_001))
    monkeypatch.setattr(Image.Image, "load", lambda self, load=Image.Image.load: opened.append(self.size) or load(self))
    reasons = [problem.reason for problem in score(root, pred).damaged]
    assert [reasons[i] for i in (0, 2)] == ["is no PNG", "is 9000x9000, its frame is 31x24"]
    assert all(reasons[i].startswith("cannot be read") for i in (1, 3, 4))
    assert reasons[5:] == [
        "cannot be read (is a pipe or a device where a regular file is needed)",
        "is far too large for a mask",
    ]
    assert set(opened) <= {(W, H)}


def test_only_scored_frames_count(root: Path, pred: Path) -> None:
    for t in range(T):
        if t not in (1, 9):
            (pred / "cat" / "0" / f"{FRAMES[t]}.png").unlink()
    scores = score_split(data("mevis", TwoFrames), root, "valid_u", pred)
    assert by_key(scores)["cat", "0"].terms["J&F"] == (1, 1)
    assert scores.problems == ()


class TwoFrames(MevisSplit):
    """Of each expression two frames are scored."""

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self.expressions = [replace(item, scored=(1, 9)) for item in self.expressions]


def test_predictions_of_something_else(root: Path, pred: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no video of this split; .*bird/<expression>/<frame>.png"):
        score(root, root)
    with pytest.raises(UserError, match="no such predictions"):
        score(root, tmp_path / "none")
    (tmp_path / "x.zip").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="neither a folder nor a readable zip"):
        score(root, tmp_path / "x.zip")


def zipped(folder: Path, target: Path, top: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", method) as file:
        for path in sorted(folder.rglob("*.png")):
            file.write(path, f"{top}{path.relative_to(folder)}")
    return target


@pytest.mark.parametrize(("layout", "top"), [("mevis", ""), ("youtube_vos", ""), ("youtube_vos", "Annotations/")])
def test_zip_scores_as_its_folder(layout: str, top: str, root: Path, pred: Path, tmp_path: Path) -> None:
    write_pngs(pred / "bird" / "0", np.roll(truth("bird", "0"), 2, axis=1))
    (pred / "cat" / "1" / f"{FRAMES[0]}.png").unlink()
    plain = score(root, pred, layout=layout)
    inside = score(root, zipped(pred, tmp_path / "p.zip", top), layout=layout)
    assert (inside.rows, inside.problems) == (plain.rows, plain.problems)
    if top:
        pred.rename(tmp_path / "Annotations")
        assert score(root, tmp_path, layout=layout).rows == plain.rows


def test_damage_inside_a_zip(root: Path, pred: Path, tmp_path: Path) -> None:
    path = zipped(pred, tmp_path / "p.zip")
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT", content.index(f"cat/0/{FRAMES[2]}.png".encode()))
    content[place + 6] ^= 255
    path.write_bytes(content)
    scores = score(root, path)
    assert [p.path for p in scores.damaged] == [f"cat/0/{FRAMES[2]}.png"]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_damage_of_a_packed_entry(method: int, root: Path, pred: Path, tmp_path: Path) -> None:
    path = zipped(pred, tmp_path / "p.zip", method=method)
    content = path.read_bytes()
    name = f"cat/0/{FRAMES[2]}.png".encode()
    start = content.index(name) + len(name)
    for place in range(start + 4, start + 28, 3):  # what lies before them is a version, which nobody reads
        path.write_bytes(content[:place] + b"\xff\xff\xff" + content[place + 3 :])
        assert [p.path for p in score(root, path).damaged] == [name.decode()]


def test_damage_of_a_zips_names(root: Path, pred: Path, tmp_path: Path) -> None:
    path = zipped(pred, tmp_path / "p.zip")
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 8 : entry + 10] = b"\0\x08"  # its name is said to be UTF-8
    content[entry + 46] = 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="neither a folder nor a readable zip file"):
        score(root, path)


def test_a_bomb_is_not_unpacked(root: Path, pred: Path, tmp_path: Path) -> None:
    path = zipped(pred, tmp_path / "p.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr(f"cat/0/{FRAMES[2]}.png", bytes(limits.MASK + 2**20))
    (problem,) = score(root, path).damaged
    assert problem.reason == "is far too large for a mask"


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "zip"])
def test_number_of_workers_changes_nothing(source: str, root: Path, pred: Path, tmp_path: Path) -> None:
    for i, (video, key) in enumerate(TARGETS):
        write_pngs(pred / video / key, np.roll(truth(video, key), i, axis=2))
    (pred / "bird" / "1" / f"{FRAMES[8]}.png").unlink()
    path = pred if source == "folder" else zipped(pred, tmp_path / "p.zip")
    one, two = (score(root, path, workers) for workers in (1, 2))
    assert (one.rows, one.figures, one.intervals, one.problems) == (two.rows, two.figures, two.intervals, two.problems)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "zip"])
def test_processes_of_the_command(source: str, root: Path, pred: Path, tmp_path: Path) -> None:
    """The split is opened but once, and results.json is the same byte by byte."""
    path = pred if source == "folder" else zipped(pred, tmp_path / "p.zip")
    script = (
        "import sys; from pathlib import Path\n"
        "from dshmp.data.mevis import MevisSplit; from dshmp.evaluation import score as run\n"
        "opened = MevisSplit.__init__\n"
        "def once(*a): open(sys.argv[4], 'a').write('.'); opened(*a)\n"
        "MevisSplit.__init__ = once\n"
        "assert 'torch' not in sys.modules\n"
        "run.run('mevis', Path(sys.argv[1]), 'valid_u', Path(sys.argv[2]), Path(sys.argv[3]), 2)"
    )
    arguments = [sys.executable, "-c", script, str(root), str(path), str(tmp_path / "out"), str(tmp_path / "count")]
    subprocess.run(arguments, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "count").read_text() == "."
    run("mevis", root, "valid_u", path, tmp_path / "one", 1)
    for name in ("results.json", "expressions.csv", "videos.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.slow
def test_a_dying_process_is_told(root: Path, pred: Path) -> None:
    with pytest.raises(UserError, match="a scoring process died"):
        score_split(data("mevis", Deadly), root, "valid_u", pred, workers=2)


class Deadly(MevisSplit):
    def masks(self, *arguments: Any) -> Any:
        if multiprocessing.parent_process() is not None:
            os._exit(9)
        return super().masks(*arguments)


@pytest.mark.slow
def test_an_error_of_the_annotation_crosses_processes(root: Path, pred: Path) -> None:
    path = root / "valid_u" / "mask_dict.json"
    masks = json.loads(path.read_text())
    del masks["8"]
    path.write_text(json.dumps(masks))
    with pytest.raises(UserError, match="annotation 8 is missing"):
        score(root, pred, workers=2)


# ----------------------------------------------------------------------------------------------------------- DAVIS


@dataclass(frozen=True)
class FakeDavis:
    """One video of two objects and a third that appears later; a stripe is void."""

    folder: Path
    split: str
    has_truth: bool = True

    @property
    def videos(self) -> Mapping[str, Video]:
        return {"bear": Video("bear", tuple(FRAMES))}

    @property
    def expressions(self) -> Sequence[Expression]:
        ids = [(1 + i // 4,) for i in range(8)]
        return [Expression("bear", str(i), f"text {i}", k, k, extra={"annotator": i % 4}) for i, k in enumerate(ids)]

    def index_masks(self, video: str, positions: Sequence[int]) -> np.ndarray:
        return davis_labels()[list(positions)]

    def frames(self, video: str, positions: Sequence[int]) -> list[np.ndarray]:
        raise UserError("frames are not needed")

    masks = frames


def davis_labels() -> np.ndarray:
    labels = np.zeros((T, H, W), np.uint8)
    labels[OBJECTS[7]], labels[OBJECTS[8]] = 1, 2
    labels[5:, 20:, :5] = 3
    labels[:, :, 4] = 255
    return labels


def write_davis(folder: Path, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, indices in zip(FRAMES, labels, strict=True):
        image = Image.fromarray(indices)
        image.putpalette(list(range(256)) * 3)
        image.save(folder / f"{name}.png")


def score_davis(pred: Path, workers: int = 1) -> Any:
    return score_split(data("davis", FakeDavis), pred, "valid", pred, workers)


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Perfect but for the void stripe, which the prediction paints over."""
    labels = davis_labels()
    labels[labels == 255] = 1
    for annotator in range(4):
        write_davis(tmp_path / "davis" / f"anno_{annotator}" / "bear", labels)
    return tmp_path / "davis"


def test_davis_ignores_void_and_later_objects(davis: Path) -> None:
    scores = score_davis(davis)
    assert scores.figures == dict.fromkeys(
        ("J&F", "J", "F", "J&F identity-fixed", "J identity-fixed", "F identity-fixed"), 100
    )
    assert [row.id for row in scores.rows] == [f"anno_{a}/{k}" for a in range(4) for k in (1, 2)]
    assert [row.text for row in scores.rows] == [f"text {4 * k + a}" for a in range(4) for k in (0, 1)]


def test_davis_matching_forgives_swapped_identities(davis: Path) -> None:
    labels = davis_labels()
    swapped = np.array([0, 2, 1, 3], np.uint8)[labels % 255]
    write_davis(davis / "anno_1" / "bear", swapped)
    far = np.array([0, 7, 5, 0], np.uint8)[labels % 255]
    write_davis(davis / "anno_2" / "bear", far)
    scores = score_davis(davis)
    assert scores.figures["J&F"] == 100
    fixed = [row.terms["J identity-fixed"][0] for row in scores.rows]
    assert fixed[:2] == fixed[6:] == [1, 1]
    assert max(fixed[2:6]) < 0.3
    assert scores.figures["J&F identity-fixed"] < 70


def test_davis_by_hand(davis: Path) -> None:
    """Every assignment tried; annotators averaged; objects, not frames of all objects."""
    from itertools import permutations

    from dshmp.evaluation.metrics import jf_frames

    rng = np.random.default_rng(0)
    labels = davis_labels()
    void = labels == 255
    expected = []
    for annotator in range(4):
        answer = rng.permutation(4).astype(np.uint8)[np.roll(labels % 255, annotator, axis=2)]
        write_davis(davis / f"anno_{annotator}" / "bear", answer)
        scores = np.array(
            [[[m.mean() for m in jf_frames(answer == r, labels == k, void)] for k in (1, 2)] for r in (1, 2, 3)]
        )
        best = max(permutations(range(3), 2), key=lambda rows: scores[list(rows), [0, 1]].sum())
        expected.append(scores[list(best), [0, 1]].mean(0))
    found = score_davis(davis).figures
    assert (found["J"], found["F"]) == pytest.approx(tuple(100 * np.mean(expected, 0)))


def test_davis_missing_and_damaged(davis: Path) -> None:
    (davis / "anno_3" / "bear").rename(davis / "anno_3" / "cow")
    Image.new("RGB", (W, H)).save(davis / "anno_0" / "bear" / f"{FRAMES[0]}.png")
    Image.fromarray(np.full((H, W), 21, np.uint8)).save(davis / "anno_0" / "bear" / f"{FRAMES[1]}.png")
    (davis / "anno_1" / "bear" / f"{FRAMES[4]}.png").unlink()
    scores = score_davis(davis)
    assert [(p.kind, p.path) for p in scores.problems] == [
        ("damaged", f"anno_0/bear/{FRAMES[0]}.png"),
        ("damaged", f"anno_0/bear/{FRAMES[1]}.png"),
        ("frame", f"anno_1/bear/{FRAMES[4]}.png"),
        ("video", "anno_3/bear"),
    ]
    assert "palette or grey" in scores.damaged[0].reason
    assert "object id 21" in scores.damaged[1].reason
    per_annotator = [(T - 2) / T, (T - 1) / T, 1, 0]
    assert [row.terms["J"][0] for row in scores.rows] == pytest.approx(np.repeat(per_annotator, 2))
    assert scores.figures["J"] == pytest.approx(100 * np.mean(per_annotator))


# ------------------------------------------------------------------------------------------------------------ COCO


@dataclass(frozen=True)
class FakeCoco:
    """Six samples in two videos; the last target is empty."""

    folder: Path
    split: str
    has_truth: bool = True

    @property
    def videos(self) -> Mapping[str, Video]:
        return {name: Video(name, tuple(FRAMES)) for name in ("a", "b")}

    @property
    def expressions(self) -> Sequence[Expression]:
        return [
            Expression("ab"[i // 3], str(i), f"text {i}", (1,), (i,), scored=(i,), extra={"image_id": f"s{i}"})
            for i in range(6)
        ]

    def frames(self, video: str, positions: Sequence[int]) -> list[np.ndarray]:
        return [np.zeros((H, W, 3), np.uint8) for _ in positions]

    def masks(self, video: str, annotations: Sequence[int], positions: Sequence[int], size: Any) -> np.ndarray:
        assert list(annotations) == list(positions)
        return np.stack([[coco_truth(a)] for a in annotations])


def coco_truth(index: int) -> np.ndarray:
    return box(3 * index) if index < 5 else np.zeros((H, W), bool)


def detection(index: int, mask: np.ndarray, value: float) -> dict[str, Any]:
    return {"image_id": f"s{index}", "category_id": 1, "segmentation": encode(mask), "score": value}


def score_coco(folder: Path, detections: Any, workers: int = 1) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "predictions.json").write_text(json.dumps(detections))
    return score_split(data("coco", FakeCoco), folder, "test", folder, workers)


def test_coco_perfect(tmp_path: Path) -> None:
    scores = score_coco(tmp_path, [detection(i, coco_truth(i), 0.5) for i in range(6)])
    assert scores.figures["oIoU"] == scores.figures["mIoU"] == 100
    assert all(scores.figures[f"P@{k}"] == 100 for k in (0.5, 0.6, 0.7, 0.8, 0.9))
    assert 80 < scores.figures["mAP"] <= 100  # COCO never finds an empty mask
    assert scores.problems == ()


def test_coco_by_hand(tmp_path: Path) -> None:
    half = box(0)
    half[10:] = False  # the upper half: 5 of 10 rows
    both = coco_truth(1) | box(3, 14)
    detections = [
        detection(0, half, 0.9),
        detection(0, coco_truth(0), 0.8),  # the better mask, but not the best score
        detection(1, box(20), 0.3),
        detection(1, both, 0.3),  # of equals the last
        detection(2, coco_truth(2), 0.4),
        detection(3, np.zeros((H, W), bool), 0.4),
        # 4 has none
        detection(5, np.zeros((H, W), bool), 0.1),  # both empty
    ]
    scores = score_coco(tmp_path, detections)
    union = int(both.sum())
    assert 80 / union < 0.55
    ious = [0.5, 80 / union, 1, 0, 0, 1]
    assert scores.figures["mIoU"] == pytest.approx(100 * np.mean(ious), abs=1e-4)
    assert scores.figures["oIoU"] == pytest.approx(100 * (40 + 80 + 80) / (80 + union + 80 + 80 + 80))
    assert scores.figures["P@0.5"] == pytest.approx(100 * 3 / 6)
    assert scores.figures["P@0.9"] == pytest.approx(100 * 2 / 6)
    assert [(p.kind, p.path) for p in scores.problems] == [("expression", "s4")]


def test_precision_is_strict(tmp_path: Path) -> None:
    """7 of 10 is not above 0.7, nor 6 of 10 above 0.6, however a computer rounds them."""
    for rows in (5, 6, 7, 8, 9):
        part = box(0) & (np.arange(H) < 5 + rows)[:, None]
        scores = score_coco(tmp_path, [detection(0, part, 0.5)])
        assert scores.figures[f"P@{rows / 10}"] == 0
        assert rows == 5 or scores.figures[f"P@{(rows - 1) / 10}"] == pytest.approx(100 / 6)


def test_mean_average_precision_is_that_of_pycocotools(tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    detections = [
        detection(i, np.roll(coco_truth(i), (rng.integers(3), rng.integers(4)), (0, 1)), float(rng.random()))
        for i in range(6)
        for _ in range(110)  # more than COCO takes
    ]
    found = score_coco(tmp_path, detections).figures["mAP"]
    annotations = [
        {
            "id": i + 1,
            "image_id": f"s{i}",
            "category_id": 1,
            "segmentation": encode(coco_truth(i)),
            "area": int(coco_truth(i).sum()),
            "bbox": [0, 0, 1, 1],
            "iscrowd": 0,
        }
        for i in range(6)
    ]
    images = [{"id": f"s{i}", "height": H, "width": W} for i in range(6)]
    ground = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "truth.json").write_text(json.dumps(ground))
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "predictions.json")), "segm")
    evaluation.params.useCats = 0
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert found == pytest.approx(100 * evaluation.stats[0], abs=1e-9)
    assert 0 < found < 100


def test_coco_damage(tmp_path: Path) -> None:
    good = [detection(i, coco_truth(i), 0.5) for i in range(6)]
    bad = detection(0, np.ones((H, W + 1), bool), 0.9)
    cut = detection(1, coco_truth(1), 0.9)
    cut["segmentation"]["counts"] = cut["segmentation"]["counts"][:4]
    scores = score_coco(tmp_path, [*good, bad, cut, detection(2, coco_truth(2), float("nan"))])
    assert [p.path for p in scores.damaged] == [f"predictions.json, entry {6 + i} (s{i})" for i in range(3)]
    assert scores.figures["mIoU"] == 100  # of what can be read
    with pytest.raises(UserError, match="entry 1: the split has no sample 's9'"):
        score_coco(tmp_path, [good[0], good[1] | {"image_id": "s9"}])
    with pytest.raises(UserError, match="entry 0 is no COCO result"):
        score_coco(tmp_path, [{"image_id": "s1"}])
    with pytest.raises(UserError, match="no list"):
        score_coco(tmp_path, {})
    (tmp_path / "predictions.json").write_text("[{")
    with pytest.raises(UserError, match="not valid JSON"):
        score_split(data("coco", FakeCoco), tmp_path, "test", tmp_path)
    with pytest.raises(UserError, match="one file of COCO results"):
        score_split(data("coco", FakeCoco), tmp_path, "test", tmp_path.parent)


def test_coco_results_of_anyone(tmp_path: Path) -> None:
    """What else an entry says is no matter, and what it should say is looked at."""
    good = [detection(i, coco_truth(i), 0.5) for i in range(6)]
    expected = score_coco(tmp_path, good).figures
    odd = {"caption": "x", "bbox": 5, "id": "x", "iscrowd": 1, "ignore": 1, "area": None, "category_id": "x"}
    assert score_coco(tmp_path, [good[0] | odd, *good[1:]]).figures == expected
    for value in ("0.9", None, [0.9], 10**400):
        with pytest.raises(UserError, match="entry 0 is no COCO result"):
            score_coco(tmp_path, [good[0] | {"score": value}])
    for content in (b"[" * 100_000, b"\xff\xfe[]"):
        (tmp_path / "predictions.json").write_bytes(content)
        with pytest.raises(UserError, match="not valid JSON"):
            score_split(data("coco", FakeCoco), tmp_path, "test", tmp_path)
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("predictions.json", json.dumps(good))
    packed = (tmp_path / "p.zip").read_bytes()
    (tmp_path / "p.zip").write_bytes(packed[:48] + b"\xff" * 8 + packed[56:])
    with pytest.raises(UserError, match="not valid JSON"):
        score_split(data("coco", FakeCoco), tmp_path, "test", tmp_path / "p.zip")


def test_coco_without_detections(tmp_path: Path) -> None:
    scores = score_coco(tmp_path, [])
    assert scores.figures["mAP"] == scores.figures["oIoU"] == scores.figures["mIoU"] == 0
    assert len(scores.problems) == 6


@pytest.mark.slow
def test_coco_in_processes(tmp_path: Path) -> None:
    detections = [detection(i, box(3 * i + i % 3), 0.1 * i) for i in range(6)]
    one, two = (score_coco(tmp_path, detections, workers) for workers in (1, 2))
    assert (one.rows, one.figures, one.intervals) == (two.rows, two.figures, two.intervals)


# ------------------------------------------------------------------------------------------------------- intervals


def rows(values: Mapping[str, Sequence[float]]) -> list[SampleScore]:
    return [
        SampleScore(video, str(i), "", (), {"J": (value, 1.0)})
        for video, group in values.items()
        for i, value in enumerate(group)
    ]


def test_intervals_are_reproducible_and_hold_the_figure() -> None:
    rng = np.random.default_rng(0)
    made = rows({f"v{v}": rng.random(rng.integers(1, 9)) for v in range(30)})
    ends = intervals(made)["J"]
    assert ends == intervals(made)["J"]
    assert ends != intervals(made, seed=1)["J"]
    assert ends[0] < figures(made)["J"] < ends[1]


def test_videos_are_drawn_not_expressions() -> None:
    """Expressions that only repeat what their video says narrow nothing."""
    once = rows({f"v{v}": [v / 10] for v in range(10)})
    often = rows({f"v{v}": [v / 10] * 50 for v in range(10)})
    assert intervals(often)["J"] == pytest.approx(intervals(once)["J"])
    assert intervals(rows({"v": [0.2, 0.4]}))["J"] == pytest.approx((30, 30))


def test_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).random(400)
    low, high = intervals(rows({f"v{v}": [x] for v, x in enumerate(values)}))["J"]
    assert (high - low) / 2 == pytest.approx(100 * 1.96 * values.std() / 20, rel=0.1)


# ------------------------------------------------------------------------------------------- command, files, compare


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.DATASETS, "mevis", data("mevis", MevisSplit))


@pytest.mark.usefixtures("named")
def test_files_and_table(root: Path, pred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"model": "default", "pretraining": "none", "seed": 3, "resolution": [360, 640]}
    (pred / "predict.json").write_text(json.dumps(facts))
    out = tmp_path / "deep" / "out"
    run("mevis", root, "valid_u", pred, out)
    results = json.loads((out / "results.json").read_text())
    names = [".dshmp.json", "expressions.csv", "results.json", "videos.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert results["prediction"] == facts
    assert results["counts"] == {"videos": 2, "expressions": 5, "frames": 2 * T, "expression frames": 5 * T}
    assert results["figures"]["J&F"] == 100
    assert results["code"]["version"]
    assert results["bootstrap"]["seed"] == 0
    assert len(results["frame_list"]["sha256"]) == 64
    lines = (out / "expressions.csv").read_text().splitlines()
    assert lines[0] == "video,expression,text,J&F,J,F,T-acc,N-acc"
    assert lines[1] == "bird,0,bird 0,100.0,100.0,100.0,100.0,"
    assert (out / "videos.csv").read_text().splitlines()[2].startswith("cat,2,100.0,")
    printed = capsys.readouterr().out
    assert "2 videos, 5 expressions" in printed
    assert "100.0" in printed


@pytest.mark.usefixtures("named")
def test_command(root: Path, pred: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = ["score", "mevis", str(root), "--split", "valid_u", "--pred", str(pred), "--workers", "1"]
    with caplog.at_level(logging.WARNING):
        assert CliRunner().invoke(app, command).exit_code == 0
        assert not caplog.messages
        (pred / "cat" / "0" / f"{FRAMES[3]}.png").unlink()
        assert CliRunner().invoke(app, command).exit_code == 0
        assert caplog.messages == [
            f"1 frame(s) missing count 0, the first is cat/0/{FRAMES[3]}.png",
            "MeViS's own script leaves out the 1 incomplete expression(s) and gives J&F 100.0",
        ]
        (pred / "cat" / "0" / f"{FRAMES[4]}.png").write_bytes(b"no png")
        assert CliRunner().invoke(app, command).exit_code == 1
        assert any(message.startswith(f"cat/0/{FRAMES[4]}.png: is no PNG") for message in caplog.messages)


@pytest.mark.slow
@pytest.mark.usefixtures("named")
def test_comparison(root: Path, pred: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("mevis", root, "valid_u", pred, tmp_path / "one")
    other = tmp_path / "one" / "results.json"
    with caplog.at_level(logging.WARNING):
        run("mevis", root, "valid_u", pred, compare=other)
        assert not caplog.messages
        (pred / "predict.json").write_text('{"pretraining": "RefCOCO"}')
        run("mevis", root, "valid_u", pred, compare=other)
        assert caplog.messages == [f"not comparable with {other}: pretraining RefCOCO and unknown"]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=r"json: .* mend it"):
        run("mevis", root, "valid_u", pred, compare=tmp_path / "other.json")


@pytest.mark.slow
@pytest.mark.usefixtures("named")
def test_what_is_wrong_beside_is_told_before_scoring(
    root: Path, pred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("mevis", root, "valid_u", pred, tmp_path / "one")
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr("dshmp.evaluation.score.score_split", None)
        for wrong in ({"figures": []}, {"figures": {"J": "1"}}, {"intervals": {"J": [1]}}, {"frame_list": None}):
            (tmp_path / "r.json").write_text(json.dumps(results | wrong))
            with pytest.raises(UserError, match=r"json: .* mend it"):
                run("mevis", root, "valid_u", pred, compare=tmp_path / "r.json")
        for content in ("{", "[" * 100_000, "[]"):
            (pred / "predict.json").write_text(content)
            with pytest.raises(UserError, match=r"predict\.json"):
                run("mevis", root, "valid_u", pred)
        (pred / "predict.json").unlink()
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="is a file"):
            run("mevis", root, "valid_u", pred, tmp_path / "file" / "deep")
    odd = tmp_path / "a[" / "b]"
    odd.mkdir(parents=True)
    (odd / "r.json").write_text(json.dumps(results | {"figures": {"[/x]\x1b[31m": 1.0}}))
    monkeypatch.setattr("dshmp.evaluation.report.write", lambda *_: 1 / 0)
    capsys.readouterr()
    with pytest.raises(ZeroDivisionError):  # the table is there, whatever becomes of the files
        run("mevis", root, "valid_u", pred, tmp_path / "two", compare=odd / "r.json")
    printed = capsys.readouterr().out
    assert "[/x]\\x1b[31m" in printed
    assert "100.0" in printed


@pytest.mark.slow
def test_frames_of_ones_own_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = registry.dataset("a2d")
    (tmp_path / "root").mkdir()
    entry.mini(tmp_path / "root", 0)
    split = entry.open(tmp_path / "root", "test")
    (tmp_path / "pred").mkdir()
    write_truth(split, "coco", tmp_path / "pred")
    run("a2d", tmp_path / "root", "test", tmp_path / "pred")
    assert "frames: all annotated frames" in capsys.readouterr().out
    assert str(frame_list(split)).startswith("all annotated frames")


@pytest.mark.parametrize("subsets", [None, 5, [5], "few"])
def test_subsets_that_are_no_names(root: Path, pred: Path, subsets: Any) -> None:
    path = root / "valid_u" / "meta_expressions.json"
    meta = json.loads(path.read_text())
    meta["videos"]["cat"]["expressions"]["0"]["subsets"] = subsets
    path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match="subsets"):
        score(root, pred)


def test_a_video_without_frames(root: Path, pred: Path) -> None:
    path = root / "valid_u" / "meta_expressions.json"
    meta = json.loads(path.read_text())
    meta["videos"]["cat"]["frames"] = []
    path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match="cat"):
        score(root, pred)


def test_what_is_not_comparable() -> None:
    ours: dict[str, Any] = {
        "dataset": "mevis",
        "split": "valid_u",
        "frame_list": {"sha256": "1"},
        "prediction": {"resolution": 360, "pretraining": "none"},
    }
    assert differences(ours, ours) == []
    assert differences(ours, ours | {"split": "valid"}) == [
        "splits valid_u and valid: valid_u gives several points more than valid"
    ]
    assert differences(ours, ours | {"dataset": "a2d"}) == ["data sets mevis and a2d"]
    assert differences(ours, ours | {"frame_list": {"sha256": "2"}}) == ["other frames or expressions were scored"]
    assert differences(ours, ours | {"prediction": {"resolution": 448, "pretraining": "none"}}) == [
        "resolution 360 and 448"
    ]


@pytest.mark.parametrize(
    ("name", "split_name"),
    [
        ("mevis", "valid_u"),
        ("ref-youtube-vos", "train"),
        ("ref-davis17", "val"),
        ("a2d", "test"),
        ("jhmdb", "test"),
        ("refcoco", "val"),
    ],
)
def test_perfect_predictions_of_every_data_set(name: str, split_name: str, tmp_path: Path) -> None:
    entry = registry.dataset(name)
    (tmp_path / "root").mkdir()
    entry.mini(tmp_path / "root", 0)
    split = entry.open(tmp_path / "root", split_name)
    assert split.has_truth
    (tmp_path / "pred").mkdir()
    write_truth(split, entry.layout, tmp_path / "pred")
    scores = score_split(entry, tmp_path / "root", split_name, tmp_path / "pred")
    assert scores.problems == ()
    figure = "mIoU" if entry.layout == "coco" else "J&F"
    assert scores.figures[figure] == pytest.approx(100)
    assert {row.video for row in scores.rows} == {item.video for item in split.expressions}
    for pattern in ("JPEGImages", "*/JPEGImages", "Release/clips320H", "Rename_Images", "train2014"):
        for folder in (tmp_path / "root").glob(pattern):
            shutil.rmtree(folder)
    assert score_split(entry, tmp_path / "root", split_name, tmp_path / "pred").figures == scores.figures


def test_official_readers_take_our_refcoco_results(tmp_path: Path) -> None:
    """COCO's own loadRes reads the file, and where all scores tie its figure is ours."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    entry = registry.dataset("refcoco")
    entry.mini(tmp_path, 0)
    split = entry.open(tmp_path, "train")
    entries, images, annotations = [], [], []
    for n, item in enumerate(split.expressions):
        number, (height, width) = item.extra["image_id"], split.annotations[item.annotations[0]][1]
        truth = split.masks(item.video, item.annotations, [0], (height, width))[0, 0]
        answer = encode(np.roll(truth, n % 3 * 2, axis=1))
        entries.append({"image_id": number, "category_id": 1, "segmentation": answer, "score": 0.5})
        images.append({"id": number, "height": height, "width": width})
        area, known = int(truth.sum()), {"id": n + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
        annotations.append(known | {"segmentation": encode(truth), "area": area})
    (tmp_path / "predictions.json").write_text(json.dumps(entries))
    ground = COCO()
    ground.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1}]}
    ground.createIndex()
    evaluation = COCOeval(ground, ground.loadRes(str(tmp_path / "predictions.json")), "segm")
    evaluation.params.useCats = 0
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert len(images) > 10  # as text, 10 comes before 2
    found = score_split(entry, tmp_path, "train", tmp_path).figures["mAP"]
    assert found == pytest.approx(100 * evaluation.stats[0], abs=1e-9)


def test_a_crowd_is_no_target_of_map() -> None:
    truth = {1: encode(box(1)), 2: encode(box(9))}
    right = {1: [{"image_id": 1, "category_id": 1, "segmentation": truth[1], "score": 0.5}]}
    assert mean_average_precision(truth, right) < 0.6
    assert mean_average_precision(truth, right, {2}) == pytest.approx(1)
    assert mean_average_precision(truth, right, {1, 2}) == 0


def test_detections_at_the_size_of_the_mask_or_of_the_frame(tmp_path: Path) -> None:
    """A2D's masks may be a pixel off their clips."""

    class Odd(FakeCoco):
        def mask_size(self, video: str, annotations: Sequence[int], position: int) -> tuple[int, int]:
            return H, W + 1

        def masks(self, video: str, annotations: Sequence[int], positions: Sequence[int], size: Any) -> np.ndarray:
            assert size == (H, W + 1)
            return np.pad(super().masks(video, annotations, positions, size), [(0, 0)] * 3 + [(0, 1)])

    for wide in (0, 1):
        found = [detection(i, np.pad(coco_truth(i), [(0, 0), (0, wide)]), 0.5) for i in range(6)]
        (tmp_path / "predictions.json").write_text(json.dumps(found))
        scores = score_split(data("coco", Odd), tmp_path, "test", tmp_path)
        assert scores.problems == ()
        assert scores.figures["mIoU"] > (99.9 if wide else 80)


def test_masks_are_read_as_opencv_reads_them(root: Path, pred: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = pred / "bird" / "0"
    masks = truth("bird", "0").astype(np.uint8) * 255
    reverse = Image.fromarray(255 - masks[0])
    reverse = reverse.point(lambda v: v // 255)
    reverse.putpalette([255, 255, 255, 0, 0, 0])  # white has the index 0
    reverse.save(folder / f"{FRAMES[0]}.png")
    with open(folder / f"{FRAMES[1]}.png", "ab") as file:
        file.write(b"x")
    turned = Image.Exif()
    turned[0x112] = 3
    Image.fromarray(masks[2]).rotate(180).save(folder / f"{FRAMES[2]}.png", exif=turned)
    Image.new("L", (W, H)).save(folder / f"{FRAMES[3]}.png", "JPEG")
    scores = score(root, pred)
    assert by_key(scores)["bird", "0"].terms["J"][0] == pytest.approx((T - 1) / T)
    assert [(p.kind, p.path) for p in scores.problems] == [("palette", f"bird/0/{FRAMES[0]}.png")]
    warn(scores, "mevis")
    assert "1 masks are read as grey" in caplog.text
    turned[0x112] = 6
    Image.fromarray(masks[2]).save(folder / f"{FRAMES[2]}.png", exif=turned)
    assert "turned by its EXIF" in score(root, pred).damaged[0].reason


def write_truth(split: Any, layout: str, folder: Path) -> None:
    def save(path: Path, values: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(path)

    if layout == "davis":
        for name, video in split.videos.items():
            for t, labels in enumerate(split.index_masks(name)):
                for annotator in range(4):
                    save(folder / f"anno_{annotator}" / name / f"{video.frames[t]}.png", labels * (labels != 255))
        return
    detections = []
    for item in split.expressions:
        names = split.videos[item.video].frames
        positions = range(len(names)) if item.scored is None else item.scored
        size = split.frames(item.video, positions[:1])[0].shape[:2]
        masks = split.masks(item.video, item.annotations, positions, size).any(0)
        for t, mask in zip(positions, masks, strict=True):
            if layout == "coco":
                key = item.extra.get("image_id", item.id)
                detections.append({"image_id": key, "category_id": 1, "segmentation": encode(mask), "score": 1})
            else:
                save(folder / item.video / item.id / f"{names[t]}.png", mask * 255)
    if layout == "coco":
        (folder / "predictions.json").write_text(json.dumps(detections))


def test_hidden_truth(root: Path, pred: Path) -> None:
    path = root / "valid_u" / "meta_expressions.json"
    meta = json.loads(path.read_text())
    for video in meta["videos"].values():
        video["expressions"] = {key: {"exp": item["exp"]} for key, item in video["expressions"].items()}
    path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match="masks are not public"):
        score(root, pred)


def test_reading_one_file(pred: Path) -> None:
    predictions = Predictions(pred)
    assert predictions.holds("cat/0")
    assert not predictions.holds("cat/7")
    assert predictions.read_json("cat/7/x.png") is None
