"""Training starts from Mask2Former's weights: they compute here what they compute there, in either format."""

import json
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

import tiny
from dshmp.checkpoint import load_model
from dshmp.common.errors import UserError
from dshmp.interop.keymap import LoadedPart, report
from dshmp.interop.mask2former import initialise
from dshmp.interop.safe_load import read_arrays, read_tensors
from dshmp.model.dshmp import DsHmp
from dshmp.model.frame_decoder import disable_language, uses_language
from dshmp.training.train import run

QUERIES, CLASSES = 9, 80
SIZES: dict[str, Any] = {
    "backbone.depths": [1, 2, 1, 1],
    "pixel_decoder.layers": 2,
    "frame_decoder.layers": 4,
    "frame_decoder.ffn": 48,
    "frame_decoder.queries": QUERIES,
}
DEAF = {"frame_decoder.language": False, "frame_decoder.injection": 0.0, "backbone.language_fusion": False}


@pytest.fixture(scope="module")
def published() -> Mask2FormerForUniversalSegmentation:
    """transformers' Mask2Former of the sizes of `SIZES`, none of its weights at its start."""
    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=8,
        depths=[1, 2, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        drop_path_rate=0.0,
        out_features=[f"stage{i}" for i in range(1, 5)],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=2,
        encoder_feedforward_dim=32,
        num_attention_heads=2,
        dim_feedforward=48,
        decoder_layers=5,  # one of them is the prediction before the first
        num_queries=QUERIES,
        num_labels=CLASSES,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    return model


@pytest.fixture(scope="module")
def folder(published: Mask2FormerForUniversalSegmentation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "transformers"
    published.save_pretrained(path)
    return path


# How the original program names the same weights.
SWIN = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.relative_position_bias.": "attn.",
    "attention.o_proj": "attn.proj",
}
PIXELS = {
    "encoder.layers": "transformer.encoder.layers",
    "level_embed": "transformer.level_embed",
    "input_projections": "input_proj",
    "self_attn_layer_norm": "norm1",
    "final_layer_norm": "norm2",
    "fc1": "linear1",
    "fc2": "linear2",
    "mask_projection": "mask_features",
    "adapter_1.0": "adapter_1",
    "adapter_1.1": "adapter_1.norm",
    "layer_1.0": "layer_1",
    "layer_1.1": "layer_1.norm",
}
QUERY = {
    "queries_embedder": "query_embed",
    "queries_features": "query_feat",
    "decoder.layernorm": "decoder_norm",
    r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0": r"mask_embed.layers.\1",
    r"decoder\.layers\.(\d+)\.self_attn_layer_norm": r"transformer_self_attention_layers.\1.norm",
    r"decoder\.layers\.(\d+)\.self_attn": r"transformer_self_attention_layers.\1.self_attn",
    r"decoder\.layers\.(\d+)\.cross_attn_layer_norm": r"transformer_cross_attention_layers.\1.norm",
    r"decoder\.layers\.(\d+)\.cross_attn": r"transformer_cross_attention_layers.\1.multihead_attn",
    r"decoder\.layers\.(\d+)\.fc(\d)": r"transformer_ffn_layers.\1.linear\2",
    r"decoder\.layers\.(\d+)\.final_layer_norm": r"transformer_ffn_layers.\1.norm",
}


def original(model: Mask2FormerForUniversalSegmentation) -> dict[str, Tensor]:
    """The weights as detectron2 writes them."""
    state = dict(model.state_dict())
    for key in [key for key in state if "q_proj" in key]:
        packed = torch.cat([state.pop(key.replace("q_proj", f"{name}_proj")) for name in "qkv"])
        swin = "swin" in key
        state[key.replace("attention.q_proj", "attn.qkv") if swin else key.replace("q_proj.", "in_proj_")] = packed
    result = {}
    for key, value in state.items():
        if key.startswith("model.pixel_level_module.encoder.hidden_states_norms.stage"):
            stage, leaf = key.split("stage")[-1].split(".")
            result[f"backbone.norm{int(stage) - 1}.{leaf}"] = value
        elif inner := after(key, "model.pixel_level_module.encoder.swin.embeddings."):
            result[f"backbone.patch_embed.{inner.replace('patch_embeddings.projection', 'proj')}"] = value
        elif inner := after(key, "model.pixel_level_module.encoder.swin.encoder."):
            result[f"backbone.{replaced(inner, SWIN)}"] = value
        elif inner := after(key, "model.pixel_level_module.decoder."):
            result[f"sem_seg_head.pixel_decoder.{replaced(inner, PIXELS)}"] = value
        elif inner := after(key, "model.transformer_module."):
            result[f"sem_seg_head.predictor.{replaced(inner, QUERY)}"] = value
        elif inner := after(key, "class_predictor."):
            result[f"sem_seg_head.predictor.class_embed.{inner}"] = value
        elif key == "criterion.empty_weight":
            result[key] = value
    index = torch.arange(16).view(4, 4)
    return result | {"backbone.layers.0.blocks.0.attn.relative_position_index": index}


def after(key: str, prefix: str) -> str:
    return key.removeprefix(prefix) if key.startswith(prefix) else ""


def replaced(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        key = re.sub(old, new, key)
    return key


def write_pickle(path: Path, state: Mapping[str, Any]) -> Path:
    arrays = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "a test", "matching_heuristics": False}, 4))
    return path


