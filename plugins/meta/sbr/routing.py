"""What sbr asks of the kernel: rules by source, and default routes."""

from __future__ import annotations

import errno
from sys import byteorder

from cni._core import parse_attributes, u32
from cni.spec.ip import FAMILY, IP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Batch, Netlink

# linux/rtnetlink.h
_RTM_NEWROUTE = 24
_RTM_NEWRULE = 32
_RTM_DELRULE = 33
_RTM_GETRULE = 34
_RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_TABLE = 15
_RTN_UNICAST = 1
_RTPROT_BOOT = 3

# linux/fib_rules.h
_FRA_SRC = 2
_FRA_PRIORITY = 6
_FRA_SUPPRESS_PREFIXLEN = 14
_FRA_TABLE = 15
_FRA_PROTOCOL = 21
_FR_ACT_TO_TBL = 1
_RULE_HEADER = 12  # bytes of struct fib_rule_hdr

# linux/netlink.h
_NLM_F_EXCL = 0x200
_NLM_F_CREATE = 0x400


# What the kernel says of a rule that asks for the source alone; -1: it passes over no route.
_SAID_OF_ALL = {_FRA_SRC, _FRA_PRIORITY, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_PROTOCOL}
_PASSES_OVER_NONE = b"\xff\xff\xff\xff"


# ---- rules ----


def rules(inside: Netlink, family: int = 0) -> list[tuple[IP | None, int]]:
    """The source and the table of every rule (of one family; 0: of all), in the order in which they are asked.

    The source is None where a rule asks for anything but one address that a packet comes from. Raises NetlinkError.
    """
    header = bytes([family]) + bytes(_RULE_HEADER - 1)
    return [_read_rule(payload) for _, payload in inside.dump(_RTM_GETRULE, header, (), "list rules")]


def _read_rule(payload: bytes) -> tuple[IP | None, int]:
    # struct fib_rule_hdr: family, dst_len, src_len, tos, table, two reserved, action; then 32 bits of flags.
    family, to_length, from_length, tos, table, _, _, action = payload[:8]
    attributes = parse_attributes(payload[_RULE_HEADER:])
    if _FRA_TABLE in attributes:
        table = int.from_bytes(attributes[_FRA_TABLE], byteorder)
    source = attributes.get(_FRA_SRC, b"")
    is_plain = (
        family in FAMILY.values()
        and (to_length, from_length, tos, action) == (0, 8 * len(source), 0, _FR_ACT_TO_TBL)
        and not any(payload[8:_RULE_HEADER])
        and attributes.keys() <= _SAID_OF_ALL
        and attributes.get(_FRA_SUPPRESS_PREFIXLEN, _PASSES_OVER_NONE) == _PASSES_OVER_NONE
    )
    return IP(source) if is_plain and source else None, table


def add_rule(batch: Batch, source: IP, table: int) -> None:
    """Queue: what comes from ``source`` is led to ``table``. The rule comes before all but the one of table local."""
    what = "Failed to add rule: from %s lookup %d"
    flags = _NLM_F_CREATE | _NLM_F_EXCL
    batch.request(_RTM_NEWRULE, flags, *_rule(source, table), what, (source.packed, table))


def delete_rule(batch: Batch, source: IP, table: int) -> None:
    """Queue the end of one such rule. That there is none is fine."""
    what = "Failed to delete rule: from %s lookup %d"
    batch.request(_RTM_DELRULE, 0, *_rule(source, table), what, (source.packed, table), (errno.ENOENT,))


def _rule(source: IP, table: int) -> tuple[bytes, list[tuple[int, bytes]]]:
    header = bytes([FAMILY[source.version], 0, source.bits, 0, 0, 0, 0, _FR_ACT_TO_TBL]) + u32(0)
    return header, [(_FRA_SRC, source.packed), (_FRA_TABLE, u32(table))]


# ---- routes ----


def add_default(batch: Batch, gateway: IP, index: int, table: int) -> None:
    """Queue a default route by ``gateway``."""
    what = "Failed to add default route to %s: table %d"
    header = bytes([FAMILY[gateway.version], 0, 0, 0, 0, _RTPROT_BOOT, 0, _RTN_UNICAST]) + u32(0)
    attributes = [(_RTA_TABLE, u32(table)), (_RTA_OIF, u32(index)), (_RTA_GATEWAY, gateway.packed)]
    batch.request(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_EXCL, header, attributes, what, (gateway.packed, table))
