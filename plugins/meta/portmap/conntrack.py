"""Delete tracked connections (conntrack) that were opened before a port was forwarded elsewhere."""

from __future__ import annotations

import errno

from cni._core import Netlink, parse_attributes
from cni.spec.ip import FAMILY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from cni.kernel.netns import NetNS

# linux/netlink.h, linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
_NETLINK_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE
_NLA_F_NESTED = 0x8000
_CTA_TUPLE_ORIG, _CTA_ID, _CTA_ZONE = 1, 12, 18
_CTA_TUPLE_PROTO = 2
_CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 3

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_HEADER_LENGTH = 4  # struct nfgenmsg


def delete(host: NetNS | None, version: int, protocol: str, ports: Collection[int]) -> None:
    """Delete all connections of an IP version whose original destination is one of `ports`.

    `host` is the network namespace; None is this process's own. The connections are listed once, however many ports
    there are. Raises OSError.
    """
    header = bytes((FAMILY[version], 0, 0, 0))
    with Netlink(host.fd if host else -1, _NETLINK_NETFILTER) as netfilter:
        batch = netfilter.batch()
        wanted = {(_PROTOCOLS[protocol], port) for port in ports}
        for _, message in netfilter.dump(_GET, header, (), "list connections"):
            connection = parse_attributes(message[_HEADER_LENGTH:])
            if _destination(connection) in wanted:
                batch.request(
                    _DELETE, 0, header, _identity(connection), "delete a %s connection", (protocol,), (errno.ENOENT,)
                )
        batch.commit()


def _destination(connection: dict[int, bytes]) -> tuple[int, int]:
    """Return the connection's protocol number and original destination port."""
    start = parse_attributes(connection[_CTA_TUPLE_ORIG])
    protocol = parse_attributes(start[_CTA_TUPLE_PROTO])
    port = protocol.get(_CTA_PROTO_DST_PORT, b"")  # ICMP has none
    return protocol[_CTA_PROTO_NUM][0], int.from_bytes(port, "big")


def _identity(connection: dict[int, bytes]) -> list[tuple[int, bytes]]:
    attributes = [(_CTA_TUPLE_ORIG | _NLA_F_NESTED, connection[_CTA_TUPLE_ORIG])]
    # With its id, as another connection may by now have the same addresses and ports.
    return attributes + [(number, connection[number]) for number in (_CTA_ID, _CTA_ZONE) if number in connection]
