"""macvlan, from its JSON to packets: what the kernel has in the end is read by other programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel.netns import NetNS
from tests.waiting import LIMIT

from .conftest import Attachment, Network, Refused, link, links, pings, setting

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]

V6 = [{"subnet": "2001:db8:1::/64"}]
GATEWAY = {4: "10.1.2.1", 6: "2001:db8:1::1"}
MASTER_MAC, OUTSIDE_MAC = "02:00:00:00:01:01", "02:00:00:00:01:02"


@pytest.fixture
def outside(node: Node) -> Node:
    """The gateway, at the other end of the wire that is the node's up0."""
    outside = node.container()
    peer = ["peer", "eth0", "address", OUTSIDE_MAC, "netns", outside.name]
    # Where the two ends' indexes differ the kernel notices the carrier at once, else within a second.
    node.run(["ip", "link", "add", "up0", "index", "50", "address", MASTER_MAC, "type", "veth", *peer])
    for address in ("10.1.2.1/24", "2001:db8:1::1/64"):
        outside.run(["ip", "address", "add", address, "dev", "eth0", *["nodad"][: ":" in address]])
    for end, name in ((node, "up0"), (outside, "eth0")):
        end.run(["ip", "link", "set", name, "up"])
    return outside


@pytest.fixture
def network(make_network: Callable[..., Network], outside: Node) -> Network:
    return make_network(type="macvlan", master="up0")


def quick(node: Node) -> Node:
    """A container without duplicate address detection, which takes a second or two."""
    container = node.container()
    setting(container, "ipv6/conf/default/accept_dad", "0")
    return container


def kind(one: Attachment) -> tuple[str, str]:
    info = one.link["linkinfo"]
    return info["info_kind"], info["info_data"]["mode"]


# ---- ADD ----


@pytest.mark.slow
def test_an_ipv6_address_that_another_host_has(network: Network, outside: Node) -> None:
    network.ipam(ranges=[V6])
    outside.run(["ip", "address", "add", "2001:db8:1::2/64", "dev", "eth0", "nodad"])
    one = network.attachment()
    with pytest.raises(Refused, match=r"address 2001:db8:1::2 in DADFAILED state"):
        one.add()
    network.leaves_nothing(one.container)


# ---- modes ----

# Whether containers on one master reach each other.
MODES = {"": True, "bridge": True, "private": False, "vepa": False}


@pytest.mark.parametrize("mode", MODES)
def test_modes(network: Network, mode: str) -> None:
    network.config["mode"] = mode
    one, other = network.attach(), network.attach()
    assert kind(one) == ("macvlan", mode or "bridge")
    assert one.link["link_index"] == link(network.node, "up0")["ifindex"]
    assert pings(one.container, GATEWAY[4])
    assert pings(one.container, other.address(4), LIMIT if MODES[mode] else 0.2) == MODES[mode]
    one.check()
    one.delete()


def test_passthru_takes_over_the_master(network: Network) -> None:
    network.config["mode"] = "passthru"
    one = network.attach()
    assert kind(one) == ("macvlan", "passthru")
    # Another MAC here would be another MAC of the node's device.
    assert one.mac == one.result["interfaces"][0]["mac"] == MASTER_MAC
    assert pings(one.container, GATEWAY[4])
    one.check()
    two = network.attachment()
    with pytest.raises(Refused, match=r"^failed to create macvlan: create the macvlan eth0: "):
        two.add()
    assert links(two.container) == {"lo"}
    assert network.reserved == {one.address(4)}
    one.delete()
    network.leaves_nothing(one.container)
    assert link(network.node, "up0")["address"] == MASTER_MAC


def test_a_mac_asked_for_in_passthru_mode_is_the_masters_too_until_del(network: Network) -> None:
    mac = "02:00:00:00:00:07"
    one = network.attach(mode="passthru", mac=mac)
    assert one.mac == one.result["interfaces"][0]["mac"] == link(network.node, "up0")["address"] == mac
    assert pings(one.container, GATEWAY[4])
    one.check(mode="passthru")
    one.delete()
    assert link(network.node, "up0")["address"] == MASTER_MAC


