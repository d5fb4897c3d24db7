"""Task `language`: sentences alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.data.base import expression_name
from dshmp.device import exactly
from dshmp.model.tokenizer import TextBatch
from dshmp.training.losses import Counts
from dshmp.training.probe import MotionProbe
from dshmp.training.task import ALL, EpochSampler, Share, Task


@dataclass(frozen=True)
class SentenceBatch:
    texts: TextBatch
    claims: Tensor  # (B,) long: the motion that a sentence names, as a class of the probe
    names: tuple[str, ...]  # which sentences these are


class LanguageTask(Task):
    """Linear heads on the sentence embedding name the sentence's words and its motion: in place of RoBERTa's
    pre-training, as language learned with everything else holds up the choice among objects."""

    def setup(self) -> None:
        model = self.model
        self.split = self.one_split(self.splits, objects=False)
        model.requires_grad_(False)
        model.language.requires_grad_(True)
        self.sampler = EpochSampler([0] * len(self.split.expressions), self.recipe.batch, self.recipe.seed)
        self.probe = MotionProbe(model.config.hidden_size, self.split)
        self.words = nn.Linear(model.config.hidden_size, model.config.language.encoder["vocab_size"])
        self.modules = nn.ModuleDict({"probe": self.probe, "words": self.words})

    def batches(self, step: int, share: Share = ALL) -> list[SentenceBatch]:
        found = []
        for chosen in share.of(self.sampler(step).tolist()):
            items = [self.split.expressions[i] for i in chosen]
            texts = self.tokenizer([item.text for item in items])
            claims = torch.tensor([self.probe.claim(item.extra) for item in items])
            found.append(SentenceBatch(texts, claims, tuple(map(expression_name, items))))
        return found

    def counts(self, batch: SentenceBatch, step: int) -> Counts:
        return {"words": self._words(batch).sum(), "claims": torch.tensor(len(batch.claims))}

    def _words(self, batch: SentenceBatch) -> Tensor:
        """(B, V) 0 or 1: which words a sentence has, of V."""
        ids = batch.texts.input_ids
        present = torch.zeros(len(ids), self.words.out_features, device=ids.device)
        return present.scatter_(1, ids, batch.texts.mask.float())  # not padding, which depends on the other sentences

    def losses(self, batch: SentenceBatch, step: int, counts: Counts) -> dict[str, Tensor]:
        with exactly(self.model.config.release, batch.claims.device):
            sentence = self.model.language(batch.texts).sentence
            words = F.binary_cross_entropy_with_logits(self.words(sentence), self._words(batch), reduction="sum")
            claim = F.cross_entropy(self.probe.sentence_head(sentence), batch.claims, reduction="sum")
        return {"words": words / counts["words"], "claim": claim / counts["claims"]}
