"""What is kept on the node, and whether it is still so: attachments, reservations, links and rules left behind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from cni._core import Link
from cni.doctor.finding import Finding, Patient
from cni.netfilter.iptables import Iptables
from cni.netfilter.nftables import Nft
from cni.node.attachments import View, cnitool
from cni.node.leftovers import OVER, UNKNOWN
from cni.node.severity import ERROR, NOTE, OK, WARNING
from cni.node.topology import MISSING, Topology
from cni.spec.errors import CNIError

_COLLECT = "cni gc --dry-run tells what would be done; then: cni gc"
_MANY = 5  # of a kind, that are named one by one
_OWNER = re.compile(r'name: \\?"([^"\\]+)\\?" id: \\?"([^"\\]+)\\?"')  # cni.netfilter.naming.rule_comment
_NFT_OWNER = re.compile(r"net: ([^,]+), if: ([^,]+), id: ([^\"]+)")  # cni.netfilter.naming.owner_comment
# Without one portmap has nothing to take back; which ones there were its chains tell.
_SOME_PORT = '{"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "tcp"}]}'
_IFB = "bwp"  # what bandwidth calls its links


def check_attachments(patient: Patient) -> Iterator[Finding]:
    """Each attachment is as ADD left it."""
    view = patient.view
    if view is None:
        yield Finding(ERROR, f"the node's state cannot be read: {patient.failure}", "", "run this as root")
        return
    for line in patient.warnings:
        yield Finding(WARNING, line, "what cannot be read is left out of all that follows")
    gone = [segment for segment in Topology(view).segments if segment.state == MISSING and segment.device]
    for segment in gone:
        alive = [one for one in segment.attached if one.one.is_alive]
        if not alive:
            continue
        containers = ", ".join(sorted({one.title for one in alive}))
        yield Finding(
            ERROR,
            f"{segment.about}: {segment.device} is gone",
            f"containers that were on it have no network: {containers}",
            f"restart them: the first one attached makes {segment.device} again; or attach each anew:\n"
            + "\n".join(one.again for one in alive),
        )
    told = {one.key for segment in gone for one in (each.one for each in segment.attached)}
    healthy = 0
    for each in view.attached:
        # What is over is a leftover, and told as that.
        problems = each.problems if each.one.verdict != OVER else []
        if each.one.key in told:
            problems = [problem for problem in problems if each.bridge not in problem.text.split()]
        for problem in problems:
            yield Finding(problem.severity, f"{each}: {problem.text}", "it is not as ADD left it", problem.cure)
        healthy += not each.problems
    words = (
        f"attachments that are as ADD left them: {healthy} of {len(view.attached)}"
        if view.attached
        else "nothing is attached"
    )
    yield Finding(OK if healthy == len(view.attached) else NOTE, words)


def check_leftovers(patient: Patient) -> Iterator[Finding]:
    """What attachments left behind that are over."""
    view = patient.view
    if view is None:
        return
    found = [*_remembered(view), *_stray_ports(view), *_stray_shapers(view), *_stray_rules(view)]
    if not found:
        yield Finding(OK, "nothing is left of containers that are gone")
    yield from found


def _remembered(view: View) -> Iterator[Finding]:
    findings = [*view.leftovers.attachments, *view.leftovers.reservations]
    meanings = {
        "attachment": "its rules and addresses stay until its runtime, or cni gc, deletes it",
        "reservation": "the address is given to nobody else",
    }
    for kind, meaning in meanings.items():
        over = [each for each in findings if each.kind == kind and each.verdict == OVER]
        for each in over[:_MANY]:
            text = f"stale {kind}: {str(each).removeprefix(kind).strip()}: {each.reason}"
            yield Finding(WARNING, text, meaning, _COLLECT)
        if len(over) > _MANY:
            yield Finding(WARNING, f"{len(over) - _MANY} more stale {kind}s", meaning, _COLLECT)
    unknown = [each for each in findings if each.verdict == UNKNOWN]
    if unknown:
        text = f"{len(unknown)} reservations may be stale, such as {unknown[0]}: {unknown[0].reason}"
        cure = "run this where all processes are seen, or: cni gc --trust-cache"
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
    known = {interface.name for one in view.attached for interface in one.result.interfaces}
    for link in view.links.values():
        if _is_shaper(link) and link.name not in known:
            text = f"{link.name} limited the bandwidth of an attachment that nobody remembers"
            yield Finding(WARNING, text, "a leftover of the plugin bandwidth", f"ip link delete {link.name}")


def _is_shaper(link: Link) -> bool:
    return link.kind == "ifb" and link.name.startswith(_IFB)


def _stray_rules(view: View) -> Iterator[Finding]:
    """Rules whose comments name an attachment that nobody remembers."""
    known = {(one.network, one.container_id) for one in view.attached}
    stray: dict[tuple[str, str], dict[str, str]] = {}  # by where the rules are, of which interface
    for where, comment in _comments():
        for network, ifname, container_id in _owners(comment):
            if not any(net == network and one.startswith(container_id) for net, one in known):
                stray.setdefault((network, container_id), {})[where] = ifname
    for (network, container_id), places in list(stray.items())[:_MANY]:
        ifname = next(filter(None, places.values()), "")
        variables = {"CNI_CONTAINERID": container_id, "CNI_IFNAME": ifname, "CAP_ARGS": _SOME_PORT}
        yield Finding(
            WARNING,
            f"no runtime remembers {container_id} of network {network}, which has rules in {' and '.join(places)}",
            "if its address is given to another container, they are about that one",
            cnitool(("del",), network, "", **variables),
        )
    if len(stray) > _MANY:
        yield Finding(WARNING, f"there are rules of {len(stray) - _MANY} more containers that no runtime remembers")


def _owners(comment: str) -> Iterable[tuple[str, str, str]]:
    """Network, interface ("" where that is not told) and container."""
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
        # As JSON: as text libnftables complains on stderr about what iptables-nft keeps there, which has been seen.
        objects = Nft().json("list ruleset")
    except CNIError:
        return
    for comment in _commented(objects):
        yield "nftables", comment


def _commented(value: Any) -> Iterator[str]:
    """The comments of rules and elements, wherever libnftables-json(5) has them."""
    if isinstance(value, dict) and isinstance(value.get("comment"), str):
        yield value["comment"]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _commented(inner)
