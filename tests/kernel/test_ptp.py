"""ptp, from its JSON to packets: what the kernel has in the end is read by other programs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel.netns import NetNS
from cni.netfilter.naming import chain_name
from cni.spec import version
from cni_plugins.main.ptp import plugin
from tests.waiting import until

from .conftest import Attachment, Network, Refused, addresses, links, pings, setting

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


def dual_stack(network: Network, **keys: Any) -> None:
    network.ipam(ranges=FAMILIES["dual stack"], **keys)


def port(one: Attachment) -> str:
    """The node's end, by the kernel's index."""
    peer = one.link["link_index"]
    return next(str(link["ifname"]) for link in one.network.node.ip("link") if link["ifindex"] == peer)


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


def leaves_nothing(network: Network, *containers: Node) -> None:
    """No link, address file or masquerade rule of any attachment."""
    assert links(network.node) <= {"lo", "up0"}
    for container in containers:
        assert links(container) == {"lo"}
    assert network.reserved == set()
    assert network.masquerading == []


# ---- ADD, CHECK, DEL ----


@pytest.mark.parametrize("spec", version.ALL)
def test_life_of_an_attachment_in_every_version(network: Network, families: list[int], spec: str) -> None:
    network.config["cniVersion"] = spec
    one = network.attach()
    end = port(one)
    assert one.result["cniVersion"] == spec
    assert {"UP", "LOWER_UP"} <= set(one.link["flags"])
    assert addresses(one.container, "eth0") == set(one.addresses)
    assert addresses(network.node, end) == {f"{GATEWAY[f]}/{32 if f == 4 else 128}" for f in families}
    for family in families:
        address = one.address(family)
        default = ("default", GATEWAY[family], "-", "global")
        assert routes(one.container, family, "eth0") == {default, *through_gateway(family, address)}
        way_back = (address, "-", "-", {4: "host", 6: "global"}[family])
        assert way_back in routes(network.node, family, end)
        # At once, without a word of duplicate address detection.
        assert pings(one.container, GATEWAY[family])
        assert pings(network.node, address)
    if version.at_least(spec, "0.3.0"):
        assert one.result["interfaces"] == [
            {"name": end, "mac": network.node.ip("link", "show", "dev", end)[0]["address"]},
            {"name": "eth0", "mac": one.link["address"], "sandbox": one.container.path},
        ]
        assert {ip["interface"] for ip in one.result["ips"]} == {1}
    if version.at_least(spec, "0.4.0"):
        one.check()
    else:
        with pytest.raises(Refused, match=r"^config version does not allow CHECK$"):
            one.check()
    one.delete()
    leaves_nothing(network, one.container)
    one.delete()


@pytest.mark.parametrize("spec", ["0.1.0", "0.2.0"])
def test_old_versions_refuse_two_addresses_of_a_family_in_add_and_del(network: Network, spec: str) -> None:
    network.config["cniVersion"] = spec
    network.ipam(ranges=[V4, V6, [{"subnet": "2001:db8:2::/64"}]])
    one = network.attachment()
    for verb in (one.add, one.delete):
        with pytest.raises(Refused, match=f"^CNI version {spec} does not support more than 1 address per family$"):
            verb()
    leaves_nothing(network, one.container)


@pytest.mark.parametrize("way", ["executable", "from another namespace"])
def test_the_other_ways_to_be_run(network: Network, plugins: Path, way: str) -> None:
    """As a process, and as the agent does it: in process, but for another namespace than its own."""
    dual_stack(network)
    network.config.update(ipMasq=True)
    one = network.attachment()

    def run(command: str, **keys: Any) -> Any:
        config = json.dumps({**network.config, **keys})
        variables = {**one.environ, "CNI_COMMAND": command, "CNI_PATH": str(plugins)}
        if way == "executable":
            return json.loads(network.node.run([str(plugins / "ptp")], config, variables).stdout or "null")
        with NetNS.open(network.node.path) as host:
            outcome = plugin.serve(variables, config.encode, print, host)
        assert outcome.error is None
        return json.loads(outcome.stdout or "null")

    one.result = run("ADD")
    assert addresses(one.container, "eth0") == set(one.addresses)
    assert one.result["interfaces"][0]["name"] == port(one)
    assert len(network.masquerading) == 8
    assert run("CHECK", prevResult=one.result) is None
    assert run("STATUS") is None
    assert run("DEL", prevResult=one.result) is None
    leaves_nothing(network, one.container)


@pytest.mark.parametrize("family", [4, 6])
def test_the_node_reaches_the_container_at_once(network: Network, family: int) -> None:
    """Nobody has asked for the state of its end, which makes the kernel bring that up to date."""
    dual_stack(network)
    for _ in range(3):
        assert pings(network.node, network.attach().address(family), 0.9)  # neighbours are asked again after 1 s


def test_containers_reach_each_other_through_the_node(network: Network, families: list[int]) -> None:
    """All the node's ends bear one address, and lead to one container each."""
    attached = [network.attach() for _ in range(3)]
    assert len({port(one) for one in attached}) == 3
    for one in attached:
        assert addresses(network.node, port(one)) == {f"{GATEWAY[f]}/{32 if f == 4 else 128}" for f in families}
        for other in attached:
            for family in families:
                assert pings(one.container, other.address(family))
    attached[0].delete()
    for family in families:  # that one of these addresses is gone is nothing to the others
        assert pings(attached[1].container, attached[2].address(family))
        assert pings(attached[1].container, GATEWAY[family])
        attached[1].check()


