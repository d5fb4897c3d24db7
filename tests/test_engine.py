"""The engine: a step split up gives what it gives as a whole, in parts and in processes; runs that are killed, told to
stop, or run out of disk; what is shown and recorded."""

import errno
import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from dshmp.errors import UserError
from dshmp.learning import checkpoints, engine
from dshmp.learning.checkpoints import Checkpoints, Saved
from dshmp.learning.engine import Trainer
from dshmp.learning.sampling import Share
from dshmp.learning.train import run
from dshmp.learning.watch import MEASURED

WHOLE = {"data": {"mevis": {}}, "init": None, "batch": 4, "steps": 3, "contrast_start": 1, "learning_rate": 1e-4}
PERCEPTION = {"batch": 4, "steps": 3, "learning_rate": 1e-4, "weights": {"link": 1.0}}


def recipe(folder: Path, stage: str, world: Path, **more: Any) -> Path:
    """Written to `folder`; without a look at the held-out split unless `more` asks for one."""
    values = tiny.recipe(stage, world) | {"data": {"mevis": {"root": str(world)}}} | more
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
    if "stage/bank.visited" in a:
        assert torch.equal(a["stage/bank.visited"], b["stage/bank.visited"])
        assert a["stage/bank.visited"].any()
        torch.testing.assert_close(a["stage/bank.centroids"], b["stage/bank.centroids"], rtol=1e-4, atol=1e-5)
    for key, value in a.items():
        if key.startswith("model/"):
            torch.testing.assert_close(value, b[key], rtol=0, atol=2e-4, msg=key)


# ------------------------------------------------------------------------------------------------- splitting a step


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("whole", {"negatives": 5, "sentences": 3}),
        ("whole", {"negatives": 5, "augmentation": {"frames": 3, "short_sides": [40, 48], "long_side": 80,
                                                    "crop_scales": [50], "crop_sizes": [40, 60]}}),
        ("perception", PERCEPTION),
        ("language", {"batch": 4}),
    ],
)  # fmt: skip
def test_a_step_in_parts(stage: str, more: dict[str, Any], mini: Path, tmp_path: Path) -> None:
    """One sample at a time, or all at once: sizes, lengths and numbers of sentences differ."""
    values = (WHOLE if stage == "whole" else {}) | more
    values["data"] = {"mevis": {"root": str(mini)}}
    path = recipe(tmp_path, stage, mini, **values)
    one = run(path, [], tmp_path / "one")
    other = run(path, ["micro_batch=1"], tmp_path / "other")
    same(one, other)
    assert not all(torch.equal(value, last(other)[key]) for key, value in last(one).items())  # it was split up


CONTEXT = multiprocessing.get_context("forkserver")
"""Processes that start from one that has imported everything, and has learned nothing: autograd cannot be forked."""
CONTEXT.set_forkserver_preload(["dshmp.learning.train", "dshmp.segmenter"])


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


def launch(path: Path, overrides: list[str], out: Path, processes: int) -> None:
    """As torchrun does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    place |= {"LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    started = [
        start(path, overrides, out, place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)
    ]
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * processes, out.with_suffix(".log").read_text()


@pytest.mark.parametrize(
    ("stage", "more"), [("whole", WHOLE | {"negatives": 5, "batch": 3}), ("perception", PERCEPTION)], ids=str
)
def test_two_processes(stage: str, more: dict[str, Any], mini: Path, tmp_path: Path) -> None:
    """Give what one gives with the double batch; where the batch is odd, the second one has more to do. A run may be
    gone on with by another number of processes."""
    path = recipe(tmp_path, stage, mini, **more | {"data": {"mevis": {"root": str(mini)}}})
    one = run(path, [], tmp_path / "one", "cpu")
    launch(path, [], tmp_path / "two", 2)
    same(one, tmp_path / "two")
    launch(path, ["micro_batch=1"], tmp_path / "parts", 2)
    same(one, tmp_path / "parts")


def test_more_processes_than_samples(mini: Path, tmp_path: Path) -> None:
    """The last batch of an epoch may be smaller than there are processes: one has nothing to learn from."""
    path = recipe(tmp_path, "language", mini, batch=5, steps=3)
    one = run(path, ["batch=1"], tmp_path / "one", "cpu")
    launch(path, ["batch=1"], tmp_path / "two", 2)
    same(one, tmp_path / "two")


def test_every_sample_is_learned_once() -> None:
    for samples in (1, 5, 8):
        for processes in (1, 2, 3, 8):
            shares = [Share(rank, processes, 2) for rank in range(processes)]
            parts = [part for share in shares for part in share.parts(share.places(samples))]
            assert [place for part in parts for place in part] == list(range(samples))
            assert all(len(part) <= 2 for part in parts)
