"""Many, at once, and killed: whatever happens, no address is given twice and nothing is left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.invoke import exec as invoke
from cni.kernel.netns import NetNS
from cni_plugins.main.bridge import plugin
from tests.waiting import LIMIT

from .conftest import Network, addresses, links, module_of, pings

if TYPE_CHECKING:
    from tests.conftest import Call, Node

Json = dict[str, Any]
BACKENDS = ["no masquerading", "iptables", "nftables"]


class Churned(Network):
    """A bridge network on a node, with 64 addresses of each family."""

    def __init__(self, node: Node, call: Call, plugins: Path, state: Path, backend: str) -> None:
        super().__init__(node, call, plugins, state, {"type": "bridge", "bridge": "br0", "isDefaultGateway": True})
        self.ipam(
            ranges=[
                [{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10", "rangeEnd": "10.1.2.73"}],
                [{"subnet": "2001:db8:1::/64", "rangeStart": "2001:db8:1::10", "rangeEnd": "2001:db8:1::4f"}],
            ]
        )
        if backend in BACKENDS[1:]:
            self.config.update(ipMasq=True, ipMasqBackend=backend)
        self.config_file = state.parent / "net.conf"
        self.config_file.write_text(json.dumps(self.config))

    def environ(self, command: str, container: Node, id: str) -> dict[str, str]:
        attachment = self.attachment(container, id=id)
        return {**attachment.environ, "CNI_COMMAND": command, "CNI_PATH": str(self.plugins)}

    def answer(self, command: str, container: Node, id: str = "c", **more: int) -> Json:
        """In a forked process."""
        environ = self.environ(command, container, id)
        return self.call(module_of("bridge"), self.node.path, environ, json.dumps(self.config), **more)

    def add(self, container: Node, id: str = "c") -> list[str]:
        """The addresses."""
        done = self.answer("ADD", container, id)
        assert done["status"] == 0, done
        return [ip["address"] for ip in json.loads(done["stdout"])["ips"]]

    def delete(self, container: Node, id: str = "c") -> None:
        done = self.answer("DEL", container, id)
        assert (done["status"], done["stdout"]) == (0, ""), done

    def start(self, command: str, container: Node, id: str = "c") -> subprocess.Popen[str]:
        """The executable; nsenter becomes it."""
        with self.config_file.open() as stdin:
            return subprocess.Popen(
                ["nsenter", f"--net={self.node.path}", str(self.plugins / "bridge")],
                env={**os.environ, **self.environ(command, container, id)},
                stdin=stdin,
                stdout=subprocess.PIPE,
                text=True,
            )

    @property
    def left_over(self) -> list[str]:
        """Every link, address file and rule of an attachment."""
        return [name for name in links(self.node) if name.startswith("veth")] + [*self.reserved, *self.masquerading]


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", BACKENDS[0]))


@pytest.fixture
def network(node: Node, call: Call, plugins: Path, tmp_path: Path, backend: str) -> Churned:
    return Churned(node, call, plugins, tmp_path / "state", backend)


@pytest.mark.slow
def test_200_in_a_row(network: Churned) -> None:
    container = network.node.container()
    given = []
    for _ in range(200):
        given.append(network.add(container)[0])
        network.delete(container)
    # The range is gone through before an address comes again.
    assert given[:64] == [f"10.1.2.{number}/24" for number in range(10, 74)]
    assert given[64:128] == given[:64]
    assert network.left_over == []


def test_a_process_that_serves_many_calls_keeps_nothing_open(network: Churned) -> None:
    container = network.node.container()
    opened = []
    with NetNS.open(network.node.path) as host:
        for _ in range(10):
            for command in ("ADD", "DEL"):
                environ = network.environ(command, container, "c")
                invoke.call(plugin, json.dumps(network.config).encode(), environ, host=host)
            opened.append(len(os.listdir("/proc/self/fd")))
    assert opened[1:] == opened[:-1]
    assert network.left_over == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_64_at_once(network: Churned) -> None:
    containers = {f"c{number}": network.node.container() for number in range(64)}

    def all_at_once(command: str) -> list[str]:
        running = [network.start(command, container, id) for id, container in containers.items()]
        answers = [process.communicate(timeout=LIMIT)[0] for process in running]
        failed = [answer for process, answer in zip(running, answers, strict=True) if process.returncode]
        assert not failed, f"{len(failed)} failed: {failed[0]}"
        return answers

    results = [json.loads(answer) for answer in all_at_once("ADD")]
    given = {ip["address"].partition("/")[0] for result in results for ip in result["ips"]}
    assert len(given) == 128
    assert network.reserved == given
    ports = {link["ifname"] for link in network.node.ip("link", "show", "master", "br0")}
    assert ports == {result["interfaces"][1]["name"] for result in results}
    for container, result in zip(containers.values(), results, strict=True):
        assert addresses(container, "eth0") == {ip["address"] for ip in result["ips"]}
    first, last = (list(containers.values())[number] for number in (0, -1))
    assert pings(first, results[-1]["ips"][0]["address"].partition("/")[0])
    assert pings(last, "10.1.2.1")

    refused = network.answer("ADD", network.node.container(), "one-too-many")
    assert "no IP addresses available in range set" in json.loads(refused["stdout"])["msg"]

    assert all_at_once("DEL") == [""] * 64
    assert network.left_over == []
    assert all(links(container) == {"lo"} for container in containers.values())


def assert_that_del_makes_it_good(network: Churned, container: Node, moment: str) -> None:
    network.delete(container)
    assert network.left_over == [], moment
    assert links(container) == {"lo"}, moment
    assert len(network.add(container)) == 2, moment
    network.delete(container)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS[1:], indirect=True)
def test_the_executable_killed_at_any_moment(network: Churned) -> None:
    container = network.node.container()
    moments, killed = 30, 0
    while killed <= moments / 3:  # anew where the machine has become faster than it was
        duration = shortest_add(network, container)
        for number in range(moments + 1):
            delay = duration * number / moments
            with network.start("ADD", container) as running:
                time.sleep(delay)
                running.kill()
                running.communicate()
            killed += running.returncode == -signal.SIGKILL
            assert_that_del_makes_it_good(network, container, f"killed after {delay:.4f} s")
    assert network.left_over == []


def shortest_add(network: Churned, container: Node) -> float:
    """Return the seconds that the fastest of three ADDs took."""
    durations = []
    for _ in range(3):
        started = time.monotonic()
        assert network.start("ADD", container).communicate()[0]
        durations.append(time.monotonic() - started)
        network.delete(container)
    return min(durations)


def moments_of_an_add(network: Churned, container: Node, number: int) -> range:
    """That many lines out of all that an ADD comes to."""
    lines: int = network.answer("ADD", container, die_at=-1)["lines"]
    network.delete(container)
    return range(0, lines, lines // number)


def killed_at(network: Churned, container: Node, line: int, lines: int) -> None:
    status = network.answer("ADD", container, die_at=line)["status"]
    # What there is to wait for differs, and with it the number of lines: the last ones may not be reached.
    assert status == -signal.SIGKILL or (status == 0 and line > lines / 2)
    assert_that_del_makes_it_good(network, container, f"killed at line {line} of {lines}")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS[1:], indirect=True)
def test_killed_between_any_two_lines_that_change_something(network: Churned) -> None:
    container = network.node.container()
    network.add(container)  # the bridge's making has its own lines
    network.delete(container)
    moments = moments_of_an_add(network, container, 60)
    for line in moments:
        killed_at(network, container, line, moments.stop)
    assert network.left_over == []


@pytest.mark.slow
def test_killed_while_the_bridge_is_made(network: Churned) -> None:
    container = network.node.container()
    moments = moments_of_an_add(network, container, 30)
    for line in moments:
        network.node.run(["ip", "link", "delete", "br0"])
        killed_at(network, container, line, moments.stop)
        (bridge,) = network.node.ip("link", "show", "dev", "br0")
        assert bridge["address"] == "0a:58:0a:01:02:01"
