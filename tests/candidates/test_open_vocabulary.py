"""Objects that sentences name: prompts, boxes, masks and their places, what comes later, and how much is kept."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, Sam2VideoConfig, Sam2VideoInferenceSession, Sam2VideoModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.grounding_dino.processing_grounding_dino import _merge_candidate_labels_text

from dshmp.candidates import find_source, propagation
from dshmp.candidates.grounding import Boxes, Grounding, corners, prompts
from dshmp.candidates.hub import load_part
from dshmp.candidates.open_vocabulary import OpenVocabulary, words_of
from dshmp.candidates.propagation import MEAN, STD, Propagation, frame_mask, model_boxes, model_frame
from dshmp.common.errors import UserError
from dshmp.formats.tracks import Tracks
from dshmp.video.io import open_video
from dshmp.video.source import VideoSource

CPU = torch.device("cpu")
H, W = 48, 64


def silent(*_: Any) -> None:
    pass


def test_a_frame_is_prepared_as_published() -> None:
    assert tuple(IMAGENET_DEFAULT_MEAN) == MEAN
    assert tuple(IMAGENET_DEFAULT_STD) == STD
    assert Sam2VideoConfig().image_size == 1024
    white = model_frame(np.full((30, 50, 3), 255, np.uint8), 64)
    assert white.shape == (3, 64, 64)
    torch.testing.assert_close(white[:, 5, 60], (1 - torch.tensor(MEAN)) / torch.tensor(STD))
    image = np.zeros((30, 50, 3), np.uint8)
    image[:, 25:] = 100, 150, 200
    right = torch.tensor([100, 150, 200]) / 255
    torch.testing.assert_close(model_frame(image, 64)[:, 10, 50], (right - torch.tensor(MEAN)) / torch.tensor(STD))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_frame_is_prepared_as_transformers_does() -> None:
    from transformers import Sam2ImageProcessor

    image = picture(0)[:30].repeat(7, 0)
    theirs = Sam2ImageProcessor()(image, return_tensors="pt")["pixel_values"][0]
    assert (model_frame(image, 1024) - theirs).abs().max() < 1.01 / 255 / min(STD)  # it rounds to grey levels


def test_a_box_comes_back_as_a_mask_in_the_same_place() -> None:
    boxes = torch.tensor([[8.0, 12, 40, 36], [0, 0, 16, 6]])
    for box, inner in zip(boxes, model_boxes(boxes, (H, W), 1024), strict=True):
        x0, y0, x1, y1 = (inner / 4).round().int().tolist()
        logits = torch.full((1, 1, 256, 256), -10.0)
        logits[..., y0:y1, x0:x1] = 10
        ys, xs = frame_mask(logits, (H, W)).nonzero()
        assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == box.tolist()
    assert corners(torch.tensor([[0.5, 0.25, 0.25, 0.5], [1, 1, 0.5, 0.5]]), H, W).tolist() == [
        [24, 0, 40, 24],
        [48, 36, 64, 48],
    ]


def test_prompts_hold_every_phrase_once(grounding_folder: Path) -> None:
    phrases = ["brown dog", "white cat", "puppy"]
    found = Grounding(grounding_folder, phrases, CPU)
    tokenizer = load_part(BertTokenizer, grounding_folder)
    assert [prompt.ids for prompt in found.prompts] == [tokenizer(_merge_candidate_labels_text(phrases))["input_ids"]]
    texts = {k: tokenizer.decode(found.prompts[0].ids[span]) for k, span in found.prompts[0].spans.items()}
    assert texts == dict(enumerate(phrases))
    several = list(prompts([[7, 8, 9]] * 5 + [[5] * 40], [101, 1012, 102], 12))
    assert [sorted(each.spans) for each in several] == [[0, 1], [2, 3], [4], [5]]
    assert max(len(each.ids) for each in several) == 12
    assert all(each.ids[span] in ([7, 8, 9], [5] * 9) for each in several for span in each.spans.values())


def test_boxes_are_of_the_phrase_that_fits(grounding_folder: Path) -> None:
    found = Grounding(grounding_folder, ["brown dog", "white cat"], CPU)
    logits = torch.full((1, 3, 24), -9.0)
    logits[0, 0, 1:3] = 1.0  # brown dog
    logits[0, 1, [1, 4, 5]] = torch.tensor([3.0, 2.0, 2.5])  # something brown, but a white cat
    places = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.25, 0.25], [0.1, 0.1, 0.1, 0.1]]])
    found.model = lambda **_: SimpleNamespace(logits=logits, pred_boxes=places)
    boxes = found(np.zeros((H, W, 3), np.uint8), 0.5)
    assert boxes.phrases == [1, 0]
    assert boxes.places.tolist() == [[8, 6, 24, 18], [16, 12, 48, 36]]
    assert boxes.scores.tolist() == pytest.approx([0.9526, 0.7311], abs=1e-3)
    assert found(np.zeros((H, W, 3), np.uint8), 0.99).places.shape == (0, 4)


def picture(t: int) -> np.ndarray:
    return np.random.default_rng(t).integers(0, 256, (H, W, 3), dtype=np.uint8)


def test_masks_are_those_of_the_whole_video_at_once(sam_folder: Path) -> None:
    """What a session forgets is not needed: masks are as transformers makes them with all frames in memory."""
    box = torch.tensor([[10.0, 8, 50, 40]])
    follow = Propagation(sam_folder, CPU, 99)
    ours = [follow.move(picture(0)) | follow.begin(box)] + [follow.move(picture(t)) for t in range(1, 9)]
    model = Sam2VideoModel.from_pretrained(sam_folder).eval()
    video = torch.stack([model_frame(picture(t), 64) for t in range(9)])
    session = Sam2VideoInferenceSession(video=video, video_height=H, video_width=W, dtype=torch.float32)
    points = {"point_coords": model_boxes(box, (H, W), 64).view(1, 1, 2, 2), "point_labels": torch.tensor([[[2, 3]]])}
    session.add_point_inputs(session.obj_id_to_idx(1), 0, points)
    session.obj_with_new_inputs = [1]
    theirs = [frame_mask(each.pred_masks, (H, W)) for each in model.propagate_in_video_iterator(session, 0)]
    assert len({mask.tobytes() for mask in theirs}) > 3
    for mine, mask in zip(ours, theirs, strict=True):
        assert np.array_equal(mine[0], mask)


def test_memory_is_bounded(sam_folder: Path) -> None:
    follow = Propagation(sam_folder, CPU, 99)
    follow.move(picture(0))
    follow.begin(torch.tensor([[10.0, 8, 50, 40]]))
    for t in range(1, 12):
        follow.move(picture(t))
    (session,) = follow.sessions.values()
    outputs = session.output_dict_per_obj[0]
    assert list(outputs["cond_frame_outputs"]) == [0]
    assert len(outputs["non_cond_frame_outputs"]) <= 3  # as many pointers as it looks back at
    assert sum("maskmem_features" in each for each in outputs["non_cond_frame_outputs"].values()) <= 2
    assert not session.processed_frames
    assert not session.frames_tracked_per_obj[0]
    assert len(session.cache._vision_features) == 1


class Painter:
    """A SAM 2 that knows where a thing is: it paints the box that it was given, moved 4 pixels of 1024 each frame, and
    nothing from frame `gone` on."""

    image_size = 1024
    config = SimpleNamespace(num_maskmem=3, max_object_pointers_in_encoder=4)
    gone = 99

    def __call__(self, session: Any, frame: torch.Tensor, frame_idx: int) -> Any:
        ((begun, points),) = session.point_inputs_per_obj[0].items()
        (x0, y0), (x1, y1) = (points["point_coords"][0, 0] / 4).round().int().tolist()
        logits = torch.full((1, 1, 256, 256), -10.0)
        x0, x1 = x0 + frame_idx - begun, x1 + frame_idx - begun
        logits[..., y0:y1, x0:x1] = 10 if frame_idx < self.gone else -10
        return SimpleNamespace(pred_masks=logits)


@pytest.fixture
def run(grounding_folder: Path, sam_folder: Path, source: VideoSource, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """The source with boxes as they are given for each frame, and a painter in SAM's place."""

    Box = tuple[list[float], float, int]

    def found(boxes: Mapping[int, list[Box]], gone: int = 99, video: VideoSource = source, **settings: Any) -> Tracks:
        painter = Painter()
        painter.gone = gone
        times = iter(range(99))

        def detect(self: Grounding, image: np.ndarray, threshold: float) -> Boxes:
            rows = boxes.get(next(times) * settings.get("every", 2), [])
            places = torch.tensor([place for place, _, _ in rows]).view(-1, 4)
            return Boxes(places, torch.tensor([score for _, score, _ in rows]), [k for *_, k in rows])

        monkeypatch.setattr(Grounding, "__call__", detect)
        monkeypatch.setattr(propagation, "load", lambda *_: painter)
        make = OpenVocabulary(str(grounding_folder), "", str(sam_folder), "", **({"every": 2} | settings))
        return make(video, ["brown dog", "white cats"], CPU, silent)

    return found


