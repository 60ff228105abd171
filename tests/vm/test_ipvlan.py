"""ipvlan: its modes, its master, and how it is chained. What it has in common with others: test_link_plugins.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import Network, addresses

if TYPE_CHECKING:
    from tests.conftest import Node

MAC = "02:00:00:00:00:09"
V4 = [{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10"}]
V6 = [{"subnet": "fd00:1::/64", "rangeStart": "fd00:1::10"}]


@pytest.fixture
def neighbour(node: Node) -> Node:
    """Another node on the same wire: 10.1.2.1 and fd00:1::1 at the other end of the node's `up0`."""
    other = node.container()
    node.run(["ip", "link", "add", "up0", "address", MAC, "up", "type", "veth", "peer", "eth0", "netns", other.name])
    other.run(["ip", "link", "set", "eth0", "up"])
    other.run(["ip", "address", "add", "10.1.2.1/24", "dev", "eth0"])
    other.run(["ip", "address", "add", "fd00:1::1/64", "dev", "eth0", "nodad"])
    return other


@pytest.fixture
def network(neighbour: Node, make_network: Callable[..., Network]) -> Network:
    network = make_network(type="ipvlan", master="up0")
    network.ipam(ranges=[V4])
    return network


def mode(link: dict[str, Any]) -> str:
    return str(link["linkinfo"]["info_data"]["mode"])


@pytest.mark.parametrize("wanted", ["", "l2", "l3", "l3s"])
def test_modes(network: Network, neighbour: Node, wanted: str) -> None:
    network.config["mode"] = wanted
    one, two = network.attach(), network.attach()
    for container in (one, two):
        assert mode(container.link) == (wanted or "l2")
        assert container.link["address"] == container.result["interfaces"][0]["mac"] == MAC
        container.check()
    assert one.reaches("10.1.2.11")
    if wanted.startswith("l3"):  # no ARP in these: who is outside has to know
        neighbour.run(["ip", "neighbour", "replace", "10.1.2.10", "lladdr", MAC, "dev", "eth0"])
        network.node.run(["ip", "route", "add", "10.1.2.1", "dev", "up0"])
    assert one.reaches("10.1.2.1")


@pytest.mark.parametrize("wanted", ["l2", "l3"])
def test_dual_stack(network: Network, wanted: str) -> None:
    network.config["mode"] = wanted
    network.ipam(ranges=[V4, V6])
    one, two = network.attach(), network.attach()
    assert one.reaches("10.1.2.11")
    assert two.reaches("fd00:1::10")
    one.check()
    if wanted == "l2":
        assert one.reaches("fd00:1::1")


def test_check_sees_another_mode(network: Network) -> None:
    one = network.attach()
    network.attach(mode="l3")  # which is the master's, and so for all
    assert one.refused("CHECK") == "Container IPVlan mode l3 does not match expected value: l2"


def test_an_address_that_a_sibling_has(network: Network) -> None:
    """The kernel says who has it."""
    one, two = network.attach(), network.attachment()
    words = two.refused("ADD", ipam={**network.config["ipam"], "dataDir": str(network.state / "other")})
    assert "10.1.2.10/24" in words
    assert "already assigned to an ipvlan device" in words.lower()
    assert two.link is None
    one.check()


def test_a_master_that_can_bear_none(network: Network) -> None:
    network.node.run(["ip", "link", "add", "mac0", "link", "up0", "type", "macvlan"])
    one = network.attachment()
    assert one.refused("ADD").startswith("failed to create ipvlan: create the ipvlan eth0: device or resource busy")
    one.nothing_left()


# ---- without a master's name ----


@pytest.mark.parametrize(
    "route",
    [
        "-4 route add default metric 2 via 10.1.2.1",
        "-4 route add default metric 2 dev up0",
        "-4 route add default metric 2 nexthop via 10.1.2.1 nexthop via 10.1.2.3",
        "-6 route add default metric 2 via fd00:1::1",
    ],
)
def test_the_default_routes_master(network: Network, route: str) -> None:
    del network.config["master"]
    one = network.attachment()
    network.node.run(["ip", "route", "add", "blackhole", "default", "metric", "1"])
    assert one.refused("ADD") == "no default route interface found"
    network.node.run(["ip", "address", "add", "10.1.2.2/24", "dev", "up0"])
    network.node.run(["ip", "address", "add", "fd00:1::2/64", "dev", "up0", "nodad"])
    network.node.run(["ip", *route.split()])
    one.add()
    assert one.reaches("10.1.2.1")
    one.check()
    network.node.run(["ip", "link", "delete", "up0"])  # with it goes the route
    one.delete()
    one.nothing_left()


