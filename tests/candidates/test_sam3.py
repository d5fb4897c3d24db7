"""SAM 3 as candidates: what is missing is told, and its objects become tracks. Its own classes need torchvision."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dshmp.candidates import concepts, find_source
from dshmp.candidates.concepts import Sam3
from dshmp.errors import UserError
from dshmp.video.source import VideoSource

CPU = torch.device("cpu")


def silent(*_: Any) -> None:
    pass


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
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
