"""The attachments of this node: as the runtimes' caches have them, as the kernel has them, and how the two differ.

They are gathered once, with the verdicts of staleness.py, for the commands that show them: ``cni list``,
``cni graph``, ``cni doctor``. Nothing is changed.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterable, Sequence
from typing import Any

from cni._core import Link, Netlink
from cni.kernel.netns import NetNS, NetNSNotFound
from cni.node.formatting import port_text
from cni.node.pools import Pool, Warn
from cni.node.severity import ERROR, WARNING
from cni.node.staleness import GRACE, STALE, Leftovers, Remembered
from cni.runtime.cache import ResultCache
from cni.runtime.conf import NetworkConfigList, plugin_path
from cni.skel.config import Config, Settings
from cni.spec import gojson
from cni.spec.errors import CNIError, describe
from cni.spec.ip import CIDR, IP
from cni.spec.result import Interface, Result
from cni.spec.version import CURRENT
from cni_plugins.main.bridge import Conf as BridgeConf
from cni_plugins.meta.portmap import Mapping

HEALTHY, IMPAIRED, BROKEN, GONE = "healthy", "impaired", "broken", "gone"

_PAIRS = ("veth", "netkit")
_SHORT = 12  # characters of a container's id, as other tools cut it
_ON_MASTER = ("macvlan", "ipvlan", "vlan")
_LINK_SCOPE = 253  # RT_SCOPE_LINK, linux/rtnetlink.h


class Problem:
    """A problem of an attachment: its severity, its text, and its cure (a command, or words)."""

    def __init__(self, severity: str, text: str, cure: str = "") -> None:
        self.severity = severity
        self.text = text
        self.cure = cure

    def as_dict(self) -> dict[str, str]:
        """Return everything for a program."""
        return {"severity": self.severity, "problem": self.text, "cure": self.cure}


class Attached:
    """A cached attachment, compared with the kernel. Attributes for which there is nothing are None or empty.

    `link` and `present` are the container's link and its addresses as the kernel has them; `port` is the host end of
    its pair; `bridge` is the name of the bridge that ADD reported, `port_name` that of the host end.
    """

    def __init__(self, remembered: Remembered, cache: ResultCache, configured: Iterable[NetworkConfigList]) -> None:
        self.remembered = remembered
        self.network, self.container_id, self.ifname = remembered.key
        self.problems: list[Problem] = []
        self.result = self._read(cache)
        self.config = self._configuration(configured)
        self.ports = _ports(remembered.attachment.capability_args)
        self.bridge, self.port_name = self._reported()
        self.link: Link | None = None
        self.port: Link | None = None
        self.present: list[CIDR] = []

    @property
    def name(self) -> str:
        """Return the container's id, shortened."""
        return self.container_id[:_SHORT]

    @property
    def pod(self) -> str:
        """Return the pod's name from CNI_ARGS, as Kubernetes' runtimes and podman set it; "" if it is not set."""
        args = dict(self.remembered.attachment.args)
        return "/".join(filter(None, (args.get("K8S_POD_NAMESPACE"), args.get("K8S_POD_NAME"))))

    @property
    def title(self) -> str:
        """Return the name of the container for a person."""
        return f"{self.name} {self.pod}".strip()

    @property
    def plugin(self) -> str:
        """Return the type of the network's first plugin; "" if its configuration is lost."""
        return self.config.plugins[0].type if self.config else ""

    @property
    def interface(self) -> Interface | None:
        """Return the container's interface as ADD reported it."""
        for interface in self.result.interfaces:
            if interface.sandbox and interface.name == self.ifname:
                return interface
        return None

    @property
    def reported(self) -> list[CIDR]:
        """Return the addresses that ADD assigned to the container."""
        of_node = [index for index, interface in enumerate(self.result.interfaces) if not interface.sandbox]
        return [ip.address for ip in self.result.ips if ip.interface not in of_node]

    @property
    def addresses(self) -> list[CIDR]:
        """Return the addresses that ADD assigned, or without one those of the link.

        Other addresses of the link, such as autoconfigured ones, are not shown.
        """
        return self.reported or self.present

    @property
    def mac(self) -> str:
        """Return the MAC address of the link, or without one that which was reported."""
        if self.link:
            return self.link.hwaddr
        return self.interface.mac if self.interface else ""

    @property
    def health(self) -> str:
        """Return HEALTHY, IMPAIRED, BROKEN or GONE."""
        if not self.remembered.is_live:
            return GONE
        severities = {problem.severity for problem in self.problems}
        return BROKEN if ERROR in severities else IMPAIRED if WARNING in severities else HEALTHY

    def age(self) -> float:
        """Return the seconds since ADD."""
        return max(time.time() - self.remembered.since / 1e9, 0)

    @property
    def reattach_command(self) -> str:
        """Return a command that deletes the attachment and adds it again, as the runtime requested it."""
        attachment = self.remembered.attachment
        variables = {
            "CNI_CONTAINERID": self.container_id,
            "CNI_IFNAME": self.ifname,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.args),
            "CAP_ARGS": json.dumps(attachment.capability_args) if attachment.capability_args else "",
        }
        return cnitool(("del", "add"), self.network, self.remembered.netns, **variables)

    def as_dict(self) -> dict[str, Any]:
        """Return everything for a program."""
        return {
            **self.remembered.names(),
            "pod": self.pod,
            "plugins": [plugin.type for plugin in self.config.plugins] if self.config else [],
            "addresses": list(map(str, self.addresses)),
            "mac": self.mac,
            "hostInterface": self.port.name if self.port else self.port_name,
            "bridge": self.bridge,
            "ports": [port_text(port) for port in self.ports],
            "ageSeconds": round(self.age()),
            "health": self.health,
            "problems": [problem.as_dict() for problem in self.problems],
        }

    def __str__(self) -> str:
        return f"{self.name} {self.ifname} of network {self.network}"

    # ---- the cache ----

    def _read(self, cache: ResultCache) -> Result:
        try:
            result = cache.result(*self.remembered.key, CURRENT)
        except CNIError as error:
            self._note(WARNING, f"its cached result cannot be read: {error}")
            result = None
        return result or Result()

    def _configuration(self, configured: Iterable[NetworkConfigList]) -> NetworkConfigList | None:
        try:
            return self.remembered.network(configured)
        except CNIError as error:
            self._note(WARNING, str(error))
            return None

    def _reported(self) -> tuple[str, str]:
        """Return the names of the bridge and the host end; a result has them before the container's interface."""
        names: list[str] = []
        for interface in self.result.interfaces:
            if interface.sandbox:
                break
            names.append(interface.name)
        if len(names) > 1:
            return names[0], names[1]
        return "", names[0] if names else ""

    # ---- the kernel ----

    def examine(self, links: dict[str, Link], pools: Iterable[Pool], owners: Owners) -> None:
        """Compare the attachment with the container and the node. `links` are the node's by name."""
        path = self.remembered.netns
        if not self.remembered.is_live:
            text = self.remembered.reason or f"its namespace {path} is gone"
            self._note(ERROR, text, "cni gc" if self.remembered.verdict == STALE else "")
            return
        if not path:
            self._note(WARNING, "the path of its namespace is not in the cache")
            return
        try:
            with NetNS.open(path) as container, container.netlink() as inside:
                self._compare_inside(inside, links)
        except NetNSNotFound:
            self._note(ERROR, f"its namespace {path} is gone", "cni gc")
            return
        except OSError as error:
            self._note(WARNING, f"its namespace cannot be examined: {describe(error)}")
            return
        self._compare_on_node(links)
        self._compare_reservations(pools, owners)

    def _compare_inside(self, inside: Netlink, links: dict[str, Link]) -> None:
        link = self.link = inside.find_link(self.ifname)
        if link is None:
            self._note(ERROR, f"its interface {self.ifname} is gone", self._restart())
            return
        self.present = [
            CIDR(IP(address.packed), address.prefix)
            for address in inside.addresses(link.index)
            if address.scope != _LINK_SCOPE or len(address.packed) == 4
        ]
        if not link.is_up and not self._is_meant_to_be_down():
            self._note(ERROR, f"its interface {self.ifname} is down", self._inside(f"link set {self.ifname} up"))
        reported = self.interface
        if reported and reported.mac and reported.mac.lower() != link.hwaddr:
            cure = self._inside(f"link set {self.ifname} address {reported.mac}")
            self._note(WARNING, f"its MAC is {link.hwaddr}, where ADD set {reported.mac}", cure)
        self._compare_addresses()
        if link.kind in _PAIRS and link.link_netnsid >= 0:
            peers = [peer for peer in links.values() if (peer.index, peer.link) == (link.link, link.index)]
            self.port = next((peer for peer in peers if peer.kind == link.kind), None)

    def _compare_addresses(self) -> None:
        missing = [address for address in self.reported if address not in self.present]
        others = [str(address) for address in self.present if address not in self.reported]
        for address in missing:
            instead = f"; it has {', '.join(others)}" if others else ""
            cure = self._inside(f"address add {address} dev {self.ifname}")
            self._note(ERROR, f"its address {address} is gone{instead}", cure)

    def _compare_on_node(self, links: dict[str, Link]) -> None:
        bridge = links.get(self.bridge)
        if self.bridge and bridge is None:
            self._note(ERROR, f"its bridge {self.bridge} is gone", self._restart())
        elif bridge and bridge.kind != "bridge":
            self._note(ERROR, f"{self.bridge}, which was its bridge, is a {bridge.kind or 'physical'} link now")
        elif bridge and not bridge.is_up:
            self._note(ERROR, f"its bridge {self.bridge} is down", f"ip link set {self.bridge} up")
        port = self.port = self.port or links.get(self.port_name)
        if port is None:
            if self.port_name and self.link:  # if both ends are gone, one problem is enough
                self._note(ERROR, f"the node's end of its link, {self.port_name}, is gone", self._restart())
            return
        if not port.is_up and not self._is_meant_to_be_down():
            self._note(ERROR, f"the node's end of its link, {port.name}, is down", f"ip link set {port.name} up")
        if bridge and bridge.kind == "bridge" and port.master != bridge.index:
            cure = f"ip link set {port.name} master {bridge.name}"
            self._note(ERROR, f"{port.name} is no port of the bridge {bridge.name} any more", cure)

    def _compare_reservations(self, pools: Iterable[Pool], owners: Owners) -> None:
        own = [pool for pool in pools if pool.network == self.network and pool.configured]
        if not own or not self._asks_host_local():
            return
        for address in self.reported:
            keys = [(pool.folder, str(address.ip)) for pool in own]
            holders = [owners[key] for key in keys if key in owners]
            if not holders:
                cure = f"printf '%s\\r\\n%s' {self.container_id} {self.ifname} > {own[0].folder / str(address.ip)}"
                text = f"its address {address.ip} is not reserved: another container may get it"
                self._note(WARNING, text, cure)
            elif self.container_id not in holders:
                self._note(ERROR, f"its address {address.ip} is reserved for {holders[0][:_SHORT]}", self._restart())

    def _asks_host_local(self) -> bool:
        plugins = self.config.plugins if self.config else ()
        return any(_ipam_type(plugin.raw) == "host-local" for plugin in plugins)

    def _is_meant_to_be_down(self) -> bool:
        return bool(self.config and bridge_value(self.config, "disableContainerInterface"))

    def _inside(self, command: str) -> str:
        return f"nsenter --net={self.remembered.netns} ip {command}"

    def _restart(self) -> str:
        return f"restart the container, or attach it again: {self.reattach_command}"

    def _note(self, severity: str, text: str, cure: str = "") -> None:
        self.problems.append(Problem(severity, text, cure))


