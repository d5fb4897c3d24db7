"""The authors' checkpoint: names, sizes read off shapes, there and back bit by bit, and what is refused."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import golden
import tiny
from clips import write_clip
from dshmp import cli, load_results
from dshmp.card import lacks
from dshmp.checkpoint import CONFIG, EXTRA_STATE, load_config, load_model, save_model
from dshmp.common.errors import UserError
from dshmp.config import (
    BackboneConfig,
    EncoderConfig,
    FrameDecoderConfig,
    LanguageConfig,
    ModelConfig,
    MotionConfig,
    PixelDecoderConfig,
)
from dshmp.interop.keymap import as_release, from_release
from dshmp.interop.release import (
    BANK,
    MEMORY_ROWS,
    ConversionReport,
    convert,
    infer_config,
    release_config,
    to_release,
)
from dshmp.model.dshmp import DsHmp
from dshmp.model.swin import relative_position
from dshmp.model.tokenizer import save_tokenizer

State = dict[str, Tensor]

CPU = torch.device("cpu")
SMALL = release_config(
    ModelConfig(
        hidden_size=32,
        language=LanguageConfig(
            encoder=EncoderConfig(
                vocab_size=290,
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=1,
                intermediate_size=48,
                max_position_embeddings=60,
            )
        ),
        backbone=BackboneConfig(embed_dim=12, depths=(2, 1, 2, 1), num_heads=(1, 2, 3, 4), window_size=5),
        pixel_decoder=PixelDecoderConfig(layers=2, heads=4, ffn=1024),
        frame_decoder=FrameDecoderConfig(queries=6, layers=3, heads=4, ffn=64),
        motion=MotionConfig(blocks=2, queries=5, decoder_layers=1, heads=4, ffn=80, contrast_size=16),
    )
)
QKV = "backbone.layers.0.blocks.1.attn.qkv.weight"


def beside(config: ModelConfig, generator: torch.Generator) -> State:
    """What a checkpoint of the release holds besides parameters, as after some training."""
    backbone = config.backbone
    index = "backbone.layers.{}.blocks.{}.attn.relative_position_index"
    return {
        **{
            index.format(stage, block): relative_position((backbone.window_size,) * 2, CPU).clone()
            for stage, depth in enumerate(backbone.depths)
            for block in range(depth)
        },
        "criterion.empty_weight": torch.tensor([1.0, 0.2]),
        "vita_criterion.empty_weight": torch.tensor([1.0, 0.3]),
        BANK: torch.randn(40, config.motion.contrast_size, generator=generator),
    }


@pytest.fixture(scope="module")
def small() -> State:
    """A checkpoint of the release with random weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = as_release(DsHmp(SMALL).state_dict())
    state = {key: torch.randn(value.shape, generator=generator) for key, value in shapes.items()}
    state |= beside(SMALL, generator)
    return state


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokeniser's folder, with 290 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tiny.tokenizer().tokenizer, folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, Any]]:
    """The description of the release's full-size model."""
    if not (golden.FOLDER / "state_dict_full.json").exists():
        pytest.skip("the release's list of weights is not beside this checkout")
    description: dict[str, dict[str, Any]] = json.loads((golden.FOLDER / "state_dict_full.json").read_text())
    return description


def same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in expected.items()
    )


# --- names and sizes


def test_names_shapes_and_sizes_of_the_full_model(whole: dict[str, dict[str, Any]]) -> None:
    entries = whole["state_dict"]
    parameters = {key: torch.empty(e["shape"], device="meta") for key, e in entries.items() if e["kind"] == "parameter"}
    config = infer_config(parameters)
    assert config == release_config(ModelConfig())
    with torch.device("meta"):
        own = DsHmp(config).state_dict()
    theirs = as_release(own)
    assert {key: value.shape for key, value in theirs.items()} == {key: v.shape for key, v in parameters.items()}
    found = from_release(parameters)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in own.items()}


