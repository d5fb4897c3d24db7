"""A model that answers sentences about videos. How memory stays bounded is told in `dshmp.inference.encoded`."""

import contextlib
import functools
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray

from dshmp.candidates import CandidateSource, find_source
from dshmp.card import HERE, Card, lacks, model_card
from dshmp.common.arguments import Threshold, checked
from dshmp.common.device import find_device, to_device
from dshmp.common.errors import UserError
from dshmp.common.files import reason
from dshmp.common.options import Kind, Precision, Targets
from dshmp.common.progress import Progress
from dshmp.formats.reading import find_tracks
from dshmp.formats.tracks import checked_tracks
from dshmp.inference.encoded import Asked, AskedVideo, EncodedVideo, Memory, Query, Selection, average_rate
from dshmp.inference.runtime import Runtime, dtype, told_of_memory
from dshmp.inference.spill import Spill
from dshmp.inference.stream import Extent, FrameResult, answers, window_frames
from dshmp.inference.tracked import (
    FramesRead,
    TrackedVideo,
    nothing,
    pointed_tracks,
    track_candidates,
    unchecked,
    with_appearance,
    with_labels,
)
from dshmp.model.camera import camera_motion
from dshmp.model.candidates import Candidates
from dshmp.model.frame_decoder import uses_language
from dshmp.model.frames import input_size
from dshmp.model.words import noun_phrases
from dshmp.results.result import Result
from dshmp.video.io import FrameRange, Video, open_video
from dshmp.video.live import LiveVideo, open_live
from dshmp.video.source import VideoSource

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from dshmp.config import ModelConfig
    from dshmp.model.dshmp import DsHmp
    from dshmp.model.tokenizer import TextTokenizer

GUESS = 0.5  # what is left of a score where words of the sentence could not be checked

log = logging.getLogger("dshmp")


class Options(Asked, total=False):
    frames: FrameRange
    fps: float | None


class Streaming(TypedDict, total=False):
    fps: float | None
    window: Extent | None
    overlap: Extent | None
    memory: Extent | None
    threshold: float | None
    targets: Targets | None
    candidates: "Kind | CandidateSource | None"
    still_camera: bool


