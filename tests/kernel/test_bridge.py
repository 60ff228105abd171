"""bridge, from its JSON to packets: what the kernel has in the end is read by other programs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import Attachment, Network, Refused, addresses, link, links, pings, setting

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]

V4, V6 = {"subnet": "10.1.2.0/24"}, {"subnet": "2001:db8:1::/64"}
FAMILIES = {"v4": [[V4]], "v6": [[V6]], "dual stack": [[V4], [V6]]}
GATEWAYS = {4: "10.1.2.1/24", 6: "2001:db8:1::1/64"}


def ports(network: Network) -> set[str]:
    return {link["ifname"] for link in network.node.ip("link") if link.get("master") == "br0"}


def routes(node: Node, family: int = 4, *selector: str) -> set[tuple[str, str | None]]:
    """(destination, gateway) but for the link's own networks."""
    found = node.ip(f"-{family}", "route", "show", *selector) or []
    return {(route["dst"], route.get("gateway")) for route in found if route.get("protocol") != "kernel"}


def mac_of(address: str) -> str:
    """0a:58 and the last four bytes of the address."""
    import ipaddress

    packed = ipaddress.ip_address(address.partition("/")[0]).packed
    return f"0a:58:{packed[-4:].hex(':')}"


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    return make_network(type="bridge", bridge="br0")


@pytest.fixture(params=list(FAMILIES))
def families(request: pytest.FixtureRequest, network: Network) -> list[int]:
    """The network has addresses of these families."""
    network.ipam(ranges=FAMILIES[request.param])
    return {"v4": [4], "v6": [6], "dual stack": [4, 6]}[request.param]


# ---- ADD, CHECK, DEL ----


def test_a_default_gateway(network: Network, families: list[int]) -> None:
    network.config["isDefaultGateway"] = True
    one = network.attach()
    assert addresses(network.node, "br0") == {GATEWAYS[family] for family in families}
    assert ports(network) == {one.port}
    assert [interface["name"] for interface in one.result["interfaces"]] == ["br0", one.port, "eth0"]
    for family in families:
        gateway = GATEWAYS[family].partition("/")[0]
        assert routes(one.container, family) == {("default", gateway)}
        one.check()
        one.container.run(["ip", f"-{family}", "route", "delete", "default"])
        destination = {4: "0.0.0.0/0", 6: "::/0"}[family]
        assert one.refused("CHECK") == f"Expected Route {destination} via {gateway} not found in routing table"
        one.container.run(["ip", f"-{family}", "route", "add", "default", "via", gateway])


def test_a_gateway_without_addresses(network: Network) -> None:
    network.attach(ipam={}, isGateway=True, ipMasq=True).check()
    assert addresses(network.node, "br0") == set()
    assert network.masquerading == []


def test_two_ipv6_networks_beside_ipv4(network: Network) -> None:
    network.config.update(isDefaultGateway=True)
    network.ipam(ranges=[[V4], [V6], [{"subnet": "2001:db8:2::/64"}]])
    one = network.attach()
    assert addresses(one.container, "eth0") == {"10.1.2.2/24", "2001:db8:1::2/64", "2001:db8:2::2/64"}
    assert addresses(network.node, "br0") == {"10.1.2.1/24", "2001:db8:1::1/64", "2001:db8:2::1/64"}
    # One default route for each family, by its first gateway.
    assert [route["gw"] for route in one.result["routes"]] == ["10.1.2.1", "2001:db8:1::1"]
    assert routes(one.container, 6) == {("default", "2001:db8:1::1")}
    one.check()


def test_containers_reach_each_other_and_the_gateway_at_once(network: Network, families: list[int]) -> None:
    network.config.update(isGateway=True)
    first = network.attach()
    second = network.attach()
    for family in families:
        assert pings(second.container, first.address(family))
        assert pings(first.container, {4: "10.1.2.1", 6: "2001:db8:1::1"}[family])


