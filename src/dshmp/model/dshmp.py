"""DsHmp as one module: language -> static perception -> motion perception -> video tokens -> masks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from dshmp.config import ModelConfig
from dshmp.model.candidates import Candidates, Detected, clip_candidates, detect
from dshmp.model.frame_decoder import Perception, StaticPerception
from dshmp.model.hmp import MotionPerception
from dshmp.model.motion_decoder import MotionDecoder, VideoTokens
from dshmp.model.pixel_decoder import PixelFeatures
from dshmp.model.text import LanguageEncoder, TextFeatures


class DsHmp(nn.Module):
    """Section 3 of the paper. Shapes: B clips, T frames, F frames of any clips, N static and N_v motion queries.
    `encode` (`encode_pixels`, then `encode_objects`) works image by image, with Video-Swin clip by clip;
    `decode_motion` needs the object tokens of the whole clip; `decode_masks` works on any slice of frames again. Memory
    is bounded by that. Called as a function, the model does all three for clips that fit in memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.language = LanguageEncoder(config.language, config.hidden_size)
        self.perception = StaticPerception(config)
        self.motion = MotionPerception(config)
        self.decoder = MotionDecoder(config)

    def forward(
        self, clips: Sequence[Tensor], text: TextFeatures, chunk: int | None = None
    ) -> list[tuple[VideoTokens, Tensor]]:
        """B clips (T_b, 3, H_b, W_b), normalised, sides multiples of `input.divisor`, and B sentences -> for each clip
        its video tokens (of a batch of one) and their mask logits (N_v, T_b, h, w) at stride 4. Clips may differ in
        size and length, and change no other's answer. Every frame counts as one step of time; `chunk` frames (by
        default `input.chunk`) are perceived at once."""
        if not clips or len(clips) != len(text.mask):
            raise ValueError(f"{len(clips)} clips under {len(text.mask)} sentences: one each is needed, at least one")
        step = self.whole_clips(chunk or self.config.input.chunk)
        answers = []
        for index, images in enumerate(clips):
            alone = text.repeat(torch.tensor([index], device=images.device))
            seen = [self.encode(part, alone) for part in images.split(step)]
            masks = torch.cat([torch.einsum("fnc,fchw->fnhw", part.mask_embed, part.mask_features) for part in seen])
            tokens, logits = torch.cat([part.tokens for part in seen]), torch.cat([part.logits for part in seen])
            size = images.shape[2], images.shape[3]
            found = clip_candidates(images, size, tokens, logits, masks, self.config)
            video = self.decode_motion(found, alone)
            parts = [
                self.decode_masks(video, slice(start, start + step), self.mask_pixels(part), part.mask_embed)
                for start, part in zip(range(0, len(images), step), seen, strict=True)
            ]
            answers.append((video, torch.cat(parts, dim=1)))
        return answers

    def whole_clips(self, frames: int) -> int:
        """`frames` rounded up to a multiple of what the backbone reads at once; a long video may be cut there."""
        return self.perception.backbone.whole_clips(frames)

    def encode(self, images: Tensor, text: TextFeatures) -> Perception:
        """Static perception of one clip's frames (F, 3, H, W), normalised, under E sentences: of E * F frames, all
        frames of the first sentence first. A longer video may be cut into such clips at `whole_clips`."""
        return self.perceive_clips(images[None], _zeros(text.mask), text)

    def perceive_clips(self, images: Tensor, clip: Tensor, text: TextFeatures) -> Perception:
        """Static perception of B * T frames: V clips (V, T, 3, H, W) under B sentences, of clips (B,) long. Pixel
        features are computed once per clip where the backbone does not use the sentence."""
        clips, length = images.shape[:2]
        images = images.flatten(0, 1)
        frames = torch.arange(len(images), device=clip.device).view(clips, length)[clip].flatten()  # (B*T)
        frame_text = text.repeat(torch.arange(len(clip), device=clip.device).repeat_interleave(length))
        if self.config.backbone.language_fusion:
            features = self.perception.features(images[frames], frame_text, length)
        else:
            features = self.perception.features(images, None, length)
            if len(clip) > 1 or clips > 1:
                features = features.frames(frames)
        return self.perception.objects(features, frame_text)

    def encode_pixels(self, images: Tensor, text: TextFeatures | None = None) -> PixelFeatures:
        """The first half of `encode`, for one sentence, or for all where the backbone hears none."""
        return self.perception.features(images, None if text is None else text.repeat(_zeros(images)), len(images))

    def encode_objects(self, features: PixelFeatures, text: TextFeatures) -> Perception:
        """The second half of `encode`, for one sentence."""
        return self.perception.objects(features, text.repeat(_zeros(features.mask_features)))

    def mask_pixels(self, seen: PixelFeatures | Perception) -> Tensor:
        """The one map (F, C, h, w) that `decode_masks` needs of F frames, before or after `encode_objects`."""
        project = self.decoder.mask_features
        return seen.mask_features if project is None else project(seen.video_features)

    def detect(self, seen: Perception, size: tuple[int, int]) -> Detected:
        """Of F frames, which take up `size` (h, w) of the padded input, what of the N candidates is there, and its
        geometry."""
        masks = torch.einsum("fnc,fchw->fnhw", seen.mask_embed, seen.mask_features)
        return detect(seen.logits, masks, size)

    def decode_motion(
        self, candidates: Candidates, text: TextFeatures, position: Tensor | None = None, stride: int = 1
    ) -> VideoTokens:
        """Motion perception and motion decoder on the candidates of B clips.

        Args:
            position: (B, T) place in time of each frame, in frames of its video, never falling; 0, 1, 2 ... by default.
            stride: a video `stride` times as fast as motion perception was trained on is read as that many
                interleaved sequences, each at the right pace.
        """
        batch, length, _ = candidates.shape
        order = None
        if self.config.motion.matching == "tracks" and not candidates.linked:
            order = candidates.order()
            candidates = candidates.in_order(order)
        if position is None:
            position = torch.arange(float(length), device=candidates.frames.device).expand(batch, length)
        every: list[Tensor] = []  # tokens, weights and, where the model tells, whether they fit the static words
        for start in range(min(stride, length)):  # frames 0, s, 2s ..., then 1, s+1 ...
            at = slice(start, None, stride)
            own = candidates.interleaved(start, stride)
            told = self.motion(own, text.motion, position[:, at], stride, text.static)
            found = [each for each in told if each is not None]
            if stride == 1:
                every = found
                break
            every = every or [each.new_empty(batch, length, *each.shape[2:]) for each in found]
            for whole, part in zip(every, found, strict=True):
                whole[:, at] = part
            del told, found
        seen = candidates.frames[..., None] if candidates.present is None else candidates.seen
        del candidates
        moved, weights, *fits = every
        video = cast(VideoTokens, self.decoder(moved, seen, text, position / stride, weights))
        video = replace(video, static_logits=fits[0]) if fits else video
        return video if order is None else video.unlinked(order)

    def decode_masks(self, video: VideoTokens, frames: slice, pixels: Tensor, mask_embed: Tensor) -> Tensor:
        """Mask logits (N_v, F, h, w) at stride 4 of one clip's video tokens (B = 1) in the F frames `frames`, of which
        `pixels` (F, C, h, w) are the `mask_pixels` and `mask_embed` (F, N, C) is of `encode`."""
        return video.readout.frame_masks(frames, pixels, mask_embed)


def _zeros(frames: Tensor) -> Tensor:
    """The first sentence's index, once for every frame."""
    return torch.zeros(len(frames), dtype=torch.long, device=frames.device)
