"""ptp, from its JSON to packets: what the kernel has in the end is read by other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import Network, Refused, addresses, link, pings, setting

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]

V4, V6 = [{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]
FAMILIES = {"v4": [V4], "v6": [V6], "dual stack": [V4, V6]}
GATEWAY = {4: "10.1.2.1", 6: "2001:db8:1::1"}
NETWORK = {4: "10.1.2.0/24", 6: "2001:db8:1::/64"}
DEFAULT = {4: {"dst": "0.0.0.0/0"}, 6: {"dst": "::/0"}}


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    return make_network(type="ptp")


@pytest.fixture(params=FAMILIES)
def families(request: pytest.FixtureRequest, network: Network) -> list[int]:
    """The network has addresses of these families, and a default route for each."""
    found = {"v4": [4], "v6": [6], "dual stack": [4, 6]}[request.param]
    network.ipam(ranges=FAMILIES[request.param], routes=[DEFAULT[family] for family in found])
    return found


def routes(node: Node, family: int, device: str) -> set[tuple[str, ...]]:
    """(destination, gateway or "-", source or "-", scope): a device's routes, but the kernel's to link-local ones."""
    found = node.ip(f"-{family}", "route", "show", "dev", device) or []
    return {
        (route["dst"], route.get("gateway", "-"), route.get("prefsrc", "-"), route["scope"])
        for route in found
        if route["dst"] != "fe80::/64"
    }


def through_gateway(family: int, address: str) -> set[tuple[str, ...]]:
    """The routes that a container has, besides IPAM's."""
    scope = {4: "link", 6: "global"}[family]  # the kernel knows none of IPv6 routes
    return {(NETWORK[family], GATEWAY[family], address, "global"), (GATEWAY[family], "-", address, scope)}


# ---- ADD ----


def test_the_addresses_and_routes_of_both_ends(network: Network, families: list[int]) -> None:
    one = network.attach()
    assert addresses(network.node, one.port) == {f"{GATEWAY[f]}/{32 if f == 4 else 128}" for f in families}
    for family in families:
        address = one.address(family)
        default = ("default", GATEWAY[family], "-", "global")
        assert routes(one.container, family, "eth0") == {default, *through_gateway(family, address)}
        way_back = (address, "-", "-", {4: "host", 6: "global"}[family])
        assert way_back in routes(network.node, family, one.port)
        # At once, without a word of duplicate address detection.
        assert pings(one.container, GATEWAY[family])
        assert pings(network.node, address)


@pytest.mark.parametrize("family", [4, 6])
def test_the_node_reaches_the_container_at_once(network: Network, family: int) -> None:
    """Nobody has asked for the state of its end, which makes the kernel bring that up to date."""
    network.ipam(ranges=FAMILIES["dual stack"])
    for _ in range(3):
        assert pings(network.node, network.attach().address(family), 0.9)  # neighbours are asked again after 1 s


def test_containers_reach_each_other_through_the_node(network: Network, families: list[int]) -> None:
    """All the node's ends bear one address, and lead to one container each."""
    attached = [network.attach() for _ in range(3)]
    assert len({one.port for one in attached}) == 3
    for one in attached:
        assert addresses(network.node, one.port) == {f"{GATEWAY[f]}/{32 if f == 4 else 128}" for f in families}
        for other in attached:
            for family in families:
                assert pings(one.container, other.address(family))
    attached[0].delete()
    for family in families:  # that one of these addresses is gone is nothing to the others
        assert pings(attached[1].container, attached[2].address(family))
        assert pings(attached[1].container, GATEWAY[family])
        attached[1].check()


def test_the_node_forwards_the_families_there_are(network: Network, families: list[int]) -> None:
    switches = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
    for switch in switches.values():
        setting(network.node, switch, "0")
    network.attach()
    assert [family for family, switch in switches.items() if setting(network.node, switch) == "1"] == families


def test_nothing_a_container_sends_configures_the_node(network: Network) -> None:
    """CVE-2020-10749: router advertisements."""
    setting(network.node, "ipv6/conf/default/accept_ra", "1")
    one = network.attach()
    assert setting(network.node, f"ipv6/conf/{one.port}/accept_ra") == "0"


@pytest.mark.parametrize(("mtu", "expected"), [(0, 1500), (5000, 5000)])
def test_mtu_of_both_ends(network: Network, mtu: int, expected: int) -> None:
    one = network.attach(mtu=mtu)
    assert one.link["mtu"] == expected
    assert link(network.node, one.port)["mtu"] == expected


