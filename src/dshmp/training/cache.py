"""Object tokens of frozen static perception, computed once and kept on disk.

Where perception is language-agnostic, as after the perception task, a clip's tokens serve all its sentences, which
makes training the motion part two orders of magnitude cheaper. Elsewhere every expression has tokens of its own.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from dshmp.checkpoint import load_tensors
from dshmp.common.errors import UserError
from dshmp.common.files import digest, reason, save_tensors
from dshmp.common.progress import track
from dshmp.common.rle import decode
from dshmp.config import to_dict
from dshmp.data.base import Expression, Size, Split, Video, by_video, expression_name, mask_size
from dshmp.formats.reading import read_tracks
from dshmp.model.camera import camera_motion, followed, grey_frames
from dshmp.model.candidates import Candidates, clip_candidates
from dshmp.model.dshmp import DsHmp
from dshmp.model.frame_decoder import uses_language
from dshmp.model.frames import input_masks, input_size, output_masks, prepare_frames
from dshmp.model.geometry import LEAST, grid_size, mask_geometry, masks_on_grid
from dshmp.model.text import TextFeatures, null_text
from dshmp.model.tokenizer import TextBatch, TextTokenizer
from dshmp.model.trajectories import gather
from dshmp.training.video_losses import VideoTargets, video_targets
from dshmp.video.source import VideoSource

GRID = (24, 32)  # masks are kept on so many cells in any clip: the motion task chooses objects, not outlines
FOUND = 0.5  # a token owns the object that its mask meets with at least this IoU
FORMAT = 3  # of what is kept; another number makes it anew
SURE = 8.0  # mask logit of a true mask


@dataclass(frozen=True)
class CachedClip:
    """A clip of T frames with G objects and N candidates, which are in the order of trajectories where the model reads
    geometry, and only then have what stands last here."""

    mask_logits: Tensor  # (T, N, *GRID) float16
    owner: Tensor  # (T, N) int8: index of the object that the candidate has found, or -1
    truth: Tensor  # (G, T, *GRID) bool: masks of all objects of the clip
    objects: tuple[int, ...]  # (G) object ids in the order of `truth`
    tokens: Tensor | None = None  # (T, N, C) float16; None where candidates are masks alone
    present: Tensor | None = None  # (T, N) bool
    geometry: Tensor | None = None  # (T, N, CHANNELS) float16
    camera: Tensor | None = None  # (T, 2, 3)
    sure: Tensor | None = None  # (T,)
    appearance: Tensor | None = None  # (T, N, A); of true masks, and in files of their own


CANDIDATES = ("tokens", "present", "geometry", "camera", "sure", "appearance")


@dataclass(frozen=True)
class ClipBatch:
    texts: TextBatch
    candidates: Candidates
    mask_logits: Tensor  # (B, T, N, h, w)
    owner: Tensor  # (B, T, N) long: the object a token has found, as an index of the video's objects, or -1
    targets: VideoTargets
    names: tuple[str, ...]  # which sentences these are
    seeds: Sequence[tuple[int, ...]]  # of each sentence's random numbers in training


class CachedSplit:
    """The sentences of a split and the cached object tokens of their clips: a file for each video, read when needed."""

    def __init__(
        self,
        split: Split,
        tokenizer: TextTokenizer,
        folder: Path,
        masks: bool | Path = False,
        appearance: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.split, self.tokenizer, self.folder = split, tokenizer, folder
        self.masks, self.appearance = masks, appearance
        self.lengths = [len(split.videos[item.video].frames) for item in split.expressions]  # of each sentence's clip

    @classmethod
    def build(
        cls,
        model: DsHmp,
        tokenizer: TextTokenizer,
        split: Split,
        folder: Path,
        masks: bool | Path = False,
        appearance: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """Open the cache of this perception and split in `folder`, computing what is missing, a video on each core.
        With `masks`, candidates have no tokens: they are the true masks of all objects, with `appearance` (G, A) of
        each video's, or tracks made elsewhere, a file for each video in that folder."""
        name = f"{split.folder.name}-{_identity(model, tokenizer, split, masks)}"
        cached = cls(split, tokenizer, folder / name, masks, appearance)
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
        if self.masks:
            tracks = self.masks if isinstance(self.masks, Path) else None
            save_tensors(mask_candidates(model, self.split, video, tracks), self._file(video))
            return
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
                own = f"{item.id}/" if f"{item.id}/owner" in file.keys() else ""  # noqa: SIM118
                kinds = [key.removeprefix(own) for key in file.keys() if key.startswith(own)]  # noqa: SIM118
                tensors = {kind: file.get_tensor(f"{own}{kind}") for kind in kinds if "/" not in kind}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged ({reason(error)}); remove it, and it is made anew") from None
        if self.appearance is not None:
            tensors["appearance"] = self.appearance[item.video].expand(len(tensors["owner"]), -1, -1)
        return CachedClip(**tensors, objects=tuple(self.split.videos[item.video].objects))

    def batch(self, chosen: Sequence[int], seeds: Sequence[tuple[int, ...]] = ()) -> ClipBatch:
        """The sentences with these indices, whose clips have one length, as a batch."""
        items = [self.split.expressions[i] for i in chosen]
        clips = [self[item] for item in items]
        _, targets = video_targets(chosen, items, [clip.objects for clip in clips], [clip.truth for clip in clips])
        most = max(clip.owner.shape[1] for clip in clips)

        def stacked(kind: str, fill: float = 0) -> Tensor | None:
            """Of all clips (B, T, ...), padded to one number of candidates; None where clips have none of it."""
            values = [getattr(clip, kind) for clip in clips]
            if values[0] is None:
                return None
            if kind not in ("camera", "sure"):
                values = [_padded(value, most, fill) for value in values]
            whole = torch.stack(values)
            return whole.float() if whole.is_floating_point() else whole

        found = {kind: stacked(kind) for kind in CANDIDATES}
        masks, owner = stacked("mask_logits", -SURE), stacked("owner", -1)
        assert masks is not None
        assert owner is not None
        frames = torch.ones(owner.shape[:2], dtype=torch.bool)
        return ClipBatch(
            self.tokenizer([item.text for item in items]),
            Candidates(frames, **found, linked=found["present"] is not None),
            masks,
            owner.long(),
            targets,
            tuple(map(expression_name, items)),
            seeds,
        )


