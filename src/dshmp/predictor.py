"""From a video and sentences to masks, in two passes, so that memory does not grow with the video.

The first pass decodes frames in chunks and keeps their object tokens, which are small; pixel features go to a
temporary file, as reading takes a twentieth of the time of perceiving anew; beyond `SPILL_LIMIT` bytes the rest is
perceived anew. Then the model understands the whole clip. The second pass makes the masks chunk by chunk.
"""

import contextlib
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from dshmp.arguments import Threshold, checked
from dshmp.card import HERE, Card, lacks, model_card
from dshmp.device import find_device, to_device
from dshmp.errors import UserError
from dshmp.files import reason
from dshmp.model.frames import input_masks, input_size, output_masks, prepare_frames
from dshmp.options import Precision, Targets
from dshmp.result import ObjectResult, Result
from dshmp.rle import Rle, encode
from dshmp.video.io import FrameRange, Video, open_video
from dshmp.video.source import Frame, VideoSource

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from dshmp.model.dshmp import DsHmp
    from dshmp.model.motion_decoder import VideoTokens
    from dshmp.model.pixel_decoder import PixelFeatures
    from dshmp.model.text import TextFeatures
    from dshmp.model.tokenizer import TextTokenizer
    from dshmp.parser import Word

log = logging.getLogger("dshmp")

Progress = Callable[[str, int, int | None], None]  # told what is being done, steps done, steps in all (None: unknown)
Masks = NDArray[np.bool_]
T = TypeVar("T")

SPILL_LIMIT = 4 * 2**30
CPU_PIXELS = (
    2**20
)  # perceived at once; at 448x796 two frames take four fifths of the time of eight, and half the memory


class Asked(TypedDict, total=False):
    threshold: float | None
    targets: Targets | None
    progress: Progress | None
    all_objects: bool


class Options(Asked, total=False):
    frames: FrameRange
    fps: float | None


@dataclass(frozen=True)
class Query:
    """An expression, ready for the model."""

    expression: str
    words: "tuple[Word, ...]"
    text: "TextFeatures"


class Quality:
    """How sure masks of K objects are of themselves: the mean probability inside a mask, over all frames, at the size
    of the network's input (as in the release)."""

    def __init__(self, objects: int) -> None:
        self.sums, self.pixels = np.zeros(objects), np.zeros(objects)

    def add(self, logits: Tensor) -> None:
        """Take the mask logits (K, F, h, w) of some frames."""
        inside = logits > 0
        self.sums += (logits.sigmoid() * inside).sum((1, 2, 3)).cpu().double().numpy()
        self.pixels += inside.sum((1, 2, 3)).cpu().numpy()

    def means(self) -> list[float]:
        """One per object, 0 to 1; 0 where its mask is empty in all frames."""
        return list((self.sums / (self.pixels + 1e-6)).tolist())


@dataclass
class Selection:
    """What the model answers to a query; the last two fields come with the second pass."""

    query: Query
    video: "VideoTokens"  # of this expression alone (B = 1)
    chosen: tuple[int, ...]  # video tokens meant, best first; empty where nothing matches
    scores: tuple[float, ...]  # probability that each of the kept tokens is meant
    best: float
    threshold: float
    kept: tuple[int, ...]  # video tokens whose masks are made: the chosen ones, then, if asked for, all others
    evidence: NDArray[np.float64]  # (kept or 1, T): share of each frame in the tokens' attention; rows sum to 1
    quality: Quality | None = None  # of the kept tokens' masks; None where the model's scores are without
    rles: list[list[Rle]] = field(default_factory=list)  # per frame added the masks' union, then each kept token's

    @property
    def mean_evidence(self) -> tuple[float, ...]:
        return tuple(self.evidence[: max(1, len(self.chosen))].mean(axis=0).tolist())

    def add(self, masks: Masks) -> Masks:
        """Keep the masks (K, H, W) of the next frame as run lengths; returns their union (H, W)."""
        union, rles = np.asarray(masks[: len(self.chosen)].any(axis=0)), [encode(mask) for mask in masks]
        self.rles.append([rles[0] if len(rles) == len(self.chosen) == 1 else encode(union), *rles])
        return union


