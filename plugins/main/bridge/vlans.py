"""VLANs of a bridge's ports, if the bridge filters VLANs (rtnetlink, family AF_BRIDGE).

A port passes only frames of its VLANs. Untagged frames that enter belong to the port's native VLAN (its PVID), and
frames of that VLAN leave untagged; frames of the others leave tagged.
"""

from __future__ import annotations

import errno
from sys import byteorder

from cni._core import NetlinkError, u8, u16, u32
from cni.kernel import links
from cni.spec.errors import CNIError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni._core import Batch, Link, Netlink
    from cni.kernel.netns import NetNS

# linux/socket.h, rtnetlink.h
_AF_BRIDGE = 7
_RTM_DELLINK = 17
_RTM_SETLINK = 19
_RTM_GETVLAN = 114
# linux/if_link.h, if_bridge.h
_IFLA_AF_SPEC = 26
_IFLA_BR_VLAN_FILTERING = 7
_IFLA_BR_VLAN_DEFAULT_PVID = 39
_IFLA_BRIDGE_VLAN_INFO = 2
_PVID = 1 << 1
_UNTAGGED = 1 << 2
_RANGE_BEGIN = 1 << 3
_RANGE_END = 1 << 4
_BRIDGE_VLANDB_ENTRY = 1
_BRIDGE_VLANDB_ENTRY_INFO = 1
_BRIDGE_VLANDB_ENTRY_RANGE = 2
_SIZEOF_BR_VLAN_MSG = 8

_NATIVE = _PVID | _UNTAGGED
_NAME_SIZE = 15  # linux/if.h: IFNAMSIZ without the closing NUL
_INITIAL_DEFAULT = 1  # the default VLAN of a bridge, unless another is set

FILTERING = [(_IFLA_BR_VLAN_FILTERING, u8(1))]  # Batch.link_create(data=...) of a bridge that filters


class VLANs:
    """The VLANs of one port: ``native``, and ``tagged`` without it and sorted."""

    __slots__ = ("native", "tagged")

    def __init__(self, native: int, tagged: Iterable[int] = ()) -> None:
        self.native = native
        self.tagged = sorted({*tagged} - {native})

    def join(self, node: Netlink, bridge: Link, port: Link, *, keep_default: bool) -> None:
        """Add a new port to its VLANs and, unless ``keep_default``, remove it from the bridge's default VLAN.

        Raises CNIError.
        """
        batch = node.batch()
        if not keep_default and _default(bridge):
            _request(batch, _RTM_DELLINK, port, [(0, _default(bridge))], "remove %s from the VLAN %d", _default(bridge))
        _request(batch, _RTM_SETLINK, port, self._infos(), "add %s to the VLANs %s", self)
        try:
            batch.commit()
        except OSError as error:
            raise CNIError(f"failed to setup vlan tag on interface {quote(port.name)}: {error}") from error

    def check(self, node: Netlink, bridge: Link, port: Link) -> None:
        """Raise CNIError unless the port is in its VLANs and, except the bridge's default VLAN, in no others."""
        if not is_filtering(bridge):
            raise CNIError(f"Bridge interface {bridge.name} does not filter VLANs")
        try:
            flags = _memberships(node, port)
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                return  # Linux before 5.6 can't list one port's VLANs
            raise
        wanted = {self.native: _NATIVE} | dict.fromkeys(self.tagged, 0)
        defaults = dict.fromkeys({_INITIAL_DEFAULT, _default(bridge)} - wanted.keys())
        if {vlan: flag for vlan, flag in flags.items() if vlan not in defaults} != wanted:
            present = ",".join(f"{vlan}{'' if flags[vlan] else ' tagged'}" for vlan in flags)
            raise CNIError(f"Interface {port.name} is not in the VLANs {self}", details=f"it is in {present or 'none'}")

    def __str__(self) -> str:
        tagged = [f"{first}-{last}" if first < last else f"{first}" for first, last in _ranges(self.tagged)]
        return f"{self.native} untagged" + (f", {','.join(tagged)} tagged" if tagged else "")

    def _infos(self) -> list[tuple[int, int]]:
        infos = [(_NATIVE, self.native)]
        for first, last in _ranges(self.tagged):
            infos += [(_RANGE_BEGIN, first), (_RANGE_END, last)] if first < last else [(0, first)]
        return infos


