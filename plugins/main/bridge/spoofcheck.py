"""MAC spoof check: drop frames that a container sends from a MAC other than its own, where they enter the bridge.

The layout is exactly the Go plugins', so that either side's plugins remove the other's rules. In table `bridge nat`,
PREROUTING jumps by the port's name to a chain for each attachment, which jumps to a second chain that tests the MAC.
The comment of every rule names its attachment.

`host` is the network namespace of the node; None is this process's own. Every function here may raise CNIError.
"""

from __future__ import annotations

from cni._core import Netlink
from cni.netfilter.nftables import Nft, NftError
from cni.spec import gojson
from cni.spec.errors import CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from cni.kernel.netns import NetNS
    from cni.netfilter import nftables

    Object = dict[str, Any]  # of libnftables-json(5), whose names may have characters that nft's own syntax rejects

_FAMILY, _TABLE, _ENTRY = "bridge", "nat", "PREROUTING"
_BASE = {"type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}
_MARK = "macspoofchk-"

_ATTEMPTS = 3  # retries, because another process may delete rules between list and delete


class _Owner:
    """The names of an attachment's chains, and the comment of its rules."""

    __slots__ = ("chain", "comment", "mac_chain")

    def __init__(self, comment: str) -> None:
        self.comment = comment
        self.chain = f"cni-br-iface-{comment.removeprefix(_MARK)}"
        self.mac_chain = f"{self.chain}-mac"

    @classmethod
    def of(cls, container_id: str, ifname: str) -> _Owner:
        return cls(f"{_MARK}{container_id}-{ifname}")

    def rules(self, port: str, mac: str) -> list[tuple[str, list[Object]]]:
        """Return the attachment's rules in order, each with its chain."""
        return [
            (_ENTRY, [_equal({"meta": {"key": "iifname"}}, port), {"jump": {"target": self.chain}}]),
            (self.chain, [{"jump": {"target": self.mac_chain}}]),
            (self.mac_chain, [_equal({"payload": {"protocol": "ether", "field": "saddr"}}, mac), {"return": None}]),
            (self.mac_chain, [{"drop": None}]),
        ]


def setup(port: str, mac: str, container_id: str, ifname: str, host: NetNS | None = None) -> None:
    """Drop frames that enter by the link `port` from a MAC other than `mac`. Replaces the attachment's old rules."""
    nft, owner = Nft(host), _Owner.of(container_id, ifname)
    rules = [
        _command("add", "rule", chain=chain, expr=statements, comment=owner.comment)
        for chain, statements in owner.rules(port, mac)
    ]
    try:
        # Nearly always this is enough. Adding a chain that exists would make the kernel wait for an RCU grace period
        # (10 ms) when our socket is closed. And if the chains do not exist, no rule can jump to them.
        _run(nft, [_chain("create", owner.mac_chain), _chain("create", owner.chain), *rules])
    except NftError:
        _replace(nft, owner, rules)


def _replace(nft: Nft, owner: _Owner, rules: list[Object]) -> None:
    base = [_command("add", "table", name=_TABLE), _chain("add", _ENTRY, **_BASE)]
    own = [_chain(verb, chain) for chain in (owner.chain, owner.mac_chain) for verb in ("add", "flush")]
    try:
        _run(nft, base + own + _deletions(_entries(nft, owner)) + rules)
    except NftError as error:
        raise error.prefixed("failed to setup spoof-check: ") from error


def check(port: str, mac: str, container_id: str, ifname: str, host: NetNS | None = None) -> None:
    """Raise CNIError unless all rules exist, and the attachment's own chains hold no others."""
    nft, owner = Nft(host), _Owner.of(container_id, ifname)
    wanted: dict[str, list[list[Object]]] = {}
    for chain, statements in owner.rules(port, mac):
        wanted.setdefault(chain, []).append(statements)
    for chain, rules in wanted.items():
        present = _rules(nft, chain)
        if not (rules[0] in present if chain == _ENTRY else rules == present):
            raise CNIError(
                f"{ifname} of {container_id} may spoof its MAC ({mac}, port {port}): "
                f"nftables chain {_FAMILY} {_TABLE} {chain} is not as ADD left it",
                details=f"it should have {gojson.dumps(rules)}",
            )


def teardown(container_id: str, ifname: str, host: NetNS | None = None) -> None:
    """Remove an attachment's rules and chains, found by their names, if there are any."""
    nft, owner = Nft(host), _Owner.of(container_id, ifname)

    def remove() -> None:
        entries = _entries(nft, owner)
        if entries or _rules(nft, owner.chain) or _rules(nft, owner.mac_chain):
            _run(nft, _removal(owner, entries))

    _retry(nft, remove)


def gc(valid: Iterable[tuple[str, str]], host: NetNS | None = None) -> None:
    """Remove the rules of attachments whose port no longer exists, except those in `valid`.

    `valid` has pairs of container id and interface name. No rule says which network it belongs to, so the rules of an
    existing port stay: they may be another network's.
    """
    nft = Nft(host)
    valid_comments = {_Owner.of(container_id, ifname).comment for container_id, ifname in valid}

    def collect() -> None:
        entries: dict[str, list[nftables.Rule]] = {}
        for rule in nft.rules(_FAMILY, _TABLE, _ENTRY):
            if rule.comment.startswith(_MARK) and rule.comment not in valid_comments:
                entries.setdefault(rule.comment, []).append(rule)
        # List the rules before looking up the ports: ADD creates the port before the rule.
        with Netlink(host.fd if host else -1) as node:
            stale = [comment for comment, rules in entries.items() if all(_is_stale(rule, node) for rule in rules)]
        if stale:
            _run(nft, [command for comment in stale for command in _removal(_Owner(comment), entries[comment])])

    _retry(nft, collect)


def _is_stale(rule: nftables.Rule, node: Netlink) -> bool:
    port, _, jump = rule.text.removeprefix('iifname "').partition('" ')
    return jump == f"jump {_Owner(rule.comment).chain}" and node.find_link(port) is None


def _retry(nft: Nft, work: Callable[[], None]) -> None:
    """Run `work`, with retries. The last failure counts only if nftables is usable, so that there can be rules."""
    for attempt in range(_ATTEMPTS):
        try:
            work()
            break
        except NftError as error:
            if attempt == _ATTEMPTS - 1 and nft.usable():
                raise error.prefixed("failed to teardown spoof-check: ") from error


def _run(nft: Nft, commands: list[Object]) -> list[Object]:
    return nft.json(gojson.dumps({"nftables": commands}))


def _entries(nft: Nft, owner: _Owner) -> list[nftables.Rule]:
    """Return the rules that jump to an attachment's chains, including stale ones."""
    return [rule for rule in nft.rules(_FAMILY, _TABLE, _ENTRY) if rule.comment == owner.comment]


def _rules(nft: Nft, chain: str) -> list[list[Object]]:
    """Return the statements of a chain's rules, in order; empty if there is no such chain, or its name is invalid."""
    try:
        listed = _run(nft, [_chain("list", chain)])
    except NftError:
        return []
    return [entry["rule"]["expr"] for entry in listed if "rule" in entry]


def _removal(owner: _Owner, entries: list[nftables.Rule]) -> list[Object]:
    chains = (owner.chain, owner.mac_chain)
    # Added first, so that deleting them cannot fail because another process has deleted one of them.
    added = [_chain("add", chain) for chain in chains]
    return added + _deletions(entries) + [_chain("delete", chain) for chain in chains]


def _deletions(entries: list[nftables.Rule]) -> list[Object]:
    return [_command("delete", "rule", chain=_ENTRY, handle=rule.handle) for rule in entries]


def _chain(verb: str, name: str, **properties: object) -> Object:
    return _command(verb, "chain", name=name, **properties)


def _command(verb: str, kind: str, **properties: object) -> Object:
    return {verb: {kind: {"family": _FAMILY, "table": _TABLE, **properties}}}


def _equal(left: Object, right: str) -> Object:
    return {"match": {"op": "==", "left": left, "right": right}}
