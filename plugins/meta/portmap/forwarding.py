"""The ports that are forwarded to an attachment in one IP family, for the backends."""

from __future__ import annotations

from cni.spec.errors import CNIError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.spec.ip import CIDR, IP

# With more ports than multiport takes in a rule, a rule has several ports wherever possible: 1,000 rules for 1,000
# ports would take the kernel and the programs longer than the rest of ADD.
MANY = 15

LOOPBACK = "127.0.0.1"


class Port:
    """A port of the node that is forwarded to a port of the container.

    `host_ip` is the node's address; the unspecified address means all addresses of its family, None all addresses.
    """

    __slots__ = ("container", "host", "host_ip", "protocol")

    def __init__(self, protocol: str, host: int, container: int, host_ip: IP | None = None) -> None:
        self.protocol = protocol
        self.host = host
        self.container = container
        self.host_ip = host_ip

    @property
    def destination(self) -> IP | None:
        """Return the destination address of its packets, None if it has more than one."""
        return None if self.host_ip is None or self.host_ip.is_unspecified else self.host_ip

    def __str__(self) -> str:
        number = f"{self.host}/{self.protocol}"
        if self.host_ip is None:
            return number
        return f"[{self.host_ip}]:{number}" if self.host_ip.version == 6 else f"{self.host_ip}:{number}"

    def is_of(self, version: int) -> bool:
        """Return whether packets of this IP version are forwarded."""
        return self.host_ip is None or self.host_ip.version == version

    def overlaps(self, other: Port) -> bool:
        """Return whether a packet may match both ports, which have the same number and family."""
        return self.destination is None or other.destination is None or self.destination == other.destination


def numbers_of(ports: list[Port]) -> dict[str, list[int]]:
    """Return the host ports by protocol."""
    numbers: dict[str, list[int]] = {}
    for port in ports:
        numbers.setdefault(port.protocol, []).append(port.host)
    return numbers


class Forwarding:
    """The ports that are forwarded to one of an attachment's addresses, and how.

    `ports` are those of the address's family; `numbers` are all host ports by protocol, also the other family's.
    `masquerades`: forwarded packets from the container's own network and, with IPv4, from the node's 127.0.0.1 are
    masqueraded, with `masquerades_all` those from anywhere. iptables marks such packets with the bit `mark_bit`, or
    leaves that to the existing chain `mark_chain`.
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
        # The first of several ports for the same packets: the rules of the others would never be reached.
        distinct: dict[tuple[str, int, IP | None], Port] = {}
        for port in ports:
            if port.is_of(address.version):
                distinct.setdefault((port.protocol, port.host, port.destination), port)
        self.ports = list(distinct.values())
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
        """Return a port of this forwarding that may match the same packets as `other`, None if there is none."""
        same_number = self._by_number.get((other.protocol, other.host), ())
        return next((port for port in same_number if port.overlaps(other)), None)

    def grouped(self) -> list[list[Port]]:
        """Return the ports grouped by protocol and destination address."""
        groups: dict[tuple[str, IP | None], list[Port]] = {}
        for port in self.ports:
            groups.setdefault((port.protocol, port.destination), []).append(port)
        return list(groups.values())


def taken(port: Port, container_id: str, network: str) -> CNIError:
    """Return the error for a port that is already forwarded to another container."""
    where = f" of network {quote(network)}" if network else ""
    return CNIError(
        f"host port {port} is already taken by container {quote(container_id)}{where}",
        details="it is free again after DEL of that attachment, or after GC if the container is gone",
    )


def portions(numbers: list[int]) -> list[str]:
    """Return the ports as arguments of iptables' multiport, at most 15 each; many ports are combined to ranges."""
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
    """Return the numbers in order, with consecutive ones as FIRST, separator, LAST."""
    bounds: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if bounds and number == bounds[-1][1] + 1:
            bounds[-1] = bounds[-1][0], number
        else:
            bounds.append((number, number))
    return [str(first) if first == last else f"{first}{separator}{last}" for first, last in bounds]
