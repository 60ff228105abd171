"""The backend nftables: a table of our own in which containers and isolated bridges are elements of sets.

So the cost per packet does not grow with their number. The comment of a container's element names its attachment.

An `accept` is final for this table only: packets that other tables drop stay dropped. A `drop` is final. So the
accepting rules matter if an administrator sets `policy drop` for the chain `forward`; the plugin keeps that policy. The
chain `admin` belongs to the administrator.
"""

from __future__ import annotations

from cni.netfilter.naming import owner, owner_comment
from cni.netfilter.nftables import Layout, NftError
from cni.spec.errors import CNIError, quote
from cni.spec.names import check_ifname

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cni.netfilter.nftables import Nft
    from cni.netfilter.ruleset import Ruleset
    from cni.spec.ip import IP

    Names = tuple[str, str, str]  # network, interface, container

_FAMILY, _TABLE = "inet", "cni_firewall"
_CONTAINERS = {4: "containers4", 6: "containers6"}
_LAYOUT = Layout(
    _FAMILY,
    _TABLE,
    "Containers' traffic, and the isolation of their bridges: the CNI plugin firewall",
    {
        "admin": ("", "Rules of the administrator: they come first, and no plugin touches them", None),
        "isolation": (
            "",
            "Isolated bridges do not reach one another, closed ones not even themselves",
            [
                "iifname @closed oifname @closed drop",
                "iifname . oifname @same_bridge return",
                "iifname @isolated oifname @isolated drop",
            ],
        ),
        "forward": (
            "type filter hook forward priority 0",  # without a policy, so that an administrator's stays
            "",
            [
                "jump admin",
                "jump isolation",
                "ip daddr @containers4 ct state established,related accept",
                "ip6 daddr @containers6 ct state established,related accept",
                "ip saddr @containers4 accept",
                "ip6 saddr @containers6 accept",
            ],
        ),
    },
    {
        "containers4": "type ipv4_addr",
        "containers6": "type ipv6_addr",
        "isolated": "type ifname",
        "closed": "type ifname",
        "same_bridge": "type ifname . ifname",
    },
)
_UNQUOTABLE = '"\\*'  # nft would end a string there, or take the name for a pattern


def describe(ruleset: Ruleset, addresses: list[IP], attachment: Names) -> None:
    """Add elements to the ruleset so that packets from `addresses` and replies to them are accepted."""
    comment = owner_comment(*attachment)
    elements = [(_CONTAINERS[address.version], str(address), comment) for address in addresses]
    ruleset.ensure_nftables(_LAYOUT, [], elements=elements)


def isolate(ruleset: Ruleset, bridge: str, *, isolated: bool) -> None:
    """Add elements to the ruleset that isolate the bridge, and with `isolated` its containers from each other."""
    check_ifname(bridge)
    if any(character in bridge for character in _UNQUOTABLE):
        raise CNIError(f"cannot isolate bridge {quote(bridge)}: nftables does not accept a name with these characters")
    name = f'"{bridge}"'
    own = ("closed", name, "") if isolated else ("same_bridge", f"{name} . {name}", "")
    ruleset.ensure_nftables(_LAYOUT, [], elements=[("isolated", name, ""), own])


def remove(nft: Nft, attachment: Names) -> None:
    """Delete the elements of an attachment. Raises NftError, also if another process was faster."""
    start = owner(*attachment)
    _delete(nft, lambda comment: comment.startswith(start))


def collect(network: str, valid: Iterable[tuple[str, str]], nft: Nft) -> None:
    """Delete the elements of a network's attachments that are not in `valid`, pairs of container id and interface."""
    ours = owner(network)
    owners = tuple(owner(network, ifname, container_id) for container_id, ifname in valid)
    try:
        _delete(nft, lambda comment: comment.startswith(ours) and not comment.startswith(owners))
    except NftError:
        if nft.usable():
            raise


def _delete(nft: Nft, is_deleted: Callable[[str], bool]) -> None:
    present = nft.table(_FAMILY, _TABLE)
    commands = [
        f"delete element {_FAMILY} {_TABLE} {name} {{ {element.text} }}"
        for name in _CONTAINERS.values()
        for element in present.get(name, ())
        if is_deleted(element.comment)
    ]
    if commands:
        nft.run("\n".join(commands))
