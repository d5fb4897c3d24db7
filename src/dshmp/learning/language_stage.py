"""Stage `language`: sentences alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.data.dataset import Split
from dshmp.language.encoder import TextBatch, TextTokenizer
from dshmp.learning.probe import MotionProbe
from dshmp.learning.recipe import Recipe
from dshmp.learning.sampling import EpochSampler
from dshmp.model import DsHmp


@dataclass(frozen=True)
class SentenceBatch:
    """Sentences alone."""

    texts: TextBatch
    claims: Tensor
    """(B,) long: the motion that is asked for, as a class of the probe."""


class LanguageStage:
    """Sentences alone: from the sentence embedding their words and the motion they ask for can be told.

    Stands in for RoBERTa's pre-training. Learned together with everything else, language is what holds up the
    choice among objects.
    """

    def __init__(self, recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, split: Split) -> None:
        self.recipe, self.model, self.tokenizer, self.split = recipe, model, tokenizer, split
        model.requires_grad_(False)
        model.language.requires_grad_(True)
        tokenizer([item.text for item in split.expressions])  # parsed all at once, which is thrice as fast, and kept
        self.sampler = EpochSampler([0] * len(split.expressions), recipe.batch, recipe.seed)
        self.probe = MotionProbe(model.config.hidden_size, split)
        self.words = nn.Linear(model.config.hidden_size, model.config.language.encoder["vocab_size"])
        self.modules = nn.ModuleDict({"probe": self.probe, "words": self.words})

    def batch(self, step: int) -> SentenceBatch:
        items = [self.split.expressions[int(i)] for i in self.sampler(step)]
        claims = torch.tensor([self.probe.claim(item.extra) for item in items])
        return SentenceBatch(self.tokenizer([item.text for item in items]), claims)

    def losses(self, batch: SentenceBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        sentence = self.model.language(batch.texts).sentence
        logits = self.words(sentence)
        said = torch.zeros_like(logits).scatter_(1, batch.texts.input_ids, 1.0)
        words = F.binary_cross_entropy_with_logits(logits, said, reduction="none").sum(1).mean() / said.sum(1).mean()
        return {"words": words, "claim": F.cross_entropy(self.probe.sentence_head(sentence), batch.claims)}

    def validate(self) -> dict[str, float]:
        """Nothing: losses alone are recorded."""
        return {}
