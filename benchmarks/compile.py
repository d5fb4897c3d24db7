"""Forward and backward pass of the model's largest parts: as they are, with `channels_last` weights and images, and
compiled layer by layer (torch.compile, inductor). Times as ratios to the first; how far results and gradients differ.

Backbone and pixel decoder are the paper's (paper/mevis) on one frame, motion blocks and motion decoder the
default model's (synthetic/motion) on a batch of clips. Weights and inputs are random, stochastic depth is off.
What lies between the layers stays uncompiled, such as the matching of trajectories, which is SciPy's. The variants take
turns, so that a busy machine slows them alike. On the CPU the process's own time is counted (set OMP_NUM_THREADS=1 for
one thread), on a GPU the clock's.

Usage: python benchmarks/compile.py [--size 360 640] [--batch 64] [--frames 16] [--repeats 15] [--device cuda]
    [--parts backbone pixel_decoder motion_blocks motion_decoder] [--variants channels_last compiled] [--dynamic]
"""

import argparse
import copy
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from dshmp.common.device import find_device
from dshmp.config import ModelConfig
from dshmp.model.backbone import LanguageBackbone
from dshmp.model.candidates import Candidates
from dshmp.model.hmp import MotionPerception
from dshmp.model.motion_decoder import MotionDecoder
from dshmp.model.pixel_decoder import PixelDecoder
from dshmp.model.text import Cues, TextFeatures
from dshmp.recipes import find_recipe
from dshmp.training.recipe import load_recipe

WORDS = 12
"""Tokens of a sentence."""

VARIANTS = ("channels_last", "compiled")


@dataclass(frozen=True)
class Part:
    """A part of the model and what it is run on."""

    module: nn.Module
    inputs: list[Tensor]
    """Feature maps or tokens; those that require gradients get them."""
    run: Callable[[nn.Module, list[Tensor]], Iterable[Tensor]]
    layers: Callable[[nn.Module], Iterable[nn.Module]]
    """What of it is compiled, each by itself."""


def sentences(config: ModelConfig, batch: int) -> TextFeatures:
    """Features of random sentences of one length."""
    real = torch.ones(batch, WORDS, dtype=torch.bool)
    words = torch.randn(batch, WORDS, config.language.encoder.hidden_size)
    tokens, static, motion = (torch.randn(batch, WORDS, config.hidden_size) for _ in range(3))
    return TextFeatures(words, tokens, real, tokens.mean(1), Cues(static, real), Cues(motion, real))


def backbone(size: tuple[int, int]) -> Part:
    config = load_recipe(find_recipe("paper/mevis"), ["model.backbone.drop_path=0.0"]).model
    module = LanguageBackbone(config.backbone, config.language.encoder.hidden_size)
    text = sentences(config, 1)
    return Part(
        module,
        [torch.randn(1, 3, *size), text.words, text.mask],
        lambda module, inputs: module(*inputs, 1),
        lambda module: [block for stage in module.stages for block in stage.blocks],
    )


