"""What one clip of a recipe keeps for the backward pass, and its floating-point operations: a real forward pass with
the losses at full size, random weights, float32, on the CPU. No backward pass is run.

A GPU keeps about as much; the buffers of its kernels come on top. A clip longer than --frames is extrapolated from
three shorter ones by a parabola: Video-Swin's windows grow with the clip up to 8 frames, and so does a frame's cost.

Usage: python benchmarks/memory.py paper/mevis [run.checkpointing=true ...] [--frames 4] [--size 384 640]
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dshmp.data.mini import make_mini
from dshmp.data.registry import dataset, open_split
from dshmp.data.transforms import OFF
from dshmp.model.dshmp import DsHmp
from dshmp.model.tokenizer import TextTokenizer, train_tokenizer
from dshmp.recipes import find_recipe
from dshmp.training.engine import recompute_activations
from dshmp.training.recipe import Recipe, Source, load_recipe
from dshmp.training.whole_task import VideoBatch, WholeTask


def resized(batch: VideoBatch, size: tuple[int, int]) -> VideoBatch:
    """The batch with frames and masks of this size (height, width)."""

    def fit(masks: Tensor) -> Tensor:  # (B, G, T, h, w)
        return F.interpolate(masks.flatten(0, 1).float(), size).unflatten(0, masks.shape[:2]) > 0.5

    images = torch.randn(*batch.images.shape[:3], *size)
    targets = replace(batch.targets, masks=fit(batch.targets.masks))
    return replace(batch, images=images, candidates=fit(batch.candidates), targets=targets)


def measure(recipe: Recipe, model: DsHmp, frames: int, size: tuple[int, int], root: Path) -> tuple[float, float, float]:
    """GB kept for the backward pass, TFLOP of the forward pass, seconds; of one clip of `frames` frames."""
    augmentation = None if recipe.augmentation is None else replace(OFF, frames=frames)
    data = {"mevis": Source(root=str(root))}
    recipe = replace(
        recipe, data=data, batch=1, steps=1, clip_frames=frames, augmentation=augmentation, contrast_start=0
    )
    split = open_split("mevis", root, "train")
    texts = [item.text.lower() for item in split.expressions]
    tokenizer = TextTokenizer(recipe.model, train_tokenizer(texts, recipe.vocabulary))
    stage = WholeTask(recipe, model.train(), tokenizer, {"mevis": split})
    batch = resized(stage.batches(0)[0], size)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        """Held until the pass is over, so that no address is used twice."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    start = time.perf_counter()
    with FlopCounterMode(display=False) as flops, saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = stage.losses(batch, 0, stage.counts(batch, 0))
        total = torch.stack(list(losses.values())).sum()  # keeps the graph, and so the tensors, to the end
    seconds = time.perf_counter() - start
    assert bool(total.isfinite())
    return sum(kept.values()) / 1e9, flops.get_total_flops() / 1e12, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--frames", type=int, default=4, help="longest clip that is run, at least 4")
    parser.add_argument("--size", type=int, nargs=2, default=(384, 640), help="height and width, multiples of 32")
    arguments = parser.parse_args()
    recipe = load_recipe(find_recipe(arguments.recipe), arguments.overrides)
    wanted = recipe.clip_frames if recipe.augmentation is None else recipe.augmentation.frames
    torch.manual_seed(0)
    model = DsHmp(recipe.model)
    if recipe.run.checkpointing:
        recompute_activations(model)
    height, width = arguments.size
    most = arguments.frames
    lengths = [wanted] if wanted <= most else [most // 4, most // 2, most]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "mevis")
        make_mini("mevis", dataset("mevis").mini, root)
        for frames in lengths:
            *kept, seconds = measure(recipe, model, frames, (height, width), root)
            found.append(kept)
            print(f"{frames} frames of {height}x{width}: {_say(*kept)}, {seconds:.0f} s")
    if lengths != [wanted]:
        parabola = np.polyfit(lengths, found, 2)
        print(f"{wanted} frames, extrapolated: {_say(*(wanted ** np.arange(2, -1, -1) @ parabola))}")


def _say(memory: float, flop: float) -> str:
    return f"{memory:.2f} GB kept, {flop:.3f} TFLOP forward"


if __name__ == "__main__":
    main()
