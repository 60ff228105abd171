"""Dry runs: what an ADD would do, by an ADD for a container on a node that is thrown away.

The private node (cni.node.scratch) has its own network, mounts and processes. It gets what the configuration names of
this node: devices (as ends of veth pairs, bridges as bridges) with their addresses, the default routes, the forwarding
of packets, the network's reservations. The network's plugins run there as a runtime would run them. The plan is what is
new after that. Nothing of this node is touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cni._core import Address, Link, Netlink
from cni.install.executables import install
from cni.kernel.netns import NetNS
from cni.node import scratch
from cni.runtime.attachment import RuntimeConf
from cni.runtime.conf import NetworkConfigList, plugin_path
from cni.runtime.operations import CNI
from cni.spec import gojson
from cni.spec.errors import CNIError
from cni.validate.changes import Snapshot
from cni.validate.network import Network, Part

_SCRATCH = "/run/cni-plan"
_CONTAINER = "container"
_FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
_MAX_CONTENT = 60  # characters: files with more are summed up


class Plan:
    """The changes by an ADD: lines of text by place and topic. ``failure`` is the error of ADD, "" if it succeeded."""

    def __init__(self, network: Network, done: dict[str, Any]) -> None:
        self.network = network.name
        self.file = network.file
        self.failure: str = done["failure"]
        self.places: dict[str, dict[str, list[str]]] = done["places"]
        self.result: dict[str, Any] | None = done["result"]

    def as_dict(self) -> dict[str, Any]:
        """Return everything for a program."""
        failure = {"failure": self.failure} if self.failure else {}
        return {"network": self.network, "file": self.file, **failure, **self.places, "result": self.result}


def of(network: Network) -> Plan:
    """Return the plan of an ADD to a network. Raises CNIError, OSError."""
    if os.geteuid():
        raise CNIError("a plan takes root, because it makes namespaces")
    node = _Node(network)
    with scratch.started(lambda connection: _work(connection, node)) as messages:
        for message in messages:
            if isinstance(message, dict):
                return Plan(network, message)
    raise CNIError(f"the plan of {network.file} was not made: the private node ended")


# ---- on this node ----


class _Node:
    """The objects of this node that plugins may look for, as far as the configuration names them."""

    def __init__(self, network: Network) -> None:
        config = network.load()
        self.config = config
        words = {word for part in network.parts for word in (*_strings(part.value), *_defaults(part))}
        with NetNS.current() as here, here.netlink() as netlink:
            self.defaults = [route for route in netlink.routes() if not route.prefix and route.gateway]
            through = {route.index for route in self.defaults}
            self.links = [link for link in netlink.links() if link.name in words or link.index in through]
            self.addresses = [address for link in self.links for address in netlink.addresses(link.index)]
        self.files = {word: _content(word) for word in words if _is_hidden_file(word)}
        self.forwarding = {name: Path("/proc/sys/net", name).read_text() for name in _FORWARDING if _has(name)}


def _has(name: str) -> bool:
    return os.path.exists(f"/proc/sys/net/{name}")


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in a configuration: some are names of devices, some are paths."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _defaults(part: Part) -> Iterator[str]:
    """Yield the strings of a plugin's parsed configuration, among which are the default names of devices."""
    conf = part.conf
    return _strings([getattr(conf, field.name) for field in conf.fields()] if conf else [])


def _is_hidden_file(path: str) -> bool:
    return path.startswith("/") and os.path.isfile(path) and not scratch.is_visible(path)


def _content(path: str) -> bytes:
    return Path(path).read_bytes()


# ---- on the private node ----


def _work(connection: Connection, node: _Node) -> None:
    try:
        connection.send(_planned(node))
    except (CNIError, OSError, ValueError) as error:
        connection.send({"failure": str(error), "places": {}, "result": None})


def _planned(node: _Node) -> dict[str, Any]:
    state = _reservations(node.config)
    scratch.enter()
    network = _redirected(node.config)
    os.environ["CNI_AGENT_SOCKET"] = ""  # an agent would work on its own node
    bin_folder = Path(_SCRATCH, "bin")
    install(bin_folder)
    paths = [*filter(None, plugin_path()), str(bin_folder)]
    with NetNS.current() as here, NetNS.create() as beyond, NetNS.create(_CONTAINER) as container:
        _furnish(node, state, here, beyond)
        snapshots = {"node": Snapshot(here), "container": Snapshot(container)}
        files = _files()
        failure, result = "", None
        try:
            result = CNI(paths).add(network, _runtime_conf(container)).encode(network.cni_version or "0.1.0")
        except (CNIError, OSError, ValueError) as error:
            failure = str(error)
        places = {place: earlier.changes(Snapshot(earlier.netns)) for place, earlier in snapshots.items()}
    written = [line for path, line in _files().items() if files.get(path) != line]
    places["files"] = {"": written} if written else {}
    return {"failure": failure, "places": {place: parts for place, parts in places.items() if parts}, "result": result}


