"""A clip of look-alikes, three sentences that differ in motion only, and one picture that shows the answers."""

import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dshmp.common.errors import UserError
from dshmp.common.files import check_owned, destination, owned_file
from dshmp.common.options import Options
from dshmp.common.progress import Progress
from dshmp.inference.segment import segment_to_folder
from dshmp.inference.segmenter import Segmenter
from dshmp.results.folder import answer_folder, remove_answers
from dshmp.synthetic import motions
from dshmp.synthetic.grammar import Meaning, Static, Wording, inflect, resolve
from dshmp.synthetic.make import make_clip
from dshmp.synthetic.plan import Plan, plan_clip
from dshmp.video.overlay import Caption, contact_sheet, overlay_writer

VIDEO, SHEET = "look-alikes.mp4", "contact-sheet.png"
FPS = 8  # the pace of the synthetic data's clips
ENLARGED = 3
SENTENCES = 3
SEED = 14  # of a clip with three look-alikes


def run(
    out: Path, model: str = "default", device: str = "auto", seed: int = SEED, progress: Progress | None = None
) -> tuple[Path, list[tuple[str, float]]]:
    """Write `look-alikes.mp4`, the answers beside it, and `contact-sheet.png`; those of an earlier demo are replaced,
    other files of these names a UserError. Returns the sheet, and per sentence the IoU with the truth over the clip."""
    place = destination(out, folder=True)
    check_owned(place, (VIDEO, SHEET))
    video = place / VIDEO
    frames, sentences, truths = make_demo(seed)
    earlier, _ = answer_folder(video, place)  # where it is not ours, nothing is written
    segmenter = Segmenter.from_pretrained(model, device)
    remove_answers(earlier)
    height, width = frames.shape[1:3]
    with owned_file(place, VIDEO) as part:
        write_clip(part, frames)
    options = Options(model=model)
    _, results, _ = segment_to_folder(video, sentences, place, options, lambda _: segmenter, progress=progress)
    rows, scores = [], []
    for result, truth in zip(results, truths, strict=True):
        masks = np.stack([item.masks for item in result.objects] or [result.masks], axis=1)[..., :height, :width]
        union = masks.any(axis=1)
        iou = float((union & truth).sum() / max((union | truth).sum(), 1))
        scores.append((result.expression, iou))
        count, note = len(result.objects), f"IoU {iou:.2f}"
        caption = Caption(result.expression, result.words, result.score, count, result.evidence, result.times, note)
        rows.append((caption, masks, truth))
    with owned_file(place, SHEET) as part:
        contact_sheet(part, frames, rows, "Three look-alikes, told apart by their motion")
    return out / SHEET, scores


def write_clip(path: Path, frames: NDArray[np.uint8]) -> None:
    """The frames (T, H, W, 3) as a video; a last row or column is doubled where it is odd."""
    height, width = frames.shape[1:3]
    with overlay_writer(path, height + height % 2, width + width % 2, FPS) as write:
        for index, frame in enumerate(frames):
            write(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"), index / FPS)


def make_demo(seed: int = SEED) -> tuple[NDArray[np.uint8], list[str], list[NDArray[np.bool_]]]:
    """The first validation clip from `seed` on with three look-alikes that a sentence each picks out by motion: its
    frames (T, H, W, 3), enlarged, the sentences and the true masks (T, H, W) of each."""
    for number in range(seed * 1000, seed * 1000 + 1000):
        plan = plan_clip(number, "alike", "valid_u", version=1)
        if (chosen := _look_alikes(plan)) is not None:
            static, meant = chosen
            clip = make_clip(number, "alike", "valid_u", version=1)
            wording = Wording(random.Random(number), "plain")
            noun = wording.noun_phrase(static)
            moves = [wording.predicate(plan.items[i].motion.name, None, False) for i in meant]
            frames = clip.frames.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
            truth = clip.masks.repeat(ENLARGED, axis=2).repeat(ENLARGED, axis=3)
            sentences = [f"the {noun} that {inflect(move, 'third')}" for move in moves]
            return frames, sentences, [truth[i] for i in meant]
    raise UserError(f"no clip with three look-alikes near seed {seed}; try another --seed")


def _look_alikes(plan: Plan) -> tuple[Static, list[int]] | None:
    """A description that fits three objects or more, and three of them that its motion sets apart beyond doubt."""
    looks, moves = [item.look for item in plan.items], [item.motion for item in plan.items]
    for look in looks:
        static: Static = (("colour", look.colour), ("shape", look.shape))
        alone = []
        for i in resolve(Meaning(static), looks, moves).meant:
            if moves[i].name not in motions.RELATIVE:
                found = resolve(Meaning(static, moves[i].name), looks, moves)
                alone += [i] if found.meant == (i,) and not found.doubtful else []
        if len(alone) >= SENTENCES:
            return static, alone[:SENTENCES]
    return None
