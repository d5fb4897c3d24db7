"""Object tokens of frozen static perception, computed once per clip and kept on disk.

A clip's tokens are the same for all its sentences as long as static perception does not hear them (the
perception stage ends so), which makes training the motion part two orders of magnitude cheaper.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from dshmp.checkpoint import load_tensors
from dshmp.config import to_dict
from dshmp.data.dataset import Split
from dshmp.data.mevis import MevisSplit
from dshmp.language.encoder import silent_text
from dshmp.model import DsHmp
from dshmp.perception.frames import prepare_frames, restore_masks
from dshmp.progress import track

GRID = (16, 20)
"""Masks are kept on a grid of this many cells in any clip: the motion stage chooses objects, not outlines."""
SHARD = 100
FOUND = 0.5
"""A token owns the object that its mask meets with at least this IoU."""


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
    """Cached clips of one split by video name; all in memory once opened."""

    def __init__(self, folder: Path, split: Split) -> None:
        self.folder = folder
        self.clips: dict[str, CachedClip] = {}
        for path in sorted(folder.glob("*.safetensors")):
            arrays: dict[str, dict[str, Tensor]] = {}
            for key, value in load_tensors(path).items():
                name, kind = key.rsplit("/", 1)
                arrays.setdefault(name, {})[kind] = value
            for name, item in arrays.items():
                self.clips[name] = CachedClip(**item, objects=tuple(split.videos[name].objects))

    def __getitem__(self, video: str) -> CachedClip:
        return self.clips[video]

    @classmethod
    def build(cls, model: DsHmp, split: Split, folder: Path, workers: int | None = None) -> "TokenCache":
        """Open the cache in `folder`, computing what is missing; a killed build goes on where it stopped.

        Another perception or data set than the folder's own starts it anew.
        """
        folder.mkdir(parents=True, exist_ok=True)
        stamp = folder / "stamp.json"
        identity = {
            "perception": _fingerprint(model),
            "data": hashlib.sha256((split.folder / "meta_expressions.json").read_bytes()).hexdigest(),
            "grid": list(GRID),
        }
        if not stamp.exists() or json.loads(stamp.read_text()) != identity:
            for path in folder.glob("*.safetensors"):
                path.unlink()
            part = stamp.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(identity))
            part.replace(stamp)
        names = list(split.videos)
        shards = {i: names[i : i + SHARD] for i in range(0, len(names), SHARD)}
        missing = [i for i in shards if not (folder / f"{i:06d}.safetensors").exists()]
        jobs = [(folder / f"{i:06d}.safetensors", shards[i]) for i in missing]
        if jobs:
            _build_shards(model, split, jobs, workers or min(len(jobs), os.cpu_count() or 1))
        return cls(folder, split)


_worker: tuple[DsHmp, Split] | None = None


def _build_shards(model: DsHmp, split: Split, jobs: list[tuple[Path, list[str]]], workers: int) -> None:
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    arguments = (model.config, state, split.folder.parent, split.folder.name)
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=arguments) as pool:
        done: Iterable[None] = pool.map(_build_shard, jobs)
        for _ in track(done, "object tokens", total=len(jobs)):
            pass


def _start_worker(config: object, state: dict[str, Tensor], root: Path, split: str) -> None:
    global _worker
    torch.set_num_threads(1)
    model = DsHmp(config)  # type: ignore[arg-type]
    model.load_state_dict(state)
    _worker = model.eval(), MevisSplit(root, split)


def _build_shard(job: tuple[Path, list[str]]) -> None:
    path, names = job
    assert _worker is not None
    model, split = _worker
    arrays: dict[str, Tensor] = {}
    for name in names:
        for kind, value in perceive_clip(model, split, name).items():
            arrays[f"{name}/{kind}"] = value
    part = path.with_suffix(f".{os.getpid()}.part")  # two runs may build one cache
    try:
        save_file(arrays, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@torch.inference_mode()
def perceive_clip(model: DsHmp, split: Split, name: str) -> dict[str, Tensor]:
    """Static perception of one clip under no sentence at all, on the grid."""
    video = split.videos[name]
    frames = split.frames(name)
    size = frames[0].shape[:2]
    images = prepare_frames(frames, model.config.input)
    state = model.perception(images, silent_text(model.language, len(images)), len(images))
    logits = torch.einsum("fnc,fchw->nfhw", state.mask_embed, state.mask_features)
    logits = F.adaptive_avg_pool2d(restore_masks(logits, size, model.config.input), GRID).transpose(0, 1)
    annotations = [item["anno_id"] for item in video.objects.values()]
    full = torch.from_numpy(split.masks(video.name, annotations, range(len(frames)), size)).float()
    share = F.adaptive_avg_pool2d(full, GRID)  # (G, T, H, W) -> (G, T, *GRID), the share of each cell
    inside = logits.sigmoid().flatten(2)  # (T, N, cells)
    area = share.transpose(0, 1).flatten(2)  # (T, G, cells)
    overlap = inside @ area.mT
    union = inside.sum(2)[:, :, None] + area.sum(2)[:, None] - overlap
    best = (overlap / union.clamp(min=1e-6)).max(2)
    owner = torch.where(best.values >= FOUND, best.indices, -1)
    return {
        "tokens": state.tokens.half(),
        "mask_logits": logits.half().contiguous(),
        "owner": owner.to(torch.int8),
        "truth": (share > 0.5).contiguous(),
    }


def _fingerprint(model: DsHmp) -> str:
    settings = {**to_dict(model.config.input), "clip": model.perception.backbone.clip}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, value in sorted(model.perception.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