@pytest.mark.parametrize("enabledad", [False, True])
@pytest.mark.parametrize("gateway", [False, True])
def test_ipv6_addresses_are_usable_on_return(network: Network, enabledad: bool, gateway: bool) -> None:
    network.config.update(isGateway=gateway, enabledad=enabledad)
    network.ipam_answers(ips=[{"address": "2001:db8:1::2/64"}])
    one = network.attach()
    assert addresses(one.container, "eth0") == {"2001:db8:1::2/64"}
    for node, name in ((one.container, "eth0"), (network.node, "br0")):
        of_link = [address for found in node.ip("address", "show", "dev", name) for address in found["addr_info"]]
        of_link = [address for address in of_link if address["scope"] == "global"]
        assert not any(flag in address for address in of_link for flag in ("tentative", "dadfailed"))
    assert setting(one.container, "ipv6/conf/eth0/accept_dad") == str(int(enabledad))


# ---- the bridge ----


def test_a_bridge_that_is_there_is_used(network: Network) -> None:
    network.node.run(["ip", "link", "add", "br0", "mtu", "1400", "type", "bridge"])
    before = link(network.node, "br0")["ifindex"]
    network.attach(mtu=1300)
    after = link(network.node, "br0")
    assert (after["ifindex"], after["mtu"]) == (before, 1300)  # the kernel follows the smallest port
    assert "UP" in after["flags"]
    assert "PROMISC" not in after["flags"]


def test_another_kind_of_device_with_the_bridges_name(network: Network) -> None:
    network.node.run(["ip", "link", "add", "br0", "type", "veth", "peer", "other"])
    one = network.attachment()
    assert one.refused("ADD") == 'failed to create bridge "br0": "br0" already exists but is not a bridge'
    with pytest.raises(Refused, match=r'^"br0" already exists but is not a bridge$') as refusal:
        network.status()
    assert refusal.value.code == 50
    network.leaves_nothing(one.container)
    assert link(network.node, "br0")["linkinfo"]["info_kind"] == "veth"


def test_the_default_name_of_the_bridge(network: Network) -> None:
    del network.config["bridge"]
    one = network.attach()
    assert one.result["interfaces"][0]["name"] == "cni0"
    assert link(network.node, one.port)["master"] == "cni0"
    one.check()


def test_promiscuous_mode(network: Network) -> None:
    network.attach()
    one = network.attach(promiscMode=True)
    assert "PROMISC" in link(network.node, "br0")["flags"]
    one.check()
    one.delete()
    assert "PROMISC" in link(network.node, "br0")["flags"]


@pytest.mark.parametrize(("mtu", "expected"), [(0, 1500), (1380, 1380), (9000, 9000)])
def test_mtu_of_bridge_and_pair(network: Network, mtu: int, expected: int) -> None:
    one = network.attach(mtu=mtu)
    ends = [(network.node, "br0"), (network.node, one.port), (one.container, "eth0")]
    assert [link(node, name)["mtu"] for node, name in ends] == [expected] * 3


@pytest.mark.parametrize("hairpin", [False, True])
@pytest.mark.parametrize("isolated", [False, True])
def test_port_flags(network: Network, hairpin: bool, isolated: bool) -> None:
    one = network.attach(hairpinMode=hairpin, portIsolation=isolated)
    port = link(network.node, one.port)["linkinfo"]["info_slave_data"]
    assert (port["hairpin"], port["isolated"]) == (hairpin, isolated)


def test_isolated_containers_reach_the_node_but_not_one_another(network: Network) -> None:
    network.config.update(isGateway=True, portIsolation=True)
    first, second = network.attach(), network.attach()
    neighbour = network.attach(portIsolation=False)
    assert not pings(first.container, second.address(4), 1)
    assert pings(first.container, neighbour.address(4))
    assert pings(first.container, "10.1.2.1")


@pytest.mark.parametrize("there", ["nothing", "a bridge that is up"])
def test_nothing_a_container_sends_configures_the_node(network: Network, there: str) -> None:
    """CVE-2020-10749: router advertisements."""
    setting(network.node, "ipv6/conf/default/accept_ra", "1")
    if there != "nothing":
        network.node.run(["ip", "link", "add", "br0", "up", "type", "bridge"])
        assert setting(network.node, "ipv6/conf/br0/accept_ra") == "1"
    one = network.attach()
    assert setting(network.node, f"ipv6/conf/{one.port}/accept_ra") == "0"
    assert setting(network.node, "ipv6/conf/br0/accept_ra") == "0"


