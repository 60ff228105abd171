"""The kernel's traffic control over rtnetlink: the qdiscs, the class and the filter that limits consist of."""

from __future__ import annotations

import errno
from sys import byteorder

from cni._core import be16, parse_attributes, u8, u32, u64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from cni._core import Batch, Link, Netlink
    from cni.spec.ip import CIDR
    from cni_plugins.meta.bandwidth.bucket import Bucket

# linux/rtnetlink.h, netlink.h
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTCLASS, _RTM_GETTCLASS = 40, 42
_RTM_NEWTFILTER, _RTM_GETTFILTER = 44, 46
_NLM_F_CREATE_EXCL = 0x600
_TCA_KIND, _TCA_OPTIONS = 1, 2
_SIZEOF_TCMSG = 20
# linux/pkt_sched.h
ROOT = 0xFFFFFFFF  # TC_H_ROOT
_INGRESS = 0xFFFFFFF1  # TC_H_INGRESS
_TCA_TBF_PARMS, _TCA_TBF_RATE64 = 1, 4
_TCA_HTB_PARMS, _TCA_HTB_INIT, _TCA_HTB_RATE64, _TCA_HTB_CEIL64 = 1, 2, 6, 7
_HTB_VERSION, _HTB_RATE_TO_QUANTUM = 3, 10
# linux/pkt_cls.h, tc_act/tc_mirred.h
_TCA_U32_CLASSID, _TCA_U32_SEL, _TCA_U32_ACT = 1, 5, 7
_TC_U32_TERMINAL = 1
_SIZEOF_TC_U32_SEL = 16
_TCA_ACT_KIND, _TCA_ACT_OPTIONS = 1, 2
_TCA_MIRRED_PARMS = 2
_TC_ACT_STOLEN = 4
_TCA_EGRESS_REDIR = 1
# linux/if_ether.h
_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD

HOOK = 0xFFFF0000  # ffff:, always the handle of the qdisc for arriving packets

# The bytes that a class may send per turn. The kernel would derive them from the rate, and warn about some rates.
_QUANTUM = 1514

# Filters of two protocols cannot share a priority. By IP version: the priority, the protocol, and the header's offsets
# of source and destination.
_VERSIONS = {4: (1, _ETH_P_IP, 12, 16), 6: (2, _ETH_P_IPV6, 8, 24)}
_LAST = 3
_NO_KEY = bytes(16)


class Qdisc:
    """A qdisc of a link; `options` as its kind encodes them."""

    __slots__ = ("handle", "kind", "options", "parent")

    def __init__(self, handle: int, parent: int, kind: str, options: bytes) -> None:
        self.handle = handle
        self.parent = parent
        self.kind = kind
        self.options = options


class Filter:
    """A u32 filter: packets that match its keys (struct tc_u32_key) go to a class, or to the link of index `target`.

    If `target` is 0 they go to the class. The qdisc for arriving packets has no classes: there they pass.
    """

    __slots__ = ("classid", "keys", "priority", "protocol", "target")

    def __init__(self, priority: int, protocol: int, keys: bytes, classid: int, target: int) -> None:
        self.priority = priority
        self.protocol = protocol
        self.keys = keys
        self.classid = classid
        self.target = target

    @classmethod
    def of_all(cls, classid: int, target: int = 0, *, alone: bool) -> Filter:
        """Return a filter of all packets, which comes after all other filters. `alone`: there are no others."""
        return cls(1 if alone else _LAST, _ETH_P_ALL, _NO_KEY, classid, target)

    @classmethod
    def of_source(cls, subnet: CIDR, classid: int, target: int = 0) -> Filter:
        """Return a filter of packets from a subnet."""
        priority, protocol, source, _ = _VERSIONS[subnet.version]
        return cls(priority, protocol, _keys(subnet, source), classid, target)

    @classmethod
    def of_destination(cls, subnet: CIDR, classid: int, target: int = 0) -> Filter:
        """Return a filter of packets to a subnet."""
        priority, protocol, _, destination = _VERSIONS[subnet.version]
        return cls(priority, protocol, _keys(subnet, destination), classid, target)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def _all(self) -> tuple[int, int, bytes, int, int]:
        return self.priority, self.protocol, self.keys, self.classid, self.target


