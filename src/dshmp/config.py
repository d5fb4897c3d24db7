"""Every number and switch of the model, as frozen dataclasses that load and dump strictly.

The default sizes are the paper's (Swin-T, hidden 256), the default switches ours; what the authors' release does
instead is named at each field. The switches of the paper's ablations: Table 1 *DS* = `language.cues`, *HMP* =
`motion.stages` (0 is off), *CL* = the training recipe's `negatives`; Table 2a = `language.cues`; 2b =
`motion.stages`; 2d = `motion.matching`.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from dshmp.errors import UserError

CueSplit = Literal["paper", "release", "dependency"]
CueSource = Literal["sentence", "words", "direct", "full"]
Matching = Literal["hungarian", "inverse", "none"]

ROBERTA_BASE: dict[str, Any] = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Section 3.1: sentence -> word features, sentence embedding, static and motion cues."""

    encoder: dict[str, Any] = field(default_factory=lambda: dict(ROBERTA_BASE))
    """Arguments of `transformers.RobertaConfig`."""
    frozen: bool = True
    """The encoder keeps its weights (the release's choice); a model trained from scratch learns it."""
    split: CueSplit = "dependency"
    """How words are told apart: by part of speech as in the paper or the release, or by dependency."""
    cues: CueSource = "full"
    """Table 2a: sentence only; words without the sentence row; rows used as queries directly; Eq. 1 and 2."""
    max_tokens: int = 128
    """Longest sentence in sub-word tokens, <s> and </s> included (release: 40)."""
    overlong: Literal["error", "cut"] = "error"
    """What happens to a longer sentence (release: cut)."""
    pad_to_max: bool = False
    """Pad every batch to `max_tokens` (release) instead of to its longest sentence."""
    pad_token_id: int | None = None
    """Id of padded slots; None is the tokeniser's own (release: 0, which is <s>)."""
    normalise: bool = True
    """Lower-case and collapse white space first (the release does so in its loaders only)."""
    spacy_model: str = "en_core_web_sm"
    dropout: float = 0.1
    resizer_norm_eps: float = 1e-12


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Swin Transformer with the sentence fused after each stage."""

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    drop_path: float = 0.3
    language_fusion: bool = True
    temporal_window: int | None = None
    """Frames in an attention window: None is Swin, image by image; 8 is Video-Swin, whose windows and shifts reach
    over time (the paper's rows on Ref-YouTube-VOS, Ref-DAVIS17, A2D and JHMDB)."""
    clip: int = 32
    """Video-Swin reads a video in consecutive clips of this many frames, which bounds its memory."""


@dataclass(frozen=True, kw_only=True)
class PixelDecoderConfig:
    """Mask2Former's multi-scale deformable attention decoder."""

    layers: int = 6
    heads: int = 8
    ffn: int = 1024


@dataclass(frozen=True, kw_only=True)
class FrameDecoderConfig:
    """Masked-attention decoder that turns static queries (Eq. 1) into the object tokens of a frame."""

    queries: int = 20
    """N_s."""
    layers: int = 9
    heads: int = 8
    ffn: int = 2048
    injection: float = 0.1
    """Weight of the static cues in the query: q + injection * LN(q + MHA(q, F_s, F_s))."""
    dropout: float = 0.1
    language: bool = True
    """Every layer reads the words (image-text fusion and a text cross-attention), as in the release."""


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Section 3.2: trajectories, hierarchical motion perception, motion decoder."""

    blocks: int = 6
    window: int = 8
    stages: int = 3
    """J of Eq. 4-6; 0 leaves temporal self-attention alone (Table 2b)."""
    merge: Literal["weighted", "mean"] = "weighted"
    """Eq. 6: average weighted by each frame's w, or plain (release)."""
    matching: Matching = "hungarian"
    """Eq. 3 aligned; `inverse` applies the inverse permutation as the release does; `none` is Table 2d."""
    window_shift: Literal["always", "test"] = "always"
    """Every second block shifts its windows, unless there is one only; `test` is the release's rule: never
    in training, in use even where there is one window."""
    padded_frames: Literal["masked", "seen"] = "masked"
    """Frames that fill the last window take no part; in the release they are seen by matching and merging."""
    position: bool = True
    """The arrow of time: a position in time for the tokens inside HMP and for the decoder's keys. Ours."""
    displacement: bool = True
    """What changes along its trajectory enters the first block with each token: its difference from the frame
    before, and over half a window around it, scaled to regular frames where the clip's are not. Ours."""
    queries: int = 10
    """N_v."""
    decoder_layers: int = 3
    heads: int = 8
    ffn: int = 2048
    injection: float = 0.1
    dropout: float = 0.1
    fusion_scale: float = 1e-4
    """Initial layer scale of the decoder's fusion of tokens and words (release); a model that learns from
    scratch needs a larger one to learn in reasonable time."""
    contrast_size: int = 256
    """Width of the contrastive projection (and of the memory bank)."""


@dataclass(frozen=True, kw_only=True)
class ReadoutConfig:
    """How video tokens become masks and answers."""

    masks: Literal["embedding", "trajectories"] = "trajectories"
    """`embedding`: mask embedding . mask features, the paper's. `trajectories` (ours) lets each video token
    point at one object token per frame and take that token's mask, so look-alikes can be told apart."""
    targets: Literal["many", "single"] = "many"
    """Union of all video tokens whose score passes the threshold, or the best token."""
    threshold: float = 0.5
    score: Literal["class", "quality"] = "class"
    """What is reported of an object: the probability that it is meant, or (release) that times the mean of its
    mask's probabilities inside the mask. Which objects are meant is decided by the former alone."""


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """From a decoded frame to the network's input."""

    short_side: int = 360
    long_side: int = 640
    """The short side is resized to `short_side`, or less where the long side would exceed `long_side`
    (release: 448, 1333)."""
    divisor: int = 32
    """Padded with zeros, after normalisation, to a multiple of this."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.37)
    motion_fps: float | None = None
    """Frames per second that motion perception was trained on; a faster video is read as interleaved
    sequences of about this rate. None takes every frame as it comes (the release)."""
    chunk: int = 16
    """Frames that static perception takes at once; bounds memory, never changes a result."""
    autocast: Literal["bfloat16", "float16"] = "bfloat16"
    """Precision on a GPU unless asked otherwise (release: float16)."""
    exact: bool = True
    """Words and motion stay in float32 whatever the precision: cheap, and they decide who is meant. In the release
    all but the pixel decoder is in half precision."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole DsHmp model."""

    hidden_size: int = 256
    language: LanguageConfig = field(default_factory=LanguageConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    frame_decoder: FrameDecoderConfig = field(default_factory=FrameDecoderConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    input: InputConfig = field(default_factory=InputConfig)


T = TypeVar("T")


def from_dict(kind: type[T], values: object, where: str = "config", complete: bool = False) -> T:
    """Build the dataclass `kind` from plain containers; unknown or missing keys and wrong types raise UserError.

    With `complete`, defaults stand for nothing: all keys must be there.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected a mapping of {kind.__name__}'s fields, found {values!r}")
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = [item.name for item in fields]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    for item in fields:
        needed = complete or item.default is item.default_factory is dataclasses.MISSING
        if needed and item.name not in values:
            raise UserError(f"{where}: the key {item.name!r} is missing")
    return kind(**{key: _value(hints[key], value, f"{where}.{key}", complete) for key, value in values.items()})


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain containers (tuples become lists), ready for JSON or YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values with dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_LARGEST = 2**24
_RANGES: tuple[tuple[str, float, float], ...] = (
    (r"motion\.stages", 0, 16),
    (r"(.*\.)?(num_hidden_layers|layers|decoder_layers|depths|blocks)", 1, 256),
    (r"backbone\.window_size", 1, 32),
    (r"readout\.threshold|(.*\.)?(\w*dropout\w*|drop_path)", 0, 1),
    (r"input\.mean", -math.inf, math.inf),
    (r"input\.(std|motion_fps)", 1e-6, math.inf),
    (r"language\.(encoder\..*|pad_token_id)|(.*\.)?(injection|\w+_eps|fusion_scale)", 0, _LARGEST),
)
"""What numbers can be at all; the first pattern counts, and others are sizes, 1 or more. Tables of a window's pixels
grow with its size to the fourth power."""


def check_numbers(config: ModelConfig) -> None:
    """Raises UserError, naming the field, where a number is none that any model has."""
    for key, value in flat(to_dict(config)):
        low, high = next(((low, high) for name, low, high in _RANGES if re.fullmatch(name, key)), (1, _LARGEST))
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not low <= number <= high or number == math.inf:
                bound = f"at least {low}" if number < low else f"at most {high}"
                raise UserError(f"{key} must be {bound}, found {number}")


def _value(hint: Any, value: Any, where: str, complete: bool) -> Any:
    """`value` as the annotated type `hint`, or UserError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where, complete)
    if origin is Literal:
        if value in args:
            return value
        raise UserError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(arg for arg in args if arg is not type(None)), value, where, complete)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise UserError(f"{where}: expected {len(kinds)} values, found {len(value)}")
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_value(kind, item, f"{where}[{i}]", complete) for i, (kind, item) in pairs)
    if origin is dict and isinstance(value, Mapping):
        return {key: _value(args[1], item, f"{where}.{key}", complete) for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{where}: {str(value)[:20]}... is too large a number") from None
    kind = origin or hint
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise UserError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r}")
