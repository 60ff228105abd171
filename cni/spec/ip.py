"""IP addresses and networks, parsed and formatted as Go does.

The module `ipaddress` would add 4 ms to the start-up, and differs from Go: none of its networks keeps the host
bits, and it does not treat a v4-mapped address as the IPv4 address that it is.
"""

from __future__ import annotations

from cni._core import format_ip, parse_ip

AF_INET, AF_INET6 = 2, 10  # linux/socket.h
FAMILY = {4: AF_INET, 6: AF_INET6}  # by the IP version

_MAPPED = b"\0" * 10 + b"\xff\xff"


class IP:
    """An IPv4 or IPv6 address. A v4-mapped IPv6 address is the IPv4 address, as in Go.

    `version` is 4 or 6, `bits` is 32 or 128. Addresses are ordered, IPv4 before IPv6; `ip + n` is the address
    at distance `n`, which may be negative.
    """

    __slots__ = ("bits", "packed", "version")

    def __init__(self, packed: bytes) -> None:
        length = len(packed)
        if length == 16 and packed.startswith(_MAPPED):
            packed, length = packed[12:], 4
        if length not in (4, 16):
            raise ValueError(f"an IP address has 4 or 16 bytes, not {length}")
        self.packed = packed
        self.bits = length * 8
        self.version = 4 if length == 4 else 6

    @classmethod
    def parse(cls, text: str) -> IP:
        """Parse an address. Raises ValueError ("invalid IP address: X")."""
        try:
            return cls(parse_ip(text))
        except ValueError:
            raise ValueError(f"invalid IP address: {text}") from None

    @classmethod
    def from_int(cls, value: int, version: int) -> IP:
        """Return the address of family `version` (4 or 6) with that number. Raises ValueError if there is none."""
        try:
            return cls(value.to_bytes(4 if version == 4 else 16, "big"))
        except OverflowError:
            raise ValueError(f"no IPv{version} address has the number {value}") from None

    @property
    def is_unspecified(self) -> bool:
        """0.0.0.0 or ::."""
        return not any(self.packed)

    @property
    def is_loopback(self) -> bool:
        """127.0.0.0/8 or ::1."""
        return self.packed[0] == 127 if self.version == 4 else int(self) == 1

    @property
    def is_multicast(self) -> bool:
        """224.0.0.0/4 or ff00::/8."""
        return self.packed[0] & 0xF0 == 0xE0 if self.version == 4 else self.packed[0] == 0xFF

    @property
    def is_link_local(self) -> bool:
        """Link-local unicast: 169.254.0.0/16 or fe80::/10."""
        first = int.from_bytes(self.packed[:2], "big")
        return first == 0xA9FE if self.version == 4 else first & 0xFFC0 == 0xFE80

    @property
    def is_global_unicast(self) -> bool:
        """Global unicast as in Go: any unicast address but loopback and link-local ones; private ones are included."""
        broadcast = self.packed == b"\xff\xff\xff\xff"
        return not (broadcast or self.is_unspecified or self.is_loopback or self.is_multicast or self.is_link_local)

    def __int__(self) -> int:
        return int.from_bytes(self.packed, "big")

    def __add__(self, offset: int) -> IP:
        return IP.from_int(int(self) + offset, self.version)

    def __str__(self) -> str:
        return format_ip(self.packed)

    def __repr__(self) -> str:
        return f"IP({self})"

    def __hash__(self) -> int:
        return hash(self.packed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IP) and self.packed == other.packed

    def __lt__(self, other: IP) -> bool:
        return (len(self.packed), self.packed) < (len(other.packed), other.packed)

    def __le__(self, other: IP) -> bool:
        return not other < self


class CIDR:
    """An address with its prefix length. The host bits are kept: 10.1.2.3/24 stays 10.1.2.3/24."""

    __slots__ = ("ip", "prefix", "version")

    def __init__(self, ip: IP, prefix: int) -> None:
        if not 0 <= prefix <= ip.bits:
            raise ValueError(f"invalid CIDR address: {ip}/{prefix}")
        self.ip = ip
        self.prefix = prefix
        self.version = ip.version

    @classmethod
    def parse(cls, text: str) -> CIDR:
        """Parse an address with a prefix length. Raises ValueError ("invalid CIDR address: X")."""
        address, _, length = text.partition("/")
        try:
            ip = IP.parse(address)
            if not (length.isascii() and length.isdigit()):
                raise ValueError
            mapped = 96 if ip.version == 4 and ":" in address else 0
            return cls(ip, int(length) - mapped)
        except ValueError:
            raise ValueError(f"invalid CIDR address: {text}") from None

    @classmethod
    def host(cls, ip: IP) -> CIDR:
        """Return the network of this one address: /32 or /128."""
        return cls(ip, ip.bits)

    @property
    def network(self) -> CIDR:
        """The network itself: all host bits are 0."""
        return CIDR(IP.from_int(int(self.ip) & ~self._host_mask, self.version), self.prefix)

    @property
    def broadcast(self) -> IP:
        """The network's last address: all host bits are 1, for IPv6 too."""
        return IP.from_int(int(self.ip) | self._host_mask, self.version)

    @property
    def _host_mask(self) -> int:
        return (1 << self.ip.bits - self.prefix) - 1

    def overlaps(self, other: CIDR) -> bool:
        """Return True if the networks have an address in common."""
        return other.ip in self if self.prefix <= other.prefix else self.ip in other

    def __contains__(self, ip: IP) -> bool:
        return ip.version == self.version and (int(ip) ^ int(self.ip)) <= self._host_mask

    def __str__(self) -> str:
        return f"{self.ip}/{self.prefix}"

    def __repr__(self) -> str:
        return f"CIDR({self})"

    def __hash__(self) -> int:
        return hash((self.ip.packed, self.prefix))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CIDR) and self.ip == other.ip and self.prefix == other.prefix
