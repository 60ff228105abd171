"""The plugins that are installed with this Python: the entry points ``cni.plugins`` of any distribution.

Services and tools read it. A plugin's process does not: its launcher names the plugin's module.
"""

from __future__ import annotations

from cni.spec.errors import CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from cni.skel.plugin import Plugin

_GROUP = "cni.plugins"
_loaded: dict[str, Plugin | None] = {}


def entry_points() -> list[EntryPoint]:
    """Return the entry points of all installed plugins, sorted by name."""
    from importlib import metadata  # takes longer than all of a plugin's work

    return sorted(metadata.entry_points(group=_GROUP), key=lambda point: point.name)


def installed(plugin_type: str) -> Plugin | None:
    """Return the installed plugin of that name, whichever executable starts it; None if there is none.

    Raises CNIError if it cannot be imported.
    """
    if plugin_type not in _loaded:
        point = next((point for point in entry_points() if point.name == plugin_type), None)
        try:
            _loaded[plugin_type] = point.load() if point else None
        except Exception as error:  # a third party's module may raise anything
            raise CNIError(f"plugin {plugin_type} cannot be loaded: {error}") from error
    return _loaded[plugin_type]
