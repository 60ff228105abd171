"""Simulate a firewall: decide whether it accepts a packet that the node forwards, as far as its rules are understood.

A rule's match is True, False, or None if it is not understood. Such a rule gets the benefit of the doubt: a packet
counts as dropped only if no rule could accept it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cni.spec.ip import CIDR, IP

ACCEPT, DROP, PERHAPS = "accept", "drop", "perhaps"

_JUMP, _GOTO, _RETURN = "jump", "goto", "return"
_MAX_DEPTH = 32  # jumps
_IPTABLES_VERDICTS = {"ACCEPT": ACCEPT, "DROP": DROP, "REJECT": DROP, "RETURN": _RETURN}
_NFT_VERDICTS = {"accept": ACCEPT, "drop": DROP, "reject": DROP, "return": _RETURN}
_STATES = ("NEW", "new")


class Packet:
    """The first packet of a connection; `arrives` and `leaves` are names of links, "" if they are unknown."""

    def __init__(self, arrives: str, source: IP, leaves: str = "", destination: IP | None = None) -> None:
        self.arrives = arrives
        self.leaves = leaves
        self.source = source
        self.destination = destination


class Rule:
    """A rule as one packet sees it. `verdict` on a match is ACCEPT, DROP, or a jump to the chain `target`."""

    def __init__(self, matches: bool | None, verdict: str, target: str = "") -> None:
        self.matches = matches
        self.verdict = verdict
        self.target = target


class Chains:
    """Chains of rules, as one packet sees them."""

    def __init__(self, chains: dict[str, list[Rule]]) -> None:
        self._chains = chains
        self._is_unsure = False

    def fate(self, chain: str, policy: str) -> str:
        """Return ACCEPT, DROP, or PERHAPS if a rule that is not understood may accept the packet."""
        self._is_unsure = False
        verdict = self._walk(chain, 0) or policy
        return PERHAPS if verdict == DROP and self._is_unsure else verdict

    def _walk(self, chain: str, depth: int) -> str:
        for rule in self._chains.get(chain, ()) if depth < _MAX_DEPTH else ():
            if rule.matches is None:
                self._is_unsure |= rule.verdict == ACCEPT or self._may_accept(rule.target, depth)
            elif rule.matches and rule.verdict in (ACCEPT, DROP):
                return rule.verdict
            elif rule.matches and rule.verdict == _RETURN:
                return ""
            elif rule.matches and rule.verdict in (_JUMP, _GOTO):
                verdict = self._walk(rule.target, depth + 1)
                if verdict or rule.verdict == _GOTO:
                    return verdict
        return ""

    def _may_accept(self, chain: str, depth: int) -> bool:
        return depth < _MAX_DEPTH and any(
            rule.matches is not False and (rule.verdict == ACCEPT or self._may_accept(rule.target, depth + 1))
            for rule in self._chains.get(chain, ())
        )


# ---- iptables ----


def of_iptables(table: dict[str, list[list[str]]], packet: Packet) -> Chains:
    """Return the chains of a table, as Iptables.table() lists them, for one packet."""
    chains = {name: [_iptables_rule(rule, packet, table) for rule in rules] for name, rules in table.items()}
    return Chains(chains)


def _iptables_rule(rule: list[str], packet: Packet, table: dict[str, list[list[str]]]) -> Rule:
    words = iter(rule[2:])
    matches: list[bool | None] = []
    is_negated = False
    for word in words:
        if word == "!":
            is_negated = True
            continue
        if word in ("-j", "-g"):
            target = next(words, "")
            jump = _JUMP if word == "-j" else _GOTO
            verdict = jump if target in table else _IPTABLES_VERDICTS.get(target, "")
            return Rule(_all(matches), verdict, target if target in table else "")
        matches += _iptables_match(word, words, packet, is_negated)
        is_negated = False
    return Rule(_all(matches), "")


def _iptables_match(word: str, words: Iterator[str], packet: Packet, is_negated: bool) -> list[bool | None]:
    if word == "-m":
        next(words, "")  # the options that follow are the match
        return []
    if word == "--comment":
        next(words, "")
        return []
    value = next(words, "")
    match word:
        case "-s":
            matches = _is_in(packet.source, value)
        case "-d":
            matches = _is_in(packet.destination, value)
        case "-i":
            matches = _is_link(packet.arrives, value)
        case "-o":
            matches = _is_link(packet.leaves, value)
        case "--ctstate" | "--state":
            matches = any(state in value.split(",") for state in _STATES)
        case _:
            matches = None
    return [matches if matches is None else matches != is_negated]


def _all(matches: Iterable[bool | None]) -> bool | None:
    results = list(matches)
    if False in results:
        return False
    return None if None in results else True


def _is_in(ip: IP | None, network: str) -> bool | None:
    if ip is None:
        return None
    try:
        return ip in CIDR.parse(network) if "/" in network else ip == IP.parse(network)
    except ValueError:
        return None


def _is_link(name: str, pattern: str) -> bool | None:
    if not name:
        return None
    return name.startswith(pattern[:-1]) if pattern[-1:] in ("+", "*") else name == pattern


# ---- nftables ----


class Nftables:
    """The tables of a `list ruleset`, as libnftables-json(5) has them."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self._objects = objects
        self._sets = {
            (elements["family"], elements["table"], elements["name"]): elements.get("elem", [])
            for entry in objects
            for kind in ("set", "map")
            if (elements := entry.get(kind))
        }

    def forward_chains(self) -> list[dict[str, Any]]:
        """Return the base chains for forwarded IP packets."""
        chains = [entry["chain"] for entry in self._objects if "chain" in entry]
        families = ("ip", "ip6", "inet")
        return [chain for chain in chains if chain.get("hook") == "forward" and chain["family"] in families]

    def fate(self, chain: dict[str, Any], packet: Packet) -> str:
        """Return what a base chain does with the packet."""
        family = chain["family"]
        if family in ("ip", "ip6") and (family == "ip") != (packet.source.version == 4):
            return ACCEPT
        where = (family, chain["table"])
        chains: dict[str, list[Rule]] = {}
        for entry in self._objects:
            rule = entry.get("rule")
            if rule and (rule["family"], rule["table"]) == where:
                chains.setdefault(rule["chain"], []).append(self._rule(rule["expr"], packet, where))
        return Chains(chains).fate(chain["name"], DROP if chain.get("policy") == "drop" else ACCEPT)

    def _rule(self, expressions: list[dict[str, Any]], packet: Packet, where: tuple[str, str]) -> Rule:
        matches: list[bool | None] = []
        for expression in expressions:
            ((kind, content),) = expression.items()
            if kind == "match":
                matches.append(self._match(content, packet, where))
            elif kind in _NFT_VERDICTS:
                return Rule(_all(matches), _NFT_VERDICTS[kind])
            elif kind in (_JUMP, _GOTO):
                return Rule(_all(matches), kind, content["target"])
            elif kind in ("vmap", "xt"):
                return Rule(None if _all(matches) is not False else False, ACCEPT)
        return Rule(_all(matches), "")

    def _match(self, content: dict[str, Any], packet: Packet, where: tuple[str, str]) -> bool | None:
        is_equal = self._compare(content["left"], content["right"], packet, where)
        return is_equal if is_equal is None else is_equal != (content["op"] == "!=")

    def _compare(self, left: Any, right: Any, packet: Packet, where: tuple[str, str]) -> bool | None:
        values = list(self._values(right, where))
        match left:
            case {"payload": {"protocol": "ip" | "ip6" as protocol, "field": "saddr" | "daddr" as field}}:
                ip = packet.source if field == "saddr" else packet.destination
                if (protocol == "ip") != (packet.source.version == 4):
                    return False
                return _any(_holds(ip, value) for value in values)
            case {"meta": {"key": "iifname" | "iif" | "oifname" | "oif" as key}}:
                name = packet.arrives if key.startswith("iif") else packet.leaves
                return _any(_is_link(name, str(value)) for value in values)
            case {"meta": {"key": "nfproto"}}:
                return ("ipv4" if packet.source.version == 4 else "ipv6") in values
            case {"ct": {"key": "state"}}:
                return any(state in values for state in _STATES)
        return None

    def _values(self, right: Any, where: tuple[str, str]) -> Iterator[Any]:
        """Yield the values to compare with, the elements of a set one by one."""
        if isinstance(right, str) and right.startswith("@"):
            right = self._sets.get((*where, right[1:]), [])
        elif isinstance(right, dict) and "set" in right:
            right = right["set"]
        for value in right if isinstance(right, list) else [right]:
            yield value["elem"]["val"] if isinstance(value, dict) and "elem" in value else value


def _any(matches: Iterable[bool | None]) -> bool | None:
    results = list(matches)
    if True in results:
        return True
    return None if None in results else False


def _holds(ip: IP | None, value: Any) -> bool | None:
    match value:
        case str(text):
            return _is_in(ip, text)
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            return _is_in(ip, f"{address}/{length}")
        case {"range": [str(first), str(last)]} if ip:
            return int(IP.parse(first)) <= int(ip) <= int(IP.parse(last))
    return None
