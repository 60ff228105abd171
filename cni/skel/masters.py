"""The parent device of a macvlan, ipvlan or vlan link (key `master`), and what these plugins have in common."""

from __future__ import annotations

from cni.skel import ipam
from cni.skel.checks import container_link, expect_addresses, expect_mtu, expect_routes, expect_up
from cni.skel.config import Config, Flag, Integer, Text
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, CNIError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni._core import Link, Netlink
    from cni.skel.request import Request

_RTN_UNICAST = 1  # linux/rtnetlink.h

# A link of these kinds that is created on a link of its own kind gets the parent of that link as its parent.
_FLAT = ("ipvlan", "macvlan")


class OnMaster(Config):
    """The configuration of a plugin whose link has a master."""

    master = Text("", "the parent device")
    mtu = Integer(0, "MTU in bytes, at most the master's; 0 is the master's")
    linkInContainer = Flag("the master is in the container's namespace")


def place(request: Request[OnMaster], node: Netlink, inside: Netlink) -> Netlink:
    """Return the socket of the namespace that the master is in: the node's or the container's."""
    return inside if request.config.linkInContainer else node


def find(netlink: Netlink, name: str) -> Link:
    """Return the parent device of that name in the namespace of ``netlink``. Raises CNIError."""
    master = netlink.find_link(name)
    if master is None:
        raise CNIError(f"failed to lookup master {quote(name)}: Link not found")
    return master


def of_default_route(netlink: Netlink) -> Link:
    """Return the device of the first default route of the main table, IPv4 before IPv6. Raises CNIError."""
    for route in netlink.routes():
        if route.prefix or route.type != _RTN_UNICAST:
            continue
        # A multipath route: the first next hop.
        index = route.index or (route.nexthops[0][0] if route.nexthops else 0)
        if index:
            return netlink.link(index)
    raise CNIError("no default route interface found")


def expect_room(mtu: int, master: Link) -> None:
    """Raise CNIError if the MTU is greater than the master's; 0 leaves it to the kernel."""
    if not 0 <= mtu <= master.mtu:
        raise CNIError(f"invalid MTU {mtu}, must be [0, master MTU({master.mtu})]", details=f"master {master.name}")


def check(request: Request[OnMaster], kind: str, expect_kind: Callable[[Link], object]) -> None:
    """Serve CHECK for a link of that kind: compare it with the configuration and the result of ADD.

    ``expect_kind`` raises CNIError unless the link's attributes of that kind are as configured. Raises CNIError.
    """
    conf = request.config
    with request.open_container() as container, request.host.netlink() as node, container.netlink() as inside:
        ipam.check(request)
        result = request.require_prev_result()
        # If the configuration names none, ADD chose the master, and the result does not name it.
        master = find(place(request, node, inside), conf.master) if conf.master else None
        link = container_link(request, inside, result, kind)
        if master:
            _expect_master(link, master, inside=conf.linkInContainer)
        expect_kind(link)
        expect_mtu(link, conf.mtu)
        expect_up(link)
        expect_addresses(inside, request.ifname, result.ips)
        expect_routes(inside, result.routes)


def _expect_master(link: Link, master: Link, *, inside: bool) -> None:
    if link.kind == master.kind and link.kind in _FLAT:
        return
    if link.link != master.index or (link.link_netnsid < 0) != inside:
        raise CNIError(f"Container interface {link.name} does not have master {master.name}")


def status(request: Request[OnMaster], *, ipam_required: bool = False) -> None:
    """Serve STATUS: check that the IPAM plugin is ready, and that the configured master, if on the node, exists.

    Raises CNIError.
    """
    conf = request.config
    ipam.status(request, required=ipam_required)
    if conf.master and not conf.linkInContainer:
        with request.host.netlink() as node:
            try:
                find(node, conf.master)
            except CNIError as error:
                raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE) from error
