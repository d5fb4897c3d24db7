"""Where J&F is lost on a synthetic split: each step of the model replaced by what is true.

Usage: python benchmarks/ceilings.py synthetic/v1 [--model MODEL] [--split valid_u] [--videos 100]
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from dshmp import Segmenter
from dshmp.common.progress import track
from dshmp.data.base import Split, by_video
from dshmp.data.registry import open_split
from dshmp.evaluation.metrics import jf
from dshmp.model.candidates import clip_candidates
from dshmp.model.frames import input_masks, input_size, output_masks, prepare_frames
from dshmp.model.readout import TrajectoryReadout
from dshmp.model.text import null_text

FOUND = 0.5  # a candidate belongs to the object whose true mask it meets with at least this IoU
ROWS = (
    "true masks through the grid of the model's masks",
    "the model's masks, perfect choice",
    "the model's choice, perfect masks",
    "the model, its pointed masks mixed",
    "the model, the first pointed mask",
)


@torch.inference_mode()
def video_scores(segmenter: Segmenter, split: Split, name: str) -> list[dict[str, float]]:
    """J&F of every sentence about a video, by row."""
    model, config = segmenter.model, segmenter.config
    items = by_video(split)[name]
    frames, objects = split.frames(name), split.videos[name].objects
    size = frames[0].shape[:2]
    inner = input_size(size, config.input)
    images = prepare_frames(frames, config.input)
    state = model.encode(images, null_text(model.language, 1))
    logits = torch.einsum("fnc,fchw->fnhw", state.mask_embed, state.mask_features)
    found = clip_candidates(images, inner, state.tokens, state.logits, logits, config)
    masks = output_masks(input_masks(logits, size, config.input), size) > 0  # (T, N, H, W)
    annotations = [item["anno_id"] for item in objects.values()]
    truth = torch.from_numpy(split.masks(name, annotations, range(len(frames)), size)).transpose(0, 1)  # (T, G, H, W)
    overlap = torch.einsum("tnhw,tghw->tng", masks.float(), truth.float())
    area = masks.float().sum((2, 3))[..., None] + truth.float().sum((2, 3))[:, None]
    iou = (overlap / (area - overlap).clamp(min=1)) * found.seen[0][..., None]
    best = iou.max(2)
    owner = torch.where(best.values >= FOUND, best.indices, -1)  # (T, N)
    small = F.interpolate(truth.float(), [side // 4 for side in images.shape[-2:]], mode="area")
    coarse = output_masks(F.interpolate(small - 0.5, inner, mode="bilinear").transpose(0, 1), size).transpose(0, 1) > 0
    ids, scores = list(objects), []
    for item in items:
        meant = [ids.index(each) for each in item.objects]
        text = model.language(segmenter.tokenizer([item.text]))
        video = model.decode_motion(found, text)
        assert isinstance(video.readout, TrajectoryReadout)
        passed = video.logits[0].softmax(-1)[:, 0] > config.readout.threshold
        pointer = video.readout.pointer[0][passed]  # (K, T, N+1)
        first = pointer.argmax(-1)  # (K, T)
        chosen = torch.gather(F.pad(owner, (0, 1), value=-1), 1, first.T)  # (T, K)
        named = torch.stack([(chosen == g).any(1) for g in range(len(ids))], 1)  # (T, G)
        answers = {
            ROWS[0]: coarse[:, meant].any(1),
            ROWS[1]: (masks & torch.isin(owner, torch.tensor(meant))[..., None, None]).any(1),
            ROWS[2]: (truth & named[..., None, None]).any(1),
        }
        for row, hard in ((ROWS[3], False), (ROWS[4], True)):
            share = TrajectoryReadout(pointer[None], hard).clip_masks(logits[None], None)[0]  # (K, T, h, w)
            answers[row] = (output_masks(input_masks(share, size, config.input), size) > 0).any(0)
        real = truth[:, meant].any(1).numpy()
        scores.append({row: 50 * sum(jf(answer.numpy(), real)) for row, answer in answers.items()})
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--split", default="valid_u")
    parser.add_argument("--videos", type=int, default=100)
    chosen = parser.parse_args()
    segmenter = Segmenter.from_pretrained(chosen.model, device="cpu")
    split = open_split("mevis", chosen.root, chosen.split)
    names = list(by_video(split))
    values: dict[str, list[float]] = defaultdict(list)
    picked = [names[int(i)] for i in np.linspace(0, len(names) - 1, min(chosen.videos, len(names)))]
    for name in track(picked, "videos"):
        for scores in video_scores(segmenter, split, name):
            for row, value in scores.items():
                values[row].append(value)
    print(f"{len(picked)} videos, {len(values[ROWS[0]])} sentences")
    for row in ROWS:
        print(f"{np.mean(values[row]):6.1f}  {row}")


if __name__ == "__main__":
    main()