@pytest.fixture(scope="module")
def file(published: Mask2FormerForUniversalSegmentation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pickle(tmp_path_factory.mktemp("published") / "model_final.pkl", original(published))


def fresh(switches: Mapping[str, Any] | None = None) -> DsHmp:
    torch.manual_seed(1)
    return DsHmp(tiny.config(SIZES | (dict(switches) if switches else {}))).eval()


def close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


# --------------------------------------------------------------------------------------------------------- parity


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (40, 72)])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_what_it_computes(
    form: str, size: tuple[int, int], published: Mask2FormerForUniversalSegmentation, request: pytest.FixtureRequest
) -> None:
    """Every map, and every query and mask after each layer, all queries taken."""
    model = fresh(DEAF)
    initialise(model, request.getfixturevalue(form))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    theirs = published.model(pixel_values=images, output_hidden_states=True)
    perception = model.perception
    maps = perception.backbone(images, None, None, 1)
    for ours, their in zip(maps, theirs.encoder_hidden_states, strict=True):
        close(ours, their)
    mask_features, _, levels = perception.pixel_decoder(maps)
    close(mask_features, theirs.pixel_decoder_last_hidden_state)
    for ours, their in zip(levels, theirs.pixel_decoder_hidden_states, strict=True):
        close(ours, their)
    text = model.language(tiny.tokenizer()(["the red star"])).repeat(torch.zeros(2, dtype=torch.long))
    heads = perception(images, text).layers
    assert len(heads) == 5
    for head, tokens, masks in zip(
        heads, theirs.transformer_decoder_intermediate_states, theirs.masks_queries_logits, strict=True
    ):
        close(head.tokens, tokens.transpose(0, 1))
        close(torch.einsum("fnc,fchw->fnhw", head.mask_embed, mask_features), masks)


@torch.no_grad()
def test_the_first_queries_alone_see_what_they_saw(published: Mask2FormerForUniversalSegmentation, file: Path) -> None:
    """Before the first layer, where no query has met another."""
    model = fresh(DEAF | {"frame_decoder.queries": 5})
    initialise(model, file)
    decoder = model.perception.frame_decoder
    module = published.model.transformer_module
    assert torch.equal(decoder.query_content.weight, module.queries_features.weight[:5])
    assert torch.equal(decoder.query_position.weight, module.queries_embedder.weight[:5])
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    text = model.language(tiny.tokenizer()(["the red star"]))
    state = model.perception(images, text)
    theirs = published.model(pixel_values=images)
    masks = torch.einsum("fnc,fchw->fnhw", state.layers[0].mask_embed, state.mask_features)
    close(masks, theirs.masks_queries_logits[0][:, :5])


