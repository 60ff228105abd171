"""Test what ipvlan, vlan and dummy have in common: one link, born in the container, with addresses from IPAM."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.spec import version

from .conftest import Network, Refused, addresses

if TYPE_CHECKING:
    from tests.conftest import Node

CONFIGS: dict[str, dict[str, Any]] = {
    "ipvlan": {"type": "ipvlan", "master": "up0"},
    "vlan": {"type": "vlan", "master": "up0", "vlanId": 100},
    "dummy": {"type": "dummy"},
}
ON_MASTER = pytest.mark.parametrize("network", ["ipvlan", "vlan"], indirect=True)
RANGES = {
    "v4": [[{"subnet": "10.1.2.0/24"}]],
    "v6": [[{"subnet": "fd00:1::/64"}]],
    "dual stack": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]],
}


@pytest.fixture(params=CONFIGS)
def network(request: pytest.FixtureRequest, node: Node, make_network: Callable[..., Network]) -> Network:
    """On a node with `up0`, which leads nowhere."""
    node.run(["ip", "link", "add", "up0", "address", "02:00:00:00:00:09", "up", "type", "dummy"])
    return make_network(**CONFIGS[request.param])


def prefixes(result: dict[str, Any]) -> list[str]:
    return [ip["address"] for ip in result["ips"]]


@pytest.mark.parametrize("family", RANGES)
def test_an_attachments_life(network: Network, family: str) -> None:
    routes = [{"dst": "192.0.2.0/24"}, {"dst": "2001:db8:9::/64"}]
    kept = [route for route in routes if (":" in route["dst"]) in {"v4": [0], "v6": [1]}.get(family, [0, 1])]
    network.ipam(ranges=RANGES[family], routes=kept)
    one = network.attach()
    assert one.link["linkinfo"]["info_kind"] == network.config["type"]
    assert "UP" in one.link["flags"]
    assert one.result["interfaces"] == [{"name": "eth0", "mac": one.link["address"], "sandbox": one.container.path}]
    assert [ip["interface"] for ip in one.result["ips"]] == [0] * len(RANGES[family])
    assert addresses(one.container, "eth0") == set(prefixes(one.result))
    for route in kept:
        dst = route["dst"]
        [found] = one.container.ip("-6" if ":" in dst else "-4", "route", "show", dst)
        assert (found["dev"], found["gateway"]) == ("eth0", "fd00:1::1" if ":" in dst else "10.1.2.1")
    assert one.reaches(one.addresses[0].partition("/")[0])
    one.check()
    one.delete()
    one.nothing_left()
    one.delete()


@pytest.mark.parametrize("spec", version.ALL)
def test_all_versions(network: Network, spec: str) -> None:
    network.config["cniVersion"] = spec
    one = network.attach()
    assert one.result["cniVersion"] == spec
    if version.at_least(spec, "0.3.0"):
        assert prefixes(one.result) == ["10.1.2.2/24"]
    else:
        assert one.result["ip4"]["ip"] == "10.1.2.2/24"
    if version.at_least(spec, "0.4.0"):
        one.check()
    else:
        assert one.refused("CHECK") == "config version does not allow CHECK"
    one.delete()
    one.nothing_left()


def test_the_executable(network: Network, plugins: Path) -> None:
    """As a runtime starts it, not as this suite does."""
    container = network.node.container()
    environ = {"CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_NETNS": container.path, "CNI_PATH": str(plugins)}
    config = network.config
    for verb in ("ADD", "CHECK", "DEL"):
        program = [str(plugins / config["type"])]
        done = network.node.run(program, stdin=json.dumps(config), env={"CNI_COMMAND": verb, **environ})
        if verb == "ADD":
            config = {**config, "prevResult": json.loads(done.stdout)}


# ---- ADD again, ADD in vain ----


def test_the_same_add_twice(network: Network) -> None:
    one = network.attach()
    before = one.link, network.reserved
    assert one.refused("ADD") == 'container interface name "eth0" already exists'
    assert (one.link, network.reserved) == before
    one.check()


def test_a_name_that_is_taken(network: Network) -> None:
    one = network.attachment()
    one.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    assert one.refused("ADD") == 'container interface name "eth0" already exists'
    assert one.link["linkinfo"]["info_kind"] == "bridge"
    assert network.reserved == set()


def test_the_nodes_names_are_not_the_containers(network: Network) -> None:
    """Older kernels look for the name of a link to be made among the node's."""
    network.node.run(["ip", "link", "add", "eth0", "type", "dummy"])
    one = network.attach()
    one.check()
    one.delete()
    one.nothing_left()
    assert "eth0" in [link["ifname"] for link in network.node.ip("link")]