def test_source_takes_what_certain_senders_send(network: Network) -> None:
    network.config["mode"] = "source"
    listed = network.attach(sourceMACs=["02:00:00:00:00:44", OUTSIDE_MAC.upper()])
    data = listed.link["linkinfo"]["info_data"]
    assert data["mode"] == "source"
    assert {entry["mac"] if isinstance(entry, dict) else entry for entry in data["macaddr_data"]} == {
        "02:00:00:00:00:44",
        OUTSIDE_MAC,
    }
    assert pings(listed.container, GATEWAY[4])
    listed.check()
    unlisted = network.attach(sourceMACs=["02:00:00:00:00:44"])
    assert not pings(unlisted.container, GATEWAY[4], 0.2)
    network.attach()  # nobody, till someone says whom


@pytest.mark.parametrize("queue", [0, 5000])
@pytest.mark.parametrize("limit", [None, -1, 1, 64])
def test_broadcasts(network: Network, queue: int, limit: int | None) -> None:
    one = network.attach(bcqueuelen=queue, bclim=limit)
    assert one.link["linkinfo"]["info_data"]["bcqueuelen"] == (queue or 1000)
    # ip 6.1 knows no bclim, so by the number of the attribute; the kernel is silent about its default.
    with NetNS.open(one.container.path) as inside, inside.netlink() as netlink:
        cutoff = netlink.link("eth0").data.get(9, b"\1\0\0\0")
    assert int.from_bytes(cutoff, "little", signed=True) == (1 if limit is None else limit)
    assert network.log == ""


# ---- the master ----


def test_without_a_name_the_default_routes_device(network: Network) -> None:
    del network.config["master"]
    one = network.attachment()
    assert one.refused("ADD") == "no default route interface found"
    network.leaves_nothing(one.container)
    network.node.run(["ip", "link", "add", "other", "up", "type", "veth", "peer", "its-end"])
    network.node.run(["ip", "route", "add", "default", "dev", "other", "metric", "200"])
    network.node.run(["ip", "route", "add", "default", "dev", "up0", "metric", "100"])
    one.add()
    assert pings(one.container, GATEWAY[4])
    network.node.run(["ip", "route", "delete", "default", "dev", "up0"])
    one.check()  # whatever the default route has become since
    assert network.attach().link["link_index"] == link(network.node, "other")["ifindex"]


def test_a_default_route_of_ipv6_will_do(network: Network) -> None:
    del network.config["master"]
    network.node.run(["ip", "-6", "route", "add", "default", "dev", "up0"])
    assert network.attach().link["link_index"] == link(network.node, "up0")["ifindex"]


@pytest.mark.parametrize("named", [True, False])
def test_a_master_in_the_container(network: Network, named: bool) -> None:
    network.config["linkInContainer"] = True
    if not named:
        del network.config["master"]
    container = network.node.container()
    one = network.attachment(container)
    missing = 'failed to lookup master "up0": Link not found' if named else "no default route interface found"
    with pytest.raises(Refused, match=f"^{missing}$"):
        one.add()  # the node's is not meant
    network.leaves_nothing(container)
    network.node.run(["ip", "link", "set", "up0", "netns", container.name])
    container.run(["ip", "link", "set", "up0", "up"])
    if not named:
        container.run(["ip", "route", "add", "default", "dev", "up0"])
    one.add()
    assert one.link["link"] == "up0"
    assert pings(container, GATEWAY[4])
    one.check()
    network.status()
    one.delete()
    assert links(container) == {"lo", "up0"}


def test_a_macvlan_as_master(network: Network) -> None:
    """The kernel puts the second one beside the first, on what that one stands on."""
    network.node.run(["ip", "link", "add", "mv0", "link", "up0", "up", "type", "macvlan"])
    one = network.attach(master="mv0")
    assert one.link["link_index"] == link(network.node, "up0")["ifindex"]
    one.check(master="mv0")


def test_no_such_master(network: Network) -> None:
    network.config["master"] = "up1"
    one = network.attachment()
    with pytest.raises(Refused, match=r'^failed to lookup master "up1": Link not found$'):
        one.add()
    with pytest.raises(Refused, match=r'^failed to lookup master "up1": Link not found$') as refusal:
        network.status()
    assert refusal.value.code == 50
    network.leaves_nothing(one.container)
    one.delete()


