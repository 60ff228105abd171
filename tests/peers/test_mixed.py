"""A node on which both are at work: what one made the other uses, checks and takes back."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Node
    from tests.peers.conftest import Network

BOTH_WAYS = [("ours", "theirs"), ("theirs", "ours")]
DUAL = {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}]]}
GATEWAY = {"isGateway": True, "isDefaultGateway": True, "ipMasq": True}


def ping(container: Node, *addresses: str) -> None:
    for address in addresses:  # a while, as the reference's bridge first probes its IPv6 address for duplicates
        container.run(["ping", "-c", "1", "-i", "0.2", "-w", "5", address.partition("/")[0]])


def addresses(result: dict[str, Any]) -> list[str]:
    return [ip["address"] for ip in result["ips"]]


@pytest.mark.parametrize(("bridge", "ipam"), BOTH_WAYS)
@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_bridge_of_one_with_host_local_of_the_other(
    network: Callable[..., Network], node: Node, bridge: str, ipam: str, version: str
) -> None:
    net = network(version, ipam=DUAL, **GATEWAY).by(bridge, ipam)
    one, two = node.container(), node.container()
    first, second = net.add(one), net.add(two)
    assert addresses(second) == ["10.1.2.3/24", "fd01::3/64"]
    assert set(net.reserved()) == {"10.1.2.2", "10.1.2.3", "fd01::2", "fd01::3"}
    ping(one, *addresses(second), "10.1.2.1", "fd01::1")
    ping(two, *addresses(first))
    if version != "0.3.1":
        net.check(one, first)
    net.delete(one)
    net.delete(two)
    net.nothing_left()


@pytest.mark.parametrize(("adder", "deleter"), BOTH_WAYS)
@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.0.0"])
def test_added_by_one_and_deleted_by_the_other(
    network: Callable[..., Network], node: Node, adder: str, deleter: str, version: str
) -> None:
    net = network(version, ipam=DUAL, **GATEWAY)
    container = node.container()
    result = net.by(adder).add(container)
    assert [rule for rule in node.iptables_save() if rule.startswith("-A POSTROUTING -s 10.1.2.2/32 ")]
    assert [rule for rule in node.iptables_save(6) if rule.startswith("-A POSTROUTING -s fd01::2/128 ")]
    if version != "0.2.0":
        net.by(deleter).check(container, result)
    net.by(deleter).delete(container)
    net.nothing_left()
    assert container.ip("link")[0]["ifname"] == "lo"
    for deletes_again in ("ours", "theirs"):
        net.by(deletes_again).delete(container)


@pytest.mark.parametrize("netns", ["", "/run/netns/cnitest-gone"])
def test_added_by_theirs_and_deleted_by_ours_without_the_namespace(
    network: Callable[..., Network], node: Node, netns: str
) -> None:
    """Its rules too, which theirs would leave."""
    net = network(ipam=DUAL, **GATEWAY)
    container = node.container()
    net.by("theirs").add(container)
    container.ip("link", "delete", "eth0")  # as the namespace's end does
    net.by("ours").delete(container, netns=netns)
    net.nothing_left()


@pytest.mark.parametrize(("first", "second"), BOTH_WAYS)
def test_one_bridge_and_range(network: Callable[..., Network], node: Node, first: str, second: str) -> None:
    """Containers by turns of either: one bridge, addresses in one sequence, and everyone reaches everyone."""
    net = network(ipam=DUAL, **GATEWAY)
    containers = [node.container() for _ in range(4)]
    results = []
    for by, container in zip(itertools.cycle([first, second]), containers, strict=False):
        results.append(net.by(by).add(container))
        macs = {result["interfaces"][0]["mac"] for result in results}
        assert macs == {node.ip("link", "show", "br0")[0]["address"]}  # it stays while ports come and go
    assert [addresses(result)[0] for result in results] == [f"10.1.2.{number}/24" for number in range(2, 6)]
    for container, result in itertools.product(containers, results):
        ping(container, *addresses(result))

    for by, container in zip(itertools.cycle([second, first]), containers, strict=False):
        net.by(by).delete(container)
    net.nothing_left()
    for by in (first, second):  # what was given last is not given again at once, whoever gave it
        result = net.by(by).add(containers[0])
        assert addresses(result) == [f"10.1.2.{6 if by == first else 7}/24", f"fd01::{6 if by == first else 7}/64"]
        net.by(by).delete(containers[0])


@pytest.mark.parametrize(("adder", "deleter"), BOTH_WAYS)
def test_several_interfaces_of_a_container(
    network: Callable[..., Network], node: Node, adder: str, deleter: str
) -> None:
    net = network()
    container = node.container()
    net.by(adder).add(container, "eth0")
    net.by(deleter).add(container, "eth1")
    net.by(deleter).delete(container, "eth0")
    assert set(net.reserved()) == {"10.1.2.3"}
    net.by(adder).delete(container, "eth1")
    net.nothing_left()


@pytest.mark.parametrize(("adder", "deleter"), BOTH_WAYS)
@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_host_local_alone(network: Callable[..., Network], node: Node, adder: str, deleter: str, version: str) -> None:
    net = network(version, ipam=DUAL, type="host-local")
    container = node.container()
    net.by(adder).add(container)
    owner = f"{container.name}\r\neth0".encode()
    assert net.reserved() == {"10.1.2.2": owner, "fd01::2": owner}
    again = net.by(deleter).call("ADD", container)
    assert "10.1.2.2 has been allocated to " in again.stdout, again
    if version in ("0.4.0", "1.0.0"):
        assert net.by(deleter).call("CHECK", container).status == 0
    net.by(deleter).delete(container, netns="")
    assert net.reserved() == {}
    if version in ("0.4.0", "1.0.0"):
        assert net.by(adder).call("CHECK", container).status == 1


@pytest.mark.parametrize(("one", "other"), BOTH_WAYS)
def test_files_of_host_local(network: Callable[..., Network], node: Node, tmp_path: Path, one: str, other: str) -> None:
    """The folder as either leaves it, in every byte; the files' modes only of the lock: releases differ in the rest."""
    folders = {}
    container = node.container()
    for by in (one, other):
        ipam = {**DUAL, "dataDir": str(tmp_path / by)}
        net = network(type="host-local", ipam=ipam).by(by)
        net.add(container)
        net.add(container, "eth1")
        net.delete(container)
        folder = tmp_path / by / "net"
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        folders[by] = (files, folder.stat().st_mode, (folder / "lock").stat().st_mode)
    assert folders[one] == folders[other]


