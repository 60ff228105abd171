"""Port mappings in nftables, in the layout of Go's plugin, so that either's DEL removes the other's rules.

The tables are `ip cni_hostport` and `ip6 cni_hostport`. Packets for the node itself (`fib daddr type local`; packets
that it routes must not be mapped, CVE-2025-67499) go to `hostports_all` and on to `hostports`, which has a rule per
mapping. The comment of a rule is the id of its container, which is all that Go's plugin compares. The chain
`attachments` tells which attachment of a container a rule belongs to. Nothing jumps to that chain: it has a rule for
each of our attachments, with the address, and in the comment hashes of network, interface and container, and names.
"""

from __future__ import annotations

from cni.netfilter.naming import hashed
from cni.netfilter.nftables import Layout, Nft
from cni.spec.errors import CNIError
from cni.spec.ip import IP
from cni_plugins.meta.portmap.forwarding import LOOPBACK, MANY, Forwarding, Port, ranges, taken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.kernel.netns import NetNS
    from cni.netfilter.nftables import Rule
    from cni.netfilter.ruleset import Listing, NewRule, PresentRule, Ruleset

_FAMILIES = {4: "ip", 6: "ip6"}
_TABLE = "cni_hostport"
_MAPPINGS, _MASQUERADING, _OWNERS = "hostports", "masquerading", "attachments"
_OLD_MAPPINGS = "hostip_hostports"  # of plugins before v1.9.0
_CONTAINER_CHAINS = (_MAPPINGS, _OLD_MAPPINGS, _MASQUERADING)

_HASH = 16  # digits
_MAX_COMMENT = 128  # bytes, nftables' limit


def describe(ruleset: Ruleset, forwarding: Forwarding) -> None:
    """Add the attachment's rules of this family to the ruleset."""
    owner = _owner(forwarding.network, forwarding.ifname, forwarding.container_id)
    ruleset.ensure_nftables(
        layout(forwarding), own_rules(forwarding), superseded=lambda present: _rules_of(present, owner)
    )


def layout(forwarding: Forwarding) -> Layout:
    """Return the table without any mapping."""
    entry = ["fib daddr type local jump hostports_all"]
    chains: dict[str, tuple[str, str, list[str] | None]] = {
        _MAPPINGS: ("", "", None),
        _OLD_MAPPINGS: ("", "", None),
        "hostports_all": ("", "", [f"jump {_OLD_MAPPINGS}", f"jump {_MAPPINGS}"]),
        "prerouting": ("type nat hook prerouting priority -100", "", entry),
        "output": ("type nat hook output priority -100", "", entry),
        _OWNERS: ("", "Whose the mappings are", None),
    }
    if forwarding.masquerades:
        chains[_MASQUERADING] = ("type nat hook postrouting priority 100", "", None)
    return Layout(_FAMILIES[forwarding.version], _TABLE, "CNI portmap plugin", chains)


def own_rules(forwarding: Forwarding) -> list[NewRule]:
    """Return the attachment's rules: chain, text, comment."""
    container_id = forwarding.container_id
    owner = (_OWNERS, f"{_FAMILIES[forwarding.version]} daddr {forwarding.address.ip}", _owner_comment(forwarding))
    mappings = [
        (_MAPPINGS, text, container_id) for group in forwarding.grouped() for text in _mappings(forwarding, group)
    ]
    masquerading = [(_MASQUERADING, text, container_id) for text in _masquerading(forwarding)]
    return [owner, *mappings, *masquerading]


def refuse_taken(forwarding: Forwarding, host: NetNS | None) -> None:
    """Raise CNIError if a port is already forwarded to another container, by an earlier rule, which takes effect.

    To be called after the attachment's rules were added: of two concurrent ADDs the second one gets the error.
    """
    present = Nft(host).table(_FAMILIES[forwarding.version], _TABLE)
    for rule in present.get(_OLD_MAPPINGS, []) + present.get(_MAPPINGS, []):
        if rule.comment == forwarding.container_id:
            if _address(_MAPPINGS, rule) == str(forwarding.address.ip):
                return
            continue
        for other in _ports(rule):
            if port := forwarding.clash(other):
                raise taken(port, rule.comment, _network(present, rule))


def check(forwarding: Forwarding, host: NetNS | None) -> None:
    """Raise CNIError with the first rule or chain that is missing."""
    family = _FAMILIES[forwarding.version]
    present = Nft(host).table(family, _TABLE)
    for chain, (_, _, rules) in layout(forwarding).chains.items():
        missing = [] if rules is None else [rule for rule in rules if rule not in _texts(present, chain)]
        if chain not in present or missing:
            raise _missing(forwarding, chain, missing[0] if missing else "")
    mapped = {
        (port.protocol, port.host, port.destination, port.container)
        for rule in present[_MAPPINGS]
        if rule.comment == forwarding.container_id and _address(_MAPPINGS, rule) == str(forwarding.address.ip)
        for port in _ports(rule)
    }
    for port in forwarding.ports:
        if (port.protocol, port.host, port.destination, port.container) not in mapped:
            raise _missing(forwarding, _MAPPINGS, str(port))
    for chain, text, comment in own_rules(forwarding):
        if chain != _MAPPINGS and text not in _texts(present, chain, comment):
            raise _missing(forwarding, chain, text)


