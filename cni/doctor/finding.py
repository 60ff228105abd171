"""Findings, and the state of the node that the checks share."""

from __future__ import annotations

from collections.abc import Iterable

from cni.node.attachments import View
from cni.runtime.conf import NetworkConfigList, conf_dir, plugin_path
from cni.skel.config import Config
from cni.spec import gojson
from cni.spec.errors import CNIError


class Finding:
    """A result of a check: `severity` is one of cni.node.severity, `meaning` says why it matters, `cure` is what to do.

    The cure is a command if possible. `topic` is the part of the examination; examine() sets it.
    """

    def __init__(self, severity: str, text: str, meaning: str = "", cure: str = "") -> None:
        self.severity = severity
        self.text = text
        self.meaning = meaning
        self.cure = cure
        self.topic = ""

    def as_dict(self) -> dict[str, str]:
        """Return everything for a program."""
        return {
            "topic": self.topic,
            "severity": self.severity,
            "finding": self.text,
            "meaning": self.meaning,
            "cure": self.cure,
        }


class NodeState:
    """The state of the node that the checks examine, gathered once.

    `view` is None if it could not be gathered, for the reason `failure`.
    `types` are the plugins that the networks name, each with these networks; `warnings` came up in gathering.
    """

    def __init__(self, cache_dirs: Iterable[str]) -> None:
        self.conf_dir = conf_dir()
        self.paths = plugin_path()
        self.warnings: list[str] = []
        self.view: View | None = None
        self.failure = ""
        try:
            self.view = View(cache_dirs, self.warnings.append)
        except (CNIError, OSError) as error:
            self.failure = str(error)
        self.types: dict[str, list[str]] = {}
        for network in self.networks:
            for name in dict.fromkeys(_types(network)):
                self.types.setdefault(name, []).append(network.name)

    @property
    def networks(self) -> list[NetworkConfigList]:
        """Return the networks that are configured, and those that containers are still attached to."""
        if not self.view:
            return []
        networks = {network.name: network for network in self.view.configured}
        for attached in self.view.attached:
            if attached.config:
                networks.setdefault(attached.network, attached.config)
        return list(networks.values())


def _types(network: NetworkConfigList) -> list[str]:
    types = []
    for plugin in network.plugins:
        types.append(plugin.type)
        try:
            types.append(Config.parse(gojson.loads(plugin.raw)).ipam.type)
        except (ValueError, CNIError):
            continue  # the check of configurations reports it
    return [name for name in types if name]
