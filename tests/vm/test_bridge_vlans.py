"""bridge with VLANs: what the bridge's ports are in, and who reaches whom."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import LIMIT

from .conftest import Attachment, Network, addresses, links

if TYPE_CHECKING:
    from tests.conftest import Node

V4, V6 = {"subnet": "10.1.2.0/24"}, {"subnet": "fd00:1::/64"}
FAMILIES = {"v4": [[V4]], "v6": [[V6]], "dual stack": [[V4], [V6]]}
NATIVE = ("PVID", "Egress Untagged")


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    return make_network(type="bridge", bridge="br0")


def vlans(node: Node, port: str) -> dict[int, tuple[str, ...]]:
    """The VLANs of a port, with what `bridge` says about each."""
    [found] = json.loads(node.run(["bridge", "-json", "-d", "vlan", "show", "dev", port]).stdout)
    return {
        vlan: tuple(entry.get("flags", ()))
        for entry in found["vlans"]
        for vlan in range(entry["vlan"], entry.get("vlanEnd", entry["vlan"]) + 1)
    }


def link(node: Node, name: str) -> Any:
    [found] = node.ip("link", "show", "dev", name)
    return found


def port_of(one: Attachment) -> str:
    """By the kernel's index, as the old versions' results do not tell it."""
    index = one.link["link_index"]
    return next(str(found["ifname"]) for found in one.network.node.ip("link") if found["ifindex"] == index)


def gateway_port(node: Node, name: str = "br0.100") -> str:
    """The port of the bridge behind a VLAN's gateway."""
    port = str(link(node, name)["link"])
    assert link(node, port)["master"] == "br0"
    return port


# ---- what a port is in ----

TRUNK = [{"id": 101}, {"minID": 200, "maxID": 210}]
IN_TRUNK = dict.fromkeys((101, *range(200, 211)), ())

CASES = {
    "a VLAN": ({"vlan": 100}, {100: NATIVE}),
    "the highest": ({"vlan": 4094}, {4094: NATIVE}),
    "the default one": ({"vlan": 1}, {1: NATIVE}),
    "a trunk": ({"vlanTrunk": TRUNK}, {1: NATIVE, **IN_TRUNK}),
    "both": ({"vlan": 100, "vlanTrunk": TRUNK}, {100: NATIVE, **IN_TRUNK}),
    "kept default": ({"vlan": 100, "preserveDefaultVlan": True}, {1: NATIVE[1:], 100: NATIVE}),
    "both and the default": (
        {"vlan": 100, "vlanTrunk": TRUNK, "preserveDefaultVlan": True},
        {1: NATIVE[1:], 100: NATIVE, **IN_TRUNK},
    ),
    "a trunk and the default": ({"vlanTrunk": TRUNK, "preserveDefaultVlan": True}, {1: NATIVE, **IN_TRUNK}),
    "unsorted, with doubles": (
        {"vlanTrunk": [{"id": 9}, {"minID": 5, "maxID": 7, "id": 6}, {"id": 5}, {"minID": 7, "maxID": 9}, {"id": 3}]},
        {1: NATIVE, **dict.fromkeys((3, 5, 6, 7, 8, 9), ())},
    ),
    "the native one in the trunk": ({"vlan": 100, "vlanTrunk": [{"id": 100}, {"id": 1}]}, {1: (), 100: NATIVE}),
    "the trunk has the default one": ({"vlanTrunk": [{"minID": 1, "maxID": 2}]}, {1: NATIVE, 2: ()}),
    "all": ({"vlan": 7, "vlanTrunk": [{"minID": 1, "maxID": 4094}]}, dict.fromkeys(range(1, 4095), ()) | {7: NATIVE}),
    "every other": (
        {"vlanTrunk": [{"id": vlan} for vlan in range(3, 4095, 2)]},
        {1: NATIVE, **dict.fromkeys(range(3, 4095, 2), ())},
    ),
    "an empty trunk": ({"vlanTrunk": []}, {1: NATIVE}),
    "an idle trunk": ({"vlanTrunk": [{}]}, {1: NATIVE}),
}


@pytest.mark.parametrize(("keys", "expected"), CASES.values(), ids=list(CASES))
def test_vlans_of_a_port(network: Network, keys: dict[str, Any], expected: dict[int, Any]) -> None:
    network.config.update(keys)
    del network.config["ipam"]
    one = network.attach()
    assert vlans(network.node, port_of(one)) == expected
    assert link(network.node, "br0")["linkinfo"]["info_data"]["vlan_filtering"] == 1
    one.check()
    one.delete()
    assert links(network.node) == {"lo", "br0"}
    one.nothing_left()


def test_without_vlans_nothing_is_filtered(network: Network) -> None:
    one = network.attach(vlanTrunk=None)
    assert link(network.node, "br0")["linkinfo"]["info_data"]["vlan_filtering"] == 0
    assert vlans(network.node, port_of(one)) == {1: NATIVE}
    one.check()


