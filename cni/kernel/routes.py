"""Copy and restore routes: send what the kernel reported back to it, for another table or for the same one.

`ip route save` and `ip route restore` do the same. A copy has whatever the route has, be it a weight, `onlink`, a
gateway of the other family or a metric that this code does not know.
"""

from __future__ import annotations

import errno
from sys import byteorder

from cni._core import parse_attributes, u32
from cni.spec.ip import AF_INET, AF_INET6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni import _core
    from cni._core import Batch, Netlink

MAIN = 254
_ALL_TABLES = 0

# linux/netlink.h
_NLM_F_REPLACE = 0x100
_NLM_F_EXCL = 0x200
_NLM_F_CREATE = 0x400
_NLM_F_APPEND = 0x800

# linux/rtnetlink.h
_RTM_NEWROUTE = 24
_RTM_DELROUTE = 25
_RTMSG = 12  # bytes, the last four of which are flags; its members:
_RTM_TABLE, _RTM_FLAGS = 4, 8
_RTNEXTHOP_FLAGS = 2
_RTNH_F_ONLINK = 4
_RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_MULTIPATH = 9
_RTA_CACHEINFO = 12
_RTA_TABLE = 15
_RTA_VIA = 18
_RTA_ENCAP_TYPE = 21
_RTA_ENCAP = 22
_RTA_EXPIRES = 23
_RTA_NH_ID = 30
_USER_HZ = 100  # ticks a second in the numbers that the kernel shows to programs

# The attributes that come from a next hop that is an object of its own (ip-nexthop(8)): the kernel refuses them beside
# RTA_NH_ID.
_OF_NEXTHOP = {_RTA_OIF, _RTA_GATEWAY, _RTA_VIA, _RTA_MULTIPATH, _RTA_ENCAP, _RTA_ENCAP_TYPE}


class Route:
    """A route of any table. ``seen`` is the same route as the core parsed it.

    If its next hop is an object of its own, copies refer to that object; with ``described`` they repeat its attributes
    instead, for when the object is gone with its link.
    """

    __slots__ = ("_attributes", "_header", "seen")

    def __init__(self, seen: _core.Route, *, described: bool = False) -> None:
        self.seen = seen
        self._header = seen.message[:_RTMSG]
        self._attributes = parse_attributes(seen.message[_RTMSG:])
        if _RTA_NH_ID in self._attributes:
            for number in {_RTA_NH_ID} if described else _OF_NEXTHOP & self._attributes.keys():
                del self._attributes[number]

    def __repr__(self) -> str:
        return repr(self.seen)

    @property
    def version(self) -> int:
        return 4 if len(self.seen.dst) == 4 else 6

    @property
    def links(self) -> set[int]:
        """The indexes of the links that it leads through."""
        return {index for index, _ in self._hops}

    @property
    def gateways(self) -> list[bytes]:
        """The gateways of all its next hops, without those of the other family."""
        return [gateway for _, gateway in self._hops if gateway]

    @property
    def is_indirect(self) -> bool:
        """True if it has a gateway, which another route has to lead to."""
        return bool(self.gateways) or _RTA_VIA in self._attributes

    @property
    def _hops(self) -> list[tuple[int, bytes | None]]:
        return self.seen.nexthops or [(self.seen.index, self.seen.gateway)]

    def put(self, batch: Batch, table: int, what: str) -> None:
        """Queue a copy in ``table``, in place of another route to the destination with the same metric.

        The copy does not expire, even if this route does. ``what`` begins the message of a refusal.
        """
        self._queue(batch, _RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_REPLACE, table, self._attributes, what)

    def restore(self, batch: Batch, table: int, what: str, *, alone: bool = False) -> None:
        """Queue its return to ``table``: after other routes to its destination or, ``alone``, if there are none."""
        attributes = self._attributes
        if ticks := _number(attributes.get(_RTA_CACHEINFO, b"")[8:12]):  # struct rta_cacheinfo, rta_expires
            attributes = {**attributes, _RTA_EXPIRES: u32(max(ticks // _USER_HZ, 1))}
        flags = _NLM_F_CREATE | (_NLM_F_EXCL if alone else _NLM_F_APPEND)
        self._queue(batch, _RTM_NEWROUTE, flags, table, attributes, what, errno.EEXIST)

    def delete(self, batch: Batch, what: str) -> None:
        """Queue its deletion; a missing route is fine."""
        self._queue(batch, _RTM_DELROUTE, 0, self.seen.table, self._attributes, what, errno.ESRCH)

    def _queue(
        self, batch: Batch, type: int, flags: int, table: int, attributes: dict[int, bytes], what: str, *overlook: int
    ) -> None:
        header = bytearray(self._header)
        header[_RTM_TABLE] = 0  # the attribute has precedence
        # The other flags are the route's state, not its configuration.
        header[_RTM_FLAGS:] = u32(_number(header[_RTM_FLAGS:]) & _RTNH_F_ONLINK)
        attributes = {**attributes, _RTA_TABLE: u32(table)}
        attributes.pop(_RTA_CACHEINFO, None)
        if hops := attributes.get(_RTA_MULTIPATH):
            attributes[_RTA_MULTIPATH] = b"".join(_hops_without_state(hops))
        destination = (self.seen.dst, self.seen.prefix, table)
        what = f"{what}: %s/%d in table %d"
        batch.request(type, flags, bytes(header), attributes.items(), what, destination, overlook)


def read(place: Netlink, *, described: bool = False) -> list[Route]:
    """Return all routes of IPv4 and IPv6; those without a gateway come first. Raises NetlinkError."""
    seen = [route for family in (AF_INET, AF_INET6) for route in place.routes(family, _ALL_TABLES)]
    return sorted((Route(route, described=described) for route in seen), key=lambda route: route.is_indirect)


def _hops_without_state(multipath: bytes) -> Iterator[bytes]:
    """Yield the next hops without the flags that are their state."""
    while multipath:
        length = _number(multipath[:2])
        hop = bytearray(multipath[: length + -length % 4])
        hop[_RTNEXTHOP_FLAGS] &= _RTNH_F_ONLINK
        yield bytes(hop)
        multipath = multipath[len(hop) :]


def _number(data: Iterable[int]) -> int:
    return int.from_bytes(data, byteorder)
