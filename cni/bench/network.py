"""The network that containers are attached to, as a runtime hands its configuration to the plugins."""

from __future__ import annotations

import json
import os
from typing import Any

from cni.node import scratch
from cni.runtime.conf import NetworkConfigList, PluginConfig, inject
from cni.spec import version

_IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.66.0.0/16"}]]}
_BRIDGE = {"type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "ipam": _IPAM}
_ROUTED = {"ipam": {**_IPAM, "routes": [{"dst": "0.0.0.0/0"}]}}

DEFAULT = "bridge"
BUILT_IN: dict[str, list[dict[str, Any]]] = {
    DEFAULT: [_BRIDGE],
    "masquerade": [{**_BRIDGE, "ipMasq": True}],
    "portmap": [_BRIDGE, {"type": "portmap", "capabilities": {"portMappings": True}}],
    "ptp": [{"type": "ptp", **_ROUTED}],
    "macvlan": [{"type": "macvlan", "master": scratch.UPLINK, **_ROUTED}],
    "ipvlan": [{"type": "ipvlan", "master": scratch.UPLINK, **_ROUTED}],
}
_VERSION = "1.0.0"  # spoken by plugins of 2022 and later

# The runtime's side of the capability portMappings: ports of its own for each container.
_FIRST_PORT = 1024
_LAST_PORT = 65535


class Network:
    """A network, and the configuration that each plugin reads. ``ports`` are mapped for a container if a plugin can.

    Raises CNIError if the configuration is invalid.
    """

    def __init__(self, source: str, ports: int) -> None:
        self.source = source
        self.ports = ports
        network = _load(source)
        self.name = network.name
        self.version = network.cni_version or version.OLDEST
        # Since 0.4.0 CHECK and DEL get the result of ADD.
        self.remembers = version.at_least(self.version, "0.4.0")
        self.types = [plugin.type for plugin in network.plugins]
        self._plugins = [(self._prepare(network, plugin), self._maps_ports(plugin)) for plugin in network.plugins]

    @property
    def has_check(self) -> bool:
        """True if the network's version has the verb CHECK."""
        return self.remembers

    def config(self, index: int, number: int, result: bytes) -> bytes:
        """Return the configuration of plugin ``index`` for attachment ``number``, with ``result`` unless it is empty.

        It is concatenated as text, because decoding would take processor time while subjects are measured.
        """
        config, maps_ports = self._plugins[index]
        more = b""
        if maps_ports:
            more += b',"runtimeConfig":' + json.dumps({"portMappings": self._mappings(number)}).encode()
        if result:
            more += b',"prevResult":' + result
        return config + more + b"}"

    def _prepare(self, network: NetworkConfigList, plugin: PluginConfig) -> bytes:
        raw = inject(plugin, {"name": network.name, "cniVersion": self.version}).raw.strip()
        return raw.removesuffix(b"}")

    def _maps_ports(self, plugin: PluginConfig) -> bool:
        return bool(self.ports and plugin.capabilities.get("portMappings"))

    def _mappings(self, number: int) -> list[dict[str, object]]:
        first = number * self.ports % (_LAST_PORT - _FIRST_PORT - self.ports) + _FIRST_PORT
        return [
            {"hostPort": first + index, "containerPort": 80 + index, "protocol": "tcp"} for index in range(self.ports)
        ]


def _load(source: str) -> NetworkConfigList:
    if source in BUILT_IN:
        conf = {"cniVersion": _VERSION, "name": "bench", "plugins": BUILT_IN[source]}
        return NetworkConfigList.from_bytes(json.dumps(conf).encode())
    path = os.path.abspath(source)
    if source.endswith(".conflist"):
        return NetworkConfigList.from_file(path)
    return NetworkConfigList.from_plugin(PluginConfig.from_file(path))
