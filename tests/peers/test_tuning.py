"""tuning beside Go's: what the one changed and noted, the other checks and gives back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Node
    from tests.peers.conftest import Network

BOTH_WAYS = [("ours", "theirs"), ("theirs", "ours")]
MAC = "c2:11:22:33:44:55"
# Debian's does not know txQLen yet, and in CHECK not IFNAME.
KEYS: dict[str, Any] = {"mac": MAC, "promisc": True, "mtu": 1454, "allmulti": True}
SYSCTLS = {"net.core.somaxconn": "500", "net/ipv4/conf/eth0/log_martians": "1"}


def container_of(node: Node) -> Node:
    container = node.container()
    container.run(["ip", "link", "add", "eth0", "up", "type", "veth", "peer", "name", "p0"])
    return container


def state(container: Node) -> dict[str, Any]:
    [link] = container.ip("link", "show", "dev", "eth0")
    flags = {"promisc": "PROMISC" in link["flags"], "allmulti": "ALLMULTI" in link["flags"]}
    return {"mac": link["address"], "mtu": link["mtu"], "txqlen": link["txqlen"], **flags}


def settings(container: Node) -> list[str]:
    names = ("core/somaxconn", "ipv4/conf/eth0/log_martians")
    return [container.run(["cat", f"/proc/sys/net/{name}"]).stdout.strip() for name in names]


def previous(container: Node, version: str) -> dict[str, Any]:
    if version == "0.2.0":
        return {"cniVersion": version, "ip4": {"ip": "10.1.2.3/24"}}
    family = {"version": "4"} if version < "1" else {}
    interface = {"name": "eth0", "mac": state(container)["mac"], "sandbox": container.path}
    ips = [{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 0, **family}]
    return {"cniVersion": version, "interfaces": [interface], "ips": ips, "routes": [{"dst": "0.0.0.0/0"}]}


@pytest.fixture
def tuned(network: Callable[..., Network], node: Node, tmp_path: Path) -> Callable[..., tuple[Network, Node]]:
    """A container with an interface, and what is to be changed of it."""

    def make(version: str = "1.0.0", **config: Any) -> tuple[Network, Node]:
        container = container_of(node)
        result = previous(container, version)
        made = network(version, type="tuning", dataDir=str(tmp_path / "before"), prevResult=result, **config)
        return made, container

    return make


def notes(net: Network) -> dict[str, str]:
    return {file.name: file.read_text() for file in Path(net.config["dataDir"]).glob("*")}


@pytest.mark.parametrize(("adder", "deleter"), BOTH_WAYS)
@pytest.mark.parametrize("version", ["0.2.0", "0.3.0", "0.4.0", "1.0.0"])
def test_changed_by_one_and_checked_and_given_back_by_the_other(
    tuned: Callable[..., tuple[Network, Node]], adder: str, deleter: str, version: str
) -> None:
    net, container = tuned(version, sysctl=SYSCTLS, **KEYS)
    before = state(container)
    net.by(adder).add(container)
    assert state(container) == {**before, **KEYS}
    assert settings(container) == ["500", "1"]
    if version >= "0.4.0":
        net.by(adder).check(container, net.config["prevResult"])
        net.by(deleter).check(container, net.config["prevResult"])
    net.by(deleter).delete(container)
    assert state(container) == before
    assert notes(net) == {}


@pytest.mark.parametrize("keys", [KEYS, {}, *({key: value} for key, value in KEYS.items())], ids="+".join)
@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", "1.0.0"])
def test_notes_and_results_are_the_same(
    tuned: Callable[..., tuple[Network, Node]], version: str, keys: dict[str, Any]
) -> None:
    net, container = tuned(version, sysctl=SYSCTLS, **keys)
    found = []
    for by in ("ours", "theirs"):
        result = net.by(by).add(container)
        found.append((notes(net), {**result, "dns": {}}, state(container), settings(container)))
        net.by("ours").delete(container)
    assert found[0] == found[1]


@pytest.mark.parametrize("first", ["args", "runtimeConfig", "mac"])
def test_which_mac_counts(tuned: Callable[..., tuple[Network, Node]], first: str) -> None:
    places: dict[str, Any] = {
        "args": {"cni": {"mac": "02:00:00:00:00:01"}},
        "runtimeConfig": {"mac": "02:00:00:00:00:02"},
        "mac": "02:00:00:00:00:03",
    }
    names = list(places)
    net, container = tuned(**{name: places[name] for name in names[names.index(first) :]})
    for by in ("ours", "theirs"):
        net.by(by).add(container)
        assert state(container)["mac"] == f"02:00:00:00:00:0{names.index(first) + 1}"
        net.by("ours").delete(container)


def test_their_notes_outlast_a_second_add_of_ours(tuned: Callable[..., tuple[Network, Node]]) -> None:
    net, container = tuned(mtu=1400)
    before = state(container)
    net.by("theirs").add(container)
    net.config |= {"mtu": 1300, "mac": MAC}
    net.by("ours").add(container)
    assert list(map(json.loads, notes(net).values())) == [{"mac": before["mac"], "mtu": 1500}]
    net.by("theirs").delete(container)
    assert state(container) == before


SAID: list[dict[str, Any]] = [
    {"prevResult": None},
    {"sysctl": {"kernel/hostname": "x"}},
    {"mac": "c2:11"},
]


@pytest.mark.parametrize("config", SAID, ids=str)
def test_what_is_wrong_is_said_alike(tuned: Callable[..., tuple[Network, Node]], config: dict[str, Any]) -> None:
    net, container = tuned()
    ours, theirs = (json.loads(net.by(by).call("ADD", container, **config).stdout) for by in ("ours", "theirs"))
    assert (ours["code"], ours["msg"]) == (theirs["code"], theirs["msg"])
