"""The compiled core without the kernel: text, errors, and what is made of messages, sound or damaged."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import pickle
import random
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni import _core, kernel
from cni._core import KernelError, NetlinkError
from cni.kernel.netns import NetNS
from cni.kernel.routes import Route


def _load(name: str) -> ModuleType:
    """A module beside this one: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


messages = _load("messages")
SAMPLES = messages.SAMPLES


class TestHardwareAddresses:
    @pytest.mark.parametrize(
        ("ip", "hwaddr"),
        [
            ("10.1.2.3", "0a:58:0a:01:02:03"),
            ("0.0.0.0", "0a:58:00:00:00:00"),
            ("255.255.255.255", "0a:58:ff:ff:ff:ff"),
            ("fd00::1", "0a:58:00:00:00:01"),
            ("2001:db8::dead:beef", "0a:58:de:ad:be:ef"),
            ("::ffff:10.1.2.3", "0a:58:0a:01:02:03"),
        ],
    )
    def test_from_ip(self, ip: str, hwaddr: str) -> None:
        assert _core.hwaddr_from_ip(_core.parse_ip(ip)) == hwaddr
        assert _core.hwaddr_from_ip(ipaddress.ip_address(ip).packed) == hwaddr

    @pytest.mark.parametrize("length", [0, 3, 5, 15, 17])
    def test_from_no_ip(self, length: int) -> None:
        with pytest.raises(ValueError, match=f"has 4 or 16 bytes, not {length}"):
            _core.hwaddr_from_ip(bytes(length))

    @given(st.binary(min_size=6, max_size=6), st.sampled_from(":-"), st.booleans())
    def test_round_trip(self, packed: bytes, separator: str, upper: bool) -> None:
        text = packed.hex(separator)
        assert _core.parse_hwaddr(text.upper() if upper else text) == packed

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ":",
            "0a",
            "0a:",
            "0a:58",
            "0a:58:0a:01:02",
            "0a:58:0a:01:02:",
            "0a:58:0a:01:02:03:",
            "0a:58:0a:01:02:03:04",
            "0a:58:0a:01:02:3",
            "0a:58:0a:01:02:003",
            "0a:58:0a-01:02:03",
            "0a58.0a01.0203.0405",
            "0a580a010203",
            "ga:58:0a:01:02:03",
            "0a:58:0a:01:02:0g",
            " 0a:58:0a:01:02:03",
            "0a:58:0a:01:02:03 ",
            "0a:58:0a:01:02:03\0",
            "0a:58:0a:01:02:03\0x",
            "0a:58:0a:01:02:é",
            "+1:58:0a:01:02:03",
        ],
    )
    def test_no_address(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"^address .*: invalid MAC address$"):
            _core.parse_hwaddr(text)

    @given(st.text(alphabet="0aF:-. \0é", max_size=20))
    def test_any_text(self, text: str) -> None:
        try:
            packed = _core.parse_hwaddr(text)
        except ValueError:
            return
        assert packed.hex(text[2]) == text.lower()