def test_the_containers_default_route(network: Network) -> None:
    del network.config["master"]
    network.config["linkInContainer"] = True
    one = network.attachment()
    assert one.refused("ADD") == "no default route interface found"
    one.container.run(["ip", "link", "add", "in0", "up", "type", "dummy"])
    one.container.run(["ip", "route", "add", "default", "dev", "in0"])
    one.add()
    assert one.link["link"] == "in0"
    one.check()
    one.delete()


# ---- chained ----

PREVIOUS = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "up0"}],
    "ips": [
        {"address": "10.1.2.20/24", "gateway": "10.1.2.1", "interface": 0},
        {"address": "fd00:1::20/64", "gateway": "fd00:1::1", "interface": 0},
    ],
    "routes": [{"dst": "192.0.2.0/24"}],
    "dns": {"nameservers": ["192.0.2.53"]},
}


@pytest.fixture
def chained(network: Network) -> Network:
    del network.config["master"], network.config["ipam"]
    return network


def test_chained(chained: Network) -> None:
    """Master, addresses and routes are the previous result's; its interface gives way to the container's."""
    one = chained.attachment()
    result = one.add(prevResult=PREVIOUS)
    assert result["interfaces"] == [{"name": "eth0", "mac": MAC, "sandbox": one.netns}]
    assert [ip["interface"] for ip in result["ips"]] == [0, 0]
    assert result["routes"] == PREVIOUS["routes"]
    assert "dns" not in result
    assert addresses(one.container, "eth0") == {"10.1.2.20/24", "fd00:1::20/64"}
    assert one.reaches("10.1.2.1")
    [route] = one.container.ip("route", "show", "192.0.2.0/24")
    assert route["gateway"] == "10.1.2.1"
    one.check()
    one.delete()
    one.result = {**result, "interfaces": [{"name": "a"}, {"name": "b"}]}
    one.delete()
    one.nothing_left()


def test_chained_in_an_older_version(chained: Network) -> None:
    previous = {**PREVIOUS, "cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.1.2.20/24", "interface": 0}]}
    result = chained.attach(cniVersion="0.3.1", prevResult=previous).result
    assert [(ip["version"], ip["address"], ip["interface"]) for ip in result["ips"]] == [("4", "10.1.2.20/24", 0)]


def test_chained_with_addresses_of_its_own(network: Network) -> None:
    del network.config["master"]
    one = network.attach(prevResult=PREVIOUS)
    assert addresses(one.container, "eth0") == {"10.1.2.10/24"}


def test_chained_with_a_master_of_its_own(chained: Network) -> None:
    chained.node.run(["ip", "link", "add", "up1", "up", "type", "dummy"])
    one = chained.attach(master="up1", prevResult={**PREVIOUS, "interfaces": []})
    assert one.link["link_index"] == chained.node.ip("link", "show", "up1")[0]["ifindex"]


@pytest.mark.parametrize(
    ("previous", "words"),
    [
        ({"interfaces": []}, "chained master failure. PrevResult lacks a single named interface"),
        ({"interfaces": [{"name": ""}]}, "chained master failure. PrevResult lacks a single named interface"),
        (
            {"interfaces": [{"name": "up0"}, {"name": "up1"}]},
            "chained master failure. PrevResult lacks a single named interface",
        ),
        ({"interfaces": [{"name": "up1"}]}, 'failed to lookup master "up1": Link not found'),
        ({"ips": []}, "no plugin name provided"),
        (
            {"cniVersion": "0.3.1"},
            'could not parse prevResult: result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is "0.3.1"',
        ),
    ],
)
def test_a_previous_result_that_is_of_no_use(chained: Network, previous: dict[str, Any], words: str) -> None:
    one = chained.attachment()
    assert one.refused("ADD", prevResult={**PREVIOUS, **previous}) == words
    one.nothing_left()
