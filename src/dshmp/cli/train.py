"""Commands that learn: train, ablate, configs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from dshmp.cli.base import say, tell
from dshmp.common.errors import UserError
from dshmp.common.options import Device


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
    say(f"wrote {written}")
    tell(*failures)
    raise typer.Exit(int(bool(failures)))


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
