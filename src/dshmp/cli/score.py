"""Commands about benchmarks: evaluate, predict, submission, score."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dshmp.cli.base import Json, Name, Out, Root, Workers, say, shown_progress, with_options
from dshmp.common.options import Options

Split = Annotated[str, typer.Option(help="Which split of the data set.")]
Compare = Annotated[Path | None, typer.Option(help="A results.json to show beside.")]


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

    with shown_progress(name) as progress:
        scores = run(name, root, split, out, options, workers, compare, progress, update_card, as_json)
    raise typer.Exit(int(scores is not None and bool(scores.damaged)))


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

    with shown_progress(name) as progress:
        done = run(name, root, split, out, options, zip_path=zip_path, zipped=not no_zip, progress=progress)
    if done is not None:
        if as_json:
            typer.echo(json.dumps({"folder": str(out), **done.facts}))
        before = f", {done.skipped:,} of them before" if done.skipped else ""
        counts, frames = done.facts["counts"], done.facts["frame_list"]
        told = [f"wrote {out}: {counts['videos']:,} videos, {counts['expressions']:,} expressions{before}"]
        told += [f"frames: {frames}"] if frames else []
        told += [f"wrote {done.zip}, a valid submission"] if done.zip else []
        say(*told, err=as_json)


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
        say(f"wrote {write_zip(path, opened, data.layout)}, a valid submission")
        return
    findings = validate_zip(path, opened, data.layout)
    say(*(findings or [f"{path}: a valid submission"]))
    raise typer.Exit(int(bool(findings)))


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
