"""Put the sanitized core through damaged messages, a session with the kernel, and one with a kernel that lies."""

from __future__ import annotations

import os
import random
import socket
import struct
import sys
import tempfile
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import messages

from cni import _core
from cni._core import Netlink
from cni.kernel.netns import NetNS


def fuzz(rounds: int) -> None:
    """The parser, with messages that are damaged in a different way each time."""
    chance = random.Random(1)
    samples = [*messages.SAMPLES, *messages.of_this_kernel()]
    malformed = 0
    for _ in range(rounds):
        number, payload = chance.choice(samples)
        payload = messages.damaged(payload, chance)
        parsers: tuple[Callable[[], object], ...] = (
            lambda number=number, payload=payload: _core.parse_message(number, payload),
            lambda payload=payload: _core.parse_messages(payload),
            lambda payload=payload: _core.parse_attributes(payload),
        )
        for parse in parsers:
            try:
                repr(parse())
            except ValueError:
                malformed += 1
    print("malformed", malformed > 0)


def text(rounds: int) -> None:
    """Addresses from text that is nearly one."""
    chance = random.Random(1)
    for _ in range(rounds):
        for parse in (_core.parse_ip, _core.parse_hwaddr):
            try:
                _core.hwaddr_from_ip(parse("".join(chance.choices("0:1-f.a", k=chance.randrange(50)))))
            except ValueError:
                pass
        _core.format_ip(chance.randbytes(chance.choice((4, 16))))


def look(netlink: Netlink) -> None:
    """All that needs no rights."""
    batch = netlink.batch()
    for _ in range(40):
        batch.link_get("lo").link_get("none", missing_ok=True).link_get(1)
    batch.commit()
    netlink.links()
    netlink.addresses()
    netlink.routes(0, 0)
    for refused in (
        lambda: netlink.batch().link_delete("none").link_get("far-too-long-a-name").commit(),
        lambda: netlink.dump(26, bytes([2]) + bytes(11), [(1, b"1234")], "list"),
        lambda: netlink.batch().request(16, 0, bytes(16), [(3, b"x" * 70000)], "too long").commit(),
    ):
        try:
            refused()
        except OSError:
            continue
        raise AssertionError("that should have been refused")


def work() -> None:
    """Return what an ADD and a DEL do, in namespaces of their own."""
    with NetNS.create() as node, NetNS.create() as container, node.netlink() as netlink:
        netlink.batch().link_create("bridge", "br0", up=True, data=[(5, _core.u32(0))]).commit()
        bridge = netlink.link("br0").index
        batch = netlink.batch().veth("host0", "eth0", netns=container.fd, mtu=1400, master=bridge, up=True)
        batch.link_set("host0", alias="a", port_kind="bridge", port_data=[(4, b"\1")]).commit()
        with container.netlink() as inside:
            index = inside.link("eth0").index
            batch = inside.batch().link_set(index, up=True).address_add(index, bytes([10, 0, 0, 2]), 24)
            batch.address_add(index, bytes.fromhex("fd00") + bytes(13) + b"\2", 64, nodad=True)
            batch.route_add(bytes(4), 0, gateway=bytes([10, 0, 0, 1]), mtu=1300, advmss=1200).commit()
            look(inside)
        os.close(node.open_file("/proc/sys/net/ipv4/ip_forward"))
        node.run(os.getpid)
        with node.netlink() as news:
            news.subscribe(1)
            netlink.batch().link_delete("host0").commit()
            while news.wait(0):
                pass


def keep() -> None:
    """Files of any size, and what is none."""
    with tempfile.TemporaryDirectory() as path:
        folder = os.open(path, os.O_RDONLY)
        for size in (0, 1, 4096, 4097, 70000):
            data = bytes(size)
            _core.write_file(folder, "a", data)
            _core.write_file(folder, "a", data, append=True)
            _core.replace_file(folder, "b", "new", data)
            if (_core.read_file(folder, "a"), _core.read_file(folder, "b")) != (data + data, data):
                raise AssertionError("that is not what was written")
        if _core.read_file(folder, "c") is not None:
            raise AssertionError("there is no such file")
        try:
            _core.read_file(folder, ".")
        except OSError:
            pass
        os.close(folder)


def lied_to(rounds: int) -> None:
    """Whatever the answers, there is an error or a result, and an end."""
    failures = 0
    for _ in range(rounds):
        with Netlink() as netlink:
            with socket.socket(fileno=os.dup(netlink.fileno())) as same:
                # A lost acknowledgement would be waited for forever.
                same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 2000))
            try:
                look(netlink)
            except (OSError, ValueError):
                failures += 1
    print("failures", failures > 0)


if sys.argv[1] == "lies":
    lied_to(2000)
else:
    fuzz(60000)
    text(5000)
    keep()
    with Netlink() as own:
        look(own)
    if os.geteuid() == 0:
        work()
