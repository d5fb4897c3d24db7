"""Static perception as a graph: it answers as PyTorch does, for other frames and sentences too; and what is refused."""

import importlib.util
import itertools
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import documents
import tiny
from clips import write_clip
from dshmp import cli
from dshmp.checkpoint import save_model
from dshmp.common.errors import UserError
from dshmp.interop import graphs
from dshmp.interop.graphs import INPUTS, LIBRARIES, OUTPUTS, export, text_inputs
from dshmp.model.candidates import clip_candidates
from dshmp.model.dshmp import DsHmp

Run = Callable[[dict[str, NDArray[Any]]], list[NDArray[Any]]]

SHIFTED = {"backbone.depths": [2, 1, 1, 1]}  # a second block has shifted windows
VARIANTS = {
    "plain": SHIFTED,
    "fused": {**SHIFTED, "backbone.language_fusion": True, "frame_decoder.language": True},
    "direct": {"language.cues": "direct", "readout.masks": "embedding"},
}


def saved(folder: Path, switches: dict[str, Any] | None = None) -> Path:
    save_model(tiny.model(switches), tiny.tokenizer(switches), folder)
    return folder


def opened(folder: Path, size: str) -> Run:
    """A graph as its users run it."""
    if (path := folder / f"perception-{size}.onnx").exists():
        session = pytest.importorskip("onnxruntime").InferenceSession(path)
        return lambda inputs: session.run(OUTPUTS, inputs)
    core = pytest.importorskip("openvino").Core()
    model = core.compile_model(folder / f"perception-{size}.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: [found[name] for found in [model(inputs)] for name in OUTPUTS]


def padded(inputs: dict[str, NDArray[Any]], rows: int) -> dict[str, NDArray[Any]]:
    """With rows after the words and the cues that the masks leave out."""
    wider = {}
    for name, value in inputs.items():
        shape = (1, rows, *value.shape[2:])
        filling = np.zeros(shape, bool) if value.dtype == bool else np.full(shape, 7.0, np.float32)
        wider[name] = np.concatenate([value, filling], axis=1)
    return wider


def answers(model: DsHmp, images: torch.Tensor, sentence: str) -> tuple[list[torch.Tensor], dict[str, NDArray[Any]]]:
    """The model's own outputs, and what a graph takes of the sentence."""
    with torch.inference_mode():
        text = model.language(tiny.tokenizer()([sentence])).trimmed()
        seen = model.encode(images, text)
        return [seen.tokens, seen.logits, seen.mask_embed, model.mask_pixels(seen)], text_inputs(text)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "variant"), [*itertools.product(LIBRARIES, ("plain", "fused")), ("onnx", "direct")])
def test_a_graph_answers_as_the_model(kind: str, variant: str, tmp_path: Path) -> None:
    for library in LIBRARIES[kind]:
        pytest.importorskip(library)
    folder = saved(tmp_path / "model", VARIANTS[variant])
    sizes = ["40x64", "64x48"]
    told = export(folder, tmp_path / "out", kind, sizes)
    assert [Path(name).stem for name in told] == [f"perception-{size}" for size in sizes]
    assert all(list(errors) == list(OUTPUTS) and max(errors.values()) < 1e-4 for errors in told.values())
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert {"config.json", "tokenizer.json", *told} <= {path.name for path in (tmp_path / "out").iterdir()}
    model = tiny.model(VARIANTS[variant])
    for size, trials in zip(sizes, (((1, 0), (5, 1)), ((3, 2),)), strict=True):
        run = opened(tmp_path / "out", size)
        for frames, sentence in trials:
            images = torch.randn(frames, 3, *map(int, size.split("x")))
            expected, words = answers(model, images, tiny.SENTENCES[sentence])
            for inputs in (words, padded(words, 4)):
                found = run({"images": images.numpy(), **inputs})
                for ours, theirs in zip(expected, found, strict=True):
                    assert ours.shape == theirs.shape
                    assert np.abs(ours.numpy() - theirs).max() < 1e-4 * ours.abs().max()


