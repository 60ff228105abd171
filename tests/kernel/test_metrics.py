"""The agent's metrics are what was done, wherever they are read, and whoever else is at that."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cni.agent import metrics
from cni.agent.address import Address
from cni.install import units
from tests.waiting import LIMIT, is_listening, until

if TYPE_CHECKING:
    from tests.conftest import Node

CONFINED = Path(__file__).parents[1] / "confined.py"
PORT = "127.0.0.1:9464"  # of a node's own
RANGES = "10.1.2.1-10.1.2.6"
ANSWER = '{"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.2/29"}]}'

Done = subprocess.CompletedProcess[str]
Figures = dict[tuple[str, ...], float]


class Site:
    """A node with the network `pods`, whose five addresses host-local gives out."""

    def __init__(self, node: Node, plugins: Path, work: Path) -> None:
        self.node = node
        self.plugins = plugins
        self.work = work
        self.socket = work / "run" / "agent.sock"
        self.unix = str(work / "run" / "metrics.sock")
        self.environ = {
            "NETCONFPATH": str(work / "net.d"),
            "CNI_PATH": f"{work / 'programs'}:{plugins}",
            "CNI_AGENT_SOCKET": str(self.socket),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        ipam = {"type": "host-local", "dataDir": str(work / "networks"), "subnet": "10.1.2.0/29"}
        self.bridge = {"type": "bridge", "isGateway": True, "ipam": ipam}
        (work / "net.d").mkdir()
        (work / "net.d" / "pods.conflist").write_text(
            json.dumps({"cniVersion": "1.1.0", "name": "pods", "plugins": [self.bridge]})
        )

    @contextlib.contextmanager
    def agent(self, *words: str, before: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
        agent = [sys.executable, "-P", "-m", "cni", "agent", "--socket", str(self.socket), *words]
        command = ["nsenter", f"--net={self.node.path}", *before, *agent]
        environ = {**os.environ, **self.environ}
        with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as started:
            try:
                until(lambda: is_listening(self.socket) or started.poll() is not None, "the agent")
                yield started
            finally:
                started.terminate()

    def call(self, verb: str, container: Node | None = None, command: tuple[str, ...] = (), **keys: Any) -> Done:
        """A call of the plugin bridge."""
        return self.node.run(
            [*command, str(self.plugins / "bridge")],
            stdin=self.config(**keys),
            env=self.variables(verb, container),
            check=False,
        )

    def start(self, verb: str, container: Node, **keys: Any) -> subprocess.Popen[str]:
        """One that is not waited for."""
        file = self.work / verb
        file.write_text(self.config(**keys))
        command = ["nsenter", f"--net={self.node.path}", str(self.plugins / "bridge")]
        environ = {**os.environ, **self.variables(verb, container)}
        with file.open() as stdin:
            return subprocess.Popen(command, env=environ, stdin=stdin, stdout=subprocess.PIPE, text=True)

    def config(self, **keys: Any) -> str:
        return json.dumps({"cniVersion": "1.1.0", "name": "pods", **self.bridge, **keys})

    def variables(self, verb: str, container: Node | None) -> dict[str, str]:
        names = {"CNI_CONTAINERID": container.name, "CNI_NETNS": container.path} if container else {}
        return {**self.environ, "CNI_COMMAND": verb, "CNI_IFNAME": "eth0", **names}

    def cni(self, *words: str, check: bool = True, **environ: str) -> Any:
        command = [sys.executable, "-P", "-m", "cni", *words, "--json"]
        return json.loads(self.node.run(command, env={**self.environ, **environ}, check=check).stdout)

    def scrape(self, address: str) -> Scrape:
        """As Prometheus would, from within the node."""
        url = ["--unix-socket", address, "http://agent/metrics"] if "/" in address else [f"http://{address}/metrics"]
        return Scrape(self.node.run(["curl", "--silent", "--show-error", "--fail", *url]).stdout)


class Scrape:
    """Metrics as they were read."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def __call__(self, name: str, *labels: str) -> Figures:
        """Figures that are not 0, by these labels."""
        found = ((tuple(one.labels[label] for label in labels), one) for one in self._samples if one.name == name)
        return {values: one.value for values, one in found if one.value}