def _padded(value: Tensor, count: int, fill: float) -> Tensor:
    """(T, N, ...) with `count` candidates."""
    missing = value.new_full((len(value), count - value.shape[1], *value.shape[2:]), fill)
    return torch.cat([value, missing], 1)


@torch.inference_mode()
def perceive_clip(model: DsHmp, split: Split, name: str, text: TextFeatures) -> list[dict[str, Tensor]]:
    """Static perception of one clip under each of E sentences, its masks on the grid."""
    config, frames = model.config, split.frames(name)
    size, length = frames[0].shape[:2], len(frames)
    images, truth = prepare_frames(frames, config.input), _true_masks(split, name, size)
    state = model.encode(images, text)
    clips = []
    for start in range(0, len(state.tokens), length):
        part = slice(start, start + length)
        logits = torch.einsum("fnc,fchw->fnhw", state.mask_embed[part], state.mask_features[part])
        masks = output_masks(input_masks(logits, size, config.input), size)  # (T, N, H, W)
        owner, small = _owner(masks > 0, truth), F.adaptive_avg_pool2d(masks, GRID)
        said = state.tokens[part], state.logits[part], logits
        found = clip_candidates(images, input_size(size, config.input), *said, config)
        if config.motion.geometry:
            order = found.order()
            # trajectories that are never there are left out: half of them, and nothing depends on them
            used = found.in_order(order).seen[0].any(0)
            order = order[..., used] if used.any() else order[..., :1]
            found = found.in_order(order)
            owner = owner.gather(1, order[0]).masked_fill(~found.seen[0], -1)
            small = gather(small.flatten(2), order[0]).unflatten(2, GRID)
        clips.append(_packed(small, owner, _share(truth), found.each(lambda value: value[0])))
    return clips


@torch.inference_mode()
def mask_candidates(model: DsHmp, split: Split, name: str, tracks: Path | None = None) -> dict[str, Tensor]:
    """Candidates of a clip from masks alone, without tokens, one slot each: the true masks of all objects or, of the
    folder `tracks`, what the file of this video holds. Pictures are read for the camera's motion alone, one by one, and
    masks object by object: of large frames all would not fit in memory."""
    video, config = split.videos[name], model.config.input
    annotations, places = [item["anno_id"] for item in video.objects.values()], range(len(video.frames))
    size = mask_size(split, name, annotations)
    truth, share = _on_grids((split.masks(name, [each], places, size)[0] for each in annotations), size)
    inside, small = truth, share
    if tracks is not None:
        inside, small = _on_grids(_made_elsewhere(tracks / f"{name}.json", video, size), size)
    inside = inside.transpose(0, 1)  # (T, N, h, w)
    present = inside.flatten(2).sum(2) >= LEAST
    owner = torch.arange(len(truth)).expand(present.shape) if tracks is None else _owner(inside, truth.float())
    camera = sure = None
    if model.config.motion.camera:
        frames = (prepare_frames(split.frames(name, [place]), config) for place in places)
        corners = followed(grey_frames(frame, input_size(size, config), config)[0] for frame in frames)
        camera, sure = camera_motion(list(corners), inside.any(1).numpy())
    geometry = mask_geometry(inside.flatten(0, 1)).unflatten(0, present.shape)
    logits = (2 * (small > 0.5).float() - 1).transpose(0, 1) * SURE
    whole = torch.ones(len(present), dtype=torch.bool)
    found = Candidates(whole, None, geometry, present, camera, sure)
    return _packed(logits, owner.masked_fill(~present, -1), share, found)


