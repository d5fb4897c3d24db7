"""Predict and score in one go, the synthetic data's own figures, and the arrow of time on clips shown both ways."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tiny
from dshmp.card import Card, lacks, model_card
from dshmp.checkpoint import CONFIG, README, find_model, load_config, save_card, save_model
from dshmp.cli import app
from dshmp.common.errors import UserError
from dshmp.common.options import Options
from dshmp.data.base import Expression
from dshmp.data.mevis import MevisSplit
from dshmp.data.registry import dataset
from dshmp.evaluation.metrics import jf
from dshmp.evaluation.predictions import Predictions
from dshmp.evaluation.protocols import synthetic_terms
from dshmp.evaluation.report import by_subset, figures
from dshmp.evaluation.score import evaluate as run
from dshmp.evaluation.score import run as score
from dshmp.evaluation.score import score_split
from dshmp.inference.segmenter import Segmenter
from dshmp.model.dshmp import DsHmp
from dshmp.model.frames import prepare_frames
from dshmp.model.motion_decoder import VideoTokens

NO_TIME: dict[str, Any] = {"motion.position": False, "motion.displacement": False, "motion.geometry": False}
NO_TIME |= {"motion.window": 4, "motion.stages": 2}


@pytest.fixture(scope="module")
def split(mini: Path) -> MevisSplit:
    return MevisSplit(mini, "train")


def size_of(split: MevisSplit, item: Expression) -> tuple[int, int]:
    height, width = split.frames(item.video, [0])[0].shape[:2]
    return height, width


def truth(split: MevisSplit, item: Expression, annotations: Any = None) -> np.ndarray:
    positions = range(len(split.videos[item.video].frames))
    chosen = item.annotations if annotations is None else annotations
    return split.masks(item.video, chosen, positions, size_of(split, item)).any(0)


def write(folder: Path, split: MevisSplit, item: Expression, masks: np.ndarray) -> None:
    target = folder / item.video / item.id
    target.mkdir(parents=True, exist_ok=True)
    for name, mask in zip(split.videos[item.video].frames, masks, strict=True):
        Image.fromarray(mask.astype(np.uint8) * 255).save(target / f"{name}.png")


def terms(folder: Path, split: MevisSplit, item: Expression, masks: np.ndarray) -> dict[str, tuple[float, float]]:
    write(folder, split, item, masks)
    return synthetic_terms(split, Predictions(folder), item.video, item, size_of(split, item))


def test_perfect_answers(mini: Path, split: MevisSplit, tmp_path: Path) -> None:
    for item in split.expressions:
        write(tmp_path, split, item, truth(split, item))
    scores = score_split(dataset("mevis"), mini, "train", tmp_path)
    assert len(scores.rows) == len(split.expressions)
    subsets = by_subset(scores.rows)
    assert {"static", "direction pairs"} <= subsets.keys()
    for values in (scores.figures, *subsets.values()):
        assert values["J&F"] == values["J"] == values["F"] == 100
        for name in ("right of pair", "N-acc", "T-acc"):
            assert values.get(name, 100) == 100
    assert subsets["static"]["static oracle"] == 100
    assert scores.figures["static oracle"] < 100
    assert "T-acc" not in subsets.get("absent", {})


def test_static_line_is_what_all_candidates_score(split: MevisSplit, tmp_path: Path) -> None:
    for item in split.expressions:
        fitting = [split.videos[item.video].objects[i]["anno_id"] for i in item.extra["static_ids"]]
        everything = truth(split, item, fitting)
        line = terms(tmp_path, split, item, everything)["static oracle"]
        assert line == (pytest.approx(sum(jf(everything, truth(split, item))) / 2), 1.0)
        if set(item.extra["static_ids"]) == set(item.objects):
            assert line[0] == 1
        elif item.objects:
            assert line[0] < 1


def test_the_right_one_of_a_pair_is_a_comparison(split: MevisSplit, tmp_path: Path) -> None:
    """One answer to both versions of a clip is right in exactly one of them: chance is one half."""
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
            both = (masks, masks[::-1]) if chosen is forward else (masks[::-1], masks)
            right = [
                terms(tmp_path, split, item, answer)["right of pair"][0]
                for item, answer in zip((forward, backward), both, strict=True)
            ]
            assert sorted(right) == [0, 1]
        nothing = truth(split, forward, [])
        assert terms(tmp_path, split, forward, nothing)["right of pair"] == (0, 1)


def test_other_data_sets_have_neither(split: MevisSplit, tmp_path: Path) -> None:
    item = split.expressions[0]
    plain = Expression(item.video, item.id, item.text, objects=item.objects, annotations=item.annotations)
    assert synthetic_terms(split, Predictions(tmp_path), item.video, plain, (4, 4)) == {}


# -------------------------------------------------------------------------------------------------- the run


def test_predictions_tables_and_files(mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tiny.model(), tiny.tokenizer(), tmp_path / "m")
    out = tmp_path / "deep" / "scores"
    scores = run("mevis", mini, "valid_u", out, Options(model=str(tmp_path / "m")), workers=1)
    assert scores is not None
    names = {"predictions", "results.json", "expressions.csv", "videos.csv", ".dshmp.json"}
    assert {path.name for path in out.iterdir()} == names
    results = json.loads((out / "results.json").read_text())
    split = MevisSplit(mini, "valid_u")
    assert len(results["expressions"]) == len(split.expressions)
    assert results["figures"]["J&F"] == pytest.approx(figures(scores.rows)["J&F"], abs=1e-3)
    assert results["prediction"]["model"]
    table = capsys.readouterr().out
    for word in ("subset", "static oracle", "direction pairs", "right of pair"):
        assert word in table
    run("mevis", mini, "valid_u", out, Options(model=str(tmp_path / "m")), workers=1, compare=out / "results.json")
    assert json.loads((out / "results.json").read_text())["figures"] == results["figures"]


@pytest.mark.slow
def test_the_card_takes_the_scores_on_request(mini: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run" / "model"  # a training run's
    save_model(tiny.model(), tiny.tokenizer(), folder, Card(name="tiny", scores={"mine": {"J&F": 1.0}}))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def changed() -> set[str]:
        return {path.name for path in folder.iterdir() if files.get(path.name) != path.read_bytes()}

    out, predictions, model = tmp_path / "out", tmp_path / "out" / "predictions", str(folder.parent)
    run("mevis", mini, "valid_u", out, Options(model=model), workers=1)
    assert not changed()
    scores = run("mevis", mini, "valid_u", out, Options(model=model), workers=1, update_card=True)
    assert scores is not None
    assert changed() == {CONFIG, README}
    card = load_config(folder / CONFIG).card
    name = f"mevis ({mini.name}), valid_u"
    assert card.scores["mine"] == {"J&F": 1.0}
    rounded = {key: round(value, 4) for key, value in scores.figures.items()}
    assert card.scores[f"{name}, all ({len(scores.rows)})"] == rounded
    subsets = by_subset(scores.rows)
    assert len(card.scores) == 2 + len(subsets)
    static = card.scores[f"{name}, static ({subsets['static']['expressions']})"]
    assert static["J&F"] == round(subsets["static"]["J&F"], 4)
    assert (folder / README).read_text() == str(model_card(card))
    assert lacks(Segmenter.from_pretrained(folder, "cpu").card) == ["data", "recipe", "limits"]

    files |= {name: (folder / name).read_bytes() for name in (CONFIG, README)}
    arguments = ["mevis", str(mini), "--split", "valid_u", "--out", str(out), "--workers", "1", "--update-card"]
    result = CliRunner().invoke(app, ["evaluate", *arguments, "--model", model])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["score", *arguments, model, "--pred", str(predictions)])
    assert result.exit_code == 0, result.output
    assert not changed()  # the same figures again
    save_model(tiny.model(), tiny.tokenizer(), tmp_path / "copy")  # the same weights elsewhere
    score("mevis", mini, "valid_u", predictions, card=tmp_path / "copy")
    assert load_config(tmp_path / "copy" / CONFIG).card.scores == {k: v for k, v in card.scores.items() if k != "mine"}
    next(predictions.rglob("*.png")).unlink()
    score("mevis", mini, "valid_u", predictions, card=folder)
    assert "its card stays as it is, since predictions are missing" in caplog.text

    save_model(tiny.model({"motion.stages": 1}), tiny.tokenizer(), tmp_path / "other")
    with pytest.raises(UserError, match="does not say that the predictions are of"):
        score("mevis", mini, "valid_u", predictions, card=tmp_path / "other")
    (predictions / "predict.json").unlink()
    with pytest.raises(UserError, match="does not say that the predictions are of"):
        score("mevis", mini, "valid_u", predictions, card=folder)
    assert not changed()


def test_a_card_is_written_wholly_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    save_model(tiny.model(), tiny.tokenizer(), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    write = Path.write_text
    for name in (CONFIG, README):

        def full(path: Path, *given: Any, name: str = name, **more: Any) -> int:
            if path.name == name:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(path, *given, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            with pytest.raises(UserError, match="cannot be written"):
                save_card(folder, Card(name="new"))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("kind", ["default", "package", "hub", "nothing", "half", "strange"])
def test_cards_that_are_not_filled(kind: str, mini: Path, tmp_path: Path) -> None:
    """The installed package's, and those of what is no whole model; nothing is predicted first."""
    save_model(tiny.model(), tiny.tokenizer(), tmp_path / "half")
    (tmp_path / "half" / "tokenizer.json").unlink()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / CONFIG).write_text('{"architectures": ["Other"]}')
    model, message = {
        "default": ("default", "is no model's folder"),
        "package": (str(find_model("default")), "is no model's folder"),
        "hub": ("jane/tiny", "is no model's folder"),
        "nothing": (str(tmp_path), "holds no model"),
        "half": (str(tmp_path / "half"), "tokenizer.json is missing"),
        "strange": (str(tmp_path / "strange"), "is not a configuration of this program"),
    }[kind]
    known = {path: path.read_bytes() for path in [*tmp_path.rglob("*.*"), find_model("default") / CONFIG]}
    with pytest.raises(UserError, match=message):
        run("mevis", mini, "valid_u", tmp_path / "out", Options(model=model), workers=1, update_card=True)
    if kind != "default":
        with pytest.raises(UserError, match=message):
            score("mevis", mini, "valid_u", tmp_path, card=Path(model))
    assert not (tmp_path / "out").exists()
    assert all(path.read_bytes() == content for path, content in known.items())


