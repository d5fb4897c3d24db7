"""A model on disk: what is saved comes back, and whatever is wrong with it is said in one line."""

import json
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import tiny
from dshmp.card import Card
from dshmp.checkpoint import (
    CONFIG,
    README,
    TOKENIZER,
    VERSION,
    WEIGHTS,
    build_model,
    find_model,
    load_config,
    load_model,
    load_tensors,
    save_model,
    upgraded,
)
from dshmp.common.errors import UserError
from dshmp.config import ReleaseConfig, to_dict
from dshmp.inference.segmenter import Segmenter
from dshmp.interop.keymap import _BEFORE_4
from dshmp.model.dshmp import DsHmp
from dshmp.model.tokenizer import TextTokenizer, train_tokenizer

State = dict[str, torch.Tensor]
WEIGHT = "motion.input_projection.weight"
CARD = Card(
    name="tiny", data="nothing", recipe={"steps": 3}, scores={"valid_u": {"J&F": 64.5}}, limits=("It is tiny.",)
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tiny.model(), tiny.tokenizer(), tmp_path / "m")
    return tmp_path / "m"


def test_round_trip(folder: Path) -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    loaded, read = load_model(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, README, TOKENIZER, WEIGHTS])
    assert loaded.config == model.config
    assert not loaded.training
    own, state = model.state_dict(), loaded.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], state[key]) for key in own)
    for name in ("input_ids", "mask", "static", "motion"):
        assert torch.equal(getattr(tokenizer(tiny.SENTENCES), name), getattr(read(tiny.SENTENCES), name))
    save_model(loaded, read, folder.parent / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (folder.parent / "again" / path.name).read_bytes()


def test_the_card_survives(tmp_path: Path) -> None:
    Segmenter(tiny.model(), tiny.tokenizer(), "cpu", card=CARD).save_pretrained(tmp_path / "m")
    segmenter = Segmenter.from_pretrained(tmp_path / "m", "cpu")
    assert segmenter.card == load_config(tmp_path / "m" / CONFIG).card == CARD
    segmenter.save_pretrained(str(tmp_path / "again"))
    for name in (CONFIG, README, TOKENIZER, WEIGHTS):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_our_config_is_the_only_one(folder: Path) -> None:
    """Nothing of the hub's mixin enters it; what it offers beside it is refused."""
    segmenter = Segmenter(tiny.model(), tiny.tokenizer(), "cpu")
    segmenter.save_pretrained(folder)
    values = json.loads((folder / CONFIG).read_text())
    assert values == {"version": VERSION, "model": to_dict(tiny.config()), "card": to_dict(Card())}
    with pytest.raises(TypeError, match="config"):
        segmenter.save_pretrained(folder, config={"a": 1})
    assert json.loads((folder / CONFIG).read_text()) == values


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_all_files_have_the_usual_mode(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        save_model(tiny.model(), tiny.tokenizer(), tmp_path / "m")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()} == {0o666 & ~mask}


def test_a_run_holds_its_model(folder: Path) -> None:
    run = folder.parent / "run"
    run.mkdir()
    folder.rename(run / "model")
    assert find_model(run) == run / "model"
    load_model(run)


def change_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        change(values)
        (folder / CONFIG).write_text(json.dumps(values))

    return apply


def change_weights(change: Callable[[State], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)

    return apply


def truncate(name: str, share: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return apply


def poison(value: float) -> Callable[[State], None]:
    def apply(state: State) -> None:
        state[WEIGHT][0, 0] = value

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS, "missing"),
    "no tokeniser": (lambda f: (f / TOKENIZER).unlink(), TOKENIZER, "cannot load a tokeniser"),
    "no config": (lambda f: (f / CONFIG).unlink(), CONFIG, "holds no model"),
    "weights cut off": (truncate(WEIGHTS, 0.6), WEIGHTS, "damaged"),
    "header cut off": (truncate(WEIGHTS, 0.01), WEIGHTS, "damaged"),
    "weights empty": (truncate(WEIGHTS, 0), WEIGHTS, "damaged"),
    "config cut off": (truncate(CONFIG, 0.5), CONFIG, "cannot be read"),
    "tokeniser cut off": (truncate(TOKENIZER, 0.5), TOKENIZER, "cannot load a tokeniser"),
    "a pickle": (lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({"a": 1})), WEIGHTS, "not a safetensors file"),
    "a torch file": (lambda f: torch.save({WEIGHT: torch.ones(1)}, f / WEIGHTS), WEIGHTS, "not a safetensors file"),
    "text": (lambda f: (f / WEIGHTS).write_text("version https://git-lfs\n" * 9), WEIGHTS, "not a safetensors file"),
    "NaN": (change_weights(poison(float("nan"))), WEIGHTS, f"{WEIGHT} holds NaN"),
    "infinity": (change_weights(poison(float("inf"))), WEIGHTS, f"{WEIGHT} holds NaN or infinity"),
    "key lacking": (change_weights(lambda s: s.pop(WEIGHT)), WEIGHTS, f"lacks {WEIGHT}; it belongs to another config"),
    "key renamed": (
        change_weights(lambda s: s.update(extra=s.pop(WEIGHT))),
        WEIGHTS,
        f"lacks {WEIGHT} and has unknown extra; it belongs to another config",
    ),
    "whole numbers": (
        change_weights(lambda s: s.update({WEIGHT: s[WEIGHT].to(torch.int64)})),
        WEIGHTS,
        f"{WEIGHT} holds whole numbers",
    ),
    "float8": (
        change_weights(lambda s: s.update({WEIGHT: s[WEIGHT].to(torch.float8_e4m3fn)})),
        WEIGHTS,
        f"{WEIGHT} is no plain tensor of numbers (torch.float8_e4m3fn",
    ),
    "beyond float32": (
        change_weights(lambda s: s.update({WEIGHT: s[WEIGHT].double() + 1e300})),
        WEIGHTS,
        f"{WEIGHT} holds NaN or infinity",
    ),
    "key unknown": (change_weights(lambda s: s.update(extra=torch.ones(1))), WEIGHTS, "has unknown extra"),
    "wrong shape": (
        change_weights(lambda s: s.update({WEIGHT: torch.ones(3, 2)})),
        WEIGHTS,
        f"{WEIGHT} has shape [3, 2], the config asks [32, 32]",
    ),
    "other config": (change_config(lambda c: c["model"].update(hidden_size=64)), WEIGHTS, "the config asks"),
    "newer": (
        change_config(lambda c: c.update(version=99)),
        CONFIG,
        "has version 99, not 1 to 6; for a newer one: pip install -U dshmp",
    ),
    "newer and laid out anew": (
        lambda f: (f / CONFIG).write_text('{"version": 7, "parts": []}'),
        CONFIG,
        "has version 7, not 1 to 6",
    ),
    "version 0": (change_config(lambda c: c.update(version=0)), CONFIG, "has version 0, not 1 to 6"),
    "version in words": (change_config(lambda c: c.update(version="2")), CONFIG, "is not a configuration of this"),
    "version true": (change_config(lambda c: c.update(version=True)), CONFIG, "is not a configuration of this"),
    "no version": (change_config(lambda c: c.pop("version")), CONFIG, "is not a configuration of this program"),
    "unknown part": (
        change_config(lambda c: c.update(cart={})),
        CONFIG,
        "unknown key 'cart'; did you mean 'card'?",
    ),
    "card of another kind": (
        change_config(lambda c: c.update(card=["x"])),
        CONFIG,
        "card: must be a mapping, found ['x']",
    ),
    "card misspelt": (
        change_config(lambda c: c["card"].update(limit=[])),
        CONFIG,
        "config.json.card: unknown key 'limit'; did you mean 'limits'?",
    ),
    "card of wrong type": (
        change_config(lambda c: c["card"].update(scores={"valid_u": {"J&F": "high"}})),
        CONFIG,
        "config.json.card.scores.valid_u.J&F: must be a valid number, found 'high'",
    ),
    "score is no number": (
        change_config(lambda c: c["card"].update(scores={"valid_u": {"J&F": float("nan")}})),
        CONFIG,
        "J&F: must be a finite number",
    ),
    "nested too deep": (lambda f: (f / CONFIG).write_text("[" * 100_000), CONFIG, "cannot be read"),
    "version 1 without sections": (
        lambda f: (f / CONFIG).write_text('{"version": 1, "model": []}'),
        CONFIG,
        "config.json.model: must be a mapping",
    ),
    "version 1 with more": (
        lambda f: (f / CONFIG).write_text(json.dumps({**OLD, "foo": 3})),
        CONFIG,
        "unknown key 'foo'",
    ),
    "version 1 with a broken section": (
        lambda f: (f / CONFIG).write_text(json.dumps({"version": 1, "model": {**OLD["model"], "input": 3}})),
        CONFIG,
        "config.json.model.input: must be a mapping",
    ),
    "a key lacking": (
        change_config(lambda c: c["model"]["motion"].pop("merge")),
        CONFIG,
        "config.json.model.motion.merge: is missing",
    ),
    "a section lacking": (change_config(lambda c: c["model"].pop("motion")), CONFIG, "model.motion.blocks: is missing"),
    "no chunk": (
        change_config(lambda c: c["model"]["input"].update(chunk=0)),
        CONFIG,
        "input.chunk: must be at least 1, found 0",
    ),
    "a huge number": (
        change_config(lambda c: c["model"]["input"].update(motion_fps=10**400)),
        CONFIG,
        "input.motion_fps: must be a finite number",
    ),
    "huge windows": (
        change_config(lambda c: c["model"]["backbone"].update(window_size=150)),
        CONFIG,
        "backbone.window_size: must be at most 32, found 150",
    ),
    "endless layers": (
        change_config(lambda c: c["model"]["language"]["encoder"].update(num_hidden_layers=10**9)),
        CONFIG,
        "language.encoder.num_hidden_layers: must be at most 256",
    ),
    "a word for a number": (
        change_config(lambda c: c["model"]["language"]["encoder"].update(num_hidden_layers="a")),
        CONFIG,
        "language.encoder.num_hidden_layers: must be a valid integer, found 'a'",
    ),
    "no model": (change_config(lambda c: c.pop("model")), CONFIG, "config.json.model: is missing"),
    "unknown key": (
        change_config(lambda c: c["model"].update(hiden_size=3)),
        CONFIG,
        "unknown key 'hiden_size'; did you mean 'hidden_size'?",
    ),
    "wrong type": (
        change_config(lambda c: c["model"].update(hidden_size="x")),
        CONFIG,
        "must be a valid integer, found 'x'",
    ),
    "impossible": (change_config(lambda c: c["model"].update(hidden_size=33)), CONFIG, "no model can be built"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, folder: Path) -> None:
    damage, file, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(UserError) as caught:
        load_model(folder)
    text = str(caught.value)
    assert file in text
    assert message in text
    assert "\n" not in text


OLD = {  # the default model's config.json as the first release wrote it
    "version": 1,
    "model": {
        "hidden_size": 64,
        "language": {
            "encoder": {
                "vocab_size": 1024,
                "hidden_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "intermediate_size": 256,
                "max_position_embeddings": 130,
                "type_vocab_size": 1,
                "initializer_range": 0.1,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            "frozen": False,
            "split": "dependency",
            "cues": "full",
            "max_tokens": 128,
            "overlong": "error",
            "pad_to_max": False,
            "pad_token_id": None,
            "normalise": True,
            "spacy_model": "en_core_web_sm",
            "dropout": 0.0,
            "resizer_norm_eps": 1e-12,
        },
        "backbone": {
            "embed_dim": 24,
            "depths": [2, 2, 2, 2],
            "num_heads": [1, 2, 4, 8],
            "window_size": 4,
            "drop_path": 0.0,
            "language_fusion": False,
        },
        "pixel_decoder": {"layers": 1, "heads": 4, "ffn": 128},
        "frame_decoder": {
            "queries": 12,
            "layers": 3,
            "heads": 4,
            "ffn": 256,
            "injection": 0.1,
            "dropout": 0.0,
            "language": False,
        },
        "motion": {
            "blocks": 3,
            "window": 8,
            "stages": 3,
            "merge": "weighted",
            "matching": "hungarian",
            "window_shift": "always",
            "padded_frames": "masked",
            "position": True,
            "displacement": True,
            "queries": 6,
            "decoder_layers": 2,
            "heads": 4,
            "ffn": 256,
            "injection": 0.1,
            "dropout": 0.0,
            "fusion_scale": 0.1,
            "contrast_size": 64,
        },
        "readout": {"masks": "trajectories", "targets": "many", "threshold": 0.3},
        "input": {
            "short_side": 72,
            "long_side": 112,
            "divisor": 8,
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.37],
            "motion_fps": 8.0,
            "chunk": 16,
        },
    },
}


def test_version_1_is_read_and_means_the_same(tmp_path: Path) -> None:
    """A folder of the first release: read, saved as today's, and read again."""
    (tmp_path / CONFIG).write_text(json.dumps(OLD))
    config = load_config(tmp_path / CONFIG).model
    motion, readout = config.motion, config.readout
    assert (motion.matching, motion.displacement, motion.object_position) == ("hungarian", True, True)
    assert (motion.geometry, motion.camera, motion.static) == (False, False, False)
    assert (readout.masks, readout.pointing) == ("trajectories", "soft")
    torch.manual_seed(0)
    folder, tokenizer = tmp_path / "old", TextTokenizer(config, train_tokenizer(list(tiny.SENTENCES), 290))
    save_model(tiny.excite(DsHmp(config)), tokenizer, folder)
    (folder / CONFIG).write_text(json.dumps(OLD))
    old = Segmenter.from_pretrained(folder, "cpu")
    assert old.card == Card()
    old.save_pretrained(tmp_path / "new")
    new = Segmenter.from_pretrained(tmp_path / "new", "cpu")
    assert json.loads((tmp_path / "new" / CONFIG).read_text())["version"] == VERSION
    assert old.config == new.config == config
    video = np.random.default_rng(0).integers(0, 256, (6, 72, 96, 3), dtype=np.uint8)
    for sentence in tiny.SENTENCES:
        one, other = old(video, sentence, targets="single"), new(video, sentence, targets="single")
        assert one.score == other.score
        assert np.array_equal(one.masks, other.masks)


@pytest.mark.parametrize("switches", [{}, {"backbone.temporal_window": 2, "backbone.clip": 4}], ids=["swin", "video"])
def test_weights_before_version_4_have_other_names(folder: Path, switches: dict[str, Any]) -> None:
    model = tiny.model(switches)
    save_model(model, tiny.tokenizer(), folder)
    state = load_file(folder / WEIGHTS)
    patch = "perception.backbone.embeddings."
    for leaf in ("weight", "bias"):
        state[f"{patch}patch_embeddings.projection.{leaf}"] = state.pop(f"{patch}projection.{leaf}")
    if not switches:
        placed, rest = _BEFORE_4.to_right(state)
        state = {key: value.contiguous() for key, value in (placed | rest).items()}
        assert any(key.endswith("blocks.0.attention.q_proj.bias") for key in state)
    save_file(state, folder / WEIGHTS)
    change_config(lambda c: c.update(version=3))(folder)
    loaded, own = load_model(folder)[0].state_dict(), model.state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(own[key], loaded[key]) for key in own)
    if not switches:
        broken = {key: value for key, value in state.items() if "stages.0.blocks.0.attention.k_proj" not in key}
        save_file(broken, folder / WEIGHTS)
        with pytest.raises(UserError, match=r"do not fit together .*k_proj"):
            load_model(folder)