DOG, CAT = ([8.0, 12, 24, 36], 0.9, 0), ([40.0, 3, 56, 30], 0.8, 1)


def test_objects_are_found_followed_and_named(run: Callable) -> None:
    again = ([8.5, 12, 24, 36], 0.5, 1)  # the same object under another name
    tracks = run({0: [DOG, again], 4: [([9.0, 12, 25, 36], 0.9, 0), CAT], 6: [CAT]})
    dog, cat = tracks.items
    assert (tracks.height, tracks.width) == (H, W)
    assert [sorted(each.masks) for each in (dog, cat)] == [list(range(7)), [4, 5, 6]]  # the second enters later
    assert dog.words == ("brown", "dog")
    assert set(cat.words) >= {"white", "cats", "cat"}
    ys, xs = tracks.masks(4)["1"].nonzero()
    assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == [9, 12, 25, 36]
    ys, xs = tracks.masks(4)["2"].nonzero()
    assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == CAT[0]


def test_few_are_followed_and_not_for_ever(run: Callable) -> None:
    assert [track.words[1] for track in run({0: [DOG, CAT]}, most=1).items] == ["dog"]
    lost = run({0: [DOG], 6: [DOG]}, gone=2, patience=2)
    assert [sorted(track.masks) for track in lost.items] == [[0, 1]]
    assert run({}).items == ()


