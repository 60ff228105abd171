"""The interface that a lease is for, and the socket on it.

Nothing is held between two exchanges, lest the daemon keep a container's namespace alive: the interface is found
again each time, by its namespace's path and its name, and is the same if index and MAC are.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

from cni.kernel.netns import NetNS, NetNSNotFound
from cni.spec.errors import CNIError, quote
from cni.spec.ip import IP
from cni_plugins.ipam.dhcp import message
from cni_plugins.ipam.dhcp.message import ANY, EVERYBODY, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from cni import _core

_ETH_P_IP = 0x0800
_ARPHRD_ETHER = 1
TO_EVERYBODY = b"\xff" * 6
_LONGEST_PACKET = 1 << 16

_SO_ATTACH_FILTER = 26
# (code, jump if true, jump if false, operand): UDP, no later fragment, to port 68. linux/filter.h
_FILTER = (
    (0x30, 0, 0, 9),  # the protocol
    (0x15, 0, 6, 17),
    (0x28, 0, 0, 6),  # flags and fragment offset
    (0x45, 4, 0, 0x1FFF),
    (0xB1, 0, 0, 0),  # the header's length
    (0x48, 0, 0, 2),  # the destination's port
    (0x15, 0, 1, message.CLIENT_PORT),
    (0x06, 0, 0, _LONGEST_PACKET),
    (0x06, 0, 0, 0),
)
# Closing a packet socket takes an RCU grace period, some 15 ms, in which the loop has better things to do. Several wait
# for the same one.
_closers = ThreadPoolExecutor(8, "closer")

_CARRIER = 2.5  # seconds that an interface may take to be operational
_CARRIER_STEP = 0.02


class Gone(CNIError):
    """The interface, or its namespace, is there no more."""


class Link:
    """An interface: `path` is its namespace's, `index` and `mac` tell it from another one of its name."""

    __slots__ = ("index", "mac", "name", "path")

    def __init__(self, path: str, name: str, index: int, mac: str) -> None:
        self.path = path
        self.name = name
        self.index = index
        self.mac = mac

    @classmethod
    def find(cls, path: str, name: str) -> Self:
        """Raises Gone where there is none, CNIError where the namespace can't be opened."""
        with _open(path) as netns, netns.netlink() as inside:
            link = _find(inside, name)
        return cls(path, name, link.index, link.hwaddr)

    @property
    def hwaddr(self) -> bytes:
        return bytes.fromhex(self.mac.replace(":", ""))

    def is_same(self, other: Link) -> bool:
        """Whether both are one interface, though the namespace may have another path now."""
        return (self.name, self.index, self.mac) == (other.name, other.index, other.mac)

    async def open(self) -> Wire:
        """A socket on the interface, which is set up first. Raises Gone, CNIError, OSError."""
        with _open(self.path) as netns:
            with netns.netlink() as inside:
                link = self._find(inside)
                if not link.is_up:
                    inside.batch().link_set(link.index, up=True).commit()
                # What is sent before that is lost, and only missed after a long time-out.
                deadline = time.monotonic() + _CARRIER
                while inside.link(link.index).operstate not in ("up", "unknown") and time.monotonic() < deadline:
                    await asyncio.sleep(_CARRIER_STEP)
            return Wire(netns, self)

    def set_down(self) -> None:
        self._change(up=False)

    def set_mtu(self, mtu: int) -> None:
        self._change(mtu=mtu)

    def _change(self, *, up: bool | None = None, mtu: int = 0) -> None:
        with _open(self.path) as netns, netns.netlink() as inside:
            inside.batch().link_set(self._find(inside).index, up=up, mtu=mtu).commit()

    def _find(self, inside: _core.Netlink) -> _core.Link:
        link = _find(inside, self.name)
        if (link.index, link.hwaddr) != (self.index, self.mac):
            raise Gone(f"{quote(self.name)} in {self.path} is another interface now")
        return link


def _open(path: str) -> NetNS:
    try:
        return NetNS.open(path)
    except NetNSNotFound as error:
        raise Gone(str(error)) from None
    except OSError as error:
        raise CNIError(f"failed to open netns {quote(path)}: {error}") from error


def _find(inside: _core.Netlink, name: str) -> _core.Link:
    link = inside.find_link(name)
    if link is None:
        raise Gone(f"error looking up {quote(name)}: Link not found")
    return link


class Wire:
    """A packet socket on the interface, which hears what comes for DHCP clients, before there is an address."""

    def __init__(self, netns: NetNS, link: Link) -> None:
        fd = netns.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket = socket.socket(fileno=fd)
        self._link = link
        try:
            _attach_filter(self._socket)
            # With the protocol, and so only with the filter, packets begin to come.
            self._socket.bind((link.name, _ETH_P_IP))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        _closers.submit(self._socket.close)

    def send(
        self, sent: Message, *, source: IP = ANY, destination: IP = EVERYBODY, hwaddr: bytes = TO_EVERYBODY
    ) -> None:
        """Send a message, to all servers if nothing else is said. Raises OSError."""
        packet = message.packet(sent.encode(), source, destination)
        self._socket.sendto(packet, (self._link.name, _ETH_P_IP, 0, _ARPHRD_ETHER, hwaddr))

    async def receive(self) -> tuple[Message, bytes]:
        """The next message for a client, and the MAC that it came from. Raises OSError, if the interface goes, say."""
        loop = asyncio.get_running_loop()
        while True:
            # Lest who sends us rubbish without a pause keep all others waiting.
            await asyncio.sleep(0)
            packet, address = await loop.sock_recvfrom(self._socket, _LONGEST_PACKET)
            try:
                return Message.decode(message.payload(packet)), address[4]
            except ValueError:
                continue


def _attach_filter(made: socket.socket) -> None:
    code = b"".join(struct.pack("HBBI", *step) for step in _FILTER)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HL", len(_FILTER), ctypes.addressof(buffer))
    made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def send_routed(sent: Message, server: IP) -> None:
    """Send a message from the node, whose routes may lead to the server. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(sent.encode(), (str(server), message.SERVER_PORT))