# ---- hardware addresses ----


@pytest.mark.parametrize(
    ("ranges", "mac"),
    [
        ([V4], "0a:58:0a:01:02:01"),
        ([V6], "0a:58:00:00:00:01"),
        ([V4, V6], "0a:58:0a:01:02:01"),
        ([V6, V4], "0a:58:0a:01:02:01"),
    ],
)
def test_the_nodes_hardware_address_follows_from_the_gateway(network: Network, ranges: list[Any], mac: str) -> None:
    network.ipam(ranges=ranges)
    one = network.attach()
    assert link(network.node, one.port)["address"] == one.result["interfaces"][0]["mac"] == mac


def test_the_nodes_hardware_address_left_to_the_kernel(network: Network) -> None:
    one = network.attach(deterministicMAC=False)
    assert not one.result["interfaces"][0]["mac"].startswith("0a:58:")


def test_the_two_ends_have_not_the_same(network: Network) -> None:
    network.ipam_answers(ips=[{"address": "2001:db8:1::1/64", "gateway": "fe80::1"}])
    one = network.attach()
    assert one.link["address"] == "0a:58:00:00:00:01"
    assert one.result["interfaces"][0]["mac"] != one.link["address"]
    assert pings(network.node, "2001:db8:1::1")


# ---- addresses and routes of all kinds ----


def test_the_kernels_own_route_does_not_come_back(network: Network) -> None:
    """With it the container would look for its neighbours where there is nobody but the node."""
    network.ipam(ranges=FAMILIES["dual stack"])
    one = network.attach()
    for state in ("down", "up"):
        one.container.run(["ip", "link", "set", "eth0", state])
    assert addresses(one.container, "eth0") == set(one.addresses)
    for family in (4, 6):
        assert (NETWORK[family], "-") not in {route[:2] for route in routes(one.container, family, "eth0")}


# Addresses as an IPAM plugin may give them, and the routes that lead to their gateways.
UNUSUAL = {
    "an address that is all of its network": [
        {"address": "10.7.3.99/32", "gateway": "10.7.0.1"},
        {"address": "fd00::99/128", "gateway": "fd00::1"},
    ],
    "a gateway outside of the network": [{"address": "10.7.3.99/24", "gateway": "169.254.1.1"}],
    "a link-local gateway": [{"address": "fd00::99/64", "gateway": "fe80::1"}],
    "two addresses of one network": [
        {"address": "10.7.3.98/24", "gateway": "10.7.3.1"},
        {"address": "10.7.3.99/24", "gateway": "10.7.3.1"},
        {"address": "fd00::98/64", "gateway": "fd00::1"},
        {"address": "fd00::99/64", "gateway": "fd00::1"},
    ],
    "two networks with a gateway each": [
        {"address": "10.7.3.99/24", "gateway": "10.7.3.1"},
        {"address": "10.8.3.99/24", "gateway": "10.8.3.1"},
    ],
    "two addresses to a network": [{"address": "10.7.3.99/31", "gateway": "10.7.3.98"}],
}


@pytest.mark.parametrize("ips", UNUSUAL.values(), ids=list(UNUSUAL))
def test_unusual_addresses(network: Network, ips: list[Json]) -> None:
    versions = {6 if ":" in ip["address"] else 4 for ip in ips}
    network.node.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"])
    network.node.run(["ip", "address", "add", "2001:db8:ffff::1/128", "dev", "lo"])
    network.ipam_answers(ips=ips, routes=[DEFAULT[family] for family in versions])
    one = network.attach()
    assert addresses(one.container, "eth0") == {ip["address"] for ip in ips}
    for ip in ips:
        assert pings(network.node, ip["address"].partition("/")[0])
        assert ip["gateway"] == "fe80::1" or pings(one.container, ip["gateway"])
    assert all(pings(one.container, {4: "192.0.2.1", 6: "2001:db8:ffff::1"}[family]) for family in versions)
    one.check()
    one.delete()
    network.leaves_nothing(one.container)


# ---- CHECK ----


def test_check_finds_the_way_back_in_any_table(network: Network) -> None:
    """As it is when the node's end is put into a VRF."""
    one = network.attach()
    for change in ("delete", "add"):
        place = ["dev", one.port, "table", "77"] if change == "add" else []
        network.node.run(["ip", "route", change, one.address(4), *place])
    one.check()