class TestIPs:
    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("10.0.0.1", "10.0.0.1"),
            ("::", "::"),
            ("::1", "::1"),
            ("0:0:0:0:0:0:0:1", "::1"),
            ("2001:DB8::A", "2001:db8::a"),
            ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
            ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
            ("1:0:0:0:0:0:0:0", "1::"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("::ffff:102:304", "1.2.3.4"),
            ("::1.2.3.4", "::102:304"),
            ("::1:0", "::1:0"),
            ("::ffff:0:0:1", "::ffff:0:0:1"),
            ("64:ff9b::1.2.3.4", "64:ff9b::102:304"),
            ("fe80:0000:0000:0000:0000:0000:0000:0001", "fe80::1"),
        ],
    )
    def test_canonical(self, text: str, canonical: str) -> None:
        assert _core.format_ip(_core.parse_ip(text)) == canonical

    @given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
    def test_round_trip(self, ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        expected = mapped or ip
        for text in (ip.compressed, ip.exploded, ip.compressed.upper()):
            assert _core.parse_ip(text) == expected.packed
        assert _core.format_ip(ip.packed) == expected.compressed

    @given(st.integers(0, 2**32 - 1), st.sampled_from([0, 0xFFFF << 32, 1 << 127]))
    def test_near_ipv4(self, low: int, high: int) -> None:
        ip = ipaddress.IPv6Address(low | high)
        text = str(ip.ipv4_mapped or ":".join(f"{g:x}" for g in struct.unpack(">8H", ip.packed)))
        assert _core.parse_ip(_core.format_ip(ip.packed)) == _core.parse_ip(text)

    @given(st.text(alphabet="0123456789abcF:. %/\0é", max_size=45))
    def test_any_text(self, text: str) -> None:
        try:
            expected = None if "%" in text else ipaddress.ip_address(text)
        except ValueError:
            expected = None
        if expected is None:
            with pytest.raises(ValueError, match=r"^invalid IP address: "):
                _core.parse_ip(text)
            return
        mapped = expected.ipv4_mapped if isinstance(expected, ipaddress.IPv6Address) else None
        assert _core.parse_ip(text) == (mapped or expected).packed

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                "1",
                "1.2.3",
                "1.2.3.4.5",
                "01.2.3.4",
                "1.2.3.256",
                "1.2.3.4/8",
                " 1.2.3.4",
                "1.2.3.4\n",
                "1.2.3.4\0",
            ),
            *("0x7f.1", ":", ":::", "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "12345::", "fe80::1%eth0", "::g"),
            *("::1\0", "\ud800", "::\ud800"),
        ],
    )
    def test_no_address(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"^invalid IP address: "):
            _core.parse_ip(text)

    @pytest.mark.parametrize("length", [0, 3, 5, 15, 17])
    def test_no_packed_address(self, length: int) -> None:
        with pytest.raises(ValueError, match=f"has 4 or 16 bytes, not {length}"):
            _core.format_ip(bytes(length))


@pytest.mark.parametrize("function", [_core.parse_ip, _core.parse_hwaddr, _core.format_ip, _core.hwaddr_from_ip])
@pytest.mark.parametrize("value", [None, 5, []])
def test_other_types(function: Any, value: object) -> None:
    with pytest.raises(TypeError):
        function(value)


@given(st.binary(max_size=50).filter(lambda data: b"\0" not in data))
def test_file_names(data: bytes) -> None:
    assert _core.fsdecode(data) == os.fsdecode(data)
    assert _core.fsencode(os.fsdecode(data)) == data
    assert _core.fsencode(data) == data


class TestErrors:
    def test_kernel_error(self) -> None:
        error = KernelError(errno.ENOENT, 'open "/run/x"')
        assert isinstance(error, OSError)
        assert (error.errno, error.strerror, error.attempt) == (2, "no such file or directory", 'open "/run/x"')
        assert str(error) == 'open "/run/x": no such file or directory'

    @pytest.mark.parametrize(
        ("extack", "text"),
        [
            ("", "create the veth a: file exists"),
            ("name taken", "create the veth a: file exists (name taken)"),
        ],
    )
    def test_netlink_error(self, extack: str, text: str) -> None:
        error = NetlinkError(errno.EEXIST, "create the veth a", extack)
        assert isinstance(error, KernelError)
        assert (str(error), error.extack, error.others) == (text, extack, ())

    def test_errno_that_nobody_knows(self) -> None:
        assert str(KernelError(4000, "do it")) == "do it: unknown error 4000"

    def test_may_be_pickled(self) -> None:
        error = NetlinkError(errno.EEXIST, "create the veth a", "name taken")
        error.others = (NetlinkError(errno.ENODEV, "delete b"),)
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.errno, str(again.others[0])) == (str(error), errno.EEXIST, "delete b: no such device")


