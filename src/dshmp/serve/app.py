"""What is done when something on the page is clicked. Handlers return gradio's updates."""

import functools
import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from dshmp.common.errors import UserError
from dshmp.common.options import Options
from dshmp.common.progress import Progress
from dshmp.demo import VIDEO, make_demo, write_clip
from dshmp.inference.segment import load
from dshmp.serve import downloads, html, session
from dshmp.serve.session import View

NONE = "none"  # in the list of candidates: the model's own
RESULTS = 8  # outputs that tell of an answer; the status comes after them


class Cancelled(Exception):
    """The computation is not wanted any more."""


class Runs:
    """The computations of visitors, one each, which can be stopped wherever they are."""

    def __init__(self) -> None:
        self._stops: dict[str | None, threading.Event] = {}

    def begin(self, visitor: str | None) -> None:
        """What the visitor began before is stopped."""
        self.stop(visitor)
        self._stops[visitor] = threading.Event()

    def stop(self, visitor: str | None) -> None:
        if visitor in self._stops:
            self._stops[visitor].set()

    def stop_all(self) -> None:
        for stop in tuple(self._stops.values()):
            stop.set()

    def progress(self, visitor: str | None, show: Progress) -> Progress:
        """Raises Cancelled, wherever progress is told, once the visitor's computation shall stop."""
        stop = self._stops[visitor]

        def tell(phase: str, done: int, total: int | None) -> None:
            if stop.is_set():
                raise Cancelled
            show(phase, done, total)

        return tell


def _silent(phase: str, done: int, total: int | None) -> None: ...


@functools.cache
def _example() -> tuple[Any, str]:
    """Frames (T, H, W, 3) of the demo's clip, and its sentences."""
    frames, sentences, _ = make_demo()
    return frames, "\n".join(sentences)


def _error(error: UserError, video: Path | None) -> str:
    """The error's line, with the video's name in place of where it lies here."""
    line = str(error) if video is None else str(error).replace(str(video), video.name)
    return f'<span class="error">{html.escaped(line)}</span>'


@dataclass
class App:
    """All visitors' computations. What is written lies in `folder`, gradio's own, which removes what is old."""

    device: str
    folder: Path
    runs: Runs = field(default_factory=Runs)

    def begin(self, request: gr.Request) -> list[Any]:
        self.runs.begin(request.session_hash)
        return [gr.update(interactive=False), gr.update(interactive=True), ""]

    def end(self) -> list[Any]:
        return [gr.update(interactive=True), gr.update(interactive=False)]

    def stop(self, request: gr.Request) -> str:
        self.runs.stop(request.session_hash)
        return "Stopping ..."

    def leave(self, request: gr.Request) -> None:
        self.runs.stop(request.session_hash)

    def run(
        self,
        video: str | None,
        text: str,
        model: str,
        candidates: str,
        threshold: float,
        request: gr.Request,
        bar: Any = gr.Progress(),  # noqa: B008, this is how gradio finds it
    ) -> list[Any]:
        """Answer, and show it."""

        def show(phase: str, done: int, total: int | None) -> None:
            bar((done, total), desc=phase, unit="frames")

        progress = self.runs.progress(request.session_hash, show)
        return self._shown(lambda: self._answer(video, text, model, candidates, threshold, progress), video, progress)

    def set_threshold(self, view: View | None, threshold: float) -> list[Any]:
        return self._changed(view, lambda view: session.with_threshold(view, threshold))

    def pick(self, view: View, event: gr.EventData) -> list[Any]:
        return self._changed(view, lambda view: session.with_sentence(view, event.sentence))

    def switch(self, view: View, event: gr.EventData) -> list[Any]:
        return self._changed(view, lambda view: session.switched(view, event.number, event.on))

    def paint(self, view: View, event: gr.EventData) -> list[Any]:
        return self._changed(view, lambda view: session.coloured(view, event.number, event.colour))

    def files(self, view: View, kinds: list[str]) -> tuple[Any, str]:
        try:
            return [str(path) for path in downloads.write(kinds, view, self._place())], ""
        except UserError as error:
            return None, _error(error, view.video)

    def example(self) -> tuple[str, str]:
        frames, text = _example()
        write_clip(path := self._place() / VIDEO, frames)
        return str(path), text

    def segment(
        self, video: str | None, sentences: str, model: str, candidates: str, threshold: float, request: gr.Request
    ) -> tuple[list[dict[str, Any]], str]:
        """Segment what sentences, one per line, mean in a video. Returns per sentence whether it was found, its score
        and its objects' scores; and result.json, with the masks of all candidates."""
        self.runs.begin(request.session_hash)
        progress = self.runs.progress(request.session_hash, _silent)
        try:
            view = self._answer(video, sentences, model, candidates, threshold, progress)
        except (UserError, Cancelled) as error:
            line = str(error).replace(str(video), Path(video or "").name) or "stopped"
            raise gr.Error(line, print_exception=False) from None
        scores = [
            {"sentence": result.expression, "found": result.found, "score": result.score}
            | {"objects": [item.score for item in result.objects]}
            for result in view.results
        ]
        return scores, str(downloads.write_results(view, view.results, self._place()))

    def _answer(
        self, video: str | None, text: str, model: str, candidates: str, threshold: float, progress: Progress
    ) -> View:
        progress("waiting", 0, None)
        sentences = session.sentences_of(text)
        if video is None:
            raise UserError("no video given; drop one, or record one")
        segmenter = load(Options(model=model, device=self.device))
        asked: Any = {"candidates": None if candidates == NONE else candidates, "threshold": threshold}
        return session.first_view(
            Path(video), segmenter(video, sentences, all_objects=True, progress=progress, **asked)
        )

    def _changed(self, view: View | None, change: Callable[[View], View]) -> list[Any]:
        """The page after a change, which needs no model; nothing where nothing was answered yet."""
        if view is None:
            return [gr.skip()] * (RESULTS + 1)
        return self._shown(lambda: change(view), str(view.video), _silent)

    def _shown(self, make: Callable[[], View], video: str | None, progress: Progress) -> list[Any]:
        path = self._place() / "shown.mp4"
        try:
            view = make()
            session.draw_page_video(path, view, progress)
        except (Cancelled, UserError) as error:
            shutil.rmtree(path.parent)
            line = _error(error, Path(video) if video else None) if isinstance(error, UserError) else "Stopped."
            return [*[gr.skip()] * RESULTS, line]
        cards, timeline, objects = (part(view) for part in (html.sentences_html, html.timeline_html, html.objects_html))
        there, gone = gr.update(visible=True), gr.update(visible=False)
        return [view, cards, str(path), timeline, objects, there, gone, None, ""]

    def _place(self) -> Path:
        (made := self.folder / secrets.token_hex(16)).mkdir()
        return made