# ---- gateways ----


FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


@pytest.mark.parametrize("gateway", [False, True])
def test_a_gateway_forwards_the_families_it_has_and_only_a_gateway(
    network: Network, families: list[int], gateway: bool
) -> None:
    for switch in FORWARDING.values():
        setting(network.node, switch, "0")
    one = network.attach(isGateway=gateway)
    on = {family for family, switch in FORWARDING.items() if setting(network.node, switch) == "1"}
    assert on == (set(families) if gateway else set())
    assert len(addresses(network.node, "br0")) == (len(families) if gateway else 0)
    # What the address plugin calls the gateway is passed on either way, and is no default route.
    assert {ip["gateway"] for ip in one.result["ips"]} <= {"10.1.2.1", "2001:db8:1::1"}
    assert routes(one.container, 4) == routes(one.container, 6) == set()


def test_a_gateway_that_the_address_plugin_leaves_open_is_the_networks_first_address(network: Network) -> None:
    network.ipam_answers(ips=[{"address": "10.7.3.99/20"}, {"address": "fd00::99/64"}])
    one = network.attach(isDefaultGateway=True)
    assert [ip["gateway"] for ip in one.result["ips"]] == ["10.7.0.1", "fd00::1"]
    assert addresses(network.node, "br0") == {"10.7.0.1/20", "fd00::1/64"}
    assert routes(one.container, 4) == {("default", "10.7.0.1")}
    assert routes(one.container, 6) == {("default", "fd00::1")}
    one.check()


def test_without_a_gateway_none_is_invented(network: Network) -> None:
    network.ipam_answers(ips=[{"address": "10.7.3.99/20"}])
    one = network.attach()
    assert "gateway" not in one.result["ips"][0]
    assert addresses(network.node, "br0") == set()


@pytest.mark.parametrize("route", [{"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0", "gw": "10.1.2.200"}])
def test_a_default_route_of_the_address_plugin_is_the_only_one(network: Network, route: Json) -> None:
    """Go adds a second one if the first has no gateway, and fails."""
    network.ipam(ranges=FAMILIES["dual stack"], routes=[route])
    one = network.attach(isDefaultGateway=True)
    assert routes(one.container, 4) == {("default", route.get("gw", "10.1.2.1"))}
    assert routes(one.container, 6) == {("default", "2001:db8:1::1")}
    assert len(one.result["routes"]) == 2


def test_an_address_that_is_all_of_its_network(network: Network) -> None:
    ips = [{"address": "10.7.3.99/32"}, {"address": "fd00::99/128"}]
    network.ipam_answers(ips=ips, routes=[{"dst": "10.7.0.1/32", "scope": 253}])
    one = network.attach()
    assert addresses(one.container, "eth0") == {"10.7.3.99/32", "fd00::99/128"}
    assert routes(one.container) == {("10.7.0.1", None)}
    one.check()


# What is on the bridge, the network's gateway, whether that is in its way, and what is there when it was forced.
GATEWAY_ADDRESSES = [
    ("10.1.2.1/24", V4, False, {"10.1.2.1/24"}),
    ("10.1.2.1/16", V4, True, {"10.1.2.1/24"}),
    ("10.9.9.1/24", V4, True, {"10.1.2.1/24"}),
    ("2001:db8:1::1/64", V6, False, {"2001:db8:1::1/64"}),
    ("2001:db8:1::ff/60", V6, True, {"2001:db8:1::1/64"}),
    ("2001:db8:9::1/64", V6, False, {"2001:db8:9::1/64", "2001:db8:1::1/64"}),
    ("10.9.9.1/24", V6, False, {"10.9.9.1/24", "2001:db8:1::1/64"}),
]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("present", "subnet", "conflict", "after"), GATEWAY_ADDRESSES)
def test_an_address_that_the_bridge_has(
    network: Network, present: str, subnet: Json, conflict: bool, after: set[str], force: bool
) -> None:
    for arguments in (["link", "add", "br0", "up", "type", "bridge"], ["address", "add", present, "dev", "br0"]):
        network.node.run(["ip", *arguments])
    network.ipam(ranges=[[subnet]])
    network.config.update(isGateway=True, forceAddress=force)
    one = network.attachment()
    if not conflict or force:
        one.add()
        assert addresses(network.node, "br0") == after
        return
    wanted = "2001:db8:1::1/64" if subnet is V6 else "10.1.2.1/24"
    message = f'^failed to set bridge addr: "br0" already has an IP address different from {wanted}$'
    with pytest.raises(Refused, match=message) as refusal:
        one.add()
    assert present in refusal.value.details
    assert addresses(network.node, "br0") == {present}
    network.leaves_nothing(one.container)