@torch.no_grad()
def test_names_of_the_first_version(published: Mask2FormerForUniversalSegmentation, file: Path, tmp_path: Path) -> None:
    """Its pixel decoder has no prefix of its own, and its queries' content another name; also as safetensors."""
    old = {
        key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query"): value
        for key, value in original(published).items()
    }
    new, other, third = fresh(), fresh(), fresh()
    rows = initialise(new, file)
    assert set(initialise(other, write_pickle(tmp_path / "old.pth", old))) == set(rows)
    save_file({key: value.contiguous() for key, value in old.items()}, tmp_path / "old.pkl")  # told by content
    assert set(initialise(third, tmp_path / "old.pkl")) == set(rows)
    for model in (other, third):
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in new.state_dict().items())


# ---------------------------------------------------------------------------------------------------------- rows

SWITCHES: list[dict[str, Any]] = [
    {},
    {"frame_decoder.language": True, "backbone.language_fusion": True, "frame_decoder.queries": 5},
    {"frame_decoder.layers": 2, "language.cues": "direct"},
    {"frame_decoder.layers": 5},
    {"backbone.temporal_window": 2},
]


def total(rows: tuple[LoadedPart, ...], *fates: str) -> int:
    return sum(row.parameters for row in rows if row.fate in fates)


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_rows_add_up(
    form: str,
    switches: dict[str, Any],
    published: Mask2FormerForUniversalSegmentation,
    request: pytest.FixtureRequest,
) -> None:
    """To the model and to the file; loaded is what changed, fresh is what did not."""
    model = fresh(switches)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rows = initialise(model, request.getfixturevalue(form))
    after = model.state_dict()
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert total(rows, "loaded") == sum(after[key].numel() for key in changed)
    assert sum(row.tensors for row in rows if row.fate == "loaded") == len(changed)
    assert total(rows, "loaded", "fresh") == sum(value.numel() for value in after.values())
    state = original(published) if form == "file" else published.state_dict()
    assert total(rows, "loaded", "left out") == sum(value.numel() for value in state.values())
    assert all(row.reason for row in rows if row.fate != "loaded")
    assert all(key.startswith("perception.") for key in changed)


def test_what_stays_out(file: Path) -> None:
    model = fresh({"frame_decoder.queries": 5, "frame_decoder.layers": 3, "frame_decoder.language": True})
    rows = initialise(model, file)
    said = {(row.part, row.fate, row.reason) for row in rows}
    assert {
        ("frame_decoder", "left out", "queries beyond the first 5"),
        ("frame_decoder", "left out", "decoder layers beyond the first 3"),
        ("frame_decoder", "left out", "object or none here, other classes there"),
        ("criterion", "left out", "class weights, for training only"),
        ("frame_decoder", "fresh", "reads the sentence"),
        ("frame_decoder", "fresh", "object or none here, other classes there"),
        ("motion", "fresh", "no part of Mask2Former"),
    } <= said
    video = initialise(fresh({"backbone.temporal_window": 2}), file)
    assert {row.fate for row in video if row.part == "backbone"} == {"fresh", "left out"}
    assert total(video, "loaded") > 0


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        LoadedPart(part="backbone", tensors=12, parameters=34567, fate="loaded"),
        LoadedPart(part="motion", tensors=1, parameters=2, fate="fresh", reason="not in [it]"),
    ]
    report(rows, "mask2former: a/b")
    out, err = capsys.readouterr()
    assert out == ""
    for text in ("mask2former: a/b", "backbone", "34,567", "loaded", "fresh", "not in [it]"):
        assert text in err


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "file"])
@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"backbone.embed_dim": 16}, r"backbone\.\S+ has shape \[8, 3, 4, 4\], the config asks \[16, 3, 4, 4\]; mend"),
        ({"hidden_size": 64}, r"pixel_decoder\.\S+ has shape \[3, 32\], the config asks \[3, 64\]"),
        ({"backbone.window_size": 5}, r"position_bias has shape \[49, 1\], the config asks \[81, 1\]"),
        ({"backbone.depths": [1, 1, 1, 1]}, r"has unknown backbone\.stages\.1\.blocks\.1\."),
        ({"backbone.depths": [1, 2, 2, 1]}, r"lacks backbone\.stages\.2\.blocks\.1\."),
        ({"pixel_decoder.layers": 3}, r"lacks pixel_decoder\.decoder\.encoder\.layers\.2\."),
        ({"pixel_decoder.heads": 4}, r"sampling_offsets\.weight has shape"),
        ({"pixel_decoder.ffn": 40}, r"pixel_decoder\.\S+ has shape \[32, 32\], the config asks \[40, 32\]"),
        ({"frame_decoder.ffn": 40}, r"frame_decoder\.\S+ has shape \[48, 32\], the config asks \[40, 32\]"),
        ({"frame_decoder.queries": 10}, r"frame_decoder\.\S+ has shape \[9, 32\], the config asks \[10, 32\]"),
    ],
)
def test_sizes_that_do_not_fit(
    form: str, switches: dict[str, Any], message: str, request: pytest.FixtureRequest
) -> None:
    model = fresh(switches)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        initialise(model, request.getfixturevalue(form))
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_heads_that_do_not_fit(folder: Path) -> None:
    """No shape shows them; transformers' config.json does."""
    with pytest.raises(UserError, match=r"has 2 attention heads, the model 4; mend model\.frame_decoder\.heads"):
        initialise(fresh({"frame_decoder.heads": 4}), folder)


