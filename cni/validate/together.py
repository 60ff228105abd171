"""What networks do to one another and to the node: names, bridges and subnets that meet, files that nobody reads."""

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
# Of a bridge, whoever uses it; other keys are each network's own.
_OF_THE_BRIDGE = (bridge.Conf.mtu, bridge.Conf.promiscMode)


def check(path: str, search: Sequence[str] | None, node: Node | None) -> tuple[list[Network], list[Finding]]:
    """The networks of a file or folder, and all that is found in them and in files that runtimes pass over.

    ``search`` are CNI_PATH's folders, ``node`` is what they are to go with; None not to look there. Raises CNIError,
    OSError.
    """
    is_folder = os.path.isdir(path)
    networks = _networks_of(path) if is_folder else [Network(path)]
    for network in networks:
        rules.check(network, search)
        if node:
            node.check(network)
    _check_together([*networks, *([] if is_folder else _beside(path))], networks)
    found = [finding for network in networks for finding in sorted(network.findings, key=_by_place)]
    return networks, [*found, *(_not_read(path, networks) if is_folder else _misnamed(path))]


def _networks_of(folder: str) -> list[Network]:
    """All networks of a folder, in the order in which runtimes look through it."""
    return [Network(name) for name in config_files(folder, EXTENSIONS)]


def _beside(path: str) -> list[Network]:
    """The other networks of a file's folder."""
    if not path.endswith(EXTENSIONS) or not os.path.exists(path):
        return []
    there = _networks_of(os.path.dirname(path) or ".")
    return [other for other in there if not os.path.samefile(other.file, path)]


def _misnamed(path: str) -> list[Finding]:
    return [_ignored(path)] if os.path.isfile(path) and not path.endswith(EXTENSIONS) else []


def _by_place(finding: Finding) -> tuple[str, int, int]:
    return finding.file, finding.line, finding.column


def _check_together(networks: Sequence[Network], concerned: Iterable[Network]) -> None:
    """Report what is wrong between networks of one folder, to one that is concerned."""
    wanted = {id(network) for network in concerned}
    # As runtimes find them by name: lists before the others.
    found = sorted(networks, key=lambda network: not network.is_list)
    for one, other in combinations(found, 2):
        if not {id(one), id(other)} & wanted:
            continue
        # The later one is to give way, if it is looked at.
        first, second = (one, other) if id(other) in wanted else (other, one)
        if one.name and one.name == other.name:
            words = f"{quote(one.name)} is the network of {first.file} too; runtimes take {one.file}"
            second.report(Problem("same-name", "name", words))
            continue
        _same_bridge(first, second)
        _same_subnets(first, second)


