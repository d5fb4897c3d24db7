"""The page in a real browser, its API with gradio's client, and what it must not give away."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import documents
from clips import write_clip
from dshmp import load_results
from dshmp.inference.segmenter import Segmenter
from dshmp.video.io import open_video

gradio_client = pytest.importorskip("gradio_client", reason="the page is not tested; pip install 'dshmp[web]'")
httpx = pytest.importorskip("httpx")

pytestmark = pytest.mark.slow

BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
SENTENCES = "the red square\nthe white bar that moves right"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Log:
    """What the page's process told."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    @property
    def ends(self) -> list[str]:
        """How the model's answers ended."""
        return [line.removeprefix("end ") for line in self.lines if line.startswith("end ")]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    (path := tmp_path_factory.mktemp("log") / "log.txt").touch()
    return Log(path)


@contextlib.contextmanager
def served(*arguments: object) -> Iterator[str]:
    """Address of a page that `server.py` serves."""
    command = [sys.executable, str(Path(__file__).with_name("server.py")), str(free_port()), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def address(log: Log) -> Iterator[str]:
    with served(log.path) as found:
        yield found
    assert [line for line in log.lines if line.startswith("outside")] == []


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=20)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "long.mp4", frames=600)


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return gradio_client.Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("client")))


def ask(client: Any, clip: Path, sentences: str = SENTENCES, **given: Any) -> Any:
    video = gradio_client.handle_file(str(clip))
    return client.submit(video, sentences, **{"candidates": "none", **given}, api_name="/segment")


def test_the_api_answers_as_the_segmenter_does(client: Any, clip: Path) -> None:
    scores, document = ask(client, clip).result()
    direct = Segmenter.from_pretrained("default", "cpu")(clip, SENTENCES.splitlines())
    assert [each["sentence"] for each in scores] == SENTENCES.splitlines()
    assert [each["found"] for each in scores] == [result.found for result in direct]
    assert [each["score"] for each in scores] == pytest.approx([result.score for result in direct], abs=1e-5)
    read = load_results(document)
    assert [each.rle for each in read] == [each.rle for each in direct]
    assert all(each.others for each in read)


def test_the_api_has_one_endpoint(client: Any) -> None:
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/segment"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"sentences": " \n"}, "no sentence given"),
        ({"threshold": 2}, "greater than maximum|between 0 and 1"),
        ({"model": "/etc"}, "not in the list of choices"),
        ({"candidates": "nothing"}, "not in the list of choices"),
    ],
)
def test_wrong_values_are_told(client: Any, clip: Path, change: dict[str, Any], line: str) -> None:
    with pytest.raises(gradio_client.exceptions.AppError, match=line):
        ask(client, clip, **change).result()


def test_one_computation_runs_at_a_time(client: Any, clip: Path, log: Log) -> None:
    count = len(log.ends)
    for job in [ask(client, clip) for _ in range(3)]:
        job.result()
    assert len(log.ends) == count + 3
    steps = [line.split()[0] for line in log.lines]
    assert steps == ["begin", "end"] * len(log.ends)


@pytest.mark.parametrize("path", ["/etc/passwd", str(Path(__file__)), str(Path(__file__).parents[2] / "README.md")])
@pytest.mark.parametrize("route", ["gradio_api/file=", "file=", "gradio_api/file=/../", "gradio_api/file=..%2f..%2f.."])
def test_files_of_the_machine_are_not_served(address: str, route: str, path: str) -> None:
    assert httpx.get(f"{address}{route}{path}").status_code in (403, 404)


@pytest.mark.parametrize("path", ["/etc/passwd", str(Path(__file__).parents[2] / "docs" / "demo.png")])
def test_files_of_the_machine_are_not_read(client: Any, address: str, path: str) -> None:
    given = {"path": path, "meta": {"_type": "gradio.FileData"}}
    begun = httpx.post(
        f"{address}gradio_api/call/segment", json={"data": [given, "the dog", "default", "none", 0.5]}
    ).json()
    ended = httpx.get(f"{address}gradio_api/call/segment/{begun['event_id']}").text
    assert ended.startswith("event: error")
    assert "root:" not in ended


def test_nothing_is_fetched(address: str) -> None:
    """That nobody else was connected to, is seen in the end."""
    assert httpx.get(f"{address}gradio_api/file=https://example.com/clip.mp4").status_code == 404
    assert httpx.get(f"{address}gradio_api/proxy=https://example.com/clip.mp4").status_code == 404
    given = {"path": "https://example.com/clip.mp4", "meta": {"_type": "gradio.FileData"}}
    data = {"data": [given, "the dog", "default", "none", 0.5]}
    begun = httpx.post(f"{address}gradio_api/call/segment", json=data).json()
    assert "not fetched" in httpx.get(f"{address}gradio_api/call/segment/{begun['event_id']}").text


