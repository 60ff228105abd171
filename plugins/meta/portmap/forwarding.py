"""What one attachment forwards in one IP family: all that the layouts have to know."""

from __future__ import annotations

from cni.spec.errors import CNIError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.spec.ip import CIDR, IP

# With more ports than multiport takes in a rule, several stand in one wherever that can be said: 1,000 rules of
# their own would take the kernel and the programs longer than all the rest of ADD.
MANY = 15

LOOPBACK = "127.0.0.1"


class Port:
    """A port of the node that leads to a port of the container.

    It is for one of the node's addresses, for all of a family if that is the unspecified one, for all if it is None.
    """

    __slots__ = ("container", "host", "host_ip", "protocol")

    def __init__(self, protocol: str, host: int, container: int, host_ip: IP | None = None) -> None:
        self.protocol = protocol
        self.host = host
        self.container = container
        self.host_ip = host_ip

    @property
    def destination(self) -> IP | None:
        """What its packets are sent to; None if it is not for one address alone."""
        return None if self.host_ip is None or self.host_ip.is_unspecified else self.host_ip

    def __str__(self) -> str:
        number = f"{self.host}/{self.protocol}"
        if self.host_ip is None:
            return number
        return f"[{self.host_ip}]:{number}" if self.host_ip.version == 6 else f"{self.host_ip}:{number}"

    def is_of(self, version: int) -> bool:
        """Whether it is for packets of this IP version."""
        return self.host_ip is None or self.host_ip.version == version

    def overlaps(self, other: Port) -> bool:
        """Whether of two of one number and family some packet could be meant for both."""
        return self.destination is None or other.destination is None or self.destination == other.destination


def numbers_of(ports: list[Port]) -> dict[str, list[int]]:
    """The host ports by protocol."""
    numbers: dict[str, list[int]] = {}
    for port in ports:
        numbers.setdefault(port.protocol, []).append(port.host)
    return numbers


class Forwarding:
    """The ports of an attachment that lead to one of its addresses, and how.

    `ports` are those of the address's family, `numbers` all host ports by protocol, the other family's too.
    `masquerades`: what comes to the container by way of a port from its own network or, by IPv4, from the node's
    127.0.0.1, bears the node's address; with `masquerades_all` whatever comes from anywhere. iptables has that done by
    a mark, the bit `mark_bit`, or by whoever owns the chain `mark_chain`.
    """

    __slots__ = (
        "_by_number",
        "address",
        "conditions",
        "container_id",
        "ifname",
        "mark_bit",
        "mark_chain",
        "masquerades",
        "masquerades_all",
        "network",
        "numbers",
        "ports",
    )

    def __init__(
        self,
        network: str,
        container_id: str,
        ifname: str,
        address: CIDR,
        ports: list[Port],
        *,
        masquerades: bool = True,
        masquerades_all: bool = False,
        mark_bit: int = 13,
        mark_chain: str = "",
        conditions: list[str] | None = None,
    ) -> None:
        self.network = network
        self.container_id = container_id
        self.ifname = ifname
        self.address = address
        # The first of those that are for the same packets: the others would never be come to.
        found: dict[tuple[str, int, IP | None], Port] = {}
        for port in ports:
            if port.is_of(address.version):
                found.setdefault((port.protocol, port.host, port.destination), port)
        self.ports = list(found.values())
        self._by_number: dict[tuple[str, int], list[Port]] = {}
        for port in self.ports:
            self._by_number.setdefault((port.protocol, port.host), []).append(port)
        self.numbers = numbers_of(ports)
        self.masquerades = masquerades
        self.masquerades_all = masquerades_all
        self.mark_bit = mark_bit
        self.mark_chain = mark_chain
        self.conditions = conditions or []

    @property
    def version(self) -> int:
        return self.address.version

    @property
    def everywhere(self) -> str:
        return "0.0.0.0/0" if self.version == 4 else "::/0"

    def clash(self, other: Port) -> Port | None:
        """The port of ours that a packet for `other` could be meant for."""
        same_number = self._by_number.get((other.protocol, other.host), ())
        return next((port for port in same_number if port.overlaps(other)), None)

    def grouped(self) -> list[list[Port]]:
        """The ports by protocol and address of the node."""
        groups: dict[tuple[str, IP | None], list[Port]] = {}
        for port in self.ports:
            groups.setdefault((port.protocol, port.destination), []).append(port)
        return list(groups.values())


def taken(port: Port, container_id: str, network: str) -> CNIError:
    """The error that `port` leads to another container already."""
    where = f" of network {quote(network)}" if network else ""
    return CNIError(
        f"host port {port} is already taken by container {quote(container_id)}{where}",
        details="it is free again after DEL of that attachment, or after GC where the container is gone",
    )


def portions(numbers: list[int]) -> list[str]:
    """Ports as iptables' multiport takes them: at most 15 in a rule; of many those that follow one another in one."""
    rules: list[str] = []
    room = 0
    for part in ranges(numbers, ":") if len(numbers) > MANY else map(str, numbers):
        size = 1 + (":" in part)  # a range counts as two ports
        if room < size:
            rules.append(part)
            room = MANY
        else:
            rules[-1] += f",{part}"
        room -= size
    return rules


def ranges(numbers: list[int], separator: str) -> list[str]:
    """In order, those that follow one another as FIRST, separator, LAST."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return [str(first) if first == last else f"{first}{separator}{last}" for first, last in found]