def test_what_cannot_be_scored(mini: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such data set split"):
        run("mevis", mini, "valid", tmp_path / "out", Options())
    with pytest.raises(UserError, match="no such model"):
        run("mevis", mini, "valid_u", tmp_path / "out", Options(model=str(tmp_path / "none")))
    hidden = tmp_path / "hidden" / "valid"
    hidden.mkdir(parents=True)
    videos = {"v": {"frames": ["0"], "expressions": {"0": {"exp": "a cat"}}}}
    (hidden / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    with pytest.raises(UserError, match="masks are not public"):
        run("mevis", tmp_path / "hidden", "valid", tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- the arrow of time


@torch.inference_mode()
def watch(model: DsHmp, split: MevisSplit, name: str, texts: list[str]) -> list[tuple[VideoTokens, torch.Tensor]]:
    images = prepare_frames(split.frames(name), model.config.input)
    return model([images] * len(texts), model.language(tiny.tokenizer()(texts)))


@pytest.mark.slow
@pytest.mark.parametrize("masks", ["trajectories", "embedding"])
@pytest.mark.parametrize("switches", [NO_TIME, {"motion.position": True}, {"motion.position": False}], ids=str)
def test_only_a_model_without_temporal_position_answers_alike_both_ways(
    switches: dict[str, Any], masks: str, split: MevisSplit
) -> None:
    """From the frames on disk to the masks: reversed video, reversed masks, no other score, without temporal position.

    With a position in time, or the displacement alone, the answer depends on the direction.
    """
    name = next(name for name in split.videos if f"{name}_r" in split.videos)
    assert len(split.videos[name].frames) % 8 == 0
    model = tiny.model(switches | {"readout.masks": masks})
    texts = [item.text for item in split.expressions if item.video == name]
    forward, backward = (watch(model, split, version, texts) for version in (name, f"{name}_r"))
    change = max(float((a.logits - b.logits).abs().max()) for (a, _), (b, _) in zip(forward, backward, strict=True))
    turned = max(
        float((a - b.flip(1)).abs().max() / a.abs().max()) for (_, a), (_, b) in zip(forward, backward, strict=True)
    )
    if switches == NO_TIME:
        assert change < 1e-4
        assert turned < 1e-4
    else:
        assert change > 1e-3
        assert turned > 1e-3


@pytest.mark.slow
def test_the_baseline_is_right_of_a_pair_at_most_every_second_time(mini: Path, tmp_path: Path) -> None:
    """Whatever it answers fits one of the two versions better, unless it fits neither."""
    save_model(tiny.model(NO_TIME | {"readout.masks": "embedding"}), tiny.tokenizer(), tmp_path / "m")
    scores = run("mevis", mini, "train", tmp_path / "out", Options(model=str(tmp_path / "m"), single=True), workers=1)
    assert scores is not None
    right = {
        (row.video, row.text): row.terms["right of pair"][0] for row in scores.rows if "right of pair" in row.terms
    }
    both = [(right[video, text], right[f"{video}_r", text]) for video, text in right if (f"{video}_r", text) in right]
    assert both
    assert all(sum(pair) <= 1 for pair in both)
