"""portmap beside Go's (which knows iptables only, before v1.6): the same rules, and the one takes back the other's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Node
    from tests.peers.conftest import Network

BOTH_WAYS = [("ours", "theirs"), ("theirs", "ours")]


def mapping(host: int, container: int, protocol: str, **more: str) -> dict[str, Any]:
    return {"hostPort": host, "containerPort": container, "protocol": protocol, **more}


MAPPINGS = [
    mapping(8080, 80, "tcp"),
    mapping(8081, 80, "tcp", hostIP="192.0.2.1"),
    mapping(8082, 80, "tcp", hostIP="2001:db8::1"),
    mapping(8083, 80, "tcp", hostIP="0.0.0.0"),
    mapping(53, 53, "udp"),
]
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "snat off": {"snat": False},
    "markMasqBit": {"markMasqBit": 5},
    "externalSetMarkChain": {"externalSetMarkChain": "PLZ-SET-MARK"},
    "conditions": {"conditionsV4": ["!", "-s", "192.0.2.0/24"], "conditionsV6": ["!", "-s", "2001:db8::/32"]},
    "fifteen and more rules": {"mappings": [mapping(number, number + 1, "tcp") for number in range(8000, 8015)]},
}


ADDRESSES = {4: "10.1.2.3/24", 6: "2001:db8:1::3/64"}


@pytest.fixture(params=CASES)
def mapped(request: pytest.FixtureRequest, network: Callable[..., Network], node: Node) -> Callable[..., Network]:
    """The plugin's configuration, for a container with addresses of these families."""
    keys = dict(CASES[request.param])
    runtime = {"portMappings": keys.pop("mappings", MAPPINGS)}
    for command in ("iptables", "ip6tables"):
        node.run([command, "-t", "nat", "-N", "PLZ-SET-MARK"])
    # Where the container is, for route_localnet.
    for arguments in ("link add cni0 type bridge", "link set cni0 up", "address add 10.1.2.1/24 dev cni0"):
        node.run(["ip", *arguments.split()])

    def make(*families: int) -> Network:
        interfaces = [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/any"}]
        ips = [{"address": ADDRESSES[family], "interface": 1} for family in families]
        result = {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips}
        return network(type="portmap", prevResult=result, runtimeConfig=runtime, **keys)

    return make


def left(node: Node) -> list[str]:
    """Return what an attachment has left behind."""
    return [rule for of_version in rules(node).values() for rule in of_version if "CNI-DN-" in rule]


def rules(node: Node) -> dict[int, list[str]]:
    return {version: node.iptables_save(version) for version in (4, 6)}


@pytest.mark.parametrize("family", ADDRESSES)
def test_they_find_what_we_mapped(
    family: int, mapped: Callable[..., Network], node: Node, go_plugins: Path, tmp_path: Path
) -> None:
    # Theirs looks for the rules of any family in both, if it can.
    command = "iptables" if family == 4 else "ip6tables"
    (tmp_path / command).symlink_to(shutil.which(command) or "")
    container, network = node.container(), mapped(family)
    result = network.by("ours").add(container)
    config = json.dumps({**network.config, "prevResult": result})
    environ = {"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": container.name, "CNI_NETNS": container.path}
    environ |= {"CNI_IFNAME": "eth0", "CNI_PATH": str(go_plugins), "PATH": str(tmp_path)}
    node.run([str(go_plugins / "portmap")], config, environ)


def test_we_find_what_they_mapped(mapped: Callable[..., Network], node: Node) -> None:
    container, network = node.container(), mapped(4, 6)
    network.by("ours").check(container, network.by("theirs").add(container))


@pytest.mark.parametrize(("first", "second"), BOTH_WAYS)
def test_both_make_the_same(first: str, second: str, mapped: Callable[..., Network], node: Node) -> None:
    container, network = node.container(), mapped(4, 6)
    network.by(first).add(container)
    made = rules(node)
    network.by(second).add(container)
    assert rules(node) == made
    network.by(first).delete(container)
    assert left(node) == []
    network.by(second).add(container)
    assert {version: sorted(again) for version, again in rules(node).items()} == {
        version: sorted(before) for version, before in made.items()
    }
    network.by(first).delete(container)
    assert left(node) == []


def test_their_mapping_is_found_to_be_in_the_way(mapped: Callable[..., Network], node: Node) -> None:
    first, second, network = node.container(), node.container(), mapped(4, 6)
    network.by("theirs").add(first)
    answer = network.by("ours").call("ADD", second)
    assert f'is already taken by container \\"{first.name}\\" of network \\"net\\"' in answer.stdout
    network.by("ours").delete(first)
    network.by("ours").add(second)