def test_a_full_pool(network: Network) -> None:
    network.ipam(ranges=[[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.5", "rangeEnd": "10.1.2.5"}]])
    network.attach()
    two = network.attachment()
    assert two.refused("ADD").startswith("failed to allocate for range 0: no IP addresses available in range set")
    assert two.link is None
    assert network.reserved == {"10.1.2.5"}


def test_an_address_outside_its_range(network: Network) -> None:
    one = network.attachment()
    words = "failed to allocate all requested IPs: 192.0.2.1"
    assert one.refused("ADD", runtimeConfig={"ips": ["192.0.2.1"]}) == words
    one.nothing_left()


def test_addresses_of_static(network: Network) -> None:
    static = [{"address": "10.1.2.77/24", "gateway": "10.1.2.1"}, {"address": "fd00:1::77/64"}]
    network.config["ipam"] = {"type": "static", "addresses": static, "routes": [{"dst": "192.0.2.0/24"}]}
    one = network.attach()
    assert prefixes(one.result) == ["10.1.2.77/24", "fd00:1::77/64"]
    assert addresses(one.container, "eth0") == set(prefixes(one.result))
    [route] = one.container.ip("route", "show", "192.0.2.0/24")
    assert route["gateway"] == "10.1.2.1"
    one.check()
    one.delete()
    one.nothing_left()


@ON_MASTER
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("program", ["ADD", "CHECK over the link", "DEL"]),
        ("dhcp", ["ADD over the link", "CHECK over the link", "DEL over the link"]),
    ],
)
def test_dhcp_alone_is_asked_over_the_link(network: Network, name: str, asked: list[str]) -> None:
    notes = network.ipam_looks_for_link(name, ips=[{"address": "10.1.2.9/24"}])
    one = network.attach()
    assert addresses(one.container, "eth0") == {"10.1.2.9/24"}
    one.check()
    one.delete()
    assert notes.read_text().splitlines() == asked
    assert one.link is None


def test_a_route_that_cannot_be(network: Network) -> None:
    """The last step of ADD fails: the link goes, and the address is given back."""
    network.ipam(ranges=RANGES["dual stack"], routes=[{"dst": "192.0.2.0/24", "gw": "198.51.100.1"}])
    one = network.attachment()
    assert "192.0.2.0/24" in one.refused("ADD")
    one.nothing_left()


def test_no_ipam(network: Network) -> None:
    needs_it = network.config["type"] == "dummy"
    words = "dummy interface requires an IPAM configuration" if needs_it else "no plugin name provided"
    one = network.attachment()
    assert one.refused("ADD", ipam={}) == words
    one.nothing_left()
    network.config["ipam"] = {}
    one.delete()


def test_no_namespace(network: Network) -> None:
    one = network.attachment(netns="/run/netns/nowhere")
    assert one.refused("ADD").startswith('failed to open netns "/run/netns/nowhere": ')
    assert one.refused("CHECK").startswith('failed to open netns "/run/netns/nowhere": ')
    assert network.reserved == set()


# ---- DEL ----


def test_del_without_add(network: Network) -> None:
    network.attachment().delete()


def test_del_with_the_namespace_gone(network: Network) -> None:
    one = network.attach()
    one.delete(CNI_NETNS="/run/netns/nowhere")
    assert network.reserved == set()


def test_del_without_a_namespace(network: Network) -> None:
    one = network.attach()
    one.container.run(["ip", "link", "delete", "eth0"])
    one.delete(CNI_NETNS="")
    one.nothing_left()


@ON_MASTER
def test_del_with_the_master_gone(network: Network) -> None:
    one = network.attach()
    network.node.run(["ip", "link", "delete", "up0"])  # and the kernel deletes what stands on it
    one.delete()
    one.nothing_left()


def test_del_goes_on_past_a_failure(network: Network) -> None:
    one = network.attach()
    keys = {"ipam": {"type": "nowhere"}}
    assert one.refused("DEL", **keys).startswith('failed to find plugin "nowhere"')
    assert one.link is None


# ---- CHECK ----

TAMPERED = [
    ("link delete eth0", "Container interface eth0 not found in {netns}"),
    ("link set eth0 down", "Interface eth0 is down"),
    ("link set eth0 name other", "Container interface eth0 not found in {netns}"),
    ("address delete 10.1.2.2/24 dev eth0", "Failed to match addr 10.1.2.2/24 on interface eth0"),
    ("address add 10.1.2.9/24 dev eth0", ""),
    ("route delete 10.1.2.0/24", "Failed to find Gateway 10.1.2.1 for interface eth0"),
    ("route delete 192.0.2.0/24", "Expected Route 192.0.2.0/24 not found in routing table"),
]


@pytest.mark.parametrize(("command", "words"), TAMPERED, ids=[command for command, _ in TAMPERED])
def test_check_names_what_is_not_as_add_left_it(network: Network, command: str, words: str) -> None:
    network.ipam(ranges=RANGES["v4"], routes=[{"dst": "192.0.2.0/24"}])
    one = network.attach()
    one.check()
    one.container.run(["ip", *command.split()])
    if words:
        assert one.refused("CHECK") == words.format(netns=one.netns)
    else:
        one.check()


def test_check_after_the_link_was_replaced(network: Network) -> None:
    one = network.attach()
    one.container.run(["ip", "link", "delete", "eth0"])
    one.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    assert one.refused("CHECK") == f"Error: Container interface eth0 not of type {network.config['type']}"


def test_check_compares_the_mac(network: Network) -> None:
    one = network.attach()
    mac = one.link["address"]
    one.result["interfaces"][0]["mac"] = "02:00:00:00:00:01"
    assert one.refused("CHECK") == f"Interface eth0 Mac 02:00:00:00:00:01 doesn't match container Mac: {mac}"


def test_check_asks_ipam(network: Network) -> None:
    one = network.attach()
    for file in network.state.glob("*/10.1.2.2"):
        file.unlink()
    assert one.refused("CHECK").startswith("host-local: Failed to find address added by container ")


def test_check_without_a_result(network: Network) -> None:
    one = network.attach()
    assert one.refused("CHECK", prevResult=None) == "Required prevResult missing"


def test_check_of_another_interface(network: Network) -> None:
    one = network.attach()
    [interface] = one.result["interfaces"]
    interface["name"] = "eth1"
    assert one.refused("CHECK") == f"Sandbox in prevResult doesn't match configured netns: {one.netns}"


# ---- GC and STATUS ----


def test_gc(network: Network) -> None:
    kept = network.attach()
    network.attachment().add(vlanId=101)  # a master has a VLAN but once; the others don't mind
    assert network.reserved == {"10.1.2.2", "10.1.2.3"}
    network.gc(kept)
    assert network.reserved == {"10.1.2.2"}
    kept.check()


def test_status(network: Network) -> None:
    network.status()
    network.config["ipam"] = {"type": "nowhere"}
    with pytest.raises(Refused, match='^failed to find plugin "nowhere"'):
        network.status()


@ON_MASTER
def test_status_without_the_master(network: Network) -> None:
    network.config["master"] = "up1"
    with pytest.raises(Refused, match='^failed to lookup master "up1": Link not found$') as refused:
        network.status()
    assert (refused.value.code, refused.value.details) == (50, "")


# ---- the master ----


@ON_MASTER
def test_no_such_master(network: Network) -> None:
    one = network.attachment()
    assert one.refused("ADD", master="up1") == 'failed to lookup master "up1": Link not found'
    one.nothing_left()


@ON_MASTER
@pytest.mark.parametrize("mtu", [1501, -100])
def test_an_mtu_that_the_master_cannot_bear(network: Network, mtu: int) -> None:
    one = network.attachment()
    assert one.refused("ADD", mtu=mtu) == f"invalid MTU {mtu}, must be [0, master MTU(1500)]"
    one.nothing_left()


@ON_MASTER
def test_mtu(network: Network) -> None:
    network.config["mtu"] = 1400
    one = network.attach()
    assert one.link["mtu"] == 1400
    one.check()
    one.container.run(["ip", "link", "set", "eth0", "mtu", "1300"])
    assert one.refused("CHECK") == "Interface eth0 MTU 1300 does not match configured MTU: 1400"


@ON_MASTER
def test_the_masters_mtu(network: Network) -> None:
    network.node.run(["ip", "link", "set", "up0", "mtu", "1200"])
    one = network.attach()
    assert one.link["mtu"] == 1200
    one.check()


@ON_MASTER
def test_a_master_in_the_container(network: Network) -> None:
    network.node.run(["ip", "link", "delete", "up0"])
    network.config["linkInContainer"] = True
    one = network.attachment()
    assert one.refused("ADD") == 'failed to lookup master "up0": Link not found'
    one.container.run(["ip", "link", "add", "up0", "up", "type", "dummy"])
    one.add()
    assert one.link["link"] == "up0"
    one.check()
    assert one.refused("CHECK", linkInContainer=False) == 'failed to lookup master "up0": Link not found'
    network.status()
    one.delete()
    assert one.link is None
    assert network.reserved == set()


@ON_MASTER
def test_check_of_a_link_that_stands_elsewhere(network: Network) -> None:
    one = network.attach()
    network.node.run(["ip", "link", "add", "up1", "up", "type", "dummy"])
    assert one.refused("CHECK", master="up1") == "Container interface eth0 does not have master up1"


@ON_MASTER
def test_check_tells_the_nodes_master_from_the_containers(network: Network) -> None:
    one = network.attachment()
    one.container.run(["ip", "link", "add", "up0", "index", "7", "type", "dummy"])
    network.node.run(["ip", "link", "add", "up7", "index", "7", "up", "type", "dummy"])
    one.add(master="up7")
    words = "Container interface eth0 does not have master up0"
    assert one.refused("CHECK", master="up0", linkInContainer=True) == words


@ON_MASTER
def test_dns_is_the_configurations(network: Network) -> None:
    resolv = network.state.parent / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.1\n")
    network.config["ipam"]["resolvConf"] = str(resolv)
    one = network.attach()
    assert "dns" not in one.result
    one.delete()
    assert one.add(dns={"nameservers": ["192.0.2.2"]})["dns"] == {"nameservers": ["192.0.2.2"]}


@pytest.mark.parametrize("network", ["dummy"], indirect=True)
def test_dns_is_ipams(network: Network) -> None:
    resolv = network.state.parent / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.1\n")
    network.config["ipam"]["resolvConf"] = str(resolv)
    assert network.attach(dns={"nameservers": ["192.0.2.2"]}).result["dns"] == {"nameservers": ["192.0.2.1"]}


@pytest.mark.parametrize("network", ["vlan", "dummy"], indirect=True)
@pytest.mark.parametrize(("family", "mac"), [("v4", "0a:58:0a:01:02:02"), ("v6", "0a:58:00:00:00:02")])
def test_the_mac_follows_from_the_address(network: Network, family: str, mac: str) -> None:
    network.ipam(ranges=RANGES[family])
    one = network.attach()
    assert one.link["address"] == mac
    one.delete()
    one.add(deterministicMAC=False)
    masters = "02:00:00:00:00:09"
    assert one.link["address"] != mac
    assert (one.link["address"] == masters) == (network.config["type"] == "vlan")
