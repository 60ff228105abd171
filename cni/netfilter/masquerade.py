"""IP masquerading of containers: packets that leave their network get the node's address as their source.

Both layouts are exactly the Go plugins', so that Go's plugins and these can remove each other's rules. iptables, table
`nat`: a chain for each container and network, whatever the interface, entered from POSTROUTING by source address.
nftables, table `inet cni_plugins_masquerade`: one rule for each address in `masq_checks`, its owner in the comment.

`host` is the node's network namespace; None is this process's own. Every function here may raise CNIError.
"""

from __future__ import annotations

from cni.netfilter.iptables import Iptables
from cni.netfilter.naming import chain_name, owner, owner_comment, rule_comment
from cni.netfilter.nftables import Layout, Nft
from cni.netfilter.ruleset import in_both_backends
from cni.spec.errors import CNIError, bracketed, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni.kernel.netns import NetNS
    from cni.netfilter import iptables, nftables
    from cni.netfilter.ruleset import Ruleset
    from cni.spec.ip import CIDR

BACKENDS = ("iptables", "nftables")

_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}

_FAMILY, _TABLE, _CHAIN = "inet", "cni_plugins_masquerade", "masq_checks"
_LAYOUT = Layout(
    _FAMILY,
    _TABLE,
    "Masquerading for plugins from github.com/containernetworking/plugins",
    {
        _CHAIN: ("", "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet", None),
        "postrouting": (
            "type nat hook postrouting priority 100",
            "",
            ["ip daddr 224.0.0.0/4 return", "ip6 daddr ff00::/8 return", f"goto {_CHAIN}"],
        ),
    },
)


def describe(
    ruleset: Ruleset, backend: str | None, addresses: list[CIDR], network: str, ifname: str, container_id: str
) -> None:
    """Require rules that masquerade what `addresses` send to destinations outside their networks, except multicast.

    `backend` is "iptables", "nftables", or None for the ruleset's default.
    """
    if backend is None:
        backend = ruleset.default_backend
    if backend == "nftables":
        prefix = owner(network, ifname, container_id)
        rules_of_nft = _nftables_additions(addresses, owner_comment(network, ifname, container_id))
        ruleset.ensure_nftables(_LAYOUT, rules_of_nft, lambda rule: rule.comment.startswith(prefix))
    elif backend == "iptables":
        new_chain = ["-N", chain_name(network, container_id)]
        for version, rules in _iptables_rules(addresses, network, container_id).items():
            ruleset.ensure_iptables(version, "nat", [new_chain, *rules])
    else:
        raise CNIError(f"unknown ipmasq backend {quote(backend)}")


def check(addresses: list[CIDR], network: str, ifname: str, container_id: str, host: NetNS | None = None) -> None:
    """Raise CNIError unless one of the backends has the rules for all of `addresses`."""
    prefix = owner(network, ifname, container_id)
    if len(_nftables_rules(Nft(host), prefix)) >= len(addresses):
        return
    for version, wanted in _iptables_rules(addresses, network, container_id).items():
        present = _present(Iptables(version, host), chain_name(network, container_id))
        missing = [" ".join(rule) for rule in wanted if rule not in present]
        if missing:
            reason = f"nftables ({_FAMILY} {_TABLE}) lacks rules, and iptables (nat) lacks {missing[0]}"
            raise CNIError(
                f"{container_id} is not masqueraded in network {network} as {bracketed(addresses)}: {reason}"
            )


def teardown(network: str, ifname: str, container_id: str, host: NetNS | None = None) -> None:
    """Remove an attachment's rules, whichever backend they are in.

    They are found by name, so this works even if its addresses are no longer known.
    """
    chain = chain_name(network, container_id)
    prefix = owner(network, ifname, container_id)
    in_both_backends(
        lambda iptables: _remove_chain(iptables, chain),
        lambda nft: _delete(nft, _nftables_rules(nft, prefix)),
        host,
    )


