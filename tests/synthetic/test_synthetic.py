"""The synthetic data set: determinism, exact meanings, time reversals, layout on disk."""

import json
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from dshmp.common.errors import UserError
from dshmp.evaluation.metrics import jf_frames
from dshmp.synthetic import SPLITS, SUBSETS, Clip, make_clip, make_synthetic, time_reversed
from dshmp.synthetic.cast import FAMILIES
from dshmp.synthetic.grammar import (
    FRAMES,
    HELD_OUT_CLAIMS,
    HELD_OUT_LOOKS,
    SHAPES,
    Look,
    Meaning,
    inflect,
    known_words,
    new_words,
    resolve,
)
from dshmp.synthetic.make import clip_seed
from dshmp.synthetic.motions import CLAIMS, MIRROR, OPPOSITE, PROGRAMS, RELATIVE, motion, reading, reverse
from dshmp.synthetic.plan import Plan, plan_clip
from dshmp.synthetic.render import outline
from dshmp.synthetic.world import WORLDS, schedule, world_of


def plans(split: str, count: int, version: int) -> list[Plan]:
    schedule = world_of(version).schedule
    return [plan_clip(1000 + i, schedule[i % len(schedule)], split, version) for i in range(count)]


@pytest.fixture(scope="module", params=tuple(WORLDS))
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def train_plans(version: int) -> list[Plan]:
    return plans("train", 160, version)


@pytest.fixture(scope="module")
def test_plans(version: int) -> list[Plan]:
    return plans("test", 80, version)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic data sets") / "tiny"
    assert make_synthetic(root, train=4, valid=2, test=2, seed=3, workers=1)
    return root


# --- Clips ---


@pytest.mark.parametrize("family", FAMILIES)
def test_clip_is_a_pure_function_of_its_arguments(family: str) -> None:
    first, second = make_clip(5, family, "train"), make_clip(5, family, "train")
    assert np.array_equal(first.frames, second.frames)
    assert np.array_equal(first.masks, second.masks)
    assert first.expressions == second.expressions
    frames, height, width, _ = first.frames.shape
    assert frames % 8 == 0
    assert min(height, width) in range(112, 145)
    assert max(height, width) <= 256
    assert 1 <= len(first.items) <= 10
    assert first.masks.shape == (len(first.items), frames, height, width)
    assert first.masks.sum(axis=0).max() == 1  # visible pixels belong to one object


def test_seeds_differ() -> None:
    assert not np.array_equal(make_clip(1, "easy").frames[0, :80, :80], make_clip(2, "easy").frames[0, :80, :80])


def test_unknown_family_and_split() -> None:
    with pytest.raises(ValueError, match="family"):
        plan_clip(0, "none", "train")
    with pytest.raises(ValueError, match="split"):
        plan_clip(0, None, "valid")


def test_objects_are_large_enough() -> None:
    spans = [
        1 + max(np.ptp(where) for where in np.nonzero(mask))
        for seed, family in enumerate(("alike", "crowd", "easy"))
        for masks in make_clip(seed, family, version=1).masks
        for mask in masks[::4]
        if mask.any()
    ]
    assert np.percentile(spans, 10) >= 20


def test_objects_of_close_clips() -> None:
    """40 pixels across in all frames, unless another one hides a part; look-alikes that motion tells apart."""
    subsets: Counter[str] = Counter()
    for seed in range(12):
        clip = make_clip(seed, "close", version=1)
        assert clip.frames.shape == (8, 128, 128, 3)
        assert len({item.look for item in clip.items}) < len(clip.items)
        for expression in clip.expressions:
            subsets.update(expression.subsets or ["told by looks and motion"])
        for masks in clip.masks:
            spans = [1 + max(np.ptp(where) for where in np.nonzero(mask)) for mask in masks]
            whole = masks.sum((1, 2)) > 0.9 * masks.sum((1, 2)).max()
            assert np.array(spans)[whole].min() >= 40
    assert subsets["motion-critical"] > 12
    assert {"static", "plural", "absent", "told by looks and motion"} <= set(subsets)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_their_box(shape: str) -> None:
    rows, columns = np.nonzero(outline(shape) > 0.5)
    assert max(np.ptp(rows), np.ptp(columns)) in range(45, 50)


