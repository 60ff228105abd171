"""macvlan, from its JSON to packets: what the kernel has in the end is read by other programs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel.netns import NetNS
from cni.spec import version
from cni_plugins.main.macvlan import plugin
from tests.waiting import LIMIT

from .conftest import Attachment, Network, Refused, addresses, links, pings, setting

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]

V4, V6 = [{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]
FAMILIES = {"v4": [V4], "v6": [V6], "dual stack": [V4, V6]}
GATEWAY = {4: "10.1.2.1", 6: "2001:db8:1::1"}
WITH_IPS_LIST = [spec for spec in version.ALL if version.at_least(spec, "0.3.0")]
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


def quick(container: Node) -> Node:
    """No duplicate address detection, which takes a second or two."""
    setting(container, "ipv6/conf/default/accept_dad", "0")
    return container


def attach(network: Network, **keys: Any) -> Attachment:
    return network.attach(quick(network.node.container()), **keys)


def master(node: Node, name: str = "up0") -> Json:
    found: list[Json] = node.ip("link", "show", "dev", name)
    return found[0]


def kind(one: Attachment) -> tuple[str, str]:
    info = one.link["linkinfo"]
    return info["info_kind"], info["info_data"]["mode"]


def leaves_nothing(network: Network, *containers: Node) -> None:
    for container in containers:
        assert links(container) == {"lo"}
    assert network.reserved == set()


# ---- ADD, CHECK, DEL ----


@pytest.mark.parametrize("ranges", FAMILIES.values(), ids=list(FAMILIES))
@pytest.mark.parametrize("spec", version.ALL)
def test_life_of_an_attachment_in_every_version(network: Network, ranges: list[Any], spec: str) -> None:
    families = [6 if ":" in entry["subnet"] else 4 for (entry,) in ranges]
    network.config["cniVersion"] = spec
    network.ipam(ranges=ranges, routes=[{"dst": {4: "0.0.0.0/0", 6: "::/0"}[family]} for family in families])
    one = attach(network)
    assert one.result["cniVersion"] == spec
    assert kind(one) == ("macvlan", "bridge")
    assert {"UP", "LOWER_UP"} <= set(one.link["flags"])
    assert one.link["link_index"] == master(network.node)["ifindex"]
    assert addresses(one.container, "eth0") == set(one.addresses)
    for family in families:
        (default,) = one.container.ip(f"-{family}", "route", "show", "default")
        assert (default["gateway"], default["dev"]) == (GATEWAY[family], "eth0")
        assert pings(one.container, GATEWAY[family])
    if version.at_least(spec, "0.3.0"):
        interface = {"name": "eth0", "mac": one.link["address"], "sandbox": one.container.path}
        assert one.result["interfaces"] == [interface]
        assert {ip["interface"] for ip in one.result["ips"]} == {0}
    if version.at_least(spec, "0.4.0"):
        one.check()
    else:
        with pytest.raises(Refused, match=r"^config version does not allow CHECK$"):
            one.check()
    one.delete()
    leaves_nothing(network, one.container)
    one.delete()


@pytest.mark.parametrize("way", ["executable", "from another namespace"])
def test_the_other_ways_to_be_run(network: Network, plugins: Path, way: str) -> None:
    """As a process, and as the agent does it: in process, but for another namespace than its own."""
    one = network.attachment()

    def run(command: str, **keys: Any) -> Any:
        config = json.dumps({**network.config, **keys})
        variables = {**one.environ, "CNI_COMMAND": command, "CNI_PATH": str(plugins)}
        if way == "executable":
            return json.loads(network.node.run([str(plugins / "macvlan")], config, variables).stdout or "null")
        with NetNS.open(network.node.path) as host:
            outcome = plugin.serve(variables, config.encode, print, host)
        assert outcome.error is None
        return json.loads(outcome.stdout or "null")

    one.result = run("ADD")
    assert addresses(one.container, "eth0") == set(one.addresses)
    assert run("CHECK", prevResult=one.result) is None
    assert run("STATUS") is None
    assert run("DEL", prevResult=one.result) is None
    leaves_nothing(network, one.container)


def test_addresses_are_announced_and_outlive_the_link_going_down(network: Network) -> None:
    network.ipam(ranges=FAMILIES["dual stack"])
    one = attach(network)
    assert setting(one.container, "ipv4/conf/eth0/arp_notify") == "1"
    assert setting(one.container, "ipv6/conf/eth0/ndisc_notify") == "1"
    one.container.run(["ip", "link", "set", "eth0", "down"])
    assert addresses(one.container, "eth0") == set(one.addresses)


@pytest.mark.slow
def test_an_ipv6_address_that_another_host_has(network: Network, outside: Node) -> None:
    network.ipam(ranges=[V6])
    outside.run(["ip", "address", "add", "2001:db8:1::2/64", "dev", "eth0", "nodad"])
    one = network.attachment()
    with pytest.raises(Refused, match=r"address 2001:db8:1::2 in DADFAILED state"):
        one.add()
    leaves_nothing(network, one.container)


def test_two_interfaces_of_one_container(network: Network) -> None:
    first = network.attach()
    second = network.attachment(first.container, ifname="net1")
    second.add()
    assert (first.addresses, second.addresses) == (["10.1.2.2/24"], ["10.1.2.3/24"])
    second.delete()
    assert links(first.container) == {"lo", "eth0"}
    first.check()


# ---- modes ----

# Whether containers on one master reach each other.
MODES = {"": True, "bridge": True, "private": False, "vepa": False}


@pytest.mark.parametrize("mode", MODES)
def test_modes(network: Network, mode: str) -> None:
    network.config["mode"] = mode
    one, other = network.attach(), network.attach()
    assert kind(one) == ("macvlan", mode or "bridge")
    assert pings(one.container, GATEWAY[4])
    assert pings(one.container, other.address(4), LIMIT if MODES[mode] else 0.2) == MODES[mode]
    one.check()
    one.delete()


def test_passthru_takes_over_the_master(network: Network) -> None:
    network.config["mode"] = "passthru"
    one = network.attach()
    assert kind(one) == ("macvlan", "passthru")
    # Another MAC here would be another MAC of the node's device.
    assert one.link["address"] == one.result["interfaces"][0]["mac"] == MASTER_MAC
    assert pings(one.container, GATEWAY[4])
    one.check()
    two = network.attachment()
    with pytest.raises(Refused, match=r"^failed to create macvlan: create the macvlan eth0: "):
        two.add()
    assert links(two.container) == {"lo"}
    assert network.reserved == {one.address(4)}
    one.delete()
    leaves_nothing(network, one.container)
    assert master(network.node)["address"] == MASTER_MAC


def test_a_mac_asked_for_in_passthru_mode_is_the_masters_too_until_del(network: Network) -> None:
    mac = "02:00:00:00:00:07"
    one = network.attach(mode="passthru", mac=mac)
    assert one.link["address"] == one.result["interfaces"][0]["mac"] == master(network.node)["address"] == mac
    assert pings(one.container, GATEWAY[4])
    one.check(mode="passthru")
    one.delete()
    assert master(network.node)["address"] == MASTER_MAC


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
    with pytest.raises(Refused, match=r"^no default route interface found$"):
        one.add()
    leaves_nothing(network, one.container)
    network.node.run(["ip", "link", "add", "other", "up", "type", "veth", "peer", "its-end"])
    network.node.run(["ip", "route", "add", "default", "dev", "other", "metric", "200"])
    network.node.run(["ip", "route", "add", "default", "dev", "up0", "metric", "100"])
    one.add()
    assert pings(one.container, GATEWAY[4])
    network.node.run(["ip", "route", "delete", "default", "dev", "up0"])
    one.check()  # whatever the default route has become since
    assert network.attach().link["link_index"] == master(network.node, "other")["ifindex"]


def test_a_default_route_of_ipv6_will_do(network: Network) -> None:
    del network.config["master"]
    network.node.run(["ip", "-6", "route", "add", "default", "dev", "up0"])
    assert network.attach().link["link_index"] == master(network.node)["ifindex"]


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
    leaves_nothing(network, container)
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
    assert one.link["link_index"] == master(network.node)["ifindex"]
    one.check(master="mv0")


def test_no_such_master(network: Network) -> None:
    network.config["master"] = "up1"
    one = network.attachment()
    with pytest.raises(Refused, match=r'^failed to lookup master "up1": Link not found$'):
        one.add()
    with pytest.raises(Refused, match=r'^failed to lookup master "up1": Link not found$') as refusal:
        network.status()
    assert refusal.value.code == 50
    leaves_nothing(network, one.container)
    one.delete()


def test_a_master_that_cannot_be_one(network: Network) -> None:
    one = network.attachment()
    with pytest.raises(Refused, match=r"^failed to create macvlan: create the macvlan eth0: "):
        one.add(master="lo")
    leaves_nothing(network, one.container)


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
    leaves_nothing(network, one.container)


# ---- hardware addresses ----


@pytest.mark.parametrize(
    ("ranges", "mac"),
    [([V4], "0a:58:0a:01:02:02"), ([V6], "0a:58:00:00:00:02"), ([V6, V4], "0a:58:0a:01:02:02")],
)
def test_hardware_addresses_follow_from_ip_addresses(network: Network, ranges: list[Any], mac: str) -> None:
    network.ipam(ranges=ranges)
    one = attach(network)
    assert one.link["address"] == one.result["interfaces"][0]["mac"] == mac


def test_hardware_addresses_left_to_the_kernel(network: Network) -> None:
    one = network.attach(deterministicMAC=False)
    assert one.link["address"] == one.result["interfaces"][0]["mac"]
    assert not one.link["address"].startswith("0a:58:")


def test_a_hardware_address_that_follows_from_two_addresses(network: Network) -> None:
    """Two networks on one master, whose IPv6 addresses end alike: a MAC of its own for the second, as in Go."""
    network.ipam(ranges=[V6])
    first = attach(network)
    network.config["name"] = "other"
    network.ipam(ranges=[[{"subnet": "2001:db8:2::/64"}]])
    second = attach(network)
    assert (first.addresses, second.addresses) == (["2001:db8:1::2/64"], ["2001:db8:2::2/64"])
    assert first.link["address"] == "0a:58:00:00:00:02"
    assert second.link["address"] == second.result["interfaces"][0]["mac"] != first.link["address"]
    assert pings(first.container, GATEWAY[6])
    second.check()
    second.delete()
    assert links(second.container) == {"lo"}


MACS = {"key": "02:00:00:00:00:11", "args": "02:00:00:00:00:12", "capability": "02:00:00:00:00:13"}


@pytest.mark.parametrize(
    ("given", "winner"),
    [
        (["key"], "key"),
        (["args"], "args"),
        (["capability"], "capability"),
        (["key", "args"], "args"),
        (["key", "capability"], "capability"),
        (["args", "capability"], "capability"),
        (["key", "args", "capability"], "capability"),
    ],
)
@pytest.mark.parametrize("layer", [2, 3])
def test_a_mac_that_is_asked_for(network: Network, given: list[str], winner: str, layer: int) -> None:
    args = f"IgnoreUnknown=true;K8S_POD_NAME=p;MAC={MACS['args']}" if "args" in given else ""
    one = network.attachment(args=args)
    if layer == 2:
        network.config["ipam"] = {}
    if "key" in given:
        network.config["mac"] = MACS["key"]
    if "capability" in given:
        network.config["runtimeConfig"] = {"Mac": MACS["capability"].upper()}
    one.add()
    assert one.link["address"] == one.result["interfaces"][0]["mac"] == MACS[winner]
    one.check()


def test_a_mac_that_is_taken(network: Network) -> None:
    first = network.attach(mac=MACS["key"])
    one = network.attachment()
    with pytest.raises(Refused, match=r"address already in use"):
        one.add(mac=MACS["key"])
    assert links(one.container) == {"lo"}
    assert network.reserved == {first.address(4)}


@pytest.mark.parametrize(
    ("mac", "message"),
    [
        ("02:00:00:00:00:zz", "invalid args 02:00:00:00:00:zz for MAC addr: address 02:00:00:00:00:zz: invalid MAC"),
        ("01:00:5e:00:00:01", "failed to create macvlan: "),  # a group's
    ],
)
def test_no_mac(network: Network, mac: str, message: str) -> None:
    one = network.attachment()
    with pytest.raises(Refused, match=f"^{message}"):
        one.add(runtimeConfig={"mac": mac})
    leaves_nothing(network, one.container)


# ---- without addresses, and with those of a DHCP server ----


@pytest.mark.parametrize("spec", WITH_IPS_LIST)
def test_layer_2(network: Network, spec: str) -> None:
    network.config.update(cniVersion=spec, ipam={})
    one = network.attach()
    assert one.addresses == []
    assert {"UP", "LOWER_UP"} <= set(one.link["flags"])
    assert addresses(one.container, "eth0") == set()
    if version.at_least(spec, "0.4.0"):
        one.check()
    one.delete()
    leaves_nothing(network, one.container)


@pytest.mark.parametrize("spec", sorted({*version.ALL}.difference(WITH_IPS_LIST)))
def test_layer_2_in_versions_that_cannot_say_it(network: Network, spec: str) -> None:
    network.config.update(cniVersion=spec, ipam={})
    one = network.attachment()
    with pytest.raises(Refused, match=r"^cannot convert: no valid IP addresses$"):
        one.add()
    leaves_nothing(network, one.container)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("dhcp", ["ADD eth0", "CHECK eth0", "DEL eth0"]), ("program", ["ADD", "CHECK eth0", "DEL"])],
)
def test_dhcp_alone_is_asked_over_the_link(network: Network, name: str, asked: list[str]) -> None:
    """Of others the address is known before the link is made, and given back when it is gone."""
    notes = network.state.with_name("notes")
    answer = json.dumps({"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.77/24", "gateway": "10.1.2.1"}]})
    look = "nsenter --net=$CNI_NETNS ip -o link show eth0 | cut -d' ' -f2"
    network.ipam_program(f"echo $CNI_COMMAND $({look}) >>{notes}\n[ $CNI_COMMAND != ADD ] || echo '{answer}'", name)
    one = network.attach()
    assert addresses(one.container, "eth0") == {"10.1.2.77/24"}
    assert one.link["address"] == one.result["interfaces"][0]["mac"]
    assert pings(one.container, GATEWAY[4])
    one.check()
    one.delete()
    assert [line.split("@")[0] for line in notes.read_text().splitlines()] == asked
    leaves_nothing(network, one.container)


@pytest.mark.parametrize("configured", [None, {"nameservers": ["192.0.2.1"], "domain": "own.example"}])
def test_dns_is_the_configurations(network: Network, tmp_path: Path, configured: Json | None) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 192.0.2.53\ndomain file.example\n")
    network.ipam(ranges=[V4], resolvConf=str(resolv_conf))
    assert network.attach(dns=configured).result.get("dns", {}) == (configured or {})


# ---- CHECK ----

# What is done in the container and on the node, and what CHECK has to say to it.
TAMPERED = [
    ("link gone", "ip link delete eth0", "", "Container interface eth0 not found in "),
    (
        "link of another kind",
        "ip link delete eth0 && ip link add eth0 type bridge",
        "",
        "Error: Container interface eth0 not of type macvlan",
    ),
    (
        "MAC",
        "ip link set eth0 address 02:00:00:00:00:99",
        "",
        "Interface eth0 Mac 0a:58:0a:01:02:02 doesn't match container Mac: 02:00:00:00:00:99",
    ),
    (
        "mode",
        "ip link set eth0 type macvlan mode vepa",
        "",
        "container macvlan mode vepa does not match expected value: bridge",
    ),
    ("down", "ip link set eth0 down", "", "Interface eth0 is down"),
    ("MTU", "ip link set eth0 mtu 1300", "", "Interface eth0 MTU 1300 does not match configured MTU: 1400"),
    ("address", "ip address delete 10.1.2.2/24 dev eth0", "", "Failed to match addr 10.1.2.2/24 on interface eth0"),
    (
        "IPv6 address",
        "ip address delete 2001:db8:1::2/64 dev eth0",
        "",
        "Failed to match addr 2001:db8:1::2/64 on interface eth0",
    ),
    ("network's route", "ip route delete 10.1.2.0/24", "", "Failed to find Gateway 10.1.2.1 for interface eth0"),
    ("route", "ip route delete default", "", "Expected Route 0.0.0.0/0 not found in routing table"),
    ("master gone", "", "ip link delete up0", 'failed to lookup master "up0": Link not found'),
    (
        "master with another name",
        "",
        "ip link set up0 down && ip link set up0 name up1",
        'failed to lookup master "up0": Link not found',
    ),
    (
        "another master of that name",
        "",
        "ip link set up0 down && ip link set up0 name up1 && ip link add up0 type veth peer up2",
        "Container interface eth0 does not have master up0",
    ),
    ("master's MTU", "", "ip link set up0 mtu 1000", "Interface eth0 MTU 1000 does not match configured MTU: 1400"),
    (
        "address given up",
        "",
        "rm STATE/net/10.1.2.2 STATE/net/2001:db8:1::2",
        "host-local: Failed to find address added by container ",
    ),
]


@pytest.mark.parametrize(
    ("inside", "on_node", "message"), [case[1:] for case in TAMPERED], ids=[case[0] for case in TAMPERED]
)
def test_check_names_what_is_not_as_add_left_it(network: Network, inside: str, on_node: str, message: str) -> None:
    network.config["mtu"] = 1400
    network.ipam(ranges=FAMILIES["dual stack"], routes=[{"dst": "0.0.0.0/0"}])
    one = attach(network)
    one.check()
    one.container.run(["sh", "-ec", inside])
    network.node.run(["sh", "-ec", on_node.replace("STATE", str(network.state))])
    with pytest.raises(Refused) as refusal:
        one.check()
    assert message in str(refusal.value)
    one.delete()
    leaves_nothing(network, one.container)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: None, "Required prevResult missing"),
        (lambda result: {**result, "interfaces": []}, "Sandbox in prevResult doesn't match"),
        (
            lambda result: {**result, "interfaces": [{**result["interfaces"][0], "sandbox": ""}]},
            "Sandbox in prevResult doesn't match",
        ),
    ],
)
def test_check_of_a_result_that_is_another(
    network: Network, change: Callable[[Json], Json | None], message: str
) -> None:
    one = network.attach()
    with pytest.raises(Refused, match=f"^{message}"):
        one.check(prevResult=change(one.result))


# ---- DEL ----


@pytest.mark.parametrize("way", ["no namespace", "namespace gone", "link gone", "master gone"])
def test_del_takes_back_everything(network: Network, way: str, doomed: Callable[[Node], None]) -> None:
    one, other = network.attach(), network.attach()
    if way == "namespace gone":
        doomed(one.container)
    if way == "link gone":
        one.container.run(["ip", "link", "delete", "eth0"])
    if way == "master gone":
        network.node.run(["ip", "link", "delete", "up0"])
    for _ in range(2):
        one.delete(CNI_ARGS="no pairs", **({"CNI_NETNS": ""} if way == "no namespace" else {}))
        assert network.reserved == {other.address(4)}


def test_del_without_add(network: Network) -> None:
    one = network.attachment()
    one.delete()
    leaves_nothing(network, one.container)


def test_del_goes_on_past_failures(network: Network, tmp_path: Path) -> None:
    one = network.attach()
    network.paths = [str(tmp_path)]
    with pytest.raises(Refused, match=r'^failed to find plugin "host-local" in path '):
        one.delete()
    assert links(one.container) == {"lo"}


# ---- ADD that fails ----


def test_an_address_outside_its_range(network: Network) -> None:
    one = network.attachment()
    with pytest.raises(Refused, match=r"^failed to allocate all requested IPs: 192.0.2.1$"):
        one.add(runtimeConfig={"ips": ["192.0.2.1"]})
    leaves_nothing(network, one.container)


def test_the_same_add_twice(network: Network) -> None:
    one = network.attach()
    with pytest.raises(Refused, match=r'^container interface name "eth0" already exists$'):
        network.run("ADD", one.environ)
    with pytest.raises(Refused, match=r"10.1.2.2 has been allocated to .*, duplicate allocation is not allowed$"):
        network.attachment(id=one.id).add()  # from another namespace
    assert network.reserved == {"10.1.2.2"}
    one.check()


def test_an_interface_of_that_name(network: Network) -> None:
    one = network.attachment()
    one.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    with pytest.raises(Refused, match=r'^container interface name "eth0" already exists$'):
        one.add()
    assert one.link["linkinfo"]["info_kind"] == "bridge"
    assert network.reserved == set()


def test_the_nodes_names_are_not_the_containers(network: Network) -> None:
    network.node.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "its-end"])
    network.attach().check()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, r"^IPAM plugin returned missing IP config$"),
        (
            {"ips": [{"address": "10.1.2.9/24"}], "routes": [{"dst": "192.0.2.0/24", "gw": "172.31.0.1"}]},
            r"add the route 192.0.2.0/24 via 172.31.0.1 ",
        ),
        ({"ips": [{"address": "ff02::1/64"}]}, r"add the address ff02::1/64 "),
    ],
)
def test_what_cannot_be_set_up_leaves_nothing(network: Network, answer: Json, message: str) -> None:
    log = network.ipam_answers(**answer)
    one = network.attachment()
    with pytest.raises(Refused, match=message):
        one.add()
    assert log.read_text().split() == ["ADD", "DEL"]
    leaves_nothing(network, one.container)


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
    with pytest.raises(Refused) as refusal:
        one.add(**keys)
    assert str(refusal.value).startswith(message)
    leaves_nothing(network, one.container)


@pytest.mark.parametrize("capability", [{}, {"mac": "02:00:00:00:00:01"}])
def test_unknown_arguments(network: Network, capability: Json) -> None:
    """Whether or not they are looked into for a MAC."""
    one = network.attachment(args="COLOR=blue")
    with pytest.raises(Refused, match="^ARGS: unknown args "):
        one.add(runtimeConfig=capability)
    leaves_nothing(network, one.container)


# ---- GC and STATUS ----


def test_gc_takes_back_what_gone_attachments_held(network: Network, doomed: Callable[[Node], None]) -> None:
    alive, gone = network.attach(), network.attach()
    doomed(gone.container)
    network.gc(alive)
    assert network.reserved == {alive.address(4)}
    alive.check()
    network.gc()
    assert network.reserved == set()


def test_status(network: Network, tmp_path: Path) -> None:
    network.status()  # nothing has been made yet
    network.attach()
    network.status()
    network.run("STATUS", {}, ipam={})
    network.paths = [os.fspath(tmp_path)]
    with pytest.raises(Refused, match=r'^failed to find plugin "host-local" in path '):
        network.status()
