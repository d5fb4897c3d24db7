"""Predictions of every layout: laid out exactly, whole after any kill, the same from one process and from two."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image

from clips import tiny_model
from dshmp.checkpoint import save_model
from dshmp.common.errors import UserError
from dshmp.common.files import locked
from dshmp.common.options import Options
from dshmp.common.rle import decode
from dshmp.data import registry
from dshmp.data.base import Expression, Video, times_shown
from dshmp.data.mevis import MevisSplit
from dshmp.data.mini import make_mini
from dshmp.data.registry import dataset, open_split
from dshmp.evaluation.predict import deal, merge_objects, pieces, probability, run, scored_place
from dshmp.evaluation.predictions import validate_zip
from dshmp.evaluation.score import score_split
from dshmp.inference.segmenter import Segmenter
from dshmp.model.dshmp import DsHmp
from dshmp.training.held_out import score_videos
from dshmp.video.io import open_video

SPLITS = {
    "mevis": "valid_u",
    "ref-youtube-vos": "valid",
    "ref-davis17": "val",
    "a2d": "test",
    "jhmdb": "test",
    "refcoco": "val",
}
COCO = [name for name in SPLITS if dataset(name).layout == "coco"]
Tree = dict[str, bytes]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniatures, made when they are asked for, and two tiny models."""
    folder = tmp_path_factory.mktemp("predict")
    save_model(*tiny_model(chunk=3, threshold=0.2), folder / "tiny")
    save_model(*tiny_model(chunk=3, threshold=0.2, masks="embedding", fusion=True), folder / "fused")
    return folder


def predict(home: Path, name: str, out: Path, model: str = "tiny", **given: Any) -> Any:
    """Predict a miniature's split in this process."""
    more = {key: given.pop(key) for key in ("zip_path", "zipped") if key in given}
    return run(name, mini(home, name), SPLITS[name], out, tiny(home, model, **given), **more)


def tiny(home: Path, model: str = "tiny", **given: Any) -> Options:
    return Options(model=str(home / model), device="cpu", **given)


def mini(home: Path, name: str) -> Path:
    root = home / name
    if not root.is_dir():
        make_mini(name, dataset(name).mini, root)
    return root


def undisturbed(home: Path, name: str) -> Tree:
    """What one run gives."""
    out = home / "undisturbed" / name
    if not out.is_dir():
        predict(home, name, out)
    return tree(out)


def tree(out: Path) -> Tree:
    """All that is in a folder, and the zip file beside it."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    archive = out.with_name(out.name + ".zip")
    return files | ({".zip": archive.read_bytes()} if archive.is_file() else {})


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.slow
def test_the_model_is_told_when_its_frames_are(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in training: a window that repeats an end of its video says so, others are regular."""
    told: dict[tuple[int, ...], None] = {}
    decode_motion = DsHmp.decode_motion

    def remember(self: DsHmp, candidates: Any, text: Any, position: Any, stride: int) -> Any:
        told[tuple(position[0].tolist())] = None
        return decode_motion(self, candidates, text, position, stride)

    monkeypatch.setattr(DsHmp, "decode_motion", remember)
    predict(home, "a2d", tmp_path / "out")
    split = open_split("a2d", home / "a2d", "test")
    windows = {tuple(t - item.shown[0] for t in item.shown) for item in split.expressions if item.shown}
    assert told.keys() == windows
    assert any(len(set(window)) < len(window) for window in windows)
    told.clear()
    held_out = score_videos(Segmenter.from_pretrained(home / "tiny", "cpu"), {"a2d": split}, 99)
    assert held_out.values
    assert told.keys() <= windows
    assert any(len(set(window)) < len(window) for window in told)


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "top"), [("mevis", ""), ("ref-youtube-vos", "Annotations/")])
def test_masks_of_every_expression(home: Path, tmp_path: Path, name: str, top: str) -> None:
    done = predict(home, name, tmp_path / "out")
    split = open_split(name, home / name, SPLITS[name])
    wanted = {
        f"{top}{item.video}/{item.id}/{frame}.png"
        for item in split.expressions
        for frame in split.videos[item.video].frames
    }
    assert tree(tmp_path / "out").keys() == {*wanted, "predict.json", ".zip"}
    assert (done.facts["counts"]["expressions"], done.skipped, done.zip) == (
        len(split.expressions),
        0,
        tmp_path / "out.zip",
    )
    assert validate_zip(done.zip, split, dataset(name).layout) == []
    segmenter = Segmenter.from_pretrained(home / "tiny", "cpu")
    covered = []
    for video in split.videos:
        items = [item for item in split.expressions if item.video == video]
        frames = split.frames(video)
        answers = segmenter(np.stack(frames), [item.text for item in items], targets=dataset(name).targets)
        for item, answer in zip(items, answers, strict=True):
            folder = tmp_path / "out" / f"{top}{video}/{item.id}"
            pictures = [Image.open(folder / f"{frame}.png") for frame in split.videos[video].frames]
            assert {picture.mode for picture in pictures} == {"L"}
            assert (np.stack([np.asarray(p) for p in pictures]) == answer.masks * 255).all()
            covered.append(answer.masks.mean())
    assert 0 < np.mean(covered) < 1