def remove(nft: Nft, network: str, ifname: str, container_id: str) -> None:
    """Remove an attachment's rules. It is no error if there are none."""
    owner = _owner(network, ifname, container_id)
    _remove(nft, lambda present: _rules_of(present, owner) + _unclaimed(present, container_id))


def collect(nft: Nft, network: str, valid: list[tuple[str, str]]) -> None:
    """Remove the rules of a network's attachments that are not in `valid`, pairs of container id and interface name.

    The rules of Go's plugin stay, as they do not name their network.
    """
    live = {_owner(network, ifname, container_id) for container_id, ifname in valid}

    def search(present: Listing) -> list[PresentRule]:
        owners = {_owner_of(rule) for rule in present.get(_OWNERS, ())}
        stale = [owner for owner in owners if owner.startswith(_hash(network)) and owner not in live]
        return [rule for owner in stale for rule in _rules_of(present, owner)]

    _remove(nft, search)


# ---- an attachment's rules ----


def _mappings(forwarding: Forwarding, group: list[Port]) -> list[str]:
    """Return the rules for ports of one protocol and destination address."""
    family = _FAMILIES[forwarding.version]
    protocol, destination = group[0].protocol, group[0].destination
    matches = [*forwarding.conditions, *([f"{family} daddr {destination}"] if destination else [])]
    ip = str(forwarding.address.ip)
    if len(group) > MANY:
        same = ranges([port.host for port in group if port.host == port.container], "-")
        numbers = f"{{ {', '.join(same)} }}" if len(same) > 1 else "".join(same)  # as nft lists it
        others = ", ".join(f"{port.host} : {ip} . {port.container}" for port in group if port.host != port.container)
        rules = [f"{protocol} dport {numbers} dnat to {ip}"] if same else []
        rules += [f"dnat {family} to {protocol} dport map {{ {others} }}"] if others else []
    else:
        target = f"[{ip}]" if forwarding.version == 6 else ip
        rules = [f"{protocol} dport {port.host} dnat to {target}:{port.container}" for port in group]
    return [" ".join([*matches, rule]) for rule in rules]


def _masquerading(forwarding: Forwarding) -> list[str]:
    if not forwarding.masquerades:
        return []
    family, ip = _FAMILIES[forwarding.version], str(forwarding.address.ip)
    to_container = f"{family} daddr {ip}"
    if forwarding.masquerades_all:
        return [f"{family} saddr {forwarding.everywhere} {to_container} masquerade"]
    rules = [f"{family} saddr {ip} {to_container} masquerade"]
    if forwarding.version == 4:
        rules.append(f"{family} saddr {LOOPBACK} {to_container} masquerade")
    if forwarding.address.prefix < forwarding.address.ip.bits:
        # The neighbours too, as with iptables: the container would answer them on the link, bypassing the node.
        rules.append(f"{family} saddr {forwarding.address.network} {to_container} ct status dnat masquerade")
    return rules


def _hash(text: str) -> str:
    return hashed(text, _HASH)


def _owner(network: str, ifname: str, container_id: str) -> str:
    """Return the beginning of the comment of an attachment's rule in `attachments`. Its length is constant."""
    return "-".join(map(_hash, (network, ifname, container_id)))


def _owner_comment(forwarding: Forwarding) -> str:
    owner = _owner(forwarding.network, forwarding.ifname, forwarding.container_id)
    comment = f"{owner}, net: {forwarding.network}, if: {forwarding.ifname}".replace('"', "")
    return comment.encode()[:_MAX_COMMENT].decode(errors="ignore")


# ---- existing rules ----


def _owner_of(rule: Rule) -> str:
    return rule.comment.partition(",")[0]


def _container_of(owner: str) -> str:
    """Return the hash of the container's id."""
    return owner.rpartition("-")[2]


def _claims(present: Listing, container: str) -> dict[str, set[str]]:
    """Return the owners that claim each address of a container, which is given by its hash."""
    claims: dict[str, set[str]] = {}
    for rule in present.get(_OWNERS, ()):
        owner = _owner_of(rule)
        if _container_of(owner) == container:
            claims.setdefault(_address(_OWNERS, rule), set()).add(owner)
    return claims


