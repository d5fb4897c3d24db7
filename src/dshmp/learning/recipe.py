"""The training recipe: one YAML file, strictly typed, that says everything about a run."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from dshmp.config import ModelConfig, from_dict, to_dict
from dshmp.data.augment import Augmentation
from dshmp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the losses (equations of section 3.3 and 3.4)."""

    label: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    similarity: float = 1.0
    contrast: float = 0.5
    """lambda of Eq. 9's term."""
    trajectory: float = 2.0
    """Ours: every object token is asked whether its own object is meant."""
    probe: float = 1.0
    """Ours: what the data set names of objects and sentences, told by linear heads (`dshmp.learning.probe`)."""
    link: float = 0.0
    """Ours, perception stage only: tokens of one object in neighbouring frames shall be the most similar, which is
    what Eq. 3 relies on. Above 0 the stage draws pairs of neighbouring frames."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set to learn from."""

    root: str
    """Its folder."""
    split: str = "train"
    validation: str | None = None
    """Split for the figures on the way; none are taken without."""
    weight: float = 1.0
    """How often a batch comes from it, against the weights of the others."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `dshmp train` reads.

    The stages follow the paper's order, the world in place of what its parts were pre-trained on: `perception`
    (COCO's) learns to find every object in single frames, `language` (RoBERTa's) learns to tell a sentence's words
    and what motion it asks for, `motion` learns the motion part on cached object tokens of frozen perception, and
    `whole` trains everything on clips with the paper's losses.
    """

    stage: Literal["perception", "language", "motion", "whole"]
    data: dict[str, Source]
    """By the names of `dshmp data`: mevis (a generated world too), ref-youtube-vos, a2d, refcoco ... Stages other than
    `whole` learn from one, which lists all objects of its videos: a generated world."""
    init: str | None = None
    """Folder of an earlier run or model whose weights this one starts from."""
    take: tuple[str, ...] = ()
    """Parts taken from `init` (language, perception, motion, decoder); all by default, the others start fresh."""
    text_encoder: str | None = None
    """RoBERTa's published weights for a model that starts fresh: a folder, or an id on the Hugging Face hub."""
    mask2former: str | None = None
    """Mask2Former's published weights (COCO instances, as in the release) for the static perception of a model that
    starts fresh: its .pkl file, the folder of transformers' model, or that model's id on the Hugging Face hub."""
    video_swin: str | None = None
    """Video-Swin's published weights (Kinetics) for the backbone of a model that starts fresh: its .pth file."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Of a model that starts fresh, and the switches of one that does not: shapes must agree."""
    steps: int = 50_000
    batch: int = 8
    clip_frames: int = 16
    """Longest clip of the whole stage without augmentation; a longer video gives a random stretch of it."""
    augmentation: Augmentation | None = None
    """Of the whole stage: which frames are drawn, scales, crops, flips ...; none takes clips as they are."""
    learning_rate: float = 5e-5
    backbone_factor: float = 0.1
    """The backbone learns this much slower (release: 0.1)."""
    warmup: int = 100
    decay: Literal["cosine", "steps"] = "steps"
    """`steps`: a tenth after 80 % of the run and again after the last tenth begins (release: 40 and 50 of 55)."""
    weight_decay: float = 0.05
    clip_norm: float = 0.01
    """Gradient norm of the whole model is cut to this."""
    points: int = 12_544
    """Points a mask is compared on, per frame."""
    no_object: float = 0.1
    weights: LossWeights = field(default_factory=LossWeights)
    negatives: int = 100
    """Negatives of Eq. 9; 0 turns contrastive learning off (Tables 1 and 2c)."""
    contrast_start: int = 10_000
    bank_delta: float = 0.2
    temperature: float = 0.07
    seed: int = 0
    threads: int = 0
    """CPU threads; 0 leaves it to PyTorch."""
    log_every: int = 20
    validate_every: int = 500
    checkpoint_every: int = 200
    cache: str | None = None
    """Folder for the motion stage's object tokens; beside the run by default."""
    vocabulary: int = 1024
    """Size of the byte-pair vocabulary learned from the split's sentences where no tokeniser is at hand."""


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe; `overrides` are `key=value` with dots for nested keys, values in YAML.

    A key `base` names another recipe, relative to the file, that this one completes. Raises UserError.
    """
    values = _read(path)
    for item in overrides or []:
        key, found, text = item.partition("=")
        if not found:
            raise UserError(f"{item!r} is not of the form key=value")
        _merge(values, _nest(key.split("."), _parse(text, item)))
    recipe = from_dict(Recipe, values, path.name)
    for name in (
        "steps",
        "batch",
        "points",
        "clip_frames",
        "log_every",
        "validate_every",
        "checkpoint_every",
    ):
        if getattr(recipe, name) < 1:
            raise UserError(f"{path.name}.{name}: must be at least 1, found {getattr(recipe, name)}")
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False)


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe, its bases beneath them; `above`: the recipes that it is a base of."""
    if path.resolve() in above:
        raise UserError(f"{path}: is its own base")
    try:
        values = _parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe") from None
    except (IsADirectoryError, UnicodeDecodeError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read as a recipe ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of recipe keys")
    base = values.pop("base", None)
    if base is None:
        return values
    merged = _read(path.parent / str(base), (*above, path.resolve()))
    _merge(merged, values)
    return merged


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 does; PyYAML by itself asks for 1.0e-4."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{where}: is not valid YAML ({' '.join(str(error).split())})") from None


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nest(keys[1:], value)}


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