def _keys(subnet: CIDR, offset: int) -> bytes:
    """Return the keys that compare the address at `offset` in the header, in words of four bytes."""
    network = subnet.network.ip
    mask = ((1 << subnet.prefix) - 1 << network.bits - subnet.prefix).to_bytes(network.bits // 8, "big")
    words = [
        mask[at : at + 4] + network.packed[at : at + 4] + u32(offset + at) + bytes(4)
        for at in range(0, len(mask), 4)
        if any(mask[at : at + 4])
    ]
    return b"".join(words) or _NO_KEY


# ---- requests ----


def put_tbf(batch: Batch, link: Link, handle: int, bucket: Bucket, attempt: str) -> None:
    """Queue a bucket as the link's root. `attempt` describes the request in errors, with a %s for the link."""
    parameters = _rate(bucket.rate) + bytes(12) + u32(bucket.limit) + u32(bucket.ticks) + bytes(4)
    options = [(_TCA_TBF_PARMS, parameters), *_wide(bucket.rate, _TCA_TBF_RATE64)]
    _put_qdisc(batch, link, handle, ROOT, "tbf", options, attempt)


def put_htb(batch: Batch, link: Link, handle: int, default: int, attempt: str) -> None:
    """Queue a root with classes. Packets that no filter matches go to class `default`, 0 being the direct queue."""
    parameters = u32(_HTB_VERSION) + u32(_HTB_RATE_TO_QUANTUM) + u32(default) + bytes(8)
    _put_qdisc(batch, link, handle, ROOT, "htb", [(_TCA_HTB_INIT, parameters)], attempt)


def put_class(batch: Batch, link: Link, parent: int, classid: int, bucket: Bucket) -> None:
    """Queue a class of an htb, with the limit of a bucket."""
    rate, ticks = _rate(bucket.rate), u32(bucket.ticks)
    parameters = rate + rate + ticks + ticks + u32(_QUANTUM) + bytes(8)
    rates = [*_wide(bucket.rate, _TCA_HTB_RATE64), *_wide(bucket.rate, _TCA_HTB_CEIL64)]
    attributes = [(_TCA_KIND, "htb"), (_TCA_OPTIONS, [(_TCA_HTB_PARMS, parameters), *rates])]
    header = _tcmsg(link.index, classid, parent)
    batch.request(_RTM_NEWTCLASS, _NLM_F_CREATE_EXCL, header, attributes, "add a class to %s", (link.name,))


def put_bfifo(batch: Batch, link: Link, handle: int, parent: int, limit: int) -> None:
    """Queue a queue of `limit` bytes below a class."""
    _put_qdisc(batch, link, handle, parent, "bfifo", u32(limit), "add a queue to %s")


def put_hook(batch: Batch, link: Link, attempt: str) -> None:
    """Queue the qdisc that has filters for packets arriving at the link."""
    _put_qdisc(batch, link, HOOK, _INGRESS, "ingress", b"", attempt)


def put_filter(batch: Batch, link: Link, parent: int, filter: Filter) -> None:
    """Queue a filter of a qdisc of the link."""
    count = len(filter.keys) // 16
    selector = u8(_TC_U32_TERMINAL) + u8(0) + u8(count) + bytes(_SIZEOF_TC_U32_SEL - 3) + filter.keys
    options: list[tuple[int, Any]] = [(_TCA_U32_CLASSID, u32(filter.classid)), (_TCA_U32_SEL, selector)]
    if filter.target:
        action = u32(0) + u32(0) + u32(_TC_ACT_STOLEN) + bytes(8) + u32(_TCA_EGRESS_REDIR) + u32(filter.target)
        redirect = [(_TCA_ACT_KIND, "mirred"), (_TCA_ACT_OPTIONS, [(_TCA_MIRRED_PARMS, action)])]
        options.append((_TCA_U32_ACT, [(1, redirect)]))
    info = filter.priority << 16 | int.from_bytes(be16(filter.protocol), byteorder)
    header = _tcmsg(link.index, 0, parent, info)
    attributes = [(_TCA_KIND, "u32"), (_TCA_OPTIONS, options)]
    batch.request(_RTM_NEWTFILTER, _NLM_F_CREATE_EXCL, header, attributes, "add a filter to %s", (link.name,))


def delete_root(batch: Batch, index: int, handle: int, kind: str) -> None:
    """Queue the deletion of a link's root, if it is of that kind and has that handle."""
    _delete_qdisc(batch, index, handle, ROOT, kind)


def delete_hook(batch: Batch, index: int) -> None:
    """Queue the deletion of the qdisc for packets arriving at a link, with its filters, if there is one."""
    _delete_qdisc(batch, index, HOOK, _INGRESS, "ingress")


def _put_qdisc(
    batch: Batch, link: Link, handle: int, parent: int, kind: str, options: bytes | list[Any], attempt: str
) -> None:
    attributes: list[tuple[int, Any]] = [(_TCA_KIND, kind), (_TCA_OPTIONS, options)]
    header = _tcmsg(link.index, handle, parent)
    batch.request(_RTM_NEWQDISC, _NLM_F_CREATE_EXCL, header, attributes, attempt, (link.name,))


def _delete_qdisc(batch: Batch, index: int, handle: int, parent: int, kind: str) -> None:
    header, attempt = _tcmsg(index, handle, parent), "delete the %s of link %d"
    ignored = (errno.ENOENT, errno.ENODEV, errno.EINVAL)  # EINVAL: it is another qdisc
    batch.request(_RTM_DELQDISC, 0, header, [(_TCA_KIND, kind)], attempt, (kind, index), ignored)


def _tcmsg(index: int, handle: int, parent: int, info: int = 0) -> bytes:
    return bytes(4) + u32(index) + u32(handle) + u32(parent) + u32(info)


def _rate(rate: int) -> bytes:
    """Return a struct tc_ratespec."""
    return bytes(8) + u32(min(rate, 0xFFFFFFFF))


def _wide(rate: int, number: int) -> list[tuple[int, bytes]]:
    """Return the attribute for a rate that struct tc_ratespec has no room for."""
    return [(number, u64(rate))] if rate > 0xFFFFFFFF else []


# ---- replies ----


def qdiscs(node: Netlink) -> dict[int, list[Qdisc]]:
    """Return the qdiscs of all links by index: the kernel cannot list those of one link."""
    qdiscs_by_link: dict[int, list[Qdisc]] = {}
    for index, handle, parent, _, attributes in _dump(node, _RTM_GETQDISC, _tcmsg(0, 0, 0), "list qdiscs"):
        qdisc = Qdisc(handle, parent, _text(attributes[_TCA_KIND]), attributes.get(_TCA_OPTIONS, b""))
        qdiscs_by_link.setdefault(index, []).append(qdisc)
    return qdiscs_by_link


def filters(node: Netlink, index: int, parent: int) -> list[Filter]:
    """Return the filters of a link's qdisc, [] if it has no such qdisc. Filters other than u32 have no keys."""
    parsed = []
    for _, _, _, info, attributes in _dump(node, _RTM_GETTFILTER, _tcmsg(index, 0, parent), "list filters"):
        if _TCA_OPTIONS not in attributes:
            continue  # says only that there are filters of this priority
        protocol = int.from_bytes((info & 0xFFFF).to_bytes(2, byteorder), "big")
        filter = Filter(info >> 16, protocol, b"", 0, 0)
        if _text(attributes[_TCA_KIND]) == "u32":
            options = parse_attributes(attributes[_TCA_OPTIONS])
            if _TCA_U32_SEL not in options:
                continue  # a table of filters
            filter.keys = options[_TCA_U32_SEL][_SIZEOF_TC_U32_SEL:]
            filter.classid = number(options.get(_TCA_U32_CLASSID, bytes(4)))
            filter.target = _target(options.get(_TCA_U32_ACT, b""))
        parsed.append(filter)
    return parsed


def _target(actions: bytes) -> int:
    """Return the index of the link that the first action redirects to, 0 for another action."""
    action = parse_attributes(parse_attributes(actions).get(1, b""))
    if _text(action.get(_TCA_ACT_KIND, b"")) != "mirred":
        return 0
    parameters = parse_attributes(action[_TCA_ACT_OPTIONS])[_TCA_MIRRED_PARMS]
    return number(parameters, 24) if number(parameters, 20) == _TCA_EGRESS_REDIR else 0


def tbf_parameters(qdisc: Qdisc) -> tuple[int, int, int]:
    """Return rate, ticks and limit of a tbf."""
    options = parse_attributes(qdisc.options)
    parameters = options[_TCA_TBF_PARMS]
    return _rate_of(options, parameters, 0, _TCA_TBF_RATE64), number(parameters, 28), number(parameters, 24)


def htb_default(qdisc: Qdisc) -> int:
    """Return the minor number of an htb's default class."""
    return number(parse_attributes(qdisc.options)[_TCA_HTB_INIT], 8)


def class_parameters(node: Netlink, index: int, classid: int) -> tuple[int, int, int]:
    """Return rate, ceil and ticks of a class of a link's htb, zeros if it has no such class."""
    for _, handle, _, _, attributes in _dump(node, _RTM_GETTCLASS, _tcmsg(index, 0, 0), "list classes"):
        if handle == classid:
            options = parse_attributes(attributes[_TCA_OPTIONS])
            parameters = options[_TCA_HTB_PARMS]
            rate = _rate_of(options, parameters, 0, _TCA_HTB_RATE64)
            return rate, _rate_of(options, parameters, 12, _TCA_HTB_CEIL64), number(parameters, 24)
    return 0, 0, 0


def number(data: bytes, at: int = 0) -> int:
    """Return the 32-bit integer at an offset."""
    return int.from_bytes(data[at : at + 4], byteorder)


def _rate_of(options: dict[int, bytes], parameters: bytes, at: int, wide: int) -> int:
    """Return the rate of the struct tc_ratespec at an offset, or of the attribute for rates that it has no room for."""
    return int.from_bytes(options[wide], byteorder) if wide in options else number(parameters, at + 8)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def _dump(node: Netlink, type: int, header: bytes, what: str) -> Iterable[tuple[int, int, int, int, dict[int, bytes]]]:
    """Yield index, handle, parent, info and attributes of each object."""
    for _, data in node.dump(type, header, (), what):
        index, handle, parent, info = (number(data, at) for at in (4, 8, 12, 16))
        yield index, handle, parent, info, parse_attributes(data[_SIZEOF_TCMSG:])