def test_large_uploads_are_refused(address: str) -> None:
    sent = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.mp4", b"0" * (3 << 20))})
    assert sent.status_code == 413


def test_old_files_are_removed(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    (log := tmp_path / "log.txt").touch()

    def files() -> set[str]:
        return {path.name for path in folder.glob("dshmp-serve-*/*/*")}

    with served(log, 20) as address:
        client = gradio_client.Client(address, verbose=False, download_files=str(tmp_path))
        ask(client, clip).result()
        assert "result.json" in files()
        deadline = time.monotonic() + 60
        while files() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert files() == set()
    assert list(folder.glob("dshmp-serve-*")) == []


# --- In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser tests; pip install playwright")
    path = next((path for path in BROWSERS if os.path.exists(path)), None)
    if path is None:
        pytest.skip("no browser tests: no chromium found; on Debian and Ubuntu: apt install chromium")
    with playwright.sync_playwright() as running:
        arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        opened = running.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, opened; in the end nothing was asked of anybody else, and no script failed."""
    opened = browser.new_page(viewport={"width": 1280, "height": 1000})
    asked: list[str] = []
    faults: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#run")
    yield opened
    opened.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert faults == []


def upload(page: Any, path: Path) -> None:
    page.set_input_files("#video input[type=file]", str(path))
    page.wait_for_selector("#video video")


def answer(page: Any, clip: Path, sentences: str = SENTENCES) -> None:
    upload(page, clip)
    page.fill("#sentences textarea", sentences)
    page.click("#run")
    page.wait_for_selector(".sentence", timeout=60_000)
    page.wait_for_selector("#run:not([disabled])", timeout=60_000)


def source(page: Any) -> str:
    """Address of the video that is shown."""
    found: str = page.eval_on_selector("#overlay video", "video => video.currentSrc")
    return found


def other_video(page: Any, before: str) -> str:
    page.wait_for_function("src => document.querySelector('#overlay video')?.currentSrc != src", arg=before)
    page.wait_for_function("document.querySelector('#overlay video').readyState >= 2")
    return source(page)


def pictures(page: Any, tmp_path: Path) -> np.ndarray:
    """Frames (T, H, W, 3) of the video that is shown."""
    file = tmp_path / "shown.mp4"
    file.write_bytes(httpx.get(source(page)).content)
    return np.stack([frame.image for frame in open_video(file)])


def test_answers_are_shown_and_changed_without_the_model(page: Any, clip: Path, log: Log, tmp_path: Path) -> None:
    count = len(log.ends)
    answer(page, clip)
    assert len(log.ends) == count + 1
    assert page.locator(".sentence").count() == 2
    assert page.inner_text(".sentence[aria-pressed=true]").startswith("the red square")
    assert page.inner_text("#cards .motion >> nth=0") != ""

    page.wait_for_function("document.querySelector('#overlay video').readyState >= 2")
    page.evaluate("document.addEventListener('play', event => event.target.pause(), true)")
    page.eval_on_selector("#overlay video", "video => video.pause()")
    for part in (0.75, 0.25):  # a click seeks
        box = page.locator(".timeline").bounding_box()
        page.mouse.click(box["x"] + part * box["width"], box["y"] + box["height"] / 2)
        page.wait_for_function(
            "place => Math.abs(document.querySelector('#overlay video').currentTime - place) < 0.05", arg=part * 0.8
        )
    head = page.eval_on_selector(".playhead", "head => parseFloat(head.style.left)")
    assert head == pytest.approx(25, abs=6)

    first = source(page)
    boxes = page.locator(".object input[type=checkbox]")
    assert boxes.count() > 1
    drawn = pictures(page, tmp_path)
    was = boxes.nth(0).is_checked()
    boxes.nth(0).set_checked(not was)
    second = other_video(page, first)
    assert (pictures(page, tmp_path) != drawn).any()
    page.wait_for_function("Math.abs(document.querySelector('#overlay video').currentTime - 0.2) < 0.05")
    page.fill("#threshold input[type=number]", "0")
    page.press("#threshold input[type=number]", "Enter")
    third = other_video(page, second)
    assert all(boxes.nth(number).is_checked() for number in range(boxes.count()))
    colourful = pictures(page, tmp_path)
    page.locator(".object input[type=color]").nth(0).fill("#ffffff")
    other_video(page, third)
    assert (pictures(page, tmp_path) != colourful).any()
    page.click("[data-sentence='1']")
    page.wait_for_selector("[data-sentence='1'][aria-pressed=true]")
    assert len(log.ends) == count + 1  # the model was asked once

    page.click("#download button >> nth=0")
    page.click("#make")
    page.wait_for_selector("#files a[download]")
    with page.expect_download() as waiting:
        page.click("#files a[download]")
    waiting.value.save_as(tmp_path / "result.json")
    read = load_results(tmp_path / "result.json")
    assert [result.expression for result in read] == SENTENCES.splitlines()
    assert len(read[0].objects) == boxes.count()  # at threshold 0


def test_progress_moves_and_cancel_stops_the_model(page: Any, long_clip: Path, log: Log) -> None:
    count = len(log.ends)
    upload(page, long_clip)
    page.fill("#sentences textarea", SENTENCES)
    page.click("#run")
    told: set[str] = set()
    for _ in range(3):
        page.wait_for_function(
            """seen => { const bar = document.querySelector('#status [role=progressbar]');
            return bar && !seen.includes(bar.getAttribute('aria-valuenow')); }""",
            arg=list(told),
            timeout=60_000,
        )
        told.add(page.get_attribute("#status [role=progressbar]", "aria-valuenow"))
    page.click("#cancel")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Stopped')")
    assert log.ends[count:] == ["Cancelled"]
    page.wait_for_selector("#run:not([disabled])")


def test_who_leaves_stops_the_model(page: Any, long_clip: Path, log: Log) -> None:
    count = len(log.ends)
    upload(page, long_clip)
    page.fill("#sentences textarea", SENTENCES)
    page.click("#run")
    page.wait_for_selector("#status [role=progressbar]", timeout=60_000)
    page.goto("about:blank")
    deadline = time.monotonic() + 30
    while len(log.ends) == count and time.monotonic() < deadline:
        time.sleep(0.1)
    assert log.ends[count:] == ["Cancelled"]


def test_mistakes_are_lines_on_the_page(page: Any, clip: Path, tmp_path: Path) -> None:
    def line(after: str) -> str:
        page.click("#run")
        page.wait_for_function(
            "word => document.querySelector('#status .error')?.innerText.includes(word)", arg=after, timeout=30_000
        )
        found: str = page.inner_text("#status .error")
        return found

    assert line("sentence").startswith("no sentence given")
    page.fill("#sentences textarea", "the dog")
    assert line("video").startswith("no video given")
    (broken := tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:200])
    upload(page, broken)
    told = line("broken")
    assert told.startswith("broken.mp4: ")
    assert "\n" not in told
    assert str(tmp_path.parent) not in told


def test_a_recording_is_answered(page: Any) -> None:
    page.click("#video button[aria-label='Capture from camera']")
    page.click("#video button:has-text('access')")
    page.click("#video button[aria-label='start recording'], #video button:has-text('Record')")
    page.wait_for_timeout(1500)
    page.click("#video button:has-text('Stop')")
    page.wait_for_selector("#video video[src]")
    page.fill("#sentences textarea", "the green circle")
    page.click("#run")
    page.wait_for_selector(".sentence", timeout=90_000)


def test_the_example_is_answered(page: Any) -> None:
    page.click("#example")
    page.wait_for_selector("#video video")
    page.click("#run")
    page.wait_for_selector(".sentence", timeout=60_000)
    assert page.locator(".sentence").count() == 3
    assert "1 object" in page.inner_text(".sentence >> nth=0")


def test_what_was_typed_is_no_markup(page: Any, clip: Path) -> None:
    typed = "the <b>red</b> {{value}} ${document.title} square"
    answer(page, clip, typed)
    assert page.inner_text(".sentence >> nth=0").startswith(typed)


def test_nothing_sticks_out(page: Any, clip: Path) -> None:
    answer(page, clip)
    for width in (400, 768, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


# --- The command


def command(port: int, folder: Path) -> subprocess.Popen[str]:
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from dshmp.__main__ import main; "
    arguments = ["dshmp", "serve", "--port", str(port), "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}import sys; sys.argv = {arguments!r}; main()"],
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_ends_it_and_nothing_is_left(tmp_path: Path, long_clip: Path) -> None:
    port = free_port()
    with command(port, tmp_path) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"serving at http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
            client = gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False)
            ask(client, long_clip)
            time.sleep(3)  # in the middle of a computation
        finally:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in err.splitlines() if "warning" not in line] == ["dshmp: interrupted"]
    assert list(tmp_path.iterdir()) == []


def test_a_program_can_ask_as_the_document_says(
    address: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = documents.code(documents.ROOT / "docs" / "serve.md").replace("http://127.0.0.1:7860", address)
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "serve.md", "exec"), {})
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith("the one that keeps still ") for line in told)
    assert told[-1] == "(20, 48, 64)"
