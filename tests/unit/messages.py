"""Messages as the kernel sends them, and what damages them: for the tests of the parser, plain and sanitized."""

from __future__ import annotations

import random
import socket
import struct

NEWLINK, NEWADDR, NEWROUTE, NEWNEIGH = 16, 20, 24, 28
_DUMP = 0x301  # NLM_F_REQUEST, NLM_F_DUMP


def attribute(number: int, value: bytes) -> bytes:
    """With its header, and the padding to four bytes."""
    return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)


def message(number: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), number, 2, 1, 0) + payload


def next_hop(index: int, gateway: bytes = b"") -> bytes:
    inner = attribute(5, gateway) if gateway else b""
    return struct.pack("=HBBi", 8 + len(inner), 0, 0, index) + inner


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


LINK = struct.pack("=BxHiII", 0, 1, 7, 0x11043, 0) + b"".join(
    [
        attribute(3, b"veth0\0"),
        attribute(13, u32(1000)),  # IFLA_TXQLEN
        attribute(16, b"\x06"),  # IFLA_OPERSTATE
        attribute(4, u32(1500)),
        attribute(27, u32(5)),  # IFLA_GROUP
        attribute(30, u32(1)),  # IFLA_PROMISCUITY
        attribute(1, bytes.fromhex("0a580a000001")),
        attribute(10, u32(3)),  # IFLA_MASTER
        attribute(5, u32(2)),  # IFLA_LINK
        attribute(37, u32(0)),  # IFLA_LINK_NETNSID
        attribute(20, b"an alias\0"),
        attribute(
            0x8000 | 18,  # IFLA_LINKINFO, as a nest
            attribute(1, b"veth")
            + attribute(2, attribute(1, b"x") + attribute(2, b""))
            + attribute(4, b"bridge\0")
            + attribute(0x8000 | 5, attribute(4, b"\1") + attribute(33, b"\0")),
        ),
        attribute(50, b""),
    ]
)
ADDRESS_4 = struct.pack("=BBBBI", 2, 24, 0x80, 0, 7) + b"".join(
    [
        attribute(1, bytes([10, 0, 0, 2])),
        attribute(2, bytes([10, 0, 0, 1])),
        attribute(3, b"veth0\0"),
        attribute(8, u32(0x280)),
    ]
)
ADDRESS_6 = struct.pack("=BBBBI", 10, 64, 0x80, 253, 7) + attribute(1, bytes.fromhex("fe80") + bytes(13) + b"\1")
ROUTE_4 = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 252, 3, 253, 1, 0) + b"".join(
    [
        attribute(15, u32(1000)),
        attribute(1, bytes([192, 0, 2, 0])),
        attribute(6, u32(55)),
        attribute(7, bytes([10, 0, 0, 1])),
        attribute(8, attribute(2, u32(1300)) + attribute(8, u32(1200)) + attribute(16, b"reno\0")),
        attribute(5, bytes([10, 0, 0, 254])),
        attribute(4, u32(7)),
    ]
)
ROUTE_6 = struct.pack("=BBBBBBBBI", 10, 0, 0, 0, 254, 3, 0, 1, 0) + attribute(
    9, next_hop(7, bytes.fromhex("fd00") + bytes(13) + b"\1") + next_hop(8) + next_hop(9, bytes(15) + b"\2")
)

SAMPLES = [(NEWLINK, LINK), (NEWADDR, ADDRESS_4), (NEWADDR, ADDRESS_6), (NEWROUTE, ROUTE_4), (NEWROUTE, ROUTE_6)]


def of_this_kernel() -> list[tuple[int, bytes]]:
    """Return what the kernel says now of links, addresses and routes."""
    found = []
    for kind in (18, 22, 26):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            kernel.send(struct.pack("=IHHIIB15x", 32, kind, _DUMP, 1, 0, 0))
            done = False
            while not done:
                data = kernel.recv(1 << 16)
                offset = 0
                while offset < len(data) and not done:
                    length, number = struct.unpack_from("=IH", data, offset)
                    done = number == 3  # NLMSG_DONE
                    if not done:
                        found.append((number, data[offset + 16 : offset + length]))
                    offset += length + 3 & ~3
    return found


def damaged(data: bytes, chance: random.Random) -> bytes:
    """With some bytes changed, most of them where lengths are, and perhaps cut short or longer."""
    changed = bytearray(data)
    for _ in range(chance.randrange(4)):
        if not changed:
            break
        place = chance.randrange(len(changed))
        if chance.random() < 0.7:
            place &= ~3  # attributes, whose length comes first, start at multiples of four
        changed[place] = chance.choice((0, 1, 3, 4, 5, 7, 8, 127, 128, 255, chance.randrange(256)))
    if chance.random() < 0.4:
        del changed[chance.randrange(len(changed) + 1) :]
    elif chance.random() < 0.2:
        changed += chance.randbytes(chance.randrange(1, 9))
    return bytes(changed)