def test_a_range_counts_from_the_videos_start(run: Callable, clip: Path) -> None:
    (dog,) = run({0: [DOG]}, video=open_video(clip, frames="3:6", fps=8.0)).items
    assert sorted(dog.masks) == [3, 4, 5]


def test_folders_are_loaded_and_run(grounding_folder: Path, sam_folder: Path, source: VideoSource) -> None:
    settings = [f"detector={grounding_folder}", f"segmenter={sam_folder}", "every=3", "most=2", "overlap=0.99"]
    find = find_source("open", settings)
    told: list[tuple[str, int]] = []
    tracks = find(source, ["brown dog", "star"], CPU, lambda phase, done, total: told.append((phase, done)))
    assert told[-1] == ("candidates", 7)
    assert 1 <= len(tracks.items) <= 2
    for t in range(7):
        assert all(mask.shape == (H, W) and mask.any() for mask in tracks.masks(t).values())


def test_a_sentence_without_a_name_is_told(source: VideoSource) -> None:
    with pytest.raises(UserError, match="names an object"):
        OpenVocabulary()(source, [], CPU, silent)


def test_words_and_what_they_may_be_the_plural_of() -> None:
    assert words_of("brown t-shirt") == ("brown", "t", "shirt")
    assert {"buses", "bus"} <= set(words_of("buses"))
    assert words_of("dog") == ("dog",)
