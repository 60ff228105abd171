"""Save and restore the IPv6 addresses and routes that a link loses when it changes its VRF.

The kernel takes such a link down and up again (drivers/net/vrf.c, cycle_netdev). Its IPv4 addresses stay, and the
routes that the kernel makes by itself come back, in the table that is now the link's. Everything else is saved as the
kernel dumps it and is sent back as it was, with all attributes of an address or a route.
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
# Routes that the kernel makes by itself, or because a router announced them.
_KERNEL_PROTOCOLS = (1, 2, 9)  # RTPROT_REDIRECT, RTPROT_KERNEL, RTPROT_RA

# linux/if_addr.h
_IFADDRMSG = 8  # bytes
_IFA_FLAGS = 8
_IFA_F_TEMPORARY = 0x01
_IFA_F_NODAD = 0x02
_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40

_ADDRESS_TIMEOUT = 5.0  # seconds until the kernel accepts packets to new addresses, which it does asynchronously


class SavedState:
    """A link's IPv6 addresses and, if ``with_routes``, its routes, at the time of construction. Raises NetlinkError.

    The kernel makes some routes anew, and these are not saved: the routes to the addresses and their networks, and
    those that routers announced.
    """

    __slots__ = ("addresses", "link", "routes")

    def __init__(self, inside: Netlink, link: Link, *, with_routes: bool = True) -> None:
        self.link = link
        dumped = filter(_is_saved, inside.addresses(link.index, AF_INET6))
        # The kernel puts a new address before the others, and the first one is the default source of packets.
        self.addresses = [Address(address) for address in dumped][::-1]
        dumped_routes = routes.read(inside, described=True) if with_routes else []
        self.routes = [route for route in dumped_routes if self._owns(route)]

    def _owns(self, route: Route) -> bool:
        """Return whether the kernel loses the route with the link, and does not make it anew.

        A route with next hops on other links outlives the loss of one, and the kernel uses that next hop again when
        the link is up.
        """
        automatic = route.seen.protocol in _KERNEL_PROTOCOLS or route.seen.table == _RT_TABLE_LOCAL
        return not automatic and route.links == {self.link.index}

    def disable_dad(self, batch: Batch) -> None:
        """Queue requests that spare the addresses another duplicate address detection, before the link changes its VRF.

        It has succeeded for them on this link, and would take another second or two, for the addresses that the kernel
        keeps (keep_addr_on_down) as well as for those that it forgets.
        """
        for address in self.addresses:
            if address.settled and not address.flags & _IFA_F_NODAD:
                address.put(batch, _NLM_F_REPLACE, address.flags | _IFA_F_NODAD)

    def restore_addresses(self, batch: Batch, main: int = MAIN) -> None:
        """Queue requests that add the addresses which the link has lost. ``main`` is as for restore_routes."""
        for address in self.addresses:
            nodad = _IFA_F_NODAD if address.settled else 0
            address.put(batch, _NLM_F_CREATE | _NLM_F_EXCL, address.flags | nodad, errno.EEXIST)
            # In a VRF the flag has to stay: when it changes the kernel looks for the route to the address's network,
            # and for a /128 it finds, where all is in one table, the route to the address itself, and deletes that.
            if nodad and main == MAIN:
                address.put(batch, _NLM_F_REPLACE, address.flags)

    def restore_routes(self, batch: Batch, main: int = MAIN) -> None:
        """Queue requests that add the routes again: those of the main table to ``main``, the others where they were.

        None replaces an existing route; of two routes to one destination the older one stays the first.
        """
        for route in self.routes:
            table = main if route.seen.table == MAIN else route.seen.table
            route.restore(batch, table, "could not add route")

    def await_addresses(self, container: NetNS, inside: Netlink, table: int) -> None:
        """Wait for the kernel's notifications that it accepts packets to the addresses. Raises CNIError."""
        expected = {address.packed for address in self.addresses if address.settled}
        if not expected or not self.link.is_up:
            return
        deadline = time.monotonic() + _ADDRESS_TIMEOUT
        with container.news(_RTNLGRP_IPV6_ROUTE) as news:
            while missing := expected - self._local(inside, table):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    where = f"{self.link.name} in table {table} with dst {format_ip(min(missing))}"
                    raise CNIError(f"failed getting local/host addresses for {where}")
                news.wait(remaining)

    def _local(self, inside: Netlink, table: int) -> set[bytes]:
        present = inside.routes(AF_INET6, table, index=self.link.index)
        return {route.dst for route in present if route.type == _RTN_LOCAL}


def _is_saved(seen: _core.Address) -> bool:
    # A kernel without IPv6 dumps IPv4 addresses instead. Temporary addresses it makes from others, and accepts none.
    return len(seen.packed) == 16 and not seen.flags & _IFA_F_TEMPORARY


class Address:
    """An IPv6 address as the kernel dumped it, to be sent back: with lifetimes, a peer, a metric.

    It is `settled` if duplicate address detection has succeeded for it. A link-local address never is: the kernel makes
    it, and checks it.
    """

    __slots__ = ("_attributes", "_header", "_prefix", "flags", "packed", "settled")

    def __init__(self, seen: _core.Address) -> None:
        self._header = seen.message[:_IFADDRMSG]
        self._attributes = parse_attributes(seen.message[_IFADDRMSG:])
        self._prefix = seen.prefix
        self.packed = seen.packed
        self.flags = seen.flags
        unchecked = seen.flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED)
        self.settled = seen.scope == _RT_SCOPE_UNIVERSE and not unchecked

    def put(self, batch: Batch, mode: int, flags: int, *ignored: int) -> None:
        """Queue the request that adds or changes the address. `mode` are NLM_F_ flags, `flags` the address's own.

        Errors with an errno in `ignored` are no failure.
        """
        attributes = {**self._attributes, _IFA_FLAGS: u32(flags)}
        attempt, values = "could not restore address %s/%d", (self.packed, self._prefix)
        batch.request(_RTM_NEWADDR, mode, self._header, attributes.items(), attempt, values, ignored)
