"""The page: what stands where, and what it calls."""

from collections.abc import Sequence
from typing import Any, get_args

import gradio as gr

from dshmp.common.options import Kind
from dshmp.serve import downloads, html
from dshmp.serve.app import NONE, App

KEPT = 2 * 3600  # seconds that uploads and answers are kept
SWEEP = 600  # seconds between looks for what is older
WAITING = 20  # computations that may wait for the one at work
CAMERA = {"width": {"ideal": 640}, "height": {"ideal": 480}}  # larger only takes longer
FONTS: dict[str, Any] = {  # of the visitor's machine: nothing is fetched
    "font": ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    "font_mono": ["ui-monospace", "Consolas", "monospace"],
}
THEME = gr.themes.Base(primary_hue="blue", neutral_hue="slate", **FONTS)
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
                webcam = gr.WebcamOptions(mirror=False, constraints={"video": CAMERA, "audio": False})
                sources = ["upload", "webcam"]
                video = gr.Video(label="Video", sources=sources, webcam_options=webcam, elem_id="video")
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
                        wanted = gr.CheckboxGroup(list(downloads.KINDS), value=["result.json"], show_label=False)
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
