"""The options that `dshmp segment`, `batch`, `predict` and `evaluate` share, and the check of what is given for them,
on the command line and from Python alike."""

import reprlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dshmp.errors import UserError, printable

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Targets = Literal["many", "single"]

Threshold = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0.001, le=10_000)]
Place = Annotated[int, Field(ge=0, le=10**9)]

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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was answered before.")] = False

    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no warnings.")] = False

    @property
    def targets(self) -> Targets | None:
        """None is the data set's or, without one, the model's own."""
        return None if self.single is None else "single" if self.single else "many"


def checked(name: str, value: Any, kind: Any, must: str) -> Any:
    """`value` as `kind`, a number of numpy as Python's. TypeError where it is of another type, UserError where only its
    value is wrong; both say that `name` must be what `must` says."""
    try:
        value = value.item() if type(value).__module__ == "numpy" and not value.shape else value
        strict = ConfigDict(strict=True, allow_inf_nan=False)
        return TypeAdapter(kind, config=strict).validate_python(value)
    except ValidationError as caught:
        error = caught.errors(include_url=False, include_context=False)[0]
        # of the literals, all texts, pydantic does not say whether it was given a text
        other = error["type"].endswith("_type") or (error["type"] == "literal_error" and not isinstance(value, str))
        fault = printable(f"{name} must be {must}, not {reprlib.repr(value)}")
        raise (TypeError if other else UserError)(fault) from None
