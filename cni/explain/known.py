"""The plugins whose tables are here: ours and third parties', by the entry-point group ``cni.plugins``."""

from __future__ import annotations

import inspect
import sys
from functools import cache
from importlib.metadata import EntryPoint

from cni.invoke import registry
from cni.skel.plugin import Plugin

# Where a plugin may stand in a network (skel.Plugin), and what those that stand there are called.
PLACES = {
    "interface": "Interface plugins",
    "ipam": "IPAM plugins",
    "chained": "Chained plugins",
    "": "Others, which may stand anywhere",
}


class Known:
    """A plugin with its module's docstring; ``summary`` is the first sentence or two, ``text`` the rest."""

    def __init__(self, plugin: Plugin, docstring: str) -> None:
        self.plugin = plugin
        self.name = plugin.name
        head, _, rest = inspect.cleandoc(docstring).replace("``", "").partition("\n\n")
        self.summary = " ".join(head.split()).removeprefix(f"{self.name}: ").removesuffix(".")
        self.text = rest


@cache
def plugins() -> tuple[dict[str, Known], dict[str, str]]:
    """By name those that can be loaded, and why others cannot."""
    found: dict[str, Known] = {}
    broken: dict[str, str] = {}
    for point in registry.entry_points():
        try:
            found[point.name] = _load(point)
        except Exception as error:  # a third party's module may raise anything
            broken[point.name] = f"{point.value}: {error}"
    return found, broken


def _load(point: EntryPoint) -> Known:
    plugin = point.load()
    if not isinstance(plugin, Plugin):
        raise TypeError("it is no cni.skel.Plugin")
    return Known(plugin, sys.modules[point.module].__doc__ or "")