def _of_container(present: Listing, container: str) -> list[PresentRule]:
    rules = [(chain, rule) for chain in _CONTAINER_CHAINS for rule in present.get(chain, ())]
    ids = {rule.comment for _, rule in rules}
    of_container = {container_id for container_id in ids if _hash(container_id) == container}
    return [(chain, rule) for chain, rule in rules if rule.comment in of_container]


def _rules_of(present: Listing, owner: str) -> list[PresentRule]:
    """Return an attachment's rules: those of the container for an address that no other attachment claims."""
    container = _container_of(owner)
    claims = _claims(present, container)
    own = [(_OWNERS, rule) for rule in present.get(_OWNERS, ()) if _owner_of(rule) == owner]
    rules = _of_container(present, container)
    return own + [(chain, rule) for chain, rule in rules if claims.get(_address(chain, rule)) == {owner}]


def _unclaimed(present: Listing, container_id: str) -> list[PresentRule]:
    """Return a container's rules that none of its attachments claims: those of Go's plugin."""
    container = _hash(container_id)
    claims = _claims(present, container)
    return [(chain, rule) for chain, rule in _of_container(present, container) if _address(chain, rule) not in claims]


def _remove(nft: Nft, search: Callable[[Listing], list[PresentRule]]) -> None:
    commands = [
        f"delete rule {family} {_TABLE} {chain} handle {rule.handle}"
        for family in _FAMILIES.values()
        for chain, rule in search(nft.table(family, _TABLE))
    ]
    if commands:
        nft.run("\n".join(dict.fromkeys(commands)))


def _address(chain: str, rule: Rule) -> str:
    """Return the container's address in a rule, "" if there is none."""
    if chain in (_MASQUERADING, _OWNERS):
        return rule.text.rpartition(" daddr ")[2].partition(" ")[0]
    _, _, elements = rule.text.partition(" map { ")
    if elements:
        return elements.partition(" : ")[2].partition(" . ")[0]
    return _split(rule.text.partition(" dnat to ")[2])[0]


def _ports(rule: Rule) -> list[Port]:
    """Return the mappings in a rule, [] for a rule that another program has added for something else."""
    try:
        return _parsed(rule.text)
    except (ValueError, IndexError):
        return []


def _parsed(text: str) -> list[Port]:
    """Parse `[DADDR] PROTOCOL dport PORTS dnat to TARGET` or `[DADDR] dnat to PROTOCOL dport map { PORT : TARGET }`.

    Raises ValueError or IndexError for anything else.
    """
    head, _, elements = text.partition(" map {")
    if elements:
        matches, _, key = head.rpartition("dnat ")
        pairs = [element.split(" : ") for element in elements.strip(" }").split(",")]
        targets = [(int(number), int(target.rpartition(" . ")[2])) for number, target in pairs]
        protocol = key.split()[-2]
    else:
        head, _, target = text.partition(" dnat to ")
        matches, _, numbers = head.rpartition(" dport ")
        matches, _, protocol = matches.rpartition(" ")
        _, port = _split(target)
        targets = [(number, int(port or number)) for number in _numbers(numbers)]
    words = matches.split()
    host_ip = IP.parse(words[-1]) if words[-2:-1] == ["daddr"] else None
    return [Port(protocol, number, container, host_ip) for number, container in targets]


def _split(target: str) -> tuple[str, str]:
    """Split 10.1.2.3:80, [2001:db8::3]:80, or an address without a port, into address and port."""
    if target.count(":") == 1 or target.startswith("["):
        address, _, port = target.rpartition(":")
        return address.strip("[]"), port
    return target, ""


def _numbers(text: str) -> list[int]:
    """Parse the ports in 80, 80-90 or { 80, 90-99 }."""
    parts = [part.partition("-") for part in text.strip("{ }").split(",")]
    return [number for first, _, last in parts for number in range(int(first), int(last or first) + 1)]


def _network(present: Listing, rule: Rule) -> str:
    """Return the network of a mapping, "" if no attachment claims the mapping."""
    container, address = _hash(rule.comment), _address(_MAPPINGS, rule)
    for claim in present.get(_OWNERS, ()):
        if _container_of(_owner_of(claim)) == container and _address(_OWNERS, claim) == address:
            return claim.comment.partition(", net: ")[2].rpartition(", if: ")[0]
    return ""


def _texts(present: Listing, chain: str, comment: str | None = None) -> list[str]:
    return [rule.text for rule in present.get(chain, ()) if comment in (None, rule.comment)]


def _missing(forwarding: Forwarding, chain: str, rule: str) -> CNIError:
    suffix = f": {rule}" if rule else ""
    return CNIError(
        f'missing hostport rules in "{chain}" chain',
        details=f"nftables table {_FAMILIES[forwarding.version]} {_TABLE}{suffix}",
    )
