"""Every number and switch of the model, as frozen dataclasses that load and dump strictly.

The default sizes are the paper's (Swin-T, hidden 256), the default switches ours. The ablations' switches: Table 1 *DS*
and Table 2a `language.cues`, *HMP* and 2b `motion.stages` (0 is off), 2d `motion.matching`; *CL* is the recipe's.
"""

import dataclasses
import difflib
import functools
import json
import reprlib
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails

from dshmp.common.errors import UserError, printable

CueSplit = Literal["paper", "release", "dependency"]
CueSource = Literal["sentence", "words", "direct", "full"]
Matching = Literal["tracks", "hungarian", "inverse", "none"]

# What numbers of a file can be; larger ones no model has.
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=1, le=2**24)]
Depth = Annotated[int, Field(ge=1, le=256)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=2**24)]
Positive = Annotated[float, Field(gt=0)]
Divisor = Annotated[float, Field(ge=1e-6)]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """RoBERTa, under the names of `transformers.RobertaConfig`. The default sizes are the base model's."""

    vocab_size: Size = 50265
    hidden_size: Size = 768
    num_hidden_layers: Depth = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    max_position_embeddings: Size = 514
    type_vocab_size: Size = 1
    layer_norm_eps: Positive = 1e-5
    pad_token_id: Annotated[int, Field(ge=0)] = 1
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1
    initializer_range: Factor = 0.02


@dataclass(frozen=True, kw_only=True)
class AutoEncoderConfig:
    """Another text encoder of transformers: BERT, MiniLM, ModernBERT ..."""

    architecture: dict[str, Any]
    """Its config.json, `model_type` included; what that leaves out is as transformers has it."""
    pooling: Literal["pooler", "mean", "first"] = "mean"
    """The sentence: the encoder's own pooled output, the mean of its tokens, or the first one. A published model says
    which where it is one of sentence-transformers; else its pooler where it has one with weights, else the mean."""

    def _number(self, key: str) -> int | None:
        value = self.architecture.get(key)
        return value if type(value) is int else None

    @property
    def hidden_size(self) -> int:
        return self._number("hidden_size") or 0

    @property
    def vocab_size(self) -> int:
        return self._number("vocab_size") or 0

    @property
    def pad_token_id(self) -> int:
        return self._number("pad_token_id") or 0

    @property
    def max_position_embeddings(self) -> int | None:
        return self._number("max_position_embeddings")


def _complete(encoder: EncoderConfig | AutoEncoderConfig) -> EncoderConfig | AutoEncoderConfig:
    if isinstance(encoder, AutoEncoderConfig):
        if not isinstance(encoder.architecture.get("model_type"), str):
            raise ValueError("architecture has no model_type, the name of its kind in transformers")
        for key in ("hidden_size", "vocab_size"):
            if not 1 <= getattr(encoder, key) <= 2**24:
                raise ValueError(f"architecture.{key} must be a whole number from 1 to {2**24}")
        for key, value in encoder.architecture.items():
            if "layers" in key and isinstance(value, int) and value > 256:
                raise ValueError(f"architecture.{key} must be at most 256, found {value}")
    return encoder


def _tag(encoder: Any) -> str:
    """Which of both it is, by the keys of a mapping, so that an error names the keys of one kind only."""
    auto = "architecture" in encoder if isinstance(encoder, Mapping) else isinstance(encoder, AutoEncoderConfig)
    return "<auto>" if auto else "<roberta>"


_TAGS = {"<roberta>": EncoderConfig, "<auto>": AutoEncoderConfig}  # parts of the places of pydantic's errors
Encoder = Annotated[
    Annotated[EncoderConfig, Tag("<roberta>")] | Annotated[AutoEncoderConfig, Tag("<auto>")],
    Discriminator(_tag),
    AfterValidator(_complete),
]


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Section 3.1: sentence -> word features, sentence embedding, static and motion cues."""

    encoder: Encoder = EncoderConfig()
    frozen: bool = True
    """The encoder keeps its weights; a model trained from scratch learns it."""
    split: CueSplit = "dependency"
    """How words are told apart (`dshmp.model.words`)."""
    cues: CueSource = "full"
    """Table 2a: sentence only; words without the sentence row; rows used as queries directly; Eq. 1 and 2."""
    max_tokens: Size = 128
    """Longest sentence in sub-word tokens, <s> and </s> included."""
    normalise: bool = True  # lower-case and collapse white space first
    spacy_model: str = "en_core_web_sm"
    dropout: Share = 0.1


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Swin Transformer with the sentence fused after each stage."""

    embed_dim: Size = 96
    depths: tuple[Depth, ...] = (2, 2, 6, 2)
    num_heads: tuple[Size, ...] = (3, 6, 12, 24)
    window_size: Annotated[int, Field(ge=1, le=32)] = 7
    drop_path: Share = 0.3
    language_fusion: bool = True
    temporal_window: Size | None = None
    """Frames in an attention window: None is Swin, image by image; 8 is Video-Swin."""
    clip: Size = 32
    """Video-Swin reads a video in consecutive clips of this many frames, which bounds its memory."""