def test_an_upgrade_is_pure_and_complete() -> None:
    before = json.dumps(OLD)
    new = upgraded(OLD)
    assert json.dumps(OLD) == before
    assert new["version"] == VERSION
    assert new["card"] == to_dict(Card())
    assert new["model"]["release"] == to_dict(ReleaseConfig())
    second = {**OLD, "version": 2, "card": to_dict(Card(name="kept"))}
    assert upgraded(second)["card"]["name"] == "kept"


def test_version_5_has_no_appearance_and_is_else_complete(folder: Path) -> None:
    """Candidates had geometry then, so nothing else is made up."""
    change_config(lambda c: (c.update(version=5), c["model"]["motion"].pop("appearance")))(folder)
    assert load_config(folder / CONFIG).model == tiny.config()
    change_config(lambda c: c["model"]["motion"].pop("geometry"))(folder)
    with pytest.raises(UserError, match=r"motion\.geometry: is missing"):
        load_config(folder / CONFIG)


def test_load_config_checks_the_card_too(folder: Path) -> None:
    change_config(lambda c: c.update(card=3))(folder)
    with pytest.raises(UserError, match="card: must be a mapping"):
        load_config(folder / CONFIG)


def test_a_pickle_is_never_run(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str, str]]:
            return Path.write_text, (folder / "trapped", "x")  # type: ignore[return-value]

    (folder / WEIGHTS).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError):
        load_tensors(folder / WEIGHTS)
    assert not (folder / "trapped").exists()


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_text("")
    for source, message in (
        (tmp_path, "holds no model (config.json is missing)"),
        (tmp_path / "nowhere", "no such model"),
        (tmp_path / "file.pt", "no such model"),
        ("large", "no such model; name `default`, a folder"),
    ):
        with pytest.raises(UserError) as caught:
            load_model(source)
        assert str(caught.value).startswith(f"{source}: ")
        assert message in str(caught.value)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_failed_save_leaves_nothing_new(fresh: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = folder.parent / "fresh" if fresh else folder
    before = {} if fresh else {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(state: State, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    segmenter = Segmenter(tiny.model({"motion.stages": 0}), tiny.tokenizer(), "cpu", card=CARD)
    with pytest.raises(UserError) as caught:
        segmenter.save_pretrained(target)
    assert str(caught.value).startswith(
        f"{target / WEIGHTS}: cannot be written (I/O error: no space left on device); free"
    )
    assert target.exists() != fresh
    assert fresh or {path.name: path.read_bytes() for path in target.iterdir()} == before


@pytest.mark.parametrize("room", [1_000, 4_000, 20_000])
def test_a_full_disk_is_told_in_a_line(room: int, tmp_path: Path) -> None:
    """Whichever of the files it is that has no room."""
    model, tokenizer, before = tiny.model(), tiny.tokenizer(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(UserError, match=rf"^{tmp_path / 'm'}.*: cannot be written \(") as caught:
            save_model(model, tokenizer, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ".partial" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_huge_sizes_take_no_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made in the claimed size before the weights are seen to be of it."""
    made = []

    def build(*arguments: Any) -> Any:
        made.append(torch.get_default_device().type)
        return build_model(*arguments)

    monkeypatch.setattr("dshmp.checkpoint.build_model", build)
    change_config(lambda c: c["model"]["language"]["encoder"].update(vocab_size=2**24, hidden_size=2**16))(folder)
    with pytest.raises(UserError, match="the config asks"):
        load_model(folder)
    assert made == ["meta"]


def test_neighbours_stay(folder: Path) -> None:
    """Nothing beside a model's own files is touched, whatever it is called."""
    (folder / f"{WEIGHTS}.part").write_text("mine")
    save_model(tiny.model(), tiny.tokenizer(), folder)
    assert (folder / f"{WEIGHTS}.part").read_text() == "mine"
    assert len(list(folder.iterdir())) == 5