Owners = dict[tuple[Any, str], str]  # the container that holds a pool's address, by folder and address


class View:
    """The node at one moment: `links` by name, `addresses` by the link's index. Raises CNIError, OSError."""

    def __init__(self, cache_dirs: Iterable[str], warn: Warn, grace: float = GRACE) -> None:
        self.leftovers = Leftovers(cache_dirs, grace, trusted=False, warn=warn)
        with NetNS.current() as own, own.netlink() as kernel:
            self.links = {link.name: link for link in kernel.links()}
            self.addresses: dict[int, list[CIDR]] = {}
            for address in kernel.addresses():
                if address.scope != _LINK_SCOPE:
                    self.addresses.setdefault(address.index, []).append(CIDR(IP(address.packed), address.prefix))
            self.default_routes = [route for route in kernel.routes() if not route.prefix]
        owners = {
            (reserved.pool.folder, reserved.reservation.address): reserved.reservation.container_id
            for reserved in self.leftovers.reservations
        }
        folders = {remembered.folder for remembered in self.leftovers.attachments}
        caches = {folder: ResultCache(folder, warn) for folder in folders}
        attachments = [
            Attached(remembered, caches[remembered.folder], self.configured)
            for remembered in self.leftovers.attachments
        ]
        self.attached = sorted(attachments, key=_order)
        for attached in self.attached:
            attached.examine(self.links, self.leftovers.pools, owners)

    @property
    def configured(self) -> list[NetworkConfigList]:
        """Return the networks that are configured."""
        return self.leftovers.configured

    @property
    def uplinks(self) -> list[Link]:
        """Return the links that default routes lead through."""
        indexes = {index for route in self.default_routes for index in (route.index, *_hops(route.nexthops)) if index}
        return [link for link in self.links.values() if link.index in indexes]

    def link_by_index(self, index: int) -> Link | None:
        """Return a link of the node, or None."""
        return next((link for link in self.links.values() if link.index == index), None)

    def addresses_of(self, link: Link | None) -> list[CIDR]:
        """Return the addresses of a link of the node; none if there is no link."""
        return self.addresses.get(link.index, []) if link else []

    def device(self, network: NetworkConfigList) -> str:
        """Return the bridge or parent interface that the network's containers are attached to; "" if it has none."""
        first = network.plugins[0]
        if first.type == "bridge":
            return str(bridge_value(network, "bridge") or BridgeConf.bridge.default)
        if first.type in _ON_MASTER:
            master = gojson.get(gojson.loads(first.raw), "master")
            return str(master) if master else (self.uplinks[0].name if self.uplinks else "")
        return ""


