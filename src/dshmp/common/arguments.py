"""The check of what a caller of the library gives, on the command line and from Python alike."""

import reprlib
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dshmp.common.errors import UserError, printable

Threshold = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0.001, le=10_000)]
Place = Annotated[int, Field(ge=0, le=10**9)]


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
