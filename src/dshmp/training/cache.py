"""Object tokens of frozen static perception, computed once and kept on disk.

Where perception is language-agnostic, as after the perception task, a clip's tokens serve all its sentences, which
makes training the motion part two orders of magnitude cheaper. Elsewhere every expression has tokens of its own.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from dshmp.config import to_dict
from dshmp.data.base import Expression, Split, by_video, expression_name
from dshmp.errors import UserError
from dshmp.files import digest, reason, save_tensors
from dshmp.model.dshmp import DsHmp
from dshmp.model.frame_decoder import uses_language
from dshmp.model.frames import input_masks, output_masks, prepare_frames
from dshmp.model.text import TextFeatures, null_text
from dshmp.model.tokenizer import TextBatch, TextTokenizer
from dshmp.progress import track
from dshmp.training.video_losses import VideoTargets, video_targets

GRID = (16, 20)  # masks are kept on so many cells in any clip: the motion task chooses objects, not outlines
FOUND = 0.5  # a token owns the object that its mask meets with at least this IoU
KINDS = ("tokens", "mask_logits", "owner", "truth")


@dataclass(frozen=True)
class CachedClip:
    tokens: Tensor  # (T, N, C) float16, of a clip of T frames with G objects
    mask_logits: Tensor  # (T, N, *GRID) float16
    owner: Tensor  # (T, N) int8: index of the object that the token has found, or -1
    truth: Tensor  # (G, T, *GRID) bool: masks of all objects of the clip
    objects: tuple[int, ...]  # (G) object ids in the order of `truth`


@dataclass(frozen=True)
class ClipBatch:
    texts: TextBatch
    tokens: Tensor  # (B, T, N, C)
    mask_logits: Tensor  # (B, T, N, h, w)
    owner: Tensor  # (B, T, N) long: the object a token has found, as an index of the video's objects, or -1
    targets: VideoTargets
    names: tuple[str, ...]  # which sentences these are
    seeds: Sequence[tuple[int, ...]]  # of each sentence's random numbers in training


class CachedSplit:
    """The sentences of a split and the cached object tokens of their clips: a file for each video, read when needed."""

    def __init__(self, split: Split, tokenizer: TextTokenizer, folder: Path) -> None:
        self.split, self.tokenizer, self.folder = split, tokenizer, folder
        self.lengths = [len(split.videos[item.video].frames) for item in split.expressions]  # of each sentence's clip

    @classmethod
    def build(cls, model: DsHmp, tokenizer: TextTokenizer, split: Split, folder: Path) -> Self:
        """Open the cache of this perception and split in `folder`, computing what is missing, a video on each core."""
        cached = cls(split, tokenizer, folder / f"{split.folder.name}-{_identity(model, tokenizer, split)}")
        cached.folder.mkdir(parents=True, exist_ok=True)
        make, threads = partial(cached._make, model.eval(), by_video(split)), torch.get_num_threads()
        if missing := [name for name in split.videos if not cached._file(name).exists()]:
            torch.set_num_threads(1)
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                try:
                    list(track(pool.map(make, missing), "object tokens", total=len(missing)))
                finally:
                    pool.shutdown(cancel_futures=True)
                    torch.set_num_threads(threads)
        return cached

    def _file(self, video: str) -> Path:
        return self.folder / f"{video}.safetensors"

    @torch.inference_mode()
    def _make(self, model: DsHmp, expressions: Mapping[str, Sequence[Expression]], video: str) -> None:
        keys, text = [""], null_text(model.language, 1)
        if uses_language(model.perception):
            if not (items := expressions.get(video)):
                return
            keys, text = [f"{item.id}/" for item in items], model.language(self.tokenizer([i.text for i in items]))
        clips = zip(keys, perceive_clip(model, self.split, video, text), strict=True)
        save_tensors({f"{key}{kind}": value for key, clip in clips for kind, value in clip.items()}, self._file(video))

    def __getitem__(self, item: Expression) -> CachedClip:
        """The clip of an expression, encoded under it if perception uses language. UserError: its file is damaged."""
        path = self._file(item.video)
        try:
            with safe_open(path, "pt") as file:
                own = f"{item.id}/" if f"{item.id}/tokens" in file.keys() else ""  # noqa: SIM118
                tensors = {kind: file.get_tensor(f"{own}{kind}") for kind in KINDS}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged ({reason(error)}); remove it, and it is made anew") from None
        return CachedClip(**tensors, objects=tuple(self.split.videos[item.video].objects))

    def batch(self, chosen: Sequence[int], seeds: Sequence[tuple[int, ...]] = ()) -> ClipBatch:
        """The sentences with these indices, whose clips have one length, as a batch."""
        items = [self.split.expressions[i] for i in chosen]
        clips = [self[item] for item in items]
        _, targets = video_targets(chosen, items, [clip.objects for clip in clips], [clip.truth for clip in clips])
        return ClipBatch(
            self.tokenizer([item.text for item in items]),
            torch.stack([clip.tokens for clip in clips]).float(),
            torch.stack([clip.mask_logits for clip in clips]).float(),
            torch.stack([clip.owner for clip in clips]).long(),
            targets,
            tuple(map(expression_name, items)),
            seeds,
        )


@torch.inference_mode()
def perceive_clip(model: DsHmp, split: Split, name: str, text: TextFeatures) -> list[dict[str, Tensor]]:
    """Static perception of one clip under each of E sentences, its masks on the grid."""
    video, frames = split.videos[name], split.frames(name)
    size, length = frames[0].shape[:2], len(frames)
    state = model.encode(prepare_frames(frames, model.config.input), text)
    logits = torch.einsum("fnc,fchw->nfhw", state.mask_embed, state.mask_features)
    logits = output_masks(input_masks(logits, size, model.config.input), size)
    logits = F.adaptive_avg_pool2d(logits, GRID).transpose(0, 1)
    annotations = [item["anno_id"] for item in video.objects.values()]
    truth = torch.from_numpy(split.masks(video.name, annotations, range(length), size)).float()
    share = F.adaptive_avg_pool2d(truth, GRID)  # (G, T, H, W) -> (G, T, *GRID), the share of each cell
    area = share.transpose(0, 1).flatten(2)  # (T, G, cells)
    clips = []
    for tokens, masks in zip(state.tokens.split(length), logits.split(length), strict=True):
        inside = masks.sigmoid().flatten(2)  # (T, N, cells)
        overlap = inside @ area.mT
        union = inside.sum(2)[:, :, None] + area.sum(2)[:, None] - overlap
        best = (overlap / union.clamp(min=1e-6)).max(2)
        owner = torch.where(best.values >= FOUND, best.indices, -1)
        values = tokens.half(), masks.half().contiguous(), owner.to(torch.int8), (share > 0.5).contiguous()
        clips.append({kind: value.clone() for kind, value in zip(KINDS, values, strict=True)})
    return clips


def _identity(model: DsHmp, tokenizer: TextTokenizer, split: Split) -> str:
    """Tells apart everything that the tokens of a split depend on, data and grid included."""
    parts = ("perception", "language") if uses_language(model.perception) else ("perception",)
    sections = ("input", "backbone", "pixel_decoder", "frame_decoder", *parts[1:])
    settings: dict[str, Any] = {name: to_dict(getattr(model.config, name)) for name in sections}
    settings |= {name: digest(split.folder / name) for name in ("meta_expressions.json", "mask_dict.json")}
    settings |= {"grid": GRID} | ({"tokenizer": tokenizer.identity()} if "language" in parts else {})
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in parts:
        for key, value in sorted(getattr(model, name).state_dict().items()):
            found.update(f"{name}.{key}".encode())
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
