"""Check for firewalls that drop containers' packets, or that conflict with each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from cni.doctor.finding import Finding, NodeState
from cni.doctor.forwarding import ACCEPT, DROP, PERHAPS, Nftables, Packet, of_iptables
from cni.netfilter.iptables import Iptables
from cni.netfilter.nftables import Nft
from cni.node import firewall_rules
from cni.node.attachments import Attached, View
from cni.node.formatting import counted
from cni.node.severity import ERROR, NOTE, OK, WARNING
from cni.runtime.conf import NetworkConfigList
from cni.spec.errors import CNIError
from cni.spec.ip import IP
from cni.system import process
from cni_plugins.meta.firewall import firewalld

_LEGACY = "/proc/thread-self/net/ip_tables_names"
_IPTABLES_OWN = (("ip", "filter"), ("ip6", "filter"))  # what iptables-nft keeps in nftables

Fate = Callable[[Packet], str]


def check(node: NodeState) -> Iterator[Finding]:
    """Check that packets of the containers, and to their published ports, are forwarded."""
    view = node.view
    if view is None:
        return
    findings = [*_firewalld(node), *_both_iptables(), *_flushed(node)]
    for name, fate in _hooks():
        findings += _blocked(view, name, fate)
    if not any(finding.severity == ERROR for finding in findings):
        yield Finding(OK, "no firewall drops what containers send, and all their rules are there")
    yield from findings


def _hooks() -> Iterator[tuple[str, Fate]]:
    """Yield the hooks that decide on forwarded packets: a name, and a function that returns a packet's fate."""
    for version in (4, 6):
        yield from _iptables_hook(Iptables(version))
    try:
        tables = Nftables(Nft().json("list ruleset"))
    except CNIError:
        return
    for chain in tables.forward_chains():
        if (chain["family"], chain["table"]) not in _IPTABLES_OWN or chain["name"] != "FORWARD":
            name = f"nftables' chain {chain['family']} {chain['table']} {chain['name']}"
            yield name, lambda packet, chain=chain: tables.fate(chain, packet)  # type: ignore[misc]


def _iptables_hook(iptables: Iptables) -> Iterator[tuple[str, Fate]]:
    try:
        declared = iptables.rules("filter", "FORWARD")
        table = iptables.table("filter")
    except CNIError:
        return
    if not declared:
        return
    policy = DROP if declared[0][-1] == "DROP" else ACCEPT

    def fate(packet: Packet) -> str:
        if packet.source.version != iptables.version:
            return ACCEPT
        return of_iptables(table, packet).fate("FORWARD", policy)

    yield f"{iptables.command}' FORWARD (policy {declared[0][-1]})", fate


def _blocked(view: View, name: str, fate: Fate) -> Iterator[Finding]:
    out: dict[str, tuple[str, IP]] = {}
    into: dict[str, tuple[str, IP]] = {}
    unsure: set[str] = set()
    for attached in view.attached:
        for packet, blocked in _packets(view, attached, out, into):
            verdict = fate(packet)
            if verdict == DROP:
                ip = packet.source if blocked is out else packet.destination or packet.source
                blocked.setdefault(attached.network, (packet.arrives, ip))
            elif verdict == PERHAPS:
                unsure.add(attached.network)
    for network, (link, ip) in sorted(out.items()):
        yield Finding(
            ERROR,
            f"{name} drops what containers of {network} send: no rule accepts it",
            f"such as {ip}, which arrives by {link}, is to be forwarded: containers reach nothing beyond the node",
            f'add {{"type": "firewall"}} to the plugins of {network} and attach again, or: '
            f"{_command(ip)} -I FORWARD -s {ip} -j ACCEPT",
        )
    for network, (_, ip) in sorted(into.items()):
        if network not in out:
            yield Finding(
                ERROR,
                f"{name} drops what is sent to published ports of {network}: no rule accepts it",
                f"such as to {ip}",
                f"{_command(ip)} -I FORWARD -d {ip} -m conntrack --ctstate DNAT -j ACCEPT",
            )
    for network in sorted(unsure - out.keys() - into.keys()):
        text = f"{name} may drop what containers of {network} send, or what is sent to their ports"
        yield Finding(NOTE, text, "it drops what no rule accepts, and not every rule could be understood")


Blocked = dict[str, tuple[str, IP]]


def _packets(view: View, attached: Attached, out: Blocked, into: Blocked) -> Iterator[tuple[Packet, Blocked]]:
    """Yield a packet that the container sends beyond the node, and one to its published ports."""
    device = attached.bridge or (attached.port.name if attached.port else "")
    if not attached.remembered.is_live or not device:
        return
    uplink = view.uplinks[0].name if view.uplinks else ""
    own = {address.ip for addresses in view.addresses.values() for address in addresses}
    for ip in attached.result.ips:
        address = ip.address.ip
        if ip.gateway in own:
            yield Packet(device, address, uplink), out
            if attached.ports:
                far = IP.parse("192.0.2.1" if address.version == 4 else "2001:db8::1")
                yield Packet(uplink, far, device, address), into


def _command(ip: IP) -> str:
    return Iptables(ip.version).command


# ---- which firewalls there are ----


def _firewalld(node: NodeState) -> Iterator[Finding]:
    if not firewalld.is_running(os.environ):
        return
    without = [network.name for network in node.networks if not _has_firewall(network)]
    if without:
        yield Finding(
            WARNING,
            f"firewalld runs, and the networks {', '.join(without)} have no firewall plugin",
            "packets of their containers go through the default zone, which rejects unknown ones; and each "
            "reload of firewalld removes the rules of other programs",
            'add {"type": "firewall", "backend": "firewalld"} to their plugins; after reloads: cni firewall reload',
        )


def _has_firewall(network: NetworkConfigList) -> bool:
    return any(plugin.type == "firewall" for plugin in network.plugins)


def _both_iptables() -> Iterator[Finding]:
    try:
        with open(_LEGACY) as file:
            legacy = file.read().split()
        version = process.run(["iptables", "--version"], timeout=10).stdout
    except OSError:
        return
    if legacy and b"nf_tables" in version:
        yield Finding(
            WARNING,
            f"iptables is the nf_tables variant, but there are tables of the legacy one as well: {' '.join(legacy)}",
            "packets go through both, and each tool shows only its own",
            "iptables-legacy-save shows them; move them, then: rmmod iptable_filter iptable_nat",
        )


def _flushed(node: NodeState) -> Iterator[Finding]:
    """Find rules that attachments must have and that are gone."""
    if node.view is None:
        return
    folders = sorted({attached.remembered.folder for attached in node.view.attached})
    for attachment in firewall_rules.examine(folders, lambda _: None):
        missing = attachment.missing
        if missing and not attachment.failure:
            yield Finding(
                ERROR,
                f"{attachment.remembered} lacks {counted(len(missing), 'rule')}, such as: {missing[0]}",
                "the firewall has been flushed since its ADD",
                "cni firewall reload",
            )
