"""The device that a macvlan, ipvlan or vlan link stands on: its master."""

from __future__ import annotations

from cni.spec.errors import PLUGIN_NOT_AVAILABLE, CNIError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Link, Netlink

_RTN_UNICAST = 1  # linux/rtnetlink.h

# Of these kinds one that is to stand on another stands on that one's master.
_FLAT = ("ipvlan", "macvlan")


def find(place: Netlink, name: str) -> Link:
    """The master of that name in the namespace of ``place``. Raises CNIError."""
    master = place.find_link(name)
    if master is None:
        raise CNIError(f"failed to lookup master {quote(name)}: Link not found")
    return master


def of_default_route(place: Netlink) -> Link:
    """The device of the first default route of the main table, IPv4 before IPv6. Raises CNIError."""
    for route in place.routes():
        if route.prefix or route.type != _RTN_UNICAST:
            continue
        # Of several next hops the first.
        index = route.index or (route.nexthops[0][0] if route.nexthops else 0)
        if index:
            return place.link(index)
    raise CNIError("no default route interface found")


def expect_mtu(mtu: int, master: Link) -> None:
    """A link takes no more than its master does; 0 leaves it to the kernel. Raises CNIError."""
    if not 0 <= mtu <= master.mtu:
        raise CNIError(f"invalid MTU {mtu}, must be [0, master MTU({master.mtu})]", details=f"master {master.name}")


def expect(link: Link, master: Link, *, inside: bool) -> None:
    """For CHECK: ``link`` stands on ``master``, which is in the link's own namespace or not. Raises CNIError."""
    if link.kind == master.kind and link.kind in _FLAT:
        return
    if link.link != master.index or (link.link_netnsid < 0) != inside:
        raise CNIError(f"Container interface {link.name} does not stand on master {master.name}")


def expect_ready(node: Netlink, name: str) -> None:
    """For STATUS: the master is there. Raises CNIError."""
    try:
        find(node, name)
    except CNIError as error:
        raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE) from error
