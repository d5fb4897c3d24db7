"""Object tokens of frozen static perception, computed once and kept on disk.

Where perception is language-agnostic (the perception task ends so), a clip's tokens are the same for all its
sentences, which makes training the motion part two orders of magnitude cheaper. Where it does, every expression has
tokens of its own, and every setting that reaches the static queries a cache of its own.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import ModelConfig, to_dict
from dshmp.data.base import Expression, Split, expression_name
from dshmp.data.mevis import MevisSplit
from dshmp.errors import UserError
from dshmp.files import reason, regular, save_tensors
from dshmp.model.dshmp import DsHmp
from dshmp.model.frame_decoder import uses_language
from dshmp.model.frames import prepare_frames, restore_masks
from dshmp.model.text import TextFeatures, null_text
from dshmp.model.tokenizer import TextTokenizer
from dshmp.processes import worker_pool
from dshmp.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GRID = (16, 20)
"""Masks are kept on a grid of this many cells in any clip: the motion task chooses objects, not outlines."""
SHARD = 100
"""Videos of a file."""
FOUND = 0.5
"""A token owns the object that its mask meets with at least this IoU."""
KINDS = ("tokens", "mask_logits", "owner", "truth")


@dataclass(frozen=True)
class CachedClip:
    """What static perception made of one clip of T frames with G objects."""

    tokens: Tensor
    """(T, N, C) float16."""
    mask_logits: Tensor
    """(T, N, *GRID) float16."""
    owner: Tensor
    """(T, N) int8: index of the object that the token has found, or -1."""
    truth: Tensor
    """(G, T, *GRID) bool: masks of all objects of the clip."""
    objects: tuple[int, ...]
    """(G) object ids in the order of `truth`."""


class TokenCache:
    """Cached clips of one split; read from disk as they are asked for.

    Raises:
        UserError: a file is damaged.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        self.folder, self.split = folder, split
        self._files: dict[str, safe_open] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with open(path, "rb", opener=regular):
                    shard = safe_open(path, "pt")
                keys = list(shard.keys())
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged ({reason(error)}); remove it, and it is made anew") from None
            for key in keys:
                self._files[key.rsplit("/", 1)[0]] = shard

    def __contains__(self, item: Expression) -> bool:
        return item.video in self._files or expression_name(item) in self._files

    def __getitem__(self, item: Expression) -> CachedClip:
        """The clip of an expression, encoded under it if perception uses language."""
        name = item.video if item.video in self._files else expression_name(item)
        shard = self._files[name]
        tensors = {kind: shard.get_tensor(f"{name}/{kind}") for kind in KINDS}
        return CachedClip(**tensors, objects=tuple(self.split.videos[item.video].objects))

    @classmethod
    def build(
        cls, model: DsHmp, tokenizer: TextTokenizer, split: Split, folder: Path, workers: int | None = None
    ) -> "TokenCache":
        """Open the cache of this perception and split in `folder`, computing what is missing.

        A killed build goes on where it stopped. Another perception or data set has another cache beside it; what is
        no longer wanted may be removed.
        """
        folder = folder / f"{split.folder.name}-{_identity(model, tokenizer, split)}"
        folder.mkdir(parents=True, exist_ok=True)
        names = list(split.videos)
        jobs = [(folder / f"{i:06d}.safetensors", names[i : i + SHARD]) for i in range(0, len(names), SHARD)]
        jobs = [job for job in jobs if not job[0].exists()]
        if jobs:
            _build_shards(model, tokenizer, split, jobs, workers or min(len(jobs), os.cpu_count() or 1))
        return cls(folder, split)


@dataclass
class _Worker:
    """What a process of its own perceives clips with."""

    model: DsHmp
    tokenizer: TextTokenizer
    split: Split


_worker: _Worker | None = None


def _build_shards(
    model: DsHmp, tokenizer: TextTokenizer, split: Split, jobs: list[tuple[Path, list[str]]], workers: int
) -> None:
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    arguments = (model.config, state, tokenizer.tokenizer, split.folder.parent, split.folder.name)
    try:
        with worker_pool(workers, _start_worker, arguments) as pool:
            done: Iterable[None] = pool.map(_build_shard, jobs)
            for _ in track(done, "object tokens", total=len(jobs)):
                pass
    except BrokenProcessPool:
        raise UserError(
            f"{jobs[0][0].parent}: a process that makes object tokens died, perhaps for want of memory (there are "
            f"{workers}); the same command goes on from what is done"
        ) from None


