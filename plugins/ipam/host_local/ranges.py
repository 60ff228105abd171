"""Ranges of addresses: their validation, and the order of allocation."""

from __future__ import annotations

from cni._core import format_ip
from cni.spec.errors import CNIError
from cni.spec.ip import CIDR, IP
from cni.spec.version import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Range:
    """The addresses from `start` to `end` of a subnet, both included, without its gateway.

    The defaults follow from the subnet: the first address is the gateway and the start, the last one the end;
    for IPv4 that is the one before the broadcast address, for IPv6 the address of all ones.
    Raises ValueError, with Go's message, for a range from which no address can be allocated.
    """

    __slots__ = ("end", "excluded", "gateway", "high", "low", "start", "subnet")

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
        # Go compares start with end before it checks end itself, so the error for a reversed pair names the start.
        if start and not (start in subnet and (end is None or start <= end)):
            raise ValueError(f"RangeStart {start} not in network {subnet}")
        self.start = start or base + 1
        if end and not (end in subnet and self.start <= end):
            raise ValueError(f"RangeEnd {end} not in network {subnet}")
        self.end = end or subnet.broadcast + (-1 if subnet.version == 4 else 0)
        # Numbers, as the search for a free address may iterate over a nearly full range.
        self.low, self.high = int(self.start), int(self.end)
        self.excluded = int(self.gateway) if self.gateway.version == subnet.version else None

    def overlaps(self, other: Range) -> bool:
        return self.subnet.version == other.subnet.version and self.start <= other.end and other.start <= self.end

    def __contains__(self, ip: IP) -> bool:
        return ip in self.subnet and self.start <= ip <= self.end

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


class RangeSet:
    """Alternative ranges: one address is allocated from all of them together.

    Raises ValueError, with Go's message, for ranges of several families, and for overlapping ones.
    """

    __slots__ = ("ranges",)

    def __init__(self, ranges: list[Range]) -> None:
        if not ranges:
            raise ValueError("empty range set")
        self.ranges = ranges
        if any(member.subnet.version != self.version for member in ranges):
            raise ValueError("mixed address families")
        for index, member in enumerate(ranges):
            for other in ranges[index + 1 :]:
                if member.overlaps(other):
                    raise ValueError(f"subnets {member} and {other} overlap")

    @property
    def version(self) -> int:
        """Return the ranges' IP version, 4 or 6."""
        return self.ranges[0].subnet.version

    @property
    def size(self) -> int:
        """Return the number of addresses that can be allocated."""
        return sum(member.high - member.low + (member.gateway not in member) for member in self.ranges)

    def find(self, ip: IP) -> Range | None:
        """Return the range that `ip` lies in, None if there is none."""
        return next((member for member in self.ranges if ip in member), None)

    def overlaps(self, other: RangeSet) -> bool:
        return any(mine.overlaps(theirs) for mine in self.ranges for theirs in other.ranges)

    def candidates(self, last: IP | None) -> Iterator[tuple[str, Range]]:
        """Yield every address of the set once, as its canonical text, beginning after `last`, the last allocated one.

        So `last` itself comes last, and a released address is not allocated again before all others.
        A `last` that lies in none of the ranges (they were changed) counts as None.
        Texts, not IPs: the search for a free address may iterate over a nearly full /16.
        """
        width = self.ranges[0].subnet.ip.bits // 8
        for member, low, high in self._rotation(last):
            for value in range(low, high + 1):
                if value != member.excluded:
                    yield format_ip(value.to_bytes(width, "big")), member

    def _rotation(self, last: IP | None) -> list[tuple[Range, int, int]]:
        whole = [(member, member.low, member.high) for member in self.ranges]
        if last is None or last.version != self.version:
            return whole
        begin = int(last)
        for index, (member, low, high) in enumerate(whole):
            if low <= begin <= high:
                return [(member, begin + 1, high), *whole[index + 1 :], *whole[:index], (member, low, begin)]
        return whole

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))


def check_together(sets: list[RangeSet], version: str) -> None:
    """Raise CNIError, with Go's message, unless a configuration of this cniVersion may have all these sets."""
    if not sets:
        raise CNIError("no IP ranges specified")
    families = [ranges.version for ranges in sets]
    if max(families.count(4), families.count(6)) > 1 and not at_least(version, "0.3.0"):
        raise CNIError(f"CNI version {version} does not support more than 1 address per family")
    for index, ranges in enumerate(sets):
        for later, other in enumerate(sets[index + 1 :], index + 1):
            if ranges.overlaps(other):
                raise CNIError(f"range set {index} overlaps with {later}")


def requested_ip(text: str) -> IP:
    """Parse a requested address. A prefix is ignored, as the range determines it. Raises ValueError."""
    if not text:
        raise ValueError("cannot understand ip: IP <nil> not v4 nor v6")
    try:
        return CIDR.parse(text).ip if "/" in text else IP.parse(text)
    except ValueError:
        raise ValueError(f"invalid IP address {text}") from None
