"""The engine: a step split up gives what it gives as a whole, in parts and in processes; runs that are killed, told to
stop, or run out of disk; what is shown and recorded."""

import errno
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from dshmp.checkpoint import load_model
from dshmp.common.errors import UserError
from dshmp.config import from_dict
from dshmp.synthetic.make import make_synthetic
from dshmp.training import engine
from dshmp.training.checkpoints import Checkpoints, Saved
from dshmp.training.logging import MEASURED, describe
from dshmp.training.recipe import Recipe
from dshmp.training.task import Share
from dshmp.training.train import run

WHOLE = {"data": {"mevis": {}}, "init": None, "batch": 4, "steps": 3, "contrast_start": 1, "learning_rate": 1e-4}
PERCEPTION = {"batch": 4, "steps": 3, "learning_rate": 1e-4, "weights": {"link": 1.0}}


def recipe(folder: Path, task: str, synthetic: Path, **more: Any) -> Path:
    """Written to `folder`; without a look at the held-out split unless `more` asks for one."""
    values = tiny.recipe(task, synthetic, **{"data": {"mevis": {"root": str(synthetic)}}, **more})
    folder.mkdir(parents=True, exist_ok=True)
    return tiny.write_recipe(folder / "recipe-in.yaml", values)


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in found]


def last(folder: Path) -> dict[str, Tensor]:
    return load_file(max(folder.glob("checkpoints/*.safetensors")))


