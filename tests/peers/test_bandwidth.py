"""bandwidth beside Go's: the same qdiscs under the same names; what the one made, the other checks and takes back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Node
    from tests.peers.conftest import Network

Json = dict[str, Any]

BOTH_WAYS = [("ours", "theirs"), ("theirs", "ours")]
INGRESS: Json = {"ingressRate": 8_000_000, "ingressBurst": 800_000}
EGRESS: Json = {"egressRate": 16_000_003, "egressBurst": 1_600_005}
LIMITS: dict[str, Json] = {
    "ingress": INGRESS,
    "egress": EGRESS,
    "both": INGRESS | EGRESS,
    "the runtime's": {"runtimeConfig": {"bandwidth": INGRESS | EGRESS}},
    "both kinds": INGRESS | {"runtimeConfig": {"bandwidth": EGRESS}},
    "least": {"ingressRate": 8, "ingressBurst": 8, "egressRate": 16, "egressBurst": 8},
    "odd": {"egressRate": 1_234_567, "egressBurst": 7_654_321},
    "fast": {"ingressRate": 80_000_000_000, "ingressBurst": 16_000_000_000},
    "a long burst": {"ingressRate": 100_000_000, "ingressBurst": (1 << 32) - 1},
}

Made = tuple["Network", "Node", Json]


@pytest.fixture
def limited(network: Callable[..., Network], node: Node) -> Callable[..., Made]:
    """A network, a container with one end of a pair, and the result of who made that."""

    def make(version: str = "1.0.0", **limits: Any) -> Made:
        container = node.container()
        port = f"v{len(node.ip('link'))}"
        peer = ["peer", "name", port, "netns", node.name]
        container.run(["ip", "link", "add", "eth0", "up", "mtu", "1400", "type", "veth", *peer])
        node.run(["ip", "link", "set", port, "up", "mtu", "1400"])
        sandbox = {"name": "eth0", "sandbox": container.path}
        previous = {"cniVersion": version, "interfaces": [{"name": port}, sandbox], "ips": [], "dns": {}}
        net = network(version, type="bandwidth", **limits)
        net.config["prevResult"] = previous
        return net, container, previous

    return make


def layout(node: Node, container: Node) -> list[Any]:
    """Every qdisc and ifb of the node, and where the container's port redirects to."""
    port = node.ip("link", "show", "type", "veth")[0]["ifname"]
    show = ["tc", "-json", "-details", "filter", "show", "dev", port, "parent", "ffff:"]
    filters = [one for one in json.loads(node.run(show).stdout or "[]") if "match" in one.get("options", {})]
    for one in filters:
        # The reference's has its action twice, of which the second is never come to.
        one["options"]["actions"] = [one["options"]["actions"][0]["to_dev"]]
    ifbs = node.ip("link", "show", "type", "ifb") or []
    dull = ("address", "ifindex", "ifalias", "inet6_addr_gen_mode")
    return [
        json.loads(node.run(["tc", "-json", "-details", "qdisc"]).stdout),
        filters,
        [{key: value for key, value in ifb.items() if key not in dull} for ifb in ifbs],
    ]


@pytest.mark.parametrize("name", LIMITS)
def test_it_is_the_same(limited: Callable[..., Made], node: Node, name: str) -> None:
    """And the results are, but for the ifb's MAC and an empty dns."""
    net, container, previous = limited(**LIMITS[name])
    made = []
    for by in ("ours", "theirs"):
        result = net.by(by).add(container)
        found = layout(node, container)
        interfaces = [one["name"] for one in result["interfaces"]]
        assert result["interfaces"][:2] == previous["interfaces"]
        made.append([interfaces, *found])
        net.by("ours").delete(container)
        qdiscs, *nothing = layout(node, container)
        assert ({one["kind"] for one in qdiscs}, nothing) == ({"noqueue"}, [[], []])
    ours, theirs = made
    assert ours == theirs


@pytest.mark.parametrize(("adder", "other"), BOTH_WAYS)
@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize("name", LIMITS)
def test_added_by_one_and_checked_and_deleted_by_the_other(
    limited: Callable[..., Made], node: Node, adder: str, other: str, version: str, name: str
) -> None:
    net, container, _ = limited(version, **LIMITS[name])
    result = net.by(adder).add(container)
    if version >= "0.4":
        net.by(adder).check(container, result)
        net.by(other).check(container, result)
    net.by(other).delete(container)
    assert not node.ip("link", "show", "type", "ifb")
    for again in ("ours", "theirs"):
        net.by(again).delete(container, prevResult=None)


@pytest.mark.parametrize("rate", [1_000_000, 10_000_000, 15_625_000])
def test_a_burst_that_the_reference_wraps_passes_our_check(limited: Callable[..., Made], rate: int) -> None:
    """A long one, which runtimes say for no limit, at a low rate: the node may be switched over to us."""
    net, container, _ = limited(ingressRate=rate, ingressBurst=(1 << 32) - 1)
    result = net.by("theirs").add(container)
    net.by("theirs").check(container, result)
    net.by("ours").check(container, result)
    net.by("ours").delete(container)


def test_subnets_pass_their_check(limited: Callable[..., Made], node: Node) -> None:
    """The reference sees a limit on the ifb as ever, and does not look at a port's root of another kind."""
    net, container, _ = limited(**INGRESS, **EGRESS, shapedSubnets=["10.0.0.0/8"])
    result = net.by("ours").add(container)
    net.by("theirs").check(container, result)
    net.by("theirs").delete(container)
    assert not node.ip("link", "show", "type", "ifb")


def test_a_second_add_by_the_other_changes_nothing(limited: Callable[..., Made], node: Node) -> None:
    for first, second in BOTH_WAYS:
        net, container, _ = limited(**INGRESS, **EGRESS)
        result = net.by(first).add(container)
        before = layout(node, container)
        assert net.by(second).call("ADD", container).status == 1
        assert layout(node, container) == before
        net.by(first).check(container, result)
        net.by(first).delete(container)
        subprocess.run(["ip", "-n", container.name, "link", "delete", "eth0"], check=True)


def test_gc_takes_what_theirs_left(limited: Callable[..., Made], node: Node) -> None:
    net, gone, _ = limited(**EGRESS)
    net.by("theirs").add(gone)
    net.config["cniVersion"] = "1.1.0"
    net.config["cni.dev/valid-attachments"] = []
    for remain in (1, 0):  # as long as the pair is there somebody uses it
        answer = net.by("ours").call("GC", gone)
        assert answer.status == 0, answer
        assert len(node.ip("link", "show", "type", "ifb") or []) == remain
        gone.run(["ip", "link", "delete", "eth0"], check=False)