@pytest.fixture
def site(node: Node, plugins: Path, tmp_path: Path) -> Site:
    return Site(node, plugins, tmp_path)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_the_figures_are_what_was_done(site: Site, kind: str) -> None:
    address = site.unix if kind == "unix" else PORT
    done: Counter[tuple[str, ...]] = Counter()
    failed: Counter[tuple[str, ...]] = Counter()

    def call(verb: str, container: Node | None = None, label: str = "", **keys: Any) -> Done:
        answer = site.call(verb, container, **keys)
        done["bridge", label or verb, "error" if answer.returncode else "ok"] += 1
        if answer.returncode:
            failed["bridge", label or verb, str(json.loads(answer.stdout)["code"])] += 1
        return answer

    containers = [site.node.container() for _ in range(6)]
    begun = time.monotonic()
    with site.agent("--metrics", address) as agent:
        added = [call("ADD", container) for container in containers]
        assert [one.returncode for one in added] == [0, 0, 0, 0, 0, 1]  # a full pool
        result = json.loads(added[0].stdout)
        assert call("CHECK", containers[0], prevResult=result).returncode == 0
        for container in containers[1:3]:
            assert call("DEL", container).returncode == 0
        assert call("CHECK", containers[1], prevResult=json.loads(added[1].stdout)).returncode == 1
        assert call("ADD", containers[1], bridge=5).returncode == 1
        assert call("NONSENSE", containers[1], label="other").returncode == 1
        assert call("VERSION").returncode == 0
        assert call("STATUS").returncode == 0
        assert len(failed) == 3  # CHECK, ADD with two codes that may be one, and another verb

        read = site.scrape(address)
        labels = ("plugin", "verb", "outcome")
        assert read("cni_request_duration_seconds_count", *labels) == done
        assert read("cni_errors_total", "plugin", "verb", "code") == failed
        spent = read("cni_request_duration_seconds_sum", *labels)
        assert spent.keys() == done.keys()
        assert sum(spent.values()) < time.monotonic() - begun
        for name in ("cni_requests_waiting", "cni_requests_running", "cni_links_being_deleted", "cni_ipam_unreadable"):
            assert read(name) == {}
        assert read("cni_requests_declined_total", "reason") == {}
        assert read("process_open_fds")[()] > 3
        (pods,) = site.cni("ipam", "list")
        (ranges,) = pods["ranges"]
        assert read("cni_ipam_addresses", "network", "ranges", "state") == {
            ("pods", ranges["ranges"], "used"): ranges["held"],
            ("pods", ranges["ranges"], "free"): ranges["free"],
        }
        assert (ranges["ranges"], ranges["held"], ranges["free"]) == (RANGES, 3, 2)
        agent.terminate()
        assert agent.wait(LIMIT) == 0
    assert not Path(site.unix).exists()


def test_a_call_that_runs_and_one_that_waits_for_it(site: Site) -> None:
    fifo = site.work / "fifo"
    os.mkfifo(fifo)
    program = site.work / "programs" / "slow"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh -e\n[ $CNI_COMMAND != ADD ] || {{ read line <{fifo}; echo '{ANSWER}'; }}\n")
    program.chmod(0o755)
    container = site.node.container()

    def now() -> tuple[float, float]:
        read = site.scrape(site.unix)
        return read("cni_requests_running").get((), 0), read("cni_requests_waiting").get((), 0)

    with site.agent("--metrics", site.unix), contextlib.ExitStack() as started:
        begun = time.monotonic()
        adding = started.enter_context(site.start("ADD", container, ipam={"type": "slow"}))
        until(lambda: now() == (1, 0), "a call that runs")
        deleting = started.enter_context(site.start("DEL", container, ipam={"type": "slow"}))
        until(lambda: now() == (1, 1), "another that waits")
        both = time.monotonic()
        pause = time.monotonic() - both
        fifo.write_text("\n")
        assert (adding.wait(LIMIT), deleting.wait(LIMIT)) == (0, 0)
        elapsed = time.monotonic() - begun
        assert now() == (0, 0)
        read = site.scrape(site.unix)
    assert read("cni_request_wait_seconds_count") == {(): 2}
    waited, ran = read("cni_request_wait_seconds_sum")[()], read("cni_request_duration_seconds_sum", "verb")["ADD",]
    assert pause <= waited < elapsed
    assert pause <= ran < elapsed


