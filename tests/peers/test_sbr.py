"""sbr beside Go's: the same rules and routes, each takes back the other's, and they lock each other out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.spec import version

if TYPE_CHECKING:
    from tests.conftest import Node
    from tests.peers.conftest import Network

Json = dict[str, Any]

BOTH_WAYS = [("ours", "theirs"), ("theirs", "ours")]


def wire(node: Node, container: Node, name: str, number: int, *routes: str) -> Json:
    """A link with two addresses, and the result of who might have made it."""
    peer = f"{container.name[-6:]}-{name}"
    node.run(["ip", "link", "add", peer, "up", "type", "veth", "peer", name, "netns", container.name])
    container.run(["sh", "-c", f"echo 0 >/proc/sys/net/ipv6/conf/{name}/accept_dad"])
    container.run(["ip", "address", "add", f"10.5.{number}.5/24", "dev", name])
    container.run(["ip", "address", "add", f"fd05:{number}::5/64", "dev", name, "nodad"])
    container.run(["ip", "link", "set", name, "up"])
    # As soon as the kernel has noticed the carrier, there is a link-local address too.
    container.run(["sh", "-c", f"until ip -6 route show dev {name} | grep -q ^fe80; do sleep 0.01; done"])
    for route in routes:
        family = "-6" if ":" in route else "-4"
        container.run(["ip", family, "route", "add", *route.split(), "dev", name])
    return {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": name, "sandbox": container.path}],
        "ips": [
            {"address": f"10.5.{number}.5/24", "gateway": f"10.5.{number}.1", "interface": 0},
            {"address": f"fd05:{number}::5/64", "gateway": f"fd05:{number}::1", "interface": 0},
        ],
    }


def fresh(container: Node, name: str, number: int) -> None:
    """Have the kernel make the link's routes again, which Go's DEL does not give back."""
    container.run(["ip", "link", "set", name, "down"])
    container.run(["ip", "link", "set", name, "up"])
    container.run(["ip", "address", "replace", f"fd05:{number}::5/64", "dev", name, "nodad"])


# Several of each family: with the default route's gateway, with another, on the link, with a metric.
ROUTES = (
    "default via 10.5.1.1",
    "default via fd05:1::1",
    "192.0.2.0/24 via 10.5.1.7 metric 5 mtu 1400 advmss 1300",
    "198.51.100.0/24 scope link",
    "2001:db8:9::/64 via fd05:1::7 metric 5 mtu 1400",
    "2001:db8:8::/64",
)


def rules(container: Node) -> list[str]:
    found = [rule for family in ("-4", "-6") for rule in container.ip(family, "rule", "show")]
    return [f"{rule['priority']}: from {rule['src']} lookup {rule['table']} {rule['protocol']}" for rule in found]


def state(container: Node) -> list[str]:
    """Every rule, and every route but the local ones, some of which bear the MAC."""
    found = [f"{family} {line}" for family in (4, 6) for line in routes(container, family, "all")]
    return rules(container) + [line for line in found if "table local" not in line]


def routes(container: Node, family: int, table: str) -> list[str]:
    command = ["ip", "-details", f"-{family}", "route", "show", "table", table]
    return container.run(command, check=False).stdout.splitlines()


@pytest.fixture
def net(network: Callable[..., Network]) -> Network:
    return network(type="sbr")


def test_both_make_the_same(net: Network, node: Node) -> None:
    states = []
    for by in ("ours", "theirs"):
        container = node.container()
        made = wire(node, container, "eth0", 1, *ROUTES)
        answer = net.by(by).call("ADD", container, prevResult=made)
        assert answer.status == 0, answer
        assert json.loads(answer.stdout) | {"dns": {}} == made | {"dns": {}}
        states.append(state(container))
    assert states[0] == states[1]
    assert len(rules(container)) == 7


@pytest.mark.parametrize("spec", version.ALL[2:-1])  # Debian's release knows no 1.1.0
@pytest.mark.parametrize(("adder", "deleter"), BOTH_WAYS)
def test_added_by_one_and_deleted_by_the_other(
    network: Callable[..., Network], node: Node, adder: str, deleter: str, spec: str
) -> None:
    net = network(spec, type="sbr")
    container = node.container()
    made = {**wire(node, container, "eth0", 1, *ROUTES), "cniVersion": spec}
    for ip in made["ips"]:
        ip["version"] = "6" if ":" in ip["address"] else "4"
    clean, before = rules(container), state(container)
    answer = net.by(adder).call("ADD", container, prevResult=made)
    assert answer.status == 0, answer
    assert len(rules(container)) == len(clean) + 2
    if version.at_least(spec, "0.4.0"):
        net.by("ours").check(container, made)
        net.by("theirs").check(container, made)
    net.by(deleter).delete(container, prevResult=made)
    assert rules(container) == clean
    if deleter == "ours":
        assert state(container) == before
    net.by(adder).delete(container, prevResult=made)
    assert rules(container) == clean


def test_what_go_leaves_behind_is_passed_over(net: Network, node: Node) -> None:
    """Its own next ADD fails there."""
    container = node.container()
    made = wire(node, container, "eth0", 1)
    for verb in ("ADD", "DEL"):
        assert net.by("theirs").call(verb, container, prevResult=made).status == 0
    assert routes(container, 4, "100")
    fresh(container, "eth0", 1)
    container.run(["ip", "route", "add", "192.0.2.0/24", "dev", "lo", "table", "100"])
    assert net.by("ours").call("ADD", container, prevResult=made).status == 0
    assert "from 10.5.1.5 lookup 101" in " ".join(rules(container))


def test_at_once_each_interface_gets_tables_of_its_own(net: Network, node: Node, folders: dict[str, Path]) -> None:
    """Of four every second one by Go's plugin, all for one container."""
    container = node.container()
    made = {f"net{number}": wire(node, container, f"net{number}", number) for number in range(1, 5)}

    def start(verb: str, number: int, folder: Path) -> subprocess.Popen[bytes]:
        name = f"net{number}"
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c", "CNI_NETNS": container.path, "CNI_IFNAME": name}
        process = subprocess.Popen(
            [folder / "sbr"],
            env={**os.environ, **environ, "CNI_PATH": "/nowhere"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin
        process.stdin.write(json.dumps({**net.config, "prevResult": made[name]}).encode())
        return process

    for _ in range(3):
        for verb in ("ADD", "DEL"):
            started = [start(verb, number, folders[("ours", "theirs")[number % 2]]) for number in range(1, 5)]
            for process in started:
                assert process.stdin
                process.stdin.close()  # now it begins
            assert [process.wait() for process in started] == [0] * 4
            led = [rule.split() for rule in rules(container) if "unspec" in rule]
            assert len({words[4] for words in led}) == len(led) == (8 if verb == "ADD" else 0)
        for number in range(1, 5):
            fresh(container, f"net{number}", number)


def test_ours_makes_no_file_where_the_namespace_is_gone(net: Network, node: Node, tmp_path: Path) -> None:
    container = node.container()
    missing = tmp_path / "gone"
    ours = net.by("ours").call("DEL", container, netns=str(missing))
    assert (ours.status, missing.exists()) == (0, False)
    theirs = net.by("theirs").call("DEL", container, netns=str(missing))
    assert (theirs.status, missing.exists()) == (1, True)


ERRORS: dict[str, Json] = {
    "unchained": {},
    "no addresses": {"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}], "ips": []}},
}


@pytest.mark.parametrize("case", ERRORS)
def test_both_say_the_same_of_what_is_missing(net: Network, node: Node, case: str) -> None:
    container = node.container()
    said = [json.loads(net.by(by).call("ADD", container, **ERRORS[case]).stdout) for by in ("ours", "theirs")]
    assert said[0] == said[1]


def test_both_look_for_the_interface(net: Network, node: Node) -> None:
    container = node.container()
    made = {"cniVersion": "1.0.0", "ips": [{"address": "10.5.1.5/24"}]}
    said = [json.loads(net.by(by).call("ADD", container, prevResult=made).stdout) for by in ("ours", "theirs")]
    assert said[0] == said[1]
    assert said[0]["msg"] == "Cannot find network interface eth0: Link not found"
