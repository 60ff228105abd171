"""Ranges of addresses: what a configuration may say of them, and the order in which they are given out."""

from __future__ import annotations

from cni._core import format_ip
from cni.spec.errors import CNIError
from cni.spec.ip import CIDR, IP
from cni.spec.version import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Range:
    """The addresses from `start` to `end` of a subnet, both included, its gateway left out.

    What is not said follows from the subnet: the first address is the gateway and the start, the last one the end;
    for IPv4 that is the one before the broadcast address, for IPv6 the address of all ones.
    Raises ValueError, in Go's words, for a range that no address can be given from.
    """

    __slots__ = ("end", "gateway", "high", "left_out", "low", "start", "subnet")

    def __init__(
        self,
        subnet: CIDR | None,
        start: IP | None = None,
        end: IP | None = None,
        gateway: IP | None = None,
    ) -> None:
        if subnet is None:
            raise ValueError("IP <nil> not v4 nor v6")
        if subnet.prefix > subnet.ip.bits - 2:
            raise ValueError(f"Network {subnet} too small to allocate from")
        base = subnet.network.ip
        if subnet.ip != base:
            raise ValueError(
                f"Network has host bits set. For a subnet mask of length {subnet.prefix} the network address is {base}"
            )
        self.subnet = subnet
        self.gateway = gateway or base + 1
        # Go compares start with end before it looks at end itself, so a pair the wrong way round blames the start.
        if start and not (start in subnet and (end is None or start <= end)):
            raise ValueError(f"RangeStart {start} not in network {subnet}")
        self.start = start or base + 1
        if end and not (end in subnet and self.start <= end):
            raise ValueError(f"RangeEnd {end} not in network {subnet}")
        self.end = end or subnet.broadcast + (-1 if subnet.version == 4 else 0)
        # Numbers, as a nearly full range is walked through for one address.
        self.low, self.high = int(self.start), int(self.end)
        self.left_out = int(self.gateway) if self.gateway.version == subnet.version else None

    def overlaps(self, other: Range) -> bool:
        return self.subnet.version == other.subnet.version and self.start <= other.end and other.start <= self.end

    def __contains__(self, ip: IP) -> bool:
        return ip in self.subnet and self.start <= ip <= self.end

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


class RangeSet:
    """Ranges that stand in for each other: one address is given out of all of them together.

    Raises ValueError, in Go's words, where they do not go together.
    """

    __slots__ = ("ranges",)

    def __init__(self, ranges: list[Range]) -> None:
        if not ranges:
            raise ValueError("empty range set")
        self.ranges = ranges
        if any(one.subnet.version != self.version for one in ranges):
            raise ValueError("mixed address families")
        for index, one in enumerate(ranges):
            for other in ranges[index + 1 :]:
                if one.overlaps(other):
                    raise ValueError(f"subnets {one} and {other} overlap")

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.ranges[0].subnet.version

    @property
    def size(self) -> int:
        """The number of addresses that can be given out."""
        return sum(one.high - one.low + (one.gateway not in one) for one in self.ranges)

    def find(self, ip: IP) -> Range | None:
        """The range that `ip` lies in."""
        return next((one for one in self.ranges if ip in one), None)

    def overlaps(self, other: RangeSet) -> bool:
        return any(one.overlaps(another) for one in self.ranges for another in other.ranges)

    def candidates(self, last: IP | None) -> Iterator[tuple[str, Range]]:
        """Every address of the set once, as its canonical text, beginning after `last`, the one given out last.

        So `last` itself comes last, and an address that was given back rests until its turn comes round again.
        A `last` that lies in none of the ranges (they were changed) counts as none.
        Texts, not IPs: a nearly full /16 is walked through for one address.
        """
        width = self.ranges[0].subnet.ip.bits // 8
        for one, low, high in self._rotation(last):
            for value in range(low, high + 1):
                if value != one.left_out:
                    yield format_ip(value.to_bytes(width, "big")), one

    def _rotation(self, last: IP | None) -> list[tuple[Range, int, int]]:
        whole = [(one, one.low, one.high) for one in self.ranges]
        if last is None or last.version != self.version:
            return whole
        begin = int(last)
        for index, (one, low, high) in enumerate(whole):
            if low <= begin <= high:
                return [(one, begin + 1, high), *whole[index + 1 :], *whole[:index], (one, low, begin)]
        return whole

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))


def check_together(sets: list[RangeSet], version: str) -> None:
    """Raises CNIError, in Go's words, unless a configuration of this cniVersion may have all these sets."""
    if not sets:
        raise CNIError("no IP ranges specified")
    families = [one.version for one in sets]
    if max(families.count(4), families.count(6)) > 1 and not at_least(version, "0.3.0"):
        raise CNIError(f"CNI version {version} does not support more than 1 address per family")
    for index, one in enumerate(sets):
        for later, other in enumerate(sets[index + 1 :], index + 1):
            if one.overlaps(other):
                raise CNIError(f"range set {index} overlaps with {later}")


def requested_ip(text: str) -> IP:
    """An address that is asked for. It may have a prefix, but the range's is what counts. Raises ValueError."""
    if not text:
        raise ValueError("cannot understand ip: IP <nil> not v4 nor v6")
    try:
        return CIDR.parse(text).ip if "/" in text else IP.parse(text)
    except ValueError:
        raise ValueError(f"invalid IP address {text}") from None
