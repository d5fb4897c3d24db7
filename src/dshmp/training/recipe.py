"""The training recipe: one YAML file, strictly typed, that says everything about a run."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field

from dshmp.card import Card
from dshmp.checkpoint import CONFIG, check_model_folder, find_model, load_config
from dshmp.common.assignments import assign, merge, parse_yaml
from dshmp.common.errors import UserError
from dshmp.common.files import atomic_write, destination, is_vacant, read_settings, reason
from dshmp.config import Count, ModelConfig, Positive, from_dict, nearest, to_dict
from dshmp.data.registry import DATASETS
from dshmp.data.transforms import Augmentation
from dshmp.recipes import find_recipe

Whole = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]


def _place(name: str) -> str:
    """What may be the name of a file, whether there is one or not. Raises ValueError."""
    if "\0" in name or len(name) > 4000 or max(map(len, os.fsencode(name).split(b"/"))) > 255:
        raise ValueError(f"{name[:40]!r} cannot be the name of a file")
    return name


Place = Annotated[str, AfterValidator(_place)]
RECIPE = "recipe.yaml"
MARK = "# The recipe of this run, all values resolved; written by dshmp train.\n"  # a folder with it is a run's
ORIGINS = ("init", "text_encoder", "mask2former", "video_swin")  # keys that say where weights come from


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the losses (sections 3.3 and 3.4); the last four are ours."""

    label: Weight = 2.0
    mask: Weight = 5.0
    dice: Weight = 5.0
    similarity: Weight = 1.0
    contrast: Weight = 0.5  # lambda of Eq. 9's term
    static: Weight = 1.0  # does every object token fit the static words? Where the data set tells
    trajectory: Weight = 2.0  # does every object token belong to an object that is meant?
    probe: Weight = 1.0  # linear heads name what the data set knows of objects and sentences (`training.pretraining`)
    link: Weight = 0.0
    """Perception task only: tokens of one object in neighbouring frames, drawn in pairs where this is above 0, shall be
    the most similar, which is what Eq. 3 relies on."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set to learn from."""

    root: Place
    split: Place = "train"
    validation: Place | None = None  # split for the figures on the way; none are taken without
    weight: Positive = 1.0  # how often a batch comes from it, against the weights of the others


def _known(data: dict[str, Source]) -> dict[str, Source]:
    if not data:
        raise ValueError(f"names no data set; known: {', '.join(DATASETS)}")
    if unknown := [name for name in data if name not in DATASETS]:
        raise ValueError(f"{unknown[0]!r} is no data set known here; {nearest(unknown[0], DATASETS)}")
    return data


