"""Check the host: programs, permissions, and the kernel's parameters."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator

from cni.doctor.finding import Finding, NodeState
from cni.kernel import sysctl
from cni.kernel.netns import NetNS
from cni.netfilter.nftables import Nft
from cni.node.attachments import Attached, View
from cni.node.severity import ERROR, NOTE, OK, WARNING
from cni.spec.ip import CIDR

_CAPABILITIES = {  # linux/capability.h
    12: ("CAP_NET_ADMIN", "links, addresses, routes and rules need it"),
    13: ("CAP_NET_RAW", "iptables and the dhcp plugin need it"),
    21: ("CAP_SYS_ADMIN", "entering the containers' namespaces needs it"),
}
_PROGRAMS = (
    ("iptables", "the rules of networks whose backend is iptables, the default, need it", "iptables"),
    ("ip6tables", "the rules of IPv6 networks whose backend is iptables, the default, need it", "iptables"),
    ("nft", "only a person needs it: plugins use libnftables", "nftables"),
    ("ip", "only a person needs it; many cures begin with it", "iproute2"),
)
_MASQUERADING = ("bridge", "ptp", "portmap", "firewall")
_TABLE_IS_NEARLY_FULL = 0.9


def check_tools(node: NodeState) -> Iterator[Finding]:
    """Check the programs that plugins start."""
    installed = [name for name, _, _ in _PROGRAMS if shutil.which(name)]
    in_process, usable = Nft().in_process, Nft().usable()
    libraries = ["libnftables"] if in_process else []
    yield Finding(OK, f"there are {', '.join([*installed, *libraries])}")
    needed = any(name in node.types for name in _MASQUERADING)
    for name, meaning, package in _PROGRAMS:
        if name in installed:
            continue
        matters = name == "iptables" or (name == "nft" and not in_process)
        severity = (ERROR if needed and not usable else WARNING) if matters else NOTE
        yield Finding(severity, f"{name} is not installed", meaning, f"install the package {package}")
    if usable or not needed:
        return
    yield Finding(
        WARNING if "iptables" in installed else ERROR,
        "nftables cannot be used",
        "networks whose backend is nftables cannot be attached to",
        "install libnftables (Debian: libnftables1), version 1.0.1 or newer, and run as root",
    )


def check_permissions(node: NodeState) -> Iterator[Finding]:
    """Check this process's capabilities, which should be the runtime's, and the write permissions of what root runs."""
    effective = _effective_capabilities()
    lacking = [number for number in _CAPABILITIES if not effective >> number & 1]
    for number in lacking:
        name, meaning = _CAPABILITIES[number]
        yield Finding(ERROR, f"this process lacks {name}", meaning, "run this, and the runtime, as root")
    if not lacking:
        yield Finding(OK, "this process may create links and rules, and enter namespaces")
    if os.statvfs("/proc/sys/net").f_flag & os.ST_RDONLY:
        yield Finding(
            WARNING,
            "/proc/sys is mounted read-only",
            "no plugin can enable forwarding, or set what tuning is configured to",
            "mount -o remount,rw /proc/sys",
        )
    for path in (node.conf_dir, *node.paths):
        if os.path.isdir(path) and os.stat(path).st_mode & stat.S_IWOTH:
            yield Finding(
                ERROR,
                f"any user may write to {path}",
                "root runs what is written there",
                f"chmod o-w {path}",
            )


def _effective_capabilities() -> int:
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("CapEff:"))
    return int(line.split()[1], 16)


# ---- the kernel's parameters ----


def check_sysctls(node: NodeState) -> Iterator[Finding]:
    """Check the parameters that forwarding of packets depends on."""
    view = node.view
    if view is None:
        return
    findings = [*_forwarding(view), *_reverse_paths(node, view), *_localnet(view), *_bridged(), *_tables()]
    if not any(finding.severity in (ERROR, WARNING) for finding in findings):
        yield Finding(OK, "forwarding, reverse paths and route_localnet are as they should be")
    yield from findings


def _forwarding(view: View) -> Iterator[Finding]:
    routed = [
        (attached, address)
        for attached in view.attached
        if attached.remembered.is_live
        for address in _routed(view, attached)
    ]
    for version, name in ((4, "net.ipv4.ip_forward"), (6, "net.ipv6.conf.all.forwarding")):
        networks = sorted({attached.network for attached, address in routed if address.version == version})
        if networks and _value(name) == "0":
            yield Finding(
                ERROR,
                f"{name} is 0",
                f"containers of {', '.join(networks)} reach nothing beyond the node: plugins enable it, "
                "and something has disabled it since",
                f"sysctl -w {name}=1, and find what resets it: grep -r {name} /etc/sysctl.conf /etc/sysctl.d",
            )


def _routed(view: View, attached: Attached) -> list[CIDR]:
    """Return the addresses of a container whose gateway is the node."""
    own = {address.ip for addresses in view.addresses.values() for address in addresses}
    return [ip.address for ip in attached.result.ips if ip.gateway and ip.gateway in own]


def _reverse_paths(node: NodeState, view: View) -> Iterator[Finding]:
    strict = [name for name in ("all", *view.links) if _value(f"net/ipv4/conf/{name}/rp_filter") == "1"]
    networks: dict[str, set[str]] = {}
    for attached in view.attached:
        networks.setdefault(attached.container_id, set()).add(attached.network)
    several = any(len(names) > 1 for names in networks.values()) or len(view.uplinks) > 1 or "sbr" in node.types
    if strict and several:
        yield Finding(
            NOTE,
            f"rp_filter is strict (1) on {', '.join(strict)}",
            "with several networks or uplinks a reply may take another route than its request, and is dropped then",
            "sysctl -w net.ipv4.conf.all.rp_filter=2",
        )


def _localnet(view: View) -> Iterator[Finding]:
    if _value("net.ipv4.conf.all.route_localnet") == "1":
        yield Finding(
            WARNING,
            "net.ipv4.conf.all.route_localnet is 1",
            "neighbours may reach services on the node's 127.0.0.1 (CVE-2020-8558)",
            "sysctl -w net.ipv4.conf.all.route_localnet=0",
        )
        return
    published = {
        attached.bridge or attached.port_name
        for attached in view.attached
        if attached.ports and _has_ipv4(attached.reported)
    }
    for name in sorted(published & view.links.keys()):
        if _value(f"net/ipv4/conf/{name}/route_localnet") == "0":
            yield Finding(
                WARNING,
                f"net.ipv4.conf.{name}.route_localnet is 0",
                "published ports do not answer on the node's 127.0.0.1; portmap enables it, unless snat is false",
                f"sysctl -w net.ipv4.conf.{name.replace('.', '/')}.route_localnet=1",
            )


def _has_ipv4(addresses: list[CIDR]) -> bool:
    return any(address.version == 4 for address in addresses)


def _bridged() -> Iterator[Finding]:
    value = _value("net.bridge.bridge-nf-call-iptables")
    if value == "1":
        yield Finding(
            NOTE,
            "net.bridge.bridge-nf-call-iptables is 1",
            "iptables' FORWARD sees packets between containers of one bridge, and may drop them; "
            "Kubernetes requires this",
            "without Kubernetes: sysctl -w net.bridge.bridge-nf-call-iptables=0",
        )


def _tables() -> Iterator[Finding]:
    used, room = (_value(f"net.netfilter.nf_conntrack_{name}") for name in ("count", "max"))
    if used.isdigit() and room.isdigit() and int(used) > _TABLE_IS_NEARLY_FULL * int(room):
        yield Finding(
            ERROR,
            f"the table of connections is nearly full: {used} of {room}",
            "when it is, new connections are dropped",
            f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(room)}",
        )


def _value(name: str) -> str:
    """Return the parameter in this network namespace; "" if it does not exist."""
    with NetNS.current() as own:
        try:
            return sysctl.read(own, sysctl.slashed(name))
        except OSError:
            return ""
