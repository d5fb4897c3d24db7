"""The options that `dshmp segment`, `batch`, `predict` and `evaluate` share. Light, as help shows them."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Kind = Literal["open", "coco", "sam3", "moving"]  # what finds candidates other than the model itself
Targets = Literal["many", "single"]
Annotations = Literal["coco", "ytvis", "cvat", "mots", "davis"]  # what data are imported from

Model = Annotated[str, typer.Option(help="`default`, a model's or a training run's folder, or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which model answers, and how. The fields are options of the commands."""

    model: Model = "default"
    device: Device = "auto"
    precision: Annotated[Precision, typer.Option(help="auto: the model's own on a GPU, float32 elsewhere.")] = "auto"
    threshold: Annotated[float | None, typer.Option(help="Score (0 to 1) above which an object is meant.")] = None
    single: Annotated[
        bool | None, typer.Option("--single/--many", help="Only the best object, or all that are meant.")
    ] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A number of the model's input, as input.short_side=256."),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was answered before.")] = False

    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no warnings.")] = False

    @property
    def targets(self) -> Targets | None:
        """None is the data set's or, without one, the model's own."""
        return None if self.single is None else "single" if self.single else "many"