@dataclass
class EncodedClip:
    """A video that has been perceived and understood; `decode_masks` is the second pass."""

    segmenter: "Segmenter"
    source: VideoSource
    spill: "_Spill"
    progress: Progress
    fps: float | None  # average over the frames read; None where the rate isn't known
    answers: tuple[Selection, ...] = ()
    times: list[float] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)  # frames of each
    mask_embed: list[list[Tensor]] = field(default_factory=list)  # per query and chunk (F, N, C)

    def decode_masks(self, make: Callable[[Tensor], T], pixels: bool) -> Iterator[tuple[Frame | None, list[T]]]:
        """Per frame the decoded picture (certain only with `pixels`) and per expression what `make` makes of its
        objects' mask logits (K, H, W), float32: at once, so that only one expression's are in memory. Frames are
        decoded again only where their pixels are wanted or perceived anew."""
        seg, answers = self.segmenter, self.answers
        for answer in answers:
            answer.quality = Quality(len(answer.kept)) if seg.config.release.score == "quality" else None
        wanted = any(answer.kept for answer in answers)
        decoded = _again(self.source) if pixels or (wanted and not self.spill.complete) else repeat(None)
        start = 0
        for chunk, length in enumerate(self.chunks):
            frames: Iterator[Frame | None] = islice(decoded, length)
            features = self.spill.read(chunk, seg.device) if wanted else [torch.empty(0)]
            if not features:
                again = [frame for frame in frames if frame is not None]
                images = [prepare_frames([frame.image], seg.config.input) for frame in again]
                _, features = seg._pixels(images, [answer.query for answer in answers])
                frames = iter(again)
            place = slice(start, start + length)
            with seg._inference():
                logits = [  # of the kept video tokens (K, F, h, w)
                    seg.model.decode_masks(answer.video, place, feature, embed[chunk])[list(answer.kept)].float()
                    if answer.kept
                    else torch.empty(0, 1)
                    for answer, embed, feature in zip(answers, self.mask_embed, cycle(features), strict=False)
                ]
            for t, frame in enumerate(frames):
                own = zip(answers, logits, strict=True)
                yield frame, [make(self._at_size(answer, each[:, t : t + 1])) for answer, each in own]
                self.progress("masks", start + t + 1, len(self.times))
            start += length

    def _at_size(self, answer: Selection, logits: Tensor) -> Tensor:
        """One frame's mask logits (K, 1, h, w) -> (K, H, W) at the frame's own size."""
        size = (self.source.height, self.source.width)
        if not answer.kept:
            return torch.zeros(0, *size)
        logits = input_masks(logits, size, self.segmenter.config.input)
        if answer.quality is not None:
            answer.quality.add(logits)
        return output_masks(logits, size)[:, 0]

    def frames(self, pixels: bool) -> Iterator[tuple[Frame | None, list[Masks]]]:
        """The second pass over masks (K, H, W) bool."""
        return self.decode_masks(lambda logits: np.asarray((logits > 0).cpu().numpy()), pixels)

    def result(self, answer: Selection) -> Result:
        """An answer whose masks have been added, frame by frame."""
        union, *objects = zip(*answer.rles, strict=True)
        means = repeat(1.0) if answer.quality is None else answer.quality.means()
        rows = zip(answer.scores, means, objects, answer.evidence, strict=False)
        items = [ObjectResult(score * mean, rles, tuple(row.tolist())) for score, mean, rles, row in rows]
        return Result(
            expression=answer.query.expression,
            words=answer.query.words,
            found=bool(answer.chosen),
            score=answer.best,
            threshold=answer.threshold,
            height=self.source.height,
            width=self.source.width,
            fps=self.fps,
            times=tuple(self.times),
            evidence=answer.mean_evidence,
            objects=tuple(items[: len(answer.chosen)]),
            rle=union,
            others=tuple(items[len(answer.chosen) :]),
        )


