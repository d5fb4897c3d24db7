"""J&F of a model on a split, per subset, beside the static line.

The *static line* is what perfect masks of all objects that fit the static words would score: a model that sees
everything and understands no motion. It is known where the data set names those objects (the world does).
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dshmp.checkpoint import load_model
from dshmp.config import InputConfig
from dshmp.data.dataset import Expression, Split
from dshmp.data.mevis import MevisSplit
from dshmp.device import find_device
from dshmp.errors import UserError
from dshmp.language.encoder import TextTokenizer
from dshmp.metrics import jf
from dshmp.model import DsHmp
from dshmp.motion.decoder import VideoTokens
from dshmp.perception.frame_decoder import Perception
from dshmp.perception.frames import prepare_frames, restore_masks
from dshmp.progress import track


@dataclass(frozen=True)
class ExpressionScore:
    """How one expression was answered. Percentages; None where the question does not arise."""

    video: str
    id: str
    text: str
    subsets: tuple[str, ...]
    motion: str
    """The program that is asked for, in the generated world; else empty."""
    j: float
    f: float
    score: float
    """Probability of the best video token that it is meant."""
    found: bool
    """Whether anything passed the threshold."""
    present: bool
    """Whether the sentence means anything in this video."""
    static_line: float | None
    """J&F of perfect masks of all objects that fit the static words."""
    candidates: int | None
    right_of_pair: bool | None
    """Of two look-alikes told apart by direction only: the best token's mask meets the right one better."""

    @property
    def j_and_f(self) -> float:
        return (self.j + self.f) / 2


