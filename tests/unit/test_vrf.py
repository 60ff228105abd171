"""vrf's parts that need no kernel: which table is free, and which addresses are settled."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from cni._core import parse_ip, parse_message
from cni.spec.errors import CNIError
from cni_plugins.meta import vrf
from cni_plugins.meta.vrf.saved_state import Address


@pytest.mark.parametrize(
    ("taken", "free"),
    [
        (set(), 1),
        ({1}, 2),
        ({2}, 1),
        ({1, 2, 4}, 3),
        (set(range(1, 253)), 256),
        (set(range(1, 1000)), 1000),
        ({999}, 1),
    ],
)
def test_first_free(taken: set[int], free: int) -> None:
    assert vrf.first_free(taken) == free


def test_no_free_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vrf, "_LAST_TABLE", 256)
    with pytest.raises(CNIError, match="Failed to find an available routing id"):
        vrf.first_free(set(range(1, 257)))


def attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


class Batch:
    """Keeps what is queued."""

    def __init__(self) -> None:
        self.requests: list[tuple[Any, ...]] = []

    def request(self, *words: Any) -> None:
        self.requests.append(words)


@pytest.mark.parametrize(
    ("flags", "scope", "settled"),
    [(0x80, 0, True), (0x82, 0, True), (0xC0, 0, False), (0x88, 0, False), (0x80, 253, False)],
)
def test_whether_an_address_is_settled(flags: int, scope: int, settled: bool) -> None:
    header = struct.pack("=BBBBI", 10, 64, flags, scope, 7)
    seen: Any = parse_message(20, header + attribute(1, parse_ip("fd00::2")) + attribute(8, u32(flags)))
    assert Address(seen).settled == settled


def test_an_address_is_restored_with_all_its_attributes() -> None:
    header = struct.pack("=BBBBI", 10, 64, 0x80, 0, 7)
    local, peer = parse_ip("fd00::2"), parse_ip("fd00::9")
    kept = {1: peer, 2: local, 6: bytes(range(16)), 9: u32(77), 99: b"unknown!"}
    seen: Any = parse_message(20, header + b"".join(attribute(*one) for one in kept.items()) + attribute(8, u32(0x80)))
    batch: Any = Batch()
    Address(seen).put(batch, 0x100, 0x82, 17)
    ((type, mode, sent, attributes, attempt, values, ignored),) = batch.requests
    assert (type, mode, sent, dict(attributes)) == (20, 0x100, header, kept | {8: u32(0x82)})
    assert (attempt, values, ignored) == ("could not restore address %s/%d", (local, 64), (17,))