@pytest.mark.parametrize(
    ("default", "keys", "expected"),
    [
        (0, {"vlan": 100}, {100: NATIVE}),
        (0, {"vlanTrunk": [{"id": 9}]}, {1: NATIVE, 9: ()}),
        (77, {"vlan": 100}, {100: NATIVE}),
        (77, {"vlan": 77}, {77: NATIVE}),
        (77, {"vlan": 100, "vlanTrunk": [{"id": 77}]}, {77: (), 100: NATIVE}),
        (77, {"vlan": 100, "preserveDefaultVlan": True}, {77: NATIVE[1:], 100: NATIVE}),
    ],
)
def test_another_default_vlan(
    network: Network, default: int, keys: dict[str, Any], expected: dict[int, tuple[str, ...]]
) -> None:
    bridge = ["ip", "link", "add", "br0", "type", "bridge", "vlan_filtering", "1", "vlan_default_pvid", str(default)]
    network.node.run(bridge)
    network.config.update(keys)
    one = network.attach()
    assert vlans(network.node, port_of(one)) == expected
    one.check()


def test_a_bridge_that_does_not_filter(network: Network) -> None:
    """It is used as it is: others rely on it. CHECK says that nothing keeps the VLANs apart."""
    network.node.run(["ip", "link", "add", "br0", "type", "bridge"])
    one = network.attach(vlan=100)
    assert link(network.node, "br0")["linkinfo"]["info_data"]["vlan_filtering"] == 0
    assert vlans(network.node, port_of(one)) == {100: NATIVE}
    assert one.refused("CHECK", vlan=100) == "Bridge interface br0 does not filter VLANs"
    network.node.run(["ip", "link", "set", "br0", "type", "bridge", "vlan_filtering", "1"])
    one.check(vlan=100)


# ---- the gateway of a VLAN ----


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gateway_is_a_link_of_its_own(network: Network, family: str) -> None:
    network.config.update(vlan=100, isDefaultGateway=True, mtu=1400)
    network.ipam(ranges=FAMILIES[family])
    one, other = network.attach(), network.attach()
    node = network.node
    gateways = {"v4": ["10.1.2.1/24"], "v6": ["fd00:1::1/64"], "dual stack": ["10.1.2.1/24", "fd00:1::1/64"]}[family]
    gateway = link(node, "br0.100")
    assert addresses(node, "br0.100") == set(gateways)
    assert addresses(node, "br0") == set()
    assert {"UP", "LOWER_UP"} <= set(gateway["flags"])
    assert gateway["mtu"] == 1400
    assert gateway["address"] == ("0a:58:00:00:00:01" if family == "v6" else "0a:58:0a:01:02:01")
    port = gateway_port(node)
    assert vlans(node, port) == {100: NATIVE}
    assert links(node) == {"lo", "br0", "br0.100", port, port_of(one), port_of(other)}
    for attached in (one, other):
        own = port_of(attached)
        assert attached.result["interfaces"] == [
            {"name": "br0", "mac": link(node, "br0")["address"]},
            {"name": own, "mac": link(node, own)["address"]},
            {"name": "eth0", "mac": attached.link["address"], "sandbox": attached.container.path},
            {"name": "br0.100", "mac": gateway["address"]},
        ]
        for found in gateways:
            assert attached.reaches(found.partition("/")[0])
        attached.check()
    for end in ("br0", "br0.100", port, port_of(one)):
        assert node.run(["cat", f"/proc/sys/net/ipv6/conf/{end}/accept_ra"]).stdout.strip() == "0"
    one.delete()
    other.delete()
    # It stays, as the bridge does, for the next one.
    assert links(node) == {"lo", "br0", "br0.100", port}
    network.attach().check()
    assert gateway_port(node) == port


def test_two_vlans_with_gateways(network: Network) -> None:
    """They have nothing in common but the bridge, which keeps its MAC; the node routes between them."""
    network.config.update(isDefaultGateway=True, vlan=100)
    one = network.attach()
    mac = link(network.node, "br0")["address"]
    network.config.update(vlan=200)
    network.ipam(ranges=[[{"subnet": "10.1.3.0/24"}]])
    network.config["name"] = "other"
    other = network.attach()
    assert addresses(network.node, "br0.100") == {"10.1.2.1/24"}
    assert addresses(network.node, "br0.200") == {"10.1.3.1/24"}
    assert other.reaches(one.address(4))
    network.node.run(["sysctl", "-qw", "net.ipv4.conf.all.forwarding=0"])
    assert not other.reaches(one.address(4), within=1)
    assert one.result["interfaces"][0]["mac"] == other.result["interfaces"][0]["mac"] == mac
    assert link(network.node, "br0")["address"] == mac