class Segmenter:
    """Answers sentences about videos; input that cannot be answered is a UserError.

    Several threads may use one: calls, `encode` and `stream` change nothing in it. A stream is read by one thread. It
    can be pickled, and so be sent to other processes.

    >>> seg = Segmenter.from_pretrained("default")
    >>> result = seg("clip.mp4", "the one that turns back")
    >>> result.found, result.score, result.masks.shape
    """

    extra_state: Path | None = None  # what the authors' checkpoint held beyond the model; saved and pushed with it

    def __init__(
        self,
        model: "DsHmp",
        tokenizer: "TextTokenizer",
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        card: Card | None = None,
    ) -> None:
        place = find_device(device)
        self.runtime = Runtime(model.to(place).eval(), place, dtype(precision, place, model.config.release.autocast))
        self.tokenizer = tokenizer
        self.card = card or Card()

    @property
    def model(self) -> "DsHmp":
        return self.runtime.model

    @property
    def config(self) -> "ModelConfig":
        return self.runtime.config

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def precision(self) -> torch.dtype:
        """Of what need not be exact."""
        return self.runtime.precision

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "default",
        device: str = "auto",
        precision: Precision = "auto",
        overrides: Iterable[str] = (),
        **hub: Any,
    ) -> Self:
        """Load a model: "default" (in the package), a folder (saved model or training run), or a hub id; `hub` is what
        huggingface_hub takes: revision, token, cache_dir, local_files_only, force_download. Device "auto" is a GPU
        where there is one, precision "auto" the model's own on a GPU that has it, else float32. `overrides` are
        `key=value` for numbers of the config's section `input`, such as "input.short_side=256"."""
        from dshmp.checkpoint import CONFIG, EXTRA_STATE, find_model, load_config, load_model

        folder = find_model(name, **hub)
        segmenter = cls(*load_model(folder, overrides), device, precision, load_config(folder / CONFIG).card)
        if (folder / EXTRA_STATE).is_file():
            segmenter.extra_state = folder / EXTRA_STATE
        return segmenter

    def save_pretrained(self, save_directory: str | Path, *, where: str = HERE) -> None:
        """Write config.json, model.safetensors, tokenizer.json and README.md, which tells people to load `where`."""
        from dshmp.checkpoint import save_model

        save_model(self.model, self.tokenizer, Path(save_directory), self.card, where, self.extra_state)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, branch: str | None = None, **push: Any) -> str:
        """Put the model into the repository `owner/name`, or the token's owner's `name`, on the Hugging Face hub. It is
        made if need be. `push` is a token, and what else `HfApi.upload_folder` takes. Returns the commit's address."""
        from huggingface_hub import HfApi

        if missing := lacks(self.card):
            log.warning("%s: the model's card does not state %s; see Segmenter.card", repo_id, " or ".join(missing))
        try:
            api = HfApi(token=push.pop("token", None))
            name = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
            push = {"commit_message": "Push a dshmp model", "revision": branch, **push}
            with tempfile.TemporaryDirectory(prefix="dshmp-") as folder:
                self.save_pretrained(folder, where=name)
                return str(api.upload_folder(repo_id=name, folder_path=folder, **push))
        except UserError:
            raise
        except Exception as error:  # the hub client raises a dozen kinds: no network, no token, no permission
            raise UserError(f"{repo_id}: cannot be pushed to the hub ({reason(error)})") from None

    def generate_model_card(self, where: str = HERE) -> "ModelCard":
        """The README.md that is saved; `where` is what it tells people to load."""
        return model_card(self.card, where)

    @overload
    def __call__(self, video: Video, expression: str, **options: Unpack[Options]) -> Result: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, video: Video, expression: Sequence[str], **options: Unpack[Options]) -> list[Result]: ...

    def __call__(
        self,
        video: Video,
        expression: str | Sequence[str],
        *,
        frames: FrameRange = None,
        fps: float | None = None,
        **asked: Unpack[Asked],
    ) -> Result | list[Result]:
        """Segment what `expression` means: one sentence, or several that share the decoding.

        Args:
            video: what `open_video` takes: a path, a uint8 array (T, H, W, 3), an iterable of frames.
            threshold: a video token is meant if its probability exceeds this. By default the model's own for
                many targets; 0 for a single one, which is then always answered.
            frames: "A:B", only these frames.
            targets: "many" (union of all that are meant) or "single" (the best one); by default the model's own.
            fps: of arrays and images; without it they are taken at the pace the model was trained on.
            progress: called after every chunk of frames.
            all_objects: keep the candidates that are not meant, too: the result's `others`.
            tracks: objects made elsewhere, of which the sentence chooses: a file or folder that `read_tracks` takes,
                masks (K, T, H, W), or a `supervision.Detections` per frame. Each object of a result is one `track`.
            candidates: what finds such objects: "open", "coco", "sam3", "moving" (`dshmp.candidates`), or a function
                of a video, the sentences' noun phrases, a device and a progress, which returns `Tracks`.
            still_camera: it does not move; by default its motion is read from the pictures. Of tracks alone.

        Raises TypeError for an argument of another type, UserError for a wrong value; nothing is decoded then.
        """
        sentences = self.sentences(expression)
        self.readout(asked.get("threshold"), asked.get("targets"))
        results = self.answer(open_video(video, frames, fps), sentences, **asked)
        return results[0] if isinstance(expression, str) else results

    @overload
    def stream(self, source: LiveVideo, expression: str, **how: Unpack[Streaming]) -> Iterator[FrameResult]: ...  # type: ignore[overload-overlap]

    @overload
    def stream(
        self, source: LiveVideo, expression: Sequence[str], **how: Unpack[Streaming]
    ) -> Iterator[list[FrameResult]]: ...

    def stream(
        self,
        source: LiveVideo,
        expression: str | Sequence[str],
        *,
        fps: float | None = None,
        window: Extent | None = None,
        overlap: Extent | None = None,
        memory: Extent | None = None,
        threshold: float | None = None,
        targets: Targets | None = None,
        candidates: "Kind | CandidateSource | None" = None,
        still_camera: bool = False,
    ) -> Iterator[FrameResult] | Iterator[list[FrameResult]]:
        """Segment what `expression` means in a video that may never end: one sentence, or several that share the work.
        Gives a result per frame and sentence as soon as the frame's window is complete, and never revises it.

        Args:
            source: what `open_live` takes: the number of a camera, an address such as rtsp://..., "-" (stdin), a named
                pipe, a file, an iterable of frames.
            fps: of arrays, images and iterables; of a camera or RTSP, how many frames a second are taken at most.
            window: how many frames are answered at once, or seconds as "2s"; by default 16 frames at the pace that the
                model was trained on. A video that is no longer is answered as a call does.
            overlap: how many of them are those of the window before; by default half.
            memory: how many frames before the window an answer knows, too; by default twice as many as it has, 0 for
                none. Of those only the model's own candidates are kept; where `candidates` find them, there is none.
            threshold, targets, candidates, still_camera: as of a call.

        Raises TypeError for an argument of another type, UserError for a wrong value or a source that cannot be opened;
        at once, not at the first frame.
        """
        sentences = self.sentences(expression)
        self.readout(threshold, targets)
        if not sentences:
            raise UserError("no expression given; say in words what to segment")
        find = candidates if candidates is None or callable(candidates) else find_source(candidates)
        asked = Asked(threshold=threshold, targets=targets, candidates=find, still_camera=still_camera)
        live = open_live(source, fps, pace := self.config.input.motion_fps)
        length, shared, past = window_frames(window, overlap, memory, live.fps, pace)
        found = answers(lambda *clip: self.answer(clip[0], sentences, clip[1], **asked), live, length, shared, past)
        return (each[0] for each in found) if isinstance(expression, str) else found

    def sentences(self, expression: str | Sequence[str]) -> list[str]:
        """One sentence or several, all of which the model can read; TypeError or UserError otherwise."""
        if not isinstance(expression, str) and (isinstance(expression, bytes) or not isinstance(expression, Iterable)):
            raise TypeError(f"an expression must be a text, or several, not {type(expression).__name__}")
        sentences = [expression] if isinstance(expression, str) else list(expression)
        for text in sentences:
            self.tokenizer.check(text)
        return sentences

    def encode(
        self,
        video: Video,
        *,
        frames: FrameRange = None,
        fps: float | None = None,
        progress: Progress | None = None,
    ) -> EncodedVideo:
        """Compute once what no sentence changes: `video("the one that turns back")` then answers, again and again, as a
        call of this with the video does. Arguments and errors are those of a call."""
        encoded = EncodedVideo(self.runtime, source := open_video(video, frames, fps), self._again, Spill(), source.fps)
        try:
            for _ in encoded.parts(_progress(progress)):
                pass
        except BaseException:
            encoded.close()
            raise
        return encoded

    def answer(
        self,
        video: VideoSource | EncodedVideo,
        expressions: Sequence[str],
        memory: Memory | None = None,
        **asked: Unpack[Asked],
    ) -> list[Result]:
        """As a call with several sentences, of a video that is open or encoded; `memory` is of a stream's windows."""
        with self.asking(video, expressions, memory, **asked) as clip:
            for _, masks in clip.frames(False):
                for answer, mask in zip(clip.answers, masks, strict=True):
                    answer.add(mask)
            return [clip.result(answer) for answer in clip.answers]

    def _again(self, video: EncodedVideo, expression: str | Sequence[str], asked: Asked) -> list[Result]:
        return self.answer(video, self.sentences(expression), **asked)

    @contextlib.contextmanager
    def ask(
        self,
        video: VideoSource | EncodedVideo,
        expressions: Sequence[str],
        memory: Memory | None = None,
        **asked: Unpack[Asked],
    ) -> Iterator[AskedVideo]:
        """First pass and understanding; the second pass is `decode_masks`. Leaves no temporary file."""
        threshold, targets = self.readout(asked.get("threshold"), asked.get("targets"))
        progress = _progress(asked.get("progress"))
        keep_all = checked("all_objects", asked.get("all_objects", False), bool, "True or False")
        if learned_from_tracks_alone(self.card.recipe):
            ways = "give it --tracks or --candidates"
            raise UserError(f"this model has learned from tracks alone and finds no objects itself; {ways}")
        queries = self._queries(expressions)
        with contextlib.ExitStack() as files:

            def file(lossless: bool = False) -> Spill:
                return files.enter_context(contextlib.closing(Spill(lossless)))

            if isinstance(video, VideoSource):
                video = EncodedVideo(self.runtime, video, self._again, None, video.fps)
            # an encoded video has the maps, unless words reach them, and keeps the candidates, unless these hear words
            maps = file() if video.spill is None or self.config.backbone.language_fusion else None
            heard = uses_language(self.model.perception)
            kept = video.spill is not None and not heard
            objects = video.objects or (Spill(lossless=True) if kept else file(lossless=True))
            clip = AskedVideo(video, progress, maps, objects, memory=memory)
            if video.objects is None:
                self._find_objects(clip, queries if heard else queries[:1])
            if kept:
                video.objects, video.corners = objects, []
            progress("motion", 0, None)
            clip.answers = tuple(
                self._select(query, functools.partial(clip.candidates, number), clip, threshold, targets, keep_all)
                for number, query in enumerate(queries)
            )
            progress("motion", 1, 1)
            yield clip

    def ask_tracks(
        self, video: VideoSource | EncodedVideo, expressions: Sequence[str], **asked: Unpack[Asked]
    ) -> TrackedVideo:
        """Which of `tracks` the sentences mean. Pictures are read for the camera's motion alone."""
        threshold, targets = self.readout(asked.get("threshold"), asked.get("targets"))
        source = video if isinstance(video, VideoSource) else video.source
        if not self.config.motion.geometry or self.config.readout.masks != "trajectories":
            raise UserError("this model reads no geometry, so it cannot choose among tracks; take --model default")
        progress = _progress(asked.get("progress"))
        keep_all = checked("all_objects", asked.get("all_objects", False), bool, "True or False")
        still = checked("still_camera", asked.get("still_camera", False), bool, "True or False")
        given: Any = asked.get("candidates")
        if given is not None and asked.get("tracks") is not None:
            raise UserError("tracks and candidates are both given; the sentence chooses among one kind, leave one out")
        queries = self._queries(expressions)
        # a model may not read the camera's motion
        read = FramesRead(source, self.config.input, still or not self.config.motion.camera)
        if given is None:
            tracks = find_tracks(asked["tracks"], source)
        else:
            find, phrases = given if callable(given) else find_source(given), self._phrases(expressions)
            with told_of_memory(self.device):
                tracks = checked_tracks(find(read.noting(), phrases, self.device, progress), source)
        read.finish(progress)
        found = with_appearance(track_candidates(read, tracks), tracks, self.config.motion.appearance)
        times = read.times
        looks = found.appearance is not None
        clip = TrackedVideo(source, tracks, average_rate(source.fps, times), times, progress)
        progress("motion", 0, None)
        clip.answers = tuple(
            self._select(q, functools.partial(with_labels, found, q, tracks), clip, threshold, targets, keep_all)
            if tracks.items
            else nothing(q, threshold, len(times))
            for q in (replace(query, unknown=unchecked(query, tracks, looks)) for query in queries)
        )
        progress("motion", 1, 1)
        return clip

    def asking(
        self,
        video: VideoSource | EncodedVideo,
        expressions: Sequence[str],
        memory: Memory | None = None,
        **asked: Unpack[Asked],
    ) -> AbstractContextManager[AskedVideo | TrackedVideo]:
        """`ask_tracks` where tracks are given, or what finds them, else `ask`."""
        if asked.get("tracks") is not None or asked.get("candidates") is not None:
            return contextlib.nullcontext(self.ask_tracks(video, expressions, **asked))
        return self.ask(video, expressions, memory, **asked)

    def readout(self, threshold: float | None = None, targets: Targets | None = None) -> tuple[float, Targets]:
        """The threshold and targets that a query is answered with; the model's own where they are not given."""
        asked: Targets = self.config.readout.targets
        if targets is not None:
            asked = checked("targets", targets, Targets, "many or single")
        if threshold is None:
            return self.config.readout.threshold if asked == "many" else 0.0, asked
        return checked("the threshold", threshold, Threshold, "a number between 0 and 1"), asked

    def _queries(self, expressions: Sequence[str]) -> list[Query]:
        if not expressions:
            raise UserError("no expression given; say in words what to segment")
        return [self._query(expression) for expression in expressions]

    def _query(self, expression: str) -> Query:
        with self.runtime.inference(exact=True):
            text = self.model.language(to_device(self.tokenizer([expression]), self.device)).trimmed()
        shown = expression
        if self.config.language.normalise:  # the words' places refer to the normalised sentence
            shown = " ".join(expression.split())
            shown = shown if len(shown) == len(shown.lower()) else shown.lower()
        return Query(shown, tuple(self.tokenizer.split(expression)), text, tuple(self.tokenizer.unknown(expression)))

    def _phrases(self, expressions: Sequence[str]) -> list[str]:
        """What the sentences call their objects, each once."""
        parser = self.config.language.spacy_model
        return list(dict.fromkeys(phrase for each in noun_phrases(expressions, parser) for phrase in each))

    def _find_objects(self, clip: AskedVideo, queries: Sequence[Query]) -> None:
        """First pass: the candidates of these queries."""
        source = clip.video.source
        size = input_size((source.height, source.width), self.config.input)
        before: list[NDArray[np.bool_] | None] = [None] * len(queries)  # where candidates were in the last frame
        for chunk, part in enumerate(clip.video.parts(clip.progress)):
            pixels, objects = clip.video.pixels(part, queries), []
            with self.runtime.inference():
                for number, (query, features) in enumerate(zip(queries, cycle(pixels), strict=False)):
                    seen = self.model.encode_objects(features, query.text)
                    objects += [seen.tokens.float(), seen.mask_embed]
                    if self.config.motion.geometry:
                        found = self.model.detect(seen, size)
                        covered = found.covered.cpu().numpy()
                        camera = camera_motion(clip.video.corners[chunk], covered, before[number])
                        objects += [found.present, found.geometry.half(), *camera]
                        before[number] = covered[-1]
                if clip.maps is not None:
                    clip.maps.write([self.model.mask_pixels(features) for features in pixels])
            if clip.video.corners and clip.video.spill is None:
                clip.video.corners[chunk] = []  # nobody asks again
            clip.objects.write(objects)

    def _select(
        self,
        query: Query,
        candidates: Callable[[], Candidates],
        clip: AskedVideo | TrackedVideo,
        threshold: float,
        targets: Targets,
        keep_all: bool,
    ) -> Selection:
        """Motion perception over the whole clip, then who is meant by a query."""
        before = clip.before if isinstance(clip, AskedVideo) else 0
        length, positions, rate = before + len(clip.times), clip.source.positions, self.config.input.motion_fps
        place = None if positions is None else torch.tensor([positions], dtype=torch.float32, device=self.device)
        stride = max(1, round(clip.fps / rate)) if clip.fps and rate else 1
        with self.runtime.inference(exact=True):  # no variable holds the tokens, so they go when they are read
            found = self.model.decode_motion(
                candidates().each(lambda value: value.to(self.device)),
                query.text,
                place,
                stride=min(stride, length),
            )
        scores = found.logits[0].float().softmax(dim=-1)[:, 0]
        if query.unknown:
            told = ", ".join(repr(word.text) for word in query.unknown)
            log.warning(
                "%r: %s cannot be told here; what it finds is a guess, with half its score", query.expression, told
            )
            scores = scores * GUESS
        order = scores.argsort(descending=True).tolist()
        best = float(scores[order[0]])
        if not math.isfinite(best):
            raise UserError("the model's answer is not a number; try --precision float32, or another model")
        names: dict[int, str] = {}  # a token's track; of two of the same one the surer counts
        if isinstance(clip, TrackedVideo):
            pointed = pointed_tracks(found)
            names = {token: clip.tracks.items[pointed[token]].name for token in order}
            order = list({pointed[token]: token for token in reversed(order)}.values())
            order.sort(key=lambda token: -float(scores[token]))
        chosen = [token for token in (order[:1] if targets == "single" else order) if scores[token] > threshold]
        kept = order if keep_all else chosen  # the chosen ones come first in both
        attention = found.attention[0].float()[kept or order[:1], before:].cpu().double().numpy()
        seen = attention.sum(axis=1, keepdims=True) + 1e-30  # all of it may lie on what a stream remembers
        chances, evidence = tuple(scores[kept].tolist()), attention / seen
        light = found.answer(list(kept))
        tracks = tuple(names[token] for token in kept if token in names)
        return Selection(query, light, tuple(chosen), chances, best, threshold, tuple(kept), evidence, tracks)


def learned_from_tracks_alone(recipe: Mapping[str, Any]) -> bool:
    """Whether a model's static perception is as random as it began; of a card's recipe."""
    begun = any(recipe.get(name) for name in ("init", "mask2former"))
    return recipe.get("candidates", "perception") != "perception" and not begun


def _progress(progress: Progress | None) -> Progress:
    if progress is None:
        return lambda phase, done, total: None
    if not callable(progress):
        raise TypeError(f"progress must be a function, not {type(progress).__name__}")
    return progress