@dataclass(frozen=True, kw_only=True)
class About:
    """What a recipe is for and what it needs of a GPU, as `dshmp configs` shows it; training does not read it."""

    reproduces: str  # tables and rows
    paper: str | None = None  # the paper's figures there
    then: tuple[str, ...] = ()  # the commands that come next, such as the evaluation on another data set
    memory_gb: float | None = None
    """Activations of one clip, GB in float32 (`benchmarks/memory.py`), at the largest size of a 16:9 video or 4:3
    image."""
    tflop: float | None = None  # floating-point operations of its forward pass, in 1e12


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run runs. Nothing here changes what is learned, so a run may go on with other values."""

    micro_batch: Count | None = None  # samples that a process learns from at once; all of the step's by default
    checkpointing: bool = False  # compute activations again instead of keeping them: less memory, a third slower
    bank: Literal["device", "host"] = "device"  # where the memory bank is; on the host it takes no GPU memory
    threads: Whole = 0  # of the CPU; 0 leaves it to PyTorch
    workers: Count = 2  # threads that read the coming steps' data, one step each
    log_every: Count = 20
    validate_every: Count = 500
    validation_videos: Count = 4  # of each held-out split of the whole task, evenly spread over it
    best: str | None = None  # a figure of validation: the model of its highest value is kept in best/
    checkpoint_every: Count = 200
    keep: Count = 2  # checkpoints, the newest; where one is damaged, the one before takes its place
    patience: Count = 10
    """Steps in a row without a finite gradient, each left out, after which a run stops. In float16 those with a scale
    of the losses above 1 do not count: it falls then."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()  # each needs its package
    cache: Place | None = None  # folder for parsed sentences and the motion task's object tokens; None: in the run's


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `dshmp train` reads.

    The tasks follow the paper's order, with synthetic data in place of what its parts were pre-trained on: `perception`
    (COCO's) learns to find every object in single frames, `language` (RoBERTa's) learns to name a sentence's words and
    its motion, `motion` learns the motion part on cached object tokens of frozen perception, and `whole` trains
    everything on clips with the paper's losses.
    """

    task: Literal["perception", "language", "motion", "whole"]
    data: Annotated[dict[str, Source], AfterValidator(_known)]
    """By the names of `dshmp data`: mevis (a synthetic data set too), ref-youtube-vos, a2d, refcoco ... Tasks other
    than `whole` learn from one, which lists all objects of its videos: a synthetic data set."""
    init: Place | None = None  # folder of an earlier run or model whose weights this one starts from
    take: tuple[str, ...] = ()  # of language, perception, motion, decoder: the parts taken from `init`; all by default
    text_encoder: Place | None = None
    """For a model that starts fresh, the published weights of a text encoder (RoBERTa, BERT, MiniLM, ModernBERT ...): a
    folder, or an id on the Hugging Face hub. One of another kind than `model.language.encoder` takes its place."""
    mask2former: Place | None = None
    """Likewise Mask2Former's (COCO instances) for static perception: its .pkl file, the folder of transformers' model,
    or that model's id on the Hugging Face hub."""
    video_swin: Place | None = None  # likewise Video-Swin's (Kinetics) for the backbone: its .pth file
    model: ModelConfig = field(default_factory=ModelConfig)
    """Of a model that starts fresh, and the switches of one that does not: shapes must agree. A recipe with `init` that
    says nothing of the model takes all its numbers from there."""
    steps: Count = 50_000
    batch: Count = 8  # clips of a step, all processes together; frames in task perception, sentences in task language
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of perception; what `model.release.exact` keeps exact stays so. float16 needs a GPU."""
    candidates: Literal["perception", "truth", "tracks"] = "perception"
    """Of the motion task: what static perception finds, or, without tokens, the true masks of all objects or tracks
    made elsewhere."""
    tracks: Place | None = None
    """For `candidates: tracks`, a folder with a file <video>.json per video (YouTube-VIS or COCO video)."""
    appearance: Place | None = None
    """For `candidates: truth` and `model.motion.appearance`, what each object looks like: a folder with a file
    <video>.safetensors per video, which holds under each annotation's id its vector (A,)."""
    clip_frames: Count = 16  # longest clip of the whole task without augmentation, a random stretch of the video
    sample: Literal["videos", "expressions"] = "videos"
    """What an epoch of the whole task goes through: `videos`, each time with some of its sentences, or (release)
    `expressions`, each with a clip of its own."""
    sentences: Count = 4  # drawn for each clip of the whole task with `sample: videos`; they share reading its frames
    perceptions: Count = 1
    """How many of the frame decoder's last layers the motion part of the whole task learns from (release: 3); in use it
    reads the last one."""
    augmentation: Augmentation | None = None  # of the whole task; none takes clips as they are
    learning_rate: Positive = 5e-5
    backbone_factor: Weight = 0.1  # the backbone learns this much slower (release: 0.1)
    warmup: Whole = 100
    decay: Literal["cosine", "steps"] = "steps"
    """`steps`: a tenth from 8/11 of the run on, a hundredth from 10/11 on, as the release's 40,000 and 50,000 of 55,000
    steps; of the paper's 50,000 these are 36,364 and 45,455."""
    weight_decay: Weight = 0.05
    clip_norm: Positive = 0.01  # the gradient norm of the whole model is cut to this
    points: Count = 12_544  # that a mask is compared on, per frame
    no_object: Weight = 0.1
    weights: LossWeights = field(default_factory=LossWeights)
    negatives: Whole = 100  # of Eq. 9; 0 turns contrastive learning off (Tables 1 and 2c)
    contrast_start: Whole = 10_000
    bank_delta: Annotated[float, Field(ge=0, lt=1)] = 0.2
    temperature: Positive = 0.07
    seed: Whole = 0
    vocabulary: Count = 1024  # size of the byte-pair vocabulary learned where no tokeniser is at hand
    run: RunConfig = field(default_factory=RunConfig)
    about: About | None = field(default=None, compare=False)  # two recipes that differ in it alone are the same


def load_recipe(path: Path, overrides: list[str] | None = None, rows: Sequence[Path] = ()) -> Recipe:
    """Read a recipe; `overrides` are `key=value` with dots for nested keys, values in YAML.

    A key `base` names the recipe that this one completes: a file beside it or a packaged one. `rows` are recipes too:
    what each says itself, its base left aside, is laid over all that, `about` in place of the other's. UserError.
    """
    values, where = _read(path), path.name
    described = "model" in values
    assign(values, overrides or [])
    for row in rows:
        where += f" with {row.name}"
        values["about"] = None
        merge(values, {key: value for key, value in _own(row).items() if key != "base"})
    if not described and isinstance(values.get("init"), str):
        first = load_config(find_model(values["init"]) / CONFIG).model
        values["model"] = merge(to_dict(first), values.get("model", {}))
    return from_dict(Recipe, values, where)