# ---- hardware addresses ----


@pytest.mark.parametrize(
    ("ranges", "gateway"),
    [
        ([[V4]], "10.1.2.1"),
        ([[V6]], "2001:db8:1::1"),
        ([[V4], [V6]], "10.1.2.1"),
        ([[V6], [V4]], "10.1.2.1"),
    ],
)
def test_the_bridges_hardware_address_follows_from_the_gateways(
    network: Network, ranges: list[Any], gateway: str
) -> None:
    network.config["isGateway"] = True
    network.ipam(ranges=ranges)
    for _ in range(2):
        one = network.attach()
        assert link(network.node, "br0")["address"] == one.result["interfaces"][0]["mac"] == mac_of(gateway)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_bridge_keeps_its_mac_while_ports_come_and_go(
    network: Network, families: list[int], deterministic: bool
) -> None:
    network.config.update(isGateway=True, deterministicMAC=deterministic)
    first = network.attach()
    mac = link(network.node, "br0")["address"]
    assert (mac == mac_of("10.1.2.1" if 4 in families else "2001:db8:1::1")) == deterministic
    # One that sorts below every other would become the bridge's, had it not been set.
    network.node.run(
        ["ip", "link", "add", "low", "address", "00:00:00:00:00:01", "master", "br0", "type", "veth", "peer", "x"]
    )
    second = network.attach()
    for one in (first, second):
        one.check()
        assert one.result["interfaces"][0]["mac"] == link(network.node, "br0")["address"] == mac
        one.delete()
    assert link(network.node, "br0")["address"] == mac


def test_check_does_not_mind_the_mac_of_a_bridge_that_is_no_gateway(network: Network) -> None:
    """It is the lowest of the ports' MACs, and so changes when another container comes."""
    one = network.attach()
    network.node.run(
        ["ip", "link", "add", "low", "address", "00:00:00:00:00:01", "master", "br0", "type", "veth", "peer", "x"]
    )
    assert link(network.node, "br0")["address"] == "00:00:00:00:00:01"
    one.check()


def test_the_macs_of_first_adds_at_once(network: Network) -> None:
    """All report the MAC that the bridge has in the end."""
    network.config.update(isGateway=True, deterministicMAC=False)
    network.call = network.by_executable
    attachments = [network.attachment() for _ in range(8)]
    with ThreadPoolExecutor(len(attachments)) as threads:
        list(threads.map(Attachment.add, attachments))
    for one in attachments:
        one.check()


# ---- without addresses ----


def test_the_containers_interface_left_down(network: Network) -> None:
    network.config["ipam"] = {}
    one = network.attach(disableContainerInterface=True)
    assert "UP" not in link(one.container, "eth0")["flags"]
    (found,) = one.container.ip("address", "show", "dev", "eth0")
    assert found["addr_info"] == []
    one.check()


# ---- CHECK ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bridge, port, inside: [inside], "Interface name missing"),
        (lambda bridge, port, inside: [bridge, inside], "CNI veth created for bridge br0 was not found"),
        (lambda *all: [{**one, "sandbox": "/x"} for one in all], "Interface br0 should not be in sandbox"),
    ],
)
def test_check_of_a_result_that_is_another(network: Network, change: Callable[..., list[Json]], message: str) -> None:
    one = network.attach()
    previous = {**one.result, "interfaces": change(*one.result["interfaces"])}
    assert one.refused("CHECK", prevResult=previous).startswith(message)


# ---- DEL and GC ----


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_del_when_the_bridge_is_gone(network: Network, backend: str) -> None:
    network.config.update(isGateway=True, ipMasq=True, ipMasqBackend=backend)
    network.ipam(ranges=FAMILIES["dual stack"])
    one = network.attach()
    network.node.run(["ip", "link", "delete", "br0"])
    one.delete()
    network.leaves_nothing(one.container)