class TestMessages:
    def test_link(self) -> None:
        link = _core.parse_message(messages.NEWLINK, messages.LINK)
        assert isinstance(link, _core.Link)
        assert (link.index, link.name, link.mtu, link.txqlen, link.operstate) == (7, "veth0", 1500, 1000, "up")
        assert (link.hwaddr, link.master, link.link, link.link_netnsid) == ("0a:58:0a:00:00:01", 3, 2, 0)
        assert (link.kind, link.data, link.port_kind) == ("veth", {1: b"x", 2: b""}, "bridge")
        assert (link.port_data, link.alias, link.group) == ({4: b"\1", 33: b"\0"}, "an alias", 5)
        assert link.promiscuity == 1
        assert link.is_up
        assert not link.is_promiscuous
        assert repr(link) == "<Link 7 veth0 veth 0a:58:0a:00:00:01 up>"

    @pytest.mark.parametrize(
        ("hwaddr", "text"), [(b"", ""), (bytes(4), "00:00:00:00"), (bytes(range(20)), bytes(range(20)).hex(":"))]
    )
    def test_link_layer_addresses_of_other_lengths(self, hwaddr: bytes, text: str) -> None:
        link = _core.parse_message(messages.NEWLINK, bytes(16) + messages.attribute(1, hwaddr))
        assert isinstance(link, _core.Link)
        assert link.hwaddr == text

    def test_operstate_that_nobody_knows(self) -> None:
        for value in (b"", b"\x07", b"\xff"):
            link = _core.parse_message(messages.NEWLINK, bytes(16) + messages.attribute(16, value))
            assert isinstance(link, _core.Link)
            assert link.operstate == "unknown"

    def test_addresses(self) -> None:
        address = _core.parse_message(messages.NEWADDR, messages.ADDRESS_4)
        assert isinstance(address, _core.Address)
        assert (address.packed, address.prefix, address.index) == (bytes([10, 0, 0, 1]), 24, 7)
        assert (address.flags, address.label, address.scope) == (0x280, "veth0", 0)
        address = _core.parse_message(messages.NEWADDR, messages.ADDRESS_6)
        assert isinstance(address, _core.Address)
        assert (_core.format_ip(address.packed), address.scope, address.flags) == ("fe80::1", 253, 0x80)
        assert repr(address) == "<Address fe80::1/64 of link 7>"

    def test_routes(self) -> None:
        route = _core.parse_message(messages.NEWROUTE, messages.ROUTE_4)
        assert isinstance(route, _core.Route)
        assert (route.table, route.priority, route.mtu, route.advmss, route.index) == (1000, 55, 1300, 1200, 7)
        assert (route.dst, route.gateway, route.src) == (b"\xc0\0\2\0", bytes([10, 0, 0, 254]), bytes([10, 0, 0, 1]))
        route = _core.parse_message(messages.NEWROUTE, messages.ROUTE_6)
        assert isinstance(route, _core.Route)
        assert (route.dst, route.prefix, route.gateway) == (bytes(16), 0, None)
        hops = [(index, gateway and _core.format_ip(gateway)) for index, gateway in route.nexthops]
        assert hops == [(7, "fd00::1"), (8, None), (9, "::2")]

    @pytest.mark.parametrize("number", [messages.NEWADDR, messages.NEWROUTE])
    @pytest.mark.parametrize("family", [0, 28, 29, 128])
    def test_other_families_are_left_as_they_are(self, number: int, family: int) -> None:
        """CAN's routes, for one, have another header."""
        payload = bytes([family, 1, 2, 3])
        assert _core.parse_message(number, payload) == (number, payload)

    def test_other_types_are_left_as_they_are(self) -> None:
        assert _core.parse_message(messages.NEWNEIGH, b"anything") == (messages.NEWNEIGH, b"anything")

    def test_several(self) -> None:
        data = b"".join(messages.message(number, payload) for number, payload in SAMPLES)
        kinds = [type(found).__name__ for found in _core.parse_messages(data)]
        assert kinds == ["Link", "Address", "Address", "Route", "Route"]
        assert _core.parse_messages(b"") == []

    def test_attributes(self) -> None:
        data = messages.attribute(1, b"one") + messages.attribute(0x8002, b"") + messages.attribute(1, b"last")
        assert _core.parse_attributes(data) == {1: b"last", 2: b""}
        assert _core.parse_attributes(b"") == {}
        # The padding after the last one may be missing.
        assert _core.parse_attributes(struct.pack("=HH", 7, 3) + b"end") == {3: b"end"}

    @pytest.mark.parametrize(
        "data",
        [b"\x04", b"\x04\0\1", b"\0\0\1\0", b"\3\0\1\0", b"\5\0\1\0", b"\xff\xff\1\0" + bytes(40), b"\4\0\1\0\4"],
    )
    def test_malformed_attributes(self, data: bytes) -> None:
        with pytest.raises(ValueError, match=r"^malformed netlink message: "):
            _core.parse_attributes(data)

    @pytest.mark.parametrize("length", [0, 1, 15, 25, 2**31, 2**32 - 1])
    def test_malformed_length(self, length: int) -> None:
        data = struct.pack("=IHHII", length, 16, 0, 0, 0) + bytes(8)
        with pytest.raises(ValueError, match=r"^malformed netlink message: "):
            _core.parse_messages(data)

    @pytest.mark.parametrize(
        ("number", "payload"),
        [
            (messages.NEWLINK, b""),
            (messages.NEWLINK, bytes(15)),
            (messages.NEWADDR, b""),
            (messages.NEWADDR, b"\2" + bytes(6)),
            (messages.NEWADDR, b"\2" + bytes(7)),  # no address in it
            (messages.NEWROUTE, b""),
            (messages.NEWROUTE, b"\2" + bytes(10)),
            (messages.NEWLINK, bytes(16) + messages.attribute(4, b"\1\2\3")),
            (messages.NEWADDR, b"\2" + bytes(7) + messages.attribute(1, b"12345")),
            (messages.NEWROUTE, b"\2" + bytes(11) + messages.attribute(5, b"")),
            (messages.NEWROUTE, b"\2" + bytes(11) + messages.attribute(9, bytes(7))),
            (messages.NEWROUTE, b"\2" + bytes(11) + messages.attribute(9, bytes(8))),
            (messages.NEWROUTE, b"\2" + bytes(11) + messages.attribute(9, b"\x09" + bytes(7))),
            (messages.NEWROUTE, b"\2" + bytes(11) + messages.attribute(9, messages.next_hop(1) + bytes(3))),
        ],
    )
    def test_malformed(self, number: int, payload: bytes) -> None:
        with pytest.raises(ValueError, match=r"^malformed netlink message: "):
            _core.parse_message(number, payload)

    def test_cut_short_anywhere(self) -> None:
        for number, payload in [*SAMPLES, *messages.of_this_kernel()]:
            whole = _core.parse_message(number, payload)
            assert not isinstance(whole, tuple) or payload[0] not in (2, 10)
            data = messages.message(number, payload)
            for length in range(len(payload)):
                sound(number, payload[:length])
            for length in range(1, len(data)):
                with pytest.raises(ValueError, match=r"^malformed netlink message: "):
                    _core.parse_messages(data[:length])


