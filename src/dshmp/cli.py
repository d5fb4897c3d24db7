"""The `dshmp` command. Heavy libraries are imported by the commands that need them, so that help answers at once."""

import contextlib
import functools
import gc
import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dshmp import __version__
from dshmp.common.environment import collect_rarely, keep_memory, share_cores
from dshmp.common.errors import UserError, one_line, printable
from dshmp.common.options import Annotations, Device, Kind, Model, Options
from dshmp.common.signals import exit_if_signalled, heeded

if TYPE_CHECKING:
    from dshmp.results.result import Result

plain: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}
helped = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(**plain, add_completion=False, pretty_exceptions_enable=False, context_settings=helped)
synthetic = typer.Typer(**plain, help="The synthetic data set: videos with motion expressions.")
app.add_typer(synthetic, name="synthetic")
data = typer.Typer(**plain, help="The benchmarks: check one, or draw a miniature.")
app.add_typer(data, name="data")

Out = Annotated[Path, typer.Option(help="Folder for the results, made where it is missing.")]
Frames = Annotated[str | None, typer.Option(metavar="A:B", help="Only frames A to B-1; either may be left out.")]
Everything = Annotated[bool, typer.Option("--all-objects", help="Keep candidates that are not meant, as `others`.")]
NoOverlay = Annotated[bool, typer.Option("--no-overlay", help="Write masks and result.json alone.")]
Tracks = Annotated[Path | None, typer.Option(help="Objects to choose among, as another tool wrote them.")]
Source = Annotated[Kind | None, typer.Option("--candidates", help="What finds objects, in place of the model.")]
StillCamera = Annotated[bool, typer.Option("--still-camera", help="The camera does not move (tracks, candidates).")]
FORMATS = "For other tools: coco, ytvis, yolo, cvat, labelstudio, mots, davis, alpha, csv."
Export = Annotated[str | None, typer.Option(metavar="FORMAT,...", help=FORMATS)]
Json = Annotated[bool, typer.Option("--json", help="Answers as JSON on stdout, all else on stderr.")]
Fps = Annotated[float | None, typer.Option(help="Frames per second of a folder of images.")]
Name = Annotated[str, typer.Argument(help="Data set: mevis (a synthetic data set too), ref-youtube-vos, a2d ...")]
Root = Annotated[Path, typer.Argument(help="Folder of the data set.")]
Split = Annotated[str, typer.Option(help="Which split of the data set.")]
Seed = Annotated[int, typer.Option(min=0, help="Equal numbers make equal data sets.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes that score; all cores by default.")]
Compare = Annotated[Path | None, typer.Option(help="A results.json to show beside.")]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of `Options` as parameters, in place of its own parameter `options`."""
    own, shared = (inspect.signature(each).parameters for each in (command, Options))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = Options(**{name: given.pop(name) for name in shared})
        if options.quiet:
            logging.getLogger("dshmp").setLevel(logging.ERROR)
        command(**given, options=options)

    parameters = [*(parameter for name, parameter in own.items() if name != "options"), *shared.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


@app.command()
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
        _segment_live(source, expressions, out, options, fps, window, overlap, candidates, still_camera)
        return
    if window or overlap:
        raise UserError("--window and --overlap are of --live; a video is answered as a whole without it")
    video = Path(source)
    open_video(video, frames, fps)  # a wrong file is told at once, before the model is loaded

    from dshmp.model.words import splitting_apart

    with splitting_apart(), _progress(video.name) as progress:
        from dshmp.inference.segment import load, segment_to_folder

        asked = video, expressions, out, options, load, frames, fps, None, progress, all_objects, not no_overlay
        folder, results, new = segment_to_folder(
            *asked, tracks=tracks, candidates=candidates, still_camera=still_camera, exports=kinds
        )
    if as_json:
        typer.echo(_json(video, folder, results))
    for result in () if as_json else results:
        guess = f" (not understood: {', '.join(result.unknown)})" if result.unknown else ""
        _say(f"{result.score:.2f}  {result.verdict}: {result.expression}{guess}")
    before = len(results) - new
    told = f" ({before} of {len(results)} answered before)" if before else ""
    _say(f"wrote {folder}{told}", err=as_json)


def _segment_live(text: str, expressions: list[str], out: Path, options: Options, *how: Any) -> None:
    from dshmp.inference.live import live_folder, parse_source, stream_to_folder

    folder = live_folder(source := parse_source(text), out)
    for told in stream_to_folder(source, expressions, folder, options, *how):
        print(json.dumps(told), flush=True)
    _say(f"wrote {folder}", err=True)


@app.command()
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
            with _progress(task.video.name) as progress:
                outcome = answer(task, progress)
            yield outcome

    failures: list[str] = []
    done = failed = 0
    with contextlib.ExitStack() as stack:
        outcomes: Iterable[Outcome] = in_turn()
        say: Callable[[str], None] = _say
        if ray is not None:
            progress = stack.enter_context(_progress("fleet"))
            say = stack.enter_context(_stdout_alone())
            outcomes = stack.enter_context(contextlib.closing(on_ray(tasks, ray, workers, progress)))
        for outcome in outcomes:
            done += not (outcome.new or outcome.faults)
            failed += bool(outcome.faults)
            failures += outcome.faults
            if outcome.folder and as_json:
                say(_json(outcome.task.video, outcome.folder, outcome.results))
            elif outcome.new:
                say(f"wrote {outcome.folder}")
    if done:
        _say(f"{done} of {len(jobs)} videos were finished before", err=as_json)
    _tell(*failures)
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


@app.command()
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

    with _progress("demo") as progress:
        sheet, scores = run(out, model, device, seed, progress)
    for expression, iou in scores:
        _say(f"IoU {iou:.2f}  {expression}")
    _say(f"wrote {sheet}")


@app.command()
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
        _say(f"serving at {address} (Ctrl-C ends it)")
        sys.stdout.flush()
        while True:
            time.sleep(3600)


@app.command()
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="A recipe, its YAML file or a packaged one's name (finetune with --init), and changes to it.",
        ),
    ] = None,
    init: Annotated[str | None, typer.Option(help="Train on from this model, named as --model elsewhere.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    device: Device = "auto",
) -> None:
    """Train a model as a recipe says; started again, a run goes on from its last checkpoint.

    On several GPUs, which share the batch (run.micro_batch=1: one clip each): accelerate launch -m dshmp train RECIPE

    Example: dshmp train --init default data.mevis.root=my_videos
    """
    overrides = list(words or ())
    if overrides and ("=" not in overrides[0] or os.path.isfile(overrides[0])):
        recipe = overrides.pop(0)
    elif init is None:
        raise UserError("no recipe given; name one (`dshmp configs` lists them), or a model to train on with --init")
    else:
        recipe = "finetune"

    from dshmp.training.train import run

    run(recipe, overrides if init is None else [f"init={init}", *overrides], out, device)


@app.command()
def ablate(
    base: Annotated[Path, typer.Argument(help="The recipe that the rows change: its file, or a packaged one's name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the base, for all rows.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for runs, page and pictures.")] = Path("runs/ablation"),
    rows: Annotated[Path | None, typer.Option(help="Folder of the rows; the packaged one by default.")] = None,
    tables: Annotated[str, typer.Option(help="The paper's tables, and ours.")] = "1,2a,2b,2c,2d,time,1+ours,ours",
    seeds: Annotated[
        int | None, typer.Option(help="Runs of each row, with consecutive seeds; by default 5 in table 1, else 3.")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(metavar="FILE|A+B", help="A row of one's own, or packaged ones together.")
    ] = None,
    part: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Run the I-th of N parts, one for each machine.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at once; one per GPU, on the CPU one per core.")] = None,
    device: Device = "auto",
    page_only: Annotated[bool, typer.Option("--page-only", help="Only write the page of what is finished.")] = False,
) -> None:
    """Train the rows of the paper's ablations with several seeds, compare them, and write OUT/README.md.

    A run is an ordinary one in OUT/runs/ROW-SEED; started again, all go on where they were. OUT/results.json records
    what is finished, and is enough for the page (--page-only). A row that fails does not stop the others; the exit
    code is 1 then.

    Example: dshmp ablate synthetic/ablation --seeds 3 --out runs/ablation
    """
    from dshmp.ablation.page import run

    places = {"jobs": jobs, "device": device, "page_only": page_only}
    which = {"rows": rows, "tables": tables, "seeds": seeds, "own": row or (), "part": part}
    written, failures = run(base, overrides or [], out, **which, **places)  # type: ignore[arg-type]
    _say(f"wrote {written}")
    _tell(*failures)
    raise typer.Exit(int(bool(failures)))


@app.command()
def configs(
    folder: Annotated[Path | None, typer.Argument(help="Folder of recipes, or a packaged one's name; or all.")] = None,
) -> None:
    """List recipes: what each reproduces, the paper's figures, parameters, estimated GPU memory and time.

    Example: dshmp configs paper
    """
    from rich.console import Console

    from dshmp.recipes import FOLDER, find_folder
    from dshmp.training.configs import overview

    Console(markup=False, highlight=False).print(overview(find_folder(folder or FOLDER)))


@app.command()
@with_options
def evaluate(
    name: Name,
    root: Root,
    split: Split,
    out: Annotated[Path, typer.Option(help="Folder for predictions and scores, made where it is missing.")],
    workers: Workers = None,
    compare: Compare = None,
    update_card: Annotated[bool, typer.Option("--update-card", help="Put the figures into the model's card.")] = False,
    as_json: Json = False,
    *,
    options: Options,
) -> None:
    """Predict a split and score it: what `dshmp predict` and `dshmp score` do, in one go.

    Writes OUT/predictions, results.json, expressions.csv and videos.csv; goes on where it was stopped.

    Example: dshmp evaluate mevis synthetic/v1 --split valid_u --out scores/default
    """
    from dshmp.evaluation.score import evaluate as run

    with _progress(name) as progress:
        scores = run(name, root, split, out, options, workers, compare, progress, update_card, as_json)
    raise typer.Exit(int(scores is not None and bool(scores.damaged)))


@app.command()
@with_options
def predict(
    name: Name,
    root: Root,
    split: Split,
    out: Out,
    zip_path: Annotated[Path | None, typer.Option("--zip", help="The zip file for the server; OUT.zip.")] = None,
    no_zip: Annotated[bool, typer.Option("--no-zip", help="Write none.")] = False,
    as_json: Json = False,
    *,
    options: Options,
) -> None:
    """Answer every expression of a data set's split, as `dshmp score` and the benchmark's server read it.

    Started again, it goes on where it was stopped; damaged files are written anew. A video that fails doesn't stop
    the rest. For a benchmark's server (MeViS, Ref-YouTube-VOS), a zip file is written and validated. Several GPUs
    share the videos: torchrun --nproc-per-node 4 -m dshmp predict ...

    Example: dshmp predict mevis data/mevis --split valid --model models/mevis --out predictions/mevis
    """
    from dshmp.evaluation.predict import run

    with _progress(name) as progress:
        done = run(name, root, split, out, options, zip_path=zip_path, zipped=not no_zip, progress=progress)
    if done is not None:
        if as_json:
            typer.echo(json.dumps({"folder": str(out), **done.facts}))
        before = f", {done.skipped:,} of them before" if done.skipped else ""
        counts, frames = done.facts["counts"], done.facts["frame_list"]
        told = [f"wrote {out}: {counts['videos']:,} videos, {counts['expressions']:,} expressions{before}"]
        told += [f"frames: {frames}"] if frames else []
        told += [f"wrote {done.zip}, a valid submission"] if done.zip else []
        _say(*told, err=as_json)


@app.command()
def submission(
    name: Annotated[str, typer.Argument(help="Data set: mevis or ref-youtube-vos.")],
    root: Root,
    path: Annotated[Path, typer.Argument(help="A zip file to validate, or a folder of predictions to zip.")],
    split: Split,
) -> None:
    """Validate a zip file for a benchmark's server, or make a valid one of a folder: FOLDER.zip.

    What is wrong goes to stdout, a line each. Exit code 0 where nothing is wrong, 1 where something is.

    Example: dshmp submission mevis data/mevis predictions/mevis.zip --split valid
    """
    from dshmp.data.registry import dataset
    from dshmp.evaluation.predictions import validate_zip, write_zip

    data = dataset(name)
    opened = data.open(root, split)
    if path.is_dir():
        _say(f"wrote {write_zip(path, opened, data.layout)}, a valid submission")
        return
    findings = validate_zip(path, opened, data.layout)
    _say(*(findings or [f"{path}: a valid submission"]))
    raise typer.Exit(int(bool(findings)))


@app.command()
def score(
    name: Name,
    root: Root,
    split: Split,
    pred: Annotated[Path, typer.Option(help="Folder of the predictions, or the zip file for a server.")],
    out: Annotated[Path | None, typer.Option(help="Folder for results.json, expressions.csv and videos.csv.")] = None,
    workers: Workers = None,
    compare: Compare = None,
    update_card: Annotated[Path | None, typer.Option(help="Model whose card takes the figures: its folder.")] = None,
    as_json: Json = False,
) -> None:
    """Score predictions by the data set's own protocol, with intervals from resampled videos.

    What is missing counts 0 and is told; where a file is damaged, the exit code is 1.

    Example: dshmp score mevis data/mevis --split valid_u --pred predictions/mevis --out scores/mevis
    """
    from dshmp.evaluation.score import run

    scores = run(name, root, split, pred, out, workers, compare, update_card, as_json)
    raise typer.Exit(int(bool(scores.damaged)))


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="The authors' checkpoint; with --to-release, a model's folder.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model; with --to-release, the file to write.")],
    tokenizer: Annotated[str | None, typer.Option(help="RoBERTa's: a folder or a hub id; roberta-base.")] = None,
    motion_heads: Annotated[int | None, typer.Option(min=1, help="Of the motion part; static perception's.")] = None,
    to_release: Annotated[bool, typer.Option("--to-release", help="The other way: for the authors' code.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model or file that OUT is.")] = False,
) -> None:
    """Make a model of the authors' checkpoint, or write a model as theirs.

    The checkpoint may be torch's or safetensors; nothing in it is run. What it holds beyond the model is kept in OUT,
    so that the way back gives the same tensors, as float32. An OUT that ends in .safetensors is written as such.

    Example: dshmp convert dshmp_swin_tiny.pth models/mevis --tokenizer roberta-base
    """
    from dshmp.interop import release

    if not to_release:
        release.print_report(release.convert(checkpoint, out, tokenizer or "roberta-base", motion_heads, overwrite))
    elif tokenizer is not None or motion_heads is not None:
        raise UserError("leave out --tokenizer and --motion-heads with --to-release; a model has its own")
    else:
        release.to_release(str(checkpoint), out, overwrite)
    _say(f"wrote {out}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="`default`, a model's or a training run's folder, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder for the graphs and what they need; new or empty.")],
    kind: Annotated[str, typer.Option("--format", help="onnx or openvino.")] = "onnx",
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--size", metavar="HxW", help="The network's input; by default the largest. Several make several."
        ),
    ] = None,
) -> None:
    """Write what a model does with each frame as a graph for ONNX Runtime or OpenVINO.

    A graph takes frames of one size and a sentence's features; words and motion stay in PyTorch. Each is run at once
    and compared with PyTorch's float32: told is every output's largest difference, relative to its largest value.

    Example: dshmp export default graphs --format onnx --size 64x112
    """
    from dshmp.interop.graphs import export as run

    with _progress("export") as progress:
        progress("graphs", 0, None)
        graphs = run(model, out, kind, sizes or ())
    for name, errors in graphs.items():
        _say(f"{name}: {', '.join(f'{output} {error:.1e}' for output, error in errors.items())}")
    _say(f"wrote {out}")


@synthetic.command("make")
def synthetic_make(
    root: Annotated[Path, typer.Argument(help="Folder to make; must not exist, be empty, or be this very data set.")],
    train: Annotated[int, typer.Option(min=0, help="Clips for training.")] = 6000,
    valid: Annotated[int, typer.Option(min=0, help="Clips for validation (split valid_u).")] = 400,
    test: Annotated[int, typer.Option(min=0, help="Clips with phrasings and words held out of training.")] = 200,
    seed: Seed = 0,
    family: Annotated[str | None, typer.Option(help="Only clips of one: alike, pairs, easy ..., or close.")] = None,
    version: Annotated[int, typer.Option(help="Of the data set: 1, what the default model saw; 2, more of all.")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Make a synthetic data set of videos, masks and motion expressions, in the layout of MeViS.

    Example: dshmp synthetic make synthetic/small --train 500 --valid 100 --test 50
    """
    from dshmp.synthetic.make import make_synthetic

    clips = {"train": train, "valid": valid, "test": test}
    with _progress("synthetic") as show:
        told = functools.partial(show, "clips")
        settings = {**clips, "seed": seed, "version": version}
        fresh = make_synthetic(root, **settings, family=family, workers=workers, progress=told)
    _say(f"wrote {root}" if fresh else f"{root}: is there already, with these settings")


