"""ptp with netkit pairs in the place of veth ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import Attachment, Network, addresses

DUAL = [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]
GATEWAYS = {"10.1.2.1": "10.1.2.1/32", "fd00:1::1": "fd00:1::1/128"}


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    network = make_network(type="ptp", linkType="netkit")
    network.ipam(ranges=DUAL, routes=[{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])
    return network


def port(one: Attachment) -> Any:
    """The node's end, by the kernel's index."""
    [found] = [link for link in one.network.node.ip("address") if link["ifindex"] == one.link["link_index"]]
    return found


def kept(link: Any) -> set[str]:
    found = {f"{address['local']}/{address['prefixlen']}" for address in link["addr_info"]}
    return {address for address in found if not address.startswith("fe80:")}


def test_an_attachments_life(network: Network) -> None:
    network.status()
    one, other = network.attach(), network.attach()
    end = port(one)
    for link in (one.link, end):
        assert link["linkinfo"]["info_kind"] == "netkit"
        assert {"UP", "LOWER_UP"} <= set(link["flags"])
        assert "NOARP" not in link["flags"]  # of layer 2
    assert one.result["interfaces"] == [
        {"name": end["ifname"], "mac": "0a:58:0a:01:02:01"},
        {"name": "eth0", "mac": "0a:58:0a:01:02:02", "sandbox": one.container.path},
    ]
    assert (end["address"], one.link["address"]) == ("0a:58:0a:01:02:01", "0a:58:0a:01:02:02")
    assert addresses(one.container, "eth0") == {"10.1.2.2/24", "fd00:1::2/64"}
    assert kept(end) == kept(port(other)) == set(GATEWAYS.values())
    for address in (*GATEWAYS, "10.1.2.3", "fd00:1::3"):
        assert one.reaches(address)
    one.check()
    for _ in range(2):
        one.delete()
        assert one.link is None
    assert network.reserved == {"10.1.2.3", "fd00:1::3"}
    other.check()
    other.delete()
    other.nothing_left()
    assert [link["ifname"] for link in network.node.ip("link")] == ["lo"]


def test_the_kind_is_checked(network: Network) -> None:
    one = network.attach()
    assert one.refused("CHECK", linkType="veth") == "Error: Container interface eth0 not of type veth"
    one.container.run(["ip", "link", "delete", "eth0"])
    one.container.run(["ip", "link", "add", "eth0", "type", "dummy"])
    assert one.refused("CHECK") == "Error: Container interface eth0 not of type netkit"


def test_mtu_and_hardware_addresses_left_to_the_kernel(network: Network) -> None:
    one = network.attach(mtu=5000, deterministicMAC=False)
    assert one.link["mtu"] == port(one)["mtu"] == 5000
    assert not one.link["address"].startswith("0a:58:")
    assert one.result["interfaces"][1]["mac"] == one.link["address"]
    assert one.reaches("10.1.2.1")


def test_what_fails_later_leaves_nothing(network: Network) -> None:
    network.ipam(ranges=DUAL, routes=[{"dst": "192.0.2.0/24", "gw": "172.31.0.1"}])
    one = network.attachment()
    assert "add the route 192.0.2.0/24 via 172.31.0.1" in one.refused("ADD")
    one.nothing_left()
    assert [link["ifname"] for link in network.node.ip("link")] == ["lo"]
