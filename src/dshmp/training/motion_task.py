"""Task `motion`: the motion part on cached object tokens of frozen static perception."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dshmp.checkpoint import CONFIG, find_model, load_config
from dshmp.common.device import exactly
from dshmp.common.errors import UserError
from dshmp.data.base import Split
from dshmp.model.frame_decoder import uses_language
from dshmp.training.cache import CachedSplit, ClipBatch, read_appearance
from dshmp.training.held_out import score_tokens
from dshmp.training.losses import Counts
from dshmp.training.pretraining import MotionProbe
from dshmp.training.task import ALL, EpochSampler, Metrics, Share, Task, open_splits, torch_generators
from dshmp.training.video_losses import VideoTargets, video_level


class MotionTask(Task):
    """Trajectories, hierarchical motion perception and motion decoder; perception keeps its weights."""

    def setup(self) -> None:
        recipe, model = self.recipe, self.model
        self.split = self._listed(self.splits)
        self._check_perception()
        self.held_out = open_splits(recipe, held_out=True)
        if not self.held_out:
            raise UserError("task motion needs a held-out split: name it, such as data.mevis.validation=valid_u")
        model.perception.requires_grad_(False)
        perceived = recipe.candidates == "perception"
        if perceived and uses_language(model.perception):  # the language in the cached tokens stays as it was
            model.language.requires_grad_(False)
        self.criterion = self.video_criterion()
        self.probe = MotionProbe(model.config.hidden_size, self.split)
        self.modules = nn.ModuleDict({"bank": self.criterion.contrast.bank, "probe": self.probe})

    def _listed(self, splits: Mapping[str, Split]) -> Split:
        """The one split, whose videos list their objects. Without perception these may be those alone that sentences
        name."""
        if self.recipe.candidates == "perception":
            return self.one_split(splits)
        split = self.one_split(splits, objects=False).with_named_objects()
        if empty := [name for name, video in split.videos.items() if not video.objects]:
            raise UserError(f"{split.folder}: no sentence of video {empty[0]} means an object in it; leave it out")
        return split

    def _check_perception(self) -> None:
        """UserError unless the object tokens of this model are trained and all that its read-out needs."""
        recipe, perception = self.recipe, self.model.perception
        if self.model.config.readout.masks != "trajectories":
            raise UserError("task motion needs readout.masks: trajectories; train task: whole otherwise")
        keeps = "task motion keeps perception as it is"
        kind, config = recipe.candidates, self.model.config.motion
        if (kind == "tracks") != (recipe.tracks is not None):
            raise UserError("candidates: tracks and tracks (their folder) need each other")
        if kind != "truth" and (recipe.appearance is not None or config.appearance):
            raise UserError("appearance is learned with candidates: truth; set model.motion.appearance to 0 without")
        if (recipe.appearance is None) != (not config.appearance):
            raise UserError("appearance (a folder) and model.motion.appearance (how many numbers) need each other")
        if kind != "perception":
            if not config.geometry:
                raise UserError(f"candidates: {kind} have no tokens; they need model.motion.geometry")
            return
        if recipe.init is None:
            raise UserError(f"{keeps}: name a run of task perception or language as init")
        if uses_language(perception) and recipe.take and not {"language", "perception"} <= set(recipe.take):
            raise UserError(f"{recipe.init}: {keeps}, and the language it uses: take both, or a run of task perception")
        cues = load_config(find_model(recipe.init) / CONFIG).model.language.cues
        if perception.frame_decoder.direct and cues != "direct":
            raise UserError(f"{recipe.init}: {keeps}; language.cues: direct needs an init trained so, or task: whole")

    def prepare(self, cache: Path) -> None:
        super().prepare(cache)
        splits = self.split, self._listed(self.held_out)
        masks = Path(self.recipe.tracks) if self.recipe.tracks else self.recipe.candidates == "truth"
        if isinstance(masks, Path):
            files = [masks / f"{name}.json" for split in splits for name in split.videos]
            if missing := [file for file in files if not file.is_file()]:
                raise UserError(f"{missing[0]}: missing; candidates: tracks need a file per video")
        looks = [self._appearance(split) for split in splits]
        self.training, self.valid = (
            CachedSplit.build(self.model, self.tokenizer, split, cache, masks, look)
            for split, look in zip(splits, looks, strict=True)
        )
        self.sampler = EpochSampler(self.training.lengths, self.recipe.batch, self.recipe.seed)

    def _appearance(self, split: Split) -> dict[str, Tensor] | None:
        """Of each video's objects what they look like, (G, A), where the recipe says so."""
        if self.recipe.appearance is None:
            return None
        folder, numbers = Path(self.recipe.appearance), self.model.config.motion.appearance
        return {name: read_appearance(folder, split, name, numbers) for name in split.videos}

    def batches(self, step: int, share: Share = ALL) -> list[ClipBatch]:
        chosen = self.sampler(step).tolist()
        return [
            self.training.batch([chosen[i] for i in part], [(self.recipe.seed, step, i) for i in part])
            for part in share.of(range(len(chosen)))
        ]

    def counts(self, batch: ClipBatch, step: int) -> Counts:
        found = (batch.owner >= 0).sum(2)
        there = batch.candidates.seen.sum(2)
        counts = self.criterion.counts(batch.targets, torch.ones_like(found, dtype=torch.bool), found, there, step)
        return counts | {"objects": found.sum(), "claims": found.new_tensor(len(found))}

    def losses(self, batch: ClipBatch, step: int, counts: Counts) -> dict[str, Tensor]:
        weight, targets = self.recipe.weights.probe, batch.targets
        candidates, device = batch.candidates, batch.owner.device
        generators = torch_generators(batch.seeds, device)
        with exactly(self.model.config.release, device):
            text = self.model.language(batch.texts)
            video = self.model.decode_motion(candidates, text)
        masks = [layer.readout.clip_masks(batch.mask_logits, None) for layer in video.layers]
        level = video_level(video, masks, candidates.frames, targets)
        indices = self.criterion.sets.match(level, generators)
        learned = video, level, indices, batch.owner, candidates.seen, targets
        losses = self.criterion.losses(*learned, step, generators, counts)
        if weight:
            motions, claims = self._labels(targets)
            objects, sentences = self.probe(video.motion_tokens, batch.owner, motions, text.sentence, claims)
            losses["probe"] = weight * (objects / counts["objects"].clamp(min=1) + sentences / counts["claims"])
        return losses

    def _labels(self, targets: VideoTargets) -> tuple[Tensor, Tensor]:
        """Classes of the probe: motions (B, G_all) of all objects and claims (B,) of the sentences."""
        items = [self.split.expressions[i] for i in targets.expressions]
        videos = [self.split.videos[item.video].objects.values() for item in items]
        motions = [torch.tensor([self.probe.motion(item) for item in objects]) for objects in videos]
        claims = torch.tensor([self.probe.claim(item.extra) for item in items])
        return pad_sequence(motions, batch_first=True).to(targets.meant.device), claims.to(targets.meant.device)

    def validate(self) -> Metrics:
        return score_tokens(self.model, self.valid)