@data.command("check")
def data_check(
    name: Name,
    root: Root,
    full: Annotated[bool, typer.Option("--full/--fast", help="Decode everything, or a sample.")] = False,
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be given several times.")] = None,
    own: Annotated[bool, typer.Option("--own", help="One's own videos: published counts are not compared.")] = False,
) -> None:
    """Tell whether a data set is whole: a line per file that is wrong, why, and what mends it.

    Findings go to stdout. Exit code 0 where nothing is wrong, 1 where something is.

    Example: dshmp data check mevis data/mevis --full
    """
    from dshmp.data.check import examine
    from dshmp.data.registry import dataset

    chosen = dataset(name)
    for wanted in split or ():
        if wanted not in chosen.splits and not (own and chosen.layout == "mevis"):
            raise UserError(f"{chosen.title} has no split {wanted!r}; choose from {', '.join(chosen.splits)}")
    with _progress(name) as progress:
        report = examine(chosen.check, root, full=full, splits=tuple(split or ()) or None, own=own, progress=progress)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    count = len(report.findings)
    what = f"{count} things are wrong" if count > 1 else "1 thing is wrong" if count else "nothing is wrong"
    summary = f"{chosen.title} in {root} ({'all' if full else 'a sample'} decoded): {what}"
    _say(*map(str, report.findings), summary)
    raise typer.Exit(int(count > 0))


