"""SAM 3 as candidates: what is missing is told, and its objects become tracks. Its own classes need torchvision."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dshmp.candidates import concepts, find_source
from dshmp.candidates.concepts import Sam3
from dshmp.common.errors import UserError
from dshmp.video.source import VideoSource

CPU = torch.device("cpu")
TORCHVISION = importlib.util.find_spec("torchvision") is not None
SIDE = 112


def silent(*_: Any) -> None:
    pass


@pytest.mark.skipif(TORCHVISION, reason="torchvision is installed")
def test_without_torchvision_one_line_says_so(source: VideoSource) -> None:
    with pytest.raises(UserError, match="pip install torchvision"):
        find_source("sam3")(source, ["dog"], CPU, silent)


def test_a_sentence_without_a_name_is_told(source: VideoSource) -> None:
    with pytest.raises(UserError, match="names an object"):
        Sam3()(source, [], CPU, silent)


class Processor:
    """What is called of Sam3VideoProcessor: a dog in every frame, a cat from frame 3 on, which is object 7."""

    def init_video_session(self, **_: Any) -> Any:
        return SimpleNamespace(processed_frames={}, output_dict_per_obj={}, frames_tracked_per_obj={}, prompts=[])

    def add_text_prompt(self, session: Any, texts: list[str]) -> None:
        session.prompts = texts

    def __call__(self, images: np.ndarray, **_: Any) -> dict[str, Any]:
        return {"pixel_values": torch.from_numpy(images[None].copy()), "original_sizes": [images.shape[:2]]}

    def postprocess_outputs(self, session: Any, output: int, original_sizes: Any) -> dict[str, Any]:
        masks = torch.zeros(2, *original_sizes[0], dtype=torch.bool)
        masks[0, 2:9, output : output + 5] = True
        masks[1, 20:30, 40:50] = True
        count = 1 + (output >= 3)
        names = dict(zip(session.prompts, [[0], [7]][:count], strict=False))
        return {"object_ids": torch.tensor([0, 7][:count]), "masks": masks[:count], "prompt_to_obj_ids": names}


def test_objects_are_tracks(source: VideoSource, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[Any] = []

    def model(inference_session: Any, frame: torch.Tensor, frame_idx: int) -> int:
        frames.append(inference_session.processed_frames)
        inference_session.processed_frames[frame_idx] = frame
        return frame_idx

    config = SimpleNamespace(num_maskmem=7, max_object_pointers_in_encoder=16)
    made = type("Model", (), {"__call__": staticmethod(model), "tracker_model": SimpleNamespace(config=config)})()
    monkeypatch.setattr(concepts, "find_spec", lambda _: True)
    monkeypatch.setattr(concepts, "find_folder", lambda *_: None)
    monkeypatch.setattr(concepts, "load", lambda *_: made)
    monkeypatch.setattr(concepts, "load_part", lambda *_: Processor())
    dog, cat = Sam3()(source, ["dog", "white cats"], CPU, silent).items
    assert [sorted(each.masks) for each in (dog, cat)] == [list(range(7)), [3, 4, 5, 6]]
    assert dog.words == ("dog",)
    assert {"white", "cat"} <= set(cat.words)
    assert [(t, pixels.numel()) for t, pixels in frames[0].items()] == [(t, 0) for t in range(7)]  # none is kept


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """SAM 3 with small random weights, which takes anything for an object; it knows the words dog and cat."""
    from transformers import (
        CLIPTokenizer,
        Sam2VideoVideoProcessor,
        Sam3ImageProcessor,
        Sam3VideoConfig,
        Sam3VideoModel,
        Sam3VideoProcessor,
    )

    wide = {"hidden_size": 128, "num_attention_heads": 2}
    part = {**wide, "num_layers": 1, "intermediate_size": 32}
    backbone = {"model_type": "sam3_vit_model", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone |= {"intermediate_size": 32, "image_size": SIDE, "pretrain_image_size": SIDE, "window_size": 4}
    sizes = [[32, 32], [16, 16], [8, 8]]
    vision = {"backbone_config": backbone | {"global_attn_indexes": [1]}, "fpn_hidden_size": 128}
    text = {"model_type": "clip_text_model", "vocab_size": 60, "hidden_size": 32, "intermediate_size": 32}
    text |= {"projection_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    detector = {
        "vision_config": vision | {"backbone_feature_sizes": sizes},
        "text_config": text | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        "geometry_encoder_config": part,
        "detr_encoder_config": part,
        "detr_decoder_config": part | {"num_queries": 3},
        "mask_decoder_config": wide,
    }
    tracker = {
        "vision_config": vision | {"backbone_feature_sizes": sizes},
        "prompt_encoder_config": {"hidden_size": 128},
        "mask_decoder_config": {**wide, "mlp_dim": 32, "iou_head_hidden_dim": 32},
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_fuser_intermediate_dim": 32,
        "num_maskmem": 3,
        "max_object_pointers_in_encoder": 4,
    }
    names = ("memory_attention_hidden_size", "memory_encoder_hidden_size", "mask_downsampler_embed_dim")
    tracker |= dict.fromkeys((*names, "memory_fuser_embed_dim"), 128)
    bold = dict.fromkeys(("new_det_thresh", "score_threshold_detection", "det_nms_thresh"), 0.0)
    config = Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=32, **bold)
    config.image_size = SIDE
    config.tracker_config.prompt_encoder_config.image_size = SIDE
    torch.manual_seed(0)
    model = Sam3VideoModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.1
        model.tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias += 100
    model.save_pretrained(tmp_path)
    tokens = [
        "<|startoftext|>",
        "<|endoftext|>",
        "d",
        "o",
        "g</w>",
        "c",
        "a",
        "t</w>",
        "do",
        "dog</w>",
        "ca",
        "cat</w>",
    ]
    merges = [("d", "o"), ("do", "g</w>"), ("c", "a"), ("ca", "t</w>")]
    tokenizer = CLIPTokenizer(vocab={text: n for n, text in enumerate(tokens)}, merges=merges)
    size = {"height": SIDE, "width": SIDE}
    parts = Sam3ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size), tokenizer
    Sam3VideoProcessor(*parts, target_size=SIDE).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.skipif(not TORCHVISION, reason="torchvision is not installed")
def test_a_folder_is_loaded_and_what_is_forgotten_is_not_needed(
    folder: Path, source: VideoSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracks = Sam3(model=str(folder))(source, ["dog", "cat"], CPU, silent)
    assert {track.words for track in tracks.items} == {("dog",), ("cat",)}
    assert max(len(track.masks) for track in tracks.items) == 7
    monkeypatch.setattr(concepts, "forget", silent)
    assert Sam3(model=str(folder))(source, ["dog", "cat"], CPU, silent) == tracks
