"""Static perception as a graph for other run times: ONNX, or OpenVINO's IR.

A graph does what `DsHmp.encode` and `DsHmp.mask_pixels` do, for frames of one size under one sentence. Words and motion
stay in PyTorch: motion perception reads whole videos and matches their tokens step by step. The size of the frames is
fixed, as all positions in them are constants then; the numbers of frames, words and cues are not.
"""

import importlib.util
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dshmp import checkpoint as disk
from dshmp.common.errors import UserError
from dshmp.common.files import atomic_folder, destination, is_vacant, reason
from dshmp.config import InputConfig, ModelConfig
from dshmp.model.dshmp import DsHmp
from dshmp.model.text import Cues, TextFeatures

Size = tuple[int, int]  # height and width of the network's input
Arrays = dict[str, NDArray[Any]]
Errors = dict[str, float]

LIBRARIES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""What each format needs; OpenVINO's graphs are made of ONNX's."""
INPUTS = ("images", "words", "tokens", "word_mask", "static", "static_mask")
OUTPUTS = ("object_tokens", "object_logits", "mask_embed", "mask_features")
BOUND = 1e-2
"""Largest difference to PyTorch's float32, relative to an output's largest value, of a graph that is kept. Most are
1e-6 to 1e-4; up to 2e-3 was seen where rounding puts a pixel at the edge of a query's mask on its other side. A graph
that computes in bfloat16 has 1e-2 to 1e-1, one that is wrong more."""


class PerceptionGraph(nn.Module):
    """`DsHmp.encode` with plain tensors: F frames of a clip under one sentence of L tokens and K static cues."""

    def __init__(self, model: DsHmp) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, words: Tensor, tokens: Tensor, word_mask: Tensor, static: Tensor, static_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """images (F, 3, H, W), and of `TextFeatures` words (1, L, C_text), tokens (1, L, C), their mask (1, L) bool,
        static cues (1, K, C) and their mask (1, K) bool -> object tokens (F, N, C), their logits (F, N, 2), the mask
        embeddings (F, N, C) and the pixels (F, C, H/4, W/4) that `DsHmp.decode_masks` takes."""
        cues = Cues(static, static_mask)
        text = TextFeatures(words, tokens, word_mask, tokens[:, 0], cues, cues)  # nothing here reads the last two
        frames = torch.zeros(images.shape[0], dtype=torch.long, device=images.device)
        seen = self.model.perception(images, text.repeat(frames))
        return seen.tokens, seen.logits, seen.mask_embed, self.model.mask_pixels(seen)


def text_inputs(text: TextFeatures) -> Arrays:
    """What a graph takes of one sentence's features, by the names of its inputs."""
    values = text.words, text.tokens, text.mask, text.static.features, text.static.mask
    return {name: value.detach().cpu().numpy() for name, value in zip(INPUTS[1:], values, strict=True)}


def export(source: str | Path, out: Path, kind: str, sizes: Sequence[str] = ()) -> dict[str, Errors]:
    """Write a graph for each size, and the model's config.json and tokenizer.json, to a folder, new or empty.

    Returns by each graph's name how far its outputs are from PyTorch's, at most `BOUND`. Where any fails, nothing is
    left in `out`.

    Args:
        source: what `load_model` takes.
        kind: "onnx" or "openvino".
        sizes: "HxW" of the network's input, its sides multiples of `input.divisor`; by default the largest.

    Raises UserError for a wrong argument, a missing library, or a graph that is not equal.
    """
    if kind not in LIBRARIES:
        raise UserError(f"{kind}: is no format of a graph; choose from {', '.join(LIBRARIES)}")
    target = destination(out, folder=True)
    if target.exists() and not is_vacant(target):
        raise UserError(f"{out}: is not empty; name a new folder")
    for library in LIBRARIES[kind]:
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{library}: is not installed, but the export needs it; pip install 'dshmp[export]'")
    folder = disk.find_model(source)
    model, _ = disk.load_model(folder)
    if model.config.backbone.temporal_window is not None:
        raise UserError(f"{source}: its backbone, Video-Swin, reads whole clips; only models with Swin are exported")
    chosen = [parse_size(text, model.config.input) for text in sizes] or [largest_size(model.config.input)]
    graph = PerceptionGraph(model.requires_grad_(False))
    with atomic_folder(out) as work:
        for name in (disk.CONFIG, disk.TOKENIZER):
            shutil.copyfile(folder / name, work / name)
        paths = {(h, w): work / f"perception-{h}x{w}.{'onnx' if kind == 'onnx' else 'xml'}" for h, w in chosen}
        return {path.name: _checked(graph, path, size) for size, path in paths.items()}