def _not_read(folder: str, networks: Sequence[Network]) -> Iterator[Finding]:
    """Files that look like configurations, but are not called so, in the folder and in those of its networks."""
    if not networks:
        yield Finding(folder, Problem(NO_NETWORKS, "", "there is no network in this folder"))
    names = {network.name for network in networks if network.is_list}
    for entry in _entries(folder):
        if entry.is_dir() and entry.name in names:
            inside = [inner.path for inner in _entries(entry.path) if not inner.name.endswith(FOLDER_EXTENSIONS)]
            yield from map(_ignored_plugin, filter(_looks_like_one, inside))
        elif not entry.name.endswith(EXTENSIONS) and _looks_like_one(entry.path):
            yield _ignored(entry.path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _ignored(path: str) -> Finding:
    words = f"runtimes pass this file over: its name has to end in {', '.join(EXTENSIONS)}"
    return Finding(path, Problem("ignored-file", "", words, WARNING))


def _ignored_plugin(path: str) -> Finding:
    words = f"runtimes pass this file over: in a network's folder its name has to end in {', '.join(FOLDER_EXTENSIONS)}"
    return Finding(path, Problem("ignored-file", "", words, WARNING))


def _looks_like_one(path: str) -> bool:
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
                for field in _OF_THE_BRIDGE:
                    own, other = getattr(ours, field.name), getattr(theirs, field.name)
                    if own != other:
                        words = f"the bridge {ours.bridge} gets {_json(own)} here, and {_json(other)} in {first.file}"
                        second.report(Problem("same-bridge", field.key, words, WARNING), part)
                for own, other in _rival_gateways(ours, theirs, _subnets(second), _subnets(first)):
                    words = (
                        f"{ours.bridge} is to be the gateway {own.gateway} here, and {other.gateway} in {first.file}: "
                        "whoever comes second is refused"
                    )
                    second.report(Problem("same-bridge", "bridge", words), part)


def _json(value: Any) -> str:
    return json.dumps(value)


def _rival_gateways(
    ours: bridge.Conf, theirs: bridge.Conf, our_subnets: list[Range], their_subnets: list[Range]
) -> Iterator[tuple[Range, Range]]:
    """Of IPv4 a bridge takes one gateway's address, of IPv6 as many as their subnets are apart."""
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
    return [one for part in network.parts for _, one in _ranges(part)]


# ---- subnets ----


def _ranges(part: Part) -> list[tuple[str, Range]]:
    """What host-local gives out, each with its path."""
    if part.ipam_type != "host-local":
        return []
    try:
        conf = host_local.Conf.parse(part.value)
        conf.runtimeConfig.ipRanges.clear()
        found = [one for ranges in host_local.range_sets(conf) for one in ranges.ranges]
    except CNIError:
        return []
    ipam = conf.ipam or host_local.IPAMConf.parse({})
    paths = ["ipam.subnet"] if ipam.subnet else []
    for number, ranges in enumerate(ipam.ranges):
        paths += [f"ipam.ranges[{number}][{index}].subnet" for index in range(len(ranges))]
    return list(zip(paths, found, strict=True))


def _wire(part: Part) -> tuple[str, int] | None:
    """The device that the containers' network is beyond, and the VLAN; None where it is the node itself."""
    conf = part.conf
    if conf is None or not hasattr(conf, "master"):
        return None
    return conf.master, getattr(conf, "vlanId", 0)


def _same_subnets(first: Network, second: Network) -> None:
    for part in second.parts:
        for path, ours in _ranges(part):
            for other in first.parts:
                if _wire(part) and _wire(other) and _wire(part) != _wire(other):
                    continue  # behind different devices there may be the same subnets
                met = [one for _, one in _ranges(other) if one.subnet.overlaps(ours.subnet)]
                if met:
                    second.report(_overlap(path, ours, met[0], f"network {quote(first.name)} ({first.file})"), part)


def _overlap(path: str, ours: Range, theirs: Range, whose: str) -> Problem:
    if ours.overlaps(theirs):
        first, last = max(ours.start, theirs.start), min(ours.end, theirs.end)
        words = f"{first} to {last} are given out twice: here, and from {theirs.subnet} by {whose}"
        return Problem("same-subnet", path, words)
    return Problem("same-subnet", path, f"{ours.subnet} overlaps {theirs.subnet} of {whose}", WARNING)


# ---- the node ----


class Node:
    """The node's routes, each with the name of its device."""

    def __init__(self) -> None:
        with NetNS.current() as here, here.netlink() as netlink:
            links = {link.index: link for link in netlink.links()}
            routes = [route for route in netlink.routes() if route.type == _UNICAST]
        self._links = links
        self.routes = [(CIDR(IP(route.dst), route.prefix), route) for route in routes]

    def check(self, network: Network) -> None:
        """Report subnets of a network's that the node already has a way to, and not by this network."""
        for part in network.parts:
            for path, one in _ranges(part):
                for to, route in self.routes:
                    if to.prefix and to.overlaps(one.subnet) and not self._is_own(part, one, to, route):
                        device = self._name(route)
                        words = f"{one.subnet} overlaps this node's route to {to} by {device}"
                        network.report(Problem("route", path, words, WARNING), part)

    def _name(self, route: Route) -> str:
        link = self._link(route)
        return link.name if link else "several devices"

    def _link(self, route: Route) -> Link | None:
        return self._links.get(route.index)

    def _is_own(self, part: Part, one: Range, to: CIDR, route: Route) -> bool:
        """Whether a container of the network may have made the route, or it leads to where the containers are."""
        link = self._link(route)
        if link is None:
            return False
        conf = part.conf
        if hasattr(conf, "master"):
            return bool(link.name == (conf.master or self._default_device()))
        if hasattr(conf, "bridge"):
            return bool(link.name.partition(".")[0] == conf.bridge)
        return link.kind in _PAIRS and to.prefix == to.ip.bits and to.ip in one.subnet

    def _default_device(self) -> str:
        return next((self._name(route) for to, route in self.routes if not to.prefix), "")
