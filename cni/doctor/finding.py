"""What the doctor found, and what he knows of his patient."""

from __future__ import annotations

from cni.node.attachments import View
from cni.runtime.conf import NetworkConfigList, conf_dir, plugin_path
from cni.skel.config import Config
from cni.spec import gojson
from cni.spec.errors import CNIError


class Finding:
    """One thing: `severity` is one of node.py's, `meaning` says why it matters, `cure` mends it: a command if possible.

    `topic` is the part of the examination that it comes from; the doctor's own code sets it.
    """

    def __init__(self, severity: str, text: str, meaning: str = "", cure: str = "") -> None:
        self.severity = severity
        self.text = text
        self.meaning = meaning
        self.cure = cure
        self.topic = ""

    def as_dict(self) -> dict[str, str]:
        """All of it for a program."""
        return {
            "topic": self.topic,
            "severity": self.severity,
            "finding": self.text,
            "meaning": self.meaning,
            "cure": self.cure,
        }


class Patient:
    """The node, and what its networks need. `view` is None where it could not be gathered, for `failure`.

    `types` are the plugins that its networks name, each with the networks that do; `warnings` was said meanwhile.
    """

    def __init__(self, cache_dirs: list[str]) -> None:
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
        """Those that are configured, and those that containers still are attached to."""
        if not self.view:
            return []
        found = {network.name: network for network in self.view.configured}
        for one in self.view.attached:
            if one.config:
                found.setdefault(one.network, one.config)
        return list(found.values())


def _types(network: NetworkConfigList) -> list[str]:
    found = []
    for plugin in network.plugins:
        found.append(plugin.type)
        try:
            found.append(Config.parse(gojson.loads(plugin.raw)).ipam.type)
        except (ValueError, CNIError):
            continue  # what is wrong with it is told by the check of configurations
    return [name for name in found if name]
