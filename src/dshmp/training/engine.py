"""Steps on one process or many, in as many parts as fit, and what lets a run be stopped anywhere and go on.

Results do not depend on how a step is split up: which samples it has and what each draws at random follows from
(seed, step, place in the step), losses are divided by counts over the whole step, and the memory bank is read as it
stood before the step and written after it. No random state needs to be kept: each step seeds every generator anew.
"""

import contextlib
import itertools
import logging
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, patch_environment, set_seed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dshmp.checkpoint import save_model
from dshmp.common.device import to_device, widest
from dshmp.common.errors import UserError
from dshmp.model.dshmp import DsHmp
from dshmp.model.swin import SwinStage
from dshmp.training.checkpoints import Checkpoints, Saved
from dshmp.training.logging import RunLogger
from dshmp.training.losses import Counts
from dshmp.training.recipe import Recipe, trained_card
from dshmp.training.task import Share, Task

log = logging.getLogger("dshmp")
STOP = "stop"  # beside the counts: how many processes shall stop


class Learner(nn.Module):
    """Everything that is trained, with the losses as its forward pass: what data parallelism wraps."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model, self.task = task.model, task
        self.beside = nn.ModuleList(module for module in task.modules.values() if list(module.parameters()))

    def forward(self, batch: Any, step: int, counts: Counts) -> dict[str, Tensor]:
        if batch is None:  # no samples for this process; of one parameter, as those nobody uses get no gradient
            return {"nothing": next(p for p in self.parameters() if p.requires_grad).sum() * 0}
        return self.task.losses(batch, step, counts)


@contextlib.contextmanager
def processes(recipe: Recipe, device: torch.device) -> Iterator[Accelerator]:
    """This process among those that a launcher (accelerate, torchrun) started, or alone. Raises UserError."""
    if recipe.precision == "float16" and device.type == "cpu":
        raise UserError("precision: float16 needs a GPU; use bfloat16 or float32")
    precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[recipe.precision]
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    handlers = [parallel, InitProcessGroupKwargs(timeout=timedelta(hours=12))]  # the first one alone validates
    with patch_environment(**({} if "LOCAL_RANK" in os.environ else {"ACCELERATE_TORCH_DEVICE": device})):
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision, kwargs_handlers=handlers)
    try:
        yield accelerator
    finally:
        with contextlib.redirect_stdout(sys.stderr):  # which trackers write to
            accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)


@dataclass
class Record:
    # sums over the steps since the last line in metrics.jsonl; tensors until they are needed
    losses: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    skipped: int = 0  # steps left out, of the whole run
    in_a_row: int = 0
    best: float = -math.inf

    def add(self, losses: Mapping[str, Tensor]) -> None:
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value.to(widest(value.device))
        self.steps += 1
        self.in_a_row = 0


class Trainer:
    def __init__(self, task: Task, folder: Path, accelerator: Accelerator) -> None:
        self.task, self.recipe, self.model, self.folder = task, task.recipe, task.model, folder
        self.run = self.recipe.run
        self.accelerator, self.device = accelerator, accelerator.device
        self.model.to(self.device)
        task.modules.to(self.device)
        if self.run.checkpointing:
            recompute_activations(self.model)
        self.adam = torch.optim.AdamW(parameter_groups(self.recipe, self.model, task.modules))
        self.optimizer = accelerator.prepare_optimizer(self.adam)
        self.learner: Learner = accelerator.prepare_model(Learner(task))
        self.trained = [p for group in self.adam.param_groups for p in group["params"]]
        self.share = Share(accelerator.process_index, accelerator.num_processes, self.run.micro_batch)
        self.checkpoints = Checkpoints(folder / "checkpoints", self.run.keep)
        self.step, self.record, self.stopping = 0, Record(), False

    def train(self) -> None:
        """Run to the last step, or until SIGTERM: then saves and raises SystemExit."""
        before, first = None, self.accelerator.is_main_process
        with contextlib.suppress(ValueError):  # not in the main thread, where no signal arrives
            before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        try:
            self.resume()
            logger = RunLogger(self.recipe, self.folder, self.step, self.accelerator) if first else None
            with logger or contextlib.nullcontext():
                self._train(logger)
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)
        if self.step < self.recipe.steps:
            if first:
                log.warning("%s: stopped by SIGTERM after step %d; the same command goes on", self.folder, self.step)
            raise SystemExit(128 + signal.SIGTERM)

    def _train(self, logger: RunLogger | None) -> None:
        run = self.run
        self.model.train()
        for batches, waited in self._batches():
            started = time.monotonic()
            stop = self._step(batches)
            self.step += 1
            last = self.step == self.recipe.steps
            self.record.seconds += waited + time.monotonic() - started
            self.record.waited += waited
            if logger:
                logger.tick(self.step)
            if self.step % run.log_every == 0:
                self._log(logger)
            if self.step % run.validate_every == 0 or last:
                self._validate(logger)
            if self.step % run.checkpoint_every == 0 or last or stop:
                self.save()
            if stop:
                return

    def _batches(self) -> Iterator[tuple[Sequence[Any], float]]:
        """Every step's batches, and the seconds waited for them; later ones are read meanwhile."""
        steps = iter(range(self.step, self.recipe.steps))
        with ThreadPoolExecutor(self.run.workers) as pool:
            coming = (pool.submit(self.task.batches, step, self.share) for step in steps)
            ahead = deque(itertools.islice(coming, self.run.workers))
            try:
                while ahead:
                    started = time.monotonic()
                    found = ahead.popleft().result()
                    ahead.extend(itertools.islice(coming, 1))
                    yield found, time.monotonic() - started
            finally:
                pool.shutdown(cancel_futures=True)

    def _step(self, batches: Sequence[Any]) -> bool:
        """Learn from a step's batches; whether any process shall stop."""
        recipe, accelerator, contrast = self.recipe, self.accelerator, self.task.contrast
        for group in self.adam.param_groups:
            group["lr"] = group["base"] * schedule(recipe, self.step)
        seed = recipe.seed * 1_000_003 + self.step  # dropout; a resumed run draws the same
        set_seed((seed * self.share.processes + self.share.rank) % 2**32)
        parts = [to_device(batch, self.device) for batch in batches]
        counts, stop = self._count(parts)
        self.adam.zero_grad(set_to_none=True)
        found: dict[str, Tensor] = {}
        shares = parts or [None]
        for part in shares:
            with contextlib.nullcontext() if part is shares[-1] else accelerator.no_sync(self.learner):
                losses = self.learner(part, self.step, counts)
                total = torch.stack([value.float() for value in losses.values()]).sum()
                accelerator.backward(total * self.share.processes)  # their gradients are averaged
            for name, value in losses.items() if part is not None else ():
                found[name] = found.get(name, 0.0) + value.detach().float()
        norm = accelerator.clip_grad_norm_(self.trained, recipe.clip_norm)
        finite, scaler = bool(torch.isfinite(norm)), accelerator.scaler
        overflow = not finite and scaler is not None and scaler.get_scale() > 1  # the scale may be to blame
        if finite or scaler is not None:
            self.optimizer.step()  # the scaler sees by itself that it is not finite, and scales less from now on
        if finite:
            self.record.add(found)
            if contrast is not None:
                contrast.commit(self._gather)
        else:
            if contrast is not None:
                contrast.seen.clear()
            self._skip(parts, overflow)
        return stop

    @torch.no_grad()
    def _count(self, parts: Sequence[Any]) -> tuple[Counts, bool]:
        """The divisors of the whole step, over all processes; and whether any of these shall stop."""
        own: dict[str, Any] = {STOP: self.stopping}
        for part in parts:
            for name, value in self.task.counts(part, self.step).items():
                own[name] = own.get(name, 0) + value.to(widest(self.device))
        sums = own if self.share.processes == 1 else self._sum(own)  # alone, nothing need leave the device
        stop = bool(sums.pop(STOP))
        return {name: torch.as_tensor(value, device=self.device).float() for name, value in sums.items()}, stop

    def _sum(self, own: dict[str, Any]) -> dict[str, float]:
        """Over the processes, by name."""
        sums: dict[str, float] = {}
        for each in gather_object([{name: float(value) for name, value in own.items()}]):
            for name, value in each.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def _gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes, however many each has, in the order of the processes."""
        if self.share.processes == 1:
            return rows
        return torch.cat([part.to(rows.device) for part in gather_object([rows.cpu()])])

    def _skip(self, parts: Sequence[Any], overflow: bool) -> None:
        """Leave out a step whose gradient is not finite; UserError where there were too many in a row. An `overflow` is
        how float16 finds its scale, and is no sign of divergence."""
        self.record.skipped += 1
        if overflow:
            return
        self.record.in_a_row += 1
        names: list[str] = gather_object([name for part in parts for name in part.names])
        where = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        if self.record.in_a_row >= self.run.patience:
            raise UserError(
                f"{self.folder}: the gradient was not finite in {self.record.in_a_row} steps in a row, the last one "
                f"being {self.step} ({where}): training has diverged; lower learning_rate in a new run (another --out)"
            )
        if self.accelerator.is_main_process:
            log.warning("step %d is left out, its gradient is not finite: %s", self.step, where)

    def _log(self, logger: RunLogger | None) -> None:
        losses, record = self._sum(self.record.losses), self.record
        if logger:
            steps = max(record.steps, 1)
            figures = {"seconds_per_step": round(record.seconds / steps, 4)}
            figures["waited"] = round(record.waited / max(record.seconds, 1e-9), 4)
            figures |= {"skipped": record.skipped} if record.skipped else {}
            logger.log(self.step, figures | {name: value / steps for name, value in losses.items()})
        self.record = Record(skipped=record.skipped, in_a_row=record.in_a_row, best=record.best)

    def _validate(self, logger: RunLogger | None) -> None:
        if logger:
            self.model.eval()
            figures = self.task.validate()
            self.model.train()
            logger.validated(self.step, figures)
            best = figures.values.get(self.run.best or "")
            if best is not None and best > self.record.best:
                self.record.best = best
                self._save_model("best")
        self.accelerator.wait_for_everyone()

    def _save_model(self, name: str) -> None:
        card = trained_card(self.recipe, self.folder.resolve().name, self.step)
        save_model(self.model, self.task.tokenizer, self.folder / name, card)

    def save(self) -> None:
        """The model first, as a run with a checkpoint of its last step never saves again."""
        record = asdict(replace(self.record, losses=self._sum(self.record.losses)))
        if self.accelerator.is_main_process:
            self._save_model("model")
            state = {f"model/{name}": value for name, value in self.model.state_dict().items()}
            state |= {f"task/{name}": value for name, value in self.task.modules.state_dict().items()}
            for index, parameter in enumerate(self.trained):
                for name, value in self.adam.state.get(parameter, {}).items():
                    state[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
            state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
            scaler = self.accelerator.scaler
            self.checkpoints.save(Saved(self.step, state, {"record": record, "scaler": scaler and scaler.state_dict()}))
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Take up the newest checkpoint that is whole, if there is one."""
        with self.accelerator.main_process_first():
            saved = self.checkpoints.newest()
        if saved is None:
            return

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in saved.tensors.items() if key.startswith(prefix)}

        self.step = saved.step
        self.model.load_state_dict(part("model/"))
        self.task.modules.load_state_dict(part("task/"))
        for index, parameter in enumerate(self.trained):
            for name, value in part(f"optimizer/{index}/").items():
                place = "cpu" if name == "step" else parameter.device  # AdamW counts its steps there
                self.adam.state[parameter][name] = value.to(place, copy=True)
        self.record = Record(**saved.facts["record"])
        if not self.accelerator.is_main_process:  # the first one has the sums of all
            self.record.losses = {}
        if self.accelerator.scaler is not None and saved.facts["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(saved.facts["scaler"])


def schedule(recipe: Recipe, step: int) -> float:
    """The learning rate's factor."""
    warm = min(1.0, (step + 1) / max(recipe.warmup, 1))
    done = step / recipe.steps
    if recipe.decay == "cosine":
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
    return warm * (1.0 if done < 40 / 55 else 0.1 if done < 50 / 55 else 0.01)


def parameter_groups(recipe: Recipe, model: nn.Module, beside: nn.Module) -> list[dict[str, Any]]:
    """Backbone apart from the rest; what has one dimension (norms, biases, scales) and Swin's tables of relative
    positions without weight decay, as in the release."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in [*model.named_parameters(), *beside.named_parameters()]:
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith("position_bias")
            key = "backbone" in name and "fusion" not in name, decays
            groups.setdefault(key, []).append(parameter)
    rates = recipe.learning_rate, recipe.learning_rate * recipe.backbone_factor
    return [
        {"params": parameters, "base": rates[backbone], "weight_decay": recipe.weight_decay if decays else 0.0}
        for (backbone, decays), parameters in groups.items()
    ]


def recompute_activations(model: DsHmp) -> None:
    """Backbone blocks and decoder layers keep their inputs only and compute the rest again in the backward pass."""

    def again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    perception = model.perception
    stages = [cast(SwinStage, stage).blocks for stage in perception.backbone.stages]
    decoders = [perception.pixel_decoder.decoder.encoder.layers, perception.frame_decoder.layers]
    for module in itertools.chain(*stages, *decoders, model.motion.blocks, model.decoder.layers):
        module.forward = partial(again, module.forward)
