"""The example networks in the folder networks. Each can be used as it is."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from cni.spec import gojson


@cache
def all_examples() -> dict[str, str]:
    """Return the texts of all examples by file name."""
    folder = files("cni.explain").joinpath("networks")
    texts = {entry.name: entry.read_text() for entry in folder.iterdir() if entry.name.endswith(".conflist")}
    return dict(sorted(texts.items()))


def examples_of(plugin: str) -> dict[str, str]:
    """Return the examples named after a plugin, or, where there are none, all that use the plugin."""
    own = {name: text for name, text in all_examples().items() if name.startswith((f"{plugin}.", f"{plugin}-"))}
    return own or {name: text for name, text in all_examples().items() if plugin in plugins_in(json.loads(text))}


def plugins_in(network: dict[str, Any]) -> list[str]:
    """Return the plugins that a list names, IPAM plugins included."""
    types = []
    for config in network["plugins"]:
        types += [config["type"], gojson.get(config.get("ipam", {}), "type", "")]
    return [name for name in types if name]