def is_filtering(bridge: Link) -> bool:
    """Return True if the bridge filters VLANs."""
    return bridge.data.get(_IFLA_BR_VLAN_FILTERING) == u8(1)


def gateway_name(bridge: str, vlan: int) -> str:
    """Return the name of the node's link in a VLAN of a bridge. Raises CNIError if it is too long for a link."""
    name = f"{bridge}.{vlan}"
    if len(name.encode()) > _NAME_SIZE:
        raise CNIError(f"failed to create vlan interface: {quote(name)} is longer than {_NAME_SIZE} bytes")
    return name


def ensure_gateway(node: Netlink, host: NetNS, bridge: Link, vlan: int, *, mac: str | None, keep_default: bool) -> Link:
    """Return the node's link in a VLAN of the bridge: a veth pair whose other end is a port there.

    It is created if no link has its name; any link that has the name is used. Raises CNIError.
    """
    name = gateway_name(bridge.name, vlan)
    try:
        link = node.find_link(name) or _make_gateway(node, host, bridge, name, mac)
        # Bringing it up is the last step. A link that is down is unfinished: another ADD is still running or was
        # interrupted. Finishing it twice does no harm.
        if link.kind == "veth" and not link.is_up:
            port = node.link(link.link)
            VLANs(vlan).join(node, bridge, port, keep_default=keep_default)
            for end in (port, link):
                links.refuse_router_advertisements(host, end.name)
            node.batch().link_set(port.index, up=True).link_set(link.index, up=True).commit()
        return link
    except (CNIError, OSError) as error:
        raise CNIError(
            f"failed to create vlan interface: failed to create vlan gateway {quote(name)}: {error}"
        ) from error


def _make_gateway(node: Netlink, host: NetNS, bridge: Link, name: str, mac: str | None) -> Link:
    try:
        links.make_pair(node, host, node, name, mtu=bridge.mtu, hwaddr=mac, master=bridge.index)
    except CNIError:
        if not node.find_link(name):  # otherwise another ADD was faster
            raise
    return node.link(name)


def _default(bridge: Link) -> int:
    """Return the VLAN that the bridge adds every new port to; 0 if there is none."""
    return int.from_bytes(bridge.data.get(_IFLA_BR_VLAN_DEFAULT_PVID, b""), byteorder)


def _request(batch: Batch, type: int, port: Link, infos: list[tuple[int, int]], attempt: str, vlans: object) -> None:
    header = bytes([_AF_BRIDGE, 0, 0, 0]) + u32(port.index) + bytes(8)  # struct ifinfomsg
    spec = [(_IFLA_BRIDGE_VLAN_INFO, u16(flags) + u16(vlan)) for flags, vlan in infos]
    batch.request(type, 0, header, [(_IFLA_AF_SPEC, spec)], attempt, (port.name, vlans))


def _memberships(node: Netlink, port: Link) -> dict[int, int]:
    """Return the port's VLANs, each with its flags."""
    header = bytes([_AF_BRIDGE, 0, 0, 0]) + u32(port.index)
    flags = {}
    for _, answer in node.dump(_RTM_GETVLAN, header, (), f"list the VLANs of {port.name}"):
        for number, entry in _attributes(answer[_SIZEOF_BR_VLAN_MSG:]):
            if number == _BRIDGE_VLANDB_ENTRY:
                flags.update(_entry(dict(_attributes(entry))))
    return flags


def _entry(attributes: dict[int, bytes]) -> dict[int, int]:
    info = attributes[_BRIDGE_VLANDB_ENTRY_INFO]
    last = attributes.get(_BRIDGE_VLANDB_ENTRY_RANGE, info[2:4])
    vlans = range(int.from_bytes(info[2:4], byteorder), int.from_bytes(last, byteorder) + 1)
    return dict.fromkeys(vlans, int.from_bytes(info[:2], byteorder) & _NATIVE)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number, value) of each attribute; several may have the same number."""
    while len(data) >= 4:
        length, number = int.from_bytes(data[:2], byteorder), int.from_bytes(data[2:4], byteorder)
        if not 4 <= length <= len(data):
            raise ValueError("malformed netlink message: an attribute exceeds its message")
        yield number & 0x3FFF, data[4:length]  # without NLA_F_NESTED, NLA_F_NET_BYTEORDER
        data = data[length + 3 & ~3 :]


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return sorted numbers as ranges (first, last) of consecutive ones."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges
