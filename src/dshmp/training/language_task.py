"""Task `language`: sentences alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.data.base import Split, expression_name
from dshmp.device import exactly
from dshmp.model.dshmp import DsHmp
from dshmp.model.tokenizer import TextBatch, TextTokenizer
from dshmp.training.logging import Metrics
from dshmp.training.probe import MotionProbe
from dshmp.training.recipe import Recipe
from dshmp.training.sampling import ALL, EpochSampler, Share
from dshmp.training.video_losses import Counts


@dataclass(frozen=True)
class SentenceBatch:
    """Sentences alone."""

    texts: TextBatch
    claims: Tensor
    """(B,) long: the motion that is asked for, as a class of the probe."""
    expressions: tuple[int, ...]
    """Which sentences these are."""


class LanguageTask:
    """Sentences alone: from the sentence embedding their words and the motion they ask for can be told.

    Stands in for RoBERTa's pre-training. Learned together with everything else, language is what holds up the
    choice among objects.
    """

    counted = ("words", "claims")
    contrast = None

    def __init__(self, recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, split: Split) -> None:
        self.recipe, self.model, self.tokenizer, self.split = recipe, model, tokenizer, split
        model.requires_grad_(False)
        model.language.requires_grad_(True)
        self.sampler = EpochSampler([0] * len(split.expressions), recipe.batch, recipe.seed)
        self.probe = MotionProbe(model.config.hidden_size, split)
        self.words = nn.Linear(model.config.hidden_size, model.config.language.encoder["vocab_size"])
        self.modules = nn.ModuleDict({"probe": self.probe, "words": self.words})

    def batches(self, step: int, share: Share = ALL) -> list[SentenceBatch]:
        chosen = self.sampler(step).tolist()
        own = [chosen[place] for place in share.places(len(chosen))]
        return [self._batch(part) for part in share.parts(own)]

    def _batch(self, chosen: Sequence[int]) -> SentenceBatch:
        items = [self.split.expressions[i] for i in chosen]
        claims = torch.tensor([self.probe.claim(item.extra) for item in items])
        return SentenceBatch(self.tokenizer([item.text for item in items]), claims, tuple(chosen))

    def names(self, batch: SentenceBatch) -> list[str]:
        return [expression_name(self.split.expressions[i]) for i in batch.expressions]

    def counts(self, batch: SentenceBatch, step: int) -> Counts:
        return {"words": self._said(batch).sum(), "claims": torch.tensor(len(batch.claims))}

    def _said(self, batch: SentenceBatch) -> Tensor:
        """(B, V) 0 or 1: which words a sentence has."""
        ids = batch.texts.input_ids
        said = torch.zeros(len(ids), self.words.out_features, device=ids.device)
        return said.scatter_(1, ids, batch.texts.mask.float())  # not the padding, which depends on the other sentences

    def losses(self, batch: SentenceBatch, step: int, counts: Counts) -> dict[str, Tensor]:
        with exactly(self.model.config.release, batch.claims.device):
            sentence = self.model.language(batch.texts).sentence
            logits = self.words(sentence)
            words = F.binary_cross_entropy_with_logits(logits, self._said(batch), reduction="sum")
            claim = F.cross_entropy(self.probe.sentence_head(sentence), batch.claims, reduction="sum")
        return {"words": words / counts["words"], "claim": claim / counts["claims"]}

    def validate(self) -> Metrics:
        """Nothing: losses alone are recorded."""
        return Metrics()