def test_objects_of_every_annotator(home: Path, tmp_path: Path) -> None:
    predict(home, "ref-davis17", tmp_path / "out")
    split = open_split("ref-davis17", home / "ref-davis17", "val")
    wanted = {
        f"anno_{a}/{video.name}/{frame}.png"
        for a in range(4)
        for video in split.videos.values()
        for frame in video.frames
    }
    assert tree(tmp_path / "out").keys() == {*wanted, "predict.json"}
    segmenter = Segmenter.from_pretrained(home / "tiny", "cpu")
    shown = set()
    for video in split.videos.values():
        truth = read(home / "ref-davis17/Annotations_unsupervised/480p" / video.name / "00000.png")
        for a in range(4):
            said = [item for item in split.expressions if item.video == video.name and item.extra["annotator"] == a]
            answers = segmenter(np.stack(split.frames(video.name)), [i.text for i in said], targets="single")
            masks = {item.objects[0]: answer.masks for item, answer in zip(said, answers, strict=True)}
            for t, frame in enumerate(video.frames):
                picture = Image.open(tmp_path / "out" / f"anno_{a}/{video.name}/{frame}.png")
                indices = np.asarray(picture)
                assert (picture.mode, indices.shape) == ("P", truth.shape)
                assert ((indices > 0) == np.any([mask[t] for mask in masks.values()], axis=0)).all()
                for number in np.unique(indices[indices > 0]):
                    assert masks[number][t][indices == number].all()
                    shown.add(number)
    assert shown >= {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", COCO)
def test_detections_of_every_sample(home: Path, tmp_path: Path, name: str) -> None:
    predict(home, name, tmp_path / "out")
    assert tree(tmp_path / "out").keys() == {"predictions.json", "predict.json"}
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    split = open_split(name, home / name, SPLITS[name])
    samples = {item.extra.get("image_id", item.id): item for item in split.expressions}
    assert Counter(entry["image_id"] for entry in entries) == Counter(dict.fromkeys(samples, 4))  # 4 video tokens
    segmenter = Segmenter.from_pretrained(home / "tiny", "cpu")
    for key, item in list(samples.items())[:4]:
        scored = 0 if item.shown is None else len(item.shown) // 2  # windows are centred
        video = open_video(np.stack(split.frames(item.video, item.shown)))
        source = replace(video, positions=times_shown(item.shown or (0,)))
        (answer,) = segmenter.answer(source, [item.text], threshold=0.0, targets="many")
        own = [entry for entry in entries if entry["image_id"] == key]
        assert [entry["score"] for entry in own] == [found.score for found in answer.objects]
        assert [entry["segmentation"] for entry in own] == [found.rle[scored] for found in answer.objects]
        assert decode([own[0]["segmentation"]])[0].shape == split.frames(item.video, [0])[0].shape[:2]
        assert {entry["category_id"] for entry in own} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SPLITS if name != "ref-youtube-vos"])
def test_scoring_reads_it(home: Path, name: str) -> None:
    undisturbed(home, name)
    scores = score_split(dataset(name), home / name, SPLITS[name], home / "undisturbed" / name)
    assert scores.problems == ()
    assert all(row.complete for row in scores.rows)