def test_two_interfaces_of_one_container(network: Network) -> None:
    first = network.attach()
    second = network.attachment(first.container, ifname="net1")
    second.add()
    assert (first.addresses, second.addresses) == (["10.1.2.2/24"], ["10.1.2.3/24"])
    second.delete()
    assert links(first.container) == {"lo", "eth0"}
    assert network.reserved == {"10.1.2.2"}
    first.check()


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
    assert setting(network.node, f"ipv6/conf/{port(one)}/accept_ra") == "0"


def test_a_namespace_without_ipv6_gets_it_back(network: Network) -> None:
    dual_stack(network)
    one = network.attachment()
    for name in ("all", "default", "lo"):
        setting(one.container, f"ipv6/conf/{name}/disable_ipv6", "1")
    one.add()
    assert addresses(one.container, "eth0") == set(one.addresses)


@pytest.mark.parametrize(("mtu", "expected"), [(0, 1500), (5000, 5000)])
def test_mtu_of_both_ends(network: Network, mtu: int, expected: int) -> None:
    one = network.attach(mtu=mtu)
    assert one.link["mtu"] == expected
    assert network.node.ip("link", "show", "dev", port(one))[0]["mtu"] == expected


# ---- hardware addresses ----


@pytest.mark.parametrize(
    ("ranges", "own", "gateway"),
    [
        ([V4], "0a:58:0a:01:02:02", "0a:58:0a:01:02:01"),
        ([V6], "0a:58:00:00:00:02", "0a:58:00:00:00:01"),
        ([V4, V6], "0a:58:0a:01:02:02", "0a:58:0a:01:02:01"),
        ([V6, V4], "0a:58:0a:01:02:02", "0a:58:0a:01:02:01"),
    ],
)
def test_hardware_addresses_follow_from_ip_addresses(
    network: Network, ranges: list[Any], own: str, gateway: str
) -> None:
    network.ipam(ranges=ranges)
    one = network.attach()
    assert [interface["mac"] for interface in one.result["interfaces"]] == [gateway, own]
    assert one.link["address"] == own
    assert network.node.ip("link", "show", "dev", port(one))[0]["address"] == gateway


def test_hardware_addresses_left_to_the_kernel(network: Network) -> None:
    one = network.attach(deterministicMAC=False)
    macs = [interface["mac"] for interface in one.result["interfaces"]]
    assert not any(mac.startswith("0a:58:") for mac in macs)
    assert one.link["address"] == macs[1]
    one.check(deterministicMAC=False)


def test_the_two_ends_have_not_the_same(network: Network) -> None:
    network.ipam_answers(ips=[{"address": "2001:db8:1::1/64", "gateway": "fe80::1"}])
    one = network.attach()
    assert one.link["address"] == "0a:58:00:00:00:01"
    assert one.result["interfaces"][0]["mac"] != one.link["address"]
    assert pings(network.node, "2001:db8:1::1")


# ---- addresses and routes of all kinds ----