def test_named_direction_is_the_direction_in_the_image() -> None:
    """The middle of the mask of an object that moves left, as drawn, camera included, ends further left."""
    checked = 0
    for seed in range(40):
        plan = plan_clip(seed, "pairs", "train", version=1)
        names = [item.motion.name for item in plan.items]
        if not set(names) & set(OPPOSITE):
            continue
        clip = make_clip(seed, "pairs", "train", version=1)
        for k, name in enumerate(names):
            ends = [clip.masks[k, t] for t in (0, -1)]
            if name in OPPOSITE and all(mask.sum() > 150 for mask in ends):
                (y0, x0), (y1, x1) = (np.mean(np.nonzero(mask), axis=1) for mask in ends)
                along = {"left": x0 - x1, "right": x1 - x0, "up": y0 - y1, "down": y1 - y0}
                assert along[name] > 0.25 * min(clip.frames.shape[1:3])
                assert max(along, key=along.__getitem__) == name
                checked += 1
        if checked >= 8:
            return
    raise AssertionError("too few steady motions to check")


# --- Time ---


def test_reverse_is_its_own_inverse() -> None:
    for name in set(PROGRAMS) - set(RELATIVE):
        assert reverse(reverse(name)) == name
        assert (reverse(name) == name) == (name in MIRROR)
    assert reverse("left>up") == "down>right"
    assert reverse("left>stop") == "wait>right"
    assert reverse("enter left") == "leave right"
    with pytest.raises(ValueError, match="no time reverse"):
        reverse("follow")


def test_time_reversal_is_the_clip_backwards_with_targets_swapped() -> None:
    clip = make_clip(11, "pairs", "train")
    back = time_reversed(clip)
    assert np.array_equal(back.frames, clip.frames[::-1])
    assert np.array_equal(back.masks, clip.masks[:, ::-1])
    pairs = [
        (one, other)
        for one, other in zip(clip.expressions, back.expressions, strict=True)
        if "direction pairs" in one.subsets
    ]
    assert len(pairs) >= 2
    for one, other in pairs:
        assert one.text == other.text
        assert len(one.meant) == len(other.meant) == 1
        assert one.meant != other.meant
        assert clip.items[one.meant[0]].look == clip.items[other.meant[0]].look


def test_direction_pairs_have_two_look_alikes_with_opposite_motions() -> None:
    for seed in range(30):
        items = plan_clip(seed, "pairs", "train").items
        acting = [item for item in items if item.motion.name not in MIRROR]
        assert len(acting) == 2
        assert acting[0].look == acting[1].look
        assert acting[0].motion.name == reverse(acting[1].motion.name)
        assert len(items) <= 3


# --- Meaning ---


def test_every_program_has_its_own_claim() -> None:
    for name in PROGRAMS:
        assert reading(name, motion(name)) is True
    assert reading("left", motion("left>up")) is None
    assert reading("left", motion("dash left")) is None
    assert reading("left", motion("right")) is False
    assert reading("turn back", motion("left>right")) is True
    assert reading("hops", motion("hop")) is None
    assert reading("grow", motion("appear")) is None


