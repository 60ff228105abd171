"""DHCP's messages (RFC 2131, options of RFC 2132), and the IP packets that carry them.

Received data is not trusted: every length in it is checked, and incomplete data raises ValueError.
"""

from __future__ import annotations

from cni.spec.ip import CIDR, IP
from cni.spec.result import Route
from cni_plugins.ipam.dhcp.rpc import prefix_of

# Kinds of message (option 53).
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)

# Options.
PAD = 0
SUBNET_MASK = 1
ROUTERS = 3
HOST_NAME = 12
MTU = 26
STATIC_ROUTES = 33
REQUESTED_ADDRESS = 50
LEASE_TIME = 51
OVERLOAD = 52
MESSAGE_TYPE = 53
SERVER = 54
PARAMETERS = 55
TEXT = 56
MAXIMUM_SIZE = 57
RENEWAL_TIME = 58
REBINDING_TIME = 59
VENDOR_CLASS = 60
CLIENT_ID = 61
USER_CLASS = 77
CLASSLESS_ROUTES = 121
END = 255

ANY = IP(bytes(4))
BROADCAST = IP(b"\xff" * 4)

SERVER_PORT = 67
CLIENT_PORT = 68

_REQUEST_CODE, _REPLY_CODE = 1, 2
_ETHERNET = 1
_BROADCAST_FLAG = 0x8000
_COOKIE = bytes((99, 130, 83, 99))
_FIXED = 240  # bytes before the options, with the cookie
_MIN_SIZE = 300  # bytes: BOOTP's size; relays drop shorter messages (RFC 1542, 2.1)
_NAME, _FILE = slice(44, 108), slice(108, 236)
# By the value of option 52: the fields with further options, in the order in which they are read.
_OVERLOADED = {1: (_FILE,), 2: (_NAME,), 3: (_FILE, _NAME)}
_SCOPE_LINK = 253  # linux/rtnetlink.h


