"""Check the attachments, and find what is left of others: reservations, links and rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from cni._core import Link
from cni.doctor.finding import Finding, NodeState
from cni.netfilter.iptables import Iptables
from cni.netfilter.nftables import Nft
from cni.node.attachments import View, cnitool
from cni.node.formatting import counted
from cni.node.severity import ERROR, NOTE, OK, WARNING
from cni.node.staleness import STALE, UNKNOWN
from cni.node.topology import MISSING, Topology
from cni.spec.errors import CNIError

_COLLECT = "cni gc --dry-run prints what would be done; then: cni gc"
_MAX_NAMED = 5  # leftovers of a kind that are reported one by one
_OWNER = re.compile(r'name: \\?"([^"\\]+)\\?" id: \\?"([^"\\]+)\\?"')  # cni.netfilter.naming.rule_comment
_NFT_OWNER = re.compile(r"net: ([^,]+), if: ([^,]+), id: ([^\"]+)")  # cni.netfilter.naming.owner_comment
# Without a mapping portmap's DEL does nothing; with one it deletes all mappings of the container.
_SOME_PORT = '{"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "tcp"}]}'
_IFB = "bwp"  # how the names of bandwidth's links begin


def check_attachments(node: NodeState) -> Iterator[Finding]:
    """Check that each attachment is as ADD left it."""
    view = node.view
    if view is None:
        yield Finding(ERROR, f"the node's state cannot be read: {node.failure}", "", "run this as root")
        return
    for line in node.warnings:
        yield Finding(WARNING, line, "what cannot be read is left out of the following")
    gone = [segment for segment in Topology(view).segments if segment.state == MISSING and segment.device]
    for segment in gone:
        live = [attached for attached in segment.attached if attached.remembered.is_live]
        if not live:
            continue
        containers = ", ".join(sorted({attached.title for attached in live}))
        yield Finding(
            ERROR,
            f"{segment.about}: {segment.device} is gone",
            f"containers that were on it have no network: {containers}",
            f"restart them: the first one attached creates {segment.device}; or attach each again:\n"
            + "\n".join(attached.reattach_command for attached in live),
        )
    reported = {attached.remembered.key for segment in gone for attached in segment.attached}
    healthy = 0
    for attached in view.attached:
        # A stale attachment is reported as a leftover.
        problems = attached.problems if attached.remembered.verdict != STALE else []
        if attached.remembered.key in reported:
            problems = [problem for problem in problems if attached.bridge not in problem.text.split()]
        for problem in problems:
            yield Finding(problem.severity, f"{attached}: {problem.text}", "it is not as ADD left it", problem.cure)
        healthy += not attached.problems
    text = (
        f"attachments that are as ADD left them: {healthy} of {len(view.attached)}"
        if view.attached
        else "nothing is attached"
    )
    yield Finding(OK if healthy == len(view.attached) else NOTE, text)


def check_leftovers(node: NodeState) -> Iterator[Finding]:
    """Find stale attachments and reservations, and links and rules of no attachment."""
    view = node.view
    if view is None:
        return
    findings = [*_stale(view), *_stray_ports(view), *_stray_shapers(view), *_stray_rules(view)]
    if not findings:
        yield Finding(OK, "nothing is left of containers that are gone")
    yield from findings


def _stale(view: View) -> Iterator[Finding]:
    candidates = [*view.leftovers.attachments, *view.leftovers.reservations]
    meanings = {
        "attachment": "its rules and addresses stay until its runtime, or cni gc, deletes it",
        "reservation": "the address is assigned to no other container",
    }
    for kind, meaning in meanings.items():
        stale = [candidate for candidate in candidates if candidate.kind == kind and candidate.verdict == STALE]
        for candidate in stale[:_MAX_NAMED]:
            text = f"stale {kind}: {str(candidate).removeprefix(kind).strip()}: {candidate.reason}"
            yield Finding(WARNING, text, meaning, _COLLECT)
        if len(stale) > _MAX_NAMED:
            yield Finding(WARNING, counted(len(stale) - _MAX_NAMED, f"more stale {kind}"), meaning, _COLLECT)
    unknown = [candidate for candidate in candidates if candidate.verdict == UNKNOWN]
    if unknown:
        text = f"{counted(len(unknown), 'reservation')} may be stale, such as {unknown[0]}: {unknown[0].reason}"
        cure = "run this where all processes are visible, or: cni gc --trust-cache"
        yield Finding(NOTE, text, "they are left alone", cure)


def _stray_ports(view: View) -> Iterator[Finding]:
    for segment in Topology(view).segments:
        for link in segment.strays:
            yield Finding(
                WARNING,
                f"{link.name} is a port of {segment.device}, but belongs to no attachment that a runtime remembers",
                "a container whose runtime keeps its cache elsewhere (--cache-dir), or a leftover",
                f"if it is a leftover: ip link delete {link.name}",
            )


def _stray_shapers(view: View) -> Iterator[Finding]:
    names = {interface.name for attached in view.attached for interface in attached.result.interfaces}
    for link in view.links.values():
        if _is_shaper(link) and link.name not in names:
            text = f"{link.name} limited the bandwidth of an attachment that no runtime remembers"
            yield Finding(WARNING, text, "a leftover of the plugin bandwidth", f"ip link delete {link.name}")


def _is_shaper(link: Link) -> bool:
    return link.kind == "ifb" and link.name.startswith(_IFB)


def _stray_rules(view: View) -> Iterator[Finding]:
    """Find rules whose comments name an attachment that no runtime remembers."""
    cached = {(attached.network, attached.container_id) for attached in view.attached}
    stray: dict[tuple[str, str], dict[str, str]] = {}  # by where the rules are, the interface
    for where, comment in _comments():
        for network, ifname, container_id in _owners(comment):
            if not any(net == network and full_id.startswith(container_id) for net, full_id in cached):
                stray.setdefault((network, container_id), {})[where] = ifname
    for (network, container_id), places in list(stray.items())[:_MAX_NAMED]:
        ifname = next(filter(None, places.values()), "")
        variables = {"CNI_CONTAINERID": container_id, "CNI_IFNAME": ifname, "CAP_ARGS": _SOME_PORT}
        yield Finding(
            WARNING,
            f"no runtime remembers {container_id} of network {network}, which has rules in {' and '.join(places)}",
            "if its address is assigned to another container, they apply to that one",
            cnitool(("del",), network, "", **variables),
        )
    if len(stray) > _MAX_NAMED:
        more = counted(len(stray) - _MAX_NAMED, "more container")
        yield Finding(WARNING, f"there are rules of {more} that no runtime remembers")


def _owners(comment: str) -> Iterable[tuple[str, str, str]]:
    """Yield network, interface ("" if the comment does not name it) and container."""
    for network, container_id in _OWNER.findall(comment):
        yield network, "", container_id.removesuffix("...")
    yield from _NFT_OWNER.findall(comment)


def _comments() -> Iterator[tuple[str, str]]:
    for version in (4, 6):
        iptables = Iptables(version)
        try:
            rules = [rule for chain in iptables.table("nat").values() for rule in chain]
        except CNIError:
            continue
        for rule in rules:
            if "--comment" in rule:
                yield iptables.command, rule[rule.index("--comment") + 1]
    try:
        # As JSON: for text, libnftables was seen to complain on stderr about what iptables-nft keeps there.
        objects = Nft().json("list ruleset")
    except CNIError:
        return
    for comment in _commented(objects):
        yield "nftables", comment


def _commented(value: Any) -> Iterator[str]:
    """Yield the comments of rules and elements, wherever libnftables-json(5) has them."""
    if isinstance(value, dict) and isinstance(value.get("comment"), str):
        yield value["comment"]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _commented(inner)