def test_gc_spares_other_networks(network: Network) -> None:
    network.config.update(isGateway=True, ipMasq=True)
    one, other = network.attach(), network.attach(name="other")
    network.gc()
    other.check()
    other.delete()
    one.delete()
    network.leaves_nothing(one.container, other.container)


def test_the_bridge_outlives_the_last_container(network: Network) -> None:
    network.config.update(isGateway=True)
    network.attach().delete()
    assert addresses(network.node, "br0") == {"10.1.2.1/24"}


# ---- ADD that fails ----


def test_chained_the_result_is_its_own(network: Network) -> None:
    """Whatever the plugins before it made is neither touched nor told, as with Go."""
    first = network.attach()
    second = network.attachment(first.container, id=first.id, ifname="net1")
    second.add(prevResult=first.result)
    assert [interface["name"] for interface in second.result["interfaces"]] == ["br0", second.port, "net1"]
    assert [ip["address"] for ip in second.result["ips"]] == ["10.1.2.3/24"]
    second.check()
    first.check()


@pytest.mark.slow
def test_an_ipv6_address_that_another_host_has(network: Network) -> None:
    network.config.update(isGateway=True, enabledad=True)
    network.ipam(ranges=FAMILIES["v6"])
    first = network.attach()
    first.container.run(["ip", "address", "add", "2001:db8:1::3/64", "dev", "eth0", "nodad"])
    second = network.attachment()
    with pytest.raises(Refused, match=r"address 2001:db8:1::3 in DADFAILED state"):
        second.add()
    assert links(second.container) == {"lo"}
    assert network.reserved == {"2001:db8:1::2"}
    assert ports(network) == {first.port}


def test_an_mtu_that_the_kernel_refuses(network: Network) -> None:
    network.attach().delete()
    one = network.attachment()
    assert one.refused("ADD", mtu=67).startswith("failed to make veth pair: ")
    network.leaves_nothing(one.container)


TRUNKS = [
    ([{"minID": 0, "maxID": 5}], "incorrect trunk minID parameter"),
    ([{"minID": 4095, "maxID": 5}], "incorrect trunk minID parameter"),
    ([{"minID": 1, "maxID": 0}], "incorrect trunk maxID parameter"),
    ([{"minID": 1, "maxID": 4095}], "incorrect trunk maxID parameter"),
    ([{"minID": 6, "maxID": 5}], "minID is greater than maxID in trunk parameter"),
    ([{"maxID": 5}], "minID and maxID should be configured simultaneously, minID is missing"),
    ([{"minID": 5}], "minID and maxID should be configured simultaneously, maxID is missing"),
    ([{"id": 5}, {"id": 0}], "incorrect trunk id parameter"),
    ([{"id": 4095}], "incorrect trunk id parameter"),
    ([{"id": -1}], "incorrect trunk id parameter"),
]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        *(({"vlanTrunk": trunk}, message) for trunk, message in TRUNKS),
        *(
            (
                {"bridge": name, "vlan": 100, "isGateway": True},
                f'failed to create vlan interface: "{name}.100" is longer',
            )
            for name in ("averylongbri", "brückebrüc")
        ),
        ({"vlan": -100}, "failed to load netconf: vlan: -100 "),
        ({"vlan": 5000}, "failed to load netconf: vlan: 5000 "),
        ({"mtu": -1}, "failed to load netconf: mtu: -1 "),
        ({"portIsolation": "true"}, 'failed to load netconf: portIsolation: "true" is not true or false'),
        (
            {"hairpinMode": True, "promiscMode": True},
            "cannot set hairpin mode and promiscuous mode at the same time",
        ),
        ({"disableContainerInterface": True}, "cannot use IPAM when DisableContainerInterface flag is set"),
    ],
)
def test_configurations_that_cannot_be(network: Network, keys: Json, message: str) -> None:
    one = network.attachment()
    with pytest.raises(Refused) as refusal:
        one.add(**keys)
    assert refusal.value.code == 999
    assert str(refusal.value).startswith(message)
    network.leaves_nothing(one.container)
    assert "br0" not in links(network.node)
