"""The training loop: `dshmp train RECIPE`.

A run's folder holds recipe.yaml (resolved), run.json (what it was made with), metrics.jsonl, pictures/,
checkpoints/ (everything needed to go on where the run stopped) and model/ and best/ (the weights, ready for
`--model`).
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from dshmp.checkpoint import CONFIG, TOKENIZER, WEIGHTS, build_model, find_model, load_config, load_tensors
from dshmp.data.base import Split
from dshmp.data.mevis import MevisSplit
from dshmp.data.registry import open_split
from dshmp.device import find_device
from dshmp.errors import UserError
from dshmp.files import output_folder
from dshmp.interop.mask2former import initialise
from dshmp.interop.rows import report
from dshmp.interop.video_swin import load_kinetics
from dshmp.model.dshmp import DsHmp
from dshmp.model.frame_decoder import disable_language, uses_language
from dshmp.model.text import pretrained_encoder
from dshmp.model.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from dshmp.recipes import find_recipe
from dshmp.training.cache import TokenCache
from dshmp.training.checkpoints import disk_full_guard
from dshmp.training.engine import Task, Trainer, processes
from dshmp.training.language_task import LanguageTask
from dshmp.training.motion_task import CachedSplit, MotionTask
from dshmp.training.perception_task import PerceptionTask
from dshmp.training.recipe import Recipe, check_run_folder, load_recipe, never_reached, save_recipe
from dshmp.training.whole_task import WholeTask

log = logging.getLogger("dshmp")


def run(
    config: str | Path, overrides: list[str] | None = None, out: Path | None = None, device: str | torch.device = "auto"
) -> Path:
    """Train as the recipe says; a run that was stopped goes on from its last checkpoint. Returns its folder.

    `config` is a recipe's file or a packaged one's name. With several processes (accelerate, torchrun) each learns from
    its part of every batch.
    """
    path = find_recipe(config)
    recipe, place = load_recipe(path, overrides), find_device(device)
    folder = output_folder(out or Path("runs") / path.stem)
    check_run_folder(folder, recipe, longer=True)
    for line in never_reached(recipe):
        log.warning("%s", line)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    splits = [open_split(name, Path(source.root), source.split) for name, source in recipe.data.items()]
    model, tokenizer = start_model(recipe, splits)
    with processes(recipe, place) as accelerator:
        with accelerator.main_process_first():  # what is cached is made once
            task = task_for(recipe, model, tokenizer, splits, folder)
        if accelerator.is_main_process:
            with disk_full_guard(folder):
                save_recipe(folder, recipe)
        accelerator.wait_for_everyone()
        Trainer(recipe, model, tokenizer, task, folder, accelerator).train()
    return folder


def start_model(recipe: Recipe, splits: Sequence[Split]) -> tuple[DsHmp, TextTokenizer]:
    """The model that training starts from: fresh, or with the weights of `init` under the recipe's switches."""
    return _fresh_model(recipe, splits) if recipe.init is None else _continued_model(recipe, recipe.init)


def _fresh_model(recipe: Recipe, splits: Sequence[Split]) -> tuple[DsHmp, TextTokenizer]:
    """Random weights, but for published ones; the tokeniser is the text encoder's or learned from the split."""
    model, language = build_model(recipe.model, "the recipe's model"), recipe.model.language
    if recipe.task == "perception":
        try:
            disable_language(model.perception)
        except ValueError as error:
            raise UserError(f"task perception needs a model that can be language-agnostic at first: {error}") from None
    if recipe.mask2former is not None:
        report(initialise(model, recipe.mask2former), f"mask2former: {recipe.mask2former}")
    if recipe.video_swin is not None:
        report(load_kinetics(model.perception.backbone, Path(recipe.video_swin)), f"video_swin: {recipe.video_swin}")
    if recipe.text_encoder is not None:
        _take_encoder(model, recipe.text_encoder)
        return model, TextTokenizer(recipe.model, load_tokenizer(recipe.text_encoder))
    if language.frozen:
        raise UserError(
            "model.language.frozen keeps the text encoder as it is, but nothing gives its weights: name RoBERTa's "
            "as text_encoder, or an earlier run as init, or set model.language.frozen to false"
        )
    size = min(recipe.vocabulary, language.encoder["vocab_size"])
    tokenizer = train_tokenizer([item.text.lower() for split in splits for item in split.expressions], size)
    return model, TextTokenizer(recipe.model, tokenizer)


def _take_encoder(model: DsHmp, source: str) -> None:
    """Published weights into the text encoder of a fresh model."""
    state, own = pretrained_encoder(source).state_dict(), model.language.encoder.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise UserError(f"{source}: lacks {missing[0]}, which model.language.encoder asks for; mend its layers")
    for key in own:
        if state[key].shape != own[key].shape:
            raise UserError(
                f"{source}: {key} has shape {list(state[key].shape)}, model.language.encoder asks "
                f"{list(own[key].shape)}; give it the numbers of the weights' config.json"
            )
    model.language.encoder.load_state_dict({key: state[key] for key in own})


