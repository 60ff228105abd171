"""Conflicts between networks, and between networks and the node: names, bridges, subnets; and files without effect."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product
from typing import Any

from cni._core import Link, Route
from cni.kernel.netns import NetNS
from cni.node.severity import WARNING
from cni.runtime.conf import FOLDER_EXTENSIONS, config_files
from cni.spec.errors import CNIError, quote
from cni.spec.ip import CIDR, IP
from cni.validate import rules
from cni.validate.findings import Finding, Problem
from cni.validate.network import EXTENSIONS, Network, Part
from cni_plugins.ipam import host_local
from cni_plugins.ipam.host_local.ranges import Range
from cni_plugins.main import bridge

NO_NETWORKS = "no-networks"

_UNICAST = 1  # RTN_UNICAST, linux/rtnetlink.h
_PAIRS = ("veth", "netkit")
# The keys that are about the bridge itself, which several networks may use; all others are about a network.
_BRIDGE_KEYS = (bridge.Conf.mtu, bridge.Conf.promiscMode)


def check(path: str, search: Sequence[str] | None, node: Node | None) -> tuple[list[Network], list[Finding]]:
    """Return the networks of a file or folder, and the findings in them and in files that runtimes ignore.

    ``search`` are the folders of CNI_PATH, and ``node`` is checked for conflicts, unless they are None.
    Raises CNIError, OSError.
    """
    is_folder = os.path.isdir(path)
    networks = _networks_of(path) if is_folder else [Network(path)]
    for network in networks:
        rules.check(network, search)
        if node:
            node.check(network)
    _check_together([*networks, *([] if is_folder else _beside(path))], networks)
    findings = [finding for network in networks for finding in sorted(network.findings, key=_by_place)]
    return networks, [*findings, *(_not_read(path, networks) if is_folder else _misnamed(path))]


def _networks_of(folder: str) -> list[Network]:
    """Return all networks of a folder, in the order in which runtimes read them."""
    return [Network(name) for name in config_files(folder, EXTENSIONS)]


def _beside(path: str) -> list[Network]:
    """Return the other networks in the folder of a file."""
    if not path.endswith(EXTENSIONS) or not os.path.exists(path):
        return []
    networks = _networks_of(os.path.dirname(path) or ".")
    return [other for other in networks if not os.path.samefile(other.file, path)]


def _misnamed(path: str) -> list[Finding]:
    return [_ignored(path)] if os.path.isfile(path) and not path.endswith(EXTENSIONS) else []


def _by_place(finding: Finding) -> tuple[str, int, int]:
    return finding.file, finding.line, finding.column


def _check_together(networks: Sequence[Network], checked: Iterable[Network]) -> None:
    """Report the conflicts between networks of one folder, each to a network that is to be checked."""
    reported = {id(network) for network in checked}
    # In the order in which runtimes look a name up: lists before single plugins.
    ordered = sorted(networks, key=lambda network: not network.is_list)
    for preferred, other in combinations(ordered, 2):
        if not {id(preferred), id(other)} & reported:
            continue
        # The later network has to change, if it is one of those that are checked.
        first, second = (preferred, other) if id(other) in reported else (other, preferred)
        if preferred.name and preferred.name == other.name:
            message = f"{quote(preferred.name)} is the network of {first.file} too; runtimes take {preferred.file}"
            second.report(Problem("same-name", "name", message))
            continue
        _same_bridge(first, second)
        _same_subnets(first, second)


def _not_read(folder: str, networks: Sequence[Network]) -> Iterator[Finding]:
    """Yield the files in a folder, and in its networks' folders, that are configurations but for their extension."""
    if not networks:
        yield Finding(folder, Problem(NO_NETWORKS, "", "there is no network in this folder"))
    names = {network.name for network in networks if network.is_list}
    for entry in _entries(folder):
        if entry.is_dir() and entry.name in names:
            inside = [inner.path for inner in _entries(entry.path) if not inner.name.endswith(FOLDER_EXTENSIONS)]
            yield from map(_ignored_plugin, filter(_looks_like_network, inside))
        elif not entry.name.endswith(EXTENSIONS) and _looks_like_network(entry.path):
            yield _ignored(entry.path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _ignored(path: str) -> Finding:
    message = f"runtimes ignore this file: its name has to end in {', '.join(EXTENSIONS)}"
    return Finding(path, Problem("ignored-file", "", message, WARNING))


def _ignored_plugin(path: str) -> Finding:
    message = f"runtimes ignore this file: in a network's folder its name has to end in {', '.join(FOLDER_EXTENSIONS)}"
    return Finding(path, Problem("ignored-file", "", message, WARNING))


def _looks_like_network(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(1 << 20))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and ("plugins" in value or "type" in value)


# ---- bridges ----


def _bridges(network: Network) -> Iterator[tuple[Part, bridge.Conf]]:
    for part in network.parts:
        conf = part.conf
        if isinstance(conf, bridge.Conf):
            yield part, conf


def _same_bridge(first: Network, second: Network) -> None:
    for _, theirs in _bridges(first):
        for part, ours in _bridges(second):
            if ours.bridge == theirs.bridge:
                for field in _BRIDGE_KEYS:
                    own, other = getattr(ours, field.name), getattr(theirs, field.name)
                    if own != other:
                        message = f"the bridge {ours.bridge} gets {_json(own)} here, and {_json(other)} in {first.file}"
                        second.report(Problem("same-bridge", field.key, message, WARNING), part)
                for own, other in _rival_gateways(ours, theirs, _subnets(second), _subnets(first)):
                    message = (
                        f"{ours.bridge} is to be the gateway {own.gateway} here, and {other.gateway} in {first.file}: "
                        "the second network to be used is refused"
                    )
                    second.report(Problem("same-bridge", "bridge", message), part)


def _json(value: Any) -> str:
    return json.dumps(value)


def _rival_gateways(
    ours: bridge.Conf, theirs: bridge.Conf, our_subnets: list[Range], their_subnets: list[Range]
) -> Iterator[tuple[Range, Range]]:
    """Yield the gateways that a bridge cannot have both: all of IPv4, those of overlapping subnets of IPv6."""
    if not (_is_gateway(ours) and _is_gateway(theirs)) or ours.forceAddress or theirs.forceAddress:
        return
    for own, other in product(our_subnets, their_subnets):
        if own.subnet.version != other.subnet.version or own.gateway == other.gateway:
            continue
        if own.subnet.version == 4 or own.subnet.overlaps(other.subnet):
            yield own, other


def _is_gateway(conf: bridge.Conf) -> bool:
    return conf.isGateway or conf.isDefaultGateway


def _subnets(network: Network) -> list[Range]:
    return [subnet for part in network.parts for _, subnet in _ranges(part)]


# ---- subnets ----


def _ranges(part: Part) -> list[tuple[str, Range]]:
    """Return the ranges that host-local allocates from, each with its path."""
    if part.ipam_type != "host-local":
        return []
    try:
        conf = host_local.Conf.parse(part.value)
        conf.runtimeConfig.ipRanges.clear()
        ranges = [each for range_set in host_local.range_sets(conf) for each in range_set.ranges]
    except CNIError:
        return []
    ipam = conf.ipam or host_local.IPAMConf.parse({})
    paths = ["ipam.subnet"] if ipam.subnet else []
    for number, range_set in enumerate(ipam.ranges):
        paths += [f"ipam.ranges[{number}][{index}].subnet" for index in range(len(range_set))]
    return list(zip(paths, ranges, strict=True))


def _wire(part: Part) -> tuple[str, int] | None:
    """Return the device and VLAN that containers reach their network by; None if that is the node itself."""
    conf = part.conf
    if conf is None or not hasattr(conf, "master"):
        return None
    return conf.master, getattr(conf, "vlanId", 0)


def _same_subnets(first: Network, second: Network) -> None:
    for part in second.parts:
        for path, ours in _ranges(part):
            for other in first.parts:
                if _wire(part) and _wire(other) and _wire(part) != _wire(other):
                    continue  # networks behind different devices may have the same subnets
                overlapping = [theirs for _, theirs in _ranges(other) if theirs.subnet.overlaps(ours.subnet)]
                if overlapping:
                    second.report(
                        _overlap(path, ours, overlapping[0], f"network {quote(first.name)} ({first.file})"), part
                    )


def _overlap(path: str, ours: Range, theirs: Range, owner: str) -> Problem:
    if ours.overlaps(theirs):
        first, last = max(ours.start, theirs.start), min(ours.end, theirs.end)
        message = f"{first} to {last} are given out twice: here, and from {theirs.subnet} by {owner}"
        return Problem("same-subnet", path, message)
    return Problem("same-subnet", path, f"{ours.subnet} overlaps {theirs.subnet} of {owner}", WARNING)


# ---- the node ----


class Node:
    """The routes of the node and their devices."""

    def __init__(self) -> None:
        with NetNS.current() as here, here.netlink() as netlink:
            links = {link.index: link for link in netlink.links()}
            routes = [route for route in netlink.routes() if route.type == _UNICAST]
        self._links = links
        self.routes = [(CIDR(IP(route.dst), route.prefix), route) for route in routes]

    def check(self, network: Network) -> None:
        """Report the subnets of a network that overlap routes of the node, unless the network itself made the route."""
        for part in network.parts:
            for path, ours in _ranges(part):
                for destination, route in self.routes:
                    overlaps = destination.prefix and destination.overlaps(ours.subnet)
                    if overlaps and not self._is_own(part, ours, destination, route):
                        device = self._name(route)
                        message = f"{ours.subnet} overlaps this node's route to {destination} by {device}"
                        network.report(Problem("route", path, message, WARNING), part)

    def _name(self, route: Route) -> str:
        link = self._link(route)
        return link.name if link else "several devices"

    def _link(self, route: Route) -> Link | None:
        return self._links.get(route.index)

    def _is_own(self, part: Part, ours: Range, destination: CIDR, route: Route) -> bool:
        """Return True if an attachment of the network may have made the route, or the route leads to its containers."""
        link = self._link(route)
        if link is None:
            return False
        conf = part.conf
        if hasattr(conf, "master"):
            return bool(link.name == (conf.master or self._default_device()))
        if hasattr(conf, "bridge"):
            return bool(link.name.partition(".")[0] == conf.bridge)
        return link.kind in _PAIRS and destination.prefix == destination.ip.bits and destination.ip in ours.subnet

    def _default_device(self) -> str:
        return next((self._name(route) for destination, route in self.routes if not destination.prefix), "")