def _runtime_conf(container: NetNS) -> RuntimeConf:
    """Return the runtime's parameters from the environment, as cnitool does."""
    pairs = [pair.partition("=") for pair in os.environ.get("CNI_ARGS", "").split(";") if pair]
    return RuntimeConf(
        _CONTAINER,
        container.path,
        os.environ.get("CNI_IFNAME") or "eth0",
        [(key, value) for key, _, value in pairs],
        gojson.table(gojson.loads(os.environ.get("CAP_ARGS") or "{}"), "CAP_ARGS"),
    )


def _data_dirs(config: NetworkConfigList) -> Iterator[str]:
    """Yield the folders in which plugins are to keep their state."""
    for plugin in config.plugins:
        fields = gojson.loads(plugin.raw)
        for section in (fields, gojson.get(fields, "ipam")):
            folder = gojson.get(section, "dataDir") if isinstance(section, dict) else None
            if isinstance(folder, str) and folder:
                yield os.path.normpath(folder)


def _reservations(config: NetworkConfigList) -> dict[str, bytes]:
    """Return the files of the network's reservations on this node by path."""
    folders = [*_data_dirs(config), "/var/lib/cni/networks"]
    own = [Path(folder, config.name) for folder in folders]
    return {str(file): file.read_bytes() for folder in own if folder.is_dir() for file in folder.iterdir()}


def _moved(path: str) -> str:
    """Return the path on the private node of a file that this node has at a path."""
    return f"{_SCRATCH}/state{path}" if scratch.is_visible(path) else path


def _redirected(config: NetworkConfigList) -> NetworkConfigList:
    """Return the network with all folders of state on the private node."""
    raw = gojson.loads(config.raw)
    for plugin in raw.get("plugins", [raw]):
        for section in (plugin, gojson.get(plugin, "ipam")):
            for key in list(section) if isinstance(section, dict) else ():
                if gojson.fold(key) == "datadir" and isinstance(section[key], str) and section[key]:
                    section[key] = _moved(os.path.normpath(section[key]))
    redirected = NetworkConfigList.from_bytes(gojson.dumps(raw).encode())
    redirected.plugins = [*redirected.plugins, *config.plugins[len(redirected.plugins) :]]
    return redirected


def _furnish(node: _Node, state: dict[str, bytes], here: NetNS, beyond: NetNS) -> None:
    """Make what the plugins may look for. The peers of the devices are in the namespace ``beyond``."""
    for path, content in {**node.files, **{_moved(path): content for path, content in state.items()}}.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)
    for name, value in node.forwarding.items():
        Path("/proc/sys/net", name).write_text(value)
    with here.netlink() as netlink, beyond.netlink() as far:
        for link in node.links:
            if link.name != "lo":
                _make_device(netlink, far, link, beyond)
                _add_addresses(netlink, link.name, [each for each in node.addresses if each.index == link.index])
        for route in node.defaults:
            name = next(link.name for link in node.links if link.index == route.index)
            batch = netlink.batch()
            batch.route_add(route.dst, 0, gateway=route.gateway, index=netlink.link(name).index, exist_ok=True)
            batch.commit()


def _make_device(netlink: Netlink, far: Netlink, link: Link, beyond: NetNS) -> None:
    batch, hwaddr = netlink.batch(), link.hwaddr or None
    if link.kind == "bridge":
        batch.link_create("bridge", link.name, mtu=link.mtu, hwaddr=hwaddr, up=True).commit()
        return
    batch.veth(link.name, link.name, netns=beyond.fd, mtu=link.mtu, hwaddr=hwaddr, up=True).commit()
    far.batch().link_set(link.name, up=True).commit()


def _add_addresses(netlink: Netlink, name: str, addresses: list[Address]) -> None:
    index = netlink.link(name).index
    batch = netlink.batch()
    for address in addresses:
        batch.address_add(index, address.packed, address.prefix, nodad=True, exist_ok=True)
    if len(batch):
        batch.commit()


def _files() -> dict[str, str]:
    """Return the files with state on the private node by path, each with its content as text."""
    lines = {}
    for folder in scratch.hidden():
        for root, _, names in os.walk(folder):
            for path in (os.path.join(root, name) for name in names):
                original = path.removeprefix(f"{_SCRATCH}/state")
                if original.startswith((f"{_SCRATCH}/", "/run/netns/")) or not os.path.isfile(path):
                    continue
                lines[path] = f"{original}{_summary(_content(path))}"
    return dict(sorted(lines.items()))


def _summary(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    if not text.strip():
        return ""
    quoted = json.dumps(text)
    return f": {quoted}" if len(quoted) <= _MAX_CONTENT else f": {len(content)} bytes"
