"""A short video, and small random models of transformers' classes in folders, as the hub would hold them."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

from clips import picture
from dshmp.video.io import open_video
from dshmp.video.source import VideoSource

LENGTH, SIZE = 7, (48, 64)


def excite(module: nn.Module) -> nn.Module:
    """Random weights that are not nearly zero, the same ones every time."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    return module.eval()


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video, as a folder of frames."""
    place = tmp_path_factory.mktemp("video") / "clip"
    place.mkdir()
    for t in range(LENGTH):
        Image.fromarray(picture(3 * t, *SIZE)).save(place / f"f{t:03d}.png")
    return place


@pytest.fixture(scope="session")
def source(clip: Path) -> VideoSource:
    return open_video(clip, fps=8.0)


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mask2Former with three classes."""
    swin = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
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
    excite(Mask2FormerForUniversalSegmentation(config)).save_pretrained(place)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(place)
    return place