class Segmenter:
    """Answers sentences about videos; input that cannot be answered is a UserError.

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
        self.device = find_device(device)
        self.precision = _precision(precision, self.device, model.config.release.autocast)
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.config = model.config
        self.card = card or Card()

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

        Raises TypeError for an argument of another type, UserError for a wrong value; nothing is decoded then.
        """
        if not isinstance(expression, str) and (isinstance(expression, bytes) or not isinstance(expression, Iterable)):
            raise TypeError(f"an expression must be a text, or several, not {type(expression).__name__}")
        sentences = [expression] if isinstance(expression, str) else list(expression)
        self.readout(asked.get("threshold"), asked.get("targets"))
        for text in sentences:
            self.tokenizer.check(text)
        results = self.answer(open_video(video, frames, fps), sentences, **asked)
        return results[0] if isinstance(expression, str) else results

    def answer(self, source: VideoSource, expressions: Sequence[str], **asked: Unpack[Asked]) -> list[Result]:
        """As a call with several sentences, of a video that is open."""
        with self.encode(source, expressions, **asked) as clip:
            for _, masks in clip.frames(False):
                for answer, mask in zip(clip.answers, masks, strict=True):
                    answer.add(mask)
            return [clip.result(answer) for answer in clip.answers]

    @contextlib.contextmanager
    def encode(self, source: VideoSource, expressions: Sequence[str], **asked: Unpack[Asked]) -> Iterator[EncodedClip]:
        """First pass and understanding; the second pass is the clip's `decode_masks`. Leaves no temporary file."""
        threshold, targets = self.readout(asked.get("threshold"), asked.get("targets"))
        if not expressions:
            raise UserError("no expression given; say in words what to segment")
        progress = asked.get("progress")
        if progress is None:
            progress = lambda phase, done, total: None  # noqa: E731
        if not callable(progress):
            raise TypeError(f"progress must be a function, not {type(progress).__name__}")
        keep_all = checked("all_objects", asked.get("all_objects", False), bool, "True or False")
        queries = [self._query(expression) for expression in expressions]
        with tempfile.TemporaryFile(prefix="dshmp-", buffering=0) as file:
            free = shutil.disk_usage(tempfile.gettempdir()).free
            clip = EncodedClip(self, source, _Spill(file, min(SPILL_LIMIT, free // 2)), progress, source.fps)
            tokens = self._perceive(clip, queries)
            progress("motion", 0, None)
            how = threshold, targets, keep_all
            clip.answers = tuple(self._select(query, tokens.pop(0), clip, *how) for query in queries)
            progress("motion", 1, 1)
            yield clip

    def readout(self, threshold: float | None = None, targets: Targets | None = None) -> tuple[float, Targets]:
        """The threshold and targets that a query is answered with; the model's own where they are not given."""
        asked: Targets = self.config.readout.targets
        if targets is not None:
            asked = checked("targets", targets, Targets, "many or single")
        if threshold is None:
            return self.config.readout.threshold if asked == "many" else 0.0, asked
        return checked("the threshold", threshold, Threshold, "a number between 0 and 1"), asked

    def _query(self, expression: str) -> Query:
        with self._inference(exact=True):
            text = self.model.language(to_device(self.tokenizer([expression]), self.device)).trimmed()
        shown = expression
        if self.config.language.normalise:  # the words' places refer to the normalised sentence
            shown = " ".join(expression.split())
            shown = shown if len(shown) == len(shown.lower()) else shown.lower()
        return Query(shown, tuple(self.tokenizer.split(expression)), text)

    def _perceive(self, clip: EncodedClip, queries: Sequence[Query]) -> list[Tensor]:
        """First pass: object tokens (T, N, C) per query; the rest goes into `clip`."""
        tokens: list[list[Tensor]] = [[] for _ in queries]
        clip.mask_embed = [[] for _ in queries]
        frames = iter(clip.source)
        size = self.model.whole_clips(self._at_once(clip.source))
        # each frame is resized as it comes, so no chunk of full frames is held
        while chunk := [(f.time, prepare_frames([f.image], self.config.input)) for f in islice(frames, size)]:
            times, images = zip(*chunk, strict=True)
            clip.times += times
            clip.chunks.append(len(times))
            pixels, maps = self._pixels(images, queries)
            for index, (query, features) in enumerate(zip(queries, cycle(pixels), strict=False)):
                with self._inference():
                    seen = self.model.encode_objects(features, query.text)
                tokens[index].append(seen.tokens.float())
                clip.mask_embed[index].append(seen.mask_embed)
            clip.spill.write(maps)
            clip.progress("frames", len(clip.times), clip.source.count)
        clip.progress("frames", len(clip.times), len(clip.times))  # the header only estimates how many there are
        if clip.fps is not None and len(clip.times) > 1:  # nor does it know the rate where that varies
            clip.fps = (len(clip.times) - 1) / (clip.times[-1] - clip.times[0])
        return [torch.cat(each) for each in tokens]

    def _at_once(self, source: VideoSource) -> int:
        """Frames of a chunk: fewer of large ones on a CPU, whose caches what lies between two layers should fit."""
        height, width = input_size((source.height, source.width), self.config.input)
        most = CPU_PIXELS // (height * width) if self.device.type == "cpu" else self.config.input.chunk
        return max(1, min(most, self.config.input.chunk))

    def _pixels(self, images: Sequence[Tensor], queries: Sequence[Query]) -> tuple[list["PixelFeatures"], list[Tensor]]:
        """Pixel features of a chunk, and the maps that masks need: one for all queries where they don't depend on the
        words, or one each."""
        clip = torch.cat(tuple(images)).to(self.device)
        with self._inference():
            readers = queries if self.config.backbone.language_fusion else queries[:1]
            pixels = [self.model.encode_pixels(clip, query.text) for query in readers]
            return pixels, [self.model.mask_pixels(features) for features in pixels]

    def _select(
        self, query: Query, tokens: Tensor, clip: EncodedClip, threshold: float, targets: Targets, keep_all: bool
    ) -> Selection:
        """Motion perception over the whole clip, of which tokens (T, N, C) are given, then who is meant."""
        positions, rate = clip.source.positions, self.config.input.motion_fps
        place = None if positions is None else torch.tensor([positions], dtype=torch.float32, device=self.device)
        stride = max(1, round(clip.fps / rate)) if clip.fps and rate else 1
        real = torch.ones(1, len(tokens), dtype=torch.bool, device=self.device)
        with self._inference(exact=True):
            video = self.model.decode_motion(tokens[None], real, query.text, place, stride=min(stride, len(tokens)))
        scores = video.logits[0].float().softmax(dim=-1)[:, 0]
        order = scores.argsort(descending=True).tolist()
        best = float(scores[order[0]])
        if not math.isfinite(best):
            raise UserError("the model's answer is not a number; try --precision float32, or another model")
        chosen = [token for token in (order[:1] if targets == "single" else order) if scores[token] > threshold]
        kept = order if keep_all else chosen  # the chosen ones come first in both
        attention = video.attention[0].float()[kept or order[:1]].cpu().double().numpy()
        chances, evidence = tuple(scores[kept].tolist()), attention / attention.sum(axis=1, keepdims=True)
        return Selection(query, video, tuple(chosen), chances, best, threshold, tuple(kept), evidence)

    @contextlib.contextmanager
    def _inference(self, exact: bool = False) -> Iterator[None]:
        """The chosen precision; float32 for what shall be `exact`, if the model's config says so."""
        lower = self.precision != torch.float32 and not (exact and self.config.release.exact)
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, dtype=self.precision, enabled=lower):
                yield
        except torch.OutOfMemoryError:
            ways = "--device cpu, --precision bfloat16, a range of --frames, or a model with a smaller input.chunk"
            raise UserError(f"not enough memory on {self.device}; use {ways}") from None


class _Spill:
    """Feature maps of every chunk in a file, up to `limit` bytes or a full disk."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self.file, self.limit = file, limit
        self.ends = [0]
        self.complete = True

    def write(self, tensors: Sequence[Tensor]) -> None:
        """Add a chunk, unless the limit is reached."""
        self.complete = self.complete and self.ends[-1] + sum(tensor.nbytes for tensor in tensors) <= self.limit
        if self.complete:
            data = save({str(index): tensor.cpu().contiguous() for index, tensor in enumerate(tensors)})
            try:
                self.complete = self.file.write(data) == len(data)
            except OSError:  # the disk is full: the rest is perceived anew
                self.complete = False
        if self.complete:
            self.ends.append(self.ends[-1] + len(data))

    def read(self, chunk: int, device: torch.device) -> list[Tensor]:
        """Exactly what was written for a chunk; nothing where the limit was reached before."""
        if chunk + 1 >= len(self.ends):
            return []
        self.file.seek(self.ends[chunk])
        tensors = load(self.file.read(self.ends[chunk + 1] - self.ends[chunk]))
        return [tensors[str(index)].to(device) for index in range(len(tensors))]


def _again(source: VideoSource) -> Iterator[Frame]:
    yield from source
    raise UserError(f"{source.name}: changed while it was being read")


def _precision(name: Precision, device: torch.device, own: str) -> torch.dtype:
    checked("precision", name, Precision, "auto, float32, bfloat16 or float16")
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        able = device.type == "cuda" and (own != "bfloat16" or torch.cuda.is_bf16_supported(including_emulation=False))
        return known[own] if able else torch.float32
    return known[name]
