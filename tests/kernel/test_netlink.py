"""rtnetlink: what is asked for is what iproute2 and pyroute2 find afterwards, and what they made is what is read."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from pyroute2 import IPRoute

from cni._core import Address, Link, Netlink, NetlinkError, Route, be16, format_ip, parse_ip, u8, u16, u32
from cni.kernel.netns import NetNS
from tests.waiting import LIMIT, until

if TYPE_CHECKING:
    from tests.conftest import Node

T = TypeVar("T")

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_GETADDR, RTM_GETROUTE = 22, 26
RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
NLM_F_DUMP = 0x300
NEW = 0x600  # NLM_F_CREATE, NLM_F_EXCL
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE = 1, 5, 7
SCOPE_LINK, SCOPE_HOST = 253, 254
V4_ANY, V6_ANY = bytes(4), bytes(16)


@pytest.fixture
def netns(node: Node) -> Iterator[NetNS]:
    with NetNS.open(node.path) as opened:
        yield opened


@pytest.fixture
def netlink(netns: NetNS) -> Iterator[Netlink]:
    with netns.netlink() as opened:
        yield opened


@pytest.fixture
def wire(node: Node, netlink: Netlink) -> int:
    """The index of a link that is up: w0, 10.0.0.1/24 and fd00::1/64. Its other end is w1."""
    netlink.batch().veth("w0", "w1", up=True).link_set("w1", up=True).commit()
    index = netlink.link("w0").index
    address = netlink.batch().address_add(index, parse_ip("10.0.0.1"), 24)
    address.address_add(index, parse_ip("fd00::1"), 64, nodad=True).commit()
    return index


@pytest.fixture
def wires(netlink: Netlink) -> Iterator[Callable[[int], list[str]]]:
    """Makes many pairs, a0 and b0 and so on; and deletes them as a group: one by one would take seconds."""
    group = (27, u32(7))  # IFLA_GROUP

    def make(count: int) -> list[str]:
        batch = netlink.batch()
        for number in range(count):
            batch.veth(f"a{number}", f"b{number}")
            batch.request(RTM_NEWLINK, 0, bytes(16), [(3, f"a{number}"), group], "put a%d into the group", (number,))
        batch.commit()
        return [f"{end}{number}" for end in "ab" for number in range(count)]

    yield make
    netlink.batch().request(RTM_DELLINK, 0, bytes(16), [group], "delete the group").commit()


def pyroute2(netns: NetNS, ask: Callable[[IPRoute], T]) -> T:
    """Return what pyroute2 says in the namespace."""

    def inside() -> T:
        with IPRoute() as peer:
            return ask(peer)

    return netns.run(inside)


def names(netlink: Netlink) -> set[str]:
    return {link.name for link in netlink.links()} - {"lo"}


def routes_of(node: Node, table: str = "main", version: int = 4) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = node.ip(f"-{version}", "route", "show", "table", table)
    return shown


def tc(node: Node, *arguments: str) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = json.loads(node.run(["tc", "-json", *arguments]).stdout)
    return shown


class TestBatch:
    def test_empty(self, netlink: Netlink) -> None:
        batch = netlink.batch()
        assert len(batch) == 0
        assert batch.commit() == []

    def test_goes_on_after_a_refusal(self, netlink: Netlink) -> None:
        batch = netlink.batch().link_create("bridge", "br0").link_delete("nothing").link_create("bridge", "br1")
        batch.address_add(4242, parse_ip("10.9.8.7"), 24).link_create("bridge", "br0").link_get("br1")
        assert len(batch) == 6
        with pytest.raises(NetlinkError) as caught:
            batch.commit()
        failures = [caught.value, *caught.value.others]
        assert [(e.errno, e.attempt) for e in failures] == [
            (errno.ENODEV, "delete the link nothing"),
            (errno.ENODEV, "add the address 10.9.8.7/24 to link 4242"),
            (errno.EEXIST, "create the bridge br0"),
        ]
        assert names(netlink) == {"br0", "br1"}

    def test_is_empty_once_it_is_sent(self, netlink: Netlink) -> None:
        batch = netlink.batch().link_create("bridge", "br0")
        batch.commit()
        assert len(batch) == 0
        assert batch.commit() == []
        assert [link.name for link in batch.link_get("br0").commit()] == ["br0"]

    def test_is_empty_after_a_failure_too(self, netlink: Netlink) -> None:
        batch = netlink.batch().link_delete("nothing")
        with pytest.raises(NetlinkError):
            batch.commit()
        assert batch.commit() == []

    def test_the_kernels_words(self, netlink: Netlink, wire: int) -> None:
        batch = netlink.batch().link_create("nokind", "x0").route_add(parse_ip("192.0.2.0"), 24, gateway=b"\xc0\0\2\1")
        batch.link_create("bridge", "far-too-long-a-name")
        with pytest.raises(NetlinkError) as caught:
            batch.commit()
        first, (second, third) = caught.value, caught.value.others
        assert first.extack == "Unknown device type"
        assert str(first) == "create the nokind x0: operation not supported (Unknown device type)"
        assert second.extack == "Nexthop has invalid gateway"
        assert str(second).startswith("add the route 192.0.2.0/24 via 192.0.2.1: network is unreachable (")
        assert third.errno == errno.ERANGE
        assert third.extack

    def test_three_hundred_and_more(self, netlink: Netlink) -> None:
        """More than go in one system call; each answer finds its request."""
        count = 333
        batch = netlink.batch()
        lo = netlink.link("lo").index
        for number in range(count):
            batch.address_add(lo if number % 3 else 4242, bytes([10, 7, number >> 8, number & 255]), 32)
        with pytest.raises(NetlinkError) as caught:
            batch.commit()
        refused = [caught.value, *caught.value.others]
        expected = [f"10.7.{n >> 8}.{n & 255}" for n in range(count) if n % 3 == 0]
        assert [e.attempt for e in refused] == [f"add the address {a}/32 to link 4242" for a in expected]
        assert len(netlink.addresses(lo, socket.AF_INET)) == count - len(expected) + 1  # and 127.0.0.1

    def test_hundreds_of_gets(self, netns: NetNS, wires: Callable[[int], list[str]]) -> None:
        """A link's state takes much room in the receive buffer, which only the mighty may enlarge."""
        wires(50)
        code = """
        import os
        from cni._core import Netlink
        os.setresuid(65534, 65534, 65534)
        batch = Netlink().batch()
        for number in range(300):
            batch.link_get("ab"[number % 2] + str(number % 50))
        print([link.name for link in batch.commit()] == ["ab"[number % 2] + str(number % 50) for number in range(300)])
        """
        path = os.pathsep.join(filter(None, sys.path))
        done = netns.run(
            subprocess.run,
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.stdout == "True\n", done.stderr

    def test_gets_in_order_and_what_is_missing(self, netlink: Netlink) -> None:
        batch = netlink.batch().link_create("bridge", "br0").link_get("br0").link_get("none", missing_ok=True)
        link, nothing, lo = batch.link_get(1).commit()
        assert (link.name, nothing, lo.name) == ("br0", None, "lo")
        with pytest.raises(NetlinkError, match=r"^look up the link none: no such device$"):
            netlink.link("none")
        assert netlink.find_link("none") is None
        assert netlink.find_link(4242) is None

    @pytest.mark.parametrize(
        ("queue", "error"),
        [
            (lambda b: b.link_create("bridge", "br0", data=[(1, 5)]), TypeError),
            (lambda b: b.link_create("bridge", "br0", hwaddr="no:mac"), ValueError),
            (lambda b: b.link_create("bridge", "br0\0x"), ValueError),
            (lambda b: b.link_create("bri\0dge", "br0"), ValueError),
            (lambda b: b.link_set("lo\0x", up=False), ValueError),
            (lambda b: b.link_set("lo", name="other"), TypeError),
            (lambda b: b.link_set("lo", port_kind="bridge", port_data=[(1, None)]), TypeError),
            (lambda b: b.link_get("lo\0x"), ValueError),
            (lambda b: b.link_get(-1), OverflowError),
            (lambda b: b.link_delete("lo\0x"), ValueError),
            (lambda b: b.address_add(1, b"12345", 24), ValueError),
            (lambda b: b.address_add(1, b"1234", 33), ValueError),
            (lambda b: b.address_add(1, b"1234", -1), ValueError),
            (lambda b: b.address_add(1, b"1234", 256 + 24), ValueError),
            (lambda b: b.address_add(1, bytes(16), 129), ValueError),
            (lambda b: b.address_delete(1, b"", 0), ValueError),
            (lambda b: b.route_add(b"123", 8), ValueError),
            (lambda b: b.route_add(b"1234", 24, gateway=b"12345"), ValueError),
            (lambda b: b.route_add(b"1234", 24, mtu=-1), OverflowError),
            (lambda b: b.route_delete(b"1234", 33), ValueError),
            (lambda b: b.request(RTM_NEWNEIGH, 0, b"", [(1, [(2, 3)])], "what"), TypeError),
            (lambda b: b.request(RTM_GETLINK, NLM_F_DUMP, bytes(16), (), "list links"), ValueError),
        ],
    )
    def test_a_method_that_raises_has_queued_nothing(
        self, queue: Callable[[Any], object], error: type[Exception], netlink: Netlink
    ) -> None:
        batch = netlink.batch().link_create("bridge", "first")
        with pytest.raises(error):
            queue(batch)
        assert len(batch) == 1
        found = batch.link_get("first").link_get(1).commit()
        assert [link.name for link in found] == ["first", "lo"]
        assert found[1].is_up

    def test_one_that_never_fits(self, netlink: Netlink) -> None:
        batch = netlink.batch().request(RTM_NEWLINK, 0, bytes(16), [(3, b"x" * 70000)], "make it %s", ("big",))
        with pytest.raises(NetlinkError, match=r"^make it big: message too long \(build a netlink request\)$"):
            batch.commit()
        batch.request(RTM_NEWLINK, 0, bytes(70000), (), "a header")
        with pytest.raises(NetlinkError, match=r"^a header: message too long"):
            batch.commit()
        nest = [(1, b"x" * 40000), (2, b"x" * 40000)]
        with pytest.raises(NetlinkError, match=r"^a nest: message too long"):
            netlink.batch().request(RTM_NEWLINK, 0, bytes(16), [(3, nest)], "a nest").commit()

    def test_closed_socket(self, netns: NetNS) -> None:
        netlink = netns.netlink()
        netlink.close()
        netlink.close()
        for use in (lambda: netlink.link("lo"), netlink.links, lambda: netlink.subscribe(1)):
            with pytest.raises(OSError, match="bad file descriptor"):
                use()

    def test_stays_in_its_namespace(self, netns: NetNS) -> None:
        """Whichever thread or namespace it is used from."""
        with NetNS.create() as elsewhere, netns.netlink() as netlink:
            elsewhere.run(netlink.batch().link_create("bridge", "here").commit)
            assert names(netlink) == {"here"}
            with elsewhere.netlink() as other:
                assert names(other) == set()


class TestLinks:
    def test_veth_is_born_in_place(self, node: Node, netns: NetNS, netlink: Netlink) -> None:
        container = node.container()
        netlink.batch().link_create("bridge", "br0", up=True).commit()
        master = netlink.link("br0").index
        with NetNS.open(container.path) as target:
            batch = netlink.batch().veth(
                "host0",
                "eth0",
                netns=target.fd,
                mtu=1400,
                hwaddr="0a:58:0a:00:00:01",
                peer_hwaddr="0a:58:0a:00:00:02",
                master=master,
                up=True,
            )
            made = batch.link_get("host0").commit()[0]
            assert (made.name, made.kind, made.mtu, made.master) == ("host0", "veth", 1400, master)
            assert (made.hwaddr, made.port_kind, made.is_up) == ("0a:58:0a:00:00:01", "bridge", True)
            assert made.link_netnsid >= 0
            with target.netlink() as inside:
                peer = inside.link("eth0")
                assert not peer.is_up
                assert peer.link == made.index
        (host,) = node.ip("link", "show", "host0")
        assert (host["address"], host["mtu"], host["master"]) == ("0a:58:0a:00:00:01", 1400, "br0")
        (eth0,) = container.ip("link", "show", "eth0")
        assert (eth0["address"], eth0["mtu"], eth0["linkinfo"]["info_kind"]) == ("0a:58:0a:00:00:02", 1400, "veth")
        assert "UP" not in eth0["flags"]

    def test_veth_refused(self, node: Node, netlink: Netlink) -> None:
        container = node.container()
        with NetNS.open(container.path) as target:
            netlink.batch().veth("host0", "eth0", netns=target.fd).commit()
            with pytest.raises(NetlinkError, match=r"^create the veth pair host1, eth0: file exists") as caught:
                netlink.batch().veth("host1", "eth0", netns=target.fd).commit()
        assert caught.value.errno == errno.EEXIST
        assert names(netlink) == {"host0"}

    @pytest.mark.parametrize("kind", ["bridge", "ifb", "macvlan"])
    def test_create(self, kind: str, node: Node, netlink: Netlink, wire: int) -> None:
        """IFLA_MACVLAN_MODE 4 is bridge; IFLA_BR_STP_STATE."""
        container = node.container()
        data = {"macvlan": [(1, u32(4))], "bridge": [(5, u32(1))]}.get(kind, [])
        with NetNS.open(container.path) as target, target.netlink() as inside:
            netlink.batch().link_create(
                kind,
                "made",
                mtu=1300,
                hwaddr="0a:58:01:02:03:04",
                link=wire if kind == "macvlan" else 0,
                netns=target.fd,
                up=True,
                data=data,
            ).commit()
            link = inside.link("made")
        (shown,) = container.ip("link", "show", "made")
        assert (shown["address"], shown["mtu"], shown["linkinfo"]["info_kind"]) == ("0a:58:01:02:03:04", 1300, kind)
        assert "UP" in shown["flags"]
        assert (link.kind, link.hwaddr, link.mtu, link.index) == (kind, "0a:58:01:02:03:04", 1300, shown["ifindex"])
        if kind == "macvlan":
            assert shown["linkinfo"]["info_data"]["mode"] == "bridge"
            assert (link.data[1], link.link) == (u32(4), wire)
        if kind == "bridge":
            assert shown["linkinfo"]["info_data"]["stp_state"] == 1
            assert link.data[5] == u32(1)

    def test_existing(self, netlink: Netlink) -> None:
        netlink.batch().link_create("bridge", "br0").commit()
        netlink.batch().link_create("bridge", "br0", exist_ok=True).commit()
        with pytest.raises(NetlinkError, match=r"^create the bridge br0: file exists"):
            netlink.batch().link_create("bridge", "br0").commit()

    @pytest.mark.parametrize("by_name", [True, False])
    def test_set(self, by_name: bool, node: Node, netlink: Netlink, wire: int) -> None:
        netlink.batch().link_create("bridge", "br0").commit()
        link: int | str = "w0" if by_name else wire
        netlink.batch().link_set(
            link,
            up=False,
            promisc=True,
            mtu=1234,
            hwaddr="0a-58-01-02-03-05",
            alias="with ünïcode",
            master=netlink.link("br0").index,
            txqlen=77,
        ).commit()
        (shown,) = node.ip("link", "show", "w0")
        assert (shown["mtu"], shown["address"], shown["master"]) == (1234, "0a:58:01:02:03:05", "br0")
        assert (shown["txqlen"], shown["ifalias"]) == (77, "with ünïcode")
        assert "PROMISC" in shown["flags"]
        assert "UP" not in shown["flags"]
        read = netlink.link("w0")
        assert (read.mtu, read.hwaddr, read.txqlen, read.alias) == (1234, "0a:58:01:02:03:05", 77, "with ünïcode")
        assert read.is_promiscuous
        assert not read.is_up
        assert read.promiscuity >= 1
        netlink.batch().link_set(link, promisc=False, alias="", master=0, txqlen=0).commit()
        (shown,) = node.ip("link", "show", "w0")
        assert "master" not in shown
        assert "ifalias" not in shown
        assert "PROMISC" not in shown["flags"]
        assert shown.get("txqlen", 0) == 0
        assert shown["mtu"] == 1234, "what is not named stays as it is"

    def test_rename(self, node: Node, netlink: Netlink) -> None:
        netlink.batch().link_create("bridge", "old").commit()
        index = netlink.link("old").index
        netlink.batch().link_set(index, name="new").commit()
        assert node.ip("link", "show", "new")[0]["ifindex"] == index
        with pytest.raises(NetlinkError, match=f"^set link {index}: name lo: file exists"):
            netlink.batch().link_set(index, name="lo").commit()

    def test_move(self, node: Node, netlink: Netlink) -> None:
        container = node.container()
        netlink.batch().veth("w0", "w1").commit()
        with NetNS.open(container.path) as target:
            netlink.batch().link_set("w1", netns=target.fd).commit()
            assert names(netlink) == {"w0"}
            with target.netlink() as inside:
                inside.batch().link_set(inside.link("w1").index, name="eth0", up=True).commit()
        assert "UP" in container.ip("link", "show", "eth0")[0]["flags"]

    def test_bridge_port(self, node: Node, netlink: Netlink) -> None:
        netlink.batch().link_create("bridge", "br0", up=True).veth("w0", "w1", up=True).commit()
        master = netlink.link("br0").index
        # Attributes of a port: 4 is its mode (hairpin), 33 keeps it from the other isolated ones.
        batch = netlink.batch().link_set("w0", master=master)
        batch.link_set("w0", port_kind="bridge", port_data=[(4, u8(1)), (33, u8(1))]).commit()
        port = node.ip("link", "show", "w0")[0]["linkinfo"]["info_slave_data"]
        assert (port["hairpin"], port["isolated"]) == (True, True)
        read = netlink.link("w0")
        assert read.port_kind == "bridge"
        assert (read.port_data[4], read.port_data[33]) == (u8(1), u8(1))

    def test_delete(self, netlink: Netlink) -> None:
        netlink.batch().veth("w0", "w1").link_create("bridge", "br0").commit()
        index = netlink.link("br0").index
        netlink.batch().link_delete("w0").link_delete(index).link_delete("w1", missing_ok=True).commit()
        assert names(netlink) == set()
        with pytest.raises(NetlinkError, match=f"^delete the link {index}: no such device"):
            netlink.batch().link_delete(index).commit()

    def test_all_as_others_see_them(self, node: Node, netns: NetNS, netlink: Netlink, wire: int) -> None:
        netlink.batch().link_create("bridge", "br0", up=True, hwaddr="0a:58:0a:01:00:01").commit()
        netlink.batch().link_set("w1", master=netlink.link("br0").index, alias="a port").commit()
        netlink.batch().link_create("macvlan", "mac0", link=wire, data=[(1, u32(4))]).commit()
        netlink.batch().link_create("ifb", "ifb7").commit()

        def both() -> tuple[dict[int, Link], Any] | None:
            found, shown = {link.index: link for link in netlink.links()}, node.ip("link", "show")
            states = {entry["ifindex"]: entry["operstate"] for entry in shown}
            return (found, shown) if {i: link.operstate.upper() for i, link in found.items()} == states else None

        # A state follows its cause a little later.
        found, shown = until(both, "the same states in both lists")
        by_name = {link.name: link.index for link in found.values()}
        assert set(found) == {entry["ifindex"] for entry in shown}
        for entry in shown:
            link = found[entry["ifindex"]]
            assert link.name == entry["ifname"]
            assert link.hwaddr == entry["address"]
            assert link.mtu == entry["mtu"]
            assert link.is_up == ("UP" in entry["flags"])
            assert link.operstate.upper() == entry["operstate"]
            assert link.kind == entry.get("linkinfo", {}).get("info_kind", "")
            assert link.master == by_name.get(entry.get("master"), 0)
            assert link.link == by_name.get(entry.get("link"), 0)
            assert link.alias == entry.get("ifalias", "")
            assert link.port_kind == entry.get("linkinfo", {}).get("info_slave_kind", "")
            assert entry["ifname"] in repr(link)
        for message in pyroute2(netns, lambda peer: tuple(peer.get_links())):
            link = found[message["index"]]
            assert link.flags == message["flags"]
            assert link.txqlen == message.get_attr("IFLA_TXQLEN")
            assert link.group == message.get_attr("IFLA_GROUP")
            assert link.promiscuity == message.get_attr("IFLA_PROMISCUITY")
            assert (link.master or None) == message.get_attr("IFLA_MASTER")
            one = netlink.link(link.index)
            assert (one.name, one.flags, one.kind, set(one.data)) == (link.name, link.flags, link.kind, set(link.data))


class TestAddresses:
    def test_add_and_delete(self, node: Node, netlink: Netlink, wire: int) -> None:
        batch = netlink.batch().address_add(wire, parse_ip("10.1.2.3"), 16).address_add(wire, parse_ip("10.9.9.9"), 32)
        batch.address_add(wire, parse_ip("10.8.8.8"), 31).address_add(wire, parse_ip("fd01::2"), 64, nodad=True)
        batch.address_add(wire, parse_ip("fd02::2"), 128).commit()
        shown = {entry["local"]: entry for entry in node.ip("addr", "show", "dev", "w0")[0]["addr_info"]}
        assert (shown["10.1.2.3"]["prefixlen"], shown["10.1.2.3"]["broadcast"]) == (16, "10.1.255.255")
        assert "broadcast" not in shown["10.9.9.9"]
        assert "broadcast" not in shown["10.8.8.8"]
        assert shown["fd01::2"]["prefixlen"] == 64
        assert shown["fd01::2"].get("nodad") is True
        assert "tentative" not in shown["fd01::2"]
        assert "nodad" not in shown["fd02::2"]
        batch = netlink.batch().address_delete(wire, parse_ip("10.1.2.3"), 16)
        batch.address_delete(wire, parse_ip("fd01::2"), 64).commit()
        left = {format_ip(a.packed) for a in netlink.addresses(wire)}
        assert not left & {"10.1.2.3", "fd01::2"}
        assert left >= {"10.9.9.9", "10.8.8.8", "fd02::2"}

    @pytest.mark.parametrize("noprefixroute", [False, True])
    @pytest.mark.parametrize(("text", "network"), [("10.6.6.6", "10.6.6.0"), ("fd06::6", "fd06::")])
    def test_the_route_to_its_network(
        self, text: str, network: str, noprefixroute: bool, netlink: Netlink, wire: int
    ) -> None:
        packed = parse_ip(text)
        prefix = 24 if len(packed) == 4 else 64
        netlink.batch().address_add(wire, packed, prefix, noprefixroute=noprefixroute).commit()
        found = [route for route in netlink.routes(index=wire) if route.dst == parse_ip(network)]
        assert [route.prefix for route in found] == ([] if noprefixroute else [prefix])

    @pytest.mark.parametrize(("text", "prefix"), [("10.0.0.1", 24), ("fd00::1", 64)])
    def test_existing(self, text: str, prefix: int, netlink: Netlink, wire: int) -> None:
        packed = parse_ip(text)
        netlink.batch().address_add(wire, packed, prefix, exist_ok=True).commit()
        with pytest.raises(NetlinkError, match=f"^add the address {text}/{prefix} to link {wire}: file exists"):
            netlink.batch().address_add(wire, packed, prefix).commit()

    @pytest.mark.parametrize(("text", "prefix"), [("10.0.0.2", 24), ("fd00::2", 64), ("10.0.0.1", 25)])
    def test_missing(self, text: str, prefix: int, netlink: Netlink, wire: int) -> None:
        packed = parse_ip(text)
        netlink.batch().address_delete(wire, packed, prefix, missing_ok=True).commit()
        netlink.batch().address_delete(4242, packed, prefix, missing_ok=True).commit()
        with pytest.raises(NetlinkError, match=f"^delete the address {text}/{prefix} from link {wire}: ") as caught:
            netlink.batch().address_delete(wire, packed, prefix).commit()
        assert caught.value.errno == errno.EADDRNOTAVAIL

    def test_all_as_others_see_them(self, node: Node, netns: NetNS, netlink: Netlink, wire: int) -> None:
        node.run(["ip", "addr", "add", "192.0.2.1", "peer", "192.0.2.2/32", "dev", "w0", "label", "w0:me"])
        node.run(["ip", "addr", "add", "fd09::1", "peer", "fd09::2/128", "dev", "w1"])
        node.run(["ip", "addr", "add", "198.51.100.1/24", "dev", "w1", "scope", "link"])

        def lists() -> tuple[list[Address], Any, tuple[Any, ...]] | None:
            found, shown = netlink.addresses(), node.ip("addr", "show")
            theirs = pyroute2(netns, lambda peer: tuple(peer.get_addr()))
            facts = [[(a.index, a.packed, a.flags) for a in each] for each in (found, netlink.addresses())]
            return (found, shown, theirs) if facts[0] == facts[1] else None

        found, shown, theirs = until(lists, "a moment without changes by the kernel")
        key = {(a.index, format_ip(a.packed)): a for a in found}
        seen = 0
        for link in shown:
            for entry in link["addr_info"]:
                address = key[link["ifindex"], entry["local"]]
                scope = {"global": 0, "link": SCOPE_LINK, "host": SCOPE_HOST}[entry["scope"]]
                assert (address.prefix, address.scope) == (entry["prefixlen"], scope)
                assert address.label == (entry.get("label", "") if entry["family"] == "inet" else "")
                assert entry["local"] in repr(address)
                seen += 1
        assert seen == len(found)
        assert Counter((a.index, a.prefix, a.flags & 0xFF) for a in found) == Counter(
            (m["index"], m["prefixlen"], m["flags"] & 0xFF) for m in theirs
        )

    def test_of_one_link_or_family(self, netlink: Netlink, wire: int) -> None:
        assert {a.index for a in netlink.addresses(wire)} == {wire}
        assert {len(a.packed) for a in netlink.addresses(wire, socket.AF_INET)} == {4}
        assert {len(a.packed) for a in netlink.addresses(0, socket.AF_INET6)} == {16}
        assert len(netlink.addresses(0, socket.AF_INET)) == 2
        with pytest.raises(NetlinkError, match=r"^list addresses: no such device"):
            netlink.addresses(4242)


class TestRoutes:
    def test_all_keywords_v4(self, node: Node, netlink: Netlink, wire: int) -> None:
        netlink.batch().route_add(
            parse_ip("192.0.2.0"),
            24,
            gateway=parse_ip("10.77.0.1"),
            index=wire,
            src=parse_ip("10.0.0.1"),
            priority=55,
            table=1000,
            mtu=1300,
            advmss=1200,
            flags=4,  # RTNH_F_ONLINK: the gateway need not be on a known network
        ).commit()
        (shown,) = routes_of(node, "1000")
        assert (shown["dst"], shown["gateway"], shown["dev"]) == ("192.0.2.0/24", "10.77.0.1", "w0")
        assert (shown["prefsrc"], shown["metric"], shown["flags"]) == ("10.0.0.1", 55, ["onlink"])
        assert shown["metrics"] == [{"mtu": 1300, "advmss": 1200}]
        (route,) = netlink.routes(socket.AF_INET, 1000)
        assert (format_ip(route.dst), route.prefix, route.index, route.table) == ("192.0.2.0", 24, wire, 1000)
        assert (route.gateway, route.src) == (parse_ip("10.77.0.1"), parse_ip("10.0.0.1"))
        assert (route.priority, route.mtu, route.advmss, route.scope) == (55, 1300, 1200, 0)
        assert (route.family, route.type, route.protocol, route.nexthops) == (socket.AF_INET, 1, 3, [])
        assert repr(route) == "<Route 192.0.2.0/24 table 1000>"

    def test_all_keywords_v6(self, node: Node, netlink: Netlink, wire: int) -> None:
        netlink.batch().route_add(
            parse_ip("2001:db8::"),
            32,
            gateway=parse_ip("fd00::99"),
            index=wire,
            src=parse_ip("fd00::1"),
            priority=55,
            table=200,
            mtu=1300,
            advmss=1200,
        ).commit()
        (shown,) = routes_of(node, "200", 6)
        assert (shown["dst"], shown["gateway"], shown["dev"]) == ("2001:db8::/32", "fd00::99", "w0")
        assert (shown["prefsrc"], shown["metric"]) == ("fd00::1", 55)
        assert shown["metrics"] == [{"mtu": 1300, "advmss": 1200}]
        (route,) = netlink.routes(socket.AF_INET6, 200)
        assert (route.gateway, route.src) == (parse_ip("fd00::99"), parse_ip("fd00::1"))
        assert (route.priority, route.mtu, route.advmss, route.family) == (55, 1300, 1200, socket.AF_INET6)

    @pytest.mark.parametrize("gateway", ["10.0.0.254", "fd00::254"])
    def test_default(self, gateway: str, node: Node, netlink: Netlink, wire: int) -> None:
        packed = parse_ip(gateway)
        anywhere = bytes(len(packed))
        netlink.batch().route_add(anywhere, 0, gateway=packed).commit()
        version = 4 if len(packed) == 4 else 6
        (shown,) = [r for r in routes_of(node, "main", version) if r["dst"] == "default"]
        assert (shown["gateway"], shown["dev"]) == (gateway, "w0")
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        (route,) = [r for r in netlink.routes(family) if r.prefix == 0]
        assert (route.dst, route.gateway, route.index) == (anywhere, packed, wire)
        netlink.batch().route_delete(anywhere, 0).commit()
        assert not [r for r in routes_of(node, "main", version) if r["dst"] == "default"]

    def test_existing(self, netlink: Netlink, wire: int) -> None:
        def add(**how: Any) -> None:
            netlink.batch().route_add(V4_ANY, 0, gateway=parse_ip("10.0.0.254"), **how).commit()

        add()
        add(exist_ok=True)
        with pytest.raises(NetlinkError, match=r"^add the route 0\.0\.0\.0/0 via 10\.0\.0\.254: file exists"):
            add()
        add(replace=True)

    def test_replace(self, node: Node, netlink: Netlink, wire: int) -> None:
        for last in (253, 254):
            gateway = bytes([10, 0, 0, last])
            netlink.batch().route_add(V4_ANY, 0, gateway=gateway, replace=True).commit()
        assert [r["gateway"] for r in routes_of(node) if r["dst"] == "default"] == ["10.0.0.254"]

    def test_several_to_one_destination(self, node: Node, netlink: Netlink, wire: int) -> None:
        """As Go's RouteAddEcmp, which does not insist on being the only one."""
        for last in (253, 254):
            netlink.batch().route_add(V4_ANY, 0, gateway=bytes([10, 0, 0, last])).commit()
        assert len([r for r in routes_of(node) if r["dst"] == "default"]) == 2

    def test_of_one_link(self, node: Node, netlink: Netlink, wire: int) -> None:
        node.run(["ip", "route", "add", "192.0.2.0/24", "nexthop", "dev", "w0", "nexthop", "dev", "w1"])
        node.run(["ip", "route", "add", "198.51.100.0/24", "dev", "w1", "table", "77"])
        other = netlink.link("w1").index
        destinations = {format_ip(route.dst) for route in netlink.routes(socket.AF_INET, 0, index=other)}
        assert destinations >= {"192.0.2.0", "198.51.100.0"}
        here = netlink.routes(socket.AF_INET, 0, index=wire)
        assert {route.index for route in here} == {wire, 0}  # 0: of several next hops
        assert "192.0.2.0" in {format_ip(route.dst) for route in here}
        with pytest.raises(NetlinkError, match=r"^list routes: no such device"):
            netlink.routes(index=4242)

    @pytest.mark.parametrize("scope", [SCOPE_LINK, SCOPE_HOST])
    def test_scopes_v4(self, scope: int, node: Node, netlink: Netlink, wire: int) -> None:
        dst = parse_ip("192.0.2.0")
        netlink.batch().route_add(dst, 24, index=wire, scope=scope).commit()
        (shown,) = [r for r in routes_of(node) if r["dst"] == "192.0.2.0/24"]
        assert shown["scope"] == {SCOPE_LINK: "link", SCOPE_HOST: "host"}[scope]
        (route,) = [r for r in netlink.routes(socket.AF_INET) if r.dst == dst]
        assert route.scope == scope
        netlink.batch().route_delete(dst, 24).commit()
        assert not [r for r in routes_of(node) if r["dst"] == "192.0.2.0/24"]

    def test_scope_of_a_v6_route_does_not_matter(self, node: Node, netlink: Netlink, wire: int) -> None:
        dst = parse_ip("2001:db8::")
        netlink.batch().route_add(dst, 32, index=wire, scope=SCOPE_LINK).commit()
        netlink.batch().route_delete(dst, 32).commit()
        assert not [r for r in routes_of(node, "main", 6) if r["dst"] == "2001:db8::/32"]

    def test_delete_the_one_that_is_meant(self, node: Node, netlink: Netlink, wire: int) -> None:
        dst = parse_ip("192.0.2.0")
        batch = netlink.batch()
        for table in (0, 300):
            for priority in (10, 20):
                batch.route_add(dst, 24, gateway=parse_ip("10.0.0.9"), priority=priority, table=table)
        batch.commit()
        netlink.batch().route_delete(dst, 24, gateway=parse_ip("10.0.0.9"), index=wire, priority=20, table=300).commit()
        assert [r["metric"] for r in routes_of(node, "300")] == [10]
        assert sorted(r["metric"] for r in routes_of(node) if r["dst"] == "192.0.2.0/24") == [10, 20]
        with pytest.raises(NetlinkError, match=r"^delete the route 192\.0\.2\.0/24 via 10\.0\.0\.8: no such process"):
            netlink.batch().route_delete(dst, 24, gateway=parse_ip("10.0.0.8")).commit()

    def test_missing(self, netlink: Netlink) -> None:
        dst = parse_ip("192.0.2.0")
        netlink.batch().route_delete(dst, 24, missing_ok=True).commit()
        netlink.batch().route_delete(dst, 24, table=999, missing_ok=True).commit()
        with pytest.raises(NetlinkError, match="no such process"):
            netlink.batch().route_delete(dst, 24).commit()

    @pytest.mark.parametrize(
        ("dst", "hops"),
        [("192.0.2.0/24", ["10.0.0.11", "10.0.0.12", "10.0.0.13"]), ("2001:db8::/32", ["fd00::11", "fd00::12"])],
    )
    def test_multipath(self, dst: str, hops: list[str], node: Node, netlink: Netlink, wire: int) -> None:
        words = [word for hop in hops for word in ("nexthop", "via", hop, "dev", "w0")]
        node.run(["ip", "route", "add", dst, *words])
        network = parse_ip(dst.partition("/")[0])
        (route,) = [r for r in netlink.routes() if r.dst == network and r.prefix == int(dst.partition("/")[2])]
        assert sorted(route.nexthops) == [(wire, parse_ip(hop)) for hop in hops]
        assert route.gateway is None

    def test_multipath_without_gateways(self, node: Node, netlink: Netlink, wire: int) -> None:
        node.run(["ip", "link", "add", "x0", "up", "type", "bridge"])
        node.run(["ip", "route", "add", "192.0.2.0/24", "nexthop", "dev", "w0", "nexthop", "dev", "x0"])
        (route,) = [r for r in netlink.routes(socket.AF_INET) if r.dst == parse_ip("192.0.2.0")]
        assert sorted(route.nexthops) == [(wire, None), (netlink.link("x0").index, None)]

    def test_tables(self, node: Node, netlink: Netlink, wire: int) -> None:
        batch = netlink.batch()
        for table in (1, 252, 254, 255, 256, 70000, 0xFFFFFFFF):
            batch.route_add(parse_ip("192.0.2.0"), 24, index=wire, table=table, scope=SCOPE_LINK)
        batch.commit()
        for table in (1, 252, 256, 70000, 0xFFFFFFFF):
            assert [r.table for r in netlink.routes(socket.AF_INET, table)] == [table]
            assert len(routes_of(node, str(table))) == 1
        everywhere = Counter(r.table for r in netlink.routes(socket.AF_INET, 0))
        assert set(everywhere) == {1, 252, 254, 255, 256, 70000, 0xFFFFFFFF}
        for family in (0, socket.AF_INET, socket.AF_INET6):
            assert netlink.routes(family, 4711) == []

    def test_all_as_others_see_them(self, node: Node, netns: NetNS, netlink: Netlink, wire: int) -> None:
        for command in (
            "route add blackhole 198.51.100.0/24",
            "route add unreachable 2001:db8:1::/48",
            "route add 203.0.113.0/24 via inet6 fd00::5 dev w0",
            "route add default via 10.0.0.254 metric 9 mtu 1280",
            "route add 2001:db8:2::/48 via fd00::3 table 77",
        ):
            node.run(["ip", *(["-6"] if "2001" in command else []), *command.split()])
        found = netlink.routes(0, 0)
        assert {type(route) for route in found} == {Route}
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            shown = routes_of(node, "all", version)
            ours = [r for r in found if r.family == family]
            assert len(ours) == len(shown)
            assert Counter(f"{format_ip(r.dst)}/{r.prefix}" for r in ours) == Counter(
                str(ipaddress.ip_network({"default": "::/0" if version == 6 else "0.0.0.0/0"}.get(s["dst"], s["dst"])))
                for s in shown
            )
        theirs = pyroute2(netns, lambda peer: tuple(peer.get_routes()))
        assert Counter((r.family, r.prefix, r.type, r.table, r.priority, r.index) for r in found) == Counter(
            (
                m["family"],
                m["dst_len"],
                m["type"],
                m.get_attr("RTA_TABLE"),
                m.get_attr("RTA_PRIORITY") or 0,
                m.get_attr("RTA_OIF") or 0,
            )
            for m in theirs
        )

    def test_other_families_are_left_out(self, netlink: Netlink, wire: int) -> None:
        """Multicast routes are listed where no family is asked for; they are none of RTM_NEWROUTE's usual ones."""
        for family in (0, 128, 129):  # RTNL_FAMILY_IPMR, RTNL_FAMILY_IP6MR
            assert all(isinstance(route, Route) and route.family in (2, 10) for route in netlink.routes(family, 0))


class TestGeneric:
    """Requests that the core has no words for."""

    def test_neighbours(self, node: Node, netns: NetNS, netlink: Netlink, wire: int) -> None:
        permanent = 0x80
        batch = netlink.batch()
        for text in ("10.0.0.77", "fd00::77"):
            packed = parse_ip(text)
            family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
            header = struct.pack("=BxxxiHBB", family, wire, permanent, 0, 0)
            attributes = [(1, packed), (2, bytes.fromhex("0a5801020304"))]
            batch.request(RTM_NEWNEIGH, NEW, header, attributes, "add the neighbour %s", (packed,))
        batch.commit()
        shown = {entry["dst"]: entry for entry in node.ip("neigh", "show", "dev", "w0")}
        for text in ("10.0.0.77", "fd00::77"):
            assert (shown[text]["lladdr"], shown[text]["state"]) == ("0a:58:01:02:03:04", ["PERMANENT"])
        again = netlink.batch().request(RTM_NEWNEIGH, NEW, header, attributes, "add the neighbour %s", (packed,))
        with pytest.raises(NetlinkError, match=r"^add the neighbour fd00::77: file exists"):
            again.commit()
        found = netlink.dump(RTM_GETNEIGH, bytes(12), (), "list neighbours")
        ours = {payload[12 + 4 : 12 + 8] for number, payload in found if number == RTM_NEWNEIGH and payload[0] == 2}
        assert parse_ip("10.0.0.77") in ours
        theirs = pyroute2(netns, lambda peer: tuple(peer.get_neighbours(ifindex=wire)))
        assert {m.get_attr("NDA_DST") for m in theirs if m["state"] == permanent} == {"10.0.0.77", "fd00::77"}

    @pytest.mark.parametrize(("source", "prefix"), [("10.5.0.0", 16), ("fd05::", 48)])
    def test_rules(self, source: str, prefix: int, node: Node, netns: NetNS, netlink: Netlink) -> None:
        packed = parse_ip(source)
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        header = struct.pack("=BBBBBBBBI", family, 0, prefix, 0, 0, 0, 0, 1, 0)
        attributes = [(2, packed), (6, u32(123)), (15, u32(4242))]  # FRA_SRC, FRA_PRIORITY, FRA_TABLE
        netlink.batch().request(RTM_NEWRULE, NEW, header, attributes, "add a rule").commit()
        version = "-4" if family == socket.AF_INET else "-6"
        (shown,) = [rule for rule in node.ip(version, "rule", "show") if rule["priority"] == 123]
        assert (shown["src"], shown["srclen"], shown["table"]) == (source, prefix, "4242")
        (theirs,) = pyroute2(netns, lambda peer: tuple(peer.get_rules(family=family, match={"priority": 123})))
        assert (theirs.get_attr("FRA_SRC"), theirs["src_len"]) == (source, prefix)
        found = netlink.dump(RTM_GETRULE, bytes([family]) + bytes(11), (), "list rules")
        assert sum(packed in payload for _, payload in found) == 1
        netlink.batch().request(RTM_DELRULE, 0, header, attributes, "delete a rule").commit()
        assert not [rule for rule in node.ip(version, "rule", "show") if rule["priority"] == 123]
        gone = netlink.batch().request(RTM_DELRULE, 0, header, attributes, "delete rule %d", (123,), (errno.ENOENT,))
        gone.commit()

    def test_qdiscs(self, node: Node, netns: NetNS, netlink: Netlink, wire: int) -> None:
        """A token bucket of 1 MB/s, and an ingress hook: as a bandwidth limit needs them."""
        root, ingress = 0xFFFFFFFF, 0xFFFFFFF1
        rate = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, 1_000_000)
        parameters = rate + bytes(12) + struct.pack("=III", 50_000, 0, 0)
        batch = netlink.batch()
        batch.request(
            RTM_NEWQDISC,
            NEW,
            struct.pack("=BxxxiIII", 0, wire, 0x10000, root, 0),
            [(1, "tbf"), (2, [(1, parameters), (6, u32(10_000))])],  # TCA_KIND; TCA_TBF_PARMS, TCA_TBF_BURST
            "limit link %d",
            (wire,),
        )
        header = struct.pack("=BxxxiIII", 0, wire, 0xFFFF0000, ingress, 0)
        batch.request(RTM_NEWQDISC, NEW, header, [(1, "ingress")], "hook link %d", (wire,))
        batch.commit()
        shown = {q["kind"]: q for q in tc(node, "qdisc", "show", "dev", "w0")}
        assert set(shown) == {"tbf", "ingress"}
        assert (shown["tbf"]["handle"], shown["tbf"]["options"]["rate"]) == ("1:", 1_000_000)
        assert shown["tbf"]["options"]["burst"] == pytest.approx(10_000, rel=0.01)
        theirs = pyroute2(netns, lambda peer: tuple(peer.get_qdiscs(index=wire)))
        assert {m.get_attr("TCA_KIND") for m in theirs} == {"tbf", "ingress"}
        found = netlink.dump(RTM_GETQDISC, struct.pack("=BxxxiIII", 0, wire, 0, 0, 0), (), "list qdiscs")
        assert sum(b"tbf\0" in payload for _, payload in found) == 1
        netlink.batch().request(RTM_DELQDISC, 0, header, (), "unhook").commit()
        assert [q["kind"] for q in tc(node, "qdisc", "show", "dev", "w0")] == ["tbf"]
        with pytest.raises(NetlinkError, match=r"^unhook it: ") as caught:
            netlink.batch().request(RTM_DELQDISC, 0, header, (), "unhook it").commit()
        assert caught.value.errno in (errno.ENOENT, errno.EINVAL)
        assert caught.value.extack

    def test_refused_list(self, netlink: Netlink) -> None:
        header = bytes([socket.AF_INET]) + bytes(11)
        with pytest.raises(NetlinkError) as caught:
            netlink.dump(RTM_GETROUTE, header, [(15, u32(4711))], "list the routes of a table")
        expected = "list the routes of a table: no such file or directory (ipv4: FIB table does not exist)"
        assert str(caught.value) == expected
        with pytest.raises(NetlinkError) as caught:
            netlink.dump(RTM_GETROUTE, header, [(1, b"\1\2\3\4")], "list")
        assert (caught.value.errno, bool(caught.value.extack)) == (errno.EINVAL, True)
        assert netlink.links(), "the socket is of use after that"

    def test_numbers(self) -> None:
        assert (u8(255), be16(0x1234)) == (b"\xff", b"\x12\x34")
        assert struct.unpack("=HI", u16(65535) + u32(1)) == (65535, 1)
        with pytest.raises(OverflowError):
            u8(256)


