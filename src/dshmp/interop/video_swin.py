"""Video-Swin as published, trained on Kinetics: a start for training our backbone."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dshmp.errors import UserError
from dshmp.interop.rows import LoadedPart, row
from dshmp.interop.safe_load import read_tensors
from dshmp.model.backbone import LanguageBackbone
from dshmp.model.video_swin import VideoSwinStage

_NAMES = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^downsamples\.(\d+)\.", r"stages.\1.downsample."),
    (r"^layers\.", "stages."),
    (r"\.attn\.relative_position_bias_table$", ".attention.position_bias"),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.output."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
)
_PATCH = "patch_embed.proj.weight"
_FRESH = {
    "norms": "Video-Swin has no norm after every stage",
    "fusions": "Video-Swin reads no words",
    "gates": "Video-Swin reads no words",
}
_PUBLISHED: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2), (3, 6, 12, 24)): "Video-Swin-T's weights",
    (96, (2, 2, 18, 2), (3, 6, 12, 24)): "Video-Swin-S's weights",
    (128, (2, 2, 18, 2), (4, 8, 16, 32)): "Video-Swin-B's weights",
}


def load_kinetics(backbone: LanguageBackbone, path: Path) -> list[LoadedPart]:
    """Start a Video-Swin backbone from a published checkpoint (PyTorch or safetensors).

    The first convolution takes two frames there and one here: its weights are summed over time, so that a frame seen
    twice gives what it gave. Language fusion and the norms of the stages' outputs stay as they are. The backbone is
    changed only if everything fits. For the sizes of T and B see `perception.video_swin.video_swin_stages`.

    Returns:
        What was loaded, what stays fresh, and what of the file was left out.

    Raises:
        UserError: not a Video-Swin checkpoint, or not of this backbone's sizes; the message says which to set.
    """
    if not isinstance(backbone.stages[0], VideoSwinStage):
        raise UserError(f"{path}: is for Video-Swin, the config asks for Swin; set backbone.temporal_window to 8")
    tensors = {key.removeprefix("backbone."): value for key, value in read_tensors(path).items()}
    if _PATCH not in tensors or tensors[_PATCH].ndim != 5:
        raise UserError(f"{path}: is not a Video-Swin checkpoint (no {_PATCH} with an axis of time)")
    names = {_renamed(key): key for key in tensors}
    theirs = {key: tensors[name].sum(dim=2) if name == _PATCH else tensors[name] for key, name in names.items()}
    own = backbone.state_dict()
    loaded = {}
    for key in own:
        if _part(key) in _FRESH:
            continue
        if key not in theirs:
            raise UserError(f"{path}: lacks {key}, which the config asks for{_hint(key, theirs, own)}")
        if theirs[key].shape != own[key].shape:
            raise UserError(
                f"{path}: {names[key]} has shape {list(tensors[names[key]].shape)}, the config asks for "
                f"{list(own[key].shape)} as {key}{_hint(key, theirs, own)}"
            )
        loaded[key] = theirs[key]
    left: dict[tuple[str, str], list[Tensor]] = {}
    for name in (name for key, name in names.items() if key not in loaded):
        place = _reason(name)
        if place is None:
            raise UserError(f"{path}: {name} has no place in the config's backbone{_hint(name, theirs, own)}")
        left.setdefault(place, []).append(tensors[name])
    backbone.load_state_dict(loaded, strict=False)
    rows = [row("backbone", loaded.values(), "loaded")]
    for reason in dict.fromkeys(_FRESH.values()):
        if fresh := [value for key, value in own.items() if _FRESH.get(_part(key)) == reason]:
            rows.append(row("backbone", fresh, "fresh", reason))
    rows += [row(part, items, "left out", why) for (part, why), items in left.items()]
    return rows


def _renamed(key: str) -> str:
    for old, new in _NAMES:
        key = re.sub(old, new, key)
    return key


def _part(key: str) -> str:
    return key.partition(".")[0]


def _reason(name: str) -> tuple[str, str] | None:
    """Part and reason of what is left out; None where it has no reason to be."""
    part = _part(name)
    if name.endswith("relative_position_index"):
        return "backbone", "computed anew"
    if part == "norm":
        return "backbone", "the norm before the classifier"
    return None if part in ("patch_embed", "layers", "downsamples") else (part, "not of the backbone")


def _hint(key: str, theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What to set where the file's architecture is another than the config's."""
    sizes = _sizes(theirs)
    if sizes != _sizes(own):
        return (
            f"; these are {_PUBLISHED.get(sizes, 'weights of another size')}: set backbone.embed_dim to {sizes[0]}, "
            f"depths to {list(sizes[1])}, num_heads to {list(sizes[2])}"
        )
    if key.endswith("position_bias") and key in theirs and theirs[key].ndim:
        rows = theirs[key].shape[0]  # (2t - 1)(2w - 1)^2, with w = 7 in all published weights
        for window in (7, *range(32, 0, -1)):
            frames, rest = divmod(rows, (2 * window - 1) ** 2)
            if frames % 2 and not rest:
                return f"; set backbone.window_size to {window} and temporal_window to {(frames + 1) // 2}"
    return ""


def _sizes(weights: Mapping[str, Tensor]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """embed_dim, depths and num_heads, as the names and shapes tell."""
    heads: dict[int, list[int]] = {}
    for key, value in weights.items():
        if table := re.fullmatch(r"stages\.(\d+)\.blocks\.\d+\.attention\.position_bias", key):
            heads.setdefault(int(table[1]), []).append(value.shape[-1] if value.ndim else 0)
    stages = [heads[stage] for stage in sorted(heads)]
    return (
        weights["embeddings.patch_embeddings.projection.weight"].shape[0],
        tuple(len(blocks) for blocks in stages),
        tuple(blocks[0] for blocks in stages),
    )
