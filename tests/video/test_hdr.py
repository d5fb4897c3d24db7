"""HDR video comes out as ordinary pictures."""

import logging
from pathlib import Path

import av
import numpy as np
import pytest

from dshmp.video.io import open_video


def write(path: Path, code: list[int], transfer: int, colours: int = 9, chroma: tuple[int, int] = (512, 512)) -> Path:
    """A 10-bit video of two frames with a row of 64-pixel squares of the luma `code`, limited range."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "1", "x264-params": "log=-1"})
        stream.width, stream.height, stream.pix_fmt = 64 * len(code), 64, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = transfer, colours, 9, 1
        for index in range(2):
            frame = av.VideoFrame(stream.width, stream.height, "yuv420p10le")
            for plane, values in zip(frame.planes, (code, [chroma[0]], [chroma[1]]), strict=True):
                side = plane.height
                row = np.repeat(np.array(values, np.uint16), plane.width // len(values))
                rows = np.zeros((side, plane.line_size // 2), np.uint16)
                rows[:, : plane.width] = row
                plane.update(rows.tobytes())
            frame.pts = index
            frame.color_trc, frame.color_primaries, frame.colorspace, frame.color_range = transfer, colours, 9, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def pq(light: float) -> int:
    """10-bit code of cd/m2, SMPTE ST 2084."""
    power = (light / 10_000) ** 0.1593017578125
    return round(64 + 876 * ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)


def hlg(signal: float) -> int:
    return round(64 + 876 * signal)


def squares(path: Path) -> np.ndarray:
    image = next(iter(open_video(path))).image
    return image[32, 32::64].astype(int)  # (squares, 3)


# black, a grey of 18 %, one of 30 %, a white sheet (203 cd/m2, 75 % of HLG by ITU-R BT.2408), a lamp of 1000 cd/m2
@pytest.mark.parametrize(
    ("transfer", "codes"),
    [(16, [pq(x) for x in (0, 36.5, 61, 203, 1000)]), (18, [hlg(x) for x in (0, 0.4365, 0.5373, 0.75, 1)])],
)
def test_brightness(tmp_path: Path, transfer: int, codes: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """Greys keep their order, and what is darker than half a white sheet its signal in SDR: 118 in sRGB of 18 %."""
    with caplog.at_level(logging.WARNING, "dshmp"):
        source = open_video(write(tmp_path / "a.mp4", codes, transfer))
        black, grey, light, white, lamp = (values := next(iter(source)).image[32, 32::64].astype(int)).mean(axis=1)
        assert len(list(source)) == 2
        open_video(tmp_path / "a.mp4")  # again, as the command does
    assert np.ptp(values, axis=1).max() <= 2
    assert (np.diff(values.mean(axis=1)) > 5).all()
    assert black <= 1
    assert grey == pytest.approx(118, abs=5)
    assert light == pytest.approx(149, abs=5)
    assert white == pytest.approx(225, abs=4)
    assert 240 < lamp <= 255
    assert len(caplog.records) == 1
    assert "HDR" in caplog.text


def test_colours_are_those_of_bt709(tmp_path: Path) -> None:
    """The red of BT.709 at 60 cd/m2 comes out red, without green and blue."""
    red = np.array([0.6274, 0.0691, 0.0164]) * 60  # in BT.2020
    r, g, b = ((pq(x) - 64) / 876 for x in red)
    luma = 0.2627 * r + 0.6780 * g + 0.0593 * b
    chroma = (round(512 + 896 * (b - luma) / 1.8814), round(512 + 896 * (r - luma) / 1.4746))
    path = write(tmp_path / "a.mp4", [round(64 + 876 * luma)] * 2, 16, chroma=chroma)
    red, green, blue = squares(path)[0]
    assert red == pytest.approx(148, abs=6)
    assert max(green, blue) < 30


@pytest.mark.parametrize("transfer", [1, 2, 14])
def test_other_video_stays_as_it_is(tmp_path: Path, transfer: int, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.mp4", [64, 200, 500, 940], transfer)
    with av.open(str(path)) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert all(np.array_equal(a.image, b) for a, b in zip(open_video(path), plain, strict=True))
    assert not caplog.records