@torch.inference_mode()
def score_video(
    model: DsHmp, tokenizer: TextTokenizer, split: Split, name: str, expressions: Sequence[Expression]
) -> list[ExpressionScore]:
    """Answer and score all expressions of one video."""
    config = model.config
    device = next(model.parameters()).device
    text = model.language(tokenizer([item.text for item in expressions]).to(device))
    sentences, length = len(expressions), len(split.videos[name].frames)
    # frames at once, each under all sentences
    step = model.perception.backbone.whole_clips(max(1, config.input.chunk // sentences))
    chunks = [slice(start, min(start + step, length)) for start in range(0, length, step)]

    def perceive(chunk: slice) -> Perception:
        frames = split.frames(name, range(chunk.start, chunk.stop))
        return model.perceive(prepare_frames(frames, config.input).to(device), text)

    tokens = torch.cat([perceive(chunk).tokens.unflatten(0, (sentences, -1)) for chunk in chunks], 1)  # (E, T, N, C)
    video = model.understand(tokens, tokens.new_ones(sentences, length, dtype=torch.bool), text)
    # perceived a second time, since the pixel features of all frames at once may be more than memory holds
    parts = [_clip_masks(model, video, perceive(chunk), chunk) for chunk in chunks]
    frame = split.frames(name, [0])[0]
    size = (frame.shape[0], frame.shape[1])
    scores = []
    for e, item in enumerate(expressions):
        meant = video.logits[e].softmax(1)[:, 0]
        best = int(meant.argmax())
        if config.readout.targets == "single":
            chosen = [best]
        else:
            chosen = (meant > config.readout.threshold).nonzero()[:, 0].tolist()
        answer, top = (
            np.concatenate([_cover(part[e, queries], size, config.input) for part in parts])
            for queries in (chosen, [best])
        )
        scores.append(_score(split, item, size, length, answer, top, float(meant[best]), bool(chosen)))
    return scores


def _cover(logits: Tensor, size: tuple[int, int], config: InputConfig) -> NDArray[np.bool_]:
    """Mask logits (Q, F, h, w) -> (F, H, W): what any of the Q masks covers."""
    covered: NDArray[np.bool_] = (restore_masks(logits, size, config) > 0).any(0).cpu().numpy()
    return covered


def _clip_masks(model: DsHmp, video: VideoTokens, state: Perception, chunk: slice) -> Tensor:
    """Mask logits (E, N_v, F, h, w) of the frames of a chunk, `state` holding E * F of them."""
    pointer = None if video.pointer is None else video.pointer[:, :, chunk]
    return model.clip_masks(replace(video, pointer=pointer), state)


def _score(
    split: Split,
    item: Expression,
    size: tuple[int, int],
    length: int,
    chosen: NDArray[np.bool_],
    top: NDArray[np.bool_],
    score: float,
    found: bool,
) -> ExpressionScore:
    positions = range(length)
    truth = _union(split.masks(item.video, item.annotations, positions, size))
    j, f = jf(chosen, truth)
    objects = split.videos[item.video].objects
    static_line = candidates = right = None
    if "static_ids" in item.extra:
        fitting = [objects[object_id]["anno_id"] for object_id in item.extra["static_ids"]]
        candidates = len(fitting)
        static_line = 50 * sum(jf(_union(split.masks(item.video, fitting, positions, size)), truth))
    if "direction pairs" in item.subsets and len(item.objects) == 1:
        others = [entry["anno_id"] for key, entry in objects.items() if key not in item.objects]
        rivals = split.masks(item.video, others, positions, size)
        right = _overlap(top, truth) > max((_overlap(top, rival) for rival in rivals), default=0.0)
    return ExpressionScore(
        video=item.video,
        id=item.id,
        text=item.text,
        subsets=item.subsets,
        motion=str(item.extra.get("motion", "")),
        j=100 * float(j),
        f=100 * float(f),
        score=score,
        found=found,
        present=bool(item.objects),
        static_line=static_line,
        candidates=candidates,
        right_of_pair=right,
    )


def _union(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Masks (G, T, H, W) -> (T, H, W), what any of them covers; nothing where G = 0."""
    return np.asarray(masks.any(0))


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """IoU over the whole clip."""
    return float((a & b).sum() / max(int((a | b).sum()), 1))


def evaluate(
    model: str | Path, root: Path, split_name: str, workers: int = 2, device: str = "auto"
) -> list[ExpressionScore]:
    """Score a model on every expression of a split, in as many processes as `workers`, all on one device."""
    find_device(device)  # what is wrong with it is said here, once
    split = MevisSplit(root, split_name)
    if not split.has_truth:
        raise UserError(f"{split.folder}: its masks are not public, so nothing can be scored; name another split")
    load_model(model)  # what is wrong with it is said here, once
    names = list(split.videos)
    parts = [names[i : i + 10] for i in range(0, len(names), 10)]
    context = torch.multiprocessing.get_context("spawn")
    arguments = (str(model), root, split_name, device)
    scores: list[ExpressionScore] = []
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=arguments) as pool:
        results: Iterable[list[ExpressionScore]] = pool.map(_score_videos, parts)
        for part in track(results, f"evaluating {Path(str(model)).name}", total=len(parts)):
            scores.extend(part)
    return scores


_worker: tuple[DsHmp, TextTokenizer, Split, dict[str, list[Expression]]] | None = None


def _start(model: str, root: Path, split_name: str, device: str = "auto") -> None:
    global _worker
    torch.set_num_threads(1)
    split = MevisSplit(root, split_name)
    by_video: dict[str, list[Expression]] = defaultdict(list)
    for item in split.expressions:
        by_video[item.video].append(item)
    network, tokenizer = load_model(model)
    _worker = network.to(find_device(device)), tokenizer, split, by_video


def _score_videos(names: list[str]) -> list[ExpressionScore]:
    assert _worker is not None
    model, tokenizer, split, by_video = _worker
    scores: list[ExpressionScore] = []
    for name in names:
        if by_video[name]:
            scores += score_video(model, tokenizer, split, name, by_video[name])
    return scores


def summarise(scores: Sequence[ExpressionScore]) -> dict[str, dict[str, float]]:
    """Means per subset ("all" first): count, J, F, J&F, and where they exist the static line, the number of
    candidates, the right one of direction pairs, absent targets answered with nothing (N-acc) and present ones
    answered with something (T-acc); per cent."""
    groups: dict[str, list[ExpressionScore]] = {"all": list(scores)}
    for item in scores:
        for name in item.subsets:
            groups.setdefault(name, []).append(item)
    return {name: _means(items) for name, items in groups.items()}


def _means(items: Sequence[ExpressionScore]) -> dict[str, float]:
    def mean(values: Iterable[float | bool | None]) -> float | None:
        known = [float(value) for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def per_cent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    columns = {
        "count": float(len(items)),
        "J": mean(item.j for item in items),
        "F": mean(item.f for item in items),
        "J&F": mean(item.j_and_f for item in items),
        "static line": mean(item.static_line for item in items),
        "candidates": mean(item.candidates for item in items),
        "right of pair": per_cent(mean(item.right_of_pair for item in items)),
        "N-acc": per_cent(mean(not item.found for item in items if not item.present)),
        "T-acc": per_cent(mean(item.found for item in items if item.present)),
    }
    return {key: round(value, 2) for key, value in columns.items() if value is not None}


def run(
    model: str,
    root: Path,
    split: str = "valid_u",
    out: Path | None = None,
    beside: str | None = None,
    workers: int = 2,
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluate, print the table to stdout, and write everything to `out` (JSON) if given.

    `beside`: another model, such as the blind twin, whose figures stand in the same table.
    """
    if out is not None and out.is_dir():
        raise UserError(f"{out}: is a folder; name a file for the results")
    scores = {name: evaluate(name, root, split, workers, device) for name in (model, beside) if name}
    report = {
        "root": str(root),
        "split": split,
        "models": {
            name: {"summary": summarise(items), "expressions": [asdict(item) for item in items]}
            for name, items in scores.items()
        },
    }
    print_table({name: summarise(items) for name, items in scores.items()})
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(out.name + ".part")
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        part.replace(out)
    return report


def print_table(summaries: dict[str, dict[str, dict[str, float]]]) -> None:
    """Subsets down, models across, to stdout."""
    from rich.console import Console
    from rich.table import Table

    first = next(iter(summaries.values()))
    table = Table("subset", "sentences", "static line")
    shown = ("J&F", "right of pair", "N-acc", "T-acc")
    for name in summaries:
        for column in shown:
            table.add_column(f"{column}\n{Path(name).name}" if len(summaries) > 1 else column, justify="right")
    for subset, values in first.items():
        cells = [_cell(summary[subset].get(column)) for summary in summaries.values() for column in shown]
        table.add_row(subset, str(int(values["count"])), _cell(values.get("static line")), *cells)
    Console(width=140).print(table)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