def cnitool(verbs: Sequence[str], network: str, netns: str, **variables: str) -> str:
    """Return a shell command that calls cnitool with these verbs and variables, and with this process's folders."""
    folders = {"CNI_PATH": os.pathsep.join(plugin_path()), "NETCONFPATH": os.environ.get("NETCONFPATH", "")}
    environ = [f"{name}={value}" for name, value in {**folders, **variables}.items() if value]
    calls = "; ".join(shlex.join(["cnitool", verb, network, netns]) for verb in verbs)
    return shlex.join(["env", *environ, "sh", "-c", calls])


def bridge_value(network: NetworkConfigList, key: str) -> Any:
    """Return the value of a key of the network's first plugin; None if that is not bridge, or the value is invalid."""
    first = network.plugins[0]
    if first.type != "bridge":
        return None
    return getattr(_parsed(BridgeConf, first.raw), key, None)


def _ipam_type(raw: bytes) -> str:
    conf = _parsed(Config, raw)
    return conf.ipam.type if isinstance(conf, Config) else ""


def _parsed(table: type[Settings], raw: bytes) -> Settings | None:
    try:
        return table.parse(gojson.loads(raw))
    except (ValueError, CNIError):
        return None


def _ports(capability_args: dict[str, Any]) -> list[Mapping]:
    mappings = capability_args.get("portMappings")
    ports = []
    for mapping in mappings if isinstance(mappings, list) else []:
        try:
            ports.append(Mapping.parse(mapping))
        except (ValueError, CNIError):
            continue  # `cni validate` and ADD report it
    return ports


def _order(attached: Attached) -> tuple[str, tuple[int, int], str, str]:
    """Return a key to sort by network and address; attachments without an address are last."""
    ip = attached.reported[0].ip if attached.reported else None
    by_address = (ip.version, int(ip)) if ip else (99, 0)
    return attached.network, by_address, attached.container_id, attached.ifname


def _hops(nexthops: Iterable[tuple[int, bytes | None]]) -> list[int]:
    return [index for index, _ in nexthops]
