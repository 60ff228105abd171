"""DHCP's messages: what is sent, what is read, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.spec.errors import CNIError
from cni.spec.ip import CIDR, IP
from cni_plugins.ipam.dhcp import IPAMConf, message
from cni_plugins.ipam.dhcp.message import Message
from cni_plugins.ipam.dhcp.options import Options

MAC = bytes.fromhex("0a580a500001")
SERVER = IP.parse("10.80.0.1")
YOURS = IP.parse("10.80.0.51")


def ack(**options: bytes) -> Message:
    """An ACK with options by the names they have in the module."""
    given = {
        "MESSAGE_TYPE": bytes((message.ACK,)),
        "SERVER": SERVER.packed,
        "SUBNET_MASK": bytes((255, 255, 255, 0)),
        **options,
    }
    values = {getattr(message, name): value for name, value in given.items() if value}
    return Message(0x01020304, MAC, values, yours=YOURS, is_reply=True)


def ip(*texts: str) -> bytes:
    return b"".join(IP.parse(text).packed for text in texts)


def udp(payload: bytes) -> bytes:
    """An IP packet for a client."""
    packet = bytearray(message.packet(payload, SERVER, YOURS))
    packet[20:24] = b"\0\x43\0\x44"
    return bytes(packet)


class TestLayout:
    def test_by_hand(self) -> None:
        sent = Message(0x01020304, MAC, {53: b"\1", 61: b"\0id", 12: b""}, client=SERVER, broadcast=True).encode()
        assert sent[:12].hex() == "010106000102030400008000"
        assert sent[12:28] == SERVER.packed + bytes(12)
        assert sent[28:44] == MAC.ljust(16, b"\0")
        assert sent[44:236] == bytes(192)
        assert sent[236:254].hex() == "63825363" + "350101" + "3d03006964" + "0c00" + "ff" + "000000"
        assert len(sent) == 300

    def test_there_and_back(self) -> None:
        there = ack(ROUTERS=ip("10.80.0.1"))
        back = Message.decode(there.encode())
        assert {name: getattr(back, name) for name in Message.__slots__} == {
            name: getattr(there, name) for name in Message.__slots__
        }

    def test_long_options_are_split(self) -> None:
        value = bytes(range(256)) * 3
        sent = Message(1, MAC, {53: b"\1", 43: value}).encode()
        assert sent[243:245] == b"\x2b\xff"
        assert Message.decode(sent).options[43] == value

    @pytest.mark.parametrize("code", [0, 255])
    def test_padding_has_no_value(self, code: int) -> None:
        assert Message.decode(Message(1, MAC, {53: b"\1", code: b"x"}).encode()).options == {53: b"\1"}

    @pytest.mark.parametrize(
        ("overload", "found"),
        [
            (b"", {}),
            (b"\1", {12: b"file"}),
            (b"\2", {12: b"name"}),
            (b"\3", {12: b"filename"}),
            (b"\4", {}),
            (b"\1\1", {}),
        ],
    )
    def test_overload(self, overload: bytes, found: dict[int, bytes]) -> None:
        """Options in `file` come before those in `sname` (RFC 2131, 4.1)."""
        data = bytearray(Message(1, MAC, {52: overload} if overload else {}, is_reply=True).encode())
        data[44:51] = b"\x0c\4name\xff"
        data[108:115] = b"\x0c\4file\xff"
        options = Message.decode(bytes(data)).options
        assert {code: value for code, value in options.items() if code != 52} == found

    @pytest.mark.parametrize(
        ("options", "found"),
        [
            ("ff", {}),
            ("", {}),
            ("000000", {}),
            ("350105", {53: b"\5"}),
            ("00350105ff0c", {53: b"\5"}),
            ("0c01610c0162ff", {12: b"ab"}),
            ("0c00ff", {12: b""}),
        ],
    )
    def test_options(self, options: str, found: dict[int, bytes]) -> None:
        data = ack().encode()[:240] + bytes.fromhex(options)
        assert Message.decode(data).options == found

    @pytest.mark.parametrize("options", ["35", "3502", "350205", "ff00"[2:] + "0cff61", "350105" + "0c"])
    def test_truncated_options(self, options: str) -> None:
        with pytest.raises(ValueError, match="is incomplete"):
            Message.decode(ack().encode()[:240] + bytes.fromhex(options))

    @pytest.mark.parametrize(("at", "value"), [(0, 0), (0, 3), (1, 6), (2, 0), (2, 16), (2, 255), (236, 0), (239, 100)])
    def test_no_message(self, at: int, value: int) -> None:
        data = bytearray(ack().encode())
        data[at] = value
        with pytest.raises(ValueError):
            Message.decode(bytes(data))

    @pytest.mark.parametrize("size", [0, 1, 43, 235, 239])
    def test_too_short(self, size: int) -> None:
        with pytest.raises(ValueError):
            Message.decode(ack().encode()[:size])


class TestMeaning:
    @pytest.mark.parametrize(
        ("mask", "network"),
        [
            ((255, 255, 255, 0), "10.80.0.51/24"),
            ((255, 255, 255, 255), "10.80.0.51/32"),
            ((0, 0, 0, 0), "10.80.0.51/0"),
            ((255, 255, 254, 0), "10.80.0.51/23"),
            ((255, 0, 255, 0), None),
            ((0, 0, 0, 255), None),
            ((255, 255, 255), None),
            ((), None),
        ],
    )
    def test_mask(self, mask: tuple[int, ...], network: str | None) -> None:
        found = ack(SUBNET_MASK=bytes(mask)).network
        assert (found and str(found)) == network

    def test_odd_values(self) -> None:
        odd = ack(SERVER=b"abc", ROUTERS=b"\1", MESSAGE_TYPE=b"\5\5", LEASE_TIME=b"\0\0\1")
        assert (odd.server, odd.router, odd.kind, odd.number(message.LEASE_TIME)) == (None, None, 0, None)

    def test_the_first_router(self) -> None:
        assert ack(ROUTERS=ip("10.80.0.1", "10.80.0.2") + b"x").router == SERVER

    @pytest.mark.parametrize(
        ("options", "routes"),
        [
            ({}, []),
            ({"ROUTERS": ip("10.0.0.1")}, ["0.0.0.0/0 10.0.0.1"]),
            (
                {"STATIC_ROUTES": ip("10.0.0.0", "10.1.2.3", "192.168.1.0", "10.1.2.3")},
                ["10.0.0.0/8 10.1.2.3", "192.168.1.0/24 10.1.2.3"],
            ),
            (
                {"STATIC_ROUTES": ip("172.16.5.4", "10.1.2.3") + b"\1\2\3\4\5\6\7", "ROUTERS": ip("10.0.0.1")},
                ["172.16.0.0/16 10.1.2.3", "0.0.0.0/0 10.0.0.1"],
            ),
            # RFC 3442's examples, the host's bits of the last one dirty.
            ({"CLASSLESS_ROUTES": b"\0" + ip("10.0.0.1")}, ["0.0.0.0/0 10.0.0.1"]),
            ({"CLASSLESS_ROUTES": b"\x08\x0a" + ip("10.0.0.1")}, ["10.0.0.0/8 10.0.0.1"]),
            ({"CLASSLESS_ROUTES": b"\x19\x0a\0\0\x80" + ip("10.0.0.1")}, ["10.0.0.128/25 10.0.0.1"]),
            ({"CLASSLESS_ROUTES": b"\x20\x0a\x11\0\1" + ip("10.0.0.1")}, ["10.17.0.1/32 10.0.0.1"]),
            ({"CLASSLESS_ROUTES": b"\x09\x0a\xff" + ip("10.0.0.1")}, ["10.128.0.0/9 10.0.0.1"]),
            (
                {
                    "CLASSLESS_ROUTES": b"\x10\x0a\x63" + ip("10.80.0.7") + b"\x08\x0b" + ip("0.0.0.0"),
                    "STATIC_ROUTES": ip("10.0.0.0", "10.1.2.3"),
                    "ROUTERS": ip("10.0.0.1"),
                },
                ["10.99.0.0/16 10.80.0.7", "11.0.0.0/8 0.0.0.0 link"],
            ),
            # What is not whole at the end is ignored.
            ({"CLASSLESS_ROUTES": b"\x08\x0a" + ip("10.0.0.1") + b"\x10\x0a\0\1"}, ["10.0.0.0/8 10.0.0.1"]),
            ({"CLASSLESS_ROUTES": b"\x08\x0a" + ip("10.0.0.1") + b"\x21" + bytes(20)}, ["10.0.0.0/8 10.0.0.1"]),
        ],
    )
    def test_routes(self, options: dict[str, bytes], routes: list[str]) -> None:
        found = ack(**options).routes()
        shown = [f"{route.dst} {route.gw}{' link' if route.scope == 253 else ''}" for route in found]
        assert shown == routes


class TestPackets:
    def test_by_hand(self) -> None:
        packet = message.packet(b"abc", message.ANY, message.BROADCAST)
        assert packet[:12].hex() == "4510001f0000000040117abf"
        assert packet[12:20].hex() == "00000000ffffffff"
        assert packet[20:26].hex() == "00440043000b"
        # A sum over all of it, its checksums included, is zero in one's complement.
        assert message._checksum(packet[:20]) == 0
        assert message._checksum(packet[12:20] + b"\0\x11\0\x0b" + packet[20:]) == 0

    def test_there_and_back(self) -> None:
        assert message.payload(udp(b"abc")) == b"abc"
        assert message.payload(udp(b"")) == b""
        assert message.payload(udp(b"abc") + bytes(20)) == b"abc"  # what an Ethernet frame is filled up with

    @pytest.mark.parametrize(
        ("at", "value"),
        [
            (0, 0x65),  # IPv6
            (0, 0x44),  # a header of 16 bytes
            (0, 0x4F),  # of 60 bytes
            (2, 0xFF),  # longer than there is
            (3, 27),  # shorter than its headers
            (6, 0x20),  # a fragment
            (7, 0x01),
            (9, 6),  # TCP
            (23, 0x43),  # for another port
            (24, 1),  # UDP longer than IP
            (25, 7),  # shorter than its header
        ],
    )
    def test_refused(self, at: int, value: int) -> None:
        packet = bytearray(udp(b"abc"))
        packet[at] = value
        with pytest.raises(ValueError):
            message.payload(bytes(packet))

    @pytest.mark.parametrize("size", range(0, 31))
    def test_truncated(self, size: int) -> None:
        with pytest.raises(ValueError):
            message.payload(udp(b"abc")[:size])


# An ACK of dnsmasq 2.90's: headers of IP and UDP, BOOTP's fields, the options.
REAL = (
    bytes.fromhex(
        "45c0016119fe0000401149f80a5000010a50003600430044014d1635"
        "02010600298110c900000000000000000a5000360a50000100000000b6cbbdfcafe900000000000000000000"
    )
    + bytes(192)
    + bytes.fromhex(
        "6382536335010536040a5000013304000000783a040000003c3b04000000690104ffffff001c040a5000ff770e076578616d"
        "706c650474657374001a0205787907100a630a50000721080a0000000a50000803040a500001ff"
    )
)
SAMPLES = [
    REAL,
    udp(
        ack(
            LEASE_TIME=b"\0\0\0\x78",
            TEXT=b"no address available",
            OVERLOAD=b"\3",
            CLASSLESS_ROUTES=b"\x10\x0a\x63" + ip("10.80.0.7") * 3,
            STATIC_ROUTES=b"\1" * 15,
        ).encode()
    ),
]


def test_a_real_packet() -> None:
    found = Message.decode(message.payload(REAL.ljust(353, b"\0")))
    assert (found.kind, found.server, found.router) == (message.ACK, SERVER, SERVER)
    assert [found.number(code) for code in (message.LEASE_TIME, message.RENEWAL_TIME, message.REBINDING_TIME)] == [
        120,
        60,
        105,
    ]
    assert found.number(message.MTU, 2) == 1400
    assert [(str(route.dst), str(route.gw)) for route in found.routes()] == [("10.99.0.0/16", "10.80.0.7")]


def look_at_all(data: bytes) -> None:
    try:
        found = Message.decode(message.payload(data))
    except ValueError:
        return
    Message.decode(found.encode())
    for value in (found.kind, found.server, found.router, found.text, found.network, found.routes()):
        assert value is not Ellipsis
    for code in range(256):
        found.number(code)


@settings(max_examples=500)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=10),
    st.integers(0, 400),
)
def test_mutated_packets(packet: bytes, changes: list[tuple[int, bytes]], size: int) -> None:
    changed = bytearray(packet)
    for position, replacement in changes:
        changed[position : position + 1] = replacement
    look_at_all(bytes(changed[:size]))
    look_at_all(udp(bytes(changed[28:size])))  # with sound headers


@settings(max_examples=300)
@given(st.binary(max_size=200), st.binary(max_size=192))
def test_any_options(options: bytes, overloaded: bytes) -> None:
    data = bytearray(ack(OVERLOAD=b"\3").encode()[:246] + options)
    data[44 : 44 + len(overloaded)] = overloaded
    look_at_all(udp(bytes(data)))


@settings(max_examples=200)
@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    look_at_all(data)
    look_at_all(udp(data))


class TestOptions:
    @pytest.mark.parametrize(
        ("request_", "requested"),
        [
            ([], [3, 1]),
            ([{"option": "host-name"}], [12, 3, 1]),
            ([{"option": "12"}, {"option": "121"}, {"option": "host-name"}], [12, 121, 3, 1]),
            ([{"option": "routers"}, {"option": "subnet-mask"}], [3, 1]),
            ([{"option": "vendor-class-identifier", "skipDefault": True}], [60]),
            ([{"skipDefault": True}], [1, 3, 15, 6]),
            ([{"option": "0"}, {"option": "255"}], [0, 255, 3, 1]),
            ([{"option": "007"}], [7, 3, 1]),
        ],
    )
    def test_requested(self, request_: list[Any], requested: list[int]) -> None:
        assert Options.of(IPAMConf.parse({"request": request_}), "").requested == requested

    @pytest.mark.parametrize(
        ("provide", "cni_args", "provided"),
        [
            ([], "A=b", {}),
            ([{"option": "host-name", "value": "c1"}], "", {12: b"c1"}),
            (
                [{"option": "dhcp-client-identifier", "value": "me"}, {"option": "77", "value": "u"}],
                "",
                {61: b"me", 77: b"u"},
            ),
            ([{"option": "user-class", "fromArg": "C"}], "A=b;C=d=e;X", {77: b"d=e"}),
            ([{"option": "user-class", "value": "v", "fromArg": "C"}], "C=", {77: b""}),
            ([{"option": "user-class", "value": "v", "fromArg": "C"}], "c=d", {77: b"v"}),
            ([{"option": "12", "value": ""}], "", {}),
            ([{"option": "12", "value": "ä" * 127}], "", {12: "ä".encode() * 127}),
        ],
    )
    def test_provided(self, provide: list[Any], cni_args: str, provided: dict[int, bytes]) -> None:
        assert Options.of(IPAMConf.parse({"provide": provide}), cni_args).provided == provided

    @pytest.mark.parametrize(
        ("name", "problem"),
        [("", "invalid syntax"), ("junk", "invalid syntax"), ("-1", "invalid syntax"), ("1_0", "invalid syntax")]
        + [(text, "value out of range") for text in ("256", "9" * 5000)],
    )
    def test_no_option(self, name: str, problem: str) -> None:
        parsing = f'Can not parse option "{name}": Can not parse option: strconv.ParseUint: parsing "{name}": {problem}'
        for conf in ({"request": [{"option": name}]}, {"provide": [{"option": name, "value": "x"}]}):
            with pytest.raises(CNIError) as error:
                Options.of(IPAMConf.parse(conf), "")
            assert str(error.value) == parsing

    def test_too_long(self) -> None:
        value = "x" * 256
        conf = IPAMConf.parse({"provide": [{"option": "12", "value": value}]})
        with pytest.raises(CNIError, match='^value too long for option "12": "x+"$'):
            Options.of(conf, "")
        conf = IPAMConf.parse({"provide": [{"option": "12", "fromArg": "A"}]})
        with pytest.raises(CNIError, match='^value too long for option "12" from CNI_ARGS "A": "x+"$'):
            Options.of(conf, f"A={value}")


def test_networks_are_whole() -> None:
    assert ack().network == CIDR(YOURS, 24)
