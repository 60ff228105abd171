"""Routes as messages: what is read of them, and what is written again."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from cni import _core
from cni.kernel import routes
from cni.kernel.routes import Route
from cni.spec.ip import IP

LINKDOWN, ONLINK = 16, 4


def attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)


def hop(gateway: str, index: int = 3, flags: int = 0, weight: int = 1) -> bytes:
    told = attribute(5, IP.parse(gateway).packed)
    return struct.pack("=HBBi", 8 + len(told), flags, weight - 1, index) + told


def message(*attributes: tuple[int, bytes], family: int = 2, prefix: int = 24, flags: int = 0) -> bytes:
    header = struct.pack("=BBBBBBBBI", family, prefix, 0, 0, 254, 3, 0, 1, flags)
    return header + b"".join(attribute(*one) for one in attributes)


def seen(told: bytes) -> _core.Route:
    route = _core.parse_message(24, told)
    assert isinstance(route, _core.Route)
    return route


def route_of(told: bytes) -> Route:
    return Route(seen(told))


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


DST = (1, IP.parse("192.0.2.0").packed)
OIF = (4, u32(3))
GATEWAY = (5, IP.parse("10.0.0.1").packed)
TABLE = (15, u32(254))


class Batch:
    """Notes what is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def request(
        self, type: int, flags: int, header: bytes, attributes: Any, what: str, words: Any, overlook: Any = ()
    ) -> None:
        self.asked.append((type, flags, header, dict(attributes), what % words, overlook))


def put(told: bytes, table: int = 100) -> tuple[bytes, dict[int, bytes]]:
    batch = Batch()
    route_of(told).put(batch, table, "Failed")  # type: ignore[arg-type]
    [(type, flags, header, attributes, _, overlook)] = batch.asked
    assert (type, flags, overlook) == (24, 0x500, ())
    return header, attributes


def test_what_a_route_is() -> None:
    route = route_of(message(DST, OIF, GATEWAY, TABLE))
    assert (route.version, route.links, route.gateways, route.is_indirect) == (4, {3}, [b"\x0a\0\0\1"], True)
    assert (route.seen.table, route.seen.prefix) == (254, 24)
    direct = route_of(message(OIF, family=10, prefix=64))
    assert (direct.version, direct.links, direct.gateways, direct.is_indirect) == (6, {3}, [], False)


def test_next_hops_count_all() -> None:
    route = route_of(message(DST, (9, hop("10.0.0.1") + hop("10.0.0.2", 4))))
    assert (route.links, route.gateways) == ({3, 4}, [b"\x0a\0\0\1", b"\x0a\0\0\2"])


def test_a_gateway_of_the_other_family_makes_a_route_indirect() -> None:
    route = route_of(message(DST, OIF, (18, struct.pack("=H", 10) + IP.parse("fe80::1").packed)))
    assert (route.gateways, route.is_indirect) == ([], True)


def test_all_attributes_go_along_but_for_the_table_and_how_it_fares() -> None:
    unheard_of = (4000, b"what is this")
    header, attributes = put(message(DST, OIF, GATEWAY, TABLE, (12, bytes(32)), unheard_of, flags=LINKDOWN | ONLINK))
    assert attributes == dict([DST, OIF, GATEWAY, unheard_of, (15, u32(100))])
    assert header == struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 0, 3, 0, 1, ONLINK)


def test_next_hops_keep_their_weights_and_not_their_state() -> None:
    told = hop("10.0.0.1", flags=LINKDOWN | ONLINK, weight=3) + hop("10.0.0.2", 4, flags=1)
    _, attributes = put(message(DST, (9, told)))
    assert attributes[9] == hop("10.0.0.1", flags=ONLINK, weight=3) + hop("10.0.0.2", 4)


def test_of_an_object_for_a_next_hop_it_is_the_number_that_counts() -> None:
    _, attributes = put(message(DST, OIF, GATEWAY, TABLE, (30, u32(7))))
    assert attributes == dict([DST, (30, u32(7)), (15, u32(100))])


def test_an_object_that_will_be_gone_is_described() -> None:
    batch = Batch()
    told = seen(message(DST, OIF, GATEWAY, TABLE, (30, u32(7))))
    Route(told, described=True).restore(batch, 100, "Failed")  # type: ignore[arg-type]
    assert batch.asked[0][3] == dict([DST, OIF, GATEWAY, (15, u32(100))])


@pytest.mark.parametrize(("ticks", "seconds"), [(180000, 1800), (1, 1), (0, None)])
def test_what_returns_has_no_more_to_live_than_before(ticks: int, seconds: int | None) -> None:
    told = message(DST, OIF, TABLE, (12, struct.pack("=IIIIIIII", 0, 0, ticks, 0, 0, 0, 0, 0)))
    batch = Batch()
    route_of(told).restore(batch, 254, "Failed")  # type: ignore[arg-type]
    route_of(told).restore(batch, 254, "Failed", alone=True)  # type: ignore[arg-type]
    assert [asked[:2] for asked in batch.asked] == [(24, 0xC00), (24, 0x600)]
    assert [asked[3].get(23) for asked in batch.asked] == [u32(seconds) if seconds else None] * 2
    assert 23 not in put(told)[1]


def test_refusals_are_told_by_destination_and_table() -> None:
    batch = Batch()
    route = route_of(message(DST, OIF, TABLE))
    route.put(batch, 100, "Failed to put")  # type: ignore[arg-type]
    route.restore(batch, 254, "Failed to restore")  # type: ignore[arg-type]
    route.delete(batch, "Failed to delete")  # type: ignore[arg-type]
    destination = b"\xc0\0\2\0"
    assert [asked[4] for asked in batch.asked] == [
        f"Failed to put: {destination!r}/24 in table 100",
        f"Failed to restore: {destination!r}/24 in table 254",
        f"Failed to delete: {destination!r}/24 in table 254",
    ]
    assert [asked[5] for asked in batch.asked] == [(), (17,), (3,)]
    assert batch.asked[2][:2] == (25, 0)


# ---- reading ----


class Place:
    """A socket, for what it is asked."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.asked: list[tuple[int, int]] = []

    def routes(self, family: int, table: int) -> list[_core.Route]:
        self.asked.append((family, table))
        return [seen(answer) for answer in self.answers if answer[0] == family]


def test_what_leads_to_gateways_comes_before_what_goes_by_them() -> None:
    place = Place(message(DST, OIF, GATEWAY), message(DST, OIF))
    assert [route.is_indirect for route in routes.read(place)] == [False, True]  # type: ignore[arg-type]
    assert place.asked == [(2, 0), (10, 0)]