def _start_worker(
    config: ModelConfig, state: dict[str, Tensor], tokenizer: "PreTrainedTokenizerFast", root: Path, split: str
) -> None:
    global _worker
    torch.set_num_threads(1)
    model = DsHmp(config)
    model.load_state_dict(state)
    _worker = _Worker(model.eval(), TextTokenizer(config, tokenizer), MevisSplit(root, split))


def _build_shard(job: tuple[Path, list[str]]) -> None:
    path, names = job
    assert _worker is not None
    model, tokenizer, split = _worker.model, _worker.tokenizer, _worker.split
    expressions: dict[str, list[Expression]] = defaultdict(list)
    for item in split.expressions:
        expressions[item.video].append(item)
    arrays: dict[str, Tensor] = {}
    for name in names:
        if uses_language(model.perception):
            items = expressions[name]
            with torch.inference_mode():
                text = model.language(tokenizer([item.text for item in items])) if items else None
            keys = [expression_name(item) for item in items]
        else:
            text, keys = null_text(model.language, 1), [name]
        if text is not None:
            for key, tensors in zip(keys, perceive_clip(model, split, name, text), strict=True):
                arrays |= {f"{key}/{kind}": value for kind, value in tensors.items()}
    save_tensors(arrays, path)


@torch.inference_mode()
def perceive_clip(model: DsHmp, split: Split, name: str, text: TextFeatures) -> list[dict[str, Tensor]]:
    """Static perception of one clip under each of E sentences, its masks on the grid."""
    video = split.videos[name]
    frames = split.frames(name)
    size, length = frames[0].shape[:2], len(frames)
    state = model.encode(prepare_frames(frames, model.config.input), text)
    logits = torch.einsum("fnc,fchw->nfhw", state.mask_embed, state.mask_features)
    logits = F.adaptive_avg_pool2d(restore_masks(logits, size, model.config.input), GRID).transpose(0, 1)
    annotations = [item["anno_id"] for item in video.objects.values()]
    full = torch.from_numpy(split.masks(video.name, annotations, range(length), size)).float()
    share = F.adaptive_avg_pool2d(full, GRID)  # (G, T, H, W) -> (G, T, *GRID), the share of each cell
    area = share.transpose(0, 1).flatten(2)  # (T, G, cells)
    clips = []
    for tokens, masks in zip(state.tokens.split(length), logits.split(length), strict=True):
        inside = masks.sigmoid().flatten(2)  # (T, N, cells)
        overlap = inside @ area.mT
        union = inside.sum(2)[:, :, None] + area.sum(2)[:, None] - overlap
        best = (overlap / union.clamp(min=1e-6)).max(2)
        owner = torch.where(best.values >= FOUND, best.indices, -1)
        values = (tokens.half(), masks.half().contiguous(), owner.to(torch.int8), (share > 0.5).contiguous())
        clips.append({kind: value.clone() for kind, value in zip(KINDS, values, strict=True)})
    return clips


def _identity(model: DsHmp, tokenizer: TextTokenizer, split: Split) -> str:
    """Tells apart everything that the tokens of a split depend on, data and grid included."""
    config = model.config
    configured = ("input", "backbone", "pixel_decoder", "frame_decoder")
    settings: dict[str, Any] = {name: to_dict(getattr(config, name)) for name in configured}
    settings["grid"] = GRID
    parts: list[tuple[str, nn.Module]] = [("perception", model.perception)]
    if uses_language(model.perception):
        settings["language"] = to_dict(config.language)
        parts.append(("language", model.language))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in ("meta_expressions.json", "mask_dict.json"):
        with open(split.folder / name, "rb", opener=regular) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    if len(parts) > 1:
        digest.update(tokenizer.identity().encode())
    for name, part in parts:
        _hash(digest, {f"{name}.{key}": value for key, value in part.state_dict().items()})
    return digest.hexdigest()[:16]


def _hash(digest: "hashlib._Hash", state: Mapping[str, Tensor]) -> None:
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
