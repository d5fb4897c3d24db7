"""Commands that answer about videos: segment, batch, demo, serve."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dshmp.cli.base import Json, Out, say, shown_progress, stdout_alone, tell, with_options
from dshmp.common.errors import UserError
from dshmp.common.options import Device, Kind, Model, Options

if TYPE_CHECKING:
    from dshmp.results.result import Result

Frames = Annotated[str | None, typer.Option(metavar="A:B", help="Only frames A to B-1; either may be left out.")]
Everything = Annotated[bool, typer.Option("--all-objects", help="Keep candidates that are not meant, as `others`.")]
NoOverlay = Annotated[bool, typer.Option("--no-overlay", help="Write masks and result.json alone.")]
Tracks = Annotated[Path | None, typer.Option(help="Objects to choose among, as another tool wrote them.")]
Source = Annotated[Kind | None, typer.Option("--candidates", help="What finds objects, in place of the model.")]
StillCamera = Annotated[bool, typer.Option("--still-camera", help="The camera does not move (tracks, candidates).")]
FORMATS = "For other tools: coco, ytvis, yolo, cvat, labelstudio, mots, davis, alpha, csv."
Export = Annotated[str | None, typer.Option(metavar="FORMAT,...", help=FORMATS)]
Fps = Annotated[float | None, typer.Option(help="Frames per second of a folder of images.")]


@with_options
def segment(
    source: Annotated[str, typer.Argument(metavar="VIDEO", help="Video file, image, or folder of frames.")],
    expressions: Annotated[list[str], typer.Argument(metavar="EXPRESSION...", help="What to segment, in words.")],
    out: Out = Path("results"),
    frames: Frames = None,
    fps: Fps = None,
    all_objects: Everything = False,
    no_overlay: NoOverlay = False,
    export: Export = None,
    as_json: Json = False,
    tracks: Tracks = None,
    candidates: Source = None,
    still_camera: StillCamera = False,
    live: Annotated[bool, typer.Option("--live", help="Answer while VIDEO goes on: a file, an address, `-`.")] = False,
    window: Annotated[str | None, typer.Option(help="Of --live: frames that are answered at once, or 2s.")] = None,
    overlap: Annotated[str | None, typer.Option(help="Of --live: how many are those of the window before.")] = None,
    memory: Annotated[str | None, typer.Option(help="Of --live: how many frames before a window it knows.")] = None,
    *,
    options: Options,
) -> None:
    """Segment what sentences mean in a video.

    Adds to OUT/<video>/: per sentence a folder with a PNG mask per frame and overlay.mp4, and one result.json.

    With --live VIDEO may also be a camera's number, an address (rtsp://, http:// ...), or - for stdin. Masks are
    written to a new folder as they come, and stdout has a line of JSON per frame, until VIDEO ends or Ctrl-C.

    Example: dshmp segment clip.mp4 "the one that turns back" "the dog running left" --out results
    """
    from dshmp.video.io import check_sentences, open_video

    kinds = _kinds(export)
    check_sentences(expressions)
    if live:
        given = {"--frames": frames, "--tracks": tracks, "--all-objects": all_objects, "--overwrite": options.overwrite}
        if wrong := [name for name, value in given.items() if value]:
            raise UserError(f"{wrong[0]}: not with --live, which knows no whole video; leave it out")
        _segment_live(source, expressions, out, options, fps, window, overlap, memory, candidates, still_camera)
        return
    if window or overlap or memory:
        raise UserError("--window, --overlap and --memory are of --live; a video is answered as a whole without it")
    video = Path(source)
    open_video(video, frames, fps)  # a wrong file is told at once, before the model is loaded

    from dshmp.model.words import splitting_apart

    with splitting_apart(), shown_progress(video.name) as progress:
        from dshmp.inference.segment import load, segment_to_folder

        asked = video, expressions, out, options, load, frames, fps, None, progress, all_objects, not no_overlay
        folder, results, new = segment_to_folder(
            *asked, tracks=tracks, candidates=candidates, still_camera=still_camera, exports=kinds
        )
    if as_json:
        typer.echo(_json(video, folder, results))
    for result in () if as_json else results:
        guess = f" (not understood: {', '.join(result.unknown)})" if result.unknown else ""
        say(f"{result.score:.2f}  {result.verdict}: {result.expression}{guess}")
    before = len(results) - new
    told = f" ({before} of {len(results)} answered before)" if before else ""
    say(f"wrote {folder}{told}", err=as_json)


def _segment_live(text: str, expressions: list[str], out: Path, options: Options, *how: Any) -> None:
    from dshmp.inference.live import live_folder, parse_source, stream_to_folder

    folder = live_folder(source := parse_source(text), out)
    for told in stream_to_folder(source, expressions, folder, options, *how):
        print(json.dumps(told), flush=True)
    say(f"wrote {folder}", err=True)


@with_options
def batch(
    videos: Annotated[Path, typer.Argument(metavar="LIST", help="CSV (columns video,expression), or JSON.")],
    out: Annotated[
        str, typer.Option(metavar="PLACE", help="Folder for the results, or a URL: s3://bucket/folder ...")
    ] = "results",
    frames: Frames = None,
    fps: Fps = None,
    all_objects: Everything = False,
    no_overlay: NoOverlay = False,
    export: Export = None,
    as_json: Json = False,
    candidates: Source = None,
    still_camera: StillCamera = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Share the videos by Ray: local, auto (a cluster here), ray://host:10001."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="With --ray: processes at most, a model in each.")] = None,
    *,
    options: Options,
) -> None:
    """Segment many videos; started again, it goes on where it stopped.

    LIST has one video and expression per row; paths are relative to it. A video or a sentence that
    fails doesn't stop the rest.

    Example: dshmp batch clips.csv --out results
    """
    from dshmp.common.lists import read_list
    from dshmp.fleet import Outcome, Task, answer, on_ray
    from dshmp.remote import is_url, url_names
    from dshmp.results.folder import folder_names, owners_in

    if workers and ray is None:
        raise UserError("--workers needs --ray; without, one process does all")
    kinds = _kinds(export)
    jobs = read_list(videos)
    names = url_names(list(jobs), out) if is_url(out) else folder_names(list(jobs), owners_in(Path(out)))
    how: dict[str, Any] = {"frames": frames, "fps": fps, "all_objects": all_objects, "overlay": not no_overlay}
    how |= {"candidates": candidates, "still_camera": still_camera, "exports": kinds}
    tasks = [
        Task(video=video, sentences=sentences, out=out, name=names[video], options=options, how=how)
        for video, sentences in jobs.items()
    ]

    def in_turn() -> Iterator[Outcome]:
        for task in tasks:
            with shown_progress(task.video.name) as progress:
                outcome = answer(task, progress)
            yield outcome

    failures: list[str] = []
    done = failed = 0
    with contextlib.ExitStack() as stack:
        outcomes: Iterable[Outcome] = in_turn()
        put: Callable[[str], None] = say
        if ray is not None:
            progress = stack.enter_context(shown_progress("fleet"))
            put = stack.enter_context(stdout_alone())
            outcomes = stack.enter_context(contextlib.closing(on_ray(tasks, ray, workers, progress)))
        for outcome in outcomes:
            done += not (outcome.new or outcome.faults)
            failed += bool(outcome.faults)
            failures += outcome.faults
            if outcome.folder and as_json:
                put(_json(outcome.task.video, outcome.folder, outcome.results))
            elif outcome.new:
                put(f"wrote {outcome.folder}")
    if done:
        say(f"{done} of {len(jobs)} videos were finished before", err=as_json)
    tell(*failures)
    if failed:
        raise UserError(f"{failed} of {len(jobs)} videos failed; see above")


def _kinds(export: str | None) -> list[str]:
    """The formats that a list with commas names."""
    from dshmp.formats import check_kinds

    return check_kinds([name.strip() for name in (export or "").split(",") if name.strip()])


def _json(video: Path, folder: Path | str, results: Iterable["Result"]) -> str:
    """A video's answers, as one line."""
    answers = [result.to_json() for result in results]
    return json.dumps({"video": str(video), "folder": str(folder), "results": answers})


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the clip, the overlays and the contact sheet.")] = Path("demo"),
    model: Model = "default",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Another number makes another clip.")] = 14,
) -> None:
    """Make a clip of look-alikes and tell them apart by three sentences that differ in motion only.

    Example: dshmp demo --out demo
    """
    from dshmp.demo import run

    with shown_progress("demo") as progress:
        sheet, scores = run(out, model, device, seed, progress)
    for expression, iou in scores:
        say(f"IoU {iou:.2f}  {expression}")
    say(f"wrote {sheet}")


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: whoever reaches the machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    model: Annotated[
        list[str] | None, typer.Option(help="As elsewhere; several, each with --model, are there to choose from.")
    ] = None,
    device: Device = "auto",
    max_upload: Annotated[int, typer.Option(min=1, help="Size of a video that may be uploaded, in MB.")] = 200,
) -> None:
    """Serve a web page: drop a video, type sentences, look at the answers, download them. Ctrl-C ends it.

    One computation runs at a time, others wait. Uploads lie in a temporary folder, which is removed in the end. The
    page asks nobody who you are. Needs gradio: pip install 'dshmp[web]'

    Example: dshmp serve --port 7860
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise UserError("gradio: is not installed, but the page needs it; pip install 'dshmp[web]'")

    from dshmp.serve.server import serving

    with serving(model or ["default"], device, host, port, max_upload) as address:
        say(f"serving at {address} (Ctrl-C ends it)")
        sys.stdout.flush()
        while True:
            time.sleep(3600)