def test_targets_are_exactly_the_objects_that_fit(train_plans: list[Plan]) -> None:
    """Recomputed from looks and program names, with a reading of the claims of its own."""
    wider = {"turn back": r"(left>right|right>left|up>down|down>up)", "circle": "(counter)?clockwise"}
    wider |= {"to and fro": r"(\w+)>(left>right|right>left|up>down|down>up)", "stop": r"\w+>stop", "wait": r"wait>\w+"}
    wider |= {"turn": r"(left|right)>(up|down)|(up|down)>(left|right)"}
    wider |= {name: rf"{name} \w+" for name in ("enter", "leave", "dash")}
    wider["move"] = "(?!still).*"  # where it could be doubted, nobody says so
    checked = 0
    for plan in train_plans:
        for expression in plan.expressions:
            meaning = expression.meaning
            static = [
                i for i, item in enumerate(plan.items) if all(getattr(item.look, a) == v for a, v in meaning.static)
            ]
            meant = []
            for i in static:
                move = plan.items[i].motion
                fits = not meaning.claim or bool(
                    re.fullmatch(wider.get(meaning.claim, re.escape(meaning.claim)), move.name)
                )
                if fits and meaning.other is not None:
                    assert move.other is not None
                    look = plan.items[move.other].look
                    fits = all(getattr(look, a) == v for a, v in meaning.other)
                if fits:
                    meant.append(i)
            assert tuple(static) == expression.static
            assert tuple(meant) == expression.meant, expression
            checked += 1
    assert checked > 500


def test_words_say_what_is_meant(train_plans: list[Plan]) -> None:
    for plan in train_plans:
        for expression in plan.expressions:
            text = re.sub("[^a-z ]", "", expression.text.lower())
            claim = expression.meaning.claim
            values = dict(expression.meaning.static)
            if claim in ("left", "right"):
                assert claim in text
                assert OPPOSITE[claim] not in text
            if "counterclockwise" in text:
                assert claim == "counterclockwise"
            if values.get("colour") in ("red", "green", "blue", "yellow"):
                assert values["colour"] in text
            if len(expression.meant) > 1:
                assert re.search(r"\b(all|both|every|they|are|two|three|four|the \w*s|\w+s)\b", text)


def test_expressions_per_clip_and_absent_share(train_plans: list[Plan], version: int) -> None:
    subsets: Counter[str] = Counter()
    total = 0
    for plan in train_plans:
        assert len(plan.expressions) in (range(4, 9) if version == 1 else range(5, 15))
        total += len(plan.expressions)
        for expression in plan.expressions:
            subsets.update(expression.subsets)
            assert bool(expression.meant) != ("absent" in expression.subsets)
            assert 1 <= len(expression.text.split()) <= 22
    low, high = (0.03, 0.1) if version == 1 else (0.25, 0.4)
    assert low < subsets["absent"] / total <= high
    elsewhere = {"held-out phrasing", "held-out words", *(("strong camera", "followed pairs") if version == 1 else ())}
    assert set(subsets) == set(SUBSETS) - elsewhere


def test_motion_critical_expressions_need_motion(train_plans: list[Plan]) -> None:
    candidates = []
    for plan in train_plans:
        looks = [item.look for item in plan.items]
        for expression in plan.expressions:
            if "motion-critical" in expression.subsets:
                wrong = [looks[i] for i in expression.static if i not in expression.meant]
                assert all(looks[i] in wrong for i in expression.meant)
                candidates.append(len(expression.static))
    assert 2.9 <= np.mean(candidates) <= 3.9


def test_resolve_reports_doubt() -> None:
    look = Look("disc", "red", "plain", "medium")
    found = resolve(Meaning((), "left"), [look] * 3, [motion("left"), motion("left>up"), motion("up")])
    assert found.meant == (0,)
    assert found.doubtful == (1,)


# --- Held out ---


def held_out_frames() -> list[re.Pattern[str]]:
    frames = [frame.replace(" :", ":") for entry in FRAMES.values() for frame in entry.partition("|")[2].split(";")]
    return [re.compile(re.sub(r"\{\w+\}", ".+", frame).replace("a .+", "an? .+") + r"\.?") for frame in frames]


def is_held_out_combination(meaning: Meaning) -> bool:
    values = dict(meaning.static)
    return (values.get("colour"), values.get("shape")) in HELD_OUT_LOOKS and meaning.claim in HELD_OUT_CLAIMS


