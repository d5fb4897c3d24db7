"""The page: what stands where, and how it is served."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from dshmp.errors import UserError
from dshmp.export import load
from dshmp.options import Kind, Options
from dshmp.serve import downloads, html
from dshmp.serve.app import NONE, App

KEPT = 2 * 3600  # seconds that uploads and answers are kept
SWEEP = 600  # seconds between looks for what is older
WAITING = 20  # computations that may wait for the one at work
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # nothing is fetched
MONO = ["ui-monospace", "Consolas", "monospace"]
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; frame-ancestors 'self'"
TITLE = "dshmp"
HEAD = (
    '<div class="title"><h1>dshmp</h1><p>A video and a sentence in, the masks of what the sentence means out.</p></div>'
)
EMPTY = '<div class="empty">Masks, the time of evidence and the objects appear here.</div>'


def refuse_addresses(video: Any) -> None:
    """The component takes uploads alone. gradio itself would fetch a video from any address that a program names."""
    move, move_async = video.move_resource_to_block_cache, video.async_move_resource_to_block_cache
    video.move_resource_to_block_cache = lambda path: move(_no_address(path))
    video.async_move_resource_to_block_cache = lambda path: move_async(_no_address(path))


def _no_address(path: Any) -> Any:
    if "://" in str(path):
        raise gr.Error("a video must be uploaded; addresses are not fetched", print_exception=False)
    return path


class NothingFetched:
    """Neither server nor browser fetch anything from elsewhere: gradio answers `/file=https://...` by fetching
    that, and its video editor comes from a public address."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        fetched = scope["type"] == "http" and "=http" in scope["path"]
        await (PlainTextResponse("not found", 404) if fetched else self.app)(scope, receive, send_with_policy)


def layout(app: App, models: Sequence[str], threshold: float) -> gr.Blocks:
    """The page's components and what they call."""
    hidden: dict[str, Any] = {"api_visibility": "private"}
    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", **hidden}
    model_queue: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(SWEEP, KEPT)) as page:
        state = gr.State()
        gr.HTML(HEAD)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                mirror = gr.WebcamOptions(mirror=False)
                sources = ["upload", "webcam"]
                video = gr.Video(label="Video", sources=sources, webcam_options=mirror, elem_id="video")
                refuse_addresses(video)
                example = gr.Button("Try an example: three look-alikes", size="sm", elem_id="example")
                hint = "the one that turns back\nthe dog running left"
                sentences = gr.Textbox(label="Sentences, one per line", lines=3, placeholder=hint, elem_id="sentences")
                with gr.Row():
                    model = gr.Dropdown(list(models), value=models[0], label="Model", min_width=120)
                    kinds = [NONE, *get_args(Kind)]
                    candidates = gr.Dropdown(kinds, value=NONE, label="Candidates", min_width=120, elem_id="candidates")
                meaning = "Score above which an object is meant"
                bar = gr.Slider(0, 1, threshold, step=0.01, label="Threshold", info=meaning, elem_id="threshold")
                with gr.Row():
                    start = gr.Button("Segment", variant="primary", elem_id="run", min_width=120)
                    cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", min_width=120)
                status = gr.HTML(elem_classes="status", elem_id="status", min_height=64)
            with gr.Column(scale=3, min_width=320, elem_id="answer"):
                empty = gr.HTML(EMPTY)
                with gr.Column(visible=False) as answer:
                    cards = gr.HTML(js_on_load=html.SENTENCES_JS, elem_id="cards")
                    overlay = gr.Video(show_label=False, interactive=False, autoplay=True, loop=True, elem_id="overlay")
                    timeline = gr.HTML(js_on_load=html.TIMELINE_JS, elem_id="timeline")
                    objects = gr.HTML(js_on_load=html.OBJECTS_JS, elem_id="objects")
                    with gr.Accordion("Download", open=False, elem_id="download"):
                        wanted = gr.CheckboxGroup(list(downloads.WRITERS), value=["result.json"], show_label=False)
                        make = gr.Button("Make files", size="sm", elem_id="make")
                        files = gr.Files(show_label=False, interactive=False, elem_id="files")
        given = [video, sentences, model, candidates, bar]
        results = [state, cards, overlay, timeline, objects, answer, empty, files, status]
        begun = start.click(app.begin, None, [start, cancel, status], **at_once)
        ran = begun.then(app.run, given, results, show_progress_on=status, **model_queue, **hidden)
        ran.then(app.end, None, [start, cancel], **at_once)
        cancel.click(app.stop, None, status, **at_once)
        example.click(app.example, None, [video, sentences], **hidden)
        changes: dict[str, Any] = {"outputs": results, "show_progress_on": timeline, "trigger_mode": "always_last"}
        changes |= {"concurrency_id": "drawing", "concurrency_limit": 1, **hidden}
        bar.input(app.set_threshold, [state, bar], **changes)
        cards.pick(app.pick, state, **changes)
        objects.switch(app.switch, state, **changes)
        objects.paint(app.paint, state, **changes)
        make.click(app.files, [state, wanted], [files, status], **hidden)
        page.unload(app.leave)
        scores, document = gr.JSON(visible=False), gr.File(visible=False)  # of the API alone
        call = gr.Button(visible=False)
        call.click(app.segment, given, [scores, document], api_name="segment", **model_queue)
    page.queue(max_size=WAITING)
    return page


@contextlib.contextmanager
def serving(models: Sequence[str], device: str, host: str, port: int, max_upload: int) -> Iterator[str]:
    """Serve the page while this is open; gives its address. Files are in a temporary folder, which is removed in the
    end; `max_upload` is in MB. Sets gradio's environment variables. Raises UserError where the models cannot be loaded
    or the port is taken."""
    threshold = load(Options(model=models[0], device=device)).config.readout.threshold
    with tempfile.TemporaryDirectory(prefix="dshmp-serve-", ignore_cleanup_errors=True) as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        app = App(device, Path(folder))
        page = layout(app, models, threshold)
        theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO)
        local: dict[str, Any] = {"share": False, "ssr_mode": False, "mcp_server": False, "run_history": False}
        local |= {"quiet": True, "prevent_thread_lock": True, "footer_links": ["api"], "inbrowser": False}
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                max_file_size=f"{max_upload}mb",
                app_kwargs={"middleware": [Middleware(NothingFetched)]},
                theme=theme,
                css=html.CSS,
                **local,
            )
        except OSError:
            raise UserError(f"{host}:{port}: cannot be listened on; choose another --port, or --host") from None
        try:
            yield address
        finally:
            app.runs.stop_all()
            page.close(verbose=False)
