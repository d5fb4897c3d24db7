"""Reading videos: every kind comes out right, and what is none is told in one line."""

import io
import itertools
import logging
import os
import resource
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clips import RED, picture, write_clip, write_sound
from dshmp.common.errors import UserError
from dshmp.video.container import _Places
from dshmp.video.io import open_video, parse_range


def corner(image: np.ndarray, bottom: bool, right: bool) -> np.ndarray:
    return image[-5 if bottom else 4, -5 if right else 4].astype(int)


def refused(path: object, part: str) -> None:
    """Opening fails with one line that names the thing and contains `part`."""
    with pytest.raises(UserError) as caught:
        list(open_video(path))  # type: ignore[arg-type]
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plain_file(tmp_path: Path) -> None:
    source = open_video(write_clip(tmp_path / "clip.mp4"))
    frames = list(source)
    assert (source.name, source.height, source.width, source.fps, source.expected) == ("clip", 48, 64, 25.0, 12)
    assert [frame.time for frame in frames] == pytest.approx([i / 25 for i in range(12)])
    assert np.abs(frames[3].image.astype(int) - picture(3)).mean() < 12
    again = list(source)
    assert all((a.image == b.image).all() for a, b in zip(frames, again, strict=True))


@pytest.mark.parametrize(
    ("rotation", "bottom", "right"), [(0, False, False), (90, True, False), (180, True, True), (270, False, True)]
)
def test_rotation_is_applied(tmp_path: Path, rotation: int, bottom: bool, right: bool) -> None:
    """The red corner goes where a counter-clockwise turn takes it."""
    source = open_video(write_clip(tmp_path / "clip.mp4", rotation=rotation))
    image = list(source)[11].image
    assert image.shape[:2] == (source.height, source.width) == ((64, 48) if rotation % 180 else (48, 64))
    assert np.abs(corner(image, bottom, right) - RED).max() < 30


def test_variable_rate_keeps_each_time(tmp_path: Path) -> None:
    times = [0, 11, 42, 93, 164, 255, 400, 401, 900, 1500, 1501, 3000]
    source = open_video(write_clip(tmp_path / "clip.mp4", times=times))
    assert [frame.time for frame in source] == pytest.approx([t / 1000 for t in times], abs=1e-3)


def test_odd_size(tmp_path: Path) -> None:
    source = open_video(write_clip(tmp_path / "clip.mp4", height=49, width=63))
    assert {frame.image.shape for frame in source} == {(49, 63, 3)}