def test_training_never_shows_what_is_held_out(train_plans: list[Plan]) -> None:
    frames = held_out_frames()
    for plan in train_plans:
        for expression in plan.expressions:
            assert not new_words(expression.text), expression.text
            assert not any(frame.fullmatch(expression.text.lower()) for frame in frames), expression.text
            assert not is_held_out_combination(expression.meaning)


def test_held_out_subsets(test_plans: list[Plan]) -> None:
    frames = held_out_frames()
    kinds: Counter[str] = Counter()
    for plan in test_plans:
        for expression in plan.expressions:
            kinds.update(expression.subsets)
            assert ("held-out words" in expression.subsets) == bool(new_words(expression.text))
            if "held-out phrasing" in expression.subsets:
                shown = any(frame.fullmatch(expression.text.lower()) for frame in frames)
                assert shown or is_held_out_combination(expression.meaning), expression.text
    assert kinds["held-out phrasing"] > 50
    assert kinds["held-out words"] > 50


def test_vocabulary_is_moderate() -> None:
    assert 200 < len(known_words(world_of(1).shapes, world_of(1).textures)) < len(known_words()) < 450


@pytest.mark.parametrize(
    ("predicate", "third", "gerund"),
    [
        ("*move left then *stop", "moves left then stops", "moving left then stopping"),
        ("*pass {x}", "passes {x}", "passing {x}"),
        ("first *go up", "first goes up", "first going up"),
    ],
)
def test_inflection(predicate: str, third: str, gerund: str) -> None:
    assert inflect(predicate, "third") == third
    assert inflect(predicate, "gerund") == gerund
    assert "*" not in inflect(predicate, "base")


def test_claims_are_unique() -> None:
    assert len(set(CLAIMS)) == len(CLAIMS)


# --- On disk ---


def test_layout(synthetic: Path) -> None:
    annotations = Counter()
    for split in SPLITS:
        videos = json.loads((synthetic / split / "meta_expressions.json").read_text())["videos"]
        masks = json.loads((synthetic / split / "mask_dict.json").read_text())
        assert {path.name for path in (synthetic / split / "JPEGImages").iterdir()} == set(videos)
        for name, video in videos.items():
            height, width = video["size"]
            for frame in video["frames"]:
                picture = cv2.imread(str(synthetic / split / "JPEGImages" / name / f"{frame}.jpg"))
                assert picture.shape == (height, width, 3)
            for entry in video["objects"].values():
                codes = masks[str(entry["anno_id"])]
                assert len(codes) == len(video["frames"])
                assert all(code is None or code["size"] == [height, width] for code in codes)
                annotations[split, entry["anno_id"]] += 1
            for expression in video["expressions"].values():
                ids = [video["objects"][str(i)]["anno_id"] for i in expression["obj_id"]]
                assert ids == expression["anno_id"]
                assert set(expression["obj_id"]) <= set(expression["static_ids"])
        assert set(masks) == {str(anno) for part, anno in annotations if part == split}
    assert set(annotations.values()) == {1}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_masks_survive_the_disk(synthetic: Path) -> None:
    clip: Clip = make_clip(clip_seed(3, "train", 0), world_of(2).schedule[0], "train")
    masks = json.loads((synthetic / "train" / "mask_dict.json").read_text())
    video = json.loads((synthetic / "train" / "meta_expressions.json").read_text())["videos"]["t000000"]
    for k, per_frame in enumerate(clip.masks):
        codes = masks[str(video["objects"][str(k)]["anno_id"])]
        for mask, code in zip(per_frame, codes, strict=True):
            read = np.zeros_like(mask) if code is None else coco.decode(code).astype(bool)
            assert np.array_equal(read, mask)


