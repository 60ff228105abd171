"""Port mappings in iptables, in the layout of Go's plugin, so that either's DEL removes the other's rules. Table `nat`:

    PREROUTING, OUTPUT    packets for the node itself -> CNI-HOSTPORT-DNAT
    CNI-HOSTPORT-DNAT     an attachment's host ports  -> CNI-DN-<hash of network and container>
    CNI-DN-<hash>         per mapping: packets to be masqueraded -> CNI-HOSTPORT-SETMARK, which marks them; then DNAT
    POSTROUTING           everything -> CNI-HOSTPORT-MASQ, which masquerades marked packets

The rules are appended: a rule at the front takes other programs' traffic (CVE-2019-9946). The rule in POSTROUTING must
precede those of ipMasq, which accept packets from a container to its own network. It is inserted before the CNI
plugins' first rule, and so precedes no other program's rule.
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
_MAX_COMMENT = 255  # bytes, iptables' limit

# Plugins before v0.7.0 masqueraded there, with a chain for each container.
_OLD_ENTRY, _OLD_PREFIX = "CNI-HOSTPORT-SNAT", "SN-"


def describe(ruleset: Ruleset, forwarding: Forwarding) -> None:
    """Add the attachment's rules of this family to the ruleset."""
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
    """Return the chains that attachments share, and the rules that jump to them."""
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
    """Return the rules of the attachment's chain, and those that jump to it."""
    return _mappings(forwarding) + _entries(forwarding)


def refuse_taken(forwarding: Forwarding, host: NetNS | None) -> None:
    """Raise CNIError if a port is already forwarded to another container, by an earlier rule, which takes effect.

    To be called after the attachment's rules were added: of two concurrent ADDs at least one gets the error.
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
    """Raise CNIError with the first rule or chain that is missing."""
    iptables = Iptables(forwarding.version, host)
    present = iptables.table(_TABLE)
    for rule in [*shared_rules(forwarding), ["-N", _chain(forwarding)], *own_rules(forwarding)]:
        chain = rule[1]
        if chain not in present:
            raise _missing(forwarding, f"chain {chain} not found in {iptables.command} table {_TABLE}")
        if rule[0] != "-N" and ["-A", *rule[1:]] not in present[chain] and not _has(iptables, forwarding, rule):
            raise _missing(forwarding, f"rule {rule[2:]} in chain {chain} not found in table {_TABLE}")


def remove(iptables: Iptables, network: str, container_id: str) -> None:
    """Remove an attachment's rules, which are identified by the chain's name. It is no error if there are none."""
    _remove_chain(iptables, _ENTRY, chain_name(network, container_id, "DN-"))
    _remove_chain(iptables, _OLD_ENTRY, chain_name(network, container_id, _OLD_PREFIX))


def collect(iptables: Iptables, network: str, valid: list[tuple[str, str]]) -> None:
    """Remove the rules of a network's containers that are not in `valid`, pairs of container id and interface name.

    The rules are the same for all interfaces of a container.
    """
    comment = f'dnat name: "{network}" id: '
    live = {chain_name(network, container_id, "DN-") for container_id, _ in valid}
    rules = iptables.rules(_TABLE, _ENTRY)
    for chain in dict.fromkeys(rule[-1] for rule in rules if _argument(rule, "--comment").startswith(comment)):
        if chain not in live:
            _remove_chain(iptables, _ENTRY, chain)


def _chain(forwarding: Forwarding) -> str:
    return chain_name(forwarding.network, forwarding.container_id, "DN-")


def _mappings(forwarding: Forwarding) -> list[Rule]:
    if len(forwarding.ports) > MANY:
        return [rule for group in forwarding.grouped() for rule in _mappings_of_many(forwarding, group)]
    mark, dnat = _mark(forwarding), _dnat(forwarding)
    rules = []
    for port in forwarding.ports:
        matches = [*_destination(port), *_single_port(port)]
        rules += [[*mark[:2], *source, *matches, *mark[2:]] for source in _marked_sources(forwarding)]
        rules.append([*dnat[:2], *matches, *dnat[2:-1], f"{dnat[-1]}:{port.container}"])
    return rules


def _mappings_of_many(forwarding: Forwarding, group: list[Port]) -> list[Rule]:
    """Return the rules for ports of one protocol and address. Ports forwarded to the same number share a rule."""
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
        [*dnat[:2], *destination, *_single_port(port), *dnat[2:-1], f"{dnat[-1]}:{port.container}"]
        for port in group
        if port.host != port.container
    ]
    return marks + same + others


def _mark(forwarding: Forwarding) -> Rule:
    """Return the common part of the attachment's rules that mark packets."""
    return ["-A", _chain(forwarding), "-j", forwarding.mark_chain or _SETMARK]