class Message:
    """A message from or to a server. `hwaddr` is the client's MAC, `options` are values by number.

    `client` is the client's present address (ciaddr), `yours` the one that the server assigns (yiaddr).
    """

    __slots__ = ("broadcast", "client", "hwaddr", "is_reply", "options", "xid", "yours")

    def __init__(
        self,
        xid: int,
        hwaddr: bytes,
        options: dict[int, bytes],
        *,
        client: IP = ANY,
        yours: IP = ANY,
        broadcast: bool = False,
        is_reply: bool = False,
    ) -> None:
        self.xid = xid
        self.hwaddr = hwaddr
        self.options = options
        self.client = client
        self.yours = yours
        self.broadcast = broadcast
        self.is_reply = is_reply

    def encode(self) -> bytes:
        code = _REPLY_CODE if self.is_reply else _REQUEST_CODE
        head = bytes((code, _ETHERNET, len(self.hwaddr), 0)) + self.xid.to_bytes(4, "big") + bytes(2)
        head += (_BROADCAST_FLAG if self.broadcast else 0).to_bytes(2, "big")
        head += self.client.packed + self.yours.packed + bytes(8) + self.hwaddr.ljust(16, b"\0")
        message = head.ljust(_FIXED - len(_COOKIE), b"\0") + _COOKIE + _encoded(self.options) + bytes((END,))
        return message.ljust(_MIN_SIZE, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Decode a message. Raises ValueError unless it is a valid message to or from a host on an Ethernet."""
        if len(data) < _FIXED or data[_FIXED - len(_COOKIE) : _FIXED] != _COOKIE:
            raise ValueError("too short, or BOOTP without DHCP")
        code, hardware, size = data[0], data[1], data[2]
        if code not in (_REQUEST_CODE, _REPLY_CODE) or hardware != _ETHERNET or size != 6:
            raise ValueError("not a message of a host on an Ethernet")
        return cls(
            int.from_bytes(data[4:8], "big"),
            data[28:34],
            _decoded(data),
            client=IP(data[12:16]),
            yours=IP(data[16:20]),
            broadcast=bool(int.from_bytes(data[10:12], "big") & _BROADCAST_FLAG),
            is_reply=code == _REPLY_CODE,
        )

    @property
    def kind(self) -> int:
        """Return the kind of message, 0 if it has none."""
        value = self.options.get(MESSAGE_TYPE, b"")
        return value[0] if len(value) == 1 else 0

    @property
    def server(self) -> IP | None:
        return self._address(SERVER)

    @property
    def router(self) -> IP | None:
        """Return the first router."""
        return self._address(ROUTERS)

    @property
    def text(self) -> str:
        """Return the server's error message."""
        return self.options.get(TEXT, b"").decode(errors="replace")

    @property
    def network(self) -> CIDR | None:
        """Return the assigned address with its network's prefix length, None without a valid mask."""
        mask = self.options.get(SUBNET_MASK, b"")
        try:
            return CIDR(self.yours, prefix_of(mask)) if len(mask) == 4 else None
        except ValueError:
            return None

    def number(self, code: int, size: int = 4) -> int | None:
        """Return the number of `size` bytes in an option, None if there is none of that size."""
        value = self.options.get(code, b"")
        return int.from_bytes(value, "big") if len(value) == size else None

    def routes(self) -> list[Route]:
        """Return the routes of the option that takes precedence (RFC 3442).

        An incomplete route at an option's end is ignored.
        """
        classless = self.options.get(CLASSLESS_ROUTES)
        if classless:
            return _classless_routes(classless)
        routes = _static_routes(self.options.get(STATIC_ROUTES, b""))
        if self.router:
            routes.append(Route(CIDR(ANY, 0), self.router))
        return routes

    def _address(self, code: int) -> IP | None:
        value = self.options.get(code, b"")[:4]
        return IP(value) if len(value) == 4 else None


def _encoded(options: dict[int, bytes]) -> bytes:
    """Encode the options. A value that is too long for one option is split to several of its number (RFC 3396)."""
    out = bytearray()
    for code, value in options.items():
        if code in (PAD, END):  # which have no value
            continue
        for begin in range(0, max(len(value), 1), 255):
            part = value[begin : begin + 255]
            out += bytes((code, len(part))) + part
    return bytes(out)


def _decoded(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    _read_options(data[_FIXED:], options)
    overload = options.get(OVERLOAD, b"")
    for field in _OVERLOADED.get(overload[0], ()) if len(overload) == 1 else ():
        _read_options(data[field], options)
    return options


def _read_options(data: bytes, options: dict[int, bytes]) -> None:
    """Read options. Those of one number are parts of one option (RFC 3396). The closing END may be missing."""
    position = 0
    while position < len(data) and data[position] != END:
        if data[position] == PAD:
            position += 1
            continue
        begin = position + 2
        if begin > len(data) or (end := begin + data[position + 1]) > len(data):
            raise ValueError(f"option {data[position]} is incomplete")
        options[data[position]] = options.get(data[position], b"") + data[begin:end]
        position = end


def _classless_routes(data: bytes) -> list[Route]:
    """Parse routes of RFC 3442: the prefix's length, as many bytes of the destination as that takes, and the router."""
    routes = []
    position = 0
    while position < len(data):
        width = data[position]
        middle = position + 1 + (width + 7) // 8
        if width > 32 or middle + 4 > len(data):
            break
        destination = CIDR(IP(data[position + 1 : middle].ljust(4, b"\0")), width).network
        router = IP(data[middle : middle + 4])
        # The router 0.0.0.0 means that the destination is on the link.
        routes.append(Route(destination, router, scope=_SCOPE_LINK if router == ANY else None))
        position = middle + 4
    return routes


def _static_routes(data: bytes) -> list[Route]:
    """Parse pairs of destination and router. The mask follows from the address's class."""
    pairs = [(IP(data[at : at + 4]), IP(data[at + 4 : at + 8])) for at in range(0, len(data) - 7, 8)]
    return [Route(CIDR(destination, _class(destination)).network, router) for destination, router in pairs]


def _class(address: IP) -> int:
    first = address.packed[0]
    return 8 if first < 128 else 16 if first < 192 else 24


# ---- IP and UDP ----

_HEADERS = 28
_UDP = 17
_FRAGMENT = 0x3FFF  # more fragments follow, or this is not the first


def packet(payload: bytes, source: IP, destination: IP) -> bytes:
    """Return the IP packet with a message from a client to a server."""
    size = 8 + len(payload)
    udp = b"".join(part.to_bytes(2, "big") for part in (CLIENT_PORT, SERVER_PORT, size))
    addresses = source.packed + destination.packed
    checksum = _checksum(addresses + bytes((0, _UDP)) + size.to_bytes(2, "big") + udp + bytes(2) + payload) or 0xFFFF
    ip = bytes((0x45, 0x10)) + (20 + size).to_bytes(2, "big") + bytes(4) + bytes((64, _UDP))
    ip += _checksum(ip + bytes(2) + addresses).to_bytes(2, "big") + addresses
    return ip + udp + checksum.to_bytes(2, "big") + payload


def payload(data: bytes) -> bytes:
    """Return the message in an IP packet to a client. Raises ValueError for other and incomplete packets.

    Checksums are not verified: between two interfaces of one machine they are never filled in.
    """
    if len(data) < _HEADERS or data[0] >> 4 != 4 or data[9] != _UDP:
        raise ValueError("not UDP over IPv4")
    begin = (data[0] & 15) * 4
    end = int.from_bytes(data[2:4], "big")
    if begin < 20 or end > len(data) or end < begin + 8 or int.from_bytes(data[6:8], "big") & _FRAGMENT:
        raise ValueError("incomplete packet")
    port, size = (int.from_bytes(data[begin + at : begin + at + 2], "big") for at in (2, 4))
    if port != CLIENT_PORT or size < 8 or begin + size > end:
        raise ValueError("not for a DHCP client, or incomplete")
    return data[begin + 8 : begin + size]


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