def test_routes_with_everything_a_route_may_have(network: Network) -> None:
    dual_stack(
        network,
        routes=[
            {"dst": "192.0.2.0/24"},
            {"dst": "198.51.100.0/24", "gw": "10.1.2.8"},
            {"dst": "198.51.100.0/24", "gw": "10.1.2.9"},
            {"dst": "203.0.113.0/24", "mtu": 1300, "advmss": 1200, "priority": 77, "table": 1234},
            {"dst": "2001:db8:f::/48"},
            {"dst": "2001:db8:e::/48", "gw": "2001:db8:1::9", "priority": 55},
        ],
    )
    one = network.attach()
    assert routes(one.container, 4, "eth0") == {
        ("192.0.2.0/24", "10.1.2.1", "-", "global"),
        ("198.51.100.0/24", "10.1.2.8", "-", "global"),
        ("198.51.100.0/24", "10.1.2.9", "-", "global"),
        *through_gateway(4, "10.1.2.2"),
    }
    assert routes(one.container, 6, "eth0") == {
        ("2001:db8:f::/48", "2001:db8:1::1", "-", "global"),
        ("2001:db8:e::/48", "2001:db8:1::9", "-", "global"),
        *through_gateway(6, "2001:db8:1::2"),
    }
    (special,) = one.container.ip("-4", "route", "show", "table", "1234")
    assert (special["dst"], special["gateway"], special["metric"]) == ("203.0.113.0/24", "10.1.2.1", 77)
    assert {"mtu": 1300, "advmss": 1200} in special["metrics"]
    one.check()


def test_the_kernels_own_route_does_not_come_back(network: Network) -> None:
    """With it the container would look for its neighbours where there is nobody but the node."""
    dual_stack(network)
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
    leaves_nothing(network, one.container)


# ---- name servers ----

FROM_FILE = {"nameservers": ["192.0.2.53"], "domain": "file.example", "search": ["a.example", "b.example"]}


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (None, FROM_FILE),
        ({}, FROM_FILE),
        ({"domain": ""}, FROM_FILE),
        ({"domain": "own.example"}, {"domain": "own.example"}),
        ({"nameservers": []}, {}),
        ({"nameservers": ["192.0.2.1"]}, {"nameservers": ["192.0.2.1"]}),
        ({"search": ["c.example"]}, {"search": ["c.example"]}),
        ({"options": ["ndots:2"]}, {"options": ["ndots:2"]}),
    ],
)
def test_dns(network: Network, tmp_path: Path, configured: Json | None, expected: Json) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 192.0.2.53\ndomain file.example\nsearch a.example b.example\n")
    network.ipam(ranges=[V4], resolvConf=str(resolv_conf))
    one = network.attach(dns=configured)
    assert {key: value for key, value in one.result.get("dns", {}).items() if value} == expected


# ---- masquerading ----


@pytest.fixture
def outside(network: Network) -> Node:
    """A host beyond the node that has no route to the containers."""
    outside = network.node.container()
    network.node.run(["ip", "link", "add", "up0", "type", "veth", "peer", "eth0", "netns", outside.name])
    for node, name, number in ((network.node, "up0", 1), (outside, "eth0", 2)):
        node.run(["ip", "address", "add", f"192.0.2.{number}/24", "dev", name])
        node.run(["ip", "address", "add", f"2001:db8:ffff::{number}/64", "dev", name, "nodad"])
        node.run(["ip", "link", "set", name, "up"])
    for address in ("192.0.2.2", "2001:db8:ffff::2"):
        until(lambda: pings(network.node, address, 0.1), "the kernel to notice the carrier")  # noqa: B023
    return outside


@pytest.mark.parametrize("backend", [None, "iptables", "nftables"])
def test_masqueraded_packets_get_an_answer(network: Network, outside: Node, backend: str | None) -> None:
    dual_stack(network, routes=list(DEFAULT.values()))
    plain = network.attach()
    keys: Json = {"ipMasq": True, **({} if backend is None else {"ipMasqBackend": backend})}
    network.config.update(keys)
    one = network.attach()
    for address in ("192.0.2.2", "2001:db8:ffff::2"):
        assert pings(one.container, address)
    assert not pings(plain.container, "192.0.2.2", 0.2)
    chains = [line for line in network.masquerading if line.startswith("iptables")]
    assert bool(chains) == (backend != "nftables")
    assert all(chain_name("net", one.id) in line for line in chains)
    one.check()
    one.delete()
    assert network.masquerading == []
    assert network.reserved == {plain.address(4), plain.address(6)}


def test_an_unknown_backend(network: Network) -> None:
    one = network.attachment()
    with pytest.raises(Refused, match=r'^unknown ipmasq backend "ebtables"$'):
        one.add(ipMasq=True, ipMasqBackend="ebtables")
    leaves_nothing(network, one.container)


