"""The training loop: `dshmp train RECIPE`.

A run's folder holds recipe.yaml (resolved), metrics.jsonl, checkpoint.safetensors (everything needed to go on
where the run stopped) and model/ (the weights, ready for `--model`).
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dshmp.card import trained_card
from dshmp.checkpoint import CONFIG, TOKENIZER, WEIGHTS, build_model, find_model, load_config, load_tensors, save_model
from dshmp.data.catalogue import open_split
from dshmp.data.dataset import Split
from dshmp.data.mevis import MevisSplit
from dshmp.device import find_device, to_device
from dshmp.errors import UserError
from dshmp.interop.mask2former import initialise
from dshmp.interop.rows import report
from dshmp.interop.video_swin import load_kinetics
from dshmp.language.encoder import TextTokenizer, load_tokenizer, pretrained_encoder, train_tokenizer
from dshmp.learning.cache import TokenCache
from dshmp.learning.language_stage import LanguageStage
from dshmp.learning.motion_stage import CachedSplit, MotionStage
from dshmp.learning.perception_stage import PerceptionStage
from dshmp.learning.recipe import Recipe, dump_recipe, load_recipe
from dshmp.learning.whole_stage import WholeStage
from dshmp.model import DsHmp
from dshmp.perception.frame_decoder import hears_language, mute_language


class Stage(Protocol):
    """What is learned from which data. A batch is a function of the recipe and the step alone."""

    @property
    def modules(self) -> nn.ModuleDict:
        """What is learned or kept beside the model: in checkpoints, not in the model that is saved."""

    def batch(self, step: int) -> Any:
        """The data of a step; called in another thread."""

    def losses(self, batch: Any, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted losses, whose sum is minimised."""

    def validate(self) -> dict[str, float]:
        """Figures of the held-out split, or none."""


