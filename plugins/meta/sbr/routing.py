"""sbr's requests to the kernel: rules by source, and default routes."""

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


# The attributes of a rule that matches the source only. Its table's routes are all used: none is suppressed (-1).
_PLAIN_ATTRIBUTES = {_FRA_SRC, _FRA_PRIORITY, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_PROTOCOL}
_SUPPRESSES_NONE = b"\xff\xff\xff\xff"


# ---- rules ----


def rules(inside: Netlink, family: int = 0) -> list[tuple[IP | None, int]]:
    """Return the source and the table of every rule (of one family; 0: of all), in the order of their evaluation.

    The source is None for a rule that matches anything but a packet's one source address. Raises NetlinkError.
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
        and attributes.keys() <= _PLAIN_ATTRIBUTES
        and attributes.get(_FRA_SUPPRESS_PREFIXLEN, _SUPPRESSES_NONE) == _SUPPRESSES_NONE
    )
    return IP(source) if is_plain and source else None, table


def add_rule(batch: Batch, source: IP, table: int) -> None:
    """Queue a rule that looks up packets from ``source`` in ``table``, before all rules but the one of table local."""
    attempt = "Failed to add rule: from %s lookup %d"
    flags = _NLM_F_CREATE | _NLM_F_EXCL
    batch.request(_RTM_NEWRULE, flags, *_rule(source, table), attempt, (source.packed, table))


def delete_rule(batch: Batch, source: IP, table: int) -> None:
    """Queue the deletion of one such rule. It is no error if there is none."""
    attempt = "Failed to delete rule: from %s lookup %d"
    batch.request(_RTM_DELRULE, 0, *_rule(source, table), attempt, (source.packed, table), (errno.ENOENT,))


def _rule(source: IP, table: int) -> tuple[bytes, list[tuple[int, bytes]]]:
    header = bytes([FAMILY[source.version], 0, source.bits, 0, 0, 0, 0, _FR_ACT_TO_TBL]) + u32(0)
    return header, [(_FRA_SRC, source.packed), (_FRA_TABLE, u32(table))]


# ---- routes ----


def add_default(batch: Batch, gateway: IP, index: int, table: int) -> None:
    """Queue a default route via ``gateway``."""
    attempt = "Failed to add default route to %s: table %d"
    header = bytes([FAMILY[gateway.version], 0, 0, 0, 0, _RTPROT_BOOT, 0, _RTN_UNICAST]) + u32(0)
    attributes = [(_RTA_TABLE, u32(table)), (_RTA_OIF, u32(index)), (_RTA_GATEWAY, gateway.packed)]
    batch.request(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_EXCL, header, attributes, attempt, (gateway.packed, table))
