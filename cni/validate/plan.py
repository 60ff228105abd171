"""What an ADD would do, found out by doing it: on a node that is thrown away, with a container in it.

The private node (bench.node) has its own network, mounts and processes. It gets what the configuration names of this
one: devices (as ends of pairs, bridges as bridges) with their addresses, the default routes, whether packets are
forwarded, the network's reservations. The network's plugins are run there as a runtime would run them, and what is
there after that, but was not before, is the plan. Nothing of this node is touched.
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
from cni.node import scratch as private
from cni.runtime.attachment import RuntimeConf
from cni.runtime.conf import NetworkConfigList, plugin_path
from cni.runtime.operations import CNI
from cni.spec import gojson
from cni.spec.errors import CNIError
from cni.validate.changes import View
from cni.validate.network import Network, Part

_SCRATCH = "/run/cni-plan"
_CONTAINER = "container"
_FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
_SHOWN = 60  # characters of a file


class Plan:
    """What was done, by where it was: lists of words. ``failure`` is ADD's, if it failed."""

    def __init__(self, network: Network, done: dict[str, Any]) -> None:
        self.network = network.name
        self.file = network.file
        self.failure: str = done["failure"]
        self.places: dict[str, dict[str, list[str]]] = done["places"]
        self.result: dict[str, Any] | None = done["result"]

    def as_dict(self) -> dict[str, Any]:
        """All of it for a program."""
        failure = {"failure": self.failure} if self.failure else {}
        return {"network": self.network, "file": self.file, **failure, **self.places, "result": self.result}


def of(network: Network) -> Plan:
    """Make the plan. Raises CNIError, OSError."""
    if os.geteuid():
        raise CNIError("a plan takes root, to make namespaces")
    node = _Node(network)
    with private.started(lambda connection: _work(connection, node)) as messages:
        for message in messages:
            if isinstance(message, dict):
                return Plan(network, message)
    raise CNIError(f"the plan of {network.file} was not made: the private node ended")


# ---- of this node ----


class _Node:
    """What the plugins may find on this node, as far as the configuration names it."""

    def __init__(self, network: Network) -> None:
        config = network.load()
        self.config = config
        words = {word for part in network.parts for word in (*_strings(part.value), *_defaults(part))}
        with NetNS.current() as here, here.netlink() as netlink:
            self.defaults = [route for route in netlink.routes() if not route.prefix and route.gateway]
            through = {route.index for route in self.defaults}
            self.links = [link for link in netlink.links() if link.name in words or link.index in through]
            self.addresses = [one for link in self.links for one in netlink.addresses(link.index)]
        self.files = {word: _content(word) for word in words if _is_hidden_file(word)}
        self.forwarding = {name: Path("/proc/sys/net", name).read_text() for name in _FORWARDING if _has(name)}


def _has(name: str) -> bool:
    return os.path.exists(f"/proc/sys/net/{name}")