def test_a_master_that_cannot_be_one(network: Network) -> None:
    one = network.attachment()
    with pytest.raises(Refused, match=r"^failed to create macvlan: create the macvlan eth0: "):
        one.add(master="lo")
    network.leaves_nothing(one.container)


@pytest.mark.parametrize(("mtu", "expected"), [(0, 1400), (1300, 1300), (1400, 1400)])
def test_mtu(network: Network, mtu: int, expected: int) -> None:
    network.node.run(["ip", "link", "set", "up0", "mtu", "1400"])
    one = network.attach(mtu=mtu)
    assert one.link["mtu"] == expected
    one.check(mtu=mtu)


@pytest.mark.parametrize("mtu", [1501, -100])
def test_an_mtu_that_the_master_has_not(network: Network, mtu: int) -> None:
    one = network.attachment()
    with pytest.raises(Refused, match=rf"^invalid MTU {mtu}, must be \[0, master MTU\(1500\)\]$"):
        one.add(mtu=mtu)
    network.leaves_nothing(one.container)


# ---- hardware addresses ----


def test_a_hardware_address_that_follows_from_two_addresses(network: Network) -> None:
    """Two networks on one master, whose IPv6 addresses end alike: a MAC of its own for the second, as in Go."""
    network.ipam(ranges=[V6])
    first = network.attach(quick(network.node))
    network.config["name"] = "other"
    network.ipam(ranges=[[{"subnet": "2001:db8:2::/64"}]])
    second = network.attach(quick(network.node))
    assert (first.addresses, second.addresses) == (["2001:db8:1::2/64"], ["2001:db8:2::2/64"])
    assert first.mac == "0a:58:00:00:00:02"
    assert second.mac == second.result["interfaces"][0]["mac"] != first.mac
    assert pings(first.container, GATEWAY[6])
    second.check()
    second.delete()
    assert links(second.container) == {"lo"}


MAC = "02:00:00:00:00:11"


def test_a_mac_that_is_taken(network: Network) -> None:
    first = network.attach(mac=MAC)
    one = network.attachment()
    with pytest.raises(Refused, match=r"address already in use"):
        one.add(mac=MAC)
    assert links(one.container) == {"lo"}
    assert network.reserved == {first.address(4)}


def test_a_mac_of_a_group(network: Network) -> None:
    one = network.attachment()
    assert one.refused("ADD", runtimeConfig={"mac": "01:00:5e:00:00:01"}).startswith("failed to create macvlan: ")
    network.leaves_nothing(one.container)


def test_del_when_the_master_is_gone(network: Network) -> None:
    one, other = network.attach(), network.attach()
    network.node.run(["ip", "link", "delete", "up0"])
    for _ in range(2):
        one.delete()
        assert network.reserved == {other.address(4)}


# ---- ADD that fails ----


def test_the_nodes_names_are_not_the_containers(network: Network) -> None:
    network.node.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "its-end"])
    network.attach().check()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"mode": "switch"},
            'failed to load netconf: mode: "switch" is not one of "bridge", "private", "vepa", "passthru", "source"',
        ),
        ({"sourceMACs": ["02:00:00:00:00:01"]}, 'sourceMACs: only mode "source" uses them, not "bridge"'),
        ({"mode": "source", "sourceMACs": ["x"]}, "sourceMACs: address x: invalid MAC address"),
        ({"bcqueuelen": -1}, "failed to load netconf: bcqueuelen: -1 is not between 0 and 4294967295"),
        ({"bclim": -2}, "failed to load netconf: bclim: -2 is not between -1 and 2147483647"),
        ({"mtu": "big"}, 'failed to load netconf: mtu: "big" is not an integer'),
        ({"ipam": {"type": "nobody"}}, 'failed to find plugin "nobody" in path '),
    ],
)
def test_configurations_that_cannot_be(network: Network, keys: Json, message: str) -> None:
    one = network.attachment()
    assert one.refused("ADD", **keys).startswith(message)
    network.leaves_nothing(one.container)
