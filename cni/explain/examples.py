"""Examples: the lists in the folder networks, each of which could be used as it is."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from cni.spec import gojson


@cache
def all_examples() -> dict[str, str]:
    """The texts by file name."""
    folder = files("cni.explain").joinpath("networks")
    found = {entry.name: entry.read_text() for entry in folder.iterdir() if entry.name.endswith(".conflist")}
    return dict(sorted(found.items()))


def examples_of(plugin: str) -> dict[str, str]:
    """Those that a plugin is in; first the one of its name, which is about it, and where there is one, that alone."""
    own = {name: text for name, text in all_examples().items() if name.startswith((f"{plugin}.", f"{plugin}-"))}
    return own or {name: text for name, text in all_examples().items() if plugin in plugins_in(json.loads(text))}


def plugins_in(network: dict[str, Any]) -> list[str]:
    """The plugins that a list names, IPAM plugins included."""
    types = []
    for part in network["plugins"]:
        types += [part["type"], gojson.get(part.get("ipam", {}), "type", "")]
    return [name for name in types if name]