def test_sources_that_are_no_mask2former(
    published: Mask2FormerForUniversalSegmentation, folder: Path, tmp_path: Path
) -> None:
    state = original(published)
    parts = {
        "swin.pkl": ("backbone.", "holds no weights of Mask2Former's frame_decoder"),
        "head.pkl": ("sem_seg_head.", "holds no weights of Mask2Former's backbone"),
    }
    for name, (prefix, message) in parts.items():
        path = write_pickle(tmp_path / name, {key: value for key, value in state.items() if key.startswith(prefix)})
        with pytest.raises(UserError, match=message):
            initialise(fresh(), path)
    lacking = dict(state)
    del lacking["sem_seg_head.predictor.decoder_norm.bias"]
    with pytest.raises(UserError, match=r"lacks frame_decoder\.norm\.bias"):
        initialise(fresh(), write_pickle(tmp_path / "lacking.pkl", lacking))
    crooked = state | {"backbone.layers.0.blocks.0.attn.qkv.bias": torch.ones(2)}
    with pytest.raises(UserError, match=r"backbone\.stages\.0\.blocks\.0\.attention\.qkv\.bias has shape"):
        initialise(fresh(), write_pickle(tmp_path / "crooked.pkl", crooked))
    with pytest.raises(UserError, match="has unknown decoder"):
        initialise(fresh(), write_pickle(tmp_path / "a.pkl", state | {"vita_module.query_feat.weight": torch.ones(1)}))
    with pytest.raises(UserError, match=r"name its \.pkl, or transformers' folder"):
        initialise(fresh(), folder / "model.safetensors")
    with pytest.raises(UserError, match="no such file or folder"):
        initialise(fresh(), tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded as transformers' Mask2Former"):
        initialise(fresh(), tmp_path / "empty")


def test_folders_that_are_damaged(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()

    def written(name: str, values: dict[str, Any], content: bytes) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
        (tmp_path / name / "model.safetensors").write_bytes(content)
        return tmp_path / name

    detr = written("a", config | {"model_type": "detr"}, weights)
    resnet = written("b", config | {"backbone_config": {"model_type": "resnet"}}, weights)
    for path in (detr, resnet):
        with pytest.raises(UserError, match=r"its config\.json is not of a Mask2Former with Swin"):
            initialise(fresh(), path)
    with pytest.raises(UserError, match="cannot be loaded as transformers' Mask2Former"):
        initialise(fresh(), written("c", config, weights[: len(weights) // 2]))
    state = load_file(folder / "model.safetensors")
    key = "model.transformer_module.queries_features.weight"
    save_file({name: value for name, value in state.items() if name != key}, tmp_path / "part")
    with pytest.raises(UserError, match=rf"lacks {key}; fetch it again"):
        initialise(fresh(), written("d", config, (tmp_path / "part").read_bytes()))
    state[key][3, 3] = torch.nan
    save_file(state, tmp_path / "part")
    with pytest.raises(UserError, match=rf"{key} holds NaN or infinity"):
        initialise(fresh(), written("e", config, (tmp_path / "part").read_bytes()))


# ---------------------------------------------------------------------------------------------- detectron2's pickle


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_kind(protocol: int, tmp_path: Path) -> None:
    arrays = {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
        "half": np.ones(2, np.float16),
        "flag": np.array([True, False]),
        "number": np.float32(3),
        "nothing": np.zeros((0, 3), np.float32),
        "long": np.arange(100_000, dtype=np.uint8),
    }
    path = tmp_path / "a.pkl"
    content = {"model": OrderedDict(arrays) | {"version": 2}, "__author__": "someone", "matching_heuristics": True}
    for value in (content, arrays):
        path.write_bytes(pickle.dumps(value, protocol))
        state = read_arrays(path)
        assert state.keys() == arrays.keys()
        for key, array in arrays.items():
            assert state[key].shape == array.shape
            assert np.array_equal(state[key].numpy(), array)


class Call:
    """Pickled, it is a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Call(os.system, "touch pwned"), "posix.system"),
        (Call(eval, "open('pwned', 'w')"), "builtins.eval"),
        (Call(getattr, "", "join"), "builtins.getattr"),
        ({"a": np.ones(2), "b": [({"c": Call(exec, "open('pwned', 'w')")},)]}, "builtins.exec"),
        (Call(np.ndarray, Call(eval, "1")), "builtins.eval"),
        ({"a": np.array([Call(os.system, "touch pwned")], dtype=object)}, "arrays of dtype 'O8'"),
        ({"a": np.array([{}], dtype=object)}, "arrays of dtype 'O8'"),
        ({"a": np.array(["text"])}, "arrays of dtype 'U4'"),
        ({"a": np.zeros(2, dtype=[("x", "f4")])}, "arrays of dtype 'V4'"),
        ({"a": torch.ones(2)}, "torch._utils._rebuild_tensor_v2"),
        (np.memmap, "numpy.memmap"),
    ],
)
def test_what_a_pickle_may_not_ask_for(
    content: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pkl"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({"model": content}, protocol))
        with pytest.raises(UserError) as caught:
            read_arrays(path)
        assert name in str(caught.value).replace("__builtin__", "builtins")
        assert "\n" not in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["a.pkl"]


ARRAY = pickle.dumps({"a": np.ones(4, np.float32)}, 4)


def many_copies(name: str, *arguments: bytes) -> bytes:
    """A pickle that calls a function on the same arguments 100 times."""
    stored = b"".join(value + b"q%c" % i for i, value in enumerate(arguments))
    call = b"h\x09" + b"".join(b"h%c" % i for i in range(len(arguments))) + b"%cR" % (0x84 + len(arguments))
    return b"\x80\x02" + stored + b"c" + name.encode() + b"\nq\x09](" + call * 100 + b"e."


NUMPY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no checkpoint"),
        (b"\x80\x04.", "damaged"),
        (pickle.dumps({"model": {"a": np.ones(3)}}, 0), "is no checkpoint"),
        (pickle.dumps({"model": {"a": np.ones(3)}}, 1), "is no checkpoint"),
        (many_copies("_codecs\nencode", b"X" + struct.pack("<I", 9000) + b"a" * 9000, b"X\x06\0\0\0latin1"), "damaged"),
        (many_copies("collections\nOrderedDict", b"](" + b"K\x01K\x02\x86" * 2000 + b"e"), "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),  # text longer than the file
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.", "damaged"),  # bytes, likewise
        (b"\x80\x02}r\xff\xff\xff\xff.", "holds no state dict"),  # a memo of 4 G places
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "damaged"),  # a byte array longer than the file
        (b"\x80\x02" + b"(" * 50_000 + b".", "damaged"),  # marks
        (b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.", "unhashable type"),
        (b"\x80\x02]" + b"".join(b"]h%cah%ce" % (0, 0) for _ in range(3)) + b".", "damaged"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01\x85R.", "damaged"),  # a call of text
        (b"\x80\x02ccollections\nOrderedDict\n]" + b")" + b"\x85" * 100_000 + b"K\x01\x86a\x85R.", "damaged"),
        (b"\x80\x02Pid\n.", "the instruction PERSID"),
        (b"\x80\x02K\x01Q.", "the instruction BINPERSID"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
        (b"\x80\x02(ios\nsystem\n.", "the instruction INST"),
        (b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00a" + NUMPY + b"ss.", "damaged"),  # without a state
        (pickle.dumps({"a": np.full(4, np.nan)}), "a holds NaN or infinity"),
        (pickle.dumps({"a": np.full(4, np.inf, np.float16)}), "a holds NaN or infinity"),
        (pickle.dumps({"model": {"a": 1.0}}), "holds no state dict"),
        (pickle.dumps([1, 2]), "is no detectron2 model file"),
        (ARRAY.replace(b"K\x04\x85", b"K\x05\x85"), "cannot reshape array of size 4"),
        (ARRAY.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"), "cannot reshape array of size 4"),
        (pickle.dumps(dict.fromkeys(map(str, range(2000)), np.ones(1000))), "its arrays are larger than the file"),
    ],
)
def test_pickles_made_to_harm(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_pickle_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    for length in range(len(ARRAY)):
        path.write_bytes(ARRAY[:length])
        with pytest.raises(UserError, match="fetch it again"):
            read_arrays(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_arrays(tmp_path / "nowhere.pkl")


def test_a_pickle_with_a_wrong_byte(tmp_path: Path) -> None:
    """It may still be one, but nothing other than UserError ever comes out."""
    path, generator = tmp_path / "a.pkl", np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        data = bytearray(ARRAY)
        data[generator.integers(len(data))] = generator.integers(256)
        path.write_bytes(data)
        try:
            read_arrays(path)
        except UserError:
            refused += 1
    assert 100 < refused < 400


# --------------------------------------------------------------------------------------------------------- training


def test_a_run_starts_from_it(folder: Path, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps too small to change anything: what is saved is what was loaded, the language still muted."""
    model = tiny.with_switches(tiny.MODEL, SIZES | {"frame_decoder.queries": 6, "frame_decoder.language": True})
    small = {"steps": 2, "learning_rate": 1e-12, "weight_decay": 0.0, "model": model, "mask2former": str(folder)}
    path = tiny.write_recipe(tmp_path / "a.yaml", tiny.recipe("perception", mini, **small))
    run(path, [], tmp_path / "a")
    err = capsys.readouterr().err
    assert "mask2former: " in err
    assert "reads the sentence" in err
    trained, _ = load_model(tmp_path / "a")
    expected = fresh({"frame_decoder.queries": 6, "frame_decoder.language": True})
    initialise(expected, folder)
    disable_language(expected.perception)
    assert not uses_language(trained.perception)
    theirs = expected.perception.state_dict()
    for key, value in trained.perception.state_dict().items():
        if not re.search(r"classify|fusion|text_attention|static_attention", key):
            assert torch.allclose(value, theirs[key], rtol=0, atol=1e-9), key
    again = run(path, [], tmp_path / "a")
    assert again == tmp_path / "a"


def test_a_run_of_video_swin(folder: Path, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its backbone is not Mask2Former's to give; whose it is, is asked next."""
    for window, message in ((2, "nowhere: cannot be read"), (None, "is for Video-Swin, the config asks for Swin")):
        model = tiny.with_switches(tiny.MODEL, SIZES | {"backbone.temporal_window": window})
        more = {"model": model, "mask2former": str(folder), "video_swin": str(tmp_path / "nowhere")}
        path = tiny.write_recipe(tmp_path / "a.yaml", tiny.recipe("perception", mini, **more))
        with pytest.raises(UserError, match=message):
            run(path, [], tmp_path / "a")
        assert ("Video-Swin takes" in capsys.readouterr().err) == (window is not None)


@pytest.mark.parametrize("key", ["mask2former", "video_swin"])
def test_it_is_for_a_model_that_starts_fresh(key: str, mini: Path, tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path / "a.yaml", tiny.recipe("perception", mini, init="anything", **{key: "b"}))
    with pytest.raises(UserError, match=f"{key} is for a model that starts fresh"):
        run(path, [], tmp_path / "a")
