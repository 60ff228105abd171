"""Port mappings in iptables, laid out as by the Go plugin, so that either's DEL clears the other's rules. Table `nat`:

    PREROUTING, OUTPUT    what is for the node itself  -> CNI-HOSTPORT-DNAT
    CNI-HOSTPORT-DNAT     an attachment's host ports   -> CNI-DN-<hash of network and container>
    CNI-DN-<hash>         for each mapping: what is to be masqueraded -> CNI-HOSTPORT-SETMARK, which marks it; then DNAT
    POSTROUTING           everything -> CNI-HOSTPORT-MASQ, which masquerades what bears the mark

The rules are appended (CVE-2019-9946: who goes first takes other people's traffic). The one of POSTROUTING has to be
ahead of those that ipMasq puts there, which accept what a container sends to its own network; it takes a place before
the first rule of the CNI plugins', and so overtakes nobody else's.
"""

from __future__ import annotations

from cni.netfilter.iptables import Iptables, IptablesError
from cni.netfilter.naming import chain_name, rule_comment
from cni.spec.errors import CNIError
from cni.spec.ip import IP
from cni_plugins.meta.portmap.forwarding import LOOPBACK, MANY, Forwarding, Port, portions, taken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.kernel.netns import NetNS
    from cni.netfilter.iptables import Rule
    from cni.netfilter.ruleset import Ruleset

_TABLE = "nat"
_ENTRY, _SETMARK, _MASQ = "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"
_LONGEST_COMMENT = 255  # bytes, iptables' limit

# Where plugins before v0.7.0 masqueraded, with a chain for each container.
_OLD_ENTRY, _OLD_PREFIX = "CNI-HOSTPORT-SNAT", "SN-"


def describe(ruleset: Ruleset, forwarding: Forwarding) -> None:
    """Have the ruleset hold what the attachment needs in its family."""
    chain = _chain(forwarding)
    ruleset.ensure_iptables(
        forwarding.version,
        _TABLE,
        own=[["-N", chain], *own_rules(forwarding)],
        shared=shared_rules(forwarding),
        stale=lambda rule: rule[-2:] == ["-j", chain],
        insert_before=lambda rule: rule[-2] == "-j" and rule[-1].startswith("CNI-"),
    )


def shared_rules(forwarding: Forwarding) -> list[Rule]:
    """The chains that attachments have in common, and what leads there."""
    rules = []
    if forwarding.masquerades and not forwarding.mark_chain:
        mark = f"{1 << forwarding.mark_bit:#x}"
        masq_comment = ["-m", "comment", "--comment", "CNI portfwd requiring masquerade"]
        mark_comment = ["-m", "comment", "--comment", "CNI portfwd masquerade mark"]
        rules = [
            ["-N", _SETMARK],
            ["-A", _SETMARK, *mark_comment, "-j", "MARK", "--set-xmark", f"{mark}/{mark}"],
            ["-N", _MASQ],
            ["-A", _MASQ, "-m", "mark", "--mark", f"{mark}/{mark}", "-j", "MASQUERADE"],
            ["-I", "POSTROUTING", *masq_comment, "-j", _MASQ],
        ]
    rules += [["-N", _ENTRY]]
    rules += [
        ["-A", chain, "-m", "addrtype", "--dst-type", "LOCAL", "-j", _ENTRY] for chain in ("PREROUTING", "OUTPUT")
    ]
    return rules


def own_rules(forwarding: Forwarding) -> list[Rule]:
    """Those of the attachment's chain, and those that lead there."""
    return _mappings(forwarding) + _entries(forwarding)


def refuse_taken(forwarding: Forwarding, host: NetNS | None) -> None:
    """Raise CNIError if a port leads to another container already: by a rule before ours, which wins.

    To be asked once our rules are there: of two attachments made at the same time one at least is told so.
    """
    iptables = Iptables(forwarding.version, host)
    for entry in _rivals(forwarding, iptables.listing(_TABLE, _ENTRY)):
        for other in _mapped(iptables.listing(_TABLE, entry[-1])):
            if port := forwarding.clash(other):
                network, _, container_id = (
                    _argument(entry, "--comment").removeprefix('dnat name: "').partition('" id: "')
                )
                raise taken(port, container_id.rstrip('"'), network)


