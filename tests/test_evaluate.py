"""Scoring: perfect answers, the static line, the table, and the arrow of time on clips shown both ways."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dshmp.evaluate as module
import tiny
from dshmp.checkpoint import save_model
from dshmp.data.dataset import Expression
from dshmp.data.mevis import MevisSplit
from dshmp.errors import UserError
from dshmp.evaluate import ExpressionScore, _score, print_table, run, score_video, summarise
from dshmp.language.encoder import TextTokenizer
from dshmp.metrics import jf
from dshmp.model import DsHmp
from dshmp.motion.decoder import VideoTokens
from dshmp.perception.frames import prepare_frames

BLIND = {"motion.position": False, "motion.displacement": False, "motion.window": 4, "motion.stages": 2}


@pytest.fixture(scope="module")
def split(mini: Path) -> MevisSplit:
    return MevisSplit(mini, "train")


def truth(split: MevisSplit, item: Expression, annotations: Any = None) -> np.ndarray:
    frame = split.frames(item.video, [0])[0]
    positions = range(len(split.videos[item.video].frames))
    chosen = item.annotations if annotations is None else annotations
    return split.masks(item.video, chosen, positions, frame.shape[:2]).any(0)


def answered(split: MevisSplit, item: Expression, masks: np.ndarray, top: np.ndarray | None = None) -> ExpressionScore:
    top = masks if top is None else top
    return _score(split, item, masks.shape[1:], len(masks), masks, top, 0.9, bool(masks.any()))


def fitting(split: MevisSplit, item: Expression) -> list[int]:
    return [split.videos[item.video].objects[i]["anno_id"] for i in item.extra["static_ids"]]


def test_perfect_answers(split: MevisSplit) -> None:
    scores = [answered(split, item, truth(split, item)) for item in split.expressions]
    summary = summarise(scores)
    assert summary["all"]["count"] == len(split.expressions)
    for values in summary.values():
        assert values["J&F"] == values["J"] == values["F"] == 100
        assert values.get("right of pair", 100) == 100
        assert values.get("N-acc", 100) == 100
        assert values.get("T-acc", 100) == 100
    assert {"all", "static", "direction pairs"} <= summary.keys()
    assert "T-acc" not in summary.get("absent", {})


def test_static_line_is_what_all_candidates_score(split: MevisSplit) -> None:
    for item in split.expressions:
        everything = truth(split, item, fitting(split, item))
        score = answered(split, item, everything)
        assert score.static_line == pytest.approx(50 * sum(jf(everything, truth(split, item))))
        assert score.static_line == pytest.approx(score.j_and_f)
        assert score.candidates == len(item.extra["static_ids"])
        if set(item.extra["static_ids"]) == set(item.objects):
            assert score.static_line == 100
        elif item.objects:
            assert score.static_line < 100
    assert summarise([answered(split, item, truth(split, item)) for item in split.expressions])["static"][
        "static line"
    ] == pytest.approx(100)


def test_nothing_where_something_is_meant(split: MevisSplit) -> None:
    for item in split.expressions:
        nothing = answered(split, item, truth(split, item, []))
        assert nothing.found is False
        assert nothing.present == bool(item.objects)
        if not item.objects:
            assert nothing.j_and_f == 100


def test_the_right_one_of_a_pair_is_a_comparison(split: MevisSplit) -> None:
    """One answer to both versions of a clip is right in exactly one of them: the blind line is one half."""
    pairs: dict[str, list[Expression]] = {}
    for item in split.expressions:
        if "pair" in item.extra:
            pairs.setdefault(item.extra["pair"], []).append(item)
    assert pairs
    for versions in pairs.values():
        forward, backward = sorted(versions, key=lambda item: len(item.video))
        assert backward.video == f"{forward.video}_r"
        assert forward.text == backward.text
        assert forward.objects != backward.objects
        for chosen in (forward, backward):
            masks = truth(split, chosen)
            reverse = masks[::-1]
            both = (masks, reverse) if chosen is forward else (reverse, masks)
            right = [
                answered(split, item, top).right_of_pair for item, top in zip((forward, backward), both, strict=True)
            ]
            assert sorted(map(bool, right)) == [False, True]
        nothing = truth(split, forward, [])
        assert answered(split, forward, nothing).right_of_pair is False


def test_columns_stand_only_where_they_mean_something() -> None:
    def score(**values: Any) -> ExpressionScore:
        unasked = dict.fromkeys(item.name for item in fields(ExpressionScore))
        return ExpressionScore(**(unasked | {"subsets": (), "found": True, "present": True} | values))

    summary = summarise(
        [
            score(j=100.0, f=50.0, subsets=("a",), right_of_pair=True),
            score(j=0.0, f=0.0, subsets=("a", "b"), right_of_pair=False, static_line=40.0),
            score(j=0.0, f=0.0, subsets=("b",), present=False),
        ]
    )
    assert summary["a"]["J&F"] == pytest.approx(37.5)
    assert summary["a"]["right of pair"] == 50
    assert "N-acc" not in summary["a"]
    assert summary["b"]["static line"] == 40
    assert (summary["b"]["N-acc"], summary["b"]["T-acc"]) == (0, 100)
    assert list(summary) == ["all", "a", "b"]


# -------------------------------------------------------------------------------------------------- the run


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(model: str, root: Path, split_name: str, workers: int, device: str) -> list[ExpressionScore]:
        module._start(model, root, split_name, device)
        assert module._worker is not None
        return module._score_videos(list(module._worker[2].videos))

    monkeypatch.setattr(module, "evaluate", evaluate)


def test_table_and_json(in_this_process: None, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, switches in (("full", {}), ("blind", BLIND)):
        save_model(tiny.model(switches), tiny.tokenizer(), tmp_path / name)
    out = tmp_path / "deep" / "scores.json"
    report = run(str(tmp_path / "full"), mini, "valid_u", out, beside=str(tmp_path / "blind"))
    assert json.loads(out.read_text()) == json.loads(json.dumps(report))
    assert [path.name for path in out.parent.iterdir()] == ["scores.json"]
    split = MevisSplit(mini, "valid_u")
    for entry in report["models"].values():
        assert len(entry["expressions"]) == len(split.expressions)
        assert entry["summary"]["all"]["count"] == len(split.expressions)
    table = capsys.readouterr().out
    for word in ("subset", "static line", "full", "blind", "direction pairs", "right of pair"):
        assert word in table


def test_one_model_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table({"m": {"all": {"count": 3.0, "J&F": 12.34}, "absent": {"count": 1.0, "J&F": 0.0, "N-acc": 100.0}}})
    lines = capsys.readouterr().out.splitlines()
    assert any("all" in line and "12.3" in line for line in lines)
    assert any("absent" in line and "100.0" in line for line in lines)


def test_what_cannot_be_scored(mini: Path, tmp_path: Path) -> None:
    save_model(tiny.model(), tiny.tokenizer(), tmp_path / "m")
    with pytest.raises(UserError, match="name a file for the results"):
        run(str(tmp_path / "m"), mini, "valid_u", tmp_path)
    with pytest.raises(UserError, match="no such data set split"):
        run(str(tmp_path / "m"), mini, "valid")
    with pytest.raises(UserError, match="no such model"):
        run(str(tmp_path / "none"), mini, "valid_u")
    hidden = tmp_path / "hidden" / "valid"
    hidden.mkdir(parents=True)
    videos = {"v": {"frames": ["0"], "expressions": {"0": {"exp": "a cat"}}}}
    (hidden / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    with pytest.raises(UserError, match="masks are not public"):
        run(str(tmp_path / "m"), tmp_path / "hidden", "valid")


@pytest.mark.parametrize("masks", ["trajectories", "embedding"])
def test_frames_in_small_parts_score_the_same(masks: str, split: MevisSplit) -> None:
    items = [item for item in split.expressions if item.video == next(iter(split.videos))]
    found = []
    for chunk in (3 * len(items), 10**6):
        model = tiny.model({"readout.masks": masks, "readout.threshold": 0.0, "input.chunk": chunk})
        perceived: list[int] = []
        plain = model.perceive

        def perceive(images: Any, text: Any, plain: Any = plain, seen: list[int] = perceived) -> Any:
            seen.append(len(images) * len(text.mask))
            return plain(images, text)

        model.perceive = perceive  # type: ignore[method-assign]
        found.append(score_video(model, tiny.tokenizer(), split, items[0].video, items))
        assert max(perceived) <= chunk
    for part, whole in zip(*found, strict=True):
        assert part.j == pytest.approx(whole.j, abs=0.5)
        assert part.score == pytest.approx(whole.score, abs=1e-4)
        assert part.right_of_pair == whole.right_of_pair


@pytest.mark.slow
def test_in_processes_of_their_own(mini: Path, tmp_path: Path) -> None:
    save_model(tiny.model(), tiny.tokenizer(), tmp_path / "m")
    scores = module.evaluate(str(tmp_path / "m"), mini, "valid_u", workers=1)
    split = MevisSplit(mini, "valid_u")
    assert {(item.video, item.id) for item in scores} == {(item.video, item.id) for item in split.expressions}


# ---------------------------------------------------------------------------------------- the arrow of time


@torch.inference_mode()
def watch(
    model: DsHmp, tokenizer: TextTokenizer, split: MevisSplit, name: str, texts: list[str]
) -> tuple[VideoTokens, torch.Tensor]:
    frames = split.frames(name)
    text = model.language(tokenizer(texts))
    state = model.perceive(prepare_frames(frames, model.config.input), text)
    tokens = state.tokens.unflatten(0, (len(texts), len(frames)))
    video = model.understand(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), text)
    return video, model.clip_masks(video, state)


@pytest.mark.parametrize("masks", ["trajectories", "embedding"])
@pytest.mark.parametrize("switches", [BLIND, {"motion.position": True}, {"motion.position": False}], ids=str)
def test_only_a_model_blind_to_time_answers_alike_both_ways(
    switches: dict[str, Any], masks: str, split: MevisSplit
) -> None:
    """From the frames on disk to the masks: reversed video, reversed masks and no other score, if blind.

    With a position in time, or the displacement alone, the answer depends on the direction.
    """
    name = next(name for name in split.videos if f"{name}_r" in split.videos)
    assert len(split.videos[name].frames) % 8 == 0
    model, tokenizer = tiny.model(switches | {"readout.masks": masks}), tiny.tokenizer()
    texts = [item.text for item in split.expressions if item.video == name]
    forward, backward = (watch(model, tokenizer, split, version, texts) for version in (name, f"{name}_r"))
    change = (forward[0].logits - backward[0].logits).abs().max()
    turned = (forward[1] - backward[1].flip(2)).abs().max() / forward[1].abs().max()
    if switches == BLIND:
        assert change < 1e-4
        assert turned < 1e-4
    else:
        assert change > 1e-3
        assert turned > 1e-3


def test_a_blind_model_is_right_of_a_pair_at_most_every_second_time(split: MevisSplit) -> None:
    """Whatever it answers fits one of the two versions better, unless it fits neither."""
    name = next(name for name in split.videos if f"{name}_r" in split.videos)
    tokenizer = tiny.tokenizer()
    found = []
    for version in (name, f"{name}_r"):
        items = [item for item in split.expressions if item.video == version]
        model = tiny.model(BLIND | {"readout.masks": "embedding"})
        found.append(score_video(model, tokenizer, split, version, items))
    pairs = [(a, b) for a, b in zip(*found, strict=True) if a.right_of_pair is not None]
    assert pairs
    for a, b in pairs:
        assert a.text == b.text
        assert a.score == pytest.approx(b.score, abs=1e-4)
        assert a.found == b.found
        assert not (a.right_of_pair and b.right_of_pair)