def same(one: Path, other: Path) -> None:
    """Losses of every step to 1e-5, the same bank, weights as near as AdamW's first steps let them be."""
    for a, b in zip(lines(one), lines(other), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert value == pytest.approx(b[name], rel=1e-5, abs=1e-5), (a["step"], name)
    a, b = last(one), last(other)
    assert a.keys() == b.keys()
    if "task/bank.visited" in a:
        assert torch.equal(a["task/bank.visited"], b["task/bank.visited"])
        assert a["task/bank.visited"].any()
        torch.testing.assert_close(a["task/bank.centroids"], b["task/bank.centroids"], rtol=1e-4, atol=1e-5)
    for key, value in a.items():
        if key.startswith("model/"):
            torch.testing.assert_close(value, b[key], rtol=0, atol=2e-4, msg=key)


# ------------------------------------------------------------------------------------------------- splitting a step


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic data set of eight clips to learn from."""
    root = tmp_path_factory.mktemp("data") / "eight"
    make_synthetic(root, train=7, valid=1, test=1, version=1, workers=1)  # the second one is there backwards, too
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("whole", {"negatives": 5, "sentences": 3}),
        ("whole", {"negatives": 5, "augmentation": {"frames": 3, "short_sides": [40, 48], "long_side": 80,
                                                    "crop_scales": [50], "crop_sizes": [40, 60]}}),
        ("perception", PERCEPTION),
        ("language", {}),
    ],
)  # fmt: skip
def test_a_step_in_parts(
    task: str, more: dict[str, Any], eight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight samples one at a time, or all at once: sizes, lengths and numbers of sentences differ."""
    values = (WHOLE if task == "whole" else {}) | more | {"batch": 8, "data": {"mevis": {"root": str(eight)}}}
    path = recipe(tmp_path, task, eight, **values)
    learn, parts = engine.Learner.forward, Counter[int]()

    def count(self: Any, batch: Any, step: int, counts: Any) -> Any:
        parts[step] += 1
        return learn(self, batch, step, counts)

    one = run(path, [], tmp_path / "one")
    monkeypatch.setattr(engine.Learner, "forward", count)
    other = run(path, ["run.micro_batch=1"], tmp_path / "other")
    assert max(parts.values()) == (4 if task == "perception" else 8)  # frames in pairs, or clips, or sentences
    same(one, other)
    assert not all(torch.equal(value, last(other)[key]) for key, value in last(one).items())  # it was split up


CONTEXT = multiprocessing.get_context("forkserver")
"""Processes that start from one that has imported everything, and has learned nothing: autograd cannot be forked."""
CONTEXT.set_forkserver_preload(["dshmp.training.train", "dshmp.inference.segmenter"])


def child(path: Path, overrides: list[str], out: Path, environment: dict[str, str]) -> None:
    """A training run in a process of its own."""
    os.environ |= environment
    torch.set_num_threads(1)
    with open(out.with_suffix(".log"), "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    run(path, overrides, out, "cpu")


def start(path: Path, overrides: list[str], out: Path, environment: dict[str, str] | None = None) -> Any:
    process = CONTEXT.Process(target=child, args=(path, overrides, out, environment or {}))
    process.start()
    return process


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launch(path: Path, overrides: list[str], out: Path, processes: int) -> None:
    """As torchrun does it."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    place |= {"LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    started = [
        start(path, overrides, out, place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)
    ]
    for process in started:
        process.join(600)
    assert [process.exitcode for process in started] == [0] * processes, out.with_suffix(".log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "more"), [("whole", WHOLE | {"negatives": 5, "batch": 3}), ("perception", PERCEPTION)], ids=str
)
def test_two_processes(task: str, more: dict[str, Any], mini: Path, tmp_path: Path) -> None:
    """Give what one gives with the double batch; where the batch is odd, the second one has more to do."""
    path = recipe(tmp_path, task, mini, **more | {"data": {"mevis": {"root": str(mini)}}})
    one = run(path, [], tmp_path / "one", "cpu")
    launch(path, [], tmp_path / "two", 2)
    same(one, tmp_path / "two")


@pytest.mark.slow
def test_another_number_of_processes_goes_on(mini: Path, tmp_path: Path) -> None:
    """And in other parts; the last checkpoint is lost."""
    path = recipe(tmp_path, "whole", mini, **WHOLE | {"data": {"mevis": {"root": str(mini)}}, "checkpoint_every": 2})
    one = run(path, [], tmp_path / "one", "cpu")
    launch(path, ["run.micro_batch=1"], tmp_path / "two", 2)
    same(one, tmp_path / "two")
    max((tmp_path / "two").glob("checkpoints/*.safetensors")).unlink()
    same(one, run(path, ["run.checkpointing=true"], tmp_path / "two", "cpu"))
    with pytest.raises(UserError, match="holds a run of another recipe"):
        run(path, ["batch=5"], tmp_path / "two", "cpu")


@pytest.mark.slow
def test_more_processes_than_samples(mini: Path, tmp_path: Path) -> None:
    """The last batch of an epoch may be smaller than there are processes: one has nothing to learn from."""
    path = recipe(tmp_path, "language", mini, batch=5, steps=3)
    one = run(path, ["batch=1"], tmp_path / "one", "cpu")
    launch(path, ["batch=1"], tmp_path / "two", 2)
    same(one, tmp_path / "two")


@pytest.mark.slow
def test_the_memory_bank_on_the_host(mini: Path, tmp_path: Path) -> None:
    """Changes nothing, in the middle of a run either, nor in two processes."""
    more = WHOLE | {"negatives": 5, "data": {"mevis": {"root": str(mini)}}, "checkpoint_every": 2}
    path = recipe(tmp_path, "whole", mini, **more)
    one = run(path, [], tmp_path / "one", "cpu")
    identical(one, run(path, ["run.bank=host"], tmp_path / "host", "cpu"))
    max((tmp_path / "host").glob("checkpoints/*.safetensors")).unlink()
    identical(one, run(path, ["run.bank=device"], tmp_path / "host", "cpu"))
    launch(path, ["run.bank=host"], tmp_path / "two", 2)
    same(one, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("whole", WHOLE | {"negatives": 5, "batch": 3, "best": "J"}),
        ("language", {"batch": 3}),  # the rest of the model is frozen
        pytest.param("perception", PERCEPTION, marks=pytest.mark.slow),
        pytest.param("whole", WHOLE | {"batch": 3, "best": "J", "checkpointing": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_goes_on_with_other_processes(task: str, more: dict[str, Any], mini: Path, tmp_path: Path) -> None:
    """Two, which learn in different numbers of parts, and then one: as one from the beginning."""
    data = {"mevis": {"root": str(mini), "validation": "valid_u"}}
    more = more | {"data": data, "checkpoint_every": 1, "validate_every": 2, "validation_videos": 1, "keep": 9}
    path = recipe(tmp_path, task, mini, **more)
    one = run(path, [], tmp_path / "one", "cpu")
    two = tmp_path / "two"
    launch(path, ["run.micro_batch=1"], two, 2)
    same(one, two)
    assert {k: v.shape for k, v in last(one).items()} == {k: v.shape for k, v in last(two).items()}
    for name in ("model", "best") if task == "whole" else ("model",):
        load_model(two / name)
    max(two.glob("checkpoints/*.safetensors")).unlink()
    same(one, run(path, [], two, "cpu"))


def test_every_sample_is_learned_once() -> None:
    for samples in (1, 5, 8):
        for processes in (1, 2, 3, 8):
            shares = [Share(rank, processes, 2) for rank in range(processes)]
            parts = [part for share in shares for part in share.parts(share.places(samples))]
            assert [place for part in parts for place in part] == list(range(samples))
            assert all(len(part) <= 2 for part in parts)


# ------------------------------------------------------------------------------------------------- stopped runs


def wait_for(happened: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.01)
    assert happened()


def starts(folder: Path) -> int:
    """How often the run was begun or gone on with."""
    path = folder / "run.json"
    return len(json.loads(path.read_text())["starts"]) if path.exists() else 0


def begin(path: Path, overrides: list[str], folder: Path) -> Any:
    """Start, and wait until it is about to take its first step."""
    known = starts(folder)
    process = start(path, overrides, folder)
    wait_for(lambda: starts(folder) > known or not process.is_alive())
    return process


def identical(one: Path, other: Path) -> None:
    a, b = last(one), last(other)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert lines(one) == lines(other)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (one, other)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_any_moment(kills: int, mini: Path, tmp_path: Path) -> None:
    """SIGKILL, while it starts, learns, looks at the held-out split or writes: in the end nothing differs. Dropout is
    on, losses are logged more rarely than checkpoints are written."""
    dropout = dict.fromkeys(("language.dropout", "frame_decoder.dropout", "motion.dropout", "backbone.drop_path"), 0.2)
    more: dict[str, Any] = {"steps": 8 * kills, "batch": 1, "sentences": 2, "log_every": 3, "validate_every": 7}
    more |= {"checkpoint_every": 2, "validation_videos": 1, "model": tiny.with_switches(tiny.MODEL, dropout)}
    more["data"] = {"mevis": {"root": str(mini), "validation": "valid_u"}}
    path = recipe(tmp_path, "whole", mini, **more)
    undisturbed = start(path, [], tmp_path / "undisturbed")
    rng = random.Random(kills)
    folder, killed = tmp_path / "killed", []
    while len(killed) < kills:
        # the first one at any moment of its start, the others once they have begun
        process = (begin if killed else start)(path, [], folder)
        process.join(rng.uniform(0, 1.5))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed.append(max((int(p.stem[5:]) for p in folder.glob("checkpoints/*.safetensors")), default=0))
    assert len(killed) >= 2
    undisturbed.join(600)
    final = start(path, [], tmp_path / "killed")
    final.join(600)
    assert (undisturbed.exitcode, final.exitcode) == (0, 0), (tmp_path / "killed.log").read_text()
    identical(tmp_path / "undisturbed", tmp_path / "killed")
    assert not list(tmp_path.glob("killed/**/*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["whole", "language"])
def test_a_restart_parses_no_sentence_again(
    task: str, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"mevis": {"root": str(mini), "validation": "valid_u"}}
    path = recipe(tmp_path, task, mini, data=data, steps=1, validation_videos=100, cache=str(tmp_path / "cache"))
    one = run(path, [], tmp_path / "one", "cpu")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr("dshmp.model.tokenizer.split_words", lambda *_: pytest.fail("parsed again"))
    identical(one, run(path, [], tmp_path / "two", "cpu"))


@pytest.mark.slow
def test_told_to_stop(mini: Path, tmp_path: Path) -> None:
    """SIGTERM: the step is finished and saved, one line says so, and the run goes on from there."""
    path = recipe(tmp_path, "whole", mini, steps=12, batch=1, checkpoint_every=1000)
    process = start(path, [], tmp_path / "stopped")
    wait_for((tmp_path / "stopped" / "metrics.jsonl").exists)
    os.kill(process.pid, signal.SIGTERM)
    process.join(600)
    assert process.exitcode == 128 + signal.SIGTERM
    said = (tmp_path / "stopped.log").read_text()
    steps = lines(tmp_path / "stopped")[-1]["step"]
    assert 0 < steps < 12
    assert f"stopped by SIGTERM after step {steps}; the same command goes on" in " ".join(said.split())
    run(path, [], tmp_path / "stopped", "cpu")
    identical(run(path, [], tmp_path / "straight", "cpu"), tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["save_file", "metrics"])
def test_a_full_disk(where: str, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(tmp_path, "language", mini, steps=6, checkpoint_every=2)
    straight = run(path, [], tmp_path / "straight", "cpu")
    full = OSError(errno.ENOSPC, "No space left on device")

    def no_room(tensors: Any, part: Path, metadata: Any = None) -> None:
        if part.name == "step-00000004.safetensors":
            part.write_bytes(b"half of i")
            raise full
        save_file(tensors, part, metadata)

    def no_line(values: dict[str, Any]) -> str:
        if values["step"] == 3:
            raise full
        return json.dumps(values)

    with monkeypatch.context() as patch:
        if where == "metrics":
            patch.setattr("dshmp.training.logging.json", SimpleNamespace(dumps=no_line, loads=json.loads))
        else:
            patch.setattr("safetensors.torch.save_file", no_room)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)") as caught:
            run(path, [], tmp_path / "full", "cpu")
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "full" / "checkpoints").iterdir()] == ["step-00000002.safetensors"]
    identical(run(path, [], tmp_path / "full", "cpu"), straight)


@pytest.mark.slow
def test_safetensors_words_for_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it."""
    code = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from dshmp.training.checkpoints import Checkpoints, Saved\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "folder = Path(sys.argv[1])\n"
        "for step, size in ((1, 10), (2, 1_000_000)):\n"
        "    Checkpoints(folder, 2).save(Saved(step, {'x': torch.zeros(size)}, {}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], capture_output=True, text=True)
    assert "UserError" in done.stderr.splitlines()[-1]
    assert "cannot be written" in done.stderr
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-00000001.safetensors"]


def test_checkpoints_that_are_kept(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "c", 3)
    assert store.newest() is None
    for step in (1, 2, 10, 20, 100):
        store.save(Saved(step, {"x": torch.full((3,), float(step))}, {"a": [1, None, "x"]}))
    assert [path.name for path in store.paths()] == [f"step-{n:08d}.safetensors" for n in (10, 20, 100)]
    found = store.newest()
    assert found is not None
    assert (found.step, found.facts) == (100, {"a": [1, None, "x"]})
    assert torch.equal(found.tensors["x"], torch.full((3,), 100.0))


# ------------------------------------------------------------------------------------------------- memory and precision


def test_recomputed_activations_change_nothing(mini: Path, tmp_path: Path) -> None:
    dropout = dict.fromkeys(("frame_decoder.dropout", "motion.dropout", "backbone.drop_path"), 0.2)
    model = tiny.with_switches(tiny.MODEL, dropout)
    path = recipe(tmp_path, "whole", mini, steps=2, contrast_start=1, model=model)
    plain = run(path, [], tmp_path / "plain", "cpu")
    identical(plain, run(path, ["run.checkpointing=true"], tmp_path / "again", "cpu"))


def test_recomputed_activations_are_not_kept(mini: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, "whole", mini, steps=1, negatives=0)
    kept = []
    for value in ("false", "true"):
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run(path, [f"run.checkpointing={value}"], tmp_path / value, "cpu")
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["whole", "perception", "language"])
def test_bfloat16(task: str, mini: Path, tmp_path: Path) -> None:
    """Near to single precision, and master weights and checkpoints are in it."""
    path = recipe(tmp_path, task, mini, steps=2, contrast_start=1)
    exact, rough = (run(path, [f"precision={p}"], tmp_path / p, "cpu") for p in ("float32", "bfloat16"))
    for a, b in zip(lines(exact), lines(rough), strict=True):
        assert all(value == pytest.approx(b[name], rel=0.1, abs=0.05) for name, value in a.items())
    assert {value.dtype for value in last(rough).values()} <= {torch.float32, torch.bool, torch.int64}
    if task == "language":  # which is kept exact
        identical(exact, rough)


def test_half_precision_needs_a_gpu(mini: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="float16 needs a GPU"):
        run(recipe(tmp_path, "language", mini, precision="float16"), [], tmp_path / "x", "cpu")


# ------------------------------------------------------------------------------------------------- what is seen


def test_what_a_run_leaves_to_be_seen(mini: Path, tmp_path: Path) -> None:
    data = {"mevis": {"root": str(mini), "validation": "valid_u"}}
    more = {"steps": 4, "log_every": 2, "validate_every": 2, "validation_videos": 2, "best": "J&F"}
    path = recipe(tmp_path, "whole", mini, data=data, **more)
    folder = run(path, ["steps=4"], tmp_path / "run", "cpu")
    found = lines(folder)
    assert [line["step"] for line in found] == [2, 2, 4, 4]
    looks = found[1::2]
    assert all(line.keys() == {"step", "J", "F", "J&F"} for line in looks)
    assert all(line["J&F"] == pytest.approx((line["J"] + line["F"]) / 2, abs=0.01) for line in looks)
    record = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(set(MEASURED) <= line.keys() for line in record[::2])
    assert 0 <= record[0]["waited"] <= 1
    assert len(list((folder / "pictures").glob("*.png"))) == 2
    best = max(looks, key=lambda line: line["J&F"])["step"]
    assert f"trained_steps: {best}" in (folder / "best" / "README.md").read_text()
    (start,) = json.loads((folder / "run.json").read_text())["starts"]
    assert (start["step"], start["threads"], start["processes"]) == (0, torch.get_num_threads(), 1)
    assert start["packages"]["torch"]
    assert {"git", "command", "gpus", "python", "cuda"} <= start.keys()


def seen(synthetic: Path, tmp_path: Path, *trackers: str) -> Path:
    """A recipe of two steps with a look at the held-out split after each."""
    data = {"mevis": {"root": str(synthetic), "validation": "valid_u"}}
    more = {"steps": 2, "validate_every": 1, "validation_videos": 1, "checkpoint_every": 1}
    return recipe(tmp_path, "whole", synthetic, data=data, trackers=list(trackers), **more)


def test_tensorboard(mini: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = seen(mini, tmp_path, "tensorboard")
    folder = run(path, [], tmp_path / "run", "cpu")
    max(folder.glob("checkpoints/*.safetensors")).unlink()
    run(path, [], folder, "cpu")
    events = EventAccumulator(str(folder / "tensorboard" / "dshmp")).Reload()
    tags = events.Tags()
    assert {"train/cls", "train/frame mask", "held out/J&F"} <= set(tags["scalars"])
    assert len(tags["images"]) == 1
    assert [event.step for event in events.Scalars("train/cls")] == [1, 2]


class FakeRun:
    """Both packages' runs, as far as they are used here."""

    def __init__(self, **given: Any) -> None:
        self.given, self.logged, self.finished = given, [], 0

    def log(self, values: dict[str, Any], step: int) -> None:
        assert not self.finished
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_go_on_with_the_same_curve(
    name: str, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[FakeRun] = []

    def init(**given: Any) -> FakeRun:
        print("beginning")
        runs.append(FakeRun(**given))
        return runs[-1]

    module = SimpleNamespace(init=init, Image=lambda picture: picture.shape, Settings=dict)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    path = seen(mini, tmp_path, name)
    folder = run(path, [], tmp_path / "run", "cpu")
    max(folder.glob("checkpoints/*.safetensors")).unlink()
    run(path, [], folder, "cpu")
    first, second = runs
    assert first.given == second.given
    assert (first.given["resume"], first.given["project"]) == ("allow", "dshmp")
    assert first.given["config"]["steps"] == 2
    if name == "wandb":
        assert first.given["mode"] == "offline"
    identity = json.loads((folder / "run.json").read_text())["id"]
    assert identity in first.given["id" if name == "wandb" else "name"]
    assert [run.finished for run in runs] == [1, 1]
    assert [step for step, values in first.logged if "train/cls" in values] == [1, 2]
    assert [step for step, values in first.logged if "held out/J&F" in values] == [1, 2]
    pictures = [(step, *values.values()) for step, values in first.logged if any("valid_u-" in key for key in values)]
    assert [step for step, _ in pictures] == [1, 2]
    assert all((shape[0] if name == "wandb" else shape)[2] == 3 for _, shape in pictures)
    again = [values.keys() for step, values in first.logged if step == 2]
    assert [values.keys() for _, values in second.logged] == again  # the lost step
    assert {step for step, _ in second.logged} == {2}
    assert "beginning" not in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    identity = describe(tmp_path / "run.json", 0)
    assert describe(tmp_path / "run.json", 5) == identity
    assert describe(tmp_path / "other.json", 0) != identity


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_as_they_are(name: str, mini: Path, tmp_path: Path) -> None:
    """Without a network."""
    pytest.importorskip(name)
    place = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    process = start(seen(mini, tmp_path, name), [], tmp_path / "run", place)
    process.join(600)
    assert process.exitcode == 0, (tmp_path / "run.log").read_text()
    found = list((tmp_path / "run").glob("wandb/offline-run-*/*.wandb")) + list((tmp_path / "trackio").glob("*.db"))
    assert len(found) == 1


def test_a_tracker_that_cannot_begin(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**given: Any) -> None:
        raise ValueError("no such\nproject")

    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"trackers: {name} cannot begin \(.*{name}.*\); install"):
            run(seen(mini, tmp_path, name), [], tmp_path / "run", "cpu")
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=refuse))
    with pytest.raises(UserError, match=r"trackio cannot begin \(no such project\); install or mend it"):
        run(seen(mini, tmp_path, "trackio"), [], tmp_path / "run", "cpu")
    with pytest.raises(
        UserError, match=r"run\.trackers\.0: must be 'tensorboard', 'wandb' or 'trackio', found 'tensorbord'"
    ):
        run(seen(mini, tmp_path, "tensorbord"), [], tmp_path / "run", "cpu")


# ------------------------------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize("window", [None, 8])
def test_groups_of_parameters(window: int | None) -> None:
    """Norms, biases, scales and the tables of relative positions do not decay."""
    values = tiny.recipe("whole", Path("x"), backbone_factor=0.5, weight_decay=0.3, learning_rate=1e-2)
    model = tiny.model({"backbone.temporal_window": window, "backbone.language_fusion": True})
    groups = engine.parameter_groups(from_dict(Recipe, values), model, torch.nn.ModuleDict())
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {(each["base"], each["weight_decay"]): {names[p] for p in each["params"]} for each in groups}
    assert found.keys() == {(1e-2, 0.3), (1e-2, 0.0), (5e-3, 0.3), (5e-3, 0.0)}
    assert set.union(*found.values()) == set(names.values())
    tables = {name for name in names.values() if name.endswith(".position_bias")}
    assert len(tables) == 4
    assert tables < found[5e-3, 0.0]
    assert found[1e-2, 0.0] | found[5e-3, 0.0] == tables | {name for p, name in names.items() if p.ndim < 2}
    backbone = found[5e-3, 0.0] | found[5e-3, 0.3]
    assert backbone == {name for name in names.values() if "backbone." in name and ".fusion" not in name}
