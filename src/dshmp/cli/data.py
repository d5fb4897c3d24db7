"""Commands about data: synthetic make, data check, import and mini."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from dshmp.cli.base import Name, Root, plain, say, shown_progress
from dshmp.common.errors import UserError
from dshmp.common.options import Annotations

synthetic = typer.Typer(**plain, help="The synthetic data set: videos with motion expressions.")
data = typer.Typer(**plain, help="The benchmarks: check one, or draw a miniature.")
Seed = Annotated[int, typer.Option(min=0, help="Equal numbers make equal data sets.")]


@synthetic.command("make")
def synthetic_make(
    root: Annotated[Path, typer.Argument(help="Folder to make; must not exist, be empty, or be this very data set.")],
    train: Annotated[int, typer.Option(min=0, help="Clips for training.")] = 6000,
    valid: Annotated[int, typer.Option(min=0, help="Clips for validation (split valid_u).")] = 400,
    test: Annotated[int, typer.Option(min=0, help="Clips with phrasings and words held out of training.")] = 200,
    seed: Seed = 0,
    family: Annotated[str | None, typer.Option(help="Only clips of one: alike, pairs, easy ..., or close.")] = None,
    version: Annotated[int, typer.Option(help="Of the data set: 1 is easy; 2, more of all; 3, footage, too.")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Make a synthetic data set of videos, masks and motion expressions, in the layout of MeViS.

    Example: dshmp synthetic make synthetic/small --train 500 --valid 100 --test 50
    """
    from dshmp.synthetic.make import make_synthetic

    clips = {"train": train, "valid": valid, "test": test}
    with shown_progress("synthetic") as show:
        told = functools.partial(show, "clips")
        settings = {**clips, "seed": seed, "version": version}
        fresh = make_synthetic(root, **settings, family=family, workers=workers, progress=told)
    say(f"wrote {root}" if fresh else f"{root}: is there already, with these settings")


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
    with shown_progress(name) as progress:
        report = examine(chosen.check, root, full=full, splits=tuple(split or ()) or None, own=own, progress=progress)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    count = len(report.findings)
    what = f"{count} things are wrong" if count > 1 else "1 thing is wrong" if count else "nothing is wrong"
    summary = f"{chosen.title} in {root} ({'all' if full else 'a sample'} decoded): {what}"
    say(*map(str, report.findings), summary)
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

    with shown_progress("import") as progress:
        import_annotations(kind, file, sentences, out, progress)
    say(f"wrote {out}")


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
    say(f"wrote {out}")
