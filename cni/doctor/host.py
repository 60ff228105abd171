"""What is around the kernel: programs, permissions, and the kernel's parameters."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator

from cni.doctor.finding import Finding, Patient
from cni.kernel import sysctl
from cni.kernel.netns import NetNS
from cni.netfilter.nftables import Nft
from cni.node.attachments import Attached, View
from cni.node.severity import ERROR, NOTE, OK, WARNING
from cni.spec.ip import CIDR

_CAPABILITIES = {  # linux/capability.h
    12: ("CAP_NET_ADMIN", "links, addresses, routes and rules are made with it"),
    13: ("CAP_NET_RAW", "iptables and the dhcp plugin need it"),
    21: ("CAP_SYS_ADMIN", "the containers' namespaces are entered with it"),
}
_PROGRAMS = (
    ("iptables", "the rules of networks whose backend is iptables, the default, need it", "iptables"),
    ("ip6tables", "the rules of IPv6 networks whose backend is iptables, the default, need it", "iptables"),
    ("nft", "only a person needs it: plugins use libnftables", "nftables"),
    ("ip", "only a person needs it; many cures begin with it", "iproute2"),
)
_MASQUERADING = ("bridge", "ptp", "portmap", "firewall")
_TABLE_IS_NEARLY_FULL = 0.9


def check_tools(patient: Patient) -> Iterator[Finding]:
    """The programs that plugins start."""
    found = [name for name, _, _ in _PROGRAMS if shutil.which(name)]
    in_process, usable = Nft().in_process, Nft().usable()
    libraries = ["libnftables"] if in_process else []
    yield Finding(OK, f"there are {', '.join([*found, *libraries])}")
    needed = any(name in patient.types for name in _MASQUERADING)
    for name, meaning, package in _PROGRAMS:
        if name in found:
            continue
        matters = name == "iptables" or (name == "nft" and not in_process)
        severity = (ERROR if needed and not usable else WARNING) if matters else NOTE
        yield Finding(severity, f"{name} is not installed", meaning, f"install the package {package}")
    if usable or not needed:
        return
    yield Finding(
        WARNING if "iptables" in found else ERROR,
        "nftables cannot be used",
        "networks whose backend is nftables cannot be attached to",
        "install libnftables (Debian: libnftables1), version 1.0.1 or newer, and run as root",
    )


def check_permissions(patient: Patient) -> Iterator[Finding]:
    """What this user may, which is to be what the runtime's may; and who else may change what root runs."""
    mine = _effective_capabilities()
    lacking = [number for number in _CAPABILITIES if not mine >> number & 1]
    for number in lacking:
        name, meaning = _CAPABILITIES[number]
        yield Finding(ERROR, f"this process lacks {name}", meaning, "run this, and the runtime, as root")
    if not lacking:
        yield Finding(OK, "this process may make links and rules, and enter namespaces")
    if os.statvfs("/proc/sys/net").f_flag & os.ST_RDONLY:
        yield Finding(
            WARNING,
            "/proc/sys is mounted read-only",
            "no plugin can switch forwarding on, nor set what tuning asks for",
            "mount -o remount,rw /proc/sys",
        )
    for path in (patient.conf_dir, *patient.paths):
        if os.path.isdir(path) and os.stat(path).st_mode & stat.S_IWOTH:
            yield Finding(
                ERROR,
                f"anybody may write to {path}",
                "who writes there has root run what he wants",
                f"chmod o-w {path}",
            )


def _effective_capabilities() -> int:
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("CapEff:"))
    return int(line.split()[1], 16)


# ---- the kernel's parameters ----


def check_sysctls(patient: Patient) -> Iterator[Finding]:
    """Those without which packets do not get where they belong."""
    view = patient.view
    if view is None:
        return
    found = [*_forwarding(view), *_reverse_paths(patient, view), *_localnet(view), *_bridged(), *_tables()]
    if not any(finding.severity in (ERROR, WARNING) for finding in found):
        yield Finding(OK, "forwarding, reverse paths and route_localnet are as they should be")
    yield from found


def _forwarding(view: View) -> Iterator[Finding]:
    routed = [(one, address) for one in view.attached if one.one.is_alive for address in _routed(view, one)]
    for version, name in ((4, "net.ipv4.ip_forward"), (6, "net.ipv6.conf.all.forwarding")):
        networks = sorted({one.network for one, address in routed if address.version == version})
        if networks and _value(name) == "0":
            yield Finding(
                ERROR,
                f"{name} is 0",
                f"containers of {', '.join(networks)} reach nothing beyond the node: plugins switch it on, "
                "and something has switched it off since",
                f"sysctl -w {name}=1, and look for who resets it: grep -r {name} /etc/sysctl.conf /etc/sysctl.d",
            )


def _routed(view: View, one: Attached) -> list[CIDR]:
    """The addresses of a container that the node is the gateway of."""
    own = {address.ip for addresses in view.addresses.values() for address in addresses}
    return [ip.address for ip in one.result.ips if ip.gateway and ip.gateway in own]


def _reverse_paths(patient: Patient, view: View) -> Iterator[Finding]:
    strict = [name for name in ("all", *view.links) if _value(f"net/ipv4/conf/{name}/rp_filter") == "1"]
    networks: dict[str, set[str]] = {}
    for one in view.attached:
        networks.setdefault(one.container_id, set()).add(one.network)
    several = any(len(names) > 1 for names in networks.values()) or len(view.uplinks) > 1 or "sbr" in patient.types
    if strict and several:
        yield Finding(
            NOTE,
            f"rp_filter is strict (1) on {', '.join(strict)}",
            "with several networks or uplinks an answer may take another way than its question, and is dropped then",
            "sysctl -w net.ipv4.conf.all.rp_filter=2",
        )


def _localnet(view: View) -> Iterator[Finding]:
    if _value("net.ipv4.conf.all.route_localnet") == "1":
        yield Finding(
            WARNING,
            "net.ipv4.conf.all.route_localnet is 1",
            "neighbours may reach what listens on the node's 127.0.0.1 (CVE-2020-8558)",
            "sysctl -w net.ipv4.conf.all.route_localnet=0",
        )
        return
    published = {one.bridge or one.port_name for one in view.attached if one.ports and _has_ipv4(one.reported)}
    for name in sorted(published & view.links.keys()):
        if _value(f"net/ipv4/conf/{name}/route_localnet") == "0":
            yield Finding(
                WARNING,
                f"net.ipv4.conf.{name}.route_localnet is 0",
                "published ports do not answer on the node's 127.0.0.1; portmap switches it on, unless snat is false",
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
            "iptables' FORWARD sees what containers of one bridge send to each other, and may drop it; "
            "Kubernetes wants it so",
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
    """The parameter in this network namespace; "" where there is none."""
    with NetNS.current() as own:
        try:
            return sysctl.read(own, sysctl.slashed(name))
        except OSError:
            return ""
