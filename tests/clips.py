"""Small real video files, and a tiny untrained model to segment them with."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from dshmp.config import (
    BackboneConfig,
    EncoderConfig,
    FrameDecoderConfig,
    InputConfig,
    LanguageConfig,
    ModelConfig,
    MotionConfig,
    PixelDecoderConfig,
    ReadoutConfig,
)
from dshmp.model.dshmp import DsHmp
from dshmp.model.tokenizer import TextTokenizer, train_tokenizer

RED = (255, 0, 0)

torch.set_num_threads(1)  # on tensors this small threads only wait for each other


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Black, red in the top left quarter, a white column that moves right."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = RED
    image[:, index % width : index % width + 3] = 255
    return image


def write_frames(folder: Path, count: int, height: int, width: int) -> Path:
    """A video, as a folder of frames f000.png, f001.png ..."""
    folder.mkdir()
    for t in range(count):
        Image.fromarray(picture(3 * t, height, width)).save(folder / f"f{t:03d}.png")
    return folder


def write_clip(
    path: Path,
    frames: int = 12,
    height: int = 48,
    width: int = 64,
    rotation: int = 0,
    times: Sequence[int] | None = None,
    audio: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """H.264 at 25 frames a second, or shown at `times` (milliseconds); `audio` names a codec for a second of sound."""
    with av.open(str(path), "w", options=options or {}) as output:
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = output.add_stream(audio, rate=48000) if audio else None
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, height, width), format="rgb24")
            frame.pts = times[index] if times else index * 40
            frame.time_base = Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            write_sound(output, sound)
    return path


def transport_stream(frames: int) -> bytes:
    """A clip in a form that can be read from its beginning on, without seeking."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as output:
        stream: Any = output.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for index in range(frames):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def write_sound(output: av.container.OutputContainer, stream: av.AudioStream) -> None:
    """One second of a 440 Hz tone."""
    wave = np.sin(np.arange(48000) / 48000 * 440 * 2 * np.pi).astype(np.float32) * 0.3
    resampler = av.AudioResampler(format=stream.format, layout="stereo", rate=48000, frame_size=1024)
    frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    for part in [*resampler.resample(frame), *resampler.resample(None), None]:
        output.mux(stream.encode(part))


def tiny_model(
    chunk: int = 16, masks: str = "trajectories", fusion: bool = False, threshold: float = 0.0
) -> tuple[DsHmp, TextTokenizer]:
    """Random weights, the same for every `chunk` and `threshold`; by default every video token is meant."""
    language = LanguageConfig(
        encoder=EncoderConfig(
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=140,
        ),
        frozen=False,
    )
    config = ModelConfig(
        hidden_size=32,
        language=language,
        backbone=BackboneConfig(
            embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4, language_fusion=fusion
        ),
        pixel_decoder=PixelDecoderConfig(layers=1, heads=2, ffn=32),
        frame_decoder=FrameDecoderConfig(queries=5, layers=1, heads=2, ffn=32),
        motion=MotionConfig(blocks=2, window=4, stages=2, queries=4, decoder_layers=1, heads=2, ffn=32),
        readout=ReadoutConfig(masks=masks, threshold=threshold),  # type: ignore[arg-type]
        input=InputConfig(short_side=48, long_side=80, divisor=32, motion_fps=8.0, chunk=chunk),
    )
    torch.manual_seed(0)
    model = DsHmp(config).eval()
    # livelier masks than a fresh model's, which are faint and often empty
    model.perception.frame_decoder.mask_embed.layers[-1].weight.data *= 20
    model.perception.frame_decoder.classify.bias.data.copy_(torch.tensor([3.0, -3.0]))  # all candidates are objects
    if model.decoder.track is not None:  # and most are pointed at
        model.decoder.track.judge.layers[-1].bias.data += 1.0
    texts = ["the red star moving left", "the one that turns back"]
    return model, TextTokenizer(config, train_tokenizer(texts, 300))