def run(
    config: Path, overrides: list[str] | None = None, out: Path | None = None, device: str | torch.device = "auto"
) -> Path:
    """Train as the recipe says; a run that was stopped goes on from its last checkpoint. Returns its folder."""
    recipe, place = load_recipe(config, overrides), find_device(device)
    folder = out or Path("runs") / config.stem
    stored = folder / "recipe.yaml"
    if stored.exists() and load_recipe(stored) != recipe:
        raise UserError(f"{folder}: holds a run of another recipe; name another folder with --out or remove it")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    splits = [open_split(name, Path(source.root), source.split) for name, source in recipe.data.items()]
    model, tokenizer = start_model(recipe, splits)
    stage = stage_for(recipe, model, tokenizer, splits, folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored.write_text(dump_recipe(recipe))
    Trainer(recipe, model, tokenizer, stage, folder, place).train()
    return folder


def start_model(recipe: Recipe, splits: Sequence[Split]) -> tuple[DsHmp, TextTokenizer]:
    """The model that training starts from: fresh, or with the weights of `init` under the recipe's switches."""
    return _fresh_model(recipe, splits) if recipe.init is None else _continued_model(recipe, recipe.init)


def _fresh_model(recipe: Recipe, splits: Sequence[Split]) -> tuple[DsHmp, TextTokenizer]:
    """Random weights, but for published ones; the tokeniser is the text encoder's or learned from the split."""
    model, language = build_model(recipe.model, "the recipe's model"), recipe.model.language
    if recipe.stage == "perception":
        try:
            mute_language(model.perception)
        except ValueError as error:
            raise UserError(f"stage perception needs a model that can be deaf at first: {error}") from None
    if recipe.mask2former is not None:
        report(initialise(model, recipe.mask2former), f"mask2former: {recipe.mask2former}")
    if recipe.video_swin is not None:
        report(load_kinetics(model.perception.backbone, Path(recipe.video_swin)), f"video_swin: {recipe.video_swin}")
    if recipe.text_encoder is not None:
        _take_encoder(model, recipe.text_encoder)
        return model, TextTokenizer(language, load_tokenizer(recipe.text_encoder))
    if language.frozen:
        raise UserError(
            "model.language.frozen keeps the text encoder as it is, but nothing gives its weights: name RoBERTa's "
            "as text_encoder, or an earlier run as init, or set model.language.frozen to false"
        )
    size = min(recipe.vocabulary, language.encoder["vocab_size"])
    tokenizer = train_tokenizer([item.text.lower() for split in splits for item in split.expressions], size)
    return model, TextTokenizer(language, tokenizer)


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
    return model, TextTokenizer(recipe.model.language, tokenizer)


def stage_for(recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, splits: Sequence[Split], run: Path) -> Stage:
    """The recipe's stage, its object tokens cached first where it needs them.

    Raises UserError where the stage cannot learn this model or from these data.
    """
    if hidden := [split for split in splits if not split.has_truth]:
        raise UserError(f"{hidden[0].folder}: its masks are not public, so nothing can be learned; name another split")
    if recipe.stage == "whole":
        return WholeStage(recipe, model, tokenizer, splits, [source.weight for source in recipe.data.values()])
    if len(splits) > 1:
        raise UserError(f"stage {recipe.stage} learns from one data set, not from {', '.join(recipe.data)}")
    (split,), (source,) = splits, recipe.data.values()
    if recipe.stage == "language":
        return LanguageStage(recipe, model, tokenizer, split)
    _check_objects(split, recipe)
    if recipe.stage == "perception":
        return PerceptionStage(recipe, model, split)
    if model.features_read_text or model.config.readout.masks != "trajectories":
        raise UserError(
            "stage motion learns from object tokens without a sentence: it needs backbone.language_fusion: false "
            "and readout.masks: trajectories; train stage: whole otherwise"
        )
    if recipe.init is None:
        raise UserError("stage motion keeps perception as it is: name a run of stage perception or language as init")
    if hears_language(model.perception):
        raise UserError(
            f"{recipe.init}: stage motion learns from object tokens that are the same for every sentence, but this "
            "perception hears the sentence; give a run of stage perception as init, perception among what it takes"
        )
    if source.validation is None:
        raise UserError(
            "stage motion looks at a held-out split on the way: name it, such as data.mevis.validation=valid_u"
        )
    held_out_split = MevisSplit(Path(source.root), source.validation)  # opened before the cache, which takes a while
    _check_objects(held_out_split, recipe)
    folder = Path(recipe.cache) if recipe.cache else run / "cache"
    training, held_out = (
        CachedSplit(each, TokenCache.build(model, each, folder / name), tokenizer)
        for each, name in ((split, source.split), (held_out_split, source.validation))
    )
    return MotionStage(recipe, model, training, held_out)


def _check_objects(split: Split, recipe: Recipe) -> None:
    if not all(video.objects for video in split.videos.values()):
        raise UserError(
            f"{split.folder}: does not list all objects of its videos, as a generated world does, which stage "
            f"{recipe.stage} needs; train stage: whole on it"
        )


class Trainer:
    """Steps, schedule, checkpoints and the record of one run."""

    def __init__(
        self,
        recipe: Recipe,
        model: DsHmp,
        tokenizer: TextTokenizer,
        stage: Stage,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.recipe, self.model, self.tokenizer = recipe, model.to(device), tokenizer
        self.stage, self.folder, self.device = stage, folder, device
        stage.modules.to(device)
        self.optimizer = torch.optim.AdamW(self._groups(), weight_decay=recipe.weight_decay)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.step = 0

    def _groups(self) -> list[dict[str, Any]]:
        """Backbone apart from the rest; norms, biases and embeddings of one dimension without weight decay."""
        recipe = self.recipe
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        named = [*self.model.named_parameters(), *self.stage.modules.named_parameters()]
        for name, parameter in named:
            if parameter.requires_grad:
                key = ("backbone" in name and "fusion" not in name, parameter.ndim > 1)
                groups.setdefault(key, []).append(parameter)
        return [
            {
                "params": parameters,
                "base": recipe.learning_rate * (recipe.backbone_factor if backbone else 1.0),
                "weight_decay": recipe.weight_decay if matrix else 0.0,
            }
            for (backbone, matrix), parameters in groups.items()
        ]

    def train(self) -> None:
        """Run to the last step."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        recipe = self.recipe
        self.resume()
        self.model.train()
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        started, since = time.monotonic(), self.step
        recent: list[dict[str, float]] = []
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(recipe.stage, total=recipe.steps, completed=self.step)
            for batch in self._batches():
                losses = self._step(batch)
                recent.append(losses)
                self.step += 1
                if self.step % recipe.log_every == 0:
                    means = {name: sum(item[name] for item in recent) / len(recent) for name in losses}
                    pace = (time.monotonic() - started) / (self.step - since)
                    self._log({"step": self.step, "seconds_per_step": round(pace, 4), **means})
                    recent = []
                    progress.update(task, description=f"{recipe.stage} loss {sum(means.values()):.3f}")
                last = self.step == recipe.steps
                if self.step % recipe.validate_every == 0 or last:
                    self._validate()
                if self.step % recipe.checkpoint_every == 0 or last:
                    self.save()
                progress.update(task, completed=self.step)

    def _batches(self) -> Iterator[Any]:
        """Batches from the current step on, the next one read while this one is learned."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.stage.batch, self.step)
            for step in range(self.step, self.recipe.steps):
                batch = ahead.result()
                if step + 1 < self.recipe.steps:
                    ahead = pool.submit(self.stage.batch, step + 1)
                yield batch

    def _step(self, batch: Any) -> dict[str, float]:
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * schedule(recipe, self.step)
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)  # dropout; a resumed run draws the same
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_033 + self.step)
        losses = self.stage.losses(to_device(batch, self.device), self.step, generator)
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, recipe.clip_norm)
        if not bool(torch.isfinite(norm)):
            raise UserError(
                f"{self.folder}: the gradient of step {self.step} is not finite; lower learning_rate in a new run "
                "(another --out), whose init may be this folder once it holds a model"
            )
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _validate(self) -> None:
        self.model.eval()
        figures = self.stage.validate()
        self.model.train()
        if figures:
            self._log({"step": self.step, **figures})

    def _log(self, values: dict[str, Any]) -> None:
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def _forget(self) -> None:
        """Remove what a stopped run recorded after its last checkpoint; those steps come again."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]
        part = path.with_suffix(".part")
        part.write_text("".join(x for x in lines if json.loads(x)["step"] <= self.step), encoding="utf-8")
        part.replace(path)

    def save(self) -> None:
        """The model as it stands; then everything needed to go on, in one file written aside and renamed.

        In this order, since a run whose checkpoint is of the last step never saves again.
        """
        from safetensors.torch import save_file

        card = trained_card(self.recipe, self.folder.resolve().name, self.step)
        save_model(self.model, self.tokenizer, self.folder / "model", card)
        state: dict[str, Tensor] = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"stage/{k}": v for k, v in self.stage.modules.state_dict().items()}
        for index, parameter in enumerate(self.trained):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
        part = self.folder / "checkpoint.part"
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, part, metadata={"step": str(self.step)})
        part.replace(self.folder / "checkpoint.safetensors")

    def resume(self) -> None:
        """Take up the run's checkpoint, if there is one; what was recorded after it is forgotten."""
        from safetensors import safe_open

        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            self._forget()
            return
        state = load_tensors(path)
        with safe_open(path, "pt") as file:
            self.step = int(file.metadata()["step"])
        self._forget()

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

        self.model.load_state_dict(part("model/"))
        self.stage.modules.load_state_dict(part("stage/"))
        for index, parameter in enumerate(self.trained):
            moments = part(f"optimizer/{index}/")
            if moments:  # AdamW counts its steps on the CPU wherever the parameter is
                self.optimizer.state[parameter] = {
                    name: value if name == "step" else value.to(parameter.device) for name, value in moments.items()
                }


def schedule(recipe: Recipe, step: int) -> float:
    """Factor of the learning rate at a step."""
    warm = min(1.0, (step + 1) / max(recipe.warmup, 1))
    done = step / recipe.steps
    if recipe.decay == "cosine":
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
    return warm * (1.0 if done < 40 / 55 else 0.1 if done < 50 / 55 else 0.01)