@pytest.mark.slow
def test_sizes_are_the_only_numbers_that_are_fixed(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    export(saved(tmp_path / "model"), tmp_path / "out", "onnx")
    graph = onnx.load(tmp_path / "out" / "perception-40x64.onnx").graph  # the config's largest size
    shapes = {
        each.name: [side.dim_param or side.dim_value for side in each.type.tensor_type.shape.dim]
        for each in [*graph.input, *graph.output]
    }
    assert list(shapes) == [*INPUTS, *OUTPUTS]
    assert shapes["images"] == ["frames", 3, 40, 64]
    assert shapes["words"] == shapes["tokens"] == [1, "words", 32]
    assert shapes["static_mask"] == [1, "cues"]
    assert shapes["mask_features"] == ["frames", 32, 10, 16]


@pytest.mark.slow
def test_the_example_of_the_documents_gives_the_models_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    text = (documents.ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    (command,) = (line for line in documents.commands(text) if line.startswith("dshmp export default"))
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "onnxruntime" in block)
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", 6, 36, 64)
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    told = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"perception-112x200.onnx: object_tokens \S+, .*, mask_features \S+", told[0])
    assert told[1:] == ["wrote graphs"]
    names: dict[str, Any] = {}
    exec(example, names)
    model, images, text = names["seg"].model, names["images"], names["text"]
    with torch.inference_mode():
        seen = model.encode(images, text)
        shown = torch.einsum("fnc,fchw->fnhw", seen.mask_embed, seen.mask_features)
        found = clip_candidates(images, names["size"], seen.tokens, seen.logits, shown, model.config)
        video = model.decode_motion(found, text)
        masks = model.decode_masks(video, slice(0, len(images)), model.mask_pixels(seen), seen.mask_embed)
    assert torch.allclose(names["masks"], masks, atol=1e-3 * float(masks.abs().max()))
    assert torch.allclose(names["video"].logits, video.logits, atol=1e-3)
    assert names["meant"].shape == video.logits.shape[1:2]


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tflite: is no format of a graph; choose from onnx, openvino"):
        export("default", tmp_path / "out", "tflite")


@pytest.mark.parametrize(("kind", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_library_is_named(kind: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else object())
    with pytest.raises(UserError, match=rf"^{library}: is not installed.*pip install 'dshmp\[export\]'$"):
        export("default", tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries are there, or not needed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        export("default", tmp_path, "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("size", ["40", "40x60", "0x64", "40x64x3", "wide"])
def test_a_wrong_size_is_refused(size: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{size}: is no size; give height x width, multiples of 8, as 40x64$"):
        export(saved(tmp_path / "model"), tmp_path / "out", "onnx", [size])
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("installed")
def test_clips_of_video_swin_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", {"backbone.temporal_window": 2, "backbone.clip": 2})
    with pytest.raises(UserError, match="Video-Swin, reads whole clips; only models with Swin are exported"):
        export(folder, tmp_path / "out", "onnx")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_a_graph_that_differs_is_not_kept(factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "model")
    graph = graphs.PerceptionGraph(tiny.model())

    def wrong(path: Path) -> Run:
        def run(inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
            with torch.inference_mode():
                found = graph(**{name: torch.from_numpy(value) for name, value in inputs.items()})
            return [factor * each.numpy() if each.ndim == 4 else each.numpy() for each in found]

        return run

    monkeypatch.setattr(graphs, "_write", lambda graph, inputs, path: path.write_text("a graph"))
    monkeypatch.setattr(graphs, "_onnx", wrong)
    with pytest.raises(
        UserError, match=r"^perception-40x64.onnx: differs from PyTorch \(mask_features (1.0e-01|nan); "
    ):
        export(folder, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("installed")
def test_a_failure_of_the_exporter_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise RuntimeError("no such operator\n\nat line 3")

    monkeypatch.setattr(graphs, "_write", fail)
    with pytest.raises(UserError, match=r"xml: cannot be made or run \(no such operator at line 3\)$"):
        export(saved(tmp_path / "model"), tmp_path / "out", "openvino")
    assert not (tmp_path / "out").exists()