def check(forwarding: Forwarding, host: NetNS | None) -> None:
    """Raise CNIError that names the first rule or chain that is missing."""
    iptables = Iptables(forwarding.version, host)
    present = iptables.table(_TABLE)
    for rule in [*shared_rules(forwarding), ["-N", _chain(forwarding)], *own_rules(forwarding)]:
        chain = rule[1]
        if chain not in present:
            raise _missing(forwarding, f"chain {chain} not found in {iptables.command} table {_TABLE}")
        if rule[0] != "-N" and ["-A", *rule[1:]] not in present[chain] and not _holds(iptables, forwarding, rule):
            raise _missing(forwarding, f"rule {rule[2:]} in chain {chain} not found in table {_TABLE}")


def remove(iptables: Iptables, network: str, container_id: str) -> None:
    """Take back an attachment's rules. They are found by name; none is fine."""
    _remove_chain(iptables, _ENTRY, chain_name(network, container_id, "DN-"))
    _remove_chain(iptables, _OLD_ENTRY, chain_name(network, container_id, _OLD_PREFIX))


def collect(iptables: Iptables, network: str, valid: list[tuple[str, str]]) -> None:
    """Take back the rules of a network's containers but those in `valid`, pairs of container id and interface name.

    The rules don't tell the interfaces of a container apart.
    """
    mark = f'dnat name: "{network}" id: '
    kept = {chain_name(network, container_id, "DN-") for container_id, _ in valid}
    rules = iptables.rules(_TABLE, _ENTRY)
    for chain in dict.fromkeys(rule[-1] for rule in rules if _argument(rule, "--comment").startswith(mark)):
        if chain not in kept:
            _remove_chain(iptables, _ENTRY, chain)


def _chain(forwarding: Forwarding) -> str:
    return chain_name(forwarding.network, forwarding.container_id, "DN-")


def _mappings(forwarding: Forwarding) -> list[Rule]:
    if len(forwarding.ports) > MANY:
        return [rule for group in forwarding.grouped() for rule in _mappings_of_many(forwarding, group)]
    mark, dnat = _mark(forwarding), _dnat(forwarding)
    rules = []
    for port in forwarding.ports:
        matches = [*_destination(port), *_one(port)]
        rules += [[*mark[:2], *source, *matches, *mark[2:]] for source in _marked_sources(forwarding)]
        rules.append([*dnat[:2], *matches, *dnat[2:-1], f"{dnat[-1]}:{port.container}"])
    return rules


def _mappings_of_many(forwarding: Forwarding, group: list[Port]) -> list[Rule]:
    """For ports of one protocol and one address of the node. Those that lead to the same number share a rule."""
    mark, dnat = _mark(forwarding), _dnat(forwarding)
    protocol, destination = group[0].protocol, _destination(group[0])
    marks = [
        [*mark[:2], *source, *destination, *several, *mark[2:]]
        for several in _multiports(protocol, [port.host for port in group])
        for source in _marked_sources(forwarding)
    ]
    same = [
        [*dnat[:2], *destination, *several, *dnat[2:-1], dnat[-1].strip("[]")]
        for several in _multiports(protocol, [port.host for port in group if port.host == port.container])
    ]
    others = [
        [*dnat[:2], *destination, *_one(port), *dnat[2:-1], f"{dnat[-1]}:{port.container}"]
        for port in group
        if port.host != port.container
    ]
    return marks + same + others


def _mark(forwarding: Forwarding) -> Rule:
    """What all rules of the attachment that mark have in common."""
    return ["-A", _chain(forwarding), "-j", forwarding.mark_chain or _SETMARK]


def _dnat(forwarding: Forwarding) -> Rule:
    """What all rules of the attachment that map have in common; the port is missing."""
    ip = f"[{forwarding.address.ip}]" if forwarding.version == 6 else str(forwarding.address.ip)
    return ["-A", _chain(forwarding), "-j", "DNAT", "--to-destination", ip]


def _marked_sources(forwarding: Forwarding) -> list[list[str]]:
    """What a packet that is to be masqueraded is matched by."""
    if not forwarding.masquerades:
        return []
    if forwarding.masquerades_all:
        return [[]]
    sources = [["-s", str(forwarding.address.network)] if forwarding.address.prefix else []]
    return sources + ([["-s", f"{LOOPBACK}/32"]] if forwarding.version == 4 else [])


def _destination(port: Port) -> list[str]:
    return ["-d", f"{port.destination}/{port.destination.bits}"] if port.destination else []