def test_left_to_the_kernel(network: Network) -> None:
    one = network.attach(vlan=100, isGateway=True, deterministicMAC=False)
    assert link(network.node, "br0.100")["address"] != "0a:58:0a:01:02:01"
    assert one.result["interfaces"][3]["mac"] == link(network.node, "br0.100")["address"]


def test_without_being_a_gateway_there_is_none(network: Network) -> None:
    one = network.attach(vlan=100)
    assert len(one.result["interfaces"]) == 3
    assert links(network.node) == {"lo", "br0", port_of(one)}


@pytest.mark.parametrize("force", [False, True])
def test_another_address_of_the_gateway(network: Network, force: bool) -> None:
    network.config.update(vlan=100, isGateway=True, forceAddress=force)
    network.attach().delete()
    network.node.run(["ip", "address", "flush", "dev", "br0.100"])
    network.node.run(["ip", "address", "add", "10.9.9.1/24", "dev", "br0.100"])
    if force:
        network.attach()
        assert addresses(network.node, "br0.100") == {"10.1.2.1/24"}
        return
    one = network.attachment()
    assert one.refused("ADD") == (
        "failed to set vlan interface for bridge with addr: "
        '"br0.100" already has an IP address different from 10.1.2.1/24'
    )
    assert addresses(network.node, "br0.100") == {"10.9.9.1/24"}
    one.nothing_left()


@pytest.mark.parametrize(
    "make", ["ip link add link br0 name br0.100 type vlan id 100", "ip link add br0.100 type dummy"]
)
def test_a_gateway_that_is_there(network: Network, make: str) -> None:
    """Whoever made it knows what it leads to."""
    network.attach(vlan=100).delete()
    network.node.run(make.split())
    one = network.attach(vlan=100, isGateway=True)
    assert addresses(network.node, "br0.100") == {"10.1.2.1/24"}
    assert one.result["interfaces"][3] == {"name": "br0.100", "mac": link(network.node, "br0.100")["address"]}
    assert links(network.node) == {"lo", "br0", "br0.100", port_of(one)}


def test_a_gateway_that_was_not_finished(network: Network) -> None:
    """An ADD was killed when it had made the pair and nothing else."""
    network.attach(vlan=100).delete()
    network.node.run(["ip", "link", "add", "br0.100", "type", "veth", "peer", "name", "veth0"])
    network.node.run(["ip", "link", "set", "veth0", "master", "br0"])
    one = network.attach(vlan=100, isGateway=True)
    assert vlans(network.node, "veth0") == {100: NATIVE}
    assert one.reaches("10.1.2.1")


def test_many_first_adds_at_once(network: Network) -> None:
    """Of bridge and gateway there is one each in the end, and each container has reached it."""
    network.config.update(vlan=100, isGateway=True)
    all_of_them = [network.attachment() for _ in range(8)]

    def add(one: Attachment) -> None:
        config = json.dumps(network.config)
        [plugins] = network.paths
        environ = {**one.environ, "CNI_COMMAND": "ADD", "CNI_PATH": plugins}
        one.result = json.loads(network.node.run([f"{plugins}/bridge"], config, environ).stdout)

    with ThreadPoolExecutor(len(all_of_them)) as threads:
        list(threads.map(add, all_of_them))
    assert links(network.node) == {
        "lo",
        "br0",
        "br0.100",
        gateway_port(network.node),
        *(port_of(one) for one in all_of_them),
    }
    for one in all_of_them:
        one.check()
        assert one.reaches("10.1.2.1")


# ---- CHECK ----

TAMPERED = {
    "none": (
        "bridge vlan delete dev PORT vid 100",
        "Interface PORT is not in the VLANs 100 untagged, 101,200-210 tagged",
    ),
    "one less": ("bridge vlan delete dev PORT vid 205", "Interface PORT is not in the VLANs "),
    "one more": ("bridge vlan add dev PORT vid 300", "Interface PORT is not in the VLANs "),
    "another native one": ("bridge vlan add dev PORT vid 101 pvid untagged", "Interface PORT is not in the VLANs "),
    "tagged": ("bridge vlan add dev PORT vid 100", "Interface PORT is not in the VLANs "),
    "no filtering": ("ip link set br0 type bridge vlan_filtering 0", "Bridge interface br0 does not filter VLANs"),
    "no gateway": ("ip link delete br0.100", "Interface name br0.100 not found"),
    "gateway down": ("ip link set br0.100 down", "Interface br0.100 is down"),
    "gateway's MAC": ("ip link set br0.100 address 02:00:00:00:00:01", "Interface br0.100 Mac doesn't match: "),
}


