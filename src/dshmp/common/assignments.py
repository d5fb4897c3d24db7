"""Values by name, as YAML and as `key=value` on a command line."""

import re
from collections.abc import Iterable
from typing import Any

import yaml

from dshmp.common import limits
from dshmp.common.errors import UserError

NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


def assign(values: dict[str, Any], items: Iterable[str]) -> dict[str, Any]:
    """Lay `key=value` over values, with dots for nested keys, values in YAML. Raises UserError."""
    for item in items:
        keys, found, text = item.partition("=")
        if not found:
            raise UserError(f"{item!r} is not of the form key=value")
        value = parse_yaml(text, item)
        for key in reversed(keys.split(".")):
            value = {key: value}
        merge(values, value)
    return values


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 does; PyYAML by itself needs 1.0e-4."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.aliases += self.check_event(yaml.AliasEvent)
        if self.aliases > limits.ALIASES:
            raise yaml.YAMLError(f"refers more than {limits.ALIASES} times to what it said before")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text says. Raises UserError, whose message begins with `where`."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except Exception as error:  # a tag, such as !!int, on another value makes PyYAML raise anything
        deep = isinstance(error, RecursionError)
        told = "too many brackets in each other" if deep else " ".join(str(error).split())[:300]
        raise UserError(f"{where[:200]}: is not valid YAML ({told})") from None


def merge(into: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Lay values over others, nested mappings key by key."""
    for key, value in values.items():
        below = into.get(key)
        into[key] = merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return into