def test_range(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    whole = list(open_video(path))
    part = open_video(path, "3:7")
    assert [frame.time for frame in part] == [frame.time for frame in whole[3:7]]
    assert part.count == 4
    assert len(list(open_video(path, (10, None)))) == 2
    with pytest.raises(UserError, match="no frame in the range 12:"):
        list(open_video(path, "12:"))


OPEN = "keyint=12:bframes=3:open-gop=1"
REFRESH = "keyint=12:intra-refresh=1"


@pytest.mark.parametrize(
    ("name", "codec", "options", "found"),
    [
        ("a.mp4", "libx264", {"x264-params": "keyint=12:bframes=3"}, True),
        ("a.mp4", "libx264", {"x264-params": OPEN}, True),
        ("a.ts", "libx264", {"x264-params": OPEN}, True),
        ("a.flv", "libx264", {"x264-params": "keyint=12"}, True),
        ("a.mkv", "libx264", {"x264-params": REFRESH}, True),
        ("a.mp4", "libx265", {"x265-params": "keyint=12:open-gop=1:log-level=none"}, True),
        ("a.webm", "libvpx-vp9", {"g": "12"}, True),
        ("a.avi", "mjpeg", {}, True),
        # packets without times, frames of two packets, packets without a frame
        ("a.avi", "libx264", {"x264-params": "keyint=12:bframes=3"}, False),
        ("a.h264", "libx264", {"x264-params": "keyint=12"}, False),
        ("a.mp4", "libx264", {"x264-params": "keyint=12:interlaced=1"}, False),
        ("a.webm", "libvpx", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"}, False),
    ],
)
def test_range_decodes_from_the_key_frame_before_it(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same frames at the same times as by decoding all."""
    noise = np.random.default_rng(0).integers(0, 60, (48, 64, 3), np.uint8)
    times = np.cumsum(np.random.default_rng(1).integers(5, 90, 50))  # the rate varies, where the container allows it
    with av.open(str(tmp_path / name), "w") as output:
        stream = output.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        varied = name[-3:] in ("mp4", "mkv")
        stream.codec_context.time_base = Fraction(1, 1000 if varied else 25)
        for index in range(50):
            frame = av.VideoFrame.from_ndarray(picture(index) // 2 + np.roll(noise, index, 1), format="rgb24")
            frame.pts, frame.time_base = int(times[index]) if varied else index, stream.codec_context.time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    whole = list(open_video(tmp_path / name))
    assert len(whole) == 50
    places, find = [], _Places.find
    monkeypatch.setattr(_Places, "find", lambda self, start: places.append(find(self, start)) or places[-1])
    for start in (1, 11, 12, 13, 30, 49):
        part = list(open_video(tmp_path / name, (start, None)))
        assert [frame.time for frame in part] == [frame.time for frame in whole[start:]]
        assert all((a.image == b.image).all() for a, b in zip(part, whole[start:], strict=True))
    with pytest.raises(UserError, match="no frame in the range 50:"):
        list(open_video(tmp_path / name, (50, None)))
    assert bool(places) == found
    assert not found or places[-1].packet > 0


@pytest.mark.parametrize("text", ["a:b", "5", "-1:3", "4:4", "9:2", "1:2:3"])
def test_wrong_ranges(text: str) -> None:
    with pytest.raises(UserError):
        parse_range(text)


def test_ranges() -> None:
    assert parse_range("2:") == (2, None)
    assert parse_range(":9") == (0, 9)
    assert parse_range(None) == (0, None)


@pytest.mark.parametrize(("name", "options"), [("clip.mkv", {}), ("clip.mp4", {"movflags": "faststart"})])
def test_cut_off_file_gives_what_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, options: dict[str, str]
) -> None:
    path = write_clip(tmp_path / name, frames=200, options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
    source = open_video(path)
    with caplog.at_level(logging.WARNING, "dshmp"):
        count = len(list(source))
        assert len(list(source)) == count
    assert 20 < count < 190
    assert len(caplog.records) == 1
    assert f"took the {count} frames" in caplog.text


def test_damaged_packets_are_passed_over(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", frames=100)
    data = bytearray(path.read_bytes())
    for place in np.random.default_rng(1).integers(len(data) // 3, len(data), 20):
        data[place] ^= 0xFF
    path.write_bytes(data)
    assert 10 < len(list(open_video(path))) <= 100


def test_no_video_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "missing.mp4", "No such file")
    (tmp_path / "zero.mp4").touch()
    refused(tmp_path / "zero.mp4", "not a video")
    (tmp_path / "text.mp4").write_text("this is no video\n" * 40)
    refused(tmp_path / "text.mp4", "text.mp4: not a video")
    (tmp_path / "titles.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n\n")
    refused(tmp_path / "titles.srt", "not a video")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    refused(tmp_path / "noise.mp4", "not a video")
    whole = write_clip(tmp_path / "clip.mp4", frames=100)
    (tmp_path / "headless.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    refused(tmp_path / "headless.mp4", "not a video")
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        write_sound(output, output.add_stream("aac", rate=48000))
    refused(tmp_path / "sound.mp4", "only audio")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "without frames")
    refused(whole / "below", "cannot be read")
    with pytest.raises(TypeError, match="int"):
        open_video(7)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    path.chmod(0)
    refused(path, "Permission denied")


def test_folder_is_sorted_naturally(tmp_path: Path) -> None:
    for index in range(12):
        Image.fromarray(picture(index)).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    source = open_video(tmp_path, fps=4)
    frames = list(source)
    assert all((frame.image == picture(i)).all() for i, frame in enumerate(frames))
    assert [frame.time for frame in frames][:3] == [0, 0.25, 0.5]
    assert (source.fps, source.count) == (4, 12)


def test_folder_of_two_sizes(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "1.png")
    Image.fromarray(picture(0, 40, 40)).save(tmp_path / "2.png")
    refused(tmp_path, "2.png: 40x40, but the first frame is 64x48")


def test_damaged_images(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    refused(tmp_path, "2.png: not an image")


def test_huge_declared_size(tmp_path: Path) -> None:
    """A header that promises too many pixels is refused before anything is allocated."""
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13)
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(
        start + header + struct.pack(">II", zlib.crc32(header), 8) + b"IDAT" + b"\0" * 12
    )
    refused(tmp_path / "huge.png", "exceeds limit")


def test_one_image_is_a_video(tmp_path: Path) -> None:
    Image.fromarray(picture(3)).save(tmp_path / "still.png")
    assert [(frame.image == picture(3)).all() for frame in open_video(tmp_path / "still.png")] == [True]


def test_array() -> None:
    array = np.stack([picture(i) for i in range(5)])
    source = open_video(array, "1:3")
    assert (np.stack([frame.image for frame in source]) == array[1:3]).all()
    refused(array.astype(np.float32), "uint8 (T, H, W, 3)")
    refused(array[..., :1], "uint8 (T, H, W, 3)")
    refused(array[0], "uint8 (T, H, W, 3)")
    refused(array[:0], "not empty")


def test_frames_of_an_iterator_are_bounded_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (41, 51, 3), np.uint8)
    monkeypatch.setattr("dshmp.common.limits.SPOOL", 4 * noise.nbytes)  # noise takes more than it has
    two = open_video(noise + index for index in range(2))
    again = zip(two, two, strict=True)  # read from two places in turn
    assert all(
        np.array_equal(a.image, noise + t) and np.array_equal(b.image, a.image) for t, (a, b) in enumerate(again)
    )
    with pytest.raises(UserError, match="write them to a video file"):
        open_video(noise for _ in itertools.count())


def test_disk_that_fills_while_frames_are_kept() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # Python ignores its signal
    try:
        with pytest.raises(UserError, match=r"TMPDIR.*cannot be written \(File too large\); free some space there"):
            open_video(noise for _ in itertools.count())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_iterator_can_be_read_twice() -> None:
    source = open_video(picture(i) for i in range(6))
    first = [frame.image.copy() for frame in source]
    assert all((frame.image == picture(i)).all() for i, frame in enumerate(source))
    assert len(first) == 6
    refused(iter(()), "no frames")
    refused(iter([picture(0), picture(0, 40, 40)]), "one size")
    refused(iter([picture(0).astype(float)]), "uint8")


def test_wrong_rate() -> None:
    with pytest.raises(UserError, match="fps"):
        open_video(np.zeros((1, 8, 8, 3), np.uint8), fps=0)


def jpeg(orientation: int) -> bytes:
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    Image.fromarray(picture(40)).save(data, "JPEG", exif=exif, quality=95)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["avi", "mov", "mkv"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_pictures_in_a_video_are_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    """As Pillow turns the same picture, in a folder."""
    data = jpeg(orientation)
    with av.open(str(tmp_path / f"a.{kind}"), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        for index in range(3):
            packet = av.Packet(data)
            packet.pts = packet.dts = index
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
            output.mux(packet)
    (tmp_path / "a.jpg").write_bytes(data)
    (still,) = open_video(tmp_path / "a.jpg")
    frames = list(open_video(tmp_path / f"a.{kind}"))
    assert len(frames) == 3
    assert frames[2].image.shape == still.image.shape
    assert np.abs(frames[2].image.astype(int) - still.image).mean() < 12


def test_times_begin_at_zero(tmp_path: Path) -> None:
    """MPEG-TS begins later on its own clock, which its sound keeps to."""
    source = open_video(write_clip(tmp_path / "clip.ts"))
    assert [frame.time for frame in source] == pytest.approx([i / 25 for i in range(12)])
    assert source.begin > 0


@pytest.mark.parametrize(
    ("media", "length", "kept"),
    [(0, 4000, (0, 100)), (1000, 3000, (25, 100)), (0, 2000, (0, 50)), (1480, 1000, (37, 62)), (40, 40, (1, 2))],
)
def test_trimmed_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, media: int, length: int, kept: tuple[int, int]
) -> None:
    """An edit list, as phones write it, of `length` ms from `media` ms on: worked out by hand at 25 frames a second."""
    path = write_clip(tmp_path / "clip.mp4", frames=100)
    whole = list(open_video(path))
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # the only one: its length in ms, and its begin on the media's clock of 16 kHz
    _, delay = struct.unpack_from(">Ii", data, entry)  # B-frames come later than they are decoded
    struct.pack_into(">Ii", data, entry, length, delay + media * 16)
    path.write_bytes(data)
    source = open_video(path)
    frames = list(source)
    assert [frame.time for frame in frames] == pytest.approx([index / 25 for index in range(kept[1] - kept[0])])
    assert all((a.image == b.image).all() for a, b in zip(frames, whole[slice(*kept)], strict=True))
    assert source.expected == len(frames)
    assert not caplog.text
    for a, b in zip(open_video(path, "1:") if len(frames) > 1 else (), frames[1:], strict=True):
        assert a.time == b.time
        assert (a.image == b.image).all()


@pytest.mark.parametrize("kind", ["folder", "array", "iterator", "animation", "paths"])
def test_range_of_pictures(tmp_path: Path, kind: str) -> None:
    pictures = [picture(8 * index) for index in range(4)]
    images = [Image.fromarray(each) for each in pictures]
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / "folder" / f"{index}.png" for index in range(4)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=100)
    videos = {"folder": tmp_path / "folder", "array": np.stack(pictures), "iterator": iter(pictures)}
    video = {**videos, "animation": tmp_path / "a.png", "paths": paths}[kind]
    frames = list(open_video(video, "2:4"))
    assert all((frame.image == each).all() for frame, each in zip(frames, pictures[2:], strict=True))
    assert [frame.time for frame in frames] == pytest.approx([0.2, 0.3])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_is_upright(tmp_path: Path, orientation: int) -> None:
    Image.fromarray(picture(40)).save(tmp_path / "a.tiff", tiffinfo={0x112: orientation})
    (tmp_path / "a.jpg").write_bytes(jpeg(orientation))
    (tiff,), (camera,) = open_video(tmp_path / "a.tiff"), open_video(tmp_path / "a.jpg")
    assert tiff.image.shape == camera.image.shape
    assert np.abs(tiff.image.astype(int) - camera.image).mean() < 12


@pytest.mark.parametrize("pixels", ["gray16le", "gray10le", "rgb48le", "yuv420p10le"])
def test_video_of_more_than_eight_bits(tmp_path: Path, pixels: str) -> None:
    grey = np.linspace(0, 255, 48 * 64).reshape(48, 64).round().astype(np.uint8)
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixels
        wide = np.ascontiguousarray(np.stack([grey.astype(np.uint16) * 257] * 3, axis=-1))
        output.mux(stream.encode(av.VideoFrame.from_ndarray(wide, format="rgb48le").reformat(format=pixels)))
        output.mux(stream.encode(None))
    (frame,) = open_video(tmp_path / "a.mkv")
    assert np.abs(frame.image.astype(int) - grey[..., None]).max() <= 3


def test_sixteen_bit_grey(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(grey).save(tmp_path / name)
        for video in (tmp_path / name, Image.fromarray(grey)):  # a picture of Pillow, too
            (frame,) = open_video(video)
            assert (frame.image == (grey / 257).round().astype(np.uint8)[..., None]).all()


@pytest.mark.parametrize("name", ["a.png", "a.apng", "a.webp"])
def test_animated_pictures(tmp_path: Path, name: str) -> None:
    images = [Image.fromarray(picture(8 * i)) for i in range(4)]
    options = {"append_images": images[1:], "duration": [40, 80, 200, 40], "lossless": True}
    images[0].save(tmp_path / name, "WEBP" if name.endswith("webp") else "PNG", save_all=True, **options)
    source = open_video(tmp_path / name)
    frames = list(source)
    assert all((frame.image == picture(8 * i)).all() for i, frame in enumerate(frames))
    assert ([frame.time for frame in frames], source.count) == (pytest.approx([0, 0.04, 0.12, 0.32]), 4)


@pytest.mark.parametrize("suffix", ["tif", "tiff", "avif", "jfif"])
def test_folders_of_other_pictures(tmp_path: Path, suffix: str) -> None:
    for index in range(2):
        image = Image.fromarray(picture(index))
        image.save(tmp_path / f"{index}.{suffix}", {"tif": "TIFF", "jfif": "JPEG"}.get(suffix))
    assert len(list(open_video(tmp_path))) == 2


@pytest.mark.parametrize("names", ["00000.jpg 00000.png", "0.jpg 0_mask.png", "img_0.png mask_0.png", "a.jpg a.png"])
def test_image_and_mask_side_by_side(tmp_path: Path, names: str) -> None:
    for name in names.split():
        Image.fromarray(picture(0)).save(tmp_path / name)
    refused(tmp_path, "; keep frames of one kind there")


def test_frames_of_two_formats(tmp_path: Path) -> None:
    for name in ("0.jpg", "1.png", "2_last.png"):
        Image.fromarray(picture(0)).save(tmp_path / name)
    assert len(list(open_video(tmp_path))) == 3


def test_numbers_beyond_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for digits in (20, 5000):
        with pytest.raises(UserError, match=r"^frames (must be A:B .* up to a billion|'.*' is not a range)") as caught:
            parse_range(f"0:{'9' * digits}")
        assert len(str(caught.value)) < 200
    for fps in (1e-9, 1e300, float("nan")):
        with pytest.raises(UserError, match="fps must be"):
            open_video(np.zeros((1, 8, 8, 3), np.uint8), fps=fps)
    Image.new("L", (1, 1_000_000)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "1x1000000 pixels")
    open_video(write_clip(tmp_path / "a.mp4"), fps=5)
    assert "fps is ignored" in caplog.text