def test_check_without_the_nodes_end_in_the_result(network: Network) -> None:
    one = network.attach()
    previous = {**one.result, "interfaces": one.result["interfaces"][1:]}
    assert one.refused("CHECK", prevResult=previous).startswith("the node's end of container interface")


# ---- ADD that fails ----


# What IPAM gives, and what ADD has to say to it.
FAILING: list[tuple[str, Json, str]] = [
    (
        "no gateway",
        {"ips": [{"address": "10.7.3.98/24", "gateway": "10.7.3.1"}, {"address": "fd00::99/64"}]},
        r"^ptp needs a gateway for fd00::99/64, another IPv6 address: IPAM named none$",
    ),
    (
        "a gateway of the other family",
        {"ips": [{"address": "10.7.3.98/24", "gateway": "fe80::1"}]},
        r"^ptp needs a gateway for 10.7.3.98/24, another IPv4 address: IPAM named fe80::1$",
    ),
    (
        "a gateway that the node cannot be",
        {"ips": [{"address": "fd00::99/64", "gateway": "ff02::1"}]},
        r"^failed to set up the node's end veth\w{8}: add the address ff02::1/128 ",
    ),
    (
        "a gateway that is the container",
        {"ips": [{"address": "10.7.3.98/24", "gateway": "10.7.3.98"}]},
        r"^ptp needs a gateway for 10.7.3.98/24, another IPv4 address: IPAM named 10.7.3.98$",
    ),
]


@pytest.mark.parametrize(("answer", "message"), [case[1:] for case in FAILING], ids=[case[0] for case in FAILING])
def test_gateways_that_cannot_be(network: Network, answer: Json, message: str) -> None:
    network.config.update(ipMasq=True)
    log = network.ipam_answers(**answer)
    one = network.attachment()
    with pytest.raises(Refused, match=message):
        one.add()
    assert log.read_text().split() == ["ADD", "DEL"]
    network.leaves_nothing(one.container)


def test_a_node_that_does_not_forward(network: Network, plugins: Path) -> None:
    """/proc/sys is read-only, as it is in containers: that is fine as long as nothing has to be changed."""
    setting(network.node, "ipv4/ip_forward", "0")
    one = network.attachment()
    read_only = ["unshare", "--mount", "sh", "-ec", 'mount --bind -o ro /proc/sys /proc/sys; exec "$@"', "sh"]
    variables = {**one.environ, "CNI_COMMAND": "ADD", "CNI_PATH": str(plugins)}
    for on in ("0", "1"):
        setting(network.node, "ipv4/ip_forward", on)
        command = [*read_only, str(plugins / "ptp")]
        done = network.node.run(command, json.dumps(network.config), variables, check=False)
        if on == "1":
            assert done.returncode == 0, done
            continue
        assert json.loads(done.stdout)["msg"].startswith("Could not enable IP forwarding: ")
        network.leaves_nothing(one.container)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mtu": -1}, "failed to load netconf: mtu: -1 is not 0 or more"),
        ({"mtu": 67}, "failed to make veth pair: "),
        ({"mtu": 70000}, "failed to make veth pair: "),
        ({"linkType": "tun"}, 'failed to load netconf: linkType: "tun" is not one of "veth", "netkit"'),
        ({"ipMasq": "yes"}, 'failed to load netconf: ipMasq: "yes" is not true or false'),
        ({"ipam": {}}, "no plugin name provided"),
        ({"ipam": {"type": "nobody"}}, 'failed to find plugin "nobody" in path '),
    ],
)
def test_configurations_that_cannot_be(network: Network, keys: Json, message: str) -> None:
    one = network.attachment()
    assert one.refused("ADD", **keys).startswith(message)
    network.leaves_nothing(one.container)


def test_netkit_on_any_kernel(network: Network) -> None:
    """It works, or says in time and in ADD what is missing. (tests/vm has a kernel on which it works.)"""
    network.config["linkType"] = "netkit"
    try:
        network.status()
    except Refused as refusal:
        assert refusal.code == 50
        one = network.attachment()
        with pytest.raises(Refused, match=r"^failed to make netkit pair: ") as refused:
            one.add()
        assert "this kernel has no netkit devices" in refused.value.details
        assert (refusal.details, one.container) == (refused.value.details, one.container)
        network.leaves_nothing(one.container)
        return
    one = network.attach()
    assert pings(one.container, GATEWAY[4])
    one.check()
