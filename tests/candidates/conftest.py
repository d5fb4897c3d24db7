"""A short video, and small random models of transformers' classes in folders, as the hub would hold them."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
    Sam2VideoPromptEncoderConfig,
    Sam2VisionConfig,
    SwinConfig,
)

from clips import write_frames
from dshmp.video.io import open_video
from dshmp.video.source import VideoSource

LENGTH, SIZE = 7, (48, 64)
MARKS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}  # BERT's numbers
WORDS = ("brown", "dog", "white", "cat", "red", "star", "pup", "##py")
SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}


def made(kind: type[nn.Module], config: object) -> nn.Module:
    """A model with random weights that are not nearly zero, the same ones every time."""
    torch.manual_seed(0)
    module = kind(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    return module.eval()


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video, as a folder of frames."""
    return write_frames(tmp_path_factory.mktemp("video") / "clip", LENGTH, *SIZE)


@pytest.fixture(scope="session")
def source(clip: Path) -> VideoSource:
    return open_video(clip, fps=8.0)


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mask2Former with three classes."""
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN, out_features=["stage1", "stage2", "stage3", "stage4"]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=1,
        encoder_feedforward_dim=32,
        num_attention_heads=2,
        dim_feedforward=32,
        decoder_layers=2,
        num_queries=6,
        id2label={0: "person", 1: "dog", 2: "cell phone"},
        label2id={"person": 0, "dog": 1, "cell phone": 2},
    )
    place = tmp_path_factory.mktemp("models") / "coco"
    made(Mask2FormerForUniversalSegmentation, config).save_pretrained(place)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def grounding_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grounding DINO with a few words."""
    text = BertConfig(vocab_size=1030, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**SWIN, out_indices=[2, 3, 4]),
        text_config=text,
        d_model=32,
        num_queries=10,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        max_text_len=24,
    )
    place = tmp_path_factory.mktemp("models") / "grounding"
    made(GroundingDinoForObjectDetection, config).save_pretrained(place)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160}).save_pretrained(place)
    vocabulary = {f"[unused{n}]": n for n in range(1030) if n not in MARKS.values() and not 200 <= n < 200 + len(WORDS)}
    vocabulary |= MARKS | {word: n for n, word in enumerate(WORDS, 200)}
    BertTokenizer(vocab=vocabulary).save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM 2 that looks back at 3 masks and 4 pointers, and holds every object to be there."""
    hiera = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=128,
    )
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=128, image_size=64),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=128, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32
        ),
        image_size=64,
        num_maskmem=3,
        max_object_pointers_in_encoder=4,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=32,
    )
    model = made(Sam2VideoModel, config)
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias += 100
    place = tmp_path_factory.mktemp("models") / "sam"
    model.save_pretrained(place)
    return place
