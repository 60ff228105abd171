"""Snapshots of a network namespace, and the differences between two of them in words."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence

from cni._core import Address, Link, Route
from cni.kernel.netns import NetNS
from cni.spec.ip import CIDR, IP

# linux/rtnetlink.h
_LOCAL_TABLE = 255
_MAIN_TABLE = 254
_ROUTE_TYPES = {1: "", 6: "blackhole ", 7: "unreachable ", 8: "prohibit "}

_SYSCTLS = "/proc/sys/net"
# Kernel parameters that the kernel sets along with others (forwarding and accept_redirects with ip_forward), or as
# counters and measurements.
_DERIVED = ("accept_redirects", "base_reachable_time", "forwarding", "mtu", "nf_conntrack_count", "stable_secret")
_IPV6_FORWARDING = "net.ipv6.conf.all.forwarding"


class Snapshot:
    """The links, addresses, routes, kernel parameters and packet filters of a namespace at a moment."""

    def __init__(self, netns: NetNS) -> None:
        self.netns = netns
        with netns.netlink() as netlink:
            links = netlink.links()
            names = {link.index: link.name for link in links}
            self.links = {link.name: dict(_properties(link, names)) for link in links}
            self.addresses = [_address(address, names) for address in netlink.addresses() if _is_shown(address)]
            self.routes = [_route(route, names) for route in netlink.routes(table=0) if _is_shown_route(route)]
        self.sysctls = netns.run(_sysctls)
        self.outputs = {topic: netns.run(lines) for topic, lines in _PROGRAMS.items()}

    def changes(self, later: Snapshot) -> dict[str, list[str]]:
        """Return what is new in a later snapshot, or gone from it: lines by topic."""
        changes = {
            "links": [*self._links(later)],
            "addresses": _new(self.addresses, later.addresses),
            "routes": _new(self.routes, later.routes),
            "kernel parameters": [*self._sysctls(later)],
            **{topic: _new(self.outputs[topic], lines) for topic, lines in later.outputs.items()},
        }
        return {topic: lines for topic, lines in changes.items() if lines}

    def _links(self, later: Snapshot) -> Iterator[str]:
        for name, properties in later.links.items():
            before = self.links.get(name, {})
            changed = [value for key, value in properties.items() if value and before.get(key) != value]
            if changed:
                yield f"{name}: {', '.join(changed)}"
        for name in self.links:
            if name not in later.links:
                yield f"{name}: gone"

    def _sysctls(self, later: Snapshot) -> Iterator[str]:
        for name, value in later.sysctls.items():
            before = self.sysctls.get(name, self.sysctls.get(_default(name)))
            if before != value:
                yield f"{name} = {value}" + ("" if before is None else f" (was {before})")


def _new(before: Sequence[str], after: Sequence[str]) -> list[str]:
    return [line for line in after if line not in before]


def _properties(link: Link, names: dict[int, str]) -> Iterator[tuple[str, str]]:
    yield "kind", link.kind
    yield "state", "up" if link.is_up else "down"
    yield "mtu", f"MTU {link.mtu}"
    yield "hwaddr", link.hwaddr and f"MAC {link.hwaddr}"
    yield "master", f"port of {names.get(link.master, '?')}" if link.master else ""
    yield "promiscuous", "promiscuous" if link.is_promiscuous else ""
    yield "alias", link.alias and f"alias {link.alias}"


def _is_shown(address: Address) -> bool:
    ip = IP(address.packed)
    return not (ip.version == 6 and ip.is_link_local) and not ip.is_loopback


def _address(address: Address, names: dict[int, str]) -> str:
    return f"{CIDR(IP(address.packed), address.prefix)} on {names.get(address.index, '?')}"


def _is_shown_route(route: Route) -> bool:
    """Return False for the routes that the kernel adds along with each address."""
    ip = IP(route.dst)
    own = ip.version == 6 and (ip.is_link_local or ip.is_multicast or ip.is_loopback)
    return route.table != _LOCAL_TABLE and route.type in _ROUTE_TYPES and not own


def _route(route: Route, names: dict[int, str]) -> str:
    destination = str(CIDR(IP(route.dst), route.prefix)) if route.prefix else f"default (IPv{IP(route.dst).version})"
    via = f" via {IP(route.gateway)}" if route.gateway else ""
    table = f", table {route.table}" if route.table != _MAIN_TABLE else ""
    return f"{_ROUTE_TYPES[route.type]}{destination}{via} by {names.get(route.index, '?')}{table}"


def _sysctls() -> dict[str, str]:
    """Return the readable parameters below net/ of the caller's namespace, without those of single neighbours."""
    values = {}
    for root, folders, names in os.walk(_SYSCTLS):
        folders[:] = [folder for folder in folders if folder != "neigh"]
        for name in names:
            path = os.path.join(root, name)
            key = path.removeprefix("/proc/sys/").replace("/", ".")
            if name in _DERIVED and key != _IPV6_FORWARDING:
                continue
            try:
                with open(path) as file:
                    values[key] = " ".join(file.read().split())
            except (OSError, ValueError):
                pass  # write-only
    return dict(sorted(values.items()))


def _default(name: str) -> str:
    """Return the parameter that a new link copies its own from; "" if there is none."""
    head, conf, rest = name.partition(".conf.")
    return f"{head}.conf.default.{rest.rpartition('.')[2]}" if conf else ""


# ---- by programs: what the core does not read ----


def _printed(*command: str) -> list[str]:
    """Return the lines that a program prints; none if it is not installed."""
    if not shutil.which(command[0]):
        return []
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def _rules() -> list[str]:
    return [*_printed("ip", "rule"), *_printed("ip", "-6", "rule")]


def _qdiscs() -> list[str]:
    return [line.rstrip() for line in _printed("tc", "qdisc") if not line.startswith("qdisc noqueue")]


def _iptables(program: str) -> list[str]:
    """Return the chains and rules of all tables as arguments of iptables."""
    table, arguments = "", []
    for line in _printed(f"{program}-save"):
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A"):
            arguments.append(f"-t {table} {line}")
        elif line.startswith(":") and line.split()[1] == "-":
            arguments.append(f"-t {table} -N {line[1:].split()[0]}")
    return arguments


def _nftables() -> list[str]:
    """Return the ruleset without the tables that belong to iptables."""
    foreign = {f"table {family} {table}" for family, program in _FAMILIES for table in _tables(_iptables(program))}
    kept, is_foreign = [], False
    for line in _printed("nft", "list", "ruleset"):
        if line.startswith("table "):
            is_foreign = line.removesuffix(" {") in foreign
        if not is_foreign and line.strip() and not line.startswith("#"):
            kept.append(line.replace("\t", "  "))
    return kept


_FAMILIES = (("ip", "iptables"), ("ip6", "ip6tables"))


def _tables(lines: list[str]) -> set[str]:
    return {line.split()[1] for line in lines}


_PROGRAMS: dict[str, Callable[[], list[str]]] = {
    "routing rules": _rules,
    "traffic control": _qdiscs,
    "iptables": lambda: _iptables("iptables"),
    "ip6tables": lambda: _iptables("ip6tables"),
    "nftables": _nftables,
}