def test_facts(home: Path, tmp_path: Path) -> None:
    undisturbed(home, "mevis")
    facts = json.loads((home / "undisturbed/mevis/predict.json").read_text())
    assert facts["complete"]
    assert (facts["dataset"], facts["split"], facts["threshold"], facts["targets"]) == ("mevis", "valid_u", 0.2, "many")
    assert facts["resolution"] == "short side 48, long side at most 80"
    assert facts["pretraining"] is None  # the tiny model's card says nothing
    split = open_split("mevis", home / "mevis", "valid_u")
    assert facts["counts"]["videos"] == 3
    assert facts["counts"]["expressions"] == len(split.expressions)


@pytest.mark.slow
def test_nothing_meant_is_black(home: Path, tmp_path: Path) -> None:
    for name in ("mevis", "ref-davis17"):
        predict(home, name, tmp_path / name, threshold=1.0, single=False)
        paths = list((tmp_path / name).rglob("*.png"))
        assert len(paths) > 60
        assert not any(read(path).any() for path in paths)


@pytest.mark.slow
def test_words_in_the_pixel_features(home: Path, tmp_path: Path) -> None:
    """Expressions are then asked one by one, and still share the decoding."""
    predict(home, "mevis", tmp_path / "out", "fused", zipped=False)
    split = open_split("mevis", home / "mevis", "valid_u")
    item = split.expressions[1]
    answer = Segmenter.from_pretrained(home / "fused", "cpu")(np.stack(split.frames(item.video)), item.text)
    folder = tmp_path / "out" / item.video / item.id
    assert (np.stack([read(path) for path in sorted(folder.iterdir())]) == answer.masks * 255).all()