def _strings(value: Any) -> Iterator[str]:
    """All strings in a configuration: some are names of devices, some paths."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _defaults(part: Part) -> Iterator[str]:
    """What a plugin takes for devices that the configuration does not name."""
    conf = part.conf
    return _strings([getattr(conf, field.name) for field in conf.fields()] if conf else [])


def _is_hidden_file(path: str) -> bool:
    return path.startswith("/") and os.path.isfile(path) and not private.is_visible(path)


def _content(path: str) -> bytes:
    return Path(path).read_bytes()


# ---- on the private node ----


def _work(connection: Connection, node: _Node) -> None:
    try:
        connection.send(_planned(node))
    except (CNIError, OSError, ValueError) as error:
        connection.send({"failure": str(error), "places": {}, "result": None})


def _planned(node: _Node) -> dict[str, Any]:
    state = _kept(node.config)
    private.enter()
    network = _redirected(node.config)
    os.environ["CNI_AGENT_SOCKET"] = ""  # an agent would work on its own node
    bin_folder = Path(_SCRATCH, "bin")
    install(bin_folder)
    paths = [*filter(None, plugin_path()), str(bin_folder)]
    with NetNS.current() as here, NetNS.create() as beyond, NetNS.create(_CONTAINER) as container:
        _furnish(node, state, here, beyond)
        views = {"node": View(here), "container": View(container)}
        files = _files()
        failure, result = "", None
        try:
            result = CNI(paths).add(network, _runtime_conf(container)).encode(network.cni_version or "0.1.0")
        except (CNIError, OSError, ValueError) as error:
            failure = str(error)
        places = {place: view.changes(View(view.netns)) for place, view in views.items()}
    written = [words for path, words in _files().items() if files.get(path) != words]
    places["files"] = {"": written} if written else {}
    return {"failure": failure, "places": {place: parts for place, parts in places.items() if parts}, "result": result}


def _runtime_conf(container: NetNS) -> RuntimeConf:
    """As cnitool takes it from the environment."""
    pairs = [pair.partition("=") for pair in os.environ.get("CNI_ARGS", "").split(";") if pair]
    return RuntimeConf(
        _CONTAINER,
        container.path,
        os.environ.get("CNI_IFNAME") or "eth0",
        [(key, value) for key, _, value in pairs],
        gojson.table(gojson.loads(os.environ.get("CAP_ARGS") or "{}"), "CAP_ARGS"),
    )


def _data_dirs(config: NetworkConfigList) -> Iterator[str]:
    """The folders that plugins are told to keep their state in."""
    for plugin in config.plugins:
        fields = gojson.loads(plugin.raw)
        for section in (fields, gojson.get(fields, "ipam")):
            folder = gojson.get(section, "dataDir") if isinstance(section, dict) else None
            if isinstance(folder, str) and folder:
                yield os.path.normpath(folder)


def _kept(config: NetworkConfigList) -> dict[str, bytes]:
    """What of this network is reserved on this node: files by path."""
    folders = [*_data_dirs(config), "/var/lib/cni/networks"]
    own = [Path(folder, config.name) for folder in folders]
    return {str(file): file.read_bytes() for folder in own if folder.is_dir() for file in folder.iterdir()}


def _moved(path: str) -> str:
    """Where on the private node that is kept which this node has at a path."""
    return f"{_SCRATCH}/state{path}" if private.is_visible(path) else path


def _redirected(config: NetworkConfigList) -> NetworkConfigList:
    """The network, with folders for state that are all on the private node."""
    raw = gojson.loads(config.raw)
    for part in raw.get("plugins", [raw]):
        for section in (part, gojson.get(part, "ipam")):
            for key in list(section) if isinstance(section, dict) else ():
                if gojson.fold(key) == "datadir" and isinstance(section[key], str) and section[key]:
                    section[key] = _moved(os.path.normpath(section[key]))
    moved = NetworkConfigList.from_bytes(gojson.dumps(raw).encode())
    moved.plugins = [*moved.plugins, *config.plugins[len(moved.plugins) :]]
    return moved


def _furnish(node: _Node, state: dict[str, bytes], here: NetNS, beyond: NetNS) -> None:
    """Make what the plugins may look for; the devices' other ends are ``beyond``."""
    for path, content in {**node.files, **{_moved(path): content for path, content in state.items()}}.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)
    for name, value in node.forwarding.items():
        Path("/proc/sys/net", name).write_text(value)
    with here.netlink() as netlink, beyond.netlink() as there:
        for link in node.links:
            if link.name != "lo":
                _make(netlink, there, link, beyond)
                _address(netlink, link.name, [one for one in node.addresses if one.index == link.index])
        for route in node.defaults:
            name = next(link.name for link in node.links if link.index == route.index)
            batch = netlink.batch()
            batch.route_add(route.dst, 0, gateway=route.gateway, index=netlink.link(name).index, exist_ok=True)
            batch.commit()


def _make(netlink: Netlink, there: Netlink, link: Link, beyond: NetNS) -> None:
    batch, hwaddr = netlink.batch(), link.hwaddr or None
    if link.kind == "bridge":
        batch.link_create("bridge", link.name, mtu=link.mtu, hwaddr=hwaddr, up=True).commit()
        return
    batch.veth(link.name, link.name, netns=beyond.fd, mtu=link.mtu, hwaddr=hwaddr, up=True).commit()
    there.batch().link_set(link.name, up=True).commit()


def _address(netlink: Netlink, name: str, addresses: list[Address]) -> None:
    index = netlink.link(name).index
    batch = netlink.batch()
    for one in addresses:
        batch.address_add(index, one.packed, one.prefix, nodad=True, exist_ok=True)
    if len(batch):
        batch.commit()


def _files() -> dict[str, str]:
    """The files with state on the private node, each with its content in words, by path."""
    found = {}
    for folder in private.hidden():
        for root, _, names in os.walk(folder):
            for path in (os.path.join(root, name) for name in names):
                own = path.removeprefix(f"{_SCRATCH}/state")
                if own.startswith((f"{_SCRATCH}/", "/run/netns/")) or not os.path.isfile(path):
                    continue
                found[path] = f"{own}{_words(_content(path))}"
    return dict(sorted(found.items()))


def _words(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    if not text.strip():
        return ""
    shown = json.dumps(text)
    return f": {shown}" if len(shown) <= _SHOWN else f": {len(content)} bytes"
