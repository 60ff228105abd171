"""The interface of a lease, and the packet socket on it.

The daemon must not keep a container's namespace alive, so it opens nothing between two exchanges: for each it looks up
the interface by its namespace's path and its name. It is the same interface if index and MAC are the same.
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
from cni_plugins.ipam.dhcp.message import ANY, BROADCAST, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from cni import _core

_ETH_P_IP = 0x0800
_ARPHRD_ETHER = 1
BROADCAST_MAC = b"\xff" * 6
_MAX_PACKET = 1 << 16

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
    (0x06, 0, 0, _MAX_PACKET),
    (0x06, 0, 0, 0),
)
# Closing a packet socket takes an RCU grace period, some 15 ms, which would block the loop. Several threads can wait
# for the same grace period.
_closers = ThreadPoolExecutor(8, "closer")

_CARRIER_TIMEOUT = 2.5  # seconds until an interface is operational
_CARRIER_INTERVAL = 0.02


class Gone(CNIError):
    """The interface or its namespace no longer exists."""


class Link:
    """An interface: `path` is its namespace's; `index` and `mac` identify it among interfaces of the same name."""

    __slots__ = ("index", "mac", "name", "path")

    def __init__(self, path: str, name: str, index: int, mac: str) -> None:
        self.path = path
        self.name = name
        self.index = index
        self.mac = mac

    @classmethod
    def find(cls, path: str, name: str) -> Self:
        """Find the interface. Raises Gone if there is none, CNIError if the namespace cannot be opened."""
        with _open(path) as netns, netns.netlink() as inside:
            link = _find(inside, name)
        return cls(path, name, link.index, link.hwaddr)

    @property
    def hwaddr(self) -> bytes:
        return bytes.fromhex(self.mac.replace(":", ""))

    def is_same(self, other: Link) -> bool:
        """Return whether both are the same interface, even if the namespace's path has changed."""
        return (self.name, self.index, self.mac) == (other.name, other.index, other.mac)

    async def open(self) -> Wire:
        """Set the interface up, and open a socket on it. Raises Gone, CNIError, OSError."""
        with _open(self.path) as netns:
            with netns.netlink() as inside:
                link = self._find(inside)
                if not link.is_up:
                    inside.batch().link_set(link.index, up=True).commit()
                # A message that is sent before the interface is operational is lost, and only repeated after a timeout.
                deadline = time.monotonic() + _CARRIER_TIMEOUT
                while inside.link(link.index).operstate not in ("up", "unknown") and time.monotonic() < deadline:
                    await asyncio.sleep(_CARRIER_INTERVAL)
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
            raise Gone(f"{quote(self.name)} in {self.path} was replaced by another interface")
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
    """A packet socket on the interface, which receives packets for DHCP clients before there is an address."""

    def __init__(self, netns: NetNS, link: Link) -> None:
        fd = netns.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket = socket.socket(fileno=fd)
        self._link = link
        try:
            _attach_filter(self._socket)
            # Packets are only received from now on, with the protocol and so with the filter.
            self._socket.bind((link.name, _ETH_P_IP))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        _closers.submit(self._socket.close)

    def send(
        self, sent: Message, *, source: IP = ANY, destination: IP = BROADCAST, hwaddr: bytes = BROADCAST_MAC
    ) -> None:
        """Send a message, by default to all servers. Raises OSError."""
        packet = message.packet(sent.encode(), source, destination)
        self._socket.sendto(packet, (self._link.name, _ETH_P_IP, 0, _ARPHRD_ETHER, hwaddr))

    async def receive(self) -> tuple[Message, bytes]:
        """Return the next message for a client, and its source MAC. Raises OSError, for example without interface."""
        loop = asyncio.get_running_loop()
        while True:
            # A continuous flow of invalid packets must not block the other tasks.
            await asyncio.sleep(0)
            packet, address = await loop.sock_recvfrom(self._socket, _MAX_PACKET)
            try:
                return Message.decode(message.payload(packet)), address[4]
            except ValueError:
                continue


def _attach_filter(packet_socket: socket.socket) -> None:
    code = b"".join(struct.pack("HBBI", *step) for step in _FILTER)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HL", len(_FILTER), ctypes.addressof(buffer))
    packet_socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def send_routed(sent: Message, server: IP) -> None:
    """Send a message from the node, which may have a route to the server. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(sent.encode(), (str(server), message.SERVER_PORT))