class TestNews:
    def test_link(self, node: Node, netns: NetNS) -> None:
        with netns.netlink() as news:
            news.subscribe(RTNLGRP_LINK)
            assert news.wait(0) == []
            node.run(["ip", "link", "add", "x0", "type", "bridge"])
            (link,) = news.wait(LIMIT)
            assert isinstance(link, Link)
            assert (link.name, link.kind) == ("x0", "bridge")
            node.run(["ip", "link", "delete", "x0"])
            seen = []
            while (RTM_DELLINK, link.index) not in seen:
                for item in news.wait(LIMIT):
                    if isinstance(item, tuple):
                        seen.append((item[0], struct.unpack_from("=i", item[1], 4)[0]))

    def test_address_and_route(self, netns: NetNS, netlink: Netlink, wire: int) -> None:
        with netns.netlink() as news:
            news.subscribe(RTNLGRP_IPV4_IFADDR)
            news.subscribe(RTNLGRP_IPV4_ROUTE)
            netlink.batch().address_add(wire, parse_ip("10.3.0.1"), 24).commit()
            heard: list[Any] = []
            while not {Address, Route} <= {type(item) for item in heard}:
                more = news.wait(LIMIT)
                assert more
                heard += more
            assert parse_ip("10.3.0.1") in [item.packed for item in heard if isinstance(item, Address)]

    def test_time_is_up(self, netns: NetNS) -> None:
        with netns.netlink() as news:
            news.subscribe(RTNLGRP_LINK)
            before = time.monotonic()
            assert news.wait(0.15) == []
            assert time.monotonic() - before >= 0.14
            assert news.wait(-1) == [], "time that was up before"

    def test_signal_ends_the_wait(self, netns: NetNS) -> None:
        heard = []
        with netns.netlink() as news:
            news.subscribe(RTNLGRP_LINK)
            previous = signal.signal(signal.SIGALRM, lambda *_: heard.append(True))
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)  # again, if the wait has not begun by then
                assert news.wait(float("inf")) == []
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, previous)
        assert heard

    def test_of_another_namespace_is_not_heard(self, netns: NetNS) -> None:
        with NetNS.create() as elsewhere, netns.netlink() as news, elsewhere.netlink() as other:
            news.subscribe(RTNLGRP_LINK)
            other.batch().link_create("bridge", "x0").commit()
            assert news.wait(0.05) == []

    def test_lists_are_free_of_news(self, netns: NetNS, netlink: Netlink, wire: int) -> None:
        with netns.netlink() as both:
            both.subscribe(RTNLGRP_LINK)
            netlink.batch().link_create("bridge", "x0").link_delete("x0").commit()
            assert {type(item) for item in both.links()} == {Link}
            assert sorted(link.name for link in both.links()) == ["lo", "w0", "w1"]

    def test_more_than_the_socket_holds(self, netns: NetNS, netlink: Netlink, wire: int) -> None:
        with netns.netlink() as news:
            news.subscribe(RTNLGRP_LINK)
            for _ in range(30):
                batch = netlink.batch()
                for _ in range(50):
                    batch.link_set(wire, alias="a").link_set(wire, alias="b")
                batch.commit()
            assert news.wait(0) == []  # the kernel's ENOBUFS: look for yourself
            assert news.wait(0) != []  # what it still had
            while news.wait(0):
                pass
            netlink.batch().link_set(wire, alias="c").commit()
            assert [link.alias for link in news.wait(LIMIT)] == ["c"]