@data.command("import")
def data_import(
    file: Annotated[Path, typer.Argument(help="The annotations, or a folder with those of each video.")],
    out: Annotated[Path, typer.Argument(help="Folder to make; must not exist, or be empty.")],
    kind: Annotated[Annotations, typer.Option("--from", help="What the annotations are.")],
    sentences: Annotated[Path, typer.Option(help="CSV (columns video,expression,objects[,split]), or JSON.")],
) -> None:
    """Make a data set in the layout of MeViS, to train on, of tracks that annotators export and sentences about them.

    A row of SENTENCES has a video, relative to it, an expression and the numbers of the tracks that it means,
    separated by spaces; none means nothing.

    Example: dshmp data import --from cvat kitchen.xml --sentences kitchen.csv my_videos
    """
    from dshmp.data.imports import import_annotations

    with _progress("import") as progress:
        import_annotations(kind, file, sentences, out, progress)
    _say(f"wrote {out}")


@data.command("mini")
def data_mini(
    name: Name,
    out: Annotated[Path, typer.Argument(help="Folder to make; must not exist, or be empty.")],
    seed: Seed = 0,
) -> None:
    """Write a miniature data set, drawn, in the exact layout of the real one: to try commands on.

    Example: dshmp data mini mevis data/mini
    """
    from dshmp.data.mini import make_mini
    from dshmp.data.registry import dataset

    make_mini(name, dataset(name).mini, out, seed)
    _say(f"wrote {out}")


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="As JSON; sizes in bytes.")] = False) -> None:
    """Tell what a bug report should: versions, devices, codecs, extras, models, room on disk.

    Nothing of yours is in it: no file, no name, no folder. Nothing is fetched.

    Example: dshmp info
    """
    from dshmp.info import collect, lines

    found = collect()
    _say(*([json.dumps(found)] if as_json else lines(found)))