def gc(network: str, valid: Iterable[tuple[str, str]], host: NetNS | None = None) -> None:
    """Remove the rules of a network's stale attachments, whichever backend they are in.

    `valid` are the others, as pairs of container ID and interface name. The rules of iptables do not distinguish the
    interfaces of a container.
    """
    valid = list(valid)
    chains = {chain_name(network, container_id) for container_id, _ in valid}
    owners = tuple(owner(network, ifname, container_id) for container_id, ifname in valid)

    def collect_chains(iptables: Iptables) -> None:
        for chain in _chains_of(network, iptables) - chains:
            _remove_chain(iptables, chain)

    def collect_rules(nft: Nft) -> None:
        rules = _nftables_rules(nft, owner(network))
        _delete(nft, [rule for rule in rules if not rule.comment.startswith(owners)])

    in_both_backends(collect_chains, collect_rules, host)


# iptables


def _iptables_rules(addresses: list[CIDR], network: str, container_id: str) -> dict[int, list[iptables.Rule]]:
    """Return the rules that the table needs for `addresses`, by IP version, in the order in which they are added."""
    chain = chain_name(network, container_id)
    comment = ["-m", "comment", "--comment", rule_comment(network, container_id)]
    rules: dict[int, list[iptables.Rule]] = {}
    for address in addresses:
        wanted = rules.setdefault(address.version, [])
        for rule in (
            ["-A", chain, "-d", str(address.network), *comment, "-j", "ACCEPT"],
            ["-A", chain, "!", "-d", _MULTICAST[address.version], *comment, "-j", "MASQUERADE"],
            ["-A", "POSTROUTING", "-s", f"{address.ip}/{address.ip.bits}", *comment, "-j", chain],
        ):
            if rule not in wanted:
                wanted.append(rule)
    return rules


def _present(iptables: Iptables, chain: str) -> list[iptables.Rule]:
    """Return the rules of the chain and of POSTROUTING; none without such a chain, as nothing can jump to it then."""
    present = iptables.rules("nat", chain)
    return present and present + iptables.rules("nat", "POSTROUTING")


def _remove_chain(iptables: Iptables, chain: str) -> None:
    """Remove the chain and the jumps to it: by address or, as plugins before v0.8.0 wrote them, by network."""
    jumps = [rule for rule in iptables.rules("nat", "POSTROUTING") if rule[-2:] == ["-j", chain]]
    if jumps or iptables.rules("nat", chain):
        # `fresh` flushes the chain: one with rules cannot be deleted.
        iptables.change("nat", [["-D", *jump[1:]] for jump in jumps] + [["-X", chain]], fresh=(chain,))


def _chains_of(network: str, iptables: Iptables) -> set[str]:
    """Return the chains that POSTROUTING enters for `network`, according to the comments there."""
    mark = f"name: {quote(network)} id: "
    rules = iptables.rules("nat", "POSTROUTING")
    return {rule[-1] for rule in rules if rule[-1].startswith("CNI-") and any(part.startswith(mark) for part in rule)}


# nftables


def _nftables_additions(addresses: list[CIDR], comment: str) -> list[tuple[str, str, str]]:
    family = {4: "ip", 6: "ip6"}
    return [
        (
            _CHAIN,
            f"{family[address.version]} saddr {address.ip}"
            f" {family[address.version]} daddr != {address.network} masquerade",
            comment,
        )
        for address in addresses
    ]


def _deletions(rules: list[nftables.Rule]) -> list[str]:
    return [f"delete rule {_FAMILY} {_TABLE} {_CHAIN} handle {rule.handle}" for rule in rules]


def _delete(nft: Nft, rules: list[nftables.Rule]) -> None:
    if rules:
        nft.run("\n".join(_deletions(rules)))


def _nftables_rules(nft: Nft, prefix: str) -> list[nftables.Rule]:
    """Return the rules whose comment begins with `prefix`."""
    return [rule for rule in nft.rules(_FAMILY, _TABLE, _CHAIN) if rule.comment.startswith(prefix)]