def test_names_of_the_recorded_model() -> None:
    """A small model that the authors' code made: every name and shape, without the text encoder."""
    file = golden.FOLDER / "i_full_inference.json"
    if not file.exists():
        pytest.skip("the recorded model is not beside this checkout")
    shapes = {
        entry["name"].removeprefix("param/"): entry["shape"]
        for entry in json.loads(file.read_text())["arrays"]
        if entry["name"].startswith("param/")
    }
    config = replace(
        SMALL,
        language=LanguageConfig(encoder=EncoderConfig(num_hidden_layers=1)),
        backbone=BackboneConfig(embed_dim=12, depths=(2, 2, 2, 2), num_heads=(1, 2, 3, 4)),
        pixel_decoder=PixelDecoderConfig(layers=2, heads=4),
        motion=replace(SMALL.motion, decoder_layers=2, ffn=64, contrast_size=32),
    )
    with torch.device("meta"):
        state = as_release(DsHmp(config).state_dict())
    text = {key: value for key, value in state.items() if key.startswith("text_encoder.")}
    found = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert {key: list(value.shape) for key, value in state.items() if key not in text} == {
        key: shape for key, shape in shapes.items() if not key.endswith(("_index", "empty_weight"))
    }
    assert infer_config({**found, **text}) == release_config(config)


def test_relative_position_index_is_swins() -> None:
    arrays, info = golden.load("e_backbone")
    index = relative_position((info["meta"]["window"],) * 2, CPU)
    recorded = [value for key, value in arrays.items() if key.endswith("relative_position_index")]
    assert recorded
    for value in recorded:
        assert torch.equal(index, torch.from_numpy(value))


def test_what_has_no_place() -> None:
    with pytest.raises(ValueError, match=r"no parameter like decoder\.pointer\.absent"):
        as_release({"decoder.pointer.absent": torch.ones(1)})


# --- there and back


def save(state: State, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "optimizer": {}, "iteration": 3}, path)
    return path


def read(path: Path) -> State:
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model"]
    state: State = content["model"]
    return state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back(suffix: str, small: State, words: Path, tmp_path: Path) -> None:
    state = {**small, "text_encoder.embeddings.position_ids": torch.arange(60)[None]}  # of an older transformers
    report = convert(save(state, tmp_path / f"a{suffix}"), tmp_path / "out", words)
    assert report.config == SMALL
    left = sorted((row.part, row.tensors) for row in report.rows if row.fate == "left out")
    assert left == [("backbone", 6), ("criterion", 1), ("text_encoder", 1), *[("vita_criterion", 1)] * 2]
    assert sum(row.tensors for row in report.rows) == len(state)
    model, tokenizer = load_model(tmp_path / "out")
    assert model.config == SMALL
    assert tokenizer(["The Red Star"]).input_ids.shape == (1, 40)
    found = model.perception.backbone.stages[0].blocks[1].attention
    assert torch.equal(found.qkv.weight, state[QKV])
    to_release(tmp_path / "out", tmp_path / f"back{suffix}")
    back = read(tmp_path / f"back{suffix}")
    assert same(back, state)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_a_converted_checkpoint_answers(precision: str, words: Path, tmp_path: Path) -> None:
    """In every precision of the command."""
    torch.manual_seed(0)
    state = as_release(DsHmp(SMALL).state_dict()) | beside(SMALL, torch.Generator().manual_seed(0))
    out = tmp_path / "model"
    dshmp = (sys.executable, "-m", "dshmp")
    subprocess.run([*dshmp, "convert", save(state, tmp_path / "a.pth"), out, "--tokenizer", words], check=True)
    asked = (
        "segment",
        write_clip(tmp_path / "a.mp4", 6),
        "the red star",
        "--model",
        out,
        "--out",
        tmp_path / "results",
    )
    subprocess.run([*dshmp, *asked, "--precision", precision, "--threshold", "0"], check=True)
    (result,) = load_results(tmp_path / "results" / "a")
    assert result.found
    assert result.masks.shape == (6, 48, 64)