def sound(number: int, payload: bytes) -> None:
    """Something is made of it, or ValueError says that it is malformed; there is no third way."""
    for parse in (
        lambda: _core.parse_message(number, payload),
        lambda: _core.parse_messages(messages.message(number, payload)),
        lambda: _core.parse_messages(payload),
        lambda: _core.parse_attributes(payload),
    ):
        complaint = ""
        try:
            repr(parse())
        except ValueError as error:
            complaint = str(error)
        assert not complaint or complaint.startswith("malformed netlink message: ")


@settings(max_examples=300)
@given(st.sampled_from(SAMPLES), st.integers(0, 2**32))
def test_damaged_messages(sample: tuple[int, bytes], seed: int) -> None:
    number, payload = sample
    sound(number, messages.damaged(payload, random.Random(seed)))


@settings(max_examples=300)
@given(st.sampled_from([messages.NEWLINK, messages.NEWADDR, messages.NEWROUTE]), st.binary(max_size=120))
def test_random_messages(number: int, payload: bytes) -> None:
    sound(number, payload)
    sound(number, b"\2" + payload)


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_damaged_messages_of_this_kernel(seed: int) -> None:
    chance = random.Random(seed)
    number, payload = chance.choice(messages.of_this_kernel())
    sound(number, messages.damaged(payload, chance))


def test_imports_without_a_warning() -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "error", "-c", "import cni._core, cni.kernel.netns, cni.invoke.launcher"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


class TestFaces:
    """Test what the objects of the core and of `cni.kernel` say about themselves, and where they are imported from."""

    def test_netlink_and_batch(self) -> None:
        with kernel.Netlink() as netlink:
            assert repr(netlink) == f"<Netlink fd {netlink.fileno()}>"
            batch = netlink.batch()
            assert repr(batch) == "<Batch: empty>"
            batch.link_get("eth0").address_add(7, bytes([10, 0, 0, 1]), 24)
            assert repr(batch) == "<Batch: look up the link eth0; add the address 10.0.0.1/24 to link 7>"
        assert repr(netlink) == "<Netlink closed>"

    def test_namespaces(self) -> None:
        with NetNS.current() as own:
            assert repr(own) == f"<NetNS /proc/thread-self/ns/net fd {own.fd}>"
        assert repr(own) == "<NetNS /proc/thread-self/ns/net closed>"
        assert repr(NetNS(5, "")) == "<NetNS anonymous fd 5>"

    def test_routes_to_be_copied(self) -> None:
        seen = _core.parse_message(messages.NEWROUTE, messages.ROUTE_4)
        assert isinstance(seen, _core.Route)
        assert repr(Route(seen)) == repr(seen) == "<Route 192.0.2.0/24 table 1000>"
