"""A device that one moves into the container and the other back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Node
    from tests.peers.conftest import Network

BOTH_WAYS = [("ours", "theirs"), ("theirs", "ours")]
DUAL = {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}]]}
MAC = "02:00:00:00:00:01"
SELECTORS: list[dict[str, Any]] = [{"device": "nic0"}, {"hwaddr": MAC}]


@pytest.fixture
def device(node: Node, network: Callable[..., Network]) -> Callable[..., Network]:
    """Makes a network of the device nic0, which is the node's."""
    node.run(["ip", "link", "add", "nic0", "address", MAC, "type", "veth", "peer", "far"])
    for name in ("nic0", "far"):
        node.run(["ip", "link", "set", name, "up"])

    def make(version: str = "1.0.0", **changes: Any) -> Network:
        return network(version, type="host-device", **{"device": "nic0", **changes})

    return make


@pytest.fixture
def container(node: Node) -> Node:
    """Where addresses are usable at once."""
    container = node.container()
    container.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"])
    return container


def of(node: Node, name: str) -> tuple[str, str | None, bool]:
    """A link's MAC, its alias, and whether it is up."""
    (link,) = node.ip("link", "show", "dev", name)
    return link["address"], link.get("ifalias"), "UP" in link["flags"]


@pytest.mark.parametrize("selector", SELECTORS, ids=["device", "hwaddr"])
@pytest.mark.parametrize(("adder", "deleter"), BOTH_WAYS)
@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.0.0"])
def test_added_by_one_and_deleted_by_the_other(
    device: Callable[..., Network],
    node: Node,
    container: Node,
    adder: str,
    deleter: str,
    version: str,
    selector: dict[str, Any],
) -> None:
    net = device(version, ipam=DUAL, **{"device": "", **selector})
    result = net.by(adder).add(container)
    assert of(container, "eth0") == (MAC, "nic0", True)
    if version != "0.2.0":
        for checks in ("ours", "theirs"):
            net.by(checks).check(container, result)
    net.by(deleter).delete(container)
    # This release of theirs leaves the alias; later ones clear it.
    assert of(node, "nic0") == (MAC, None if deleter == "ours" else "nic0", False)
    assert net.reserved() == {}
    net.by("ours").delete(container)  # theirs fails here
    net.by(adder).add(container)  # and once more, now that it is down


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0"])
@pytest.mark.parametrize("ipam", [None, DUAL], ids=["layer 2", "layer 3"])
def test_results_are_alike(
    device: Callable[..., Network], container: Node, version: str, ipam: dict[str, Any] | None
) -> None:
    net = device(version, ipam=ipam, dns={"nameservers": ["192.0.2.53"]})
    if ipam is None:
        del net.config["ipam"]
    theirs = net.by("theirs").add(container)
    net.by("ours").delete(container)
    ours = net.by("ours").add(container)
    for result in (theirs, ours):
        for ip in result.get("ips", []):
            del ip["address"]  # the next one
    if version == "1.0.0" and not theirs["dns"]:
        del theirs["dns"]  # which later releases of theirs leave out
    assert ours == theirs


@pytest.mark.parametrize(("adder", "deleter"), BOTH_WAYS)
def test_several_devices_of_a_container(
    device: Callable[..., Network], node: Node, container: Node, adder: str, deleter: str
) -> None:
    net = device()
    other = device(device="far")
    net.by(adder).add(container, "eth0")
    other.by(deleter).add(container, "eth1")
    net.by(deleter).delete(container, "eth0")
    other.by(adder).delete(container, "eth1")
    assert {link["ifname"] for link in container.ip("link")} == {"lo"}
    assert {link["ifname"] for link in node.ip("link")} == {"lo", "nic0", "far"}
    assert net.reserved() == {}
