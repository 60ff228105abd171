"""What a link loses when it changes its VRF, kept to be given back: IPv6 addresses and routes.

The kernel takes such a link down and up again (drivers/net/vrf.c, cycle_netdev). Its IPv4 addresses stay, and the
routes that the kernel makes by itself come back, in the table that is now the link's. All else is kept here as the
kernel tells it and is told to it again, with whatever an address or a route has.
"""

from __future__ import annotations

import errno
import time

from cni._core import format_ip, parse_attributes, u32
from cni.kernel import routes
from cni.kernel.routes import MAIN
from cni.spec.errors import CNIError
from cni.spec.ip import AF_INET6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni import _core
    from cni._core import Batch, Link, Netlink
    from cni.kernel.netns import NetNS
    from cni.kernel.routes import Route

# linux/netlink.h
_NLM_F_REPLACE = 0x100
_NLM_F_EXCL = 0x200
_NLM_F_CREATE = 0x400

# linux/rtnetlink.h
_RTM_NEWADDR = 20
_RTNLGRP_IPV6_ROUTE = 11
_RTN_LOCAL = 2
_RT_SCOPE_UNIVERSE = 0
_RT_TABLE_LOCAL = 255
# Of what the kernel makes by itself, or because a router said so.
_OF_THE_KERNEL = (1, 2, 9)  # RTPROT_REDIRECT, RTPROT_KERNEL, RTPROT_RA

# linux/if_addr.h
_IFADDRMSG = 8  # bytes
_IFA_FLAGS = 8
_IFA_F_TEMPORARY = 0x01
_IFA_F_NODAD = 0x02
_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40


_WORK = 5.0  # seconds that the kernel may take until it takes packets to new addresses, which it does apart


class Belongings:
    """A link's IPv6 addresses and, if ``with_routes``, its routes, at the time of construction. Raises NetlinkError.

    Not among them is what the kernel will make anew: the routes to the addresses and their networks, and what it
    has from routers.
    """

    __slots__ = ("addresses", "link", "routes")

    def __init__(self, inside: Netlink, link: Link, *, with_routes: bool = True) -> None:
        self.link = link
        seen = filter(_is_kept, inside.addresses(link.index, AF_INET6))
        # The kernel puts a new one before the others, and the first is what packets are sent from in doubt.
        self.addresses = [Address(one) for one in seen][::-1]
        told = routes.read(inside, described=True) if with_routes else []
        self.routes = [route for route in told if self._owns(route)]

    def _owns(self, route: Route) -> bool:
        """Whether the link is all that it goes by.

        A route with next hops on other links outlives the loss of one, and the kernel takes that into use again when
        the link is up.
        """
        made = route.seen.protocol in _OF_THE_KERNEL or route.seen.table == _RT_TABLE_LOCAL
        return not made and route.links == {self.link.index}

    def brace(self, batch: Batch) -> None:
        """Queue what spares the addresses another search for duplicates; to be done before the link changes its VRF.

        They have been found to be nobody else's on this link, and the kernel would search for a second or two, those
        that it keeps (keep_addr_on_down) as well as those that it forgets.
        """
        for address in self.addresses:
            if address.settled and not address.flags & _IFA_F_NODAD:
                address.tell(batch, _NLM_F_REPLACE, address.flags | _IFA_F_NODAD)

    def give_addresses(self, batch: Batch, main: int = MAIN) -> None:
        """Queue what gives the link the addresses back that it does not have any more. ``main``: see give_routes."""
        for address in self.addresses:
            nodad = _IFA_F_NODAD if address.settled else 0
            address.tell(batch, _NLM_F_CREATE | _NLM_F_EXCL, address.flags | nodad, errno.EEXIST)
            # In a VRF the flag has to stay: when it changes the kernel looks for the route to the address's network,
            # and for a /128 it finds, where all is in one table, the route to the address itself, and deletes that.
            if nodad and main == MAIN:
                address.tell(batch, _NLM_F_REPLACE, address.flags)

    def give_routes(self, batch: Batch, main: int = MAIN) -> None:
        """Queue what gives the routes back: those of the main table into ``main``, the others where they were.

        None takes the place of another's; of two to one destination the older one goes first.
        """
        for route in self.routes:
            table = main if route.seen.table == MAIN else route.seen.table
            route.restore(batch, table, "could not add route")

    def await_addresses(self, container: NetNS, inside: Netlink, table: int) -> None:
        """Wait until the kernel takes packets to the addresses, by its notifications. Raises CNIError."""
        expected = {address.packed for address in self.addresses if address.settled}
        if not expected or not self.link.is_up:
            return
        deadline = time.monotonic() + _WORK
        with container.news(_RTNLGRP_IPV6_ROUTE) as news:
            while missing := expected - self._local(inside, table):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    where = f"{self.link.name} in table {table} with dst {format_ip(min(missing))}"
                    raise CNIError(f"failed getting local/host addresses for {where}")
                news.wait(remaining)

    def _local(self, inside: Netlink, table: int) -> set[bytes]:
        found = inside.routes(AF_INET6, table, index=self.link.index)
        return {route.dst for route in found if route.type == _RTN_LOCAL}


def _is_kept(seen: _core.Address) -> bool:
    # Without IPv6 the kernel tells of IPv4 instead. Temporary addresses it makes from others, and takes none.
    return len(seen.packed) == 16 and not seen.flags & _IFA_F_TEMPORARY


class Address:
    """An IPv6 address, to be told to the kernel again as it was told by it: with lifetimes, a peer, a metric."""

    __slots__ = ("_attributes", "_header", "_prefix", "flags", "packed", "settled")

    def __init__(self, seen: _core.Address) -> None:
        self._header = seen.message[:_IFADDRMSG]
        self._attributes = parse_attributes(seen.message[_IFADDRMSG:])
        self._prefix = seen.prefix
        self.packed = seen.packed
        self.flags = seen.flags
        # Known to be nobody else's. Link-local ones are the kernel's to make, and to search for.
        searching = seen.flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED)
        self.settled = seen.scope == _RT_SCOPE_UNIVERSE and not searching

    def tell(self, batch: Batch, how: int, flags: int, *overlook: int) -> None:
        """Queue the request that makes it, or makes it so."""
        attributes = {**self._attributes, _IFA_FLAGS: u32(flags)}
        what, words = "could not restore address %s/%d", (self.packed, self._prefix)
        batch.request(_RTM_NEWADDR, how, self._header, attributes.items(), what, words, overlook)
