"""Trains the network of `--candidates moving` on scenes made on the fly: python -m dshmp.training.moving OUT.

The scenes' flow is taken once and kept in OUT/scenes; started again, it goes on from OUT/checkpoint.pt.
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from dshmp.common.environment import keep_memory
from dshmp.common.files import atomic_write
from dshmp.model.moving import SHORT, MovingObjects, flow_input, optical_flow
from dshmp.synthetic.moving import make_scene

SHARD = 100  # scenes in a file
SCALE = 32.0  # of what is stored, as whole numbers of 8 bits: 4 at most, steps of 1/32


def _shard(path: Path, first: int) -> None:
    inputs, instances = [], []
    for seed in range(first, first + SHARD):
        scene = make_scene(seed)
        inputs.append(np.clip(np.rint(_input(*scene.frames) * SCALE), -127, 127).astype(np.int8))
        instances.append(scene.instances[::2, ::2])
    with atomic_write(path) as part:
        np.savez(part, inputs=np.stack(inputs), instances=np.stack(instances))


def _input(before: NDArray[np.uint8], now: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    return flow_input(now, optical_flow(now, after), optical_flow(now, before))


def targets(instances: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Instances (h, w) -> (3, h, w): 1 on objects; x, y from there to the object's middle, in short sides."""
    found = np.zeros((3, *instances.shape), np.float32)
    for label in range(1, int(instances.max()) + 1):
        ys, xs = np.nonzero(instances == label)
        if len(ys):
            found[0, ys, xs] = 1
            found[1, ys, xs], found[2, ys, xs] = (xs.mean() - xs) * 2 / SHORT, (ys.mean() - ys) * 2 / SHORT
    return found


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy and dice of what moves, and the distance to the middles where something does."""
    chance, truth = output[:, 0].sigmoid(), target[:, 0]
    cross = F.binary_cross_entropy_with_logits(output[:, 0], truth)
    dice = 1 - (2 * (chance * truth).sum((1, 2)) + 20) / ((chance + truth).sum((1, 2)) + 20)
    middle = ((output[:, 1:] - target[:, 1:]).abs().sum(1) * truth).sum() / truth.sum().clamp_min(1)
    return cross + 0.5 * dice.mean() + 2 * middle


def _augmented(inputs: Tensor, target: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirrored, in other colours, some without any."""
    if torch.rand((), generator=rng) < 0.5:
        inputs, target = inputs.flip(-1).clone(), target.flip(-1).clone()
        inputs[:, [0, 2]] *= -1
        target[:, 1] *= -1
    colour = inputs[:, 6:]
    colour = colour[:, torch.randperm(3, generator=rng)]
    grey = (torch.rand(len(inputs), 1, 1, 1, generator=rng) < 0.2).float()
    kept = (torch.rand(len(inputs), 1, 1, 1, generator=rng) < 0.85).float()
    gain, shift = (torch.rand(2, len(inputs), 1, 1, 1, generator=rng) - 0.5) * 0.5
    colour = (colour * (1 - grey) + colour.mean(1, keepdim=True) * grey) * (1 + gain) + shift * 0.4
    return torch.cat([inputs[:, :6], colour * kept], 1), target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    keep_memory()
    shards = given.out / "scenes"
    shards.mkdir(parents=True, exist_ok=True)
    paths = [shards / f"{first:06d}.npz" for first in range(0, given.scenes, SHARD)]
    with ProcessPoolExecutor(given.workers) as pool:
        missing = [path for path in paths if not path.exists()]
        list(pool.map(_shard, missing, [int(path.stem) for path in missing]))
    loaded = [np.load(path) for path in paths]
    inputs = np.concatenate([each["inputs"] for each in loaded])
    instances = np.concatenate([each["instances"] for each in loaded])

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = MovingObjects()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), given.rate, weight_decay=0.01)
    step, checkpoint = 0, given.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    mean = 0.0
    while step < given.steps:
        rng = torch.Generator().manual_seed(step)
        rows = torch.randint(len(inputs), (given.batch,), generator=rng).numpy()
        batch = torch.from_numpy(inputs[rows].astype(np.float32) / SCALE)
        batch, target = _augmented(batch, torch.from_numpy(np.stack([targets(each) for each in instances[rows]])), rng)
        cost = loss(model(batch.contiguous(memory_format=torch.channels_last)), target)
        optimiser.zero_grad()
        cost.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:  # a short warm-up, then down along a cosine
            group["lr"] = given.rate * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * step / given.steps)) / 2
        optimiser.step()
        step += 1
        mean += (cost.item() - mean) / min(step, 100)
        if step % 50 == 0 or step == given.steps:
            print(f"{step} {mean:.4f}", flush=True)
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            with atomic_write(checkpoint) as part:
                torch.save({**state, "step": step}, part)
            with atomic_write(given.out / "moving.safetensors") as part:
                save_file({name: each.half().contiguous() for name, each in model.state_dict().items()}, part)


if __name__ == "__main__":
    main()
