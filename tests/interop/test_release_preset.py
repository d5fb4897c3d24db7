"""The release's behaviour as config values: what each one changes, and that chunks and company change nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from clips import picture
from dshmp.common.errors import UserError
from dshmp.config import ModelConfig, from_dict, to_dict
from dshmp.inference.segmenter import Segmenter
from dshmp.interop.release import release_config
from dshmp.model.candidates import Candidates
from dshmp.model.dshmp import DsHmp
from dshmp.model.frames import input_masks, prepare_frames
from dshmp.model.tokenizer import TextTokenizer, train_tokenizer
from dshmp.results.result import Result
from dshmp.video.io import open_video

SMALL = {"input.short_side": 64, "input.long_side": 128}
SENTENCE = "The one that moves left and then turns back"


def release(switches: dict[str, Any] | None = None) -> ModelConfig:
    """The preset on a tiny model, some values changed."""
    values = to_dict(release_config(tiny.config()))
    return from_dict(ModelConfig, tiny.with_switches(values, {**SMALL, **(switches or {})}))


def built(config: ModelConfig) -> DsHmp:
    torch.manual_seed(0)
    return tiny.excite(DsHmp(config)).eval()


def tokenizer(config: ModelConfig) -> TextTokenizer:
    return TextTokenizer(config, train_tokenizer([text.lower() for text in tiny.SENTENCES], 290))


def segmenter(switches: dict[str, Any] | None = None) -> Segmenter:
    config = release(switches)
    return Segmenter(built(config), tokenizer(config), device="cpu")


def clip(length: int = 11, height: int = 40, width: int = 56) -> np.ndarray:
    return np.stack([picture(3 * i, height, width) for i in range(length)])


def answer(switches: dict[str, Any] | None = None, length: int = 11) -> Result:
    result: Result = segmenter(switches)(clip(length), SENTENCE, threshold=0.0)
    return result


def scores(result: Result) -> np.ndarray:
    return np.array([result.score, *(item.score for item in result.objects)])


@pytest.mark.parametrize(
    ("switch", "ours"),
    [
        ("language.split", "dependency"),
        ("motion.merge", "weighted"),
        ("release.window_shift", "always"),
        ("release.padded_frames", "masked"),
        ("release.score", "class"),
        ("input.short_side", 33),
    ],
)
def test_every_switch_of_the_preset_is_felt(switch: str, ours: Any) -> None:
    assert np.abs(scores(answer()) - scores(answer({switch: ours}))).max() > 1e-5


def test_the_preset_loses_trajectories_that_change_slots() -> None:
    """It applies the inverse of the permutation that aligns: equal while slots stay, not when they move."""
    generator = torch.Generator().manual_seed(0)
    identity = 2 * torch.randn(1, 1, 6, 32, generator=generator)
    still = identity + 0.05 * torch.randn(1, 8, 6, 32, generator=generator)
    turned = torch.stack([frame.roll(t, dims=0) for t, frame in enumerate(still[0])])[None]
    frames = torch.ones(1, 8, dtype=torch.bool)
    models = [built(release({"motion.matching": matching})) for matching in ("inverse", "hungarian")]
    with torch.no_grad():
        text = models[0].language(tokenizer(release())([SENTENCE]))
        apart = [
            float(torch.sub(*(model.decode_motion(each, text).logits for model in models)).abs().max())
            for each in (Candidates(frames, still), Candidates(frames, turned))
        ]
    assert apart[0] == 0
    assert apart[1] > 1e-4


@pytest.mark.parametrize("length", [8, 16])
def test_the_preset_does_not_see_the_arrow_of_time(length: int) -> None:
    """Consistent tracks in reverse give the same scores; with position and displacement they do not."""
    generator = torch.Generator().manual_seed(0)
    identity = 2 * torch.randn(1, 1, 6, 32, generator=generator)
    tokens = identity + 0.1 * torch.randn(1, length, 6, 32, generator=generator).cumsum(1)
    frames = torch.ones(1, length, dtype=torch.bool)

    def change(config: ModelConfig) -> float:
        model = built(config)
        with torch.no_grad():
            text = model.language(tokenizer(config)([SENTENCE]))
            forth, back = (model.decode_motion(Candidates(frames, each), text) for each in (tokens, tokens.flip(1)))
        return float((forth.logits - back.logits).abs().max())

    assert change(release()) < 2e-6
    assert change(release({"motion.position": True, "motion.displacement": True})) > 1e-3


def test_text_is_padded_with_the_start_token_and_cut_at_forty() -> None:
    config = release()
    words = " ".join(["the red star moving left"] * 20)
    cut = tokenizer(config)([words, SENTENCE])
    assert cut.input_ids.shape == (2, 40)
    assert (cut.input_ids[1][~cut.mask[1]] == 0).all()
    assert cut.input_ids[0, -1] != 2, "a cut sentence has no end token"
    ours = tokenizer(tiny.config())
    assert (ours([SENTENCE, "a cat"]).input_ids[1][-3:] == 1).all()
    with pytest.raises(UserError, match="tokens"):
        ours([words])


def test_padding_as_the_release_does_leaves_the_words_as_they_are() -> None:
    config = release()
    model = built(config)
    batches = [
        tokenizer(replace(config, release=replace(config.release, **change)))([SENTENCE])
        for change in ({}, {"pad_to_max": False, "pad_token_id": None})
    ]
    with torch.no_grad():
        padded, bare = (model.language(batch) for batch in batches)
    count = bare.tokens.shape[1]
    assert count < 40 == padded.tokens.shape[1]
    torch.testing.assert_close(padded.tokens[:, :count], bare.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.motion.features, bare.motion.features, atol=1e-5, rtol=0)


def test_the_reported_score_is_the_mask_s_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dshmp.model.tokenizer.LEARNT", 0)  # to RoBERTa's vocabulary no word is unknown
    seg, frames = segmenter(), clip()
    result = seg(frames, SENTENCE, threshold=0.0)
    plain = segmenter({"release.score": "class"})(frames, SENTENCE, threshold=0.0)
    config = seg.config
    with torch.no_grad():
        text = seg.model.language(seg.tokenizer([SENTENCE])).trimmed()
        ((video, masks),) = seg.model([prepare_frames(list(frames), config.input)], text)
        logits = input_masks(masks, frames.shape[1:3], config.input).double()
        inside = logits > 0
        quality = (logits.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
        probability = video.logits[0].softmax(1)[:, 0]
    order = probability.argsort(descending=True)
    np.testing.assert_allclose([item.score for item in plain.objects], probability[order], atol=1e-6)
    np.testing.assert_allclose([item.score for item in result.objects], (probability * quality)[order], atol=1e-5)
    assert result.rle == plain.rle
    assert result.score == plain.score


def test_no_score_above_the_threshold_is_an_empty_answer_and_one_target_is_always_given() -> None:
    seg = segmenter()
    nothing = seg(clip(), SENTENCE, threshold=1.0)
    assert not nothing.found
    assert not nothing.masks.any()
    assert not nothing.objects
    single = seg(clip(), SENTENCE, targets="single")
    assert len(single.objects) == 1


@pytest.mark.parametrize("preset", ["release", "ours", "video-swin"])
def test_three_clips_in_one_call_and_any_chunk(preset: str) -> None:
    """Clips of different sizes, lengths and sentences: together and in chunks of 1, 5, all, the same as one by one.

    The preset's clips fill their windows: its padded frames are ties, which rounding decides (as in the release).
    """
    video_swin = {"backbone.temporal_window": 4, "backbone.clip": 6, "backbone.language_fusion": True}
    config = release() if preset == "release" else tiny.config(video_swin if preset == "video-swin" else {})
    model = built(config)
    lengths = (8, 16, 24) if preset == "release" else (11, 3, 19)
    draw = np.random.default_rng(0)
    sizes = ((40, 56), (56, 40), (33, 60))
    pictures = [draw.integers(256, size=(n, *size, 3), dtype=np.uint8) for n, size in zip(lengths, sizes, strict=True)]
    with torch.no_grad():
        text = model.language(tokenizer(config)(tiny.SENTENCES))
        clips = [prepare_frames(list(frames), config.input) for frames in pictures]
        alone = [model([images], text.repeat(torch.tensor([i])), 1000)[0] for i, images in enumerate(clips)]
        for chunk in (1, 5, 1000):
            for (video, masks), (wanted, wanted_masks) in zip(model(clips, text, chunk), alone, strict=True):
                _close(video.logits, wanted.logits)
                _close(video.attention, wanted.attention)
                _close(masks, wanted_masks)


def test_clips_and_sentences_go_together() -> None:
    model = built(tiny.config())
    with torch.no_grad():
        text = model.language(tiny.tokenizer()(tiny.SENTENCES))
        for clips in ([], [torch.zeros(2, 3, 8, 8)]):
            with pytest.raises(ValueError, match="one each is needed"):
                model(clips, text)


def _close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_a_second_pass_counts_the_masks_once() -> None:
    seg = segmenter()
    with seg.ask(open_video(clip(5)), [SENTENCE], threshold=0.0) as asked:
        passes = iter(asked.frames(False))
        next(passes)  # broken off after a frame
        means = []
        for _ in range(2):
            for _ in asked.frames(False):
                pass
            quality = asked.answers[0].quality
            assert quality is not None
            means.append(quality.means())
    assert means[0] == means[1]