def _dnat(forwarding: Forwarding) -> Rule:
    """Return the common part of the attachment's rules that map ports, without the port."""
    ip = f"[{forwarding.address.ip}]" if forwarding.version == 6 else str(forwarding.address.ip)
    return ["-A", _chain(forwarding), "-j", "DNAT", "--to-destination", ip]


def _marked_sources(forwarding: Forwarding) -> list[list[str]]:
    """Return the matches for the sources of packets to be masqueraded."""
    if not forwarding.masquerades:
        return []
    if forwarding.masquerades_all:
        return [[]]
    sources = [["-s", str(forwarding.address.network)] if forwarding.address.prefix else []]
    return sources + ([["-s", f"{LOOPBACK}/32"]] if forwarding.version == 4 else [])


def _destination(port: Port) -> list[str]:
    return ["-d", f"{port.destination}/{port.destination.bits}"] if port.destination else []


def _single_port(port: Port) -> list[str]:
    return ["-p", port.protocol, "-m", port.protocol, "--dport", str(port.host)]


def _multiports(protocol: str, numbers: list[int]) -> list[list[str]]:
    """Return as few matches as possible for all these ports."""
    return [["-p", protocol, "-m", "multiport", "--dports", several] for several in portions(numbers)]


def _entries(forwarding: Forwarding) -> list[Rule]:
    mark = ["-m", "comment", "--comment", _entry_comment(forwarding.network, forwarding.container_id)]
    chain = _chain(forwarding)
    return [
        # In the order in which iptables lists it: the protocol first.
        ["-A", _ENTRY, *several[:2], *mark, *several[2:], *forwarding.conditions, "-j", chain]
        for protocol in sorted(forwarding.numbers)
        for several in _multiports(protocol, forwarding.numbers[protocol])
    ]


def _entry_comment(network: str, container_id: str) -> str:
    comment = f"dnat {rule_comment(network, container_id)}"
    return comment if len(comment) <= _MAX_COMMENT else f"{comment[: _MAX_COMMENT - 3]}..."


# ---- existing rules ----


def _argument(rule: Rule, option: str) -> str:
    """Return the argument of an option, "" if the rule does not have it."""
    return rule[rule.index(option) + 1] if option in rule[:-1] else ""


def _condition(entry: Rule) -> list[str]:
    """Return the entry's matches other than the comment and the ports."""
    rest = entry[2:]
    for option, values in (("-p", 1), ("--comment", 1), ("--dports", 1), ("-j", 1)):
        if option in rest:
            start = rest.index(option)
            del rest[start : start + 1 + values]
    return [word for word in rest if word not in ("-m", "comment", "multiport")]


def _rivals(forwarding: Forwarding, entries: list[Rule]) -> list[Rule]:
    """Return other containers' entries that precede the attachment's and match one of its ports."""
    chain = _chain(forwarding)
    own = [_condition(entry) for entry in entries if entry[-1] == chain]
    ahead = entries[: next((number for number, entry in enumerate(entries) if entry[-1] == chain), None)]
    same_container = f' id: "{forwarding.container_id}"'
    ports = {(protocol, number) for protocol, numbers in forwarding.numbers.items() for number in numbers}
    return [
        entry
        for entry in ahead
        # An entry with other conditions matches other packets.
        if _condition(entry) in own
        and not _argument(entry, "--comment").endswith(same_container)
        and any((_argument(entry, "-p"), number) in ports for number in _numbers(entry))
    ]


def _mapped(rules: list[Rule]) -> list[Port]:
    """Return the ports that the rules of an attachment's chain map, without the container's port."""
    return [
        Port(_argument(rule, "-p"), number, 0, _host_ip(rule))
        for rule in rules
        if "DNAT" in rule
        for number in _numbers(rule)
    ]


def _numbers(rule: Rule) -> list[int]:
    """Return the ports that a rule matches."""
    numbers: list[int] = []
    for part in (_argument(rule, "--dports") or _argument(rule, "--dport")).split(","):
        first, _, last = part.partition(":")
        if first.isdigit():
            numbers += range(int(first), int(last or first) + 1)
    return numbers


def _host_ip(rule: Rule) -> IP | None:
    address = _argument(rule, "-d").partition("/")[0]
    return IP.parse(address) if address else None


def _has(iptables: Iptables, forwarding: Forwarding, rule: Rule) -> bool:
    """Return whether iptables has the rule: it may list conditions in another form than they were given."""
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
    """Remove the chain, and the rules of `entry` that jump to it."""
    jumps = [rule for rule in iptables.rules(_TABLE, entry) if rule[-2:] == ["-j", chain]]
    if jumps or iptables.rules(_TABLE, chain):
        # A chain in `fresh` is emptied.
        iptables.change(_TABLE, [["-D", *jump[1:]] for jump in jumps] + [["-X", chain]], fresh=(chain,))
