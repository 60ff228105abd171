"""Routes as messages: what is read of them, and what is written again."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from cni import routes
from cni._core import NetlinkError
from cni.ip import IP
from cni.routes import Route

INTERRUPTED = 0x10
ERROR, DONE = 2, 3
LINKDOWN, ONLINK = 16, 4


def attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)


def hop(gateway: str, index: int = 3, flags: int = 0, weight: int = 1) -> bytes:
    told = attribute(5, IP.parse(gateway).packed)
    return struct.pack("=HBBi", 8 + len(told), flags, weight - 1, index) + told


def message(*attributes: tuple[int, bytes], family: int = 2, prefix: int = 24, flags: int = 0) -> bytes:
    header = struct.pack("=BBBBBBBBI", family, prefix, 0, 0, 254, 3, 0, 1, flags)
    return header + b"".join(attribute(*one) for one in attributes)


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
    Route(told).put(batch, table, "Failed")  # type: ignore[arg-type]
    [(type, flags, header, attributes, _, overlook)] = batch.asked
    assert (type, flags, overlook) == (24, 0x500, ())
    return header, attributes


def test_what_a_route_is() -> None:
    route = Route(message(DST, OIF, GATEWAY, TABLE))
    assert (route.version, route.links, route.gateways, route.is_indirect) == (4, {3}, [b"\x0a\0\0\1"], True)
    assert (route.seen.table, route.seen.prefix) == (254, 24)
    direct = Route(message(OIF, family=10, prefix=64))
    assert (direct.version, direct.links, direct.gateways, direct.is_indirect) == (6, {3}, [], False)


def test_next_hops_count_all() -> None:
    route = Route(message(DST, (9, hop("10.0.0.1") + hop("10.0.0.2", 4))))
    assert (route.links, route.gateways) == ({3, 4}, [b"\x0a\0\0\1", b"\x0a\0\0\2"])


def test_a_gateway_of_the_other_family_makes_a_route_indirect() -> None:
    route = Route(message(DST, OIF, (18, struct.pack("=H", 10) + IP.parse("fe80::1").packed)))
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


@pytest.mark.parametrize(("ticks", "seconds"), [(180000, 1800), (1, 1), (0, None)])
def test_what_returns_has_no_more_to_live_than_before(ticks: int, seconds: int | None) -> None:
    told = message(DST, OIF, TABLE, (12, struct.pack("=IIIIIIII", 0, 0, ticks, 0, 0, 0, 0, 0)))
    batch = Batch()
    Route(told).restore(batch, 254, "Failed")  # type: ignore[arg-type]
    Route(told).restore(batch, 254, "Failed", alone=True)  # type: ignore[arg-type]
    assert [asked[:2] for asked in batch.asked] == [(24, 0xC00), (24, 0x600)]
    assert [asked[3].get(23) for asked in batch.asked] == [u32(seconds) if seconds else None] * 2
    assert 23 not in put(told)[1]


def test_refusals_are_told_by_destination_and_table() -> None:
    batch = Batch()
    route = Route(message(DST, OIF, TABLE))
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
    """A socket on whose other end the kernel's answers wait, one datagram for each."""

    def __init__(self, *answers: bytes) -> None:
        self.ours, self.kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for answer in answers:
            self.kernels.send(answer)

    def fileno(self) -> int:
        return self.ours.fileno()

    @property
    def asked(self) -> list[bytes]:
        self.ours.shutdown(socket.SHUT_WR)
        return list(iter(lambda: self.kernels.recv(4096), b""))

    def close(self) -> None:
        self.ours.close()
        self.kernels.close()


@pytest.fixture
def places() -> Iterator[list[Place]]:
    made: list[Place] = []
    yield made
    for place in made:
        place.close()


def told(type: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), type, flags, 1, 0) + payload + bytes(-len(payload) % 4)


def dump(place: Place) -> list[bytes]:
    return routes.dump(place, 26, bytes(12), "list routes")  # type: ignore[arg-type]


def test_a_list_comes_in_pieces(places: list[Place]) -> None:
    places.append(Place(told(24, b"one.") + told(24, b"two"), told(24, b"three"), told(DONE, bytes(4))))
    assert dump(places[0]) == [b"one.", b"two", b"three"]
    assert places[0].asked == [struct.pack("=IHHII", 28, 26, 0x301, 1, 0) + bytes(12)]


def test_a_list_that_changed_is_asked_for_again(places: list[Place]) -> None:
    places.append(Place(told(24, b"old.", INTERRUPTED), told(DONE, bytes(4)), told(24, b"new."), told(DONE, bytes(4))))
    assert dump(places[0]) == [b"new."]
    assert len(places[0].asked) == 2


def test_a_list_that_never_rests_is_given_up(places: list[Place]) -> None:
    places.append(Place(*[told(DONE, bytes(4), INTERRUPTED)] * 30))
    with pytest.raises(NetlinkError, match="list routes: .*the list changed during each of 20 readings"):
        dump(places[0])


@pytest.mark.parametrize("type", [ERROR, DONE])
def test_a_refusal_is_raised(places: list[Place], type: int) -> None:
    places.append(Place(told(type, struct.pack("=i", -97))))
    with pytest.raises(NetlinkError) as refused:
        dump(places[0])
    assert refused.value.errno == 97


def test_what_leads_to_gateways_comes_before_what_goes_by_them(places: list[Place]) -> None:
    direct, indirect = message(DST, OIF), message(DST, OIF, GATEWAY)
    places.append(Place(told(24, indirect) + told(24, direct) + told(DONE, bytes(4)), told(DONE, bytes(4))))
    assert [route.is_indirect for route in routes.read(places[0])] == [False, True]  # type: ignore[arg-type]
    assert [asked[16] for asked in places[0].asked] == [2, 10]
