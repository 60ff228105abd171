"""flannel with the plugins that do the work, bridge and host-local if nothing else is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.spec import version

from .conftest import Network, Refused, addresses, links, pings

if TYPE_CHECKING:
    from tests.conftest import Call, Node

Json = dict[str, Any]

V4 = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n"
V6 = "FLANNEL_IPV6_NETWORK=2001:db8::/32\nFLANNEL_IPV6_SUBNET=2001:db8:0:1::1/64\n"
REST = "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
FAMILIES = {"v4": (V4, [4]), "v6": (V6, [6]), "dual stack": (V4 + V6, [4, 6])}
GATEWAY = {4: "10.1.17.1", 6: "2001:db8:0:1::1"}
CLUSTER = {4: "10.1.0.0/16", 6: "2001:db8::/32"}


@pytest.fixture
def make_flannel(make_network: Callable[..., Network], tmp_path: Path) -> Callable[..., Network]:
    """`make_flannel(text of subnet.env, delegate={...})`."""

    def make(env: str, **config: Any) -> Network:
        file = tmp_path / "subnet.env"
        file.write_text(env + REST)
        head = {"type": "flannel", "subnetFile": str(file), "dataDir": str(tmp_path / "flannel")}
        return make_network(**{**head, "ipam": {"dataDir": str(tmp_path / "state")}, **config})

    return make


def kept(network: Network) -> set[str]:
    return {path.name for path in Path(network.config["dataDir"]).glob("*")}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_containers_reach_each_other(family: str, make_flannel: Callable[..., Network], node: Node) -> None:
    env, versions = FAMILIES[family]
    network = make_flannel(env, delegate={"hairpinMode": True})
    one, two = network.attach(), network.attach()
    assert len(one.addresses) == len(versions)
    assert {one.link["mtu"], two.link["mtu"]} == {1450}
    for number in versions:
        assert GATEWAY[number] in {address.split("/")[0] for address in addresses(node, "cni0")}
        assert pings(one.container, two.address(number))
        assert pings(one.container, GATEWAY[number])
        (route,) = one.container.ip(f"-{number}", "route", "show", CLUSTER[number])
        assert route["gateway"] == GATEWAY[number]
    assert network.masquerading == []  # flanneld does it
    one.check()
    assert kept(network) == {name for made in (one, two) for name in (made.id, f"{made.id}:eth0")}

    (Path(network.config["subnetFile"])).unlink()  # nobody but ADD needs it
    two.check()
    for made in (one, one, two):
        made.delete()
    assert links(node) == {"lo", "cni0"}
    assert (kept(network), network.reserved) == (set(), set())


def test_check_tells_what_drifted(make_flannel: Callable[..., Network]) -> None:
    made = make_flannel(V4).attach()
    made.container.run(["ip", "address", "flush", "dev", "eth0"])
    with pytest.raises(Refused, match="failed to delegate check: "):
        made.check()


@pytest.mark.parametrize("spec", version.ALL)
def test_every_version(spec: str, make_flannel: Callable[..., Network]) -> None:
    network = make_flannel(V4 + V6, cniVersion=spec)
    made = network.attach()
    assert made.result["cniVersion"] == spec
    assert made.addresses == ["10.1.17.2/24", "2001:db8:0:1::2/64"]
    if version.at_least(spec, "0.4.0"):
        made.check()
    made.delete()
    assert (kept(network), network.reserved) == (set(), set())


def test_where_flanneld_does_not_masquerade_bridge_does(make_flannel: Callable[..., Network]) -> None:
    network = make_flannel(V4 + "FLANNEL_IPMASQ=true\n", delegate={"ipMasqBackend": "nftables"})
    env = Path(network.config["subnetFile"])
    env.write_text(env.read_text().replace("true", "false"))
    made = network.attach()
    assert network.masquerading
    made.delete()
    assert network.masquerading == []


def test_another_delegate(make_flannel: Callable[..., Network], node: Node) -> None:
    network = make_flannel(V4, delegate={"type": "ptp"})
    made = network.attach()
    assert pings(made.container, GATEWAY[4])
    made.delete()
    assert (links(node), kept(network), network.reserved) == ({"lo"}, set(), set())


def test_values_of_capabilities_reach_the_delegates(make_flannel: Callable[..., Network]) -> None:
    network = make_flannel(V4, capabilities={"mac": True, "ips": True})
    made = network.attach(runtimeConfig={"mac": "02:00:00:00:00:42", "ips": ["10.1.17.77/24"]})
    assert (made.link["address"], made.addresses) == ("02:00:00:00:00:42", ["10.1.17.77/24"])


def test_an_add_that_fails_leaves_nothing(make_flannel: Callable[..., Network], node: Node) -> None:
    network = make_flannel("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.0/30\n")
    network.attach()
    before = links(node)
    late = network.attachment()
    with pytest.raises(Refused, match="failed to delegate add: failed to allocate for range 0: ") as refused:
        late.add()
    assert refused.value.code != 0
    late.delete()
    assert (links(node), len(kept(network)), len(network.reserved)) == (before, 2, 1)


def test_a_second_add_of_the_same_interface_harms_nothing(make_flannel: Callable[..., Network]) -> None:
    network = make_flannel(V4)
    made = network.attach()
    result, before = made.result, kept(network)
    with pytest.raises(Refused, match="failed to delegate add: "):
        made.add()
    made.result = result
    made.check()
    assert (kept(network), len(network.reserved)) == (before, 1)


def test_two_interfaces_of_one_container(make_flannel: Callable[..., Network], node: Node) -> None:
    first = make_flannel(V4, name="first", delegate={"bridge": "br1"})
    second = make_flannel(V4, name="second", delegate={"type": "ptp"}, ipam={"dataDir": str(first.state)})
    eth0 = first.attach()
    eth1 = second.attachment(eth0.container, ifname="eth1")
    eth1.add()
    assert links(eth0.container) == {"lo", "eth0", "eth1"}
    for _ in range(2):
        eth1.delete()
    assert links(eth0.container) == {"lo", "eth0"}
    eth0.check()
    eth0.delete()
    assert links(eth0.container) == {"lo"}
    assert (kept(first), first.reserved, links(node)) == (set(), set(), {"lo", "br1"})


def test_delete_without_a_namespace(make_flannel: Callable[..., Network], doomed: Callable[[Node], None]) -> None:
    network = make_flannel(V4)
    gone, unnamed = network.attach(), network.attach()
    doomed(gone.container)
    gone.delete()
    unnamed.delete(CNI_NETNS="")
    assert (kept(network), network.reserved) == (set(), set())


def test_gc_and_status(make_flannel: Callable[..., Network], doomed: Callable[[Node], None]) -> None:
    network = make_flannel(V4 + V6)
    network.status()
    live, gone = network.attach(), network.attach()
    doomed(gone.container)
    network.gc(live)
    assert kept(network) == {live.id, f"{live.id}:eth0"}
    assert network.reserved == {live.address(4), live.address(6)}
    live.check()
    Path(network.config["subnetFile"]).write_text(V4)
    with pytest.raises(Refused, match="subnet.env is missing FLANNEL_MTU, FLANNEL_IPMASQ") as refused:
        network.status()
    assert refused.value.code == 50


def test_status_asks_the_delegates(make_flannel: Callable[..., Network]) -> None:
    network = make_flannel("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.0/30\n")
    network.attach()
    with pytest.raises(Refused, match="failed to delegate status: ") as refused:
        network.status()
    assert refused.value.code == 50


@pytest.mark.killing
@pytest.mark.parametrize("start", [0, 10, 20])
def test_killed_in_add(start: int, make_flannel: Callable[..., Network], node: Node, call: Call) -> None:
    """Whatever ADD came to, DEL takes it back."""
    network = make_flannel(V4)
    made = network.attachment()
    environ = {"CNI_COMMAND": "ADD", "CNI_PATH": ":".join(network.paths), **made.environ}
    line = start
    while call("cni_plugins.meta.flannel", node.path, environ, json.dumps(network.config), die_at=line)["status"]:
        made.delete()
        assert (links(node) - {"cni0"}, links(made.container)) == ({"lo"}, {"lo"}), line
        assert ({name for name in kept(network) if name[0] != "."}, network.reserved) == (set(), set()), line
        line += 30
    assert line > 300
    made.delete()