@dataclass(frozen=True, kw_only=True)
class PixelDecoderConfig:
    """Mask2Former's multi-scale deformable attention decoder."""

    layers: Depth = 6
    heads: Size = 8
    ffn: Size = 1024


@dataclass(frozen=True, kw_only=True)
class FrameDecoderConfig:
    """Masked-attention decoder that turns N_s static queries (Eq. 1) into the object tokens of a frame."""

    queries: Size = 20
    layers: Depth = 9
    heads: Size = 8
    ffn: Size = 2048
    injection: Factor = 0.1  # weight of the static cues in the query (Eq. 1)
    dropout: Share = 0.1
    """Of the fusion of image and words and of Eq. 1's attention, as in the release; nothing else here drops out."""
    language: bool = True
    """Every layer reads the words: image-text fusion and a text cross-attention."""


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Section 3.2: trajectories, hierarchical motion perception, motion decoder with N_v queries."""

    blocks: Depth = 6
    window: Size = 8
    stages: Annotated[int, Field(ge=0, le=16)] = 3
    """J of Eq. 4-6; 0 leaves temporal self-attention alone (Table 2b)."""
    merge: Literal["weighted", "mean"] = "weighted"
    """Eq. 6: average weighted by each frame's w, or plain as in the release."""
    matching: Matching = "tracks"
    """`hungarian`: Eq. 3, in every block and window; `inverse` applies the inverse permutation as the release does;
    `none` is Table 2d. `tracks` (ours): once for the whole clip, by the overlap of the masks' boxes, too."""
    position: bool = True
    """A position in time for the tokens inside HMP and for the decoder's keys. Ours."""
    displacement: bool = True
    """Each token enters the first block with its change along its trajectory. Ours."""
    geometry: bool = True
    """Where each candidate's mask is, its outline, and how both change enter the first block, and what is no object or
    there twice takes no part (`dshmp.model.geometry`). Ours."""
    static: bool = True
    """Each candidate enters the first block with a score of whether it fits the static words. Ours."""
    camera: bool = True
    """Geometry tells motion relative to the background, too."""
    token_dropout: Share = 0.2
    """Share of clips in training whose tokens are hidden: geometry alone answers, as for tracks made elsewhere."""
    appearance: Annotated[int, Field(ge=0, le=2**24)] = 0
    """Length of a feature vector, of any image encoder, that says what each track looks like and enters the first
    block; 0: none. Ours."""
    object_position: bool = False
    """A learned embedding for each of N candidates, as in the release; without, their number is free."""
    queries: Size = 10
    decoder_layers: Depth = 3
    heads: Size = 8
    ffn: Size = 2048
    injection: Factor = 0.1
    dropout: Share = 0.1
    fusion_scale: Factor = 1e-4
    """Initial layer scale of the decoder's fusion of tokens and words; learning from scratch asks for a larger one."""
    contrast_size: Size = 256  # of the contrastive projection and the memory bank


@dataclass(frozen=True, kw_only=True)
class ReadoutConfig:
    """How video tokens become masks and answers."""

    masks: Literal["embedding", "trajectories"] = "trajectories"
    """`embedding`: mask embedding . mask features, the paper's. `trajectories` (ours): each video token points at one
    object token per frame and takes its mask, so look-alikes can be told apart."""
    pointing: Literal["hard", "soft"] = "hard"
    """In use, of the object tokens of a frame that are pointed at: the mask of the first, or their masks mixed."""
    targets: Literal["many", "single"] = "many"
    """Union of all video tokens whose score passes the threshold, or the best token."""
    threshold: Share = 0.5


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """From a decoded frame to the network's input."""

    short_side: Size = 360
    long_side: Size = 640
    """The short side is resized to `short_side`, or less where the long side would exceed `long_side`."""
    divisor: Size = 32
    """Padded with zeros, after normalisation, to a multiple of this."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[Divisor, Divisor, Divisor] = (58.395, 57.12, 57.37)
    motion_fps: Divisor | None = None
    """Frames per second that motion perception was trained on; faster video is read as interleaved sequences of about
    this rate. None takes every frame as it comes."""
    chunk: Size = 16
    """Frames that static perception takes at once; bounds memory, never changes a result."""


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """What serves nothing but equality with the authors' code; the defaults are ours, `RELEASE` is theirs."""

    overlong: Literal["error", "cut"] = "error"
    """What becomes of a sentence of more than `language.max_tokens` tokens."""
    pad_to_max: bool = False
    """Pad every batch of sentences to `language.max_tokens` instead of to its longest."""
    pad_token_id: Annotated[int, Field(ge=0, le=2**24)] | None = None
    """Id of padded tokens; None is the tokeniser's own, 0 is <s>."""
    window_shift: Literal["always", "test"] = "always"
    """When every second block shifts its windows: where there are several; or never in training, else even where there
    is one."""
    padded_frames: Literal["masked", "seen"] = "masked"
    """Frames that fill the last window take no part, or are seen by matching and merging."""
    score: Literal["class", "quality"] = "class"
    """What is reported of an object: the probability that it is meant, which alone decides, or that times the mean of
    its mask's probabilities inside the mask."""
    autocast: Literal["bfloat16", "float16"] = "bfloat16"
    """Precision on a GPU unless asked otherwise."""
    exact: bool = True
    """Words and motion stay in float32 whatever the precision: cheap, and they decide who is meant."""