class TestThreads:
    def test_share_a_socket(self, netlink: Netlink, wire: int) -> None:
        lo = netlink.link("lo").index

        def work(number: int) -> None:
            for rounds in range(100):
                address = bytes([10, 200 + number, rounds >> 8 & 255, rounds & 255])
                batch = netlink.batch().address_add(lo, address, 32).link_get("w0").link_get("none", missing_ok=True)
                assert [link and link.name for link in batch.link_get(lo).commit()] == ["w0", None, "lo"]
                with pytest.raises(NetlinkError, match=f"^delete the link no{number}: no such device$"):
                    netlink.batch().link_get("w1").link_delete(f"no{number}").commit()
                assert [link.name for link in netlink.links()] == ["lo", "w1", "w0"]
                assert address in [a.packed for a in netlink.addresses(lo)]
                netlink.batch().address_delete(lo, address, 32).commit()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))

    def test_close_what_others_use(self, netns: NetNS) -> None:
        """They get an error; never another file that was given the number meanwhile."""
        for _ in range(10):
            netlink = netns.netlink()
            started = threading.Barrier(5)

            def work(netlink: Netlink = netlink, started: threading.Barrier = started) -> None:
                started.wait()
                with pytest.raises(OSError, match="bad file descriptor"):
                    while True:
                        assert [link.name for link in netlink.links()] == ["lo"]

            with ThreadPoolExecutor(4) as pool:
                workers = [pool.submit(work) for _ in range(4)]
                started.wait()
                time.sleep(0.01)
                netlink.close()
                files = [os.open("/dev/null", os.O_RDWR) for _ in range(4)]
                for worker in workers:
                    worker.result(LIMIT)
                for file in files:
                    os.close(file)

    def test_commit_while_another_thread_fills_the_batch(self, netlink: Netlink) -> None:
        batch = netlink.batch()
        stop = False

        def fill() -> None:
            while not stop:
                batch.link_get("lo")
                time.sleep(0)

        filler = threading.Thread(target=fill)
        filler.start()
        try:
            for _ in range(300):
                assert all(link.name == "lo" for link in batch.commit())
        finally:
            stop = True
            filler.join()