def test_reversed_files_are_the_same_bytes_backwards(synthetic: Path) -> None:
    folder = synthetic / "train" / "JPEGImages"
    reversals = [path for path in folder.iterdir() if path.name.endswith("_r")]
    assert reversals
    for path in reversals:
        forwards = [file.read_bytes() for file in sorted((folder / path.name[:-2]).iterdir())]
        assert [file.read_bytes() for file in sorted(path.iterdir())] == forwards[::-1]
    videos = json.loads((synthetic / "train" / "meta_expressions.json").read_text())["videos"]
    pairs: dict[str, list[list[int]]] = {}
    for video in videos.values():
        for expression in video["expressions"].values():
            if "pair" in expression:
                pairs.setdefault(expression["pair"], []).append(expression["obj_id"])
    assert pairs
    assert all(len(ids) == 2 and ids[0] != ids[1] for ids in pairs.values())


def test_same_settings_again_and_other_settings(synthetic: Path, tmp_path: Path) -> None:
    before = (synthetic / "synthetic.json").read_bytes()
    assert make_synthetic(synthetic, train=4, valid=2, test=2, seed=3) is False
    assert (synthetic / "synthetic.json").read_bytes() == before
    with pytest.raises(UserError, match="seed 3, not 4"):
        make_synthetic(synthetic, train=4, valid=2, test=2, seed=4)
    with pytest.raises(UserError, match="family None, not easy"):
        make_synthetic(synthetic, train=4, valid=2, test=2, seed=3, family="easy")
    with pytest.raises(UserError, match="version 2, not 1"):
        make_synthetic(synthetic, train=4, valid=2, test=2, seed=3, version=1)
    with pytest.raises(UserError, match="no version 4; choose from 1, 2, 3"):
        make_synthetic(tmp_path / "fourth", version=4)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a complete synthetic data set"):
        make_synthetic(tmp_path, train=1, valid=0, test=0)


def test_a_world_of_one_family(tmp_path: Path) -> None:
    root = tmp_path / "close"
    assert make_synthetic(root, train=1, valid=1, test=0, family="close", workers=1)
    for split in ("train", "valid_u"):
        videos = json.loads((root / split / "meta_expressions.json").read_text())["videos"]
        assert [video["family"] for video in videos.values()] == ["close"]
    with pytest.raises(UserError, match=r"'near' is no family of clips; choose from alike, .*, footage"):
        make_synthetic(tmp_path / "near", family="near")
    assert not (tmp_path / "near").exists()


def test_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path / "synthetic", train=1, valid=0, test=0, workers=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


# --- The static oracle ---


@pytest.mark.slow
def test_static_line_of_motion_critical() -> None:
    """Perfect masks of everything that fits the static words score between 35 and 45."""
    scores = []
    schedule = world_of(1).schedule
    for i in range(60):
        clip = make_clip(2000 + i, schedule[i % len(schedule)], "train", version=1)
        for expression in clip.expressions:
            if "motion-critical" in expression.subsets:
                told = clip.masks[list(expression.static)].any(axis=0)
                true = clip.masks[list(expression.meant)].any(axis=0)
                scores += [jf_frames(told, true)[0].mean(), jf_frames(told, true)[1].mean()]
    assert 0.35 <= np.mean(scores) <= 0.45


def test_a_third_of_version_2s_training_is_of_version_1() -> None:
    made = schedule(2, "train", 130)
    assert len(made) == 130
    assert {version for version, _ in made[:40]} == {2}
    assert {version for version, _ in made[40:60]} == {1}
    assert [name for _, name in made[40:60]] == list(world_of(1).schedule)
    assert {version for version, _ in schedule(2, "valid_u", 130)} == {2}
    assert {version for version, _ in schedule(1, "train", 130)} == {1}


def test_a_third_of_version_3s_training_is_footage() -> None:
    made = schedule(3, "train", 600)
    assert [sum(part) for part in zip(*((v == 1, name == "footage") for v, name in made), strict=True)] == [200, 200]
    rest = [name for v, name in schedule(3, "valid_u", 40) if name != "footage"]
    assert rest == list(world_of(2).schedule)
