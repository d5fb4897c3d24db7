"""Video-Swin as published, trained on Kinetics: a start for training our backbone."""

from pathlib import Path

from dshmp.common.errors import UserError
from dshmp.interop.keymap import SWIN_BLOCK, LoadedPart, NameTable, Told, grouped, left_out, load_weights
from dshmp.interop.safe_load import read_tensors
from dshmp.model.backbone import LanguageBackbone

_NAMES = NameTable(f"""
patch_embed.{{proj,norm}}.@ = embeddings.{{projection,norm}}.@
downsamples.*.** = stages.*.downsample.**
[layers.*.blocks.*. = stages.*.blocks.*.]
{SWIN_BLOCK}
[layers.*. = stages.*.]
** = **
[]
norm.@ ! the norm before the classifier
""")
_PATCH = "patch_embed.proj.weight"
_FRESH = {"norms": "Video-Swin has no norm after every stage"}
_FRESH |= dict.fromkeys(("fusions", "gates"), "Video-Swin reads no words")
_SIZES = (
    "set the backbone's embed_dim, depths and num_heads: Video-Swin-T has 96, [2, 2, 6, 2], [3, 6, 12, 24], S depths "
    "[2, 2, 18, 2], B 128, [2, 2, 18, 2], [4, 8, 16, 32]; published weights have window_size 7, temporal_window 8"
)


def load_kinetics(backbone: LanguageBackbone, path: Path) -> tuple[LoadedPart, ...]:
    """Start a Video-Swin backbone from a published checkpoint (PyTorch or safetensors).

    The first convolution takes two frames there and one here: its weights are summed over time, so that a frame seen
    twice gives what it gave. Language fusion and the norms of the stages' outputs stay as they are. Where not
    everything fits the backbone stays unchanged, and a UserError says what to set.
    """
    if not backbone.video:
        raise UserError(f"{path}: is for Video-Swin, the config asks for Swin; set backbone.temporal_window to 8")
    theirs = {key.removeprefix("backbone."): value for key, value in read_tensors(path).items()}
    if _PATCH not in theirs or theirs[_PATCH].ndim != 5:
        raise UserError(f"{path}: is not a Video-Swin checkpoint (no {_PATCH} with an axis of time)")
    theirs[_PATCH] = theirs[_PATCH].sum(dim=2)
    weights, rest = _NAMES.to_right(theirs)
    told = load_weights(backbone, weights, lambda key: _FRESH.get(key.partition(".")[0]), path, _SIZES)
    ours: list[Told] = [("backbone", fate, why, value) for _, fate, why, value in told]
    return grouped([*ours, *left_out(rest, _NAMES, "not of the backbone")])
