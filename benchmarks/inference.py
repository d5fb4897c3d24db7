"""A full-size model (paper/mevis, random weights) answers a sentence about a video: ours beside the plain path.

The plain path is the same model with transformers' own deformable attention (`grid_sample`), with every pixel projected
in the bi-attention, whole chunks of frames at once, and memory left to the C library. Each run is a process of its own;
the variants take turns, and the process's own time is counted, which a busy machine disturbs less than the clock's. A
ratio is to the plain run of the same turn. The last line is what this machine's matrix products reach.

Usage: python benchmarks/inference.py [--frames 8 16 36] [--size 448 796] [--repeats 3] [--threads 1]
    [--variants plain float32 bfloat16] [--text "the bird that flies away"]
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from dshmp.common.environment import keep_memory

PARTS = ("backbone", "pixel_decoder", "frame_decoder")


def make_plain(model: Any) -> None:
    """Put transformers' pixel decoder, and the bi-attention as its formula is written, into the model."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

    from dshmp import encoded
    from dshmp.model.layers import BiAttention, merge_heads, split_heads

    class Pyramid(nn.Module):
        def __init__(self, theirs: nn.Module) -> None:
            super().__init__()
            self.theirs = theirs

        def forward(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
            found = self.theirs(features)
            return found.mask_features, list(found.multi_scale_features)

    def attend(self: Any, image: Any, words: Any, word_mask: Any, mask: Any = None) -> tuple[Any, Any]:
        image, words = self.norm_v(image), self.norm_l(words)
        inputs = ((self.proj_v, image), (self.proj_l, words), (self.value_v, image), (self.value_l, words))
        key_v, key_l, value_v, value_l = (split_heads(linear(x), self.heads) for linear, x in inputs)
        from_words = merge_heads(F.scaled_dot_product_attention(key_v, key_l, value_l, word_mask))
        from_image = merge_heads(F.scaled_dot_product_attention(key_l, key_v, value_v, mask))
        return image + self.gamma_v * self.out_v(from_words), words + self.gamma_l * self.out_l(from_image)

    encoded.CPU_PIXELS = 2**40
    config, ours = model.config, model.perception.pixel_decoder
    sizes = {"feature_size": config.hidden_size, "mask_feature_size": config.hidden_size, "dropout": 0.0}
    sizes |= {"encoder_layers": config.pixel_decoder.layers, "num_attention_heads": config.pixel_decoder.heads}
    sizes |= {"encoder_feedforward_dim": config.pixel_decoder.ffn}
    theirs = Mask2FormerPixelDecoder(Mask2FormerConfig(**sizes), model.perception.backbone.channels)
    theirs.mask_projection = nn.Identity()
    theirs.load_state_dict(ours.decoder.state_dict())
    ours.decoder = Pyramid(theirs)
    BiAttention.forward = attend  # type: ignore[method-assign]


def timed(function: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        start = time.process_time()
        try:
            return function(*arguments)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - start

    return run


def answer(variant: str, frames: int, size: list[int], text: str) -> dict[str, float]:
    """CPU seconds by part, clock, and the process's peak memory; and what the answer is, to compare."""
    if variant != "plain":
        keep_memory()
    import numpy as np
    import torch

    from dshmp.inference.segmenter import Segmenter
    from dshmp.model.dshmp import DsHmp
    from dshmp.model.tokenizer import TextTokenizer, train_tokenizer
    from dshmp.recipes import find_recipe
    from dshmp.training.recipe import load_recipe

    overrides = [f"model.input.short_side={size[0]}", f"model.input.long_side={size[1]}"]
    config = load_recipe(find_recipe("paper/mevis"), overrides).model
    torch.manual_seed(0)
    model = DsHmp(config)
    if variant == "plain":
        make_plain(model)
    precision = "float32" if variant == "plain" else variant
    segmenter = Segmenter(model, TextTokenizer(config, train_tokenizer([text], 300)), "cpu", precision)  # type: ignore
    generator = np.random.default_rng(0)
    ground = generator.integers(0, 256, (size[0] + frames, size[1], 3), np.uint8)
    video = np.stack([ground[t : t + size[0]] for t in range(frames)])
    segmenter.tokenizer.check(text)  # spaCy is loaded before
    seconds: dict[str, float] = {}
    for part in PARTS:
        module = getattr(model.perception, part)
        module.forward = timed(module.forward, seconds, part)
    clock, start = time.perf_counter(), time.process_time()
    result = segmenter(video, text, threshold=0.0)
    seconds["all"], clock = time.process_time() - start, time.perf_counter() - clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rest = seconds["all"] - sum(seconds[part] for part in PARTS)
    return {**seconds, "rest": rest, "clock": clock, "GiB": peak, "score": result.score}


def matmul_rate() -> float:
    """GFLOP a CPU second of a large float32 matrix product."""
    import torch

    a = torch.randn(2048, 2048)
    a @ a
    start = time.process_time()
    for _ in range(10):
        a @ a
    return 10 * 2 * 2048**3 / (time.process_time() - start) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 36])
    parser.add_argument("--size", type=int, nargs=2, default=[448, 796])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=["plain", "float32", "bfloat16"])
    parser.add_argument("--text", default="the bird that flies away")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a variant and a number of frames, in this process
    given: Any = parser.parse_args(namespace=SimpleNamespace())
    if given.one:
        print(json.dumps(answer(given.one[0], int(given.one[1]), given.size, given.text)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    columns = ("all", *PARTS, "rest", "clock", "GiB")
    print(f"{platform.processor() or platform.machine()}, {given.threads} threads, {given.size[0]}x{given.size[1]}")
    print(f"{'frames':>6} {'variant':9}" + "".join(f"{name:>14}" for name in columns) + "   ratio to plain (spread)")
    for frames in given.frames:
        runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in given.variants}
        for _ in range(given.repeats):
            for variant in given.variants:
                options = ["--size", *map(str, given.size), "--text", given.text, "--one", variant, str(frames)]
                command = [sys.executable, __file__, *options]
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                runs[variant].append(json.loads(done.stdout.splitlines()[-1]))
        for variant, found in runs.items():
            cells = "".join(f"{statistics.median(run[name] for run in found):14.2f}" for name in columns)
            ratios = [base["all"] / run["all"] for base, run in zip(runs["plain"], found, strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
            print(f"{frames:6} {variant:9}{cells}   {ratio}", flush=True)
    print(f"matrix products: {matmul_rate():.0f} GFLOP a CPU second")


if __name__ == "__main__":
    main()
