"""Deterministic hardware addresses.

A MAC that follows from the IP address stays the same when a container with that
address is created again, so no neighbour keeps a stale entry, and a bridge whose MAC
follows from its gateway address keeps it while ports come and go.
"""

from __future__ import annotations

import posix

from cni import _core
from cni.spec.errors import CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.spec.ip import IP
    from cni.spec.result import IPConfig


def leading(ips: list[IP]) -> IP:
    """Return the address that an interface's MAC follows from: the first IPv4 address, without one the first."""
    return next((ip for ip in ips if ip.version == 4), ips[0])


def from_ip(ip: IP) -> str:
    """Return ``0a:58`` (locally administered) and the IPv4 address, or the last four bytes of an IPv6 address."""
    return _core.hwaddr_from_ip(ip.packed)


def of_addresses(ips: list[IPConfig]) -> str:
    """Return the MAC of an interface with these addresses, of which there is at least one."""
    return from_ip(leading([ip.address.ip for ip in ips]))


def random() -> str:
    """Return a random MAC: locally administered, of a single station (IEEE 802)."""
    first, *others = posix.urandom(6)
    return bytes([first & 0xFC | 0x02, *others]).hex(":")


def requested(text: str, context: str) -> str:
    """Normalize a requested MAC; an empty string stays empty. Raises CNIError, whose message begins with `context`."""
    try:
        return normalize(text) if text else ""
    except ValueError as error:
        raise CNIError(f"{context}: {error}") from error


def normalize(text: str) -> str:
    """Return a MAC in lower case with colons. Raises ValueError: ``address X: invalid MAC address``."""
    return _core.parse_hwaddr(text).hex(":")
