"""host-local's ranges: what a configuration may say, and in which order addresses are given out."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from cni.spec.errors import CNIError
from cni.spec.ip import CIDR, IP
from cni_plugins.ipam.host_local.ranges import Range, RangeSet, check_together, requested_ip


def make(subnet: str | None, start: str = "", end: str = "", gateway: str = "") -> Range:
    return Range(
        CIDR.parse(subnet) if subnet else None,
        IP.parse(start) if start else None,
        IP.parse(end) if end else None,
        IP.parse(gateway) if gateway else None,
    )


def order(ranges: RangeSet, last: str = "", most: int = 1000) -> list[str]:
    return [address for address, _ in islice(ranges.candidates(IP.parse(last) if last else None), most)]


def test_one_range_fills_in_what_is_not_said() -> None:
    table = {
        "192.0.2.0/24": ("192.0.2.1", "192.0.2.254", "192.0.2.1"),
        "192.0.2.0/25": ("192.0.2.1", "192.0.2.126", "192.0.2.1"),
        "192.0.2.12/30": ("192.0.2.13", "192.0.2.14", "192.0.2.13"),
        "0.0.0.0/0": ("0.0.0.1", "255.255.255.254", "0.0.0.1"),
        "2001:db8:1::/64": ("2001:db8:1::1", "2001:db8:1:0:ffff:ffff:ffff:ffff", "2001:db8:1::1"),
        "2001:db8::/126": ("2001:db8::1", "2001:db8::3", "2001:db8::1"),
    }
    for subnet, expected in table.items():
        made = make(subnet)
        assert (str(made.start), str(made.end), str(made.gateway)) == expected


def test_what_is_said_is_kept() -> None:
    made = make("192.0.2.0/24", "192.0.2.40", "192.0.2.50", "192.0.2.254")
    assert (str(made), str(made.gateway)) == ("192.0.2.40-192.0.2.50", "192.0.2.254")
    assert str(make("192.0.2.0/24", "192.0.2.0", "192.0.2.255")) == "192.0.2.0-192.0.2.255"
    assert str(make("192.0.2.0/24", gateway="198.51.100.1").gateway) == "198.51.100.1"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None,), "IP <nil> not v4 nor v6"),
        (("192.0.2.0/31",), "Network 192.0.2.0/31 too small to allocate from"),
        (("192.0.2.1/32",), "Network 192.0.2.1/32 too small to allocate from"),
        (("2001:db8::/127",), "Network 2001:db8::/127 too small to allocate from"),
        (("2001:db8::1/128",), "Network 2001:db8::1/128 too small to allocate from"),
        (
            ("192.0.2.12/24",),
            "Network has host bits set. For a subnet mask of length 24 the network address is 192.0.2.0",
        ),
        (
            ("2001:db8:1::12/64",),
            "Network has host bits set. For a subnet mask of length 64 the network address is 2001:db8:1::",
        ),
        (("192.0.2.0/24", "192.0.3.0"), "RangeStart 192.0.3.0 not in network 192.0.2.0/24"),
        (("192.0.2.0/24", "2001:db8::1"), "RangeStart 2001:db8::1 not in network 192.0.2.0/24"),
        (("192.0.2.0/24", "", "192.0.4.0"), "RangeEnd 192.0.4.0 not in network 192.0.2.0/24"),
        (("192.0.2.0/24", "", "2001:db8::1"), "RangeEnd 2001:db8::1 not in network 192.0.2.0/24"),
        (("192.0.2.0/24", "", "192.0.2.0"), "RangeEnd 192.0.2.0 not in network 192.0.2.0/24"),
        (("192.0.2.0/24", "192.0.2.50", "192.0.2.40"), "RangeStart 192.0.2.50 not in network 192.0.2.0/24"),
        (("192.0.2.0/24", "192.0.2.50", "192.0.3.1"), "RangeEnd 192.0.3.1 not in network 192.0.2.0/24"),
    ],
)
def test_ranges_that_cannot_be(arguments: tuple[str, ...], error: str) -> None:
    with pytest.raises(ValueError) as raised:
        make(*arguments)
    assert str(raised.value) == error


def test_membership_has_both_ends() -> None:
    made = make("192.0.2.0/24", "192.0.2.40", "192.0.2.50")
    table = {
        "192.0.2.39": False,
        "192.0.2.40": True,
        "192.0.2.45": True,
        "192.0.2.50": True,
        "192.0.2.51": False,
        "192.0.3.45": False,
        "::ffff:192.0.2.45": True,
        "2001:db8::1": False,
    }
    assert {ip: IP.parse(ip) in made for ip in table} == table


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (("192.0.2.0/24",), ("192.0.3.0/24",), False),
        (("192.0.2.0/24",), ("2001:db8::/64",), False),
        (("0.0.0.0/0",), ("::/0",), False),
        (("192.0.2.0/24",), ("192.0.2.0/24",), True),
        (("192.0.2.0/20",), ("192.0.4.0/24",), True),
        (("192.0.2.0/24", "192.0.2.1", "192.0.2.100"), ("192.0.2.0/24", "192.0.2.101"), False),
        (("192.0.2.0/24", "192.0.2.1", "192.0.2.101"), ("192.0.2.0/24", "192.0.2.101"), True),
        (("192.0.2.0/24", "192.0.2.10", "192.0.2.20"), ("192.0.2.0/24", "192.0.2.12", "192.0.2.13"), True),
        (("2001:db8::/64",), ("2001:db8::/64",), True),
        (("2001:db8::/64",), ("2001:db8:0:1::/64",), False),
    ],
)
def test_overlap_is_that_of_the_intervals(one: tuple[str, ...], other: tuple[str, ...], overlap: bool) -> None:
    subnet = {"192.0.2.0/20": "192.0.0.0/20"}
    first, second = (make(subnet.get(each[0], each[0]), *each[1:]) for each in (one, other))
    assert first.overlaps(second) is overlap
    assert second.overlaps(first) is overlap


@pytest.mark.parametrize(
    ("ranges", "error"),
    [
        ([], "empty range set"),
        ([("192.0.2.0/24",), ("2001:db8::/64",)], "mixed address families"),
        (
            [("10.1.0.0/22",), ("10.1.2.0/24",)],
            "subnets 10.1.0.1-10.1.3.254 and 10.1.2.1-10.1.2.254 overlap",
        ),
        (
            [("10.1.0.0/24",), ("10.2.0.0/24",), ("10.1.0.0/24",)],
            "subnets 10.1.0.1-10.1.0.254 and 10.1.0.1-10.1.0.254 overlap",
        ),
    ],
)
def test_sets_that_cannot_be(ranges: list[tuple[str, ...]], error: str) -> None:
    with pytest.raises(ValueError) as raised:
        RangeSet([make(*one) for one in ranges])
    assert str(raised.value) == error


def test_a_set_finds_the_range_and_prints_itself() -> None:
    ranges = RangeSet([make("192.168.0.0/24"), make("172.16.1.0/24")])
    assert str(ranges) == "192.168.0.1-192.168.0.254,172.16.1.1-172.16.1.254"
    assert ranges.find(IP.parse("172.16.1.50")) is ranges.ranges[1]
    assert ranges.find(IP.parse("192.168.99.99")) is None
    assert ranges.find(IP.parse("fd00::1")) is None


@pytest.mark.parametrize(
    ("subnets", "version", "error"),
    [
        ([], "1.1.0", "no IP ranges specified"),
        (["10.1.0.0/24", "10.1.0.0/24"], "1.1.0", "range set 0 overlaps with 1"),
        (["10.0.0.0/24", "10.1.0.0/24", "10.1.0.0/16"], "0.3.0", "range set 1 overlaps with 2"),
        (["10.1.0.0/24", "10.2.0.0/24"], "0.2.0", "CNI version 0.2.0 does not support more than 1 address per family"),
        (["fd00::/64", "fd01::/64"], "0.1.0", "CNI version 0.1.0 does not support more than 1 address per family"),
        (["10.1.0.0/24", "10.2.0.0/24"], "", "CNI version  does not support more than 1 address per family"),
        (["10.1.0.0/24", "10.1.0.0/24"], "0.2.0", "CNI version 0.2.0 does not support more than 1 address per family"),
        (["10.1.0.0/24", "10.2.0.0/24"], "0.3.0", ""),
        (["10.1.0.0/24", "fd00::/64"], "0.2.0", ""),
        (["10.1.0.0/24", "fd00::/64"], "", ""),
    ],
)
def test_sets_beside_each_other(subnets: list[str], version: str, error: str) -> None:
    sets = [RangeSet([make(subnet)]) for subnet in subnets]
    if not error:
        check_together(sets, version)
        return
    with pytest.raises(CNIError) as raised:
        check_together(sets, version)
    assert str(raised.value) == error


def test_disjoint_intervals_of_one_subnet_are_two_sets() -> None:
    low, high = make("10.1.0.0/24", end="10.1.0.99"), make("10.1.0.0/24", start="10.1.0.100")
    check_together([RangeSet([low]), RangeSet([high])], "1.1.0")
    assert str(RangeSet([low, high])) == "10.1.0.1-10.1.0.99,10.1.0.100-10.1.0.254"


def test_every_address_has_its_turn_once_and_the_last_one_last() -> None:
    ranges = RangeSet([make("192.168.1.0/29")])
    assert order(ranges) == [f"192.168.1.{n}" for n in (2, 3, 4, 5, 6)]
    assert order(ranges, "192.168.1.4") == [f"192.168.1.{n}" for n in (5, 6, 2, 3, 4)]
    assert order(ranges, "192.168.1.6") == [f"192.168.1.{n}" for n in (2, 3, 4, 5, 6)]
    assert order(ranges, "192.168.1.1") == [f"192.168.1.{n}" for n in (2, 3, 4, 5, 6)]
    assert order(ranges, "10.0.0.128") == [f"192.168.1.{n}" for n in (2, 3, 4, 5, 6)]
    assert order(ranges, "fd00::1") == [f"192.168.1.{n}" for n in (2, 3, 4, 5, 6)]


def test_after_a_range_comes_the_next_one() -> None:
    ranges = RangeSet([make(f"10.0.{n}.0/30") for n in (0, 1, 2)])
    assert order(ranges) == ["10.0.0.2", "10.0.1.2", "10.0.2.2"]
    assert order(ranges, "10.0.0.2") == ["10.0.1.2", "10.0.2.2", "10.0.0.2"]
    assert order(ranges, "10.0.2.2") == ["10.0.0.2", "10.0.1.2", "10.0.2.2"]


def test_only_the_ranges_own_gateway_is_left_out() -> None:
    ranges = RangeSet(
        [
            make("10.0.0.0/24", "10.0.0.1", "10.0.0.2", "10.0.0.1"),
            make("10.0.0.0/24", "10.0.0.3", "10.0.0.4", "10.0.0.2"),
        ]
    )
    assert order(ranges) == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    assert order(RangeSet([make("10.1.0.0/30", gateway="10.1.0.2")])) == ["10.1.0.1"]
    # ::5 and 0.0.0.5 have the same number.
    assert order(RangeSet([make("0.0.0.0/29", gateway="::5")])) == [f"0.0.0.{n}" for n in range(1, 7)]


def test_ends_that_were_asked_for_are_given_out() -> None:
    assert order(RangeSet([make("10.0.0.0/30", "10.0.0.0", "10.0.0.3")])) == ["10.0.0.0", "10.0.0.2", "10.0.0.3"]
    assert order(RangeSet([make("fd00::/126")])) == ["fd00::2", "fd00::3"]


def test_a_huge_range_is_walked_lazily() -> None:
    ranges = RangeSet([make("2001:db8:1::/64")])
    assert order(ranges, most=2) == ["2001:db8:1::2", "2001:db8:1::3"]
    assert order(ranges, "2001:db8:1:0:ffff:ffff:ffff:fffe", most=3) == [
        "2001:db8:1:0:ffff:ffff:ffff:ffff",
        "2001:db8:1::2",
        "2001:db8:1::3",
    ]


def go_order(ranges: RangeSet, last: IP | None) -> list[str]:
    """The reference plugin's way round, step by step."""
    index, current, start = 0, None, None
    if last is not None and ranges.find(last):
        index, current = next((i, last) for i, one in enumerate(ranges.ranges) if last in one)
    given: list[str] = []
    while True:
        one = ranges.ranges[index]
        if current is None:
            current = start = one.start
        else:
            if current == one.end:
                index = (index + 1) % len(ranges.ranges)
                one = ranges.ranges[index]
                current = one.start
            else:
                current = current + 1
            if start is None:
                start = current
            elif current == start:
                return given
        if current != one.gateway:
            given.append(str(current))