def _made_elsewhere(path: Path, video: Video, size: Size) -> Iterator[NDArray[np.bool_]]:
    """The masks (T, H, W) of each track of a file. Raises UserError where they are not of this video."""
    length = len(video.frames)
    source = VideoSource(video.name, None, *size, None, length, lambda _: iter(()), names=video.frames)
    for item in read_tracks(path, source).items:
        if (last := max(item.masks)) >= length:
            raise UserError(f"{path}: has a mask in frame {last}, video {video.name} has {length}; give those of it")
        masks = np.zeros((length, *size), bool)
        for place, mask in item.masks.items():
            masks[place] = decode([mask])[0]
        yield masks


def _on_grids(tracks: Iterable[NDArray[np.bool_]], size: Size) -> tuple[Tensor, Tensor]:
    """Masks (T, H, W) of each of N objects, frame by frame: on the picture's grid, (N, T, h, w) bool, and `_share` of
    it, (N, T, *GRID)."""
    grid, inside, share = grid_size(*size), [], []
    for masks in tracks:
        frames = [torch.from_numpy(mask)[None].float() for mask in masks]
        inside.append(torch.cat([masks_on_grid(each, grid) for each in frames]))
        share.append(torch.cat([_share(each) for each in frames]))
    return torch.stack(inside), torch.stack(share)


def read_appearance(folder: Path, split: Split, video: str, numbers: int) -> Tensor:
    """What a video's objects look like, (G, numbers), from the folder's file of that video. Raises UserError."""
    path = folder / f"{video}.safetensors"
    keys = [str(item["anno_id"]) for item in split.videos[video].objects.values()]
    if not path.is_file():
        raise UserError(f"{path}: missing; appearance needs a file per video, with a vector under each anno_id")
    found = load_tensors(path)
    for key in keys:
        if key not in found or found[key].shape != (numbers,):
            there = f"has shape {[*found[key].shape]}" if key in found else "is missing"
            raise UserError(f"{path}: the vector of annotation {key} {there}; model.motion.appearance asks [{numbers}]")
    return torch.stack([found[key].float() for key in keys])


def _packed(masks: Tensor, owner: Tensor, share: Tensor, found: Candidates) -> dict[str, Tensor]:
    """As it is kept: mask logits (T, N, *GRID), owner (T, N), the objects' share of each cell (G, T, *GRID), and the
    candidates of one clip, without the batch's dimension."""
    least = share.amax((2, 3), keepdim=True).clamp(max=0.5)  # small objects fill no cell by half
    kept = {"mask_logits": masks.half(), "owner": owner.to(torch.int8), "truth": (share >= least) & (share > 0)}
    kept |= {kind: value for kind in CANDIDATES if (value := getattr(found, kind)) is not None}
    kept |= {kind: kept[kind].half() for kind in ("tokens", "geometry") if kind in kept}
    return {kind: value.clone().contiguous() for kind, value in kept.items()}


def _true_masks(split: Split, name: str, size: tuple[int, int]) -> Tensor:
    """Of all objects of a video: (G, T, H, W) float32, 0 or 1."""
    video = split.videos[name]
    annotations = [item["anno_id"] for item in video.objects.values()]
    return torch.from_numpy(split.masks(name, annotations, range(len(video.frames)), size)).float()


def _share(truth: Tensor) -> Tensor:
    """(..., T, H, W) -> (..., T, *GRID), the share of each cell."""
    return F.adaptive_avg_pool2d(truth, GRID)


def _owner(masks: Tensor, truth: Tensor) -> Tensor:
    """The object of G, of masks (G, T, H, W), that each of N masks (T, N, H, W) bool has found: (T, N) long, or -1."""
    area = truth.transpose(0, 1).flatten(2)  # (T, G, H*W)
    inside = masks.flatten(2).float()  # (T, N, H*W)
    overlap = inside @ area.mT
    union = inside.sum(2)[:, :, None] + area.sum(2)[:, None] - overlap
    best = (overlap / union.clamp(min=1e-6)).max(2)
    return torch.where(best.values >= FOUND, best.indices, -1)


def _identity(model: DsHmp, tokenizer: TextTokenizer, split: Split, masks: bool | Path = False) -> str:
    """Tells apart everything that the tokens of a split depend on, data and grid included."""
    config = model.config
    settings: dict[str, Any] = {
        "input": to_dict(config.input),
        "grid": GRID,
        "geometry": [config.motion.geometry, FORMAT],
    }
    settings |= {"camera": config.motion.camera} if masks else {}
    if isinstance(masks, Path):
        settings["tracks"] = [digest(masks / f"{name}.json") for name in split.videos]
    settings |= {name: digest(split.folder / name) for name in ("meta_expressions.json", "mask_dict.json")}
    parts: tuple[str, ...] = ()
    if not masks:
        parts = ("perception", "language") if uses_language(model.perception) else ("perception",)
        sections = ("backbone", "pixel_decoder", "frame_decoder", *parts[1:])
        settings |= {name: to_dict(getattr(config, name)) for name in sections}
        settings |= {"tokenizer": tokenizer.identity()} if "language" in parts else {}
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in parts:
        for key, value in sorted(getattr(model, name).state_dict().items()):
            found.update(f"{name}.{key}".encode())
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