def interrupted(netns: NetNS, kind: int, header: bytes) -> bool:
    """Does the kernel say of a list, read without our core, that it changed meanwhile?"""
    with socket.socket(fileno=netns.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)) as raw:
        raw.send(struct.pack("=IHHII", 16 + len(header), kind, 1 | NLM_F_DUMP, 1, 0) + header)
        flagged = 0
        while True:
            data = raw.recv(65536)
            offset = 0
            while offset < len(data):
                length, number, flags, _, _ = struct.unpack_from("=IHHII", data, offset)
                flagged |= flags & NLM_F_DUMP_INTR
                assert number != NLMSG_ERROR
                if number == NLMSG_DONE:
                    return bool(flagged)
                offset += length + 3 & ~3


CHURN = """
import sys, time
from cni._core import Netlink
netlink = Netlink()
print(flush=True)
number = 0
while True:
    number = (number + 1) % 200
    if sys.argv[1] == "links":
        netlink.batch().link_create("bridge", "churn").link_delete("churn").commit()
    elif sys.argv[1] == "addresses":
        packed = bytes([172, 16, 0, number])
        netlink.batch().address_add(1, packed, 32).address_delete(1, packed, 32).commit()
        time.sleep(0.003)
    else:
        packed = bytes([172, 16, 0, number])
        netlink.batch().route_add(packed, 32, index=1, table=99).route_delete(packed, 32, table=99).commit()
"""


