"""The reference values are those of the Go plugins' own tests and of chains that they made."""

from __future__ import annotations

import pytest

from cni.netfilter.naming import chain_name, hashed, rule_comment

LONG = "testalongnamethatdoesnotmakesense"


@pytest.mark.parametrize(
    ("network", "container_id", "prefix", "name"),
    [
        ("test", "1234", "", "CNI-2bbe0c48b91a7d1b8a6753a8"),
        (LONG, "1234", "", "CNI-374f33fe84ab0ed84dcdebe3"),
        ("test", "1234", "PREFIX-", "CNI-PREFIX-2bbe0c48b91a7d1b8"),
        (LONG, "1234", "PREFIX-", "CNI-PREFIX-374f33fe84ab0ed84"),
        ("mynet", "cid1", "", "CNI-a631aa8e1549a3b129110fd2"),
        ("mynet", "cid1", "DN-", "CNI-DN-a631aa8e1549a3b129110"),
        ("mynet", "cid1", "p" * 23, "CNI-" + "p" * 23 + "a"),
    ],
)
def test_chain_names(network: str, container_id: str, prefix: str, name: str) -> None:
    assert chain_name(network, container_id, prefix) == name
    assert len(name) == 28


def test_a_chain_belongs_to_one_container() -> None:
    assert chain_name("test", "1234") == chain_name("test", "1234") != chain_name("test", "1235")


def test_a_prefix_must_leave_room_for_the_hash() -> None:
    with pytest.raises(ValueError, match="invalid length"):
        chain_name("test", "1234", "p" * 24)


@pytest.mark.parametrize(
    ("text", "length", "prefix", "name"),
    [
        ("unit-test", 16, "", "6fd94d501e58f0aa"),
        ("alternate", 16, "", "82783ef24bdc7036"),
        ("eth0:one", 16, "", "287fc69eff0574a2"),
        ("eth0:two", 16, "", "d750b2c8f0f25d5f"),
        ("eth0:three", 16, "", "a4d4adb82b669cfe"),
        ("net1:three", 16, "", "acb19d111858e348"),
        ("eth0:four", 16, "", "e766de567ef6c543"),
        ("mynetcid1", 15, "bwp", "bwpa631aa8e1549"[:15]),
    ],
)
def test_hashes(text: str, length: int, prefix: str, name: str) -> None:
    assert hashed(text, length, prefix) == name


@pytest.mark.parametrize("length", [1, 28, 128])
def test_hashes_have_the_length_asked_for_and_do_not_collide(length: int) -> None:
    names = {hashed(str(number), length) for number in range(1000)}
    assert {len(name) for name in names} == {length}
    assert len(names) == 1000 or length == 1


@pytest.mark.parametrize(("length", "prefix"), [(0, ""), (129, ""), (4, "CNI-"), (3, "CNI-")])
def test_impossible_lengths(length: int, prefix: str) -> None:
    with pytest.raises(ValueError, match="invalid length"):
        hashed("text", length, prefix)


def test_rule_comments() -> None:
    assert rule_comment("mynet", "cid1") == 'name: "mynet" id: "cid1"'
    assert rule_comment('a"b\\', "c\n") == r'name: "a\"b\\" id: "c\n"'
