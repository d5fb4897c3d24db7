"""Objects that sentences name: Grounding DINO finds them in key frames, SAM 2 makes masks and follows them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dshmp.candidates.grounding import Boxes, Grounding
from dshmp.candidates.hub import find_folder
from dshmp.candidates.overlaps import box_overlap, boxes_of, first_of_each, is_new
from dshmp.candidates.propagation import Propagation
from dshmp.common.errors import UserError
from dshmp.common.progress import Progress
from dshmp.common.rle import Rle, encode
from dshmp.config import Count, Share
from dshmp.formats.tracks import Track, Tracks
from dshmp.video.source import VideoSource


@dataclass(frozen=True)
class OpenVocabulary:
    """The settings, and a `CandidateSource`: of a video the objects that its sentences name, from the key frame on in
    which each is found first. Frames are read once, one by one.

    Raises UserError where no sentence names an object, or a model is not to be had.
    """

    detector: str = "IDEA-Research/grounding-dino-tiny"  # or a folder
    detector_revision: str = "a2bb814dd30d776dcf7e30523b00659f4f141c71"
    segmenter: str = "facebook/sam2.1-hiera-tiny"  # or a folder
    segmenter_revision: str = "de431c4043854a71d8101e17995dfe596bf101a5"
    every: Count = 8  # frames from one key frame to the next
    threshold: Share = 0.3  # how sure the detector must be of a box
    overlap: Share = 0.5  # IoU from which two boxes, or two masks, are the same object
    most: Count = 16  # objects that are followed at once
    patience: Count = 32  # frames for which an object that is not seen is followed

    def __call__(self, source: VideoSource, phrases: Sequence[str], device: torch.device, progress: Progress) -> Tracks:
        phrases = named(phrases)
        folder = find_folder(self.detector, self.detector_revision, "690 MB, Apache 2.0 (Grounding DINO)")
        detect = Grounding(folder, phrases, device)
        folder = find_folder(self.segmenter, self.segmenter_revision, "160 MB, Apache 2.0 (SAM 2.1)")
        follow = Propagation(folder, device, self.patience)
        masks: dict[int, dict[int, Rle]] = defaultdict(dict)
        names: dict[int, str] = {}
        for t, frame in enumerate(source):
            found = follow.move(frame.image)
            if t % self.every == 0:
                room = self.most - len(follow.sessions)
                boxes = self._new(detect(frame.image, self.threshold), found.values(), room)
                first = follow.count
                for number, mask in follow.begin(boxes.places).items():
                    if is_new(mask, found.values(), self.overlap):
                        found[number] = mask
                        names[number] = phrases[boxes.phrases[number - first]]
                    else:
                        follow.end(number)
            for number, mask in found.items():
                masks[number][source.start + t] = encode(mask)
            progress("candidates", t + 1, source.count)
        return phrase_tracks(source, phrases, masks, names)

    def _new(self, boxes: Boxes, known: Iterable[NDArray[np.bool_]], most: int) -> Boxes:
        """Of a key frame's boxes the surest of each object, but of none that is followed already."""
        fresh = (box_overlap(boxes.places, boxes_of(known)) <= self.overlap).all(1)
        rows = torch.nonzero(fresh)[:, 0]
        places = boxes.places[rows]
        kept = rows[first_of_each(box_overlap(places, places) > self.overlap)[: max(0, most)]]
        return Boxes(boxes.places[kept], boxes.scores[kept], [boxes.phrases[k] for k in kept.tolist()])


def named(phrases: Sequence[str]) -> Sequence[str]:
    """The phrases; UserError if there is none."""
    if not phrases:
        fault = "no sentence names an object to look for"
        raise UserError(f'{fault}; say what it is ("the dog that turns back"), or take --candidates moving')
    return phrases


def phrase_tracks(
    source: VideoSource, phrases: Sequence[str], masks: Mapping[int, dict[int, Rle]], names: Mapping[int, str]
) -> Tracks:
    """Tracks of objects by number, each with its masks by frame and the phrase that found it."""
    items = (Track(str(k), masks[number], words_of(names[number])) for k, number in enumerate(sorted(masks), 1))
    vocabulary = frozenset(word for phrase in phrases for word in words_of(phrase))
    return Tracks(source.height, source.width, tuple(items), vocabulary=vocabulary)


def words_of(phrase: str) -> tuple[str, ...]:
    """The words of a phrase, and what they may be the plural of."""
    words = re.findall(r"[^\W_]+", phrase.lower())
    return tuple(dict.fromkeys(word.removesuffix(end) for word in words for end in ("", "s", "es")))