def _version(wanted: bool) -> None:
    if wanted:
        _say(f"dshmp {__version__}")
        raise typer.Exit


@app.callback()
def _dshmp(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Referring video segmentation: a video and a sentence in, the masks of what the sentence means out.

    Example: dshmp segment clip.mp4 "the one that turns back"
    """


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar on stderr: one line per phase, with a spinner where it is not known how many steps there are. None
    where warnings are not wanted either."""
    if not logging.getLogger("dshmp").isEnabledFor(logging.WARNING):
        yield lambda phase, done, total: exit_if_signalled()
        return
    from dshmp.common.progress import progress_bars

    with progress_bars() as bars:
        tasks: dict[str, Any] = {}

        def show(phase: str, done: int, total: int | None) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(printable(f"{name} {phase}"), total=total)
            bars.update(tasks[phase], completed=done, total=total)
            exit_if_signalled()

        yield show


def _say(*lines: str, err: bool = False) -> None:
    """Lines on stdout or stderr, without control codes, which names may hold."""
    for line in lines:
        typer.echo(printable(line), err=err)


@contextlib.contextmanager
def _stdout_alone() -> Iterator[Callable[[str], None]]:
    """A way to stdout, where nothing else appears: Ray tells there what its processes die of."""
    stdout = sys.stdout
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield lambda line: typer.echo(printable(line), file=stdout)


def _tell(*messages: str) -> None:
    for message in messages:
        print(f"dshmp: {one_line(message)}", file=sys.stderr, flush=True)


class _WarningLines(logging.Handler):
    """Warnings as single lines among the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell(f"{record.levelname.lower()}: {record.getMessage()}")


def main() -> None:
    """Run the command. A person's mistake is one line on stderr and exit code 2."""
    with heeded():
        run()


def run() -> None:
    keep_memory()
    share_cores()
    collect_rarely()
    log = logging.getLogger("dshmp")
    log.handlers, log.propagate = [_WarningLines()], False
    log.setLevel(logging.WARNING)
    try:
        app()
    except UserError as error:
        _tell(str(error))
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written
        where = error.filename or Path.cwd()
        _tell(f"{where}: {error.strerror or error}; see whether it may be read and written, and the disk has room")
        sys.exit(2)
    finally:
        gc.freeze()  # or Python looks through all objects of all libraries before it ends, for half a second