# ---- CHECK ----

# What is done in the container and on the node, and what CHECK has to say to it.
TAMPERED = [
    ("link gone", "ip link delete eth0", "", "Container interface eth0 not found in "),
    (
        "link of another kind",
        "ip link delete eth0 && ip link add eth0 type bridge",
        "",
        "Error: Container interface eth0 not of type veth",
    ),
    (
        "MAC",
        "ip link set eth0 address 02:00:00:00:00:99",
        "",
        "Interface eth0 Mac 0a:58:0a:01:02:02 doesn't match container Mac: 02:00:00:00:00:99",
    ),
    (
        "address",
        "ip address delete 10.1.2.2/24 dev eth0",
        "",
        "Failed to match addr 10.1.2.2/24 on interface eth0",
    ),
    (
        "IPv6 address",
        "ip address delete 2001:db8:1::2/64 dev eth0",
        "",
        "Failed to match addr 2001:db8:1::2/64 on interface eth0",
    ),
    (
        "network's route",
        "ip route delete 10.1.2.0/24",
        "",
        "Failed to find Gateway 10.1.2.1 for interface eth0",
    ),
    (
        "network's route not through the gateway",
        "ip route replace 10.1.2.0/24 dev eth0",
        "",
        "Expected Route 10.1.2.0/24 via 10.1.2.1 not found in routing table",
    ),
    (
        "gateway's route",
        "ip route delete 10.1.2.1",
        "",
        "Expected Route 10.1.2.1/32 not found in routing table",
    ),
    (
        "IPv6 gateway's route",
        "ip -6 route delete 2001:db8:1::1",
        "",
        "Expected Route 2001:db8:1::1/128 not found in routing table",
    ),
    (
        "default route",
        "ip route delete default",
        "",
        "Expected Route 0.0.0.0/0 not found in routing table",
    ),
    (
        "route's gateway",
        "ip route replace 192.0.2.0/24 via 10.1.2.1",
        "",
        "Expected Route 192.0.2.0/24 via 10.1.2.9 not found in routing table",
    ),
    (
        "node's end elsewhere",
        "",
        "ip link set PORT netns OTHER",
        # Its index may be that of the other container's now.
        "the node's end of container interface eth0 ",
    ),
    (
        "node's end with another name",
        "",
        "ip link set PORT down && ip link set PORT name p0",
        "the node's end of container interface eth0 is p0, which is not in prevResult",
    ),
    (
        "node's MAC",
        "",
        "ip link set PORT address 02:00:00:00:00:99",
        "Interface PORT Mac doesn't match: 0a:58:0a:01:02:01 not found",
    ),
    (
        "gateway's address",
        "",
        "ip address delete 10.1.2.1/32 dev PORT",
        "Failed to match addr 10.1.2.1/32 on interface PORT",
    ),
    (
        "way back",
        "",
        "ip route delete 10.1.2.2",
        "Expected Route 10.1.2.2/32 dev PORT not found in the node's routing table",
    ),
    (
        "IPv6 way back",
        "",
        "ip -6 route delete 2001:db8:1::2",
        "Expected Route 2001:db8:1::2/128 dev PORT not found in the node's routing table",
    ),
    ("masquerading", "", "iptables -t nat -F POSTROUTING", " is not masqueraded in network net as "),
    ("IPv6 masquerading", "", "ip6tables -t nat -F", " is not masqueraded in network net as "),
    (
        "address given up",
        "",
        "rm STATE/net/10.1.2.2 STATE/net/2001:db8:1::2",
        "host-local: Failed to find address added by container ",
    ),
]


@pytest.mark.parametrize(
    ("inside", "outside", "message"), [case[1:] for case in TAMPERED], ids=[case[0] for case in TAMPERED]
)
def test_check_names_what_is_not_as_add_left_it(network: Network, inside: str, outside: str, message: str) -> None:
    network.config.update(ipMasq=True, ipMasqBackend="iptables")
    dual_stack(network, routes=[*DEFAULT.values(), {"dst": "192.0.2.0/24", "gw": "10.1.2.9"}])
    one, other = network.attach(), network.attach()
    one.check()
    words = {"PORT": port(one), "STATE": str(network.state), "OTHER": other.container.name}
    for word, meaning in words.items():
        outside, message = outside.replace(word, meaning), message.replace(word, meaning)
    one.container.run(["sh", "-ec", inside])
    network.node.run(["sh", "-ec", outside])
    with pytest.raises(Refused) as refusal:
        one.check()
    assert message in str(refusal.value)
    one.delete()
    other.delete()
    leaves_nothing(network, other.container)