def _continued_model(recipe: Recipe, init: str) -> tuple[DsHmp, TextTokenizer]:
    """The weights of `init`, or the parts of it that the recipe takes.

    What `init` lacks under the recipe's config starts fresh; what has another shape is an error.
    """
    for key in ("text_encoder", "mask2former", "video_swin"):
        if getattr(recipe, key) is not None:
            raise UserError(f"{key} is for a model that starts fresh, but init gives this one's; leave one out")
    folder = find_model(init)
    load_config(folder / CONFIG)  # what is wrong with it is said here
    tokenizer = load_tokenizer(folder / TOKENIZER)
    model = build_model(recipe.model, "the recipe's model")
    parts = [name for name, _ in model.named_children()]
    for part in recipe.take:
        if part not in parts:
            raise UserError(f"take: {part!r} is no part of the model; known: {', '.join(parts)}")
    own = model.state_dict()
    taken = tuple(f"{part}." for part in recipe.take or parts)
    state = {
        key: value for key, value in load_tensors(folder / WEIGHTS).items() if key.startswith(taken) and key in own
    }
    for key, value in state.items():
        if own[key].shape != value.shape:
            raise UserError(f"{folder}: {key} has shape {list(value.shape)}, the recipe asks {list(own[key].shape)}")
    model.load_state_dict(state, strict=False)
    return model, TextTokenizer(recipe.model, tokenizer)


def task_for(recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, splits: Sequence[Split], run: Path) -> Task:
    """The recipe's task; its sentences are parsed and its object tokens cached first where it needs them.

    Raises UserError where the task cannot learn this model or from these data.
    """
    if hidden := [split for split in splits if not split.has_truth]:
        raise UserError(f"{hidden[0].folder}: its masks are not public, so nothing can be learned; name another split")
    cache = Path(recipe.cache) if recipe.cache else run / "cache"

    def keep(splits: Iterable[Split]) -> None:
        tokenizer.keep((item.text for split in splits for item in split.expressions), cache)

    if recipe.task == "whole":
        looked_at = [
            (name, open_split(name, Path(source.root), source.validation))
            for name, source in recipe.data.items()
            if source.validation is not None
        ]
        if hidden := [split for _, split in looked_at if not split.has_truth]:
            raise UserError(f"{hidden[0].folder}: its masks are not public; name another split as validation")
        keep([*splits, *(split for _, split in looked_at)])
        weights = [source.weight for source in recipe.data.values()]
        return WholeTask(recipe, model, tokenizer, splits, weights, looked_at)
    if len(splits) > 1:
        raise UserError(f"task {recipe.task} learns from one data set, not from {', '.join(recipe.data)}")
    (split,), (source,) = splits, recipe.data.values()
    if recipe.task == "language":
        keep(splits)
        return LanguageTask(recipe, model, tokenizer, split)
    _check_objects(split, recipe)
    if recipe.task == "perception":
        return PerceptionTask(recipe, model, split)
    if model.config.readout.masks != "trajectories":
        raise UserError(
            "task motion learns from object tokens alone: it needs readout.masks: trajectories; train task: whole "
            "otherwise"
        )
    if recipe.init is None:
        raise UserError("task motion keeps perception as it is: name a run of task perception or language as init")
    if uses_language(model.perception) and recipe.take and not {"language", "perception"} <= set(recipe.take):
        raise UserError(
            f"{recipe.init}: task motion keeps perception as it is, and the language it uses; take both, or give a "
            "run of task perception as init, whose perception is language-agnostic"
        )
    if (
        model.perception.frame_decoder.direct
        and load_config(find_model(recipe.init) / CONFIG).language.cues != "direct"
    ):
        raise UserError(
            f"{recipe.init}: task motion keeps perception as it is, whose static queries are learned ones here; "
            "language.cues: direct needs an init that was trained so, or task: whole"
        )
    if source.validation is None:
        raise UserError(
            "task motion looks at a held-out split on the way: name it, such as data.mevis.validation=valid_u"
        )
    held_out_split = MevisSplit(Path(source.root), source.validation)  # opened before the cache, which takes a while
    _check_objects(held_out_split, recipe)
    keep((split, held_out_split))
    training, held_out = (
        CachedSplit(each, TokenCache.build(model, tokenizer, each, cache), tokenizer)
        for each in (split, held_out_split)
    )
    return MotionTask(recipe, model, training, held_out)


def _check_objects(split: Split, recipe: Recipe) -> None:
    if not all(video.objects for video in split.videos.values()):
        raise UserError(
            f"{split.folder}: does not list all objects of its videos, as a synthetic data set does, which task "
            f"{recipe.task} needs; train task: whole on it"
        )
