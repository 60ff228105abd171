"""Addresses and networks as Go has them (net, pkg/ip); the peer in these tests is ipaddress."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.spec.ip import CIDR, IP

Peer = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_mapped(address: Peer) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None


ADDRESSES = st.ip_addresses().filter(lambda address: not is_mapped(address))


# IP


@pytest.mark.parametrize(
    ("text", "canonical", "version"),
    [
        ("10.1.2.3", "10.1.2.3", 4),
        ("0.0.0.0", "0.0.0.0", 4),
        ("255.255.255.255", "255.255.255.255", 4),
        ("::", "::", 6),
        ("::1", "::1", 6),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1", 6),
        ("2001:db8:0:1:0:0:0:1", "2001:db8:0:1::1", 6),
        ("AB12::1:0", "ab12::1:0", 6),
        ("fd00:0:1:2:3:4:5:6", "fd00:0:1:2:3:4:5:6", 6),  # a single zero group is not shortened
        ("::ffff:1.2.3.4", "1.2.3.4", 4),
        ("::FFFF:0102:0304", "1.2.3.4", 4),
        ("::1.2.3.4", "::102:304", 6),
        ("64:ff9b::1.2.3.4", "64:ff9b::102:304", 6),
    ],
)
def test_parse_and_print(text: str, canonical: str, version: int) -> None:
    ip = IP.parse(text)
    assert str(ip) == canonical
    assert (ip.version, ip.bits, len(ip.packed) * 8) == (version, 32 if version == 4 else 128, ip.bits)
    assert repr(ip) == f"IP({canonical})"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1.2.3",
        "1.2.3.x",
        "1.2.3.4.5",
        "1.2.3.256",
        "01.2.3.4",
        "1.2.3.4/24",
        " 1.2.3.4",
        "1.2.3.4 ",
        "1.2.3.4\n",
        "1.2.3.4\0",
        "1..3.4",
        "-1.2.3.4",
        "0x1.2.3.4",
        "16909060",
        "fe80::1%eth0",
        ":::",
        "1::2::3",
        "12345::",
        "1:2:3:4:5:6:7",
        "1:2:3:4:5:6:7:8:9",
        "::1.2.3",
        "[::1]",
        "١.2.3.4",
        "\udcff",
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError) as refusal:
        IP.parse(text)
    assert str(refusal.value) == f"invalid IP address: {text}"


@given(ADDRESSES)
def test_parse_agrees_with_ipaddress(address: Peer) -> None:
    ip = IP.parse(str(address))
    assert ip.packed == address.packed
    assert int(ip) == int(address)
    assert IP(address.packed) == ip
    assert IP.parse(str(ip)) == ip
    assert IP.parse(address.exploded) == ip
    assert (ip.is_loopback, ip.is_multicast, ip.is_unspecified) == (
        address.is_loopback,
        address.is_multicast,
        address.is_unspecified,
    )
    assert ip.is_link_local == address.is_link_local


def test_v4_mapped_is_v4() -> None:
    mapped = IP(b"\0" * 10 + b"\xff\xff\x01\x02\x03\x04")
    assert mapped == IP.parse("1.2.3.4")
    assert hash(mapped) == hash(IP.parse("1.2.3.4"))
    assert mapped.packed == b"\x01\x02\x03\x04"


@pytest.mark.parametrize("packed", [b"", b"123", b"12345", b"1" * 17])
def test_packed_has_a_family(packed: bytes) -> None:
    with pytest.raises(ValueError, match="4 or 16 bytes"):
        IP(packed)


@pytest.mark.parametrize(
    ("text", "following"),
    [
        ("192.168.0.0", "192.168.0.1"),
        ("192.168.0.255", "192.168.1.0"),
        ("0.1.0.5", "0.1.0.6"),
        ("10.255.255.255", "11.0.0.0"),
        ("AB12::123", "ab12::124"),
        ("AB12::FFFF", "ab12::1:0"),
        ("0::123", "::124"),
        ("2001:db8::ffff:ffff:ffff:ffff", "2001:db8:0:1::"),
    ],
)
def test_next_and_previous(text: str, following: str) -> None:
    assert str(IP.parse(text) + 1) == following
    assert IP.parse(following) + -1 == IP.parse(text)


@pytest.mark.parametrize(
    ("text", "offset"), [("255.255.255.255", 1), ("0.0.0.0", -1), ("::", -1), ("ff" * 2 + ":ffff" * 7, 1)]
)
def test_nothing_lies_beyond_the_ends(text: str, offset: int) -> None:
    with pytest.raises(ValueError, match=r"no IPv[46] address has the number"):
        IP.parse(text) + offset


def test_from_int() -> None:
    assert IP.from_int(0x0A010203, 4) == IP.parse("10.1.2.3")
    assert IP.from_int(1, 6) == IP.parse("::1")
    with pytest.raises(ValueError):
        IP.from_int(1 << 32, 4)


def test_order_puts_ipv4_first() -> None:
    ordered = [IP.parse(text) for text in ("0.0.0.0", "9.0.0.0", "10.0.0.0", "255.255.255.255", "::", "::1", "ff::")]
    shuffled = ordered[1::2] + ordered[::2]
    assert sorted(shuffled) == ordered
    for index, one in enumerate(ordered):
        for other_index, other in enumerate(ordered):
            assert (one < other) is (index < other_index)
            assert (one <= other) is (index <= other_index)
            assert (one > other) is (index > other_index)
            assert (one >= other) is (index >= other_index)
            assert (one == other) is (index == other_index)


def test_equality_is_with_addresses_alone() -> None:
    assert IP.parse("1.2.3.4") != "1.2.3.4"
    assert IP.parse("0.0.0.1") != IP.parse("::1")
    assert len({IP.parse("1.2.3.4"), IP.parse("::ffff:1.2.3.4"), IP.parse("::1.2.3.4")}) == 2


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("10.1.2.3", "global"),
        ("192.168.0.1", "global"),
        ("8.8.8.8", "global"),
        ("2001:db8::1", "global"),
        ("fd00::1", "global"),
        ("127.0.0.1", "loopback"),
        ("127.255.0.1", "loopback"),
        ("128.0.0.1", "global"),
        ("::1", "loopback"),
        ("::2", "global"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "global"),
        ("ff02::1", "multicast"),
        ("169.254.1.1", "link_local"),
        ("169.253.1.1", "global"),
        ("fe80::1", "link_local"),
        ("febf::1", "link_local"),
        ("fec0::1", "global"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("255.255.255.255", ""),
    ],
)
def test_kinds(text: str, kinds: str) -> None:
    ip = IP.parse(text)
    found = {
        "loopback": ip.is_loopback,
        "multicast": ip.is_multicast,
        "link_local": ip.is_link_local,
        "global": ip.is_global_unicast,
        "unspecified": ip.is_unspecified,
    }
    assert [name for name, answer in found.items() if answer] == ([kinds] if kinds else [])


# CIDR


@pytest.mark.parametrize(
    ("text", "canonical", "network", "last"),
    [
        ("10.1.2.3/24", "10.1.2.3/24", "10.1.2.0/24", "10.1.2.255"),
        ("0.0.0.0/0", "0.0.0.0/0", "0.0.0.0/0", "255.255.255.255"),
        ("10.1.2.3/32", "10.1.2.3/32", "10.1.2.3/32", "10.1.2.3"),
        ("10.1.2.3/31", "10.1.2.3/31", "10.1.2.2/31", "10.1.2.3"),
        ("10.1.2.3/024", "10.1.2.3/24", "10.1.2.0/24", "10.1.2.255"),
        ("2001:DB8::5/64", "2001:db8::5/64", "2001:db8::/64", "2001:db8::ffff:ffff:ffff:ffff"),
        ("::/0", "::/0", "::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("fd00::3/128", "fd00::3/128", "fd00::3/128", "fd00::3"),
        ("::ffff:10.1.2.3/120", "10.1.2.3/24", "10.1.2.0/24", "10.1.2.255"),
    ],
)
def test_cidr(text: str, canonical: str, network: str, last: str) -> None:
    cidr = CIDR.parse(text)
    assert str(cidr) == canonical
    assert repr(cidr) == f"CIDR({canonical})"
    assert str(cidr.network) == network
    assert str(cidr.broadcast) == last
    assert cidr.version == cidr.ip.version
    assert cidr.network.network == cidr.network


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "10.0.0.1",
        "10.0.0.1/",
        "/24",
        "1.2.3/45",
        "1.2.3.4/99",
        "1.2.3.4/33",
        "1.2.3.4/-1",
        "1.2.3.4/+1",
        "1.2.3.4/ 1",
        "1.2.3.4/1_0",
        "1.2.3.4/٢",
        "1.2.3.4/24/24",
        "1.2.3.4/255.255.255.0",
        "1.2.3.4/" + "9" * 5000,
        "::1/129",
        "fe80::1%eth0/64",
        "::ffff:1.2.3.4/64",
        "::ffff:1.2.3.4/129",
    ],
)
def test_cidr_refuses(text: str) -> None:
    with pytest.raises(ValueError) as refusal:
        CIDR.parse(text)
    assert str(refusal.value) == f"invalid CIDR address: {text}"


@pytest.mark.parametrize(("text", "prefix"), [("1.2.3.4", 33), ("1.2.3.4", -1), ("::1", 129)])
def test_prefix_must_fit(text: str, prefix: int) -> None:
    with pytest.raises(ValueError, match="invalid CIDR address"):
        CIDR(IP.parse(text), prefix)


@given(ADDRESSES, st.data())
def test_cidr_agrees_with_ipaddress(address: Peer, data: st.DataObject) -> None:
    prefix = data.draw(st.integers(0, address.max_prefixlen))
    peer = ipaddress.ip_interface(f"{address}/{prefix}").network
    cidr = CIDR.parse(f"{address}/{prefix}")
    assert cidr.network.ip.packed == peer.network_address.packed
    if not is_mapped(peer.broadcast_address):
        assert cidr.broadcast.packed == peer.broadcast_address.packed
    other = data.draw(ADDRESSES)
    assert (IP(other.packed) in cidr) is (other in peer)
    other_peer = ipaddress.ip_interface(f"{other}/{data.draw(st.integers(0, other.max_prefixlen))}").network
    expected = peer.version == other_peer.version and peer.overlaps(other_peer)
    assert cidr.overlaps(CIDR.parse(str(other_peer))) is expected


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("10.0.0.0/8", "10.1.2.0/24", True),
        ("10.1.2.3/24", "10.1.2.200/25", True),
        ("10.1.2.0/25", "10.1.2.128/25", False),
        ("10.0.0.0/8", "11.0.0.0/8", False),
        ("0.0.0.0/0", "::/0", False),
        ("::/0", "fd00::/8", True),
        ("0.0.0.0/0", "255.255.255.255/32", True),
    ],
)
def test_overlaps_both_ways(one: str, other: str, overlap: bool) -> None:
    assert CIDR.parse(one).overlaps(CIDR.parse(other)) is overlap
    assert CIDR.parse(other).overlaps(CIDR.parse(one)) is overlap


def test_membership_needs_the_family() -> None:
    assert IP.parse("10.1.2.99") in CIDR.parse("10.1.2.3/24")
    assert IP.parse("10.1.3.0") not in CIDR.parse("10.1.2.3/24")
    assert IP.parse("::1") not in CIDR.parse("0.0.0.0/0")
    assert IP.parse("1.2.3.4") not in CIDR.parse("::/0")
    assert IP.parse("::ffff:10.1.2.99") in CIDR.parse("10.1.2.3/24")


def test_host() -> None:
    assert str(CIDR.host(IP.parse("10.0.0.1"))) == "10.0.0.1/32"
    assert str(CIDR.host(IP.parse("fd00::1"))) == "fd00::1/128"


def test_cidr_equality_counts_host_and_prefix() -> None:
    assert CIDR.parse("10.0.0.1/24") == CIDR.parse("10.0.0.1/24")
    assert CIDR.parse("10.0.0.1/24") != CIDR.parse("10.0.0.2/24")
    assert CIDR.parse("10.0.0.1/24") != CIDR.parse("10.0.0.1/25")
    assert CIDR.parse("10.0.0.1/24") != "10.0.0.1/24"
    assert len({CIDR.parse("10.0.0.1/24"), CIDR.parse("10.0.0.1/24"), CIDR.parse("10.0.0.1/8")}) == 2