class TestLongLists:
    """Thousands of entries, while another process makes and deletes some."""

    @pytest.fixture
    def churn(self, netns: NetNS) -> Iterator[Callable[[str], None]]:
        started: list[subprocess.Popen[str]] = []

        def start(what: str) -> None:
            environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            command = [sys.executable, "-c", CHURN, what]
            child = netns.run(subprocess.Popen, command, env=environ, stdout=subprocess.PIPE, text=True)
            started.append(child)
            assert child.stdout
            child.stdout.readline()

        yield start
        for child in started:
            child.kill()
            child.communicate()

    def test_links(
        self, wires: Callable[[int], list[str]], churn: Callable[[str], None], netns: NetNS, netlink: Netlink
    ) -> None:
        expected = Counter(wires(250))
        churn("links")
        seen, cut = 0, 0
        end = time.monotonic() + LIMIT
        while (seen < 20 or not cut) and time.monotonic() < end:
            cut += interrupted(netns, RTM_GETLINK, bytes(16))
            found = Counter(link.name for link in netlink.links())
            assert found - Counter(["lo", "churn"]) == expected
            seen += 1
        assert cut, "the kernel never said that a list was cut short: nothing was tested"

    def test_addresses(self, churn: Callable[[str], None], netns: NetNS, netlink: Netlink) -> None:
        batch = netlink.batch()
        expected = {bytes([10, 50, number >> 8, number & 255]) for number in range(3000)}
        for packed in sorted(expected):
            batch.address_add(1, packed, 32)
        batch.commit()
        churn("addresses")
        seen, cut = 0, 0
        end = time.monotonic() + LIMIT
        while (seen < 20 or not cut) and time.monotonic() < end:
            cut += interrupted(netns, RTM_GETADDR, bytes(8))
            found = Counter(a.packed for a in netlink.addresses(0, socket.AF_INET) if a.packed[:2] == b"\x0a\x32")
            assert found == Counter(expected)
            seen += 1
        assert cut, "the kernel never said that a list was cut short: nothing was tested"

    def test_routes(self, churn: Callable[[str], None], netlink: Netlink, wire: int) -> None:
        """IPv4's list of routes goes by key, so that what comes and goes does not touch the rest."""
        batch = netlink.batch()
        expected = {bytes([10, 60, number >> 8, number & 255]) for number in range(5000)}
        for packed in sorted(expected):
            batch.route_add(packed, 32, index=wire, table=99)
        batch.commit()
        churn("routes")
        for _ in range(10):
            found = Counter(r.dst for r in netlink.routes(socket.AF_INET, 99) if r.dst[:2] == b"\x0a\x3c")
            assert found == Counter(expected)
