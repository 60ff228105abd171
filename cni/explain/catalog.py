"""The plugins that are installed here, ours and third parties', with their documentation."""

from __future__ import annotations

import inspect
import sys
from functools import cache
from importlib.metadata import EntryPoint

from cni.invoke import registry
from cni.skel.plugin import Plugin

# The places that a plugin may have in a network (skel.Plugin), and the title of the plugins that have it.
PLACES = {
    "interface": "Interface plugins",
    "ipam": "IPAM plugins",
    "chained": "Chained plugins",
    "": "Others, which may stand anywhere",
}


class CatalogEntry:
    """A plugin with its module's docstring: ``summary`` is the first sentence or two, ``text`` the rest."""

    def __init__(self, plugin: Plugin, docstring: str) -> None:
        self.plugin = plugin
        self.name = plugin.name
        head, _, rest = inspect.cleandoc(docstring).replace("``", "").partition("\n\n")
        self.summary = " ".join(head.split()).removeprefix(f"{self.name}: ").removesuffix(".")
        self.text = rest


@cache
def plugins() -> tuple[dict[str, CatalogEntry], dict[str, str]]:
    """Return the plugins that can be loaded, by name, and the reasons why others cannot."""
    entries: dict[str, CatalogEntry] = {}
    broken: dict[str, str] = {}
    for point in registry.entry_points():
        try:
            entries[point.name] = _load(point)
        except Exception as error:  # a third party's module may raise anything
            broken[point.name] = f"{point.value}: {error}"
    return entries, broken


def _load(point: EntryPoint) -> CatalogEntry:
    plugin = point.load()
    if not isinstance(plugin, Plugin):
        raise TypeError("it is not a cni.skel.Plugin")
    return CatalogEntry(plugin, sys.modules[point.module].__doc__ or "")
