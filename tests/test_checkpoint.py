"""A model on disk: what is saved comes back, and whatever is wrong with it is said in one line."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from dshmp.checkpoint import CONFIG, TOKENIZER, WEIGHTS, find_model, load_model, load_tensors, save_model
from dshmp.errors import UserError

State = dict[str, torch.Tensor]
WEIGHT = "motion.input_projection.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tiny.model(), tiny.tokenizer(), tmp_path / "m")
    return tmp_path / "m"


def test_round_trip(folder: Path) -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    loaded, read = load_model(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, TOKENIZER, WEIGHTS])
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
    "key lacking": (change_weights(lambda s: s.pop(WEIGHT)), WEIGHTS, f"lacks {WEIGHT} (1 in all)"),
    "key unknown": (change_weights(lambda s: s.update(extra=torch.ones(1))), WEIGHTS, "has unknown extra"),
    "wrong shape": (
        change_weights(lambda s: s.update({WEIGHT: torch.ones(3, 2)})),
        WEIGHTS,
        f"{WEIGHT} has shape [3, 2], the config asks [32, 32]",
    ),
    "other config": (change_config(lambda c: c["model"].update(hidden_size=64)), WEIGHTS, "the config asks"),
    "other version": (change_config(lambda c: c.update(version=99)), CONFIG, "has version 99, this program reads"),
    "no version": (change_config(lambda c: c.pop("version")), CONFIG, "has version None"),
    "not ours": (change_config(lambda c: c.pop("model")), CONFIG, "is not a configuration of this program"),
    "unknown key": (
        change_config(lambda c: c["model"].update(hiden_size=3)),
        CONFIG,
        "unknown key 'hiden_size'; did you mean 'hidden_size'?",
    ),
    "wrong type": (change_config(lambda c: c["model"].update(hidden_size="x")), CONFIG, "expected int, found 'x'"),
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

    def fail(state: State, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_model(tiny.model({"motion.stages": 0}), tiny.tokenizer(), target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
