"""Firewalls that get in the containers' way, or in each other's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from cni.doctor.finding import Finding, Patient
from cni.doctor.forwarding import ACCEPT, DROP, PERHAPS, Nftables, Packet, of_iptables
from cni.netfilter.iptables import Iptables
from cni.netfilter.nftables import Nft
from cni.node import rules
from cni.node.attachments import Attached, View
from cni.node.severity import ERROR, NOTE, OK, WARNING
from cni.spec.errors import CNIError
from cni.spec.ip import IP
from cni.system import process
from cni_plugins.meta.firewall import firewalld

_LEGACY = "/proc/thread-self/net/ip_tables_names"
_IPTABLES_OWN = (("ip", "filter"), ("ip6", "filter"))  # what iptables-nft keeps in nftables

Fate = Callable[[Packet], str]


def check(patient: Patient) -> Iterator[Finding]:
    """Whether what the containers send, and what is sent to their published ports, gets through."""
    view = patient.view
    if view is None:
        return
    found = [*_firewalld(patient), *_both_iptables(), *_flushed(patient)]
    for name, fate in _hooks():
        found += _blocked(view, name, fate)
    if not any(finding.severity == ERROR for finding in found):
        yield Finding(OK, "no firewall drops what containers send, and all their rules are there")
    yield from found


def _hooks() -> Iterator[tuple[str, Fate]]:
    """Whatever judges what is forwarded."""
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
    for one in view.attached:
        for packet, blocked in _packets(view, one, out, into):
            verdict = fate(packet)
            if verdict == DROP:
                ip = packet.source if blocked is out else packet.destination or packet.source
                blocked.setdefault(one.network, (packet.arrives, ip))
            elif verdict == PERHAPS:
                unsure.add(one.network)
    for network, (link, ip) in sorted(out.items()):
        yield Finding(
            ERROR,
            f"{name} drops what containers of {network} send: no rule accepts it",
            f"such as {ip}, which arrives by {link}, is to be forwarded: containers reach nothing beyond the node",
            f'add {{"type": "firewall"}} to the plugins of {network} and attach anew, or: '
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


def _packets(view: View, one: Attached, out: Blocked, into: Blocked) -> Iterator[tuple[Packet, Blocked]]:
    """One that the container sends beyond the node, and one that comes to its published ports."""
    device = one.bridge or (one.port.name if one.port else "")
    if not one.one.is_alive or not device:
        return
    uplink = view.uplinks[0].name if view.uplinks else ""
    own = {address.ip for addresses in view.addresses.values() for address in addresses}
    for ip in one.result.ips:
        address = ip.address.ip
        if ip.gateway in own:
            yield Packet(device, address, uplink), out
            if one.ports:
                far = IP.parse("192.0.2.1" if address.version == 4 else "2001:db8::1")
                yield Packet(uplink, far, device, address), into


def _command(ip: IP) -> str:
    return Iptables(ip.version).command


# ---- which firewalls there are ----


def _firewalld(patient: Patient) -> Iterator[Finding]:
    if not firewalld.is_running(os.environ):
        return
    without = [each.name for each in patient.networks if not any(p.type == "firewall" for p in each.plugins)]
    if without:
        yield Finding(
            WARNING,
            f"firewalld runs, and the networks {', '.join(without)} have no firewall plugin",
            "what their containers send goes through the default zone, which rejects what it does not know; and each "
            "reload of firewalld takes other people's rules away",
            'add {"type": "firewall", "backend": "firewalld"} to their plugins; after reloads: cni firewall reload',
        )


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


def _flushed(patient: Patient) -> Iterator[Finding]:
    """Rules that attachments should have and that are gone."""
    if patient.view is None:
        return
    folders = sorted({one.one.folder for one in patient.view.attached})
    for each in rules.examine(folders, lambda _: None):
        if each.missing and not each.failure:
            yield Finding(
                ERROR,
                f"{len(each.missing)} rules of {each.remembered} are gone, such as: {each.missing[0]}",
                "someone has flushed the firewall since its ADD",
                "cni firewall reload",
            )
