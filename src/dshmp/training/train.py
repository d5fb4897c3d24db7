"""`dshmp train RECIPE`.

A run's folder holds recipe.yaml (resolved), run.json (what it was made with), metrics.jsonl, pictures/, checkpoints/
(everything needed to go on where the run stopped), and model/ and best/ (the weights, ready for `--model`).
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from dshmp.checkpoint import CONFIG, TOKENIZER, WEIGHTS, build_model, find_model, load_config, load_weights
from dshmp.common.device import find_device
from dshmp.common.errors import UserError
from dshmp.common.files import check_utf8, destination
from dshmp.config import EncoderConfig
from dshmp.data.base import Split
from dshmp.interop.keymap import check_match, report
from dshmp.interop.mask2former import initialise
from dshmp.interop.video_swin import load_kinetics
from dshmp.model.dshmp import DsHmp
from dshmp.model.text import pretrained_encoder
from dshmp.model.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from dshmp.recipes import find_recipe
from dshmp.training.engine import Trainer, processes
from dshmp.training.motion_task import MotionTask
from dshmp.training.pretraining import LanguageTask, PerceptionTask
from dshmp.training.recipe import ORIGINS, Recipe, check_run_folder, load_recipe, never_reached, save_recipe
from dshmp.training.task import Task, open_splits
from dshmp.training.whole_task import WholeTask

log = logging.getLogger("dshmp")
TASKS: dict[str, type[Task]] = {"perception": PerceptionTask, "language": LanguageTask}
TASKS |= {"motion": MotionTask, "whole": WholeTask}


def run(
    config: str | Path, overrides: list[str] | None = None, out: Path | None = None, device: str | torch.device = "auto"
) -> Path:
    """Train as a recipe (a file, or a packaged one's name) says; a stopped run goes on from its last checkpoint. Of
    several processes (accelerate, torchrun) each learns from its part of every batch. Returns the run's folder."""
    path = find_recipe(config)
    recipe, place = load_recipe(path, overrides), find_device(device)
    folder = check_utf8(destination(out or Path("runs") / path.stem, folder=True))
    check_run_folder(folder, recipe, longer=True)
    for line in never_reached(recipe):
        log.warning("%s", line)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    torch.manual_seed(recipe.seed)
    splits = open_splits(recipe)
    model, tokenizer = start_model(recipe, splits.values())
    with processes(recipe, place) as accelerator:
        with accelerator.main_process_first():  # what is cached is made once
            task = TASKS[recipe.task](recipe, model, tokenizer, splits)
            task.prepare(Path(recipe.run.cache or folder / "cache"))
        if accelerator.is_main_process:
            save_recipe(folder, recipe)
        accelerator.wait_for_everyone()
        Trainer(task, folder, accelerator).train()
    return folder


def start_model(recipe: Recipe, splits: Iterable[Split]) -> tuple[DsHmp, TextTokenizer]:
    """The model that training starts from: of `init`, or fresh. Then its weights are random but for published ones, and
    the tokeniser is the text encoder's or learned from the splits."""
    if recipe.init is not None:
        return _continued_model(recipe, recipe.init, splits)
    config, language = recipe.model, recipe.model.language
    state: dict[str, torch.Tensor] = {}
    if recipe.text_encoder is not None:
        published, state = pretrained_encoder(recipe.text_encoder)
        if not isinstance(published, type(language.encoder)) or language.encoder == EncoderConfig():
            config = replace(config, language=replace(language, encoder=published))
    model = build_model(config, "the recipe's model")
    if recipe.mask2former is not None:
        report(initialise(model, recipe.mask2former), f"mask2former: {recipe.mask2former}")
    if recipe.video_swin is not None:
        report(load_kinetics(model.perception.backbone, Path(recipe.video_swin)), f"video_swin: {recipe.video_swin}")
    if recipe.text_encoder is not None:
        encoder = model.language.encoder
        state = {key: value for key, value in state.items() if key in encoder.state_dict()}
        check_match(recipe.text_encoder, state, encoder.state_dict(), "it is no encoder as model.language.encoder says")
        encoder.load_state_dict(state)
        tokenizer = load_tokenizer(recipe.text_encoder)
        if (size := max(tokenizer.get_vocab().values()) + 1) > config.language.encoder.vocab_size:
            known = f"but its encoder {config.language.encoder.vocab_size}"
            raise UserError(
                f"{recipe.text_encoder}: its tokeniser has {size} tokens, {known}; they do not belong together"
            )
        return model, TextTokenizer(config, tokenizer)
    if language.frozen:
        missing = "keeps the text encoder as it is, but nothing gives its weights"
        raise UserError(f"model.language.frozen {missing}: set it to false, or name a text_encoder or an init")
    return model, TextTokenizer(recipe.model, _learned_tokenizer(recipe, splits))


def _learned_tokenizer(recipe: Recipe, splits: Iterable[Split]) -> Tokenizer:
    size = min(recipe.vocabulary, recipe.model.language.encoder.vocab_size)
    return train_tokenizer([item.text.lower() for split in splits for item in split.expressions], size)


def _continued_model(recipe: Recipe, init: str, splits: Iterable[Split]) -> tuple[DsHmp, TextTokenizer]:
    """The weights of `init`, or the parts of it that the recipe takes. What `init` lacks under the recipe's config
    starts fresh, as does the tokeniser of language that is not taken; what has another shape is an error."""
    for key in ORIGINS[1:]:
        if getattr(recipe, key) is not None:
            raise UserError(f"{key} is for a model that starts fresh, but init gives this one's; leave one out")
    folder = find_model(init)
    load_config(folder / CONFIG)  # what is wrong with it is said here
    fresh = recipe.take and "language" not in recipe.take
    tokenizer = _learned_tokenizer(recipe, splits) if fresh else load_tokenizer(folder / TOKENIZER)
    model = build_model(recipe.model, "the recipe's model")
    parts, own = dict(model.named_children()), model.state_dict()
    if unknown := [part for part in recipe.take if part not in parts]:
        raise UserError(f"take: {unknown[0]!r} is no part of the model; known: {', '.join(parts)}")
    taken = tuple(f"{part}." for part in recipe.take or parts)
    state = load_weights(folder)
    state = own | {key: value for key, value in state.items() if key.startswith(taken) and key in own}
    check_match(folder / WEIGHTS, state, own, "it does not fit the recipe's model")
    model.load_state_dict(state)
    return model, TextTokenizer(recipe.model, tokenizer)