@pytest.mark.slow
def test_the_full_checkpoint_there_and_back(whole: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    roberta = golden.FOLDER.parent / "roberta_bpe"
    if not roberta.exists():
        pytest.skip("RoBERTa's tokeniser is not beside this checkout")
    generator = torch.Generator().manual_seed(0)
    entries = whole["state_dict"]
    state = {
        key: relative_position((7, 7), CPU).clone()
        if key.endswith("relative_position_index")
        else torch.randn(entry["shape"], generator=generator)
        for key, entry in entries.items()
    }
    report = convert(save(state, tmp_path / "a.pth"), tmp_path / "out", roberta)
    (tmp_path / "a.pth").unlink()
    assert report.config == release_config(ModelConfig())
    sizes = {name: item["params"] for name, item in whole["submodules"].items()}
    loaded = [row for row in report.rows if row.fate == "loaded"]
    assert {row.part: row.parameters for row in loaded} == {
        "text encoder": sizes["text_encoder"],
        "resizer": sizes["resizer"],
        "backbone": sizes["backbone"],
        "pixel decoder": sizes["sem_seg_head.pixel_decoder"],
        "frame decoder": sizes["sem_seg_head.predictor"],
        "motion": sizes["vita_module"],
    }
    totals = whole["totals"]
    assert sum(row.parameters for row in loaded) == totals["params"]
    assert sum(row.tensors for row in loaded) == totals["n_params_tensors"]
    assert sum(row.tensors for row in report.rows) == len(entries)
    to_release(tmp_path / "out", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True, mmap=True)["model"]
    assert same(back, state)


def test_without_left_overs_they_start_as_in_the_release(small: State, words: Path, tmp_path: Path) -> None:
    convert(save(small, tmp_path / "a.pth"), tmp_path / "out", words)
    (tmp_path / "out" / EXTRA_STATE).unlink()
    to_release(tmp_path / "out", tmp_path / "back.pth")
    back = read(tmp_path / "back.pth")
    assert back.keys() == small.keys()
    assert torch.equal(back["criterion.empty_weight"], torch.tensor([1.0, 0.1]))
    assert back[BANK].shape == (MEMORY_ROWS, 16)
    assert abs(float(back[BANK].std()) - 1) < 0.01
    changed = {"criterion.empty_weight", "vita_criterion.empty_weight", BANK}
    assert all(torch.equal(back[key], value) for key, value in small.items() if key not in changed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_are_told(
    dtype: torch.dtype, small: State, words: Path, tmp_path: Path
) -> None:
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in small.items()}
    report = convert(save(state, tmp_path / "a.pth"), tmp_path / "out", words)
    assert f"weights in {str(dtype).removeprefix('torch.')} are kept as float32" in report.assumed
    model, _ = load_model(tmp_path / "out")
    assert torch.equal(model.decoder.norm.weight, state["vita_module.decoder_norm.weight"].float())
    to_release(tmp_path / "out", tmp_path / "back.pth")
    back = read(tmp_path / "back.pth")
    assert torch.equal(back[QKV], state[QKV].float())
    assert torch.equal(back[BANK], state[BANK])
    assert back[BANK].dtype == dtype  # left-overs stay as they are


def test_heads_of_motion(small: State, words: Path, tmp_path: Path) -> None:
    path = save(small, tmp_path / "a.pth")
    report = convert(path, tmp_path / "out", words, motion_heads=8)
    assert report.config.motion.heads == 8
    assert not any("motion.heads" in line for line in report.assumed)
    assert load_model(tmp_path / "out")[0].config.motion.heads == 8
    again = convert(path, tmp_path / "out", words, overwrite=True)
    assert any("motion.heads = 4" in line for line in again.assumed)


# --- the folder


@pytest.mark.slow
def test_a_model_is_replaced_where_asked_and_nothing_else(small: State, words: Path, tmp_path: Path) -> None:
    path, out = save(small, tmp_path / "a.pth"), tmp_path / "deep" / "out"
    convert(path, out, words)
    before = {item.name: item.stat().st_ino for item in out.iterdir()}
    assert EXTRA_STATE in before
    with pytest.raises(UserError, match=r"holds a model already; name a new folder, or replace it with --overwrite"):
        convert(path, out, words)
    assert {item.name: item.stat().st_ino for item in out.iterdir()} == before
    convert(path, out, words, overwrite=True)
    after = {item.name: item.stat().st_ino for item in out.iterdir()}
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert [item.name for item in out.parent.iterdir()] == ["out"]
    assert len({item.stat().st_mode for item in out.iterdir()}) == 1
    (out / "notes.txt").write_text("mine")
    convert(path, out, words, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "deep" / "other").mkdir()
    (tmp_path / "deep" / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no model; name a new folder"):
        convert(path, tmp_path / "deep" / "other", words, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        convert(path, out / "notes.txt", words)
    (tmp_path / "empty").mkdir()
    convert(path, tmp_path / "empty", words)
    (out / "notes.txt").unlink()
    with pytest.raises(UserError, match="not as dshmp wrote it"):
        to_release(out, path)
    with pytest.raises(UserError, match="is a folder; name a file"):
        to_release(out, tmp_path / "empty", overwrite=True)
    torch.save({}, path)
    with pytest.raises(UserError, match="not as dshmp wrote it; move it away, or name another"):
        to_release(out, path, overwrite=True)
    for name in ("b.pth", "b.safetensors"):
        to_release(out, tmp_path / name)
        with pytest.raises(UserError, match="exists already; name a new file, or replace it with --overwrite"):
            to_release(out, tmp_path / name)
        to_release(out, tmp_path / name, overwrite=True)
        assert read(tmp_path / name).keys() == small.keys()


def test_the_folder_that_one_is_in(small: State, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, here = save(small, tmp_path / "a.pth"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    number = here.stat().st_ino
    convert(path, Path(), words)
    convert(path, Path(), words, overwrite=True)
    assert Path().stat().st_ino == here.stat().st_ino == number
    assert load_config(Path(CONFIG)).card.name == "here"
    assert load_model(here)[0].config == SMALL


@pytest.mark.parametrize("back", [False, True])
def test_where_nothing_can_be_written(back: bool, tmp_path: Path) -> None:
    """It is told before anything is read."""
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    for out, message in (("file/x/y", "is a file, not a folder"), ("circle/y", "name another place")):
        with pytest.raises(UserError, match=message):
            (to_release if back else convert)(tmp_path / "nowhere", tmp_path / out)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("fresh", [True, False])
def test_a_failed_conversion_leaves_what_was_there(
    fresh: bool, small: State, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = save(small, tmp_path / "a.pth"), tmp_path / "models" / "out"
    if not fresh:
        convert(path, out, words)
    before = {} if fresh else {item.name: item.read_bytes() for item in out.iterdir()}

    def fail(state: State, path: Path, metadata: object) -> None:
        if EXTRA_STATE in path.name:
            raise SafetensorError("I/O error: no space left on device")
        save_file(state, path)

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(UserError) as caught:
        convert(path, out, words, motion_heads=2, overwrite=not fresh)
    assert str(caught.value).startswith(
        f"{out / EXTRA_STATE}: cannot be written (I/O error: no space left on device); free"
    )
    if fresh:
        assert [item.name for item in tmp_path.iterdir()] == ["a.pth"]
    else:
        assert {item.name: item.read_bytes() for item in out.iterdir()} == before
        assert [item.name for item in out.parent.iterdir()] == ["out"]


# --- the command


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["dshmp", "convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    code = caught.value.code
    return code if isinstance(code, int) else int(code is not None)


def test_the_command(
    small: State, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out, back = save(small, tmp_path / "a.pth"), tmp_path / "out", tmp_path / "back.pth"
    assert call(monkeypatch, path, out, "--tokenizer", words, "--motion-heads", 2) == 0
    text = capsys.readouterr().out
    for part in (
        "pixel decoder",
        "left out",
        "vita_criterion",
        "backbone.depths = [2, 1, 2, 1]",
        "motion.heads = 2",
        "assumed: ",
        "wrote ",
    ):
        assert part in text
    assert call(monkeypatch, out, back, "--to-release") == 0
    assert same(read(back), small)
    warnings = capsys.readouterr().err.splitlines()
    assert all(line.startswith("dshmp: warning: ") for line in warnings)
    assert "the authors' code fixes language.encoder.vocab_size = 290 (there 50265)" in warnings[0]
    assert "motion.contrast_size = 16 (there 256); it has to be changed there" in warnings[0]
    assert len(warnings) == 1  # every switch is the release's
    assert call(monkeypatch, "--help") == 0
    assert "Example: dshmp convert" in capsys.readouterr().out


def without(*keys: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(keys)}


def with_(**changes: Tensor) -> Callable[[State], State]:
    return lambda state: state | {key.replace("__", "."): value for key, value in changes.items()}


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {key.replace(old, new): value for key, value in state.items()}


def windows_of_150(state: State) -> State:
    """A window's table of 5 MB at most, from which one of pixel pairs of 4 GB would follow."""
    tables = {key for key in state if key.endswith("bias_table")}
    kept = {key: value for key, value in state.items() if not key.endswith("_index")}
    return kept | {key: torch.zeros(299**2, state[key].shape[1], dtype=torch.float16) for key in tables}


WRONG: dict[str, tuple[Callable[[State], State], str]] = {
    "lacks": (without("vita_module.enc_ffn.1.linear"), "lacks vita_module.enc_ffn.1.linear1.bias, vita_module.enc"),
    "count": (without("vita_module.enc_ffn.1.linear"), "... (4 in all); the checkpoint is not whole"),
    "no text": (without("text_encoder."), "is no whole DsHmp checkpoint: it has no text encoder; its names begin"),
    "one half": (without("vita_module.", "sem_seg_head.pixel"), "it has no pixel decoder, motion; its names begin"),
    "no patches": (without("backbone.patch_embed."), "backbone.patch_embed.proj.weight is missing"),
    "unknown": (with_(vita_module__extra=torch.ones(1)), "has unknown vita_module.extra; the checkpoint is"),
    "lacks and unknown": (renamed("sim_embed_clip", "sim_embed_klip"), "lacks vita_module.sim_embed_clip.bias, vita"),
    "a layer between": (without("text_encoder.encoder.layer.0."), "text_encoder.encoder.layer.0.intermediate.dense"),
    "windows": (windows_of_150, "window_size: must be at most 32, found 150"),
    "beyond float32": (
        with_(resizer__fc__bias=torch.full((32,), 1e300, dtype=torch.float64)),
        "resizer.fc.bias holds NaN or infinity",
    ),
    "layer": (
        with_(vita_module__query_feat__weight=torch.ones(4, 32)),
        "vita_module.query_embed.weight has shape [5, 32], the config asks [4, 32]",
    ),
    "hidden": (
        with_(sem_seg_head__predictor__query_feat__weight=torch.ones(6, 40)),
        "no model can be built from this config (the pixel decoder has 32 norm groups",
    ),
    "flat": (with_(backbone__patch_embed__proj__weight=torch.tensor(1.0)), "proj.weight is missing or a single number"),
    "integers": (with_(resizer__fc__bias=torch.ones(32, dtype=torch.int64)), "resizer.fc.bias holds whole numbers"),
    "NaN": (with_(resizer__fc__bias=torch.full((32,), float("nan"))), "resizer.fc.bias holds NaN or infinity"),
    "video": (
        with_(backbone__patch_embed__proj__weight=torch.ones(12, 3, 1, 4, 4)),
        "backbone.patch_embed.proj.weight has shape [12, 3, 1, 4, 4], the config asks [12, 3, 4, 4]",
    ),
    "Mask2Former": (without("vita_module.", "resizer.", "text_"), "it has no text encoder, resizer, motion; its names"),
    "ours": (lambda state: from_release(state), "is no whole DsHmp checkpoint: it has no text encoder, resizer, back"),
    "other": (lambda state: {"conv1.weight": torch.ones(1)}, "its names begin with conv1.weight"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_checkpoints_are_told_in_a_line(
    kind: str,
    small: State,
    words: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, message = WRONG[kind]
    path = tmp_path / "a.pth"
    torch.save(change(small), path)
    assert call(monkeypatch, path, tmp_path / "new" / "out", "--tokenizer", words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"dshmp: {path}: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert [item.name for item in tmp_path.iterdir()] == ["a.pth"]


def test_unfit_tokenisers(
    small: State, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route to the hub\nand a traceback")

    path, out = save(small, tmp_path / "a.pth"), tmp_path / "out"
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    assert call(monkeypatch, path, out) == 2
    line = capsys.readouterr().err
    assert "cannot load a tokeniser from 'roberta-base' (no route to the hub" in line
    (tmp_path / "empty").mkdir()
    assert call(monkeypatch, path, out, "--tokenizer", tmp_path / "empty") == 2
    assert "cannot load a tokeniser" in capsys.readouterr().err
    key = "text_encoder.embeddings.word_embeddings.weight"
    for size in (280, 300):  # ids without an embedding, and embeddings without a token
        path = save(small | {key: torch.ones(size, 64)}, tmp_path / "b.pth")
        assert call(monkeypatch, path, out, "--tokenizer", words) == 2
        assert f"has 290 tokens, but the checkpoint's text encoder {size}" in capsys.readouterr().err
    assert call(monkeypatch, path, out, "--tokenizer", words, "--motion-heads", 5) == 2
    assert "32 channels cannot be shared by 5 heads" in capsys.readouterr().err
    assert not out.exists()


# --- what their code cannot hold


def stored(switches: dict[str, Any], folder: Path) -> Path:
    base = {
        "language.cues": "full",
        "backbone.language_fusion": True,
        "frame_decoder.language": True,
        "motion.position": False,
        "motion.displacement": False,
        "motion.geometry": False,
        "motion.static": False,
        "motion.object_position": True,
        "readout.masks": "embedding",
    }
    save_model(tiny.model(base | switches), tiny.tokenizer(), folder)
    return folder


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"motion.position": True, "motion.displacement": True}, "motion.position = True (there False), motion.displ"),
        ({"readout.masks": "trajectories"}, "readout.masks = trajectories (there embedding)"),
        ({"backbone.language_fusion": False}, "backbone.language_fusion = False"),
        ({"backbone.temporal_window": 2}, "backbone.temporal_window = 2 (there None)"),
        ({"frame_decoder.language": False}, "frame_decoder.language = False"),
        ({"language.cues": "words"}, "language.cues = words (there full)"),
        ({"motion.stages": 2}, "motion.stages = 2 (there 3)"),
        ({"motion.window": 16}, "motion.window = 16 (there 8)"),
        ({"frame_decoder.heads": 4}, "frame_decoder.heads = 4 (there 2, as in the pixel decoder)"),
    ],
)
def test_parts_that_their_code_lacks_are_refused(switches: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        to_release(stored(switches, tmp_path / "m"), tmp_path / "x.pth")
    assert "the authors' code has no place for" in str(caught.value)
    assert message in str(caught.value)
    assert not (tmp_path / "x.pth").exists()


def test_settings_that_their_code_ignores_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored({}, tmp_path / "m")
    assert call(monkeypatch, folder, tmp_path / "new" / "x.pth", "--to-release") == 0
    fixed, silent = capsys.readouterr().err.splitlines()
    assert "pixel_decoder.ffn = 32 (there 1024)" in fixed
    assert "language.encoder.hidden_size = 32 (there 768)" in fixed
    for part in ("split = dependency (there release)", "merge = weighted (there mean)", "matching = tracks"):
        assert part in silent
    state = read(tmp_path / "new" / "x.pth")
    assert from_release(state).keys() == load_model(folder)[0].state_dict().keys()


def test_foreign_left_overs_are_refused(small: State, words: Path, tmp_path: Path) -> None:
    convert(save(small, tmp_path / "a.pth"), tmp_path / "out", words)
    save_file({"extra": torch.ones(3, 8)}, tmp_path / "out" / EXTRA_STATE)
    with pytest.raises(UserError, match=r"extra is no left-over of the release"):
        to_release(tmp_path / "out", tmp_path / "x.pth")


def test_the_report_is_plain_data(small: State, words: Path, tmp_path: Path) -> None:
    report = convert(save(small, tmp_path / "a.pth"), tmp_path / "out", words)
    assert isinstance(report, ConversionReport)
    total = sum(value.numel() for value in load_model(tmp_path / "out")[0].parameters())
    assert sum(row.parameters for row in report.rows if row.fate == "loaded") == total


def test_a_prefix_of_all_names_is_left_out(small: State, words: Path, tmp_path: Path) -> None:
    """As data-parallel training writes them, also more than one."""
    convert(
        save({f"model.module.{key}": value for key, value in small.items()}, tmp_path / "a.pth"), tmp_path / "m", words
    )
    to_release(tmp_path / "m", tmp_path / "back.pth")
    assert same(read(tmp_path / "back.pth"), small)


def test_sizes_unlike_the_published_ones_are_told(small: State, words: Path, tmp_path: Path) -> None:
    """A checkpoint without its last layers would otherwise pass for a smaller model."""
    state = without("text_encoder.encoder.layer.1.")(small)
    report = convert(save(state, tmp_path / "a.pth"), tmp_path / "m", words)
    line = next(line for line in report.assumed if "not whole" in line)
    assert "language.encoder.num_hidden_layers = 1 (there 12)" in line
    assert "hidden_size = 32 (there 256)" in line
    assert "pixel_decoder.ffn" not in line


def test_the_converted_models_card(small: State, words: Path, tmp_path: Path) -> None:
    convert(save(small, tmp_path / "a.pth"), tmp_path / "m", words)
    card = load_config(tmp_path / "m" / CONFIG).card
    assert card.data is None
    assert card.licence is None
    for part in ("40 sub-word tokens", "arrow", "inverse", "shifted", "licence"):
        assert any(part in limit for limit in card.limits)
    assert "does not know its arrow" in (tmp_path / "m" / "README.md").read_text()
    bank = {BANK: torch.zeros(MEMORY_ROWS, 16)}
    convert(save(small | bank, tmp_path / "b.pth"), tmp_path / "n", words)
    card = load_config(tmp_path / "n" / CONFIG).card
    assert card.data == "MeViS, split train"
    assert lacks(card) == ["recipe", "scores"]


def test_only_a_checkpoint_takes_a_tokeniser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, value in (("--tokenizer", "roberta-base"), ("--motion-heads", 4)):
        assert call(monkeypatch, tmp_path / "m", tmp_path / "x.pth", "--to-release", option, value) == 2
        assert "leave out --tokenizer and --motion-heads" in capsys.readouterr().err


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow beyond 1 MB, which is told as a full disk is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def converted(small: State, words: Path, tmp_path: Path) -> Path:
    convert(save(small, tmp_path / "a.pth"), tmp_path / "m", words)
    return tmp_path / "m"


@pytest.mark.parametrize("back", [None, "x.pth", "x.safetensors"])
def test_a_full_disk_is_one_line(
    back: str | None,
    words: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    converted: Path,
    full_disk: None,
) -> None:
    out = tmp_path / (back or "new/m")
    arguments = [converted, out, "--to-release"] if back else [tmp_path / "a.pth", out, "--tokenizer", words]
    assert call(monkeypatch, *arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"dshmp: {out}")
    assert "cannot be written (" in line
    assert ".partial" not in line
    assert {item.name for item in tmp_path.iterdir()} == {"a.pth", "m"}