def pixel_decoder(size: tuple[int, int]) -> Part:
    config = load_recipe(find_recipe("paper/mevis")).model
    channels = [config.backbone.embed_dim * 2**i for i in range(4)]
    shapes = [[-(-side // stride) for side in size] for stride in (4, 8, 16, 32)]
    maps = [  # in memory as the backbone's
        torch.randn(1, h * w, c).transpose(1, 2).unflatten(2, (h, w)).requires_grad_()
        for c, (h, w) in zip(channels, shapes, strict=True)
    ]

    def run(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        mask_features, video_features, levels = module(inputs)
        return [mask_features, video_features, *levels]

    module = PixelDecoder(config.pixel_decoder, channels, config.hidden_size)
    return Part(module, maps, run, lambda module: module.decoder.encoder.layers)


def motion_blocks(batch: int, frames: int) -> Part:
    config = load_recipe(find_recipe("synthetic/motion")).model
    tokens = torch.randn(batch, frames, config.frame_decoder.queries, config.hidden_size)
    cues = sentences(config, batch).motion

    def run(module: nn.Module, inputs: list[Tensor]) -> Iterable[Tensor]:
        tokens, features, mask, real = inputs
        position = torch.arange(real.shape[1], device=real.device).expand(real.shape)
        return module(Candidates(real, tokens), Cues(features, mask), position)

    def layers(module: nn.Module) -> Iterable[nn.Module]:
        for block in module.blocks:
            yield from (block.self_attention, block.cross_attention, block.feed_forward)

    module = MotionPerception(config)
    real = torch.ones(batch, frames, dtype=torch.bool)
    return Part(module, [tokens, cues.features.requires_grad_(), cues.mask, real], run, layers)


def motion_decoder(batch: int, frames: int) -> Part:
    config = load_recipe(find_recipe("synthetic/motion")).model
    tokens = torch.randn(batch, frames, config.frame_decoder.queries, config.hidden_size, requires_grad=True)
    text = sentences(config, batch)

    def run(module: nn.Module, inputs: list[Tensor]) -> Iterable[Tensor]:
        tokens, words, mask, motion, real = inputs
        text = TextFeatures(words, words, mask, words.mean(1), Cues(motion, mask), Cues(motion, mask))
        position = torch.arange(real.shape[1], device=real.device).expand(real.shape)
        video = module(tokens, real[..., None], text, position, tokens[..., 0])
        for layer in video.layers:
            yield from (layer.logits, layer.similarity, layer.contrast, layer.readout.pointer, layer.track_logits)

    module = MotionDecoder(config)
    real = torch.ones(batch, frames, dtype=torch.bool)
    inputs = [tokens, text.tokens.requires_grad_(), text.mask, text.motion.features.requires_grad_(), real]
    return Part(module, inputs, run, lambda module: module.layers)


class Variant:
    """One way to run a part."""

    def __init__(self, part: Part, device: torch.device, channels_last: bool, compiled: bool, dynamic: bool | None):
        self.part, self.device = part, device
        self.module = copy.deepcopy(part.module).to(device).train()
        self.inputs = [x.detach().to(device).requires_grad_(x.requires_grad) for x in part.inputs]
        if channels_last:
            self.module.to(memory_format=torch.channels_last)
            for i, x in enumerate(self.inputs):
                if x.ndim == 4 and x.shape[1] == 3:  # images; the other maps are so already
                    self.inputs[i] = x.contiguous(memory_format=torch.channels_last)
        if compiled:
            for layer in part.layers(self.module):
                layer.compile(dynamic=dynamic)
        self.weights: list[Tensor] = []
        self.seconds: list[float] = []

    def step(self) -> tuple[list[Tensor], list[Tensor]]:
        """Forward and backward pass, timed: results, and the gradients of what has some."""
        leaves = [*self.module.parameters(), *(x for x in self.inputs if x.requires_grad)]
        for leaf in leaves:
            leaf.grad = None
        start = now(self.device)
        outputs = list(self.part.run(self.module, self.inputs))
        if not self.weights:  # the same for every variant
            generator = torch.Generator().manual_seed(0)
            self.weights = [torch.randn(x.shape, generator=generator).to(self.device) for x in outputs]
        torch.autograd.backward(outputs, self.weights)
        self.seconds.append(now(self.device) - start)
        return [x.detach() for x in outputs], [leaf.grad for leaf in leaves if leaf.grad is not None]


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest, of each tensor relative to its largest value."""
    assert len(found) == len(wanted)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(found, wanted, strict=True))


def compare(
    name: str, part: Part, device: torch.device, wanted: Sequence[str], repeats: int, dynamic: bool | None
) -> None:
    """Print two rows of every variant: how far it is from the plain one, and its time."""
    with torch.no_grad():  # opens gates that start at zero; and sampling points off whole pixels, where gradients jump
        for parameter in part.module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    variants = {
        label: Variant(part, device, label == "channels_last", label == "compiled", dynamic)
        for label in ("plain", *wanted)
        if label != "channels_last" or any(isinstance(module, nn.Conv2d) for module in part.module.modules())
    }
    wanted_results, wanted_gradients = variants["plain"].step()
    for label in list(variants)[1:]:
        started = time.perf_counter()
        try:
            results, gradients = variants[label].step()
        except Exception as error:  # whatever the compiler meets
            print(f"{name:15} {label:14} fails: {str(error).strip().splitlines()[0]}", flush=True)
            del variants[label]
            continue
        print(
            f"{name:15} {label:14} results differ by {difference(results, wanted_results):.1e}, gradients by "
            f"{difference(gradients, wanted_gradients):.1e}; first pass {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    for variant in variants.values():
        variant.seconds.clear()
    stopped = False
    try:
        for turn in range(repeats):
            order = list(variants.values())
            for variant in order[turn % len(order) :] + order[: turn % len(order)]:
                variant.step()
    except KeyboardInterrupt:  # what has been measured is told
        stopped = True
    turns = min(len(variant.seconds) for variant in variants.values())
    plain = np.array(variants["plain"].seconds[:turns])
    for label, variant in variants.items() if turns else ():
        seconds = np.array(variant.seconds[:turns])
        low, middle, high = np.quantile(seconds / plain, [0.25, 0.5, 0.75])
        print(
            f"{name:15} {label:14} {1000 * np.median(seconds):8.1f} ms, ratio {middle:.3f} "
            f"(middle half {low:.3f} to {high:.3f}, {turns} turns)",
            flush=True,
        )
    if stopped:
        raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), help="height and width of the frame")
    parser.add_argument("--batch", type=int, default=64, help="clips of the motion part")
    parser.add_argument("--frames", type=int, default=16, help="of such a clip")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="auto")
    makers: dict[str, Callable[[], Part]] = {
        "backbone": lambda: backbone(tuple(chosen.size)),
        "pixel_decoder": lambda: pixel_decoder(tuple(chosen.size)),
        "motion_blocks": lambda: motion_blocks(chosen.batch, chosen.frames),
        "motion_decoder": lambda: motion_decoder(chosen.batch, chosen.frames),
    }
    parser.add_argument("--parts", nargs="+", choices=makers, default=list(makers))
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=VARIANTS, help="beside the plain one")
    parser.add_argument("--dynamic", action="store_true", help="compile for any shape at once")
    chosen = parser.parse_args()
    device = find_device(chosen.device)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{place} of {platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, transformers {transformers.__version__}",
        flush=True,
    )
    torch._dynamo.config.recompile_limit = 64  # a backbone has blocks of 8 kinds
    for name in chosen.parts:
        torch.manual_seed(0)
        torch.compiler.reset()
        compare(name, makers[name](), device, chosen.variants, chosen.repeats, True if chosen.dynamic else None)


if __name__ == "__main__":
    main()