def test_check_finds_the_way_back_in_any_table(network: Network) -> None:
    """As it is when the node's end is put into a VRF."""
    one = network.attach()
    for change in ("delete", "add"):
        place = ["dev", port(one), "table", "77"] if change == "add" else []
        network.node.run(["ip", "route", change, one.address(4), *place])
    one.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: None, "Required prevResult missing"),
        (lambda result: {**result, "interfaces": result["interfaces"][:1]}, "Sandbox in prevResult doesn't match"),
        (lambda result: {**result, "interfaces": result["interfaces"][1:]}, "the node's end of container interface"),
    ],
)
def test_check_of_a_result_that_is_another(
    network: Network, change: Callable[[Json], Json | None], message: str
) -> None:
    one = network.attach()
    with pytest.raises(Refused, match=f"^{message}"):
        one.check(prevResult=change(one.result))


# ---- DEL ----


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
@pytest.mark.parametrize("way", ["no namespace", "namespace gone", "link gone"])
def test_del_takes_back_everything(network: Network, backend: str, way: str, doomed: Callable[[Node], None]) -> None:
    network.config.update(ipMasq=True, ipMasqBackend=backend)
    dual_stack(network)
    one, other = network.attach(), network.attach()
    rules = [rule for rule in network.masquerading if other.id in rule or chain_name("net", other.id) in rule]
    if way == "namespace gone":
        doomed(one.container)
    if way == "link gone":
        one.container.run(["ip", "link", "delete", "eth0"])
    for _ in range(2):
        one.delete(**({"CNI_NETNS": ""} if way == "no namespace" else {}))
        assert network.masquerading == rules
        assert network.reserved == {other.address(4), other.address(6)}
    other.check()


def test_del_without_add(network: Network) -> None:
    one = network.attachment()
    network.config.update(ipMasq=True)
    one.delete()
    leaves_nothing(network, one.container)


def test_del_goes_on_past_failures_and_reports_them_all(network: Network, tmp_path: Path) -> None:
    """The namespace's path leads to a file, and the address plugin is gone: the rules are removed all the same."""
    network.config.update(ipMasq=True, ipMasqBackend="nftables")
    one = network.attach()
    file = tmp_path / "file"
    file.touch()
    network.paths = [str(tmp_path)]
    with pytest.raises(Refused) as refusal:
        one.delete(CNI_NETNS=str(file))
    assert "unknown FS magic" in str(refusal.value)
    assert 'failed to find plugin "host-local"' in str(refusal.value)
    assert network.masquerading == []


# ---- ADD that fails ----


def test_an_address_outside_its_range(network: Network) -> None:
    one = network.attachment()
    with pytest.raises(Refused, match=r"^failed to allocate all requested IPs: 192.0.2.1$"):
        one.add(ipMasq=True, runtimeConfig={"ips": ["192.0.2.1"]})
    assert (links(one.container), network.reserved, network.masquerading) == ({"lo"}, set(), [])


def test_the_same_add_twice(network: Network) -> None:
    network.config.update(ipMasq=True)
    one = network.attach()
    before = network.masquerading, network.reserved, links(network.node)
    with pytest.raises(Refused, match=r'^container interface name "eth0" already exists$'):
        one.network.run("ADD", one.environ)
    with pytest.raises(Refused, match=r"10.1.2.2 has been allocated to .*, duplicate allocation is not allowed$"):
        network.attachment(id=one.id).add()  # from another namespace
    assert (network.masquerading, network.reserved, links(network.node)) == before
    one.check()


def test_an_interface_of_that_name(network: Network) -> None:
    one = network.attachment()
    one.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    with pytest.raises(Refused, match=r'^container interface name "eth0" already exists$'):
        one.add()
    assert one.link["linkinfo"]["info_kind"] == "bridge"
    assert network.reserved == set()
    assert links(network.node) == {"lo"}