def parse_size(text: str, config: InputConfig) -> Size:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(size) or any(side % config.divisor for side in size):
        example = "x".join(map(str, largest_size(config)))
        raise UserError(f"{text}: is no size; give height x width, multiples of {config.divisor}, as {example}")
    return size


def largest_size(config: InputConfig) -> Size:
    """What a wide frame that both limits of the config bound is resized and padded to."""
    height, width = (side + -side % config.divisor for side in (config.short_side, config.long_side))
    return height, width


def _checked(graph: PerceptionGraph, path: Path, size: Size) -> Errors:
    """Write a graph, and compare it at other numbers of frames, words and cues than it was made with."""
    # the plain runs come first: they fill the caches of positions, which so enter the graph as constants; what the
    # exporter would put there are stand-ins without values
    trials = [example(graph.model.config, size, *counts) for counts in ((2, 5, 3), (1, 3, 1), (3, 9, 6))]
    with torch.inference_mode():
        expected = [[value.numpy() for value in graph(**each)] for each in trials]
    try:
        _write(graph, trials[0], path)
        run = (_onnx if path.suffix == ".onnx" else _openvino)(path)
        found = [run({name: value.numpy() for name, value in each.items()}) for each in trials]
    except Exception as error:  # exporter and run times raise a dozen kinds
        raise UserError(f"{path.name}: cannot be made or run ({reason(_root(error))})") from error
    errors = {
        name: max(_difference(ours[i], theirs[i]) for ours, theirs in zip(expected, found, strict=True))
        for i, name in enumerate(OUTPUTS)
    }
    if wrong := [f"{name} {error:.1e}" for name, error in errors.items() if not error <= BOUND]:
        raise UserError(f"{path.name}: differs from PyTorch ({', '.join(wrong)}; the bound is {BOUND:g}); not written")
    return errors


def example(config: ModelConfig, size: Size, frames: int, words: int, cues: int) -> dict[str, Tensor]:
    """Random inputs; the last cue, and the last word of more than three, are padding. No sentence has less than three
    sub-words, <s> and </s> among them, and a language-fused backbone turns the rounding of a single one's map, which is
    flat, into its features."""
    generator = torch.Generator().manual_seed(frames)
    shapes = (
        *((frames, 3, *size), (1, words, config.language.encoder.hidden_size), (1, words, config.hidden_size)),
        *((1, words), (1, cues, config.hidden_size), (1, cues)),
    )
    values = {name: torch.randn(shape, generator=generator) for name, shape in zip(INPUTS, shapes, strict=True)}
    real = (torch.arange(words) < max(words - 1, 3))[None], (torch.arange(cues) < max(cues - 1, 1))[None]
    return values | dict(zip(("word_mask", "static_mask"), real, strict=True))


def _difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def _root(error: BaseException) -> BaseException:
    """What went wrong at first: the exporter's last words tell of its steps alone."""
    return _root(error.__cause__) if error.__cause__ else error


def _write(graph: PerceptionGraph, inputs: dict[str, Tensor], path: Path) -> None:
    frames, words, cues = map(torch.export.Dim, ("frames", "words", "cues"))
    free = ({0: frames}, {1: words}, {1: words}, {1: words}, {1: cues}, {1: cues})
    with _quiet():
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=dict(zip(INPUTS, free, strict=True)),
            dynamo=True,
            optimize=False,  # which takes twice as long as all the rest; run times do the most of it themselves
            verbose=False,
        )
        assert program is not None
        _tidy(program.model)
    program.save(onnx := path.with_suffix(".onnx"), external_data=False)
    if path != onnx:
        import openvino

        openvino.save_model(openvino.Core().read_model(onnx), path, compress_to_fp16=False)
        onnx.unlink()


def _tidy(model: Any) -> None:
    """Leave out, in place, what is constant, there twice, unused, or tells of our source."""
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    fold_constants(model, onnx_shape_inference=True)
    common.CommonSubexpressionEliminationPass()(model)
    remove_unused_nodes(model)
    common.ClearMetadataAndDocStringPass()(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, none of which a user can do anything about: what matters is checked."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _onnx(path: Path) -> Callable[[Arrays], list[NDArray[Any]]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: list(session.run(OUTPUTS, inputs))


def _openvino(path: Path) -> Callable[[Arrays], list[NDArray[Any]]]:
    import openvino

    # by default it computes in bfloat16 on processors that have it
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: [found[name] for found in [compiled(inputs)] for name in OUTPUTS]