@pytest.mark.parametrize("model", ["tiny", "fused"])
def test_every_frame_is_decoded_once(home: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    read_frames = MevisSplit.frames

    def frames(self: MevisSplit, video: str, positions: Sequence[int] | None = None) -> list[np.ndarray]:
        assert positions is not None
        seen.update((video, position) for position in positions)
        return read_frames(self, video, positions)

    root = mini(home, "mevis")
    monkeypatch.setattr(MevisSplit, "frames", frames)
    run("mevis", root, "valid_u", tmp_path / "out", tiny(home, model), zipped=False)
    split = MevisSplit(root, "valid_u")
    assert seen == Counter({(v.name, t): 1 for v in split.videos.values() for t in range(len(v.frames))})


@pytest.mark.parametrize("name", ["a2d", "jhmdb"])
def test_windows_are_decoded_once(home: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = mini(home, name)
    kind = type(open_split(name, root, "test"))
    seen: Counter[str] = Counter()
    read_frames = kind.frames

    def frames(self: Any, video: str, positions: Sequence[int] | None = None) -> list[np.ndarray]:
        seen[video] += 1
        return read_frames(self, video, positions)

    monkeypatch.setattr(kind, "frames", frames)
    predict(home, name, tmp_path / "out")
    assert set(seen.values()) == {1}


# --- rules -----------------------------------------------------------------------------------------------------------


def test_merging_objects_by_hand() -> None:
    one = torch.tensor([[0.9, 0.6, 0.49, 0.05], [0.5, 0.0, 0.8, 0.499]])
    two = torch.tensor([[0.8, 0.7, 0.48, 0.09], [0.5, 0.51, 0.8, 0.4]])
    merged = merge_objects([one, two], [3, 12])
    assert merged.dtype == np.uint8
    assert merged.tolist() == [[3, 12, 0, 0], [3, 12, 3, 0]]


def test_probability_is_the_best_masks() -> None:
    logits = torch.tensor([[[0.0, 2.0]], [[-1.0, 3.0]]])
    assert torch.equal(probability(logits), torch.tensor([[0.0, 3.0]]).sigmoid())
    assert torch.equal(probability(torch.zeros(0, 2, 3)), torch.zeros(2, 3))


def test_scored_frame_of_a_window() -> None:
    assert scored_place((0, 0, 0, 0, 0, 1, 2, 3), 0) == 4
    assert scored_place((5, 6, 7, 8, 9, 9, 9, 9), 9) == 4
    assert scored_place((2, 3, 4), 4) == 2


class Named:
    """A split of names only."""

    folder = Path("data")
    has_truth = False

    def __init__(self, *items: Expression, lengths: dict[str, int]) -> None:
        self.expressions = list(items)
        self.videos = {n: Video(n, tuple(f"{t:05d}" for t in range(count))) for n, count in lengths.items()}

    def frames(self, video: str, positions: Sequence[int] | None = None) -> list[np.ndarray]:
        raise AssertionError

    masks = frames


def test_dealing_is_balanced_and_complete() -> None:
    rng = random.Random(0)
    lengths = {f"v{i}": rng.randint(1, 300) for i in range(60)}
    items = [Expression(video, str(k), "a") for video in lengths for k in range(rng.randint(1, 20))]
    split = Named(*items, lengths=lengths)
    plan = pieces(split, "mevis")
    dealt = deal(plan, split, 4)
    assert sorted(video for videos in dealt for video in videos) == sorted(lengths)
    counts = Counter(item.video for item in items)
    loads = [sum(lengths[v] * counts[v] for v in videos) for videos in dealt]
    assert max(loads) < 1.05 * min(loads)
    assert deal(plan, split, 4) == dealt
    assert [v for v in lengths if v in dealt[2]] == dealt[2]  # in the split's order


# --- going on --------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def resize(path: Path) -> None:
    Image.open(path).resize((20, 10)).save(path)


def recolour(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


@pytest.mark.parametrize(
    ("name", "damage"), [("ref-davis17", recolour), *(("mevis", damage) for damage in (cut, flip, resize, Path.unlink))]
)
def test_damaged_masks_are_made_anew(home: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    whole = undisturbed(home, name)
    out = shutil.copytree(home / "undisturbed" / name, tmp_path / "out")
    one = sorted(out.rglob("*.png"))[11]
    others = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if path.parent != one.parent}
    damage(one)
    done = predict(home, name, out)
    assert done.facts["counts"]["expressions"] - done.skipped == (1 if name == "mevis" else 4)  # an annotator's
    assert tree(out) == whole
    assert {path: path.stat().st_mtime_ns for path in others} == others  # not touched


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mevis", "jhmdb"])
def test_what_is_the_users_stays(name: str, home: Path, tmp_path: Path) -> None:
    """Whether the run goes on or begins anew; what a killed one left goes."""
    whole = undisturbed(home, name)
    out = shutil.copytree(home / "undisturbed" / name, tmp_path / "out")
    deep = next(path for path in sorted(out.rglob("*")) if path.is_file()).parent
    mine = {out / "notes.txt", deep / ".DS_Store", out / ".3.partial" / "v", out / "parts" / "x"}
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (out / ".dshmp-0123456789ab.partial").mkdir()
    for overwrite in (False, True):
        done = predict(home, name, out, overwrite=overwrite)
        assert (done.skipped == 0) == overwrite
        assert tree(out) == whole | {path.relative_to(out).as_posix(): b"mine" for path in mine}
        assert not list(out.glob(".dshmp*"))


@pytest.mark.slow
def test_damaged_detections_are_made_anew(home: Path, tmp_path: Path) -> None:
    whole = undisturbed(home, "jhmdb")
    entries = json.loads(whole["predictions.json"])
    out = shutil.copytree(home / "undisturbed/jhmdb", tmp_path / "out")
    broken = entries[0] | {"segmentation": entries[0]["segmentation"] | {"counts": "0"}}
    for wrong in ("[", "{}", json.dumps(entries[:-4]), json.dumps([broken, *entries[1:]]), "[3]"):
        (out / "predictions.json").write_text(wrong)
        done = predict(home, "jhmdb", out)
        assert done.skipped == 0
        assert tree(out) == whole
    assert predict(home, "jhmdb", out).skipped == done.facts["counts"]["expressions"]


@pytest.mark.slow
def test_other_settings_are_refused(home: Path, tmp_path: Path) -> None:
    whole = undisturbed(home, "mevis")
    out = shutil.copytree(home / "undisturbed/mevis", tmp_path / "out")
    for options, message in (
        ({"threshold": 0.3}, r"different threshold \(0.2, not 0.3\)"),
        ({"single": True}, "different t"),
        ({"model": "fused"}, "different weights"),
        ({"precision": "bfloat16"}, "different precision"),
    ):
        with pytest.raises(UserError, match=message):
            predict(home, "mevis", out, **options)
    assert tree(out).items() <= whole.items()
    with pytest.raises(UserError, match="different dataset"):
        predict(home, "jhmdb", out)
    with pytest.raises(UserError, match="different split"):
        run("mevis", home / "mevis", "valid", out, tiny(home))
    shutil.copytree(home / "tiny", tmp_path / "moved")
    again = run("mevis", home / "mevis", "valid_u", out, tiny(tmp_path, "moved"))
    assert again is not None
    assert again.skipped == again.facts["counts"]["expressions"]  # the same weights, wherever they lie
    predict(home, "mevis", out, threshold=1.0, overwrite=True)
    assert tree(out).keys() == whole.keys()
    assert tree(out) != whole
    predict(home, "mevis", out, overwrite=True)
    assert tree(out) == whole


def test_foreign_folders_are_left_alone(home: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds no predictions"):
            predict(home, "mevis", tmp_path, overwrite=overwrite)
    assert tree(tmp_path) == {"diary.txt": b"precious"}


def test_what_is_hidden_in_a_foreign_folder_stays(home: Path, tmp_path: Path) -> None:
    (tmp_path / ".thesis.partial").write_text("precious")
    (tmp_path / "predict.json").write_text('{"my": "own"}')
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"predict\.json: is not of `dshmp predict`"):
            predict(home, "mevis", tmp_path, overwrite=overwrite)
    (tmp_path / "predict.json").unlink()
    with pytest.raises(UserError, match="holds no predictions"):
        predict(home, "mevis", tmp_path)
    assert tree(tmp_path) == {".thesis.partial": b"precious"}


def test_only_its_own_zip_file_is_replaced(home: Path, tmp_path: Path) -> None:
    whole = undisturbed(home, "mevis")
    archive = tmp_path / "out.zip"
    archive.write_text("a thesis")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"out\.zip: is there, and not of the predictions"):
            predict(home, "mevis", tmp_path / "out", overwrite=overwrite)
    assert archive.read_text() == "a thesis"
    archive.unlink()
    shutil.copytree(home / "undisturbed/mevis", tmp_path / "out", dirs_exist_ok=True)
    shutil.copy(home / "undisturbed/mevis.zip", archive)
    predict(home, "mevis", tmp_path / "out", zipped=False)  # still knows it
    next((tmp_path / "out").rglob("*.png")).unlink()
    predict(home, "mevis", tmp_path / "out")
    assert tree(tmp_path / "out") == whole
    archive.write_bytes(b"other")
    with pytest.raises(UserError, match="not of the predictions"):
        predict(home, "mevis", tmp_path / "out")
    assert archive.read_bytes() == b"other"


def edited(home: Path, tmp_path: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    """A miniature of MeViS whose first video's expressions are changed."""
    root = shutil.copytree(mini(home, "mevis"), tmp_path / "edited")
    path = root / "valid_u" / "meta_expressions.json"
    meta = json.loads(path.read_text())
    change(list(next(iter(meta["videos"].values()))["expressions"].values()))
    path.write_text(json.dumps(meta))
    return root


@pytest.mark.slow
def test_odd_sentences_are_answered(home: Path, tmp_path: Path) -> None:
    whole = undisturbed(home, "mevis")

    def change(items: list[dict[str, Any]]) -> None:
        items[0]["exp"], items[1]["exp"] = " ", items[1]["exp"] + " that turns" * 5_000

    root = edited(home, tmp_path, change)
    done = run("mevis", root, "valid_u", tmp_path / "out", tiny(home))
    assert done is not None
    assert done.zip is not None
    files = tree(tmp_path / "out")
    assert files.keys() == whole.keys()
    first, second = (item for item in open_split("mevis", root, "valid_u").expressions[:2])
    odd = [name for name in files if name.startswith((f"{first.video}/{first.id}/", f"{second.video}/{second.id}/"))]
    empty = [name for name in odd if name.startswith(f"{first.video}/{first.id}/")]
    assert not any(read(tmp_path / "out" / name).any() for name in empty)
    same = whole.keys() - {*odd, "predict.json", ".zip"}
    assert {name: files[name] for name in same} == {name: whole[name] for name in same}


@pytest.mark.parametrize("name", ["ref-davis17", "jhmdb"])
def test_nothing_is_the_answer_to_nothing(
    home: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = dataset(name).open
    root = mini(home, name)

    def empty(*arguments: Any) -> Any:
        split = opened(*arguments)
        video = split.expressions[0].video
        split.expressions = [replace(i, text="") if i.video == video else i for i in split.expressions]
        return split

    monkeypatch.setitem(registry.DATASETS, name, replace(dataset(name), open=empty))
    split = empty(root, SPLITS[name])
    for skipped in (0, len(split.expressions)):
        assert predict(home, name, tmp_path / "out").skipped == skipped
    if name == "jhmdb":
        entries = json.loads((tmp_path / "out/predictions.json").read_text())
        silent = {item.extra["image_id"] for item in split.expressions if not item.text}
        assert {entry["image_id"] for entry in entries} == {i.extra["image_id"] for i in split.expressions} - silent
    else:
        pictures = list((tmp_path / "out").glob(f"anno_*/{split.expressions[0].video}/*.png"))
        assert pictures
        assert not any(read(path).any() for path in pictures)


@pytest.mark.slow
def test_groups_change_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {name: undisturbed(home, name) for name in ("mevis", "refcoco")}
    monkeypatch.setattr("dshmp.evaluation.predict.BATCH", 2)
    for name in whole:
        predict(home, name, tmp_path / name)
        assert tree(tmp_path / name) == whole[name]


@pytest.mark.slow
def test_a_full_disk_is_told_in_a_line(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, picture: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    whole = undisturbed(home, "mevis")
    with monkeypatch.context() as patch:
        patch.setattr("dshmp.evaluation.predict.save_png", full)
        with pytest.raises(OSError, match=r"No space left on device: .*\.png"):
            predict(home, "mevis", tmp_path / "out")
    predict(home, "mevis", tmp_path / "out")
    assert tree(tmp_path / "out") == whole


def test_wrong_arguments(home: Path, tmp_path: Path) -> None:
    for name, options in (
        ("a2d", {"threshold": 0.5}),
        ("a2d", {"single": True}),
        ("jhmdb", {"zip_path": tmp_path / "x.zip"}),
        ("mevis", {"threshold": 2.0}),
        ("mevis", {"precision": "int3"}),
    ):
        with pytest.raises(UserError):
            predict(home, name, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_failing_video_is_told_and_the_rest_is_done(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = undisturbed(home, "mevis")
    root = shutil.copytree(home / "mevis", tmp_path / "mevis")
    frame = sorted((root / "valid_u/JPEGImages").glob("*/00003.jpg"))[1]
    content = frame.read_bytes()
    frame.write_bytes(b"")
    with pytest.raises(UserError, match="1 of 3 videos failed"):
        run("mevis", root, "valid_u", tmp_path / "out", tiny(home))
    assert [record.message for record in caplog.records if frame.parent.name in record.message]
    there = tree(tmp_path / "out")
    assert {Path(name).parts[0] for name in whole} - {Path(name).parts[0] for name in there} == {
        frame.parent.name,
        ".zip",
    }
    assert not json.loads(there["predict.json"])["complete"]
    frame.write_bytes(content)
    run("mevis", root, "valid_u", tmp_path / "out", tiny(home))
    assert comparable(tree(tmp_path / "out")) == comparable(whole)


def comparable(files: Tree) -> Tree:
    return {name: content for name, content in files.items() if name != "predict.json"}


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruption_leaves_nothing_half_written(
    home: Path, tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed(home, "mevis")
    written = []

    def stop(path: Path, picture: np.ndarray) -> None:
        written.append(path)
        if len(written) == 120:
            raise error
        save_png(path, picture)

    from dshmp.video.overlay import save_png

    with monkeypatch.context() as patch:
        patch.setattr("dshmp.evaluation.predict.save_png", stop)
        with pytest.raises(error):
            predict(home, "mevis", tmp_path / "out")
    files = tree(tmp_path / "out")
    assert 8 < len(files) < len(whole)
    assert comparable(files).items() <= whole.items()
    assert not any(".partial" in name for name in files)
    predict(home, "mevis", tmp_path / "out")
    assert tree(tmp_path / "out") == whole


def test_one_run_at_a_time(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out), pytest.raises(UserError, match="another run is writing"):
        predict(home, "mevis", out)


# --- processes -------------------------------------------------------------------------------------------------------

CONTEXT = multiprocessing.get_context("forkserver")
"""Processes that start from one that has imported everything, and has no threads: others may hang in a fork."""
CONTEXT.set_forkserver_preload(["dshmp.evaluation.predict", "dshmp.checkpoint"])
torch.set_num_threads(1)  # in them too, which read this file but not conftest.py


def start(home: Path, name: str, out: Path) -> Any:
    process = CONTEXT.Process(target=predict, args=(home, name, out), daemon=True)
    process.start()
    return process


def remove(out: Path) -> None:
    shutil.rmtree(out)
    out.with_name(out.name + ".zip").unlink(missing_ok=True)


def kill_and_go_on(home: Path, name: str, out: Path, kills: int, moments: int = 1) -> list[int]:
    """Kill runs at random moments, each going on where the last was killed; how many files every one had left. On a
    busy machine all may be killed at the same moment: up to three times as many are, to have so many `moments`."""
    rng = random.Random(0)
    begun = time.monotonic()
    start(home, name, out).join()
    length = time.monotonic() - begun
    remove(out)
    left: list[int] = []
    while len(left) < kills or (len(set(left)) < moments and len(left) < 3 * kills):
        process = start(home, name, out)
        process.join(rng.uniform(0, length))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            left.append(len(tree(out)) if out.is_dir() else 0)
        else:
            remove(out)
    return left


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mevis", "jhmdb"])
def test_killed_runs_go_on(home: Path, tmp_path: Path, name: str) -> None:
    whole = undisturbed(home, name)
    assert len(kill_and_go_on(home, name, tmp_path / "out", kills=5)) == 5
    predict(home, name, tmp_path / "out")
    assert tree(tmp_path / "out") == whole


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", SPLITS)
def test_runs_killed_often_go_on(home: Path, tmp_path: Path, name: str) -> None:
    whole = undisturbed(home, name)
    left = kill_and_go_on(home, name, tmp_path / "out", kills=20, moments=2)
    assert len(set(left)) > 1  # at different moments
    predict(home, name, tmp_path / "out")
    assert tree(tmp_path / "out") == whole


def rank(number: int, port: int, home: Path, name: str, out: Path) -> None:
    """One of two processes, as a launcher starts them."""
    PartialState._reset_state()
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    done = predict(home, name, out)
    assert (done is not None) == (number == 0)
    assert PartialState().num_processes == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mevis", "a2d"])
def test_two_processes_equal_one(home: Path, tmp_path: Path, name: str) -> None:
    whole = undisturbed(home, name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        CONTEXT.Process(target=rank, args=(i, port, home, name, tmp_path / "out"), daemon=True) for i in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert tree(tmp_path / "out") == whole


@pytest.mark.slow
def test_torchrun(home: Path, tmp_path: Path) -> None:
    whole = undisturbed(home, "ref-davis17")
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dshmp"]
    command = ["predict", "ref-davis17", str(home / "ref-davis17"), "--split", "val", "--out", str(out)]
    options = ["--model", str(home / "tiny"), "--device", "cpu"]
    result = subprocess.run([*launch, *command, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"wrote {out}: 2 videos, 28 expressions"]
    assert tree(out) == whole
    result = subprocess.run([*launch, *command, *options, "--many"], capture_output=True, text=True)
    assert result.returncode != 0
    assert "holds predictions of a different t" in result.stderr
    assert tree(out) == whole


def test_command(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dshmp.cli import main

    whole = undisturbed(home, "mevis")
    out, archive = tmp_path / "out", tmp_path / "send.zip"
    options = ["--split", "valid_u", "--out", str(out), "--model", str(home / "tiny"), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["dshmp", "predict", "mevis", str(home / "mevis"), *options, "--zip", str(archive)])
    for lines in (
        [f"wrote {out}: 3 videos, 25 expressions", f"wrote {archive}, a valid submission"],
        [f"wrote {out}: 3 videos, 25 expressions, 25 of them before", f"wrote {archive}, a valid submission"],
    ):
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0
        assert capsys.readouterr().out.splitlines() == lines
        assert archive.read_bytes() == whole[".zip"]
    with zipfile.ZipFile(archive) as file:
        assert len(file.namelist()) == 200