@pytest.mark.parametrize("deleter", ["ours", "theirs"])
def test_files_of_old_releases(network: Callable[..., Network], node: Node, deleter: str) -> None:
    """They wrote the container's id alone."""
    net = network(type="host-local").by(deleter)
    container = node.container()
    net.add(container)
    (Path(net.config["ipam"]["dataDir"]) / "net" / "10.1.2.2").write_text(container.name)
    net.delete(container)
    assert net.reserved() == {}


def test_default_folder(network: Callable[..., Network], node: Node) -> None:
    node.hide("/var/lib/cni")
    net = network(type="host-local", ipam={"subnet": "10.1.2.0/24", "dataDir": ""})
    container = node.container()
    net.by("theirs").add(container)
    net.by("ours").add(container, "eth1")
    listed = "ls -A /var/lib/cni/networks/net"
    assert node.run(listed.split()).stdout.split() == ["10.1.2.2", "10.1.2.3", "last_reserved_ip.0", "lock"]
    net.by("ours").delete(container)
    net.by("theirs").delete(container, "eth1")
    assert node.run(listed.split()).stdout.split() == ["last_reserved_ip.0", "lock"]


def test_both_at_once_on_one_range(network: Callable[..., Network], node: Node) -> None:
    """More ask than there are addresses: each is given once, and the rest are told that there is none."""
    net = network(type="host-local", ipam={"subnet": "10.1.2.0/27"})  # .2 to .30
    container = node.container()
    by = dict(zip([f"eth{number}" for number in range(40)], itertools.cycle(["ours", "theirs"]), strict=False))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda ifname: net.by(by[ifname]).call("ADD", container, ifname), by))
    given = [found for answer in answers for found in re.findall(r'"address": "([0-9.]+)/27"', answer.stdout)]
    assert len(given) == len(set(given)) == 29
    assert set(given) == set(net.reserved())
    refused = [answer for answer in answers if answer.status]
    assert len(refused) == 11
    assert all("no IP addresses available in range set: 10.1.2.1-10.1.2.30" in answer.stdout for answer in refused)

    other = {"ours": "theirs", "theirs": "ours"}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda ifname: net.by(other[by[ifname]]).delete(container, ifname), by))
    assert net.reserved() == {}


def test_both_at_once_on_one_bridge(network: Callable[..., Network], node: Node) -> None:
    net = network(ipam=DUAL, **GATEWAY)
    containers = dict.fromkeys(node.container() for _ in range(16))
    by = dict(zip(containers, itertools.cycle(["ours", "theirs"]), strict=False))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda container: net.by(by[container]).add(container), containers))
    given = [address for result in results for address in addresses(result)]
    assert len(set(given)) == len(given) == 32
    ping(next(iter(containers)), *given)
    other = {"ours": "theirs", "theirs": "ours"}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda container: net.by(other[by[container]]).delete(container), containers))
    net.nothing_left()