# What IPAM gives, and what ADD has to say to it.
FAILING: list[tuple[str, Json, str]] = [
    ("no addresses", {}, r"^IPAM plugin returned missing IP config$"),
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
        "an address that the container cannot have",
        {"ips": [{"address": "ff02::1/64", "gateway": "fd00::1"}]},
        r"add the address ff02::1/64 ",
    ),
    (
        "a gateway that is the container",
        {"ips": [{"address": "10.7.3.98/24", "gateway": "10.7.3.98"}]},
        r"^ptp needs a gateway for 10.7.3.98/24, another IPv4 address: IPAM named 10.7.3.98$",
    ),
    (
        "a route's gateway that cannot be reached",
        {
            "ips": [{"address": "10.7.3.98/24", "gateway": "10.7.3.1"}],
            "routes": [{"dst": "192.0.2.0/24", "gw": "172.31.0.1"}],
        },
        r"add the route 192.0.2.0/24 via 172.31.0.1 ",
    ),
    (
        "an IPv6 route's gateway that cannot be reached",
        {
            "ips": [{"address": "fd00::99/64", "gateway": "fd00::1"}],
            "routes": [{"dst": "2001:db8:f::/48", "gw": "2001:db8:eeee::1"}],
        },
        r"add the route 2001:db8:f::/48 via 2001:db8:eeee::1 ",
    ),
    (
        "a route twice",
        {
            "ips": [{"address": "10.7.3.98/24", "gateway": "10.7.3.1"}],
            "routes": [{"dst": "192.0.2.0/24"}, {"dst": "192.0.2.0/24"}],
        },
        r"add the route 192.0.2.0/24 via 10.7.3.1 .*: file exists",
    ),
]


@pytest.mark.parametrize(("answer", "message"), [case[1:] for case in FAILING], ids=[case[0] for case in FAILING])
def test_what_cannot_be_set_up_leaves_nothing(network: Network, answer: Json, message: str) -> None:
    network.config.update(ipMasq=True)
    log = network.ipam_answers(**answer)
    one = network.attachment()
    with pytest.raises(Refused, match=message):
        one.add()
    assert log.read_text().split() == ["ADD", "DEL"]
    leaves_nothing(network, one.container)


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_masquerading_that_fails(
    network: Network, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.config.update(ipMasq=True, ipMasqBackend=backend)
    for command in ("iptables", "iptables-restore"):
        (tmp_path / command).symlink_to(shutil.which(command) or command)
    if backend == "iptables":
        (tmp_path / "iptables-restore").unlink()
        (tmp_path / "iptables-restore").symlink_to("/bin/false")
    else:  # of another type than what the chain is to be
        network.node.nft("add table inet cni_plugins_masquerade")
        network.node.nft("add chain inet cni_plugins_masquerade postrouting { type filter hook input priority 0 ; }")
    monkeypatch.setenv("PATH", str(tmp_path))
    one = network.attachment()
    with pytest.raises(Refused):
        one.add()
    monkeypatch.undo()
    leaves_nothing(network, one.container)


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
        leaves_nothing(network, one.container)


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
    with pytest.raises(Refused) as refusal:
        one.add(**keys)
    assert str(refusal.value).startswith(message)
    leaves_nothing(network, one.container)


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
        leaves_nothing(network, one.container)
        return
    one = network.attach()
    assert pings(one.container, GATEWAY[4])
    one.check()


# ---- GC and STATUS ----


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_gc_takes_back_what_gone_attachments_held(
    network: Network, backend: str, doomed: Callable[[Node], None]
) -> None:
    network.config.update(ipMasq=True, ipMasqBackend=backend)
    dual_stack(network)
    alive = network.attach()
    expected = network.masquerading, network.reserved
    gone = network.attach()
    doomed(gone.container)
    network.run("GC", {})  # a runtime that does not say what is alive: nothing is known to be gone
    assert len(network.reserved) == 4
    network.gc(alive)
    assert (network.masquerading, network.reserved) == expected
    alive.check()
    network.gc()
    assert (network.masquerading, network.reserved) == ([], set())


def test_status(network: Network, tmp_path: Path) -> None:
    network.status()  # nothing has been made yet
    with pytest.raises(Refused, match=r"^no plugin name provided$") as refusal:
        network.run("STATUS", {}, ipam={})
    assert refusal.value.code == 50
    network.ipam(subnet="10.1.3.0/30")
    network.status()
    network.attach()
    with pytest.raises(Refused, match=r"^no IP addresses available in range set: ") as refusal:
        network.status()
    assert refusal.value.code == 50
    network.paths = [os.fspath(tmp_path)]
    with pytest.raises(Refused, match=r'^failed to find plugin "host-local" in path '):
        network.status()
