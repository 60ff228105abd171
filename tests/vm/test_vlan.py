"""vlan: tags on the wire. What it has in common with others: test_link_plugins.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import Network

if TYPE_CHECKING:
    from tests.conftest import Node


@pytest.fixture
def networks(make_node: Callable[[], Node], make_network: Callable[..., Network]) -> tuple[Network, Network]:
    """One network on two nodes, whose `up0` are the ends of one wire."""
    here, there = make_node(), make_node()
    here.run(["ip", "link", "add", "up0", "up", "type", "veth", "peer", "up0", "netns", there.name])
    there.run(["ip", "link", "set", "up0", "up"])
    both = make_network(on=here, type="vlan", master="up0"), make_network(on=there, type="vlan", master="up0")
    for network, start in zip(both, (10, 20), strict=True):
        network.ipam(ranges=[[{"subnet": "10.1.2.0/24", "rangeStart": f"10.1.2.{start}"}]])
    return both


def vlan(link: dict[str, Any]) -> tuple[str, int]:
    data = link["linkinfo"]["info_data"]
    return data["protocol"], data["id"]


@pytest.mark.parametrize("number", [1, 100, 4094])
def test_containers_on_two_nodes(networks: tuple[Network, Network], number: int) -> None:
    one, two = (network.attach(vlanId=number) for network in networks)
    for container in (one, two):
        assert vlan(container.link) == ("802.1Q", number)
        container.check(vlanId=number)
    assert one.reaches("10.1.2.20")
    two.delete()
    assert not one.reaches("10.1.2.20", within=1)
    two.add(vlanId=number % 4094 + 1)
    assert not one.reaches("10.1.2.21", within=1)


def test_ipv6(networks: tuple[Network, Network]) -> None:
    for network, start in zip(networks, (10, 20), strict=True):
        network.ipam(ranges=[[{"subnet": "fd00:1::/64", "rangeStart": f"fd00:1::{start}"}]])
    one, _ = (network.attach(vlanId=7) for network in networks)
    assert one.reaches("fd00:1::20")
    one.check(vlanId=7)


def test_the_tag_is_on_the_wire(networks: tuple[Network, Network]) -> None:
    """The other end sees it with Linux's own vlan device, and not without."""
    here, there = networks
    one = here.attach(vlanId=7)
    there.node.run(["ip", "address", "add", "10.1.2.1/24", "dev", "up0"])
    assert not one.reaches("10.1.2.1", within=1)
    there.node.run(["ip", "address", "delete", "10.1.2.1/24", "dev", "up0"])
    there.node.run(["ip", "link", "add", "link", "up0", "name", "up0.7", "up", "type", "vlan", "id", "7"])
    there.node.run(["ip", "address", "add", "10.1.2.1/24", "dev", "up0.7"])
    assert one.reaches("10.1.2.1")


def test_vlan_0(networks: tuple[Network, Network]) -> None:
    """Which is what no vlanId is: tagged frames without a VLAN."""
    one = networks[0].attach()
    assert vlan(one.link) == ("802.1Q", 0)
    one.check()


def test_a_master_has_a_vlan_but_once(networks: tuple[Network, Network]) -> None:
    here, _ = networks
    one, two = here.attach(vlanId=7), here.attachment()
    assert two.refused("ADD", vlanId=7).startswith("failed to create vlan: create the vlan eth0: file exists")
    assert two.link is None
    assert here.reserved == {"10.1.2.10"}
    one.check(vlanId=7)


def test_a_master_that_is_down(networks: tuple[Network, Network]) -> None:
    here, _ = networks
    here.node.run(["ip", "link", "set", "up0", "down"])
    one = here.attachment()
    assert "network is down" in one.refused("ADD", vlanId=7).lower()
    one.nothing_left()


def test_check_sees_another_id(networks: tuple[Network, Network]) -> None:
    here, _ = networks
    one = here.attach(vlanId=7)
    assert one.refused("CHECK", vlanId=8) == "Container VLAN eth0 has id 7, which does not match expected value: 8"


def test_check_with_the_master_gone(networks: tuple[Network, Network]) -> None:
    here, _ = networks
    one = here.attach(vlanId=7)
    here.node.run(["ip", "link", "delete", "up0"])
    assert one.refused("CHECK", vlanId=7) == 'failed to lookup master "up0": Link not found'


def test_an_mtu_that_shrinks_with_the_masters(networks: tuple[Network, Network]) -> None:
    here, _ = networks
    one = here.attach(vlanId=7, mtu=1500)
    here.node.run(["ip", "link", "set", "up0", "mtu", "1400"])
    words = "Interface eth0 MTU 1400 does not match configured MTU: 1500"
    assert one.refused("CHECK", vlanId=7, mtu=1500) == words


def test_vlans_of_one_master_keep_apart(networks: tuple[Network, Network]) -> None:
    here, _ = networks
    one, two = here.attach(vlanId=7), here.attach(vlanId=8)
    assert not one.reaches(two.address(4), within=1)


def test_a_vlan_in_a_vlan(networks: tuple[Network, Network]) -> None:
    for network in networks:
        network.node.run(["ip", "link", "add", "link", "up0", "name", "outer", "up", "type", "vlan", "id", "2"])
    one, two = (network.attach(master="outer", vlanId=3) for network in networks)
    assert one.reaches(two.address(4))
    one.check(master="outer", vlanId=3)