def test_the_order_is_gos() -> None:
    chance = random.Random(7)
    for _ in range(300):
        ranges = RangeSet(
            [
                make(
                    f"10.0.{n}.0/28",
                    f"10.0.{n}.{chance.randint(0, 7)}",
                    f"10.0.{n}.{chance.randint(7, 15)}",
                    f"10.0.{n}.{chance.randint(0, 15)}",
                )
                for n in chance.sample(range(5), chance.randint(1, 4))
            ]
        )
        last = IP.parse(f"10.0.{chance.randint(0, 5)}.{chance.randint(0, 15)}") if chance.random() < 0.9 else None
        assert [address for address, _ in ranges.candidates(last)] == go_order(ranges, last)


@pytest.mark.parametrize(
    ("text", "ip"),
    [("10.1.2.3", "10.1.2.3"), ("10.1.2.3/8", "10.1.2.3"), ("::ffff:10.1.2.3", "10.1.2.3"), ("FD00::5/64", "fd00::5")],
)
def test_requested_addresses(text: str, ip: str) -> None:
    assert str(requested_ip(text)) == ip


@pytest.mark.parametrize("text", ["x", "10.1.2", "10.1.2.3/33", "10.1.2.3/", "10.1.2.3 "])
def test_requests_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^invalid IP address "):
        requested_ip(text)


def test_an_empty_request() -> None:
    with pytest.raises(ValueError, match=r"^cannot understand ip: IP <nil> not v4 nor v6$"):
        requested_ip("")