def recipes(folder: Path) -> dict[Path, Recipe]:
    """The recipes in a folder and below that say what they are for (`about`), by name; others are their bases. Raises
    UserError where there are none, and for a wrong one."""
    found = {path: load_recipe(path) for path in sorted(folder.glob("**/*.yaml")) if _read(path).get("about")}
    if not found:
        raise UserError(f"{folder}: no recipe in it says what it is about; leave it out for the packaged ones")
    return found


def never_reached(recipe: Recipe) -> list[str]:
    """What a short run does not come to, a line each: a trial of a few steps is warned, not refused."""
    contrasts = recipe.task in ("motion", "whole") and recipe.negatives and recipe.weights.contrast
    late = [f"warmup: {recipe.warmup}"] if recipe.warmup > recipe.steps else []
    late += [f"contrast_start: {recipe.contrast_start}"] if contrasts and recipe.contrast_start > recipe.steps else []
    return [f"{key} steps are more than the run has ({recipe.steps})" for key in late]


def check_run_folder(folder: Path, recipe: Recipe, longer: bool = False) -> None:
    """Raises UserError unless `folder` is new, empty, or of a run that may go on with this recipe; if it may become
    `longer`, also with more steps, by whose number the learning rate falls from then on."""
    stored = destination(folder, folder=True) / RECIPE
    if not stored.parent.exists() or is_vacant(stored.parent):
        return
    if not stored.is_file() or not stored.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise UserError(f"{folder}: is not empty, and no run of dshmp; name another folder with --out")
    for name in ("model", "best"):  # which the run replaces when it has learned for hours
        check_model_folder(folder / name)
    known = load_recipe(stored)
    steps = max(known.steps, recipe.steps) if longer else known.steps
    if replace(known, run=recipe.run, steps=steps) != recipe:
        raise UserError(f"{folder}: holds a run of another recipe; name another folder with --out or remove it")


def save_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the resolved recipe into a run's folder, where it says so not yet."""
    path = folder / RECIPE
    if not path.is_file() or load_recipe(path) != recipe:
        with atomic_write(path) as part:
            part.write_text(MARK + yaml.safe_dump(to_dict(recipe), sort_keys=False), encoding="utf-8")


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe, its bases beneath them; `above`: the recipes that it is a base of."""
    values = _own(path)
    if path.resolve() in above:
        raise UserError(f"{path}: is its own base")
    if (base := values.pop("base", None)) is None:
        return values
    try:
        file = path.parent / _place(str(base))
    except ValueError as error:
        raise UserError(f"{path}: its base is none ({error})") from None
    if file.suffix != ".yaml" and not file.exists():
        file = find_recipe(str(base))
    return merge(_read(file, (*above, path.resolve())), values)


def _own(path: Path) -> dict[str, Any]:
    """What a recipe says itself, the name of its base included."""
    try:
        values = parse_yaml(read_settings(path), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a recipe ({reason(error)})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of recipe keys")
    return values


def trained_card(recipe: Recipe, name: str, step: int) -> Card:
    """The card of a model that a run called `name` has trained for `step` steps. The model's numbers stand beside it in
    config.json; absolute paths keep their last part only, since the rest is of one machine."""
    values = {key: value for key, value in to_dict(recipe).items() if key not in ("model", "run", "about")}
    places = [(values, key) for key in (*ORIGINS, "tracks", "appearance")]
    for place, key in [*((source, "root") for source in values["data"].values()), *places]:
        if place[key] and Path(place[key]).expanduser().is_absolute():
            place[key] = Path(place[key]).name
    data = []
    for key, source in sorted(recipe.data.items()):
        made = " (made by dshmp synthetic make)" if Path(source.root, "synthetic.json").is_file() else ""
        data.append(f"{key} ({values['data'][key]['root']}), split {source.split}{made}")
    origin = "random weights, trained" if recipe.init is None else f"training continued from {values['init']}"
    origin += f" (of which {', '.join(recipe.take)})" if recipe.init and recipe.take else ""
    origin += f"; text encoder from {values['text_encoder']}" if recipe.text_encoder else ""
    return Card(name=name, source=origin, data="; ".join(data), recipe={**values, "trained_steps": step})