def test_a_call_that_is_left_to_its_launcher(site: Site) -> None:
    container = site.node.container()
    with site.agent("--metrics", site.unix):
        assert site.call("ADD", container, command=("unshare", "--mount")).returncode == 0
        read = site.scrape(site.unix)
    assert read("cni_requests_declined_total", "reason") == {("other_files",): 1}
    assert read("cni_request_duration_seconds_count") == {}
    assert read("cni_ipam_addresses", "state") == {("used",): 1, ("free",): 4}  # whoever reserved it


def queued(site: Site) -> int:
    """Return how many connections the agent has not accepted yet."""
    command = ["ss", "--unix", "--no-header", "--listening", "--numeric", "src", site.unix]
    return int(site.node.run(command).stdout.split()[2])


def test_clients_that_say_nothing(site: Site) -> None:
    """They take a few descriptors and no thread, and the agent goes on."""
    with site.agent("--metrics", site.unix) as agent, contextlib.ExitStack() as opened:
        process = Path(f"/proc/{agent.pid}")
        assert site.call("VERSION").returncode == 0  # its own threads are there
        before = [len(list((process / kind).iterdir())) for kind in ("task", "fd")]
        for _ in range(16):
            opened.enter_context(Address(site.unix).connect(LIMIT))
        until(lambda: queued(site) <= 16 - metrics._THREADS, "the agent to accept as many as it has threads for them")
        after = [len(list((process / kind).iterdir())) for kind in ("task", "fd")]
        assert (after[0] - before[0], after[1] - before[1] <= 4) == (0, True)
        assert site.call("ADD", site.node.container()).returncode == 0
        opened.close()
        assert site.scrape(site.unix)("cni_request_duration_seconds_count", "verb") == {("VERSION",): 1, ("ADD",): 1}


def test_a_port_that_is_taken(site: Site) -> None:
    first = site.socket
    with site.agent("--metrics", PORT):
        site.socket = site.work / "run" / "second.sock"
        with site.agent("--metrics", PORT) as second:
            _, said = second.communicate(timeout=LIMIT)
        assert second.returncode == 1
        text = (
            f"cni agent: cannot listen at {PORT}: another program has the port; `ss -ltnp sport = :9464` shows which\n"
        )
        assert said == text
        assert not site.socket.exists()
        assert first.exists()
        assert site.scrape(PORT)("cni_build_info")


def test_an_address_that_is_none(site: Site) -> None:
    with site.agent("--metrics", "somewhere") as agent:
        _, said = agent.communicate(timeout=LIMIT)
    assert agent.returncode == 2
    assert (
        "argument --metrics: 'somewhere' is neither HOST:PORT (such as 127.0.0.1:9464 or [::1]:9464) nor a path" in said
    )


def test_by_the_unit(site: Site) -> None:
    """With what that leaves to the agent."""
    for unit in units.agent(site.work, Address.parse(PORT)):
        unit.do()
    service = site.work / "cni-agent.service"
    command = next(line for line in service.read_text().splitlines() if line.startswith("ExecStart="))
    assert units.metrics_address(site.work) == PORT
    words = shlex.split(command.partition("=")[2])
    confined = (sys.executable, "-P", str(CONFINED), str(service))
    with site.agent(*words[words.index("agent") + 1 :], before=confined):
        assert site.call("ADD", site.node.container()).returncode == 0
        assert site.scrape(PORT)("cni_ipam_addresses", "state") == {("used",): 1, ("free",): 4}


def test_the_doctor_tells_whether_they_can_be_read(site: Site) -> None:
    def findings(address: str) -> list[tuple[str, str]]:
        told = site.cni("doctor", "agent", "--cache-dir", str(site.work), check=False, CNI_AGENT_METRICS=address)
        found = [(each["severity"], each["finding"]) for each in told["findings"]]
        return [each for each in found if "the agent's metrics" in each[1]]

    with site.agent("--metrics", PORT):
        read = [("ok", f"the agent's metrics can be read at {PORT}")]
        until(lambda: findings(PORT) == read, "an answer within the doctor's timeout")
    assert findings(PORT) == [("warning", f"the agent's metrics cannot be read at {PORT}: Connection refused")]
    folder = site.work / "other"
    folder.mkdir()
    path = str(folder / "socket")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as other:
        other.bind(path)
        other.listen(1)
        assert findings(path) == [("warning", f"the agent's metrics cannot be read at {path}: timed out")]
