"""Boxes of what phrases name in a picture: Grounding DINO."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dshmp.candidates.hub import load, load_part
from dshmp.video.source import Pixels


class Boxes(NamedTuple):
    """K boxes of a picture, the surest first."""

    places: Tensor  # (K, 4) x0, y0, x1, y1 in its pixels
    scores: Tensor  # (K,) 0 to 1
    phrases: list[int]  # which phrase fits each best


class Prompt(NamedTuple):
    """Phrases that are looked for at once, as tokens."""

    ids: list[int]
    spans: dict[int, slice]  # the tokens of each phrase, by its number


class Grounding:
    """The model in a folder, and phrases to look for; `UserError` where it cannot be loaded."""

    def __init__(self, folder: Path, phrases: Sequence[str], device: torch.device) -> None:
        from transformers import BertTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

        self.device = device
        self.prepare = load_part(GroundingDinoImageProcessorPil, folder)
        self.model = load(GroundingDinoForObjectDetection, folder, device)
        tokenizer = load_part(BertTokenizer, folder)
        tokens = [tokenizer(phrase, add_special_tokens=False)["input_ids"] for phrase in phrases]
        marks = tokenizer.convert_tokens_to_ids(["[CLS]", ".", "[SEP]"])
        self.prompts = list(prompts(tokens, marks, self.model.config.max_text_len))

    @torch.inference_mode()
    def __call__(self, image: Pixels, threshold: float) -> Boxes:
        """Boxes of which some word of a phrase is at least that sure."""
        pixels = self.prepare(image, return_tensors="pt")["pixel_values"].to(self.device)
        places, scores, phrases = [torch.zeros(0, 4)], [torch.zeros(0)], [torch.zeros(0, dtype=torch.long)]
        for prompt in self.prompts:
            found = self.model(pixel_values=pixels, input_ids=torch.tensor([prompt.ids], device=self.device))
            chances = found.logits[0].sigmoid().cpu()  # (Q, tokens)
            best = torch.stack([chances[:, span].amax(1) for span in prompt.spans.values()], 1).amax(1)
            fit = torch.stack([chances[:, span].mean(1) for span in prompt.spans.values()], 1).argmax(1)
            kept = best >= threshold
            places.append(corners(found.pred_boxes[0].cpu()[kept], image.shape[0], image.shape[1]))
            scores.append(best[kept])
            phrases.append(torch.tensor(list(prompt.spans))[fit[kept]])
        order = torch.cat(scores).argsort(descending=True)
        return Boxes(torch.cat(places)[order], torch.cat(scores)[order], torch.cat(phrases)[order].tolist())


def prompts(tokens: Sequence[list[int]], marks: Sequence[int], longest: int) -> Iterator[Prompt]:
    """Phrases as [CLS] brown dog . white cat . [SEP], in as many prompts as are needed; marks are the ids of [CLS], the
    full stop and [SEP]. A phrase that is too long by itself is cut."""
    first, stop, last = marks
    ids, spans = [first], dict[int, slice]()
    for number, phrase in enumerate(tokens):
        phrase = phrase[: longest - 3]
        if spans and len(ids) + len(phrase) + 2 > longest:
            yield Prompt([*ids, last], spans)
            ids, spans = [first], {}
        spans[number] = slice(len(ids), len(ids) + len(phrase))
        ids = [*ids, *phrase, stop]
    yield Prompt([*ids, last], spans)


def corners(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (K, 4) as centre and size in shares of a picture -> x0, y0, x1, y1 in its pixels, cut off at its border."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    places = torch.cat([centre - half, centre + half], 1).clamp(0, 1)
    return places * torch.tensor([width, height, width, height])