RELEASE = ReleaseConfig(
    overlong="cut",
    pad_to_max=True,
    pad_token_id=0,
    window_shift="test",
    padded_frames="seen",
    score="quality",
    autocast="float16",
    exact=False,
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole DsHmp model."""

    hidden_size: Size = 256
    language: LanguageConfig = field(default_factory=LanguageConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    frame_decoder: FrameDecoderConfig = field(default_factory=FrameDecoderConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    input: InputConfig = field(default_factory=InputConfig)
    release: ReleaseConfig = field(default_factory=ReleaseConfig)


T = TypeVar("T")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_UNKNOWN = "unexpected_keyword_argument"  # pydantic's word for a key that is none
_PLAIN = {  # its other words, and ours for them
    **{"Input should": "must", "Tuple should": "must", " after validation": "", "an object": "a mapping"},
    **{"valid tuple": "valid list", "greater than or equal to": "at least", "less than or equal to": "at most"},
    **{"greater than": "above", "less than": "below"},
}


def from_dict(kind: type[T], values: object, where: str = "config", complete: bool = False) -> T:
    """Build the dataclass `kind` from plain containers; unknown or missing keys and wrong values raise UserError.

    With `complete`, defaults stand for nothing: all keys must be there.
    """
    try:
        # as JSON: there a list may be a tuple and a mapping a dataclass, and still no text is a number
        config: T = _adapter(kind).validate_json(json.dumps(values, default=str))  # type: ignore[arg-type]
    except ValidationError as caught:
        # an unknown key first: it may be the misspelt one of another that is missing
        error = min(caught.errors(include_url=False), key=lambda each: each["type"] != _UNKNOWN)
        raise UserError(printable(_line(kind, error, where))) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: {error}") from None
    if complete:
        given = dict(flat(typing.cast(dict[str, Any], values)))
        if missing := [key for key, _ in flat(to_dict(config)) if key not in given]:
            raise UserError(f"{where}.{missing[0]}: is missing")
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain containers (tuples become lists), ready for JSON or YAML."""
    return typing.cast(dict[str, Any], _adapter(type(config)).dump_python(config, mode="json"))  # type: ignore[arg-type]


@functools.cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(with_config(_STRICT)(kind))


def _line(kind: type, error: ErrorDetails, where: str) -> str:
    *path, key = where, *map(str, error["loc"])
    above, place = (".".join(part for part in parts if part not in _TAGS) for parts in (path, [*path, key]))
    if error["type"] == _UNKNOWN:
        return f"{above}: unknown key {key!r}; {nearest(key, _fields(kind, path[1:]))}"
    return f"{place}: {told(error)}"


def told(error: ErrorDetails) -> str:
    """What pydantic says of a value, in our words."""
    if error["type"] in ("missing", "value_error"):
        return str(error.get("ctx", {}).get("error", "is missing"))
    message = error["msg"].split(" or instance")[0]
    for theirs, ours in _PLAIN.items():
        message = message.replace(theirs, ours)
    return f"{message}, found {reprlib.repr(error['input'])}"


def nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _fields(kind: Any, path: list[str]) -> list[str]:
    """The keys of the dataclass that lies at `path` in `kind`; a key of a mapping or a list has no field."""
    for key in path:
        if key in _TAGS:
            kind = _TAGS[key]
            continue
        hint = typing.get_type_hints(kind).get(key)
        kind = next(filter(dataclasses.is_dataclass, (hint, *typing.get_args(hint))), kind)
    return [item.name for item in dataclasses.fields(kind)]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