@pytest.mark.parametrize(("command", "message"), TAMPERED.values(), ids=list(TAMPERED))
def test_check_names_what_is_not_as_add_left_it(network: Network, command: str, message: str) -> None:
    network.config.update(vlan=100, vlanTrunk=TRUNK, isGateway=True)
    one, other = network.attach(), network.attach()
    port = port_of(one)
    one.check()
    network.node.run(command.replace("PORT", port).split())
    assert one.refused("CHECK").startswith(message.replace("PORT", port))
    if "PORT" in command:
        other.check()
    one.delete()
    other.delete()
    one.nothing_left()


def test_check_lets_the_default_vlan_be(network: Network) -> None:
    """Older Go plugins leave their ports in it."""
    one = network.attach(vlan=100)
    network.node.run(["bridge", "vlan", "add", "dev", port_of(one), "vid", "1", "untagged"])
    one.check(vlan=100)


def test_go_and_we_check_and_delete_what_the_other_made(network: Network, go_plugins: Path) -> None:
    network.config.update(cniVersion="1.0.0", vlan=100, isGateway=True)
    ours, theirs = network.attach(), network.attachment()

    def go(verb: str, one: Attachment) -> Any:
        environ = {**one.environ, "CNI_COMMAND": verb, "CNI_PATH": str(go_plugins)}
        config = json.dumps({**network.config, **({"prevResult": one.result} if one.result else {})})
        program = str(go_plugins / "bridge")
        return json.loads(network.node.run([program], config, environ).stdout or "null")

    theirs.result = go("ADD", theirs)
    assert theirs.result["interfaces"][3] == ours.result["interfaces"][3]
    assert ours.reaches(theirs.address(4))
    theirs.check()
    go("CHECK", ours)
    theirs.delete()
    go("DEL", ours)
    ours.nothing_left()
    theirs.nothing_left()


# ---- traffic ----


def test_containers_of_one_vlan_reach_each_other_and_nobody_else(network: Network) -> None:
    first, second = network.attach(vlan=100), network.attach(vlan=100)
    elsewhere, nowhere = network.attach(vlan=200), network.attach()
    assert first.reaches(second.address(4))
    assert second.reaches(first.address(4))
    for other in (elsewhere, nowhere):
        assert not first.reaches(other.address(4), within=1)
        assert not other.reaches(first.address(4), within=1)


def test_a_kept_default_vlan(network: Network) -> None:
    """The port gets what is sent there, but what it sends itself goes to its own VLAN: as with the Go plugin."""
    one, plain = network.attach(vlan=100, preserveDefaultVlan=True), network.attach()
    before = received(one)
    plain.container.run(["ping", "-b", "-c3", "-i0.1", "-w1", "10.1.2.255"], check=False)
    assert received(one) > before
    assert not one.reaches(plain.address(4), within=1)


def received(one: Attachment) -> int:
    [found] = one.container.ip("-s", "link", "show", "dev", "eth0")
    return int(found["stats64"]["rx"]["packets"])


def test_tagged_frames_pass_a_trunk(network: Network) -> None:
    """A router with a leg in each VLAN, on one port."""
    trunk = network.attach(vlanTrunk=[{"minID": 100, "maxID": 101}])
    for vlan in (100, 101, 102):
        router = ["ip", "link", "add", "link", "eth0", "name", f"eth0.{vlan}", "type", "vlan", "id", str(vlan)]
        trunk.container.run(router)
        trunk.container.run(["ip", "address", "add", f"10.1.{vlan}.1/24", "dev", f"eth0.{vlan}"])
        trunk.container.run(["ip", "link", "set", f"eth0.{vlan}", "up"])
    for vlan, passes in ((100, True), (101, True), (102, False)):
        network.config["name"] = f"net{vlan}"
        network.ipam(ranges=[[{"subnet": f"10.1.{vlan}.0/24", "rangeStart": f"10.1.{vlan}.9"}]])
        one = network.attach(vlan=vlan)
        assert one.reaches(f"10.1.{vlan}.1", within=LIMIT if passes else 1) == passes
    # Untagged it is in the VLAN 1, with whoever asks for none.
    network.config["name"] = "net"
    network.ipam(ranges=[[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9"}]])
    assert network.attach().reaches(trunk.address(4))


def test_spoofing_in_a_vlan(network: Network) -> None:
    network.config.update(vlan=100, isGateway=True, macspoofchk=True)
    one = network.attach()
    own = one.link["address"]
    assert one.reaches("10.1.2.1")
    for mac, passes in (("02:00:00:00:00:66", False), (own, True)):
        one.container.run(["ip", "link", "set", "eth0", "address", mac])
        one.container.run(["ip", "neigh", "flush", "dev", "eth0"])
        assert one.reaches("10.1.2.1", within=LIMIT if passes else 1) == passes
    one.check()
    one.delete()
    assert not [entry for entry in network.node.nft_ruleset() if "rule" in entry]