def _one(port: Port) -> list[str]:
    return ["-p", port.protocol, "-m", port.protocol, "--dport", str(port.host)]


def _multiports(protocol: str, numbers: list[int]) -> list[list[str]]:
    """Matches for all these ports, as few as will do."""
    return [["-p", protocol, "-m", "multiport", "--dports", several] for several in portions(numbers)]


def _entries(forwarding: Forwarding) -> list[Rule]:
    mark = ["-m", "comment", "--comment", _entry_comment(forwarding.network, forwarding.container_id)]
    chain = _chain(forwarding)
    return [
        # As iptables lists it: the protocol first.
        ["-A", _ENTRY, *several[:2], *mark, *several[2:], *forwarding.conditions, "-j", chain]
        for protocol in sorted(forwarding.numbers)
        for several in _multiports(protocol, forwarding.numbers[protocol])
    ]


def _entry_comment(network: str, container_id: str) -> str:
    comment = f"dnat {rule_comment(network, container_id)}"
    return comment if len(comment) <= _LONGEST_COMMENT else f"{comment[: _LONGEST_COMMENT - 3]}..."


# ---- what is there ----


def _argument(rule: Rule, option: str) -> str:
    """What follows the option; "" if it isn't there."""
    return rule[rule.index(option) + 1] if option in rule[:-1] else ""


def _condition(entry: Rule) -> list[str]:
    """An entry's matches but for whose it is and the ports it is for."""
    rest = entry[2:]
    for option, values in (("-p", 1), ("--comment", 1), ("--dports", 1), ("-j", 1)):
        if option in rest:
            start = rest.index(option)
            del rest[start : start + 1 + values]
    return [word for word in rest if word not in ("-m", "comment", "multiport")]


def _rivals(forwarding: Forwarding, entries: list[Rule]) -> list[Rule]:
    """The entries of other containers ahead of ours that ask for one of its ports."""
    chain = _chain(forwarding)
    own = [_condition(entry) for entry in entries if entry[-1] == chain]
    ahead = entries[: next((number for number, entry in enumerate(entries) if entry[-1] == chain), None)]
    same_container = f' id: "{forwarding.container_id}"'
    numbers = {(protocol, number) for protocol, of_it in forwarding.numbers.items() for number in of_it}
    return [
        entry
        for entry in ahead
        # Who has conditions of his own has left the rest to others.
        if _condition(entry) in own
        and not _argument(entry, "--comment").endswith(same_container)
        and any((_argument(entry, "-p"), number) in numbers for number in _numbers(entry))
    ]


def _mapped(rules: list[Rule]) -> list[Port]:
    """What the rules of an attachment's chain map; where to is left out."""
    return [
        Port(_argument(rule, "-p"), number, 0, _host_ip(rule))
        for rule in rules
        if "DNAT" in rule
        for number in _numbers(rule)
    ]


def _numbers(rule: Rule) -> list[int]:
    """The ports that a rule is for."""
    numbers: list[int] = []
    for part in (_argument(rule, "--dports") or _argument(rule, "--dport")).split(","):
        first, _, last = part.partition(":")
        if first.isdigit():
            numbers += range(int(first), int(last or first) + 1)
    return numbers


def _host_ip(rule: Rule) -> IP | None:
    address = _argument(rule, "-d").partition("/")[0]
    return IP.parse(address) if address else None


def _holds(iptables: Iptables, forwarding: Forwarding, rule: Rule) -> bool:
    """Whether iptables knows the rule: conditions may be listed otherwise than they were given."""
    if not forwarding.conditions or rule[1] != _ENTRY:
        return False
    try:
        iptables.change(_TABLE, [["-C", *rule[1:]]])
    except IptablesError:
        return False
    return True


def _missing(forwarding: Forwarding, what: str) -> CNIError:
    return CNIError(f"could not check ipv{forwarding.version} dnat: {what}")


def _remove_chain(iptables: Iptables, entry: str, chain: str) -> None:
    """The chain, and all that leads there from `entry`."""
    jumps = [rule for rule in iptables.rules(_TABLE, entry) if rule[-2:] == ["-j", chain]]
    if jumps or iptables.rules(_TABLE, chain):
        # Naming the chain as fresh empties it.
        iptables.change(_TABLE, [["-D", *jump[1:]] for jump in jumps] + [["-X", chain]], fresh=(chain,))
