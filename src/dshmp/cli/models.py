"""Commands about models and this machine: convert, export, info."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dshmp.cli.base import say, shown_progress
from dshmp.common.errors import UserError


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
    say(f"wrote {out}")


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

    with shown_progress("export") as progress:
        progress("graphs", 0, None)
        graphs = run(model, out, kind, sizes or ())
    for name, errors in graphs.items():
        say(f"{name}: {', '.join(f'{output} {error:.1e}' for output, error in errors.items())}")
    say(f"wrote {out}")


def info(as_json: Annotated[bool, typer.Option("--json", help="As JSON; sizes in bytes.")] = False) -> None:
    """Tell what a bug report should: versions, devices, codecs, extras, models, room on disk.

    Nothing of yours is in it: no file, no name, no folder. Nothing is fetched.

    Example: dshmp info
    """
    from dshmp.info import collect, lines

    found = collect()
    say(*([json.dumps(found)] if as_json else lines(found)))
