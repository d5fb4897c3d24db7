"""Training runs: the four stages in a row, resuming exactly, the token cache, and what is refused."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import RobertaConfig, RobertaModel

import tiny
from dshmp import cli
from dshmp.checkpoint import build_model, load_config, load_model, load_tensors, save_model
from dshmp.common.errors import UserError
from dshmp.common.rle import encode
from dshmp.config import from_dict, to_dict
from dshmp.data.base import frame_size
from dshmp.data.mevis import MevisSplit, write_mini
from dshmp.data.mini import make_mini
from dshmp.inference.segmenter import Segmenter
from dshmp.model.dshmp import DsHmp
from dshmp.model.frame_decoder import disable_language, uses_language
from dshmp.model.frames import prepare_frames
from dshmp.model.tokenizer import save_tokenizer
from dshmp.training import cache
from dshmp.training.cache import CachedClip, CachedSplit
from dshmp.training.engine import Trainer, processes
from dshmp.training.held_out import link_scores, score_tokens
from dshmp.training.logging import MEASURED
from dshmp.training.motion_task import MotionTask
from dshmp.training.pretraining import LanguageTask, PerceptionTask
from dshmp.training.recipe import Recipe, load_recipe
from dshmp.training.task import open_splits
from dshmp.training.train import run, start_model
from dshmp.training.whole_task import WholeTask

STAGES = {
    "perception": PerceptionTask,
    "language": LanguageTask,
    "motion": MotionTask,
    "whole": WholeTask,
}
BEFORE = {"perception": None, "language": "perception", "motion": "language", "whole": "motion"}
VIDEO_LOSSES = {"cls", "mask", "dice", "similarity", "trajectory", "contrast"}


class Killed(Exception):
    pass


def train(folder: Path, task: str, synthetic: Path, **more: Any) -> Path:
    """One run in `folder`/`task`, starting from the task before."""
    before = BEFORE[task]
    if before and "init" not in more:
        more["init"] = str(folder / before)
    values = tiny.recipe(task, synthetic, **more)
    return run(tiny.write_recipe(folder / f"{task}.yaml", values), [], folder / task)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def last_checkpoint(folder: Path) -> Path:
    return max(folder.glob("checkpoints/*.safetensors"))


def flip_a_bit(data: bytes) -> bytes:
    """Of the last tensor's, which no format notices."""
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.fixture(scope="module")
def chain(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four stages, three steps each, one after the other."""
    folder = tmp_path_factory.mktemp("chain")
    for task in STAGES:
        train(folder, task, mini)
    return folder


@pytest.mark.parametrize("task", STAGES)
def test_a_stage_leaves_a_whole_run(task: str, chain: Path) -> None:
    folder = chain / task
    losses = [line for line in metrics(folder) if line.keys() & {"cls", "frame cls", "words"}]
    assert [line["step"] for line in losses] == [1, 2, 3]
    expected = {
        "perception": {"cls", "mask", "dice", "probe"},
        "language": {"words", "claim"},
        "motion": VIDEO_LOSSES | {"probe"},
        "whole": VIDEO_LOSSES | {"frame cls", "frame mask", "frame dice"},
    }
    assert expected[task] <= losses[0].keys()
    assert all(torch.tensor(list(line.values())).isfinite().all() for line in losses)
    model, _ = load_model(folder)
    checkpoint = load_tensors(last_checkpoint(folder))
    for key, value in model.state_dict().items():
        assert torch.equal(value, checkpoint[f"model/{key}"])
    assert not list(folder.glob("**/*.part"))


def test_stages_change_their_own_part_only(chain: Path) -> None:
    before = {task: load_file(chain / task / "model" / "model.safetensors") for task in STAGES}

    def changed(first: str, second: str) -> set[str]:
        a, b = before[first], before[second]
        return {".".join(key.split(".")[:2]) for key in a if not torch.equal(a[key], b[key])}

    assert changed("perception", "language") == {"language.encoder", "language.resizer"}
    motion = changed("language", "motion")
    assert not any(name.startswith("perception") for name in motion)
    assert {"motion.blocks", "decoder.layers", "language.encoder"} <= motion
    assert {"perception.backbone", "perception.frame_decoder", "motion.blocks"} <= changed("motion", "whole")


def test_perception_learns_no_language(chain: Path, mini: Path, tmp_path: Path) -> None:
    train(tmp_path, "perception", mini, steps=1, learning_rate=1e-12, weight_decay=0.0)
    start = load_file(tmp_path / "perception" / "model" / "model.safetensors")
    end = load_file(chain / "perception" / "model" / "model.safetensors")
    still = [key for key in start if torch.allclose(start[key], end[key], rtol=0, atol=1e-9)]
    assert any(key.startswith("perception.") for key in end.keys() - set(still))
    assert {key for key in start if not key.startswith("perception.") or "static_attention" in key} <= set(still)


def test_validation_stands_in_the_record(chain: Path) -> None:
    last = metrics(chain / "motion")[-1]
    assert last["step"] == 3
    assert 0 <= last["iou all"] <= 100
    assert {"iou static", "right of pair", "present rejected"} <= last.keys()


@pytest.mark.slow
@pytest.mark.parametrize("task", STAGES)
def test_a_resumed_run_is_the_undisturbed_one(
    task: str, chain: Path, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its fourth step, the checkpoint being of the second; dropout draws the same again."""
    start = BEFORE[task]
    dropout = dict.fromkeys(("language.dropout", "frame_decoder.dropout", "motion.dropout", "backbone.drop_path"), 0.2)
    more: dict[str, Any] = {"steps": 4, "checkpoint_every": 2, "validate_every": 2, "cache": str(tmp_path / "cache")}
    more["model"] = tiny.with_switches(tiny.MODEL, dropout)
    if start:
        more["init"] = str(chain / start)
    paths = [tiny.write_recipe(tmp_path / f"{n}.yaml", tiny.recipe(task, mini, **more)) for n in ("a", "b")]
    straight = run(paths[0], [], tmp_path / "straight")
    plain = STAGES[task].losses

    def losses(self: Any, batch: Any, step: int, counts: Any) -> Any:
        if step == 3:
            raise Killed
        return plain(self, batch, step, counts)

    with monkeypatch.context() as patch:
        patch.setattr(STAGES[task], "losses", losses)
        with pytest.raises(Killed):
            run(paths[1], [], tmp_path / "stopped")
    assert max(line["step"] for line in metrics(tmp_path / "stopped")) == 3
    torch.manual_seed(99)
    resumed = run(paths[1], [], tmp_path / "stopped")
    one, other = (load_file(last_checkpoint(folder)) for folder in (straight, resumed))
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert metrics(straight) == metrics(resumed)
    before = last_checkpoint(resumed).read_bytes()
    run(paths[1], [], resumed)  # there is nothing left to do
    assert last_checkpoint(resumed).read_bytes() == before


def test_killed_while_the_last_model_is_written(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("dshmp.training.engine.save_model", killed)
        with pytest.raises(Killed):
            train(tmp_path, "perception", mini)
    folder = train(tmp_path, "perception", mini)
    model, _ = load_model(folder)
    checkpoint = load_tensors(last_checkpoint(folder))
    assert all(torch.equal(value, checkpoint[f"model/{key}"]) for key, value in model.state_dict().items())


def test_killed_before_the_first_checkpoint(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PerceptionTask.losses

    def losses(self: Any, batch: Any, step: int, counts: Any) -> Any:
        if step == 1:
            raise Killed
        return plain(self, batch, step, counts)

    with monkeypatch.context() as patch:
        patch.setattr(PerceptionTask, "losses", losses)
        with pytest.raises(Killed):
            train(tmp_path, "perception", mini)
    with (tmp_path / "perception" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "cl')  # cut off in the middle of a line
    folder = train(tmp_path, "perception", mini)
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3]


@pytest.mark.slow
def change_a_fact(data: bytes) -> bytes:
    assert b'in_a_row\\": 0' in data
    return data.replace(b'in_a_row\\": 0', b'in_a_row\\": 9')


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", flip_a_bit, change_a_fact])
def test_a_damaged_checkpoint_is_made_up_for(
    damage: Callable[[bytes], bytes], mini: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the one before, with a warning; without any other the file is named."""
    folder = train(tmp_path, "language", mini, init=None, checkpoint_every=1)
    path = last_checkpoint(folder)
    whole = {key: value.clone() for key, value in load_tensors(path).items()}  # the file is mapped, not read
    assert len(list(path.parent.iterdir())) == 2
    path.write_bytes(damage(path.read_bytes()))
    train(tmp_path, "language", mini, init=None, checkpoint_every=1)
    assert f"{path}: damaged" in caplog.text
    assert "going on from the checkpoint before" in caplog.text
    again = load_tensors(path)
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    for each in path.parent.iterdir():
        each.write_bytes(damage(each.read_bytes()))
    with pytest.raises(UserError, match=r"damaged.*remove .*checkpoints to start anew") as caught:
        train(tmp_path, "language", mini, init=None, checkpoint_every=1)
    assert str(path) in str(caught.value)


@pytest.mark.slow
def test_steps_whose_gradient_is_not_finite(
    mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are left out and counted; too many in a row end the run and name what was in them."""
    plain = PerceptionTask.losses
    bad = {1}

    def losses(self: Any, batch: Any, step: int, counts: Any) -> Any:
        found = plain(self, batch, step, counts)
        return found | {"cls": found["cls"] * float("nan")} if step in bad else found

    monkeypatch.setattr(PerceptionTask, "losses", losses)
    folder = train(tmp_path, "perception", mini, steps=6, checkpoint_every=2, patience=3)
    assert all(value.isfinite().all() for value in load_file(last_checkpoint(folder)).values())
    lines = metrics(folder)
    assert [line.get("skipped") for line in lines] == [None, 1, 1, 1, 1, 1]
    assert lines[1].keys() == {"step", "skipped"}
    assert "step 1 is left out" in caplog.text
    names = [name for name in MevisSplit(mini, "train").videos if name in caplog.text]
    assert names
    bad |= {3, 4, 5}
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row, the last one being 5 \(.*lower") as caught:
        run(tmp_path / "perception.yaml", [], tmp_path / "other")
    assert "\n" not in str(caught.value)
    assert all(value.isfinite().all() for value in load_file(last_checkpoint(tmp_path / "other")).values())


def scaled(start: float) -> Any:
    """`processes` with float16's scaler, on the CPU."""

    @contextmanager
    def begin(*given: Any) -> Iterator[Any]:
        with processes(*given) as accelerator:
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=start)
            accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
            yield accelerator

    return begin


@pytest.mark.slow
def test_float16_finds_its_scale(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overflows on the way are left out and counted, and are no divergence, however little patience there is."""
    monkeypatch.setattr("dshmp.training.train.processes", scaled(2.0**24))
    folder = train(tmp_path, "perception", mini, steps=25, patience=2)
    skipped = [line.get("skipped", 0) for line in metrics(folder)]
    assert skipped[2] == 3
    assert skipped[-1] == skipped[-2] < 25
    assert all(value.isfinite().all() for value in load_file(last_checkpoint(folder)).values())


def test_float16_that_diverges(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the scale cannot be to blame, the steps count."""
    plain = PerceptionTask.losses

    def losses(*given: Any) -> Any:
        return {name: value * float("nan") for name, value in plain(*given).items()}

    monkeypatch.setattr(PerceptionTask, "losses", losses)
    monkeypatch.setattr("dshmp.training.train.processes", scaled(4.0))
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row, the last one being 4 "):
        train(tmp_path, "perception", mini, steps=40, patience=3)


def test_predictions_that_are_not_finite(mini: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training has diverged"):
        train(tmp_path, "perception", mini, learning_rate=1e30, steps=5, clip_norm=1e30, patience=2)


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("perception", {"data": {"mevis": {"root": "nowhere"}}}, "nowhere/train: no such data set split"),
        ("perception", {"data": {"mevis": {"root": "MINI", "split": "valid"}}}, "splits there: "),
        ("whole", {"init": "nowhere/at/all"}, "nowhere/at/all: no such model"),
        (
            "perception",
            {"model": tiny.with_switches(tiny.MODEL, {"backbone.language_fusion": True})},
            "can do without language: a language-fused",
        ),
        ("perception", {"model": tiny.with_switches(tiny.MODEL, {"hidden_size": 33})}, "the recipe's model: "),
        (
            "motion",
            {"model": tiny.with_switches(tiny.MODEL, {"readout.masks": "embedding"}), "init": None},
            "readout.masks: trajectories",
        ),
        ("perception", {"batch": 1, "weights": {"link": 1.0}}, "weights.link compares neighbouring frames: batch must"),
        (
            "whole",
            {"model": tiny.with_switches(tiny.MODEL, {"language.max_tokens": 129}), "init": None},
            "max_position_embeddings must be at least 131, found 130",
        ),
        ("motion", {"init": None}, "name a run of task perception or language as init"),
        ("motion", {"init": None, "appearance": "looks"}, "appearance is learned with candidates: truth"),
        ("motion", {"init": None, "tracks": "folder"}, "candidates: tracks and tracks (their folder) need each other"),
    ],
)
def test_what_cannot_be_trained_says_why(
    task: str, more: dict[str, Any], message: str, mini: Path, tmp_path: Path
) -> None:
    if "data" in more and more["data"]["mevis"]["root"] == "MINI":
        more = {"data": {"mevis": more["data"]["mevis"] | {"root": str(mini)}}}
    with pytest.raises(UserError) as caught:
        train(tmp_path, task, mini, **more)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("gate", ["static_attention", "fusion", "text_attention"])
def test_perception_that_hears_the_sentence(gate: str) -> None:
    perception = DsHmp(tiny.config({"frame_decoder.language": True})).perception
    assert uses_language(perception)
    disable_language(perception)
    assert not uses_language(perception)
    decoder = perception.frame_decoder
    opened = {
        "static_attention": decoder.static_attention.norm.weight,
        "fusion": decoder.layers[0].fusion.gamma_v,
        "text_attention": decoder.layers[0].text_attention.attention.out_proj.bias,
    }[gate]
    opened[3] = 1e-3
    assert uses_language(perception)


@pytest.mark.slow
def test_motion_on_tokens_that_hear_the_sentence(chain: Path, mini: Path, tmp_path: Path) -> None:
    """The whole task opens the gates: perception and the language that it uses stay as they are."""
    folder = train(tmp_path, "motion", mini, init=str(chain / "whole"))
    before, after = (load_file(run / "model" / "model.safetensors") for run in (chain / "whole", folder))
    kept = {key for key in before if torch.equal(before[key], after[key])}
    assert {key for key in before if key.startswith(("language.", "perception."))} <= kept
    assert any(key.startswith("motion.") for key in before.keys() - kept)


def test_what_perception_hears_must_come_with_it(chain: Path, mini: Path, tmp_path: Path) -> None:
    """A perception that is not taken starts with open gates."""
    for init, take in (("whole", "perception"), ("language", "language")):
        with pytest.raises(UserError, match="keeps perception as it is, and the language it uses: take both"):
            train(tmp_path, "motion", mini, init=str(chain / init), take=[take])


def test_cached_tokens_have_the_queries_they_were_trained_with(chain: Path, mini: Path, tmp_path: Path) -> None:
    model = tiny.with_switches(tiny.MODEL, {"language.cues": "direct"})
    with pytest.raises(UserError, match="direct needs an init trained so"):
        train(tmp_path, "motion", mini, init=str(chain / "language"), model=model)


def test_a_missing_validation_split_is_noticed_at_once(chain: Path, mini: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/valid: no such data set split; splits there: "):
        train(
            tmp_path,
            "motion",
            mini,
            init=str(chain / "language"),
            data={"mevis": {"root": str(mini), "validation": "valid"}},
        )
    assert not (tmp_path / "motion").exists()


def test_a_failed_start_does_not_claim_the_folder(mini: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such data set"):
        train(tmp_path, "perception", mini, data={"mevis": {"root": str(tmp_path / "nowhere")}})
    model = tiny.with_switches(tiny.MODEL, {"readout.masks": "embedding"})
    path = tiny.write_recipe(tmp_path / "a.yaml", tiny.recipe("motion", mini, model=model))
    with pytest.raises(UserError, match=r"task motion needs readout\.masks: trajectories"):
        run(path, [], tmp_path / "perception")
    train(tmp_path, "perception", mini)


def test_masks_are_padded_as_their_frames_are(mini: Path) -> None:
    values = tiny.recipe("perception", mini, model=tiny.with_switches(tiny.MODEL, {"input.short_side": 36}))
    split = MevisSplit(mini, "train")
    model = tiny.model({"input.short_side": 36})
    task = PerceptionTask(from_dict(Recipe, values), model, tiny.tokenizer(), {"mevis": split})
    batch = task.batches(0)[0]
    assert batch.images.shape[2] == 40
    assert batch.masks.shape[-2:] == batch.images.shape[-2:]
    assert batch.masks.any()
    assert not batch.masks[..., 36:, :].any()


def test_pairs_of_frames_from_a_video_of_one(mini: Path) -> None:
    split = MevisSplit(mini, "train")
    name = list(split.videos)[2]
    split.videos[name] = replace(split.videos[name], frames=split.videos[name].frames[:1])
    plain = from_dict(Recipe, tiny.recipe("perception", mini))
    linked = replace(plain, weights=replace(plain.weights, link=1.0))
    for recipe, drawn in ((plain, True), (linked, False)):
        task = PerceptionTask(recipe, tiny.model(), tiny.tokenizer(), {"mevis": split})
        assert (name in {video.name for video in task.videos}) == drawn


@pytest.fixture
def roberta(tmp_path: Path) -> Path:
    """A folder as RoBERTa's weights are published."""
    folder = tmp_path / "roberta"
    torch.manual_seed(7)
    published = RobertaModel(RobertaConfig(**to_dict(tiny.config().language.encoder)))
    published.load_state_dict(tiny.model().language.encoder.state_dict())
    published.save_pretrained(folder)
    save_tokenizer(tiny.tokenizer().tokenizer, folder / "tokenizer.json")
    return folder


def test_a_fresh_model_takes_published_text_weights(roberta: Path, mini: Path, tmp_path: Path) -> None:
    """Frozen, they are in the trained model as they were; so is their tokeniser."""
    model = tiny.with_switches(tiny.MODEL, {"language.frozen": True})
    folder = train(tmp_path, "whole", mini, init=None, model=model, text_encoder=str(roberta), steps=2)
    trained, tokenizer = load_model(folder)
    published = tiny.model().language.encoder.state_dict()
    state = trained.language.encoder.state_dict()
    assert state.keys() == published.keys()
    assert all(torch.equal(value, published[key]) for key, value in state.items())
    assert torch.equal(tokenizer(tiny.SENTENCES).input_ids, tiny.tokenizer()(tiny.SENTENCES).input_ids)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": {"language.encoder.num_hidden_layers": 2}}, "lacks encoder.layer.1."),
        ({"model": {"language.encoder.vocab_size": 301}}, "embeddings.word_embeddings.weight has shape [300, "),
        ({"init": "anything"}, "text_encoder is for a model that starts fresh"),
        ({"text_encoder": None, "model": {"language.frozen": True}}, "nothing gives its weights: set it to false"),
        ({"text_encoder": "./nowhere"}, "cannot load the text encoder './nowhere'"),
    ],
)
def test_text_weights_that_cannot_be_taken(
    more: dict[str, Any], message: str, roberta: Path, mini: Path, tmp_path: Path
) -> None:
    model = tiny.with_switches(tiny.MODEL, more.get("model", {}))
    with pytest.raises(UserError) as caught:
        train(tmp_path, "whole", mini, **({"init": None, "text_encoder": str(roberta)} | more | {"model": model}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_whose_recipe_lacks_newer_keys_goes_on(mini: Path, tmp_path: Path) -> None:
    folder = train(tmp_path, "perception", mini)
    stored = folder / "recipe.yaml"
    stored.write_text(stored.read_text().replace("text_encoder: null\n", ""))
    train(tmp_path, "perception", mini)


def test_another_recipe_in_the_same_folder(chain: Path, mini: Path) -> None:
    before = (chain / "perception" / "recipe.yaml").read_text()
    path = tiny.write_recipe(chain / "other.yaml", tiny.recipe("perception", mini, seed=5))
    with pytest.raises(UserError, match="holds a run of another recipe; name another folder"):
        run(path, [], chain / "perception")
    assert (chain / "perception" / "recipe.yaml").read_text() == before


def test_weights_of_another_shape(chain: Path, mini: Path, tmp_path: Path) -> None:
    model = tiny.with_switches(tiny.MODEL, {"motion.contrast_size": 8})
    with pytest.raises(UserError, match=r"decoder\.contrast\.\S+ has shape .*; it does not fit the recipe's model"):
        train(tmp_path, "whole", mini, init=str(chain / "motion"), model=model)


def test_a_part_that_is_new_starts_fresh(chain: Path, mini: Path, tmp_path: Path) -> None:
    """The baseline without temporal position: the same perception, a motion part without the arrow of time."""
    model = tiny.with_switches(tiny.MODEL, {"motion.position": False, "motion.displacement": False})
    train(tmp_path, "motion", mini, init=str(chain / "perception"), model=model, cache=str(chain / "motion" / "cache"))
    without, _ = load_model(tmp_path / "motion")
    assert without.decoder.time_position is None
    kept = load_file(chain / "perception" / "model" / "model.safetensors")
    state = without.state_dict()
    assert all(torch.equal(state[key], kept[key]) for key in state if key.startswith("perception."))


def test_data_without_objects(mini: Path, tmp_path: Path) -> None:
    """MeViS itself does not list what else there is; the whole task alone can learn from it."""
    plain = tmp_path / "mevis"
    (plain / "train").mkdir(parents=True)
    for name in ("JPEGImages", "mask_dict.json"):
        os.symlink(mini / "train" / name, plain / "train" / name)
    values = json.loads((mini / "train" / "meta_expressions.json").read_text())
    keys = ("exp", "obj_id", "anno_id")
    for video in values["videos"].values():
        del video["objects"]
        video["expressions"] = {
            number: {key: item[key] for key in keys} for number, item in video["expressions"].items()
        }
    (plain / "train" / "meta_expressions.json").write_text(json.dumps(values))
    for task in ("perception", "motion"):
        with pytest.raises(UserError, match="does not list all objects of its videos"):
            train(tmp_path, task, plain, init=None)
    folder = train(tmp_path, "whole", plain, init=None, steps=2, data={"mevis": {"root": str(plain)}})
    assert [line["step"] for line in metrics(folder)] == [1, 2]


# ------------------------------------------------------------------------------- true masks of MeViS itself


@pytest.fixture(scope="module")
def mevis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MeViS's miniature, which does not list the objects of its videos."""
    root = tmp_path_factory.mktemp("real") / "mevis"
    make_mini("mevis", write_mini, root)
    return root


def tracks_recipe(mevis: Path, roberta: Path, *overrides: str) -> list[str]:
    """Values that make the recipe `ours/tracks_mevis` as small as the miniature."""
    small = {"hidden_size": 32, "motion.ffn": 32, "motion.heads": 2, "motion.blocks": 2, "motion.contrast_size": 16}
    values = [f"model.{key}={value}" for key, value in small.items()]
    values += [f"data.mevis.root={mevis}", f"text_encoder={roberta}", "batch=4", "warmup=1", "contrast_start=1"]
    return [*values, "run.checkpoint_every=2", "run.validate_every=2", *overrides]


def test_a_motion_part_learns_mevis_from_its_masks(mevis: Path, roberta: Path, tmp_path: Path) -> None:
    """No perception is learned or computed, the text encoder stays, and the model answers about tracks."""
    folder = run("ours/tracks_mevis", tracks_recipe(mevis, roberta, "steps=4"), tmp_path / "run", "cpu")
    last = metrics(folder)[-1]
    assert {"exact all", "iou all", "whole tracks"} <= last.keys()
    assert last["links"] > 90
    recipe = load_recipe(folder / "recipe.yaml")
    torch.manual_seed(recipe.seed)
    splits = open_splits(recipe)
    start = start_model(recipe, splits.values())[0].state_dict()
    state = load_file(folder / "model" / "model.safetensors")
    changed = {key.rpartition(".")[0] for key, value in state.items() if not torch.equal(value, start[key])}
    assert {key.split(".")[0] for key in changed} == {"language", "motion", "decoder"}
    assert not any(key.startswith("language.encoder") for key in changed)
    segmenter = Segmenter.from_pretrained(folder, device="cpu")
    split = splits["mevis"].with_named_objects()
    item = split.expressions[0]
    frames = np.stack(split.frames(item.video))
    named = [each["anno_id"] for each in split.videos[item.video].objects.values()]
    masks = split.masks(item.video, named, range(len(frames)), frames.shape[1:3])
    result = segmenter(frames, item.text, fps=8.0, tracks=masks, threshold=0.0, all_objects=True)
    for each in (*result.objects, *result.others):
        assert each.track is not None
        assert np.array_equal(each.masks, masks[int(each.track) - 1])
    with pytest.raises(UserError, match=r"learned from tracks alone .* give it --tracks or --candidates"):
        segmenter(frames, item.text, fps=8.0)


def test_training_on_masks_goes_on_as_if_nothing_had_happened(mevis: Path, roberta: Path, tmp_path: Path) -> None:
    values = tracks_recipe(mevis, roberta, f"run.cache={tmp_path / 'cache'}")
    whole = run("ours/tracks_mevis", [*values, "steps=4"], tmp_path / "whole", "cpu")
    parts = tmp_path / "parts"
    step, steps = Trainer._step, 0

    def killed(self: Trainer, batches: Any) -> bool:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Killed
        return step(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", killed)
        with pytest.raises(Killed):
            run("ours/tracks_mevis", [*values, "steps=4"], parts, "cpu")
    run("ours/tracks_mevis", [*values, "steps=4"], parts, "cpu")
    first, second = (load_file(each / "model" / "model.safetensors") for each in (whole, parts))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_camera_that_keeps_still_needs_no_pictures(mevis: Path, roberta: Path, tmp_path: Path) -> None:
    blind = tmp_path / "blind"
    shutil.copytree(mevis, blind, ignore=shutil.ignore_patterns("*.jpg"))
    values = tracks_recipe(blind, roberta, "steps=1", "model.motion.camera=false")
    assert metrics(run("ours/tracks_mevis", values, tmp_path / "run", "cpu"))[-1]["step"] == 1


def looks(mevis: Path, folder: Path, numbers: int = 5) -> Path:
    """A vector for every object of both splits, in a file per video."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("train", "valid_u"):
        for video in MevisSplit(mevis, name).with_named_objects().videos.values():
            keys = [str(item["anno_id"]) for item in video.objects.values()]
            rows = {key: torch.randn(numbers, generator=generator) for key in keys}
            save_file(rows, folder / f"{video.name}.safetensors")
    return folder


def test_appearance_of_true_masks_is_learned(mevis: Path, roberta: Path, tmp_path: Path) -> None:
    """What starts without reading it reads it in the end; tracks made elsewhere may have it or not."""
    folder = looks(mevis, tmp_path / "looks")
    more = [f"appearance={folder}", "model.motion.appearance=5", "steps=3"]
    trained = run("ours/tracks_mevis", tracks_recipe(mevis, roberta, *more), tmp_path / "run", "cpu")
    state = load_file(trained / "model" / "model.safetensors")
    assert state["motion.appearance.weight"].shape == (32, 5)
    assert state["motion.appearance.weight"].any()
    assert load_config(trained / "model" / "config.json").card.recipe["appearance"] == "looks"
    split = MevisSplit(mevis, "train").with_named_objects()
    video = next(iter(split.videos.values()))
    rows = cache.read_appearance(folder, split, video.name, 5)
    kept = load_file(folder / f"{video.name}.safetensors")
    assert torch.equal(rows, torch.stack([kept[str(item["anno_id"])] for item in video.objects.values()]))
    assert list(video.objects) == sorted(video.objects)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["appearance=looks"], "need each other"),
        (["model.motion.appearance=5"], "need each other"),
        (["appearance=looks", "model.motion.appearance=6"], "has shape [5]; model.motion.appearance asks [6]"),
        (["appearance=nowhere", "model.motion.appearance=5"], "missing; appearance needs a file per video"),
        (["appearance=lacking", "model.motion.appearance=5"], "is missing; model.motion.appearance asks [5]"),
    ],
)
def test_appearance_that_cannot_be_learned(
    change: list[str], told: str, mevis: Path, roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    looks(mevis, tmp_path / "looks")
    for file in looks(mevis, tmp_path / "lacking").iterdir():
        save_file({"x": torch.zeros(5)}, file)
    with pytest.raises(UserError) as caught:
        run("ours/tracks_mevis", tracks_recipe(mevis, roberta, *change), tmp_path / "run", "cpu")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def elsewhere(mevis: Path, folder: Path) -> Path:
    """Tracks as a tool finds them: the first object of a video in halves, which nothing truly is, the others as they
    are, in the other order."""
    folder.mkdir()
    for name in ("train", "valid_u"):
        split = MevisSplit(mevis, name).with_named_objects()
        for video in split.videos.values():
            size = frame_size(split, video.name)
            keys = [item["anno_id"] for item in video.objects.values()]
            first, *others = split.masks(video.name, keys, range(len(video.frames)), size)
            half = np.zeros_like(first)
            half[..., : size[1] // 2] = True
            found = [*others[::-1], first & half, first & ~half]
            rows = [
                {"id": k, "segmentations": [encode(m) if m.any() else None for m in t]} for k, t in enumerate(found)
            ]
            (folder / f"{video.name}.json").write_text(json.dumps(rows))
    return folder


def test_a_motion_part_learns_from_tracks_made_elsewhere(mevis: Path, roberta: Path, tmp_path: Path) -> None:
    folder = elsewhere(mevis, tmp_path / "tracks")
    more = ["candidates=tracks", f"tracks={folder}", "steps=2", f"run.cache={tmp_path / 'cache'}"]
    trained = run("ours/tracks_mevis", tracks_recipe(mevis, roberta, *more), tmp_path / "run", "cpu")
    assert {"exact all", "iou all"} <= metrics(trained)[-1].keys()
    split = MevisSplit(mevis, "train").with_named_objects()
    model = build_model(load_recipe(trained / "recipe.yaml").model, "")
    true, found = (
        CachedSplit.build(model, tiny.tokenizer(), split, tmp_path / "cache", masks) for masks in (True, folder)
    )
    assert true.folder != found.folder
    for item in split.expressions:
        own, other = true[item], found[item]
        assert torch.equal(own.truth, other.truth)
        assert own.geometry is not None
        assert other.geometry is not None
        count = own.owner.shape[1] - 1
        assert torch.equal(own.geometry[:, 1:].flip(1), other.geometry[:, :count])
        assert torch.equal(own.owner[:, 1:].flip(1), other.owner[:, :count])
        assert ((other.owner == 0).sum(1) <= 1).all()  # of two halves one at most is the whole
    first = next(folder.iterdir())
    rows = json.loads(first.read_text())
    first.write_text(first.read_text().replace("null", "5"))
    with pytest.raises(UserError, match="run lengths"):
        run("ours/tracks_mevis", tracks_recipe(mevis, roberta, *more), tmp_path / "spoilt", "cpu")
    for row in rows:
        row["segmentations"].append(next(filter(None, row["segmentations"])))
    first.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="give those of it"):
        run("ours/tracks_mevis", tracks_recipe(mevis, roberta, *more), tmp_path / "spoilt", "cpu")
    first.unlink()
    with pytest.raises(UserError, match="missing; candidates: tracks need a file per video"):
        run("ours/tracks_mevis", tracks_recipe(mevis, roberta, *more), tmp_path / "spoilt", "cpu")


def test_a_video_in_which_nothing_is_meant(mevis: Path, roberta: Path, tmp_path: Path) -> None:
    other = tmp_path / "mevis"
    shutil.copytree(mevis, other)
    listed = other / "train" / "meta_expressions.json"
    values = json.loads(listed.read_text())
    name, video = next(iter(values["videos"].items()))
    for item in video["expressions"].values():
        item.update(obj_id=[], anno_id=[])
    listed.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"no sentence of video {name} means an object in it"):
        run("ours/tracks_mevis", tracks_recipe(other, roberta), tmp_path / "run", "cpu")


def test_named_objects(mevis: Path) -> None:
    plain = MevisSplit(mevis, "train")
    split = plain.with_named_objects()
    assert not any(video.objects for video in plain.videos.values())
    for item in split.expressions:
        objects = split.videos[item.video].objects
        assert [objects[key]["anno_id"] for key in item.objects] == list(item.annotations)
        assert len(objects) > 1  # those of other sentences, too
    for change, told in (({"annotations": (1,)}, "not pairs"), ({"annotations": (98, 99)}, "another one")):
        spoilt = MevisSplit(mevis, "train")
        place = next(i for i, item in enumerate(spoilt.expressions) if len(item.objects) == 2)
        spoilt.expressions[place] = replace(spoilt.expressions[place], **change)
        with pytest.raises(UserError, match=told):
            spoilt.with_named_objects()


# ------------------------------------------------------------------------------------------------- cache


def record_videos(patch: pytest.MonkeyPatch) -> list[str]:
    """The videos whose tokens are made from now on."""
    made: list[str] = []
    perceive = cache.perceive_clip

    def record(model: DsHmp, split: Any, name: str, text: Any) -> Any:
        made.append(name)
        return perceive(model, split, name, text)

    patch.setattr(cache, "perceive_clip", record)
    return made


def cached(model: DsHmp, split: MevisSplit, folder: Path) -> CachedSplit:
    return CachedSplit.build(model, tiny.tokenizer(), split, folder)


def agnostic(switches: Mapping[str, Any] | None = None) -> DsHmp:
    model = tiny.model(switches or {})
    disable_language(model.perception)
    return model


def equal(one: CachedClip, other: CachedClip) -> bool:
    return all(
        torch.equal(value, getattr(other, kind)) for kind, value in vars(one).items() if isinstance(value, torch.Tensor)
    )


def test_the_cache_goes_on_where_it_stopped(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = record_videos(monkeypatch)
    split, model = MevisSplit(mini, "train"), agnostic()
    first = cached(model, split, tmp_path)
    assert sorted(made) == sorted(split.videos)
    clips = [first[item] for item in split.expressions]
    lost = made[1]
    (first.folder / f"{lost}.safetensors").unlink()
    (first.folder / f"{lost}.part").write_bytes(b"half")
    made.clear()
    second = cached(model, split, tmp_path)
    assert made == [lost]
    assert all(equal(clip, second[item]) for clip, item in zip(clips, split.expressions, strict=True))
    with torch.no_grad():  # language and motion do not matter, perception does
        model.language.resizer.fc.weight += 1
        model.motion.input_projection.weight += 1
    assert cached(model, split, tmp_path).folder == first.folder
    assert made == [lost]
    with torch.no_grad():
        model.perception.frame_decoder.query_content.weight += 1
    third = cached(model, split, tmp_path)
    assert len(made) == 1 + len(split.videos)
    assert not all(equal(clip, third[item]) for clip, item in zip(clips, split.expressions, strict=True))


def test_another_data_set_has_another_cache(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which data set it is, its bytes say, not its place."""
    made = record_videos(monkeypatch)
    model = agnostic()
    cached(model, MevisSplit(mini, "valid_u"), tmp_path / "c")
    moved = tmp_path / "moved" / "valid_u"
    moved.mkdir(parents=True)
    for name in ("JPEGImages", "mask_dict.json"):
        os.symlink(mini / "valid_u" / name, moved / name)
    text = (mini / "valid_u" / "meta_expressions.json").read_text()
    (moved / "meta_expressions.json").write_text(text)
    cached(model, MevisSplit(moved.parent, "valid_u"), tmp_path / "c")
    assert len(made) == len(MevisSplit(mini, "valid_u").videos)
    (moved / "meta_expressions.json").write_text(text + "\n")
    cached(model, MevisSplit(moved.parent, "valid_u"), tmp_path / "c")
    assert len(made) == 2 * len(MevisSplit(mini, "valid_u").videos)
    (moved / "mask_dict.json").unlink()
    (moved / "mask_dict.json").write_text((mini / "valid_u" / "mask_dict.json").read_text() + "\n")
    cached(model, MevisSplit(moved.parent, "valid_u"), tmp_path / "c")
    assert len(made) == 3 * len(MevisSplit(mini, "valid_u").videos)
    assert len(list((tmp_path / "c").iterdir())) == 3


def test_a_damaged_file_is_named(mini: Path, tmp_path: Path) -> None:
    split = MevisSplit(mini, "valid_u")
    item = split.expressions[0]
    (tmp_path / f"{item.video}.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=rf"{item.video}\.safetensors: damaged"):
        CachedSplit(split, tiny.tokenizer(), tmp_path)[item]


def test_two_runs_build_one_cache(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, model, save = MevisSplit(mini, "valid_u"), agnostic(), cache.save_tensors

    def save_while_a_rival_does(arrays: Any, path: Path) -> None:
        save(arrays, path)
        save(arrays, path)

    monkeypatch.setattr(cache, "save_tensors", save_while_a_rival_does)
    built = cached(model, split, tmp_path)
    assert sorted(path.stem for path in built.folder.iterdir()) == sorted(split.videos)
    assert all(built[item] for item in split.expressions)


def test_what_is_cached(mini: Path, tmp_path: Path) -> None:
    split = MevisSplit(mini, "valid_u")
    built = cached(agnostic(), split, tmp_path)
    for item in split.expressions:
        clip, video = built[item], split.videos[item.video]
        length = len(video.frames)
        assert clip.tokens is not None
        count = clip.tokens.shape[1]  # trajectories that are there at all
        assert 1 <= count <= 6
        assert clip.tokens.shape == (length, count, 32)
        assert clip.mask_logits.shape == (length, count, *cache.GRID)
        assert clip.owner.shape == (length, count)
        assert clip.truth.shape == (len(video.objects), length, *cache.GRID)
        assert clip.objects == tuple(video.objects)
        assert clip.truth.any((1, 2, 3)).all()
        assert (clip.owner < len(video.objects)).all()


def test_a_motion_part_learns_true_masks_from_fresh_weights(mini: Path, tmp_path: Path) -> None:
    """No static perception is needed, so neither is an init; what reads no geometry has nothing to learn from."""
    folder = train(tmp_path, "motion", mini, init=None, candidates="truth", steps=2)
    last = metrics(folder)[-1]
    assert last["links"] > 90
    model = tiny.with_switches(tiny.MODEL, {"motion.geometry": False})
    (tmp_path / "blind").mkdir()
    with pytest.raises(UserError, match=r"candidates: truth have no tokens; they need model\.motion\.geometry"):
        train(tmp_path / "blind", "motion", mini, init=None, candidates="truth", model=model)


def test_language_that_starts_fresh_has_a_fresh_tokeniser(mini: Path, chain: Path) -> None:
    recipe = load_recipe(chain / "perception" / "recipe.yaml")
    splits = [MevisSplit(mini, "train")]
    of = {
        taken: start_model(replace(recipe, init=str(chain / "perception"), take=taken, vocabulary=270), splits)[1]
        for taken in ((), ("perception",))
    }
    sizes = {taken: each.tokenizer.get_vocab_size() for taken, each in of.items()}
    assert sizes["perception",] == 270 < sizes[()]


def test_true_masks_as_candidates(mini: Path, tmp_path: Path) -> None:
    """One for each object, without tokens, seen as itself: links hold, and a step learns from them."""
    split, model = MevisSplit(mini, "valid_u"), tiny.model()
    built = CachedSplit.build(model, tiny.tokenizer(), split, tmp_path, masks=True)
    for item in split.expressions:
        clip = built[item]
        assert clip.tokens is None
        assert clip.present is not None
        assert clip.geometry is not None
        objects = torch.arange(len(clip.objects))
        assert (clip.owner == objects).equal(clip.present)
        centre = clip.geometry[..., 0][clip.present]
        assert centre.abs().max() < 1.2
        assert link_scores(item, built)[0]
    figures = score_tokens(model, built).values
    assert figures["links"] > 95
    assert {"exact all", "exact static", "whole tracks"} <= figures.keys()
    batch = built.batch([0, 1], [(0, 0, 0), (0, 0, 1)])
    video = model.train().decode_motion(batch.candidates, model.language(batch.texts))
    assert video.readout.clip_masks(batch.mask_logits, None).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_perception_that_hears_is_cached_by_expression(mini: Path, tmp_path: Path, fused: bool) -> None:
    split, model, tokenizer = (
        MevisSplit(mini, "valid_u"),
        tiny.model({"backbone.language_fusion": fused, "motion.geometry": False}),
        tiny.tokenizer(),
    )
    built = cached(model.eval(), split, tmp_path)
    by_video: dict[str, list[CachedClip]] = {}
    for item in split.expressions:
        images = prepare_frames(split.frames(item.video), model.config.input)
        with torch.no_grad():
            alone = model.encode(images, model.language(tokenizer([item.text])))
        assert_close(built[item].tokens.float(), alone.tokens, rtol=1e-3, atol=2e-3)  # kept in half precision
        by_video.setdefault(item.video, []).append(built[item])
    several = [clips for clips in by_video.values() if len(clips) > 1]
    assert all(torch.equal(clips[0].truth, clips[1].truth) for clips in several)
    assert not any(torch.equal(clips[0].tokens, clips[1].tokens) for clips in several)


def test_a_cache_is_of_one_parser_and_one_architecture(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, tokenizer = MevisSplit(mini, "valid_u"), tiny.tokenizer()
    using = tiny.model()
    own, own_agnostic = (cache._identity(model, tokenizer, split) for model in (using, agnostic()))
    other = tiny.model({"frame_decoder.heads": 1})
    other.load_state_dict(using.state_dict())
    assert cache._identity(other, tokenizer, split) != own
    monkeypatch.setattr("dshmp.model.tokenizer.parser_version", lambda name: "a newer one")
    assert cache._identity(using, tokenizer, split) != own
    assert cache._identity(agnostic(), tokenizer, split) == own_agnostic


@pytest.mark.slow
def test_settings_that_reach_the_static_queries_have_caches_of_their_own(mini: Path, tmp_path: Path) -> None:
    split = MevisSplit(mini, "valid_u")
    state = tiny.model().state_dict()

    def folder(model: DsHmp) -> Path:
        model.load_state_dict(state, strict=False)
        return cached(model.eval(), split, tmp_path).folder

    own, *others = (
        folder(tiny.model(switches)) for switches in ({}, {"language.cues": "words"}, {"language.split": "paper"})
    )
    assert len({own, *others}) == 3
    assert folder(tiny.model({"motion.stages": 1, "motion.position": False})) == own
    model = tiny.model()
    model.load_state_dict(state)
    with torch.no_grad():
        model.language.resizer.fc.weight += 1
    assert cached(model.eval(), split, tmp_path).folder not in {own, *others}


# --- on one's own clips ---


def test_a_model_is_trained_on_at_the_first_try(
    mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing but the model and the data named; a short trial is told what it does not come to, and a finished run
    becomes longer."""
    save_model(tiny.model(), tiny.tokenizer(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    def train(*words: str) -> int:
        command = ["dshmp", "train", *words, "--init", "model", f"data.mevis.root={mini}", "run.workers=1"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code

    assert train("steps=2") == 0
    assert "warmup: 20 steps are more than the run has (2)" in capsys.readouterr().err
    out = tmp_path / "runs" / "finetune"
    assert load_recipe(out / "recipe.yaml").model == tiny.model().config
    assert load_config(out / "model" / "config.json").card.recipe["trained_steps"] == 2
    assert train("steps=3") == 0
    assert load_config(out / "model" / "config.json").card.recipe["trained_steps"] == 3
    assert train("steps=2") == 2  # not shorter
    assert train("steps=3", "model.release.window_shift=test", "--out", "other") == 0
    assert load_recipe(Path("other/recipe.yaml")).model.release.window_shift == "test"
