"""`cni bench` on the kernel: every mode works, what fails is named, and nothing is left, however it ends."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.invoke import launcher
from tests.waiting import LIMIT, until

if TYPE_CHECKING:
    from tests.conftest import Node

Bench = Callable[..., Any]
ALL_MODES = "exec,agent,in-process,floor,pyroute2,python"
OF_GO = ["--plugins", "go=/usr/lib/cni"]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "cni", "bench", *words]


def environ() -> dict[str, str]:
    return {"PYTHONPATH": launcher.PACKAGES}


@pytest.fixture
def bench(node: Node) -> Bench:
    """Run it; what it prints, decoded."""

    def run(*words: str, status: int = 0) -> Any:
        done = node.run(command(*words, "--json"), env=environ(), check=False)
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout) if status == 0 else done.stderr

    return run


def by_subject(found: Any, verb: str) -> dict[str, Any]:
    return {each["subject"]: each for each in found["times"] if each["verb"] == verb}


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 3])
def test_every_mode(bench: Bench, concurrency: int) -> None:
    words = ["--mode", ALL_MODES, "--verbs", "version,add,check,del,churn", "--concurrency", str(concurrency)]
    found = bench("--plugins", "ours=", *OF_GO, *words, "--count", "3", "--rounds", "2")
    everybody = {"ours exec", "ours agent", "ours in-process", "go exec", "floor", "pyroute2", "python"}
    with_plugins = everybody - {"floor", "pyroute2"}
    for verb, subjects in {
        "VERSION": with_plugins,
        "ADD": everybody,
        "CHECK": with_plugins,
        "DEL": everybody,
        "CHURN": everybody,
    }.items():
        times = by_subject(found, verb)
        assert set(times) == subjects, verb
        for subject, each in times.items():
            assert [len(seconds) for seconds in each["rounds"]] == [3, 3]
            in_rounds = concurrency > 1 or verb == "CHURN"
            assert len(each["walls"]) == (2 if in_rounds else 0)
            assert 0 < each["p50"] <= each["p90"] <= each["p99"] < 60
            assert set(each["ratios"]) == {"go exec", "floor"} & subjects - {subject}


@pytest.mark.slow
def test_the_agent_is_what_answers(bench: Bench) -> None:
    def is_quicker() -> bool:
        times = by_subject(bench("--mode", "exec,agent", "--plugins", "ours=", "--verbs", "version"), "VERSION")
        return bool(times["ours agent"]["p50"] < 0.7 * times["ours exec"]["p50"])

    # A cold one starts an interpreter. Other work on the machine may hit either.
    until(is_quicker, "the agent to be quicker than an interpreter's start")


def test_others_that_are_alive(bench: Bench) -> None:
    words = ["--mode", "in-process,floor", "--density", "0,9", "--concurrency", "1,2", "--verbs", "add"]
    times = bench("--plugins", "ours=", *words, "--count", "2", "--rounds", "1")["times"]
    settings = [(each["density"], each["concurrency"], each["subject"]) for each in times]
    assert sorted(settings) == sorted((d, c, s) for d in (0, 9) for c in (1, 2) for s in ("ours in-process", "floor"))
    assert [each["density"] for each in times if each["growth"] is not None] == [9] * 4


@pytest.mark.parametrize("network", ["ptp", "macvlan", "masquerade"])
def test_the_networks_that_are_built_in(bench: Bench, network: str) -> None:
    words = ["--conflist", network, "--plugins", "ours=", *OF_GO, "--mode", "exec,in-process", "--verbs", "check"]
    assert set(by_subject(bench(*words, "--count", "2", "--rounds", "1"), "CHECK")) == {
        "ours exec", "ours in-process", "go exec",
    }  # fmt: skip


def test_a_chain_of_plugins_with_ports(bench: Bench) -> None:
    words = ["--conflist", "portmap", "--plugins", "ours=", *OF_GO, "--mode", "exec,agent", "--verbs", "add,churn"]
    found = bench(*words, "--no-check", "--count", "2", "--rounds", "1")
    assert set(by_subject(found, "ADD")) == set(by_subject(found, "CHURN")) == {"ours exec", "ours agent", "go exec"}


def test_a_network_and_folders_of_ones_own(bench: Bench, plugins: Path, tmp_path: Path) -> None:
    ipam = {"type": "static", "addresses": [{"address": "10.1.0.2/24"}]}
    conf = {"cniVersion": "0.3.1", "name": "n", "type": "bridge", "ipam": ipam}
    (tmp_path / "n.conf").write_text(json.dumps(conf))
    words = ["--conflist", str(tmp_path / "n.conf"), "--plugins", f"mine={plugins}", "--count", "2", "--rounds", "1"]
    times = bench(*words)["times"]
    # 0.3.1 has no CHECK.
    assert {(each["verb"], each["subject"]) for each in times} == {
        (verb, f"mine {mode}") for verb in ("ADD", "DEL", "CHURN") for mode in ("exec", "agent", "in-process")
    }


def test_a_soak(bench: Bench) -> None:
    found = bench("--soak", "60", "--mode", "agent,in-process", "--plugins", "ours=", "--concurrency", "2")
    assert [(soak["subject"], soak["calls"]) for soak in found["soak"]] == [
        ("ours agent", [30, 60]), ("ours in-process", [30, 60]),
    ]  # fmt: skip
    for soak in found["soak"]:
        assert soak["lost"] == {}
        assert all(usage["memory"] > 1_000_000 and usage["threads"] for usage in soak["usage"])


def test_tables_and_pictures(node: Node, tmp_path: Path) -> None:
    words = ["--mode", "floor", "--count", "3", "--rounds", "1", "--svg", str(tmp_path / "svg")]
    done = node.run(command(*words), env=environ())
    assert done.stdout.startswith("Network bridge, 1 rounds of 3 attachments")
    assert [line.split()[0] for line in done.stdout.splitlines()[3:]] == ["ADD", "DEL", "CHURN"]
    assert done.stderr.splitlines() == [str(path) for path in sorted((tmp_path / "svg").iterdir(), key=_order)]


def _order(path: Path) -> int:
    return ["add", "del", "churn"].index(path.name.split("-")[1])


# ---- what fails ----


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder of a plugin that can ADD, but not DEL."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "bridge"
    error = json.dumps({"code": 7, "msg": "it is stuck", "details": "for good"})
    result = json.dumps({"cniVersion": "1.0.0", "ips": []})
    program.write_text(f"#!/bin/sh\n[ $CNI_COMMAND != DEL ] || {{ echo '{error}'; exit 1; }}\necho '{result}'\n")
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("concurrency", ["1", "4"])
@pytest.mark.parametrize("verb", ["del", "churn"])
def test_a_plugin_that_fails_is_named(bench: Bench, broken: Path, verb: str, concurrency: str) -> None:
    words = ["--plugins", f"their={broken}", "--mode", "exec", "--verbs", verb, "--concurrency", concurrency]
    said = bench(*words, status=1)
    assert said == "cni bench: DEL by their exec: bridge: it is stuck; for good\n"


def test_a_plugin_that_is_not_there_is_named(bench: Bench, tmp_path: Path) -> None:
    said = bench("--plugins", f"none={tmp_path}", "--mode", "exec", status=1)
    assert "by none exec: bridge: " in said
    assert "no such file or directory" in said


def test_an_agent_that_does_not_start_is_named(bench: Bench, plugins: Path, tmp_path: Path) -> None:
    program = (plugins / "bridge").read_bytes()[: -launcher.TRAILER_SIZE]
    trailer = launcher.Trailer("/bin/sh", ("/nowhere",), "nothing:at_all").encode()
    (tmp_path / "bridge").write_bytes(program + trailer)
    (tmp_path / "bridge").chmod(0o755)
    said = bench("--plugins", f"bad={tmp_path}", "--mode", "agent", status=1)
    assert said.startswith("cni bench: bad agent: the agent does not start: ")


def test_pyroute2_is_asked_for_where_it_is_not(node: Node, tmp_path: Path) -> None:
    (tmp_path / "pyroute2.py").write_text("raise ImportError('there is none')")
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{launcher.PACKAGES}"}
    done = node.run(command("--mode", "pyroute2"), env=env, check=False)
    assert (done.returncode, done.stderr) == (
        1, "cni bench: pyroute2: pyroute2 is not installed (there is none)\n",
    )  # fmt: skip


# ---- nothing is left ----


class Running:
    """A bench that runs on a node, in a folder that is watched."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.folder = folder
        # A name of its own for the network, by which its state would be found.
        self.name = f"bench-{secrets.token_hex(4)}"
        conf = {
            "cniVersion": "1.0.0",
            "name": self.name,
            "plugins": [{"type": "bridge", "ipMasq": True, "ipam": {"type": "host-local", "subnet": "10.2.0.0/16"}}],
        }
        (folder / "net.conflist").write_text(json.dumps(conf))
        self.files = self._files()
        self.links = self._links()
        enter = ["nsenter", f"--net={node.path}"]
        words = ["--conflist", str(folder / "net.conflist"), "--plugins", "ours=", *OF_GO, "--mode", "exec,agent"]
        many = ["--count", "200", "--concurrency", "4", "--density", "10", "--svg", str(folder / "svg")]
        self.process = subprocess.Popen(
            [*enter, *command(*words, *many, "--verbs", "churn")],
            env={**os.environ, **environ(), "TMPDIR": str(folder)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._namespace: str | None = None

    def find_namespace(self) -> str | None:
        """The first process of the PID namespace that it works in, if that is there already."""
        for pid in self._children(self.process.pid):
            namespace = _namespace(pid)
            if namespace not in (None, _namespace(os.getpid())):
                self._namespace = namespace
                return pid
        return None

    def await_namespace(self) -> str:
        """The same, as soon as it is."""
        while not (found := self.find_namespace()):
            assert self.process.poll() is None
            time.sleep(0.001)
        return found

    def await_work(self) -> None:
        """Until there are an agent and plugins."""
        self.await_namespace()
        while len(self.processes) < 7:
            assert self.process.poll() is None
            time.sleep(0.001)

    @property
    def processes(self) -> list[str]:
        """All that are in the namespace."""
        return [pid for pid in os.listdir("/proc") if pid.isdigit() and _namespace(pid) == self._namespace]

    def assert_nothing_is_left(self) -> None:
        if self._namespace:
            until(lambda: not self.processes, "the processes to end")
        assert self._files() == self.files
        assert self._links() == self.links

    def _files(self) -> list[str]:
        state = [path for root in ("/run/cni", "/var/lib/cni") for path in Path(root).rglob(f"*{self.name}*")]
        return sorted(str(path) for path in [*self.folder.rglob("*"), *state, *Path("/run").glob("cni-bench*")])

    def _links(self) -> list[str]:
        return [link["ifname"] for link in self.node.ip("link")]

    def _children(self, pid: int) -> list[str]:
        try:
            return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return []


def _namespace(pid: int | str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


@pytest.fixture
def running(node: Node, tmp_path: Path) -> Iterator[Running]:
    running = Running(node, tmp_path)
    with running.process:
        yield running
        running.process.kill()


# Seconds after the beginning; from "work" on there is everything.
MOMENTS = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7]


@pytest.mark.slow
@pytest.mark.parametrize("delay", MOMENTS)
def test_interrupted_at_the_beginning(running: Running, delay: float) -> None:
    while "bench" not in Path(f"/proc/{running.process.pid}/cmdline").read_text():
        time.sleep(0.001)
    time.sleep(delay)
    running.find_namespace()
    running.process.send_signal(signal.SIGINT)
    out, err = running.process.communicate(timeout=LIMIT)
    # Python itself may not be up yet.
    assert running.process.returncode in (130, -signal.SIGINT) or "import" in err, err
    assert out == ""
    running.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 1.0])
def test_interrupted_in_the_middle(running: Running, delay: float) -> None:
    running.await_work()
    time.sleep(delay)
    running.process.send_signal(signal.SIGINT)
    out, err = running.process.communicate(timeout=LIMIT)
    # It has waited for the last of them.
    assert running.processes == []
    assert (running.process.returncode, out, err) == (130, "", "cni bench: interrupted\n")
    running.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_killed_in_the_middle(running: Running, number: signal.Signals) -> None:
    running.await_work()
    running.process.send_signal(number)
    running.process.communicate(timeout=LIMIT)
    assert running.process.returncode == -number
    running.assert_nothing_is_left()


@pytest.mark.slow
def test_what_measures_is_killed(running: Running) -> None:
    first = running.await_namespace()
    running.await_work()
    os.kill(int(first), signal.SIGKILL)
    _, err = running.process.communicate(timeout=LIMIT)
    assert (running.process.returncode, err) == (1, "cni bench: the process that measures exited too early\n")
    running.assert_nothing_is_left()


def test_nothing_is_left_after_a_whole_run(node: Node, tmp_path: Path) -> None:
    before = node.ip("link"), node.run(["sysctl", "net.ipv4.ip_forward"]).stdout
    node.run(command("--plugins", "ours=", "--mode", "exec,agent", "--count", "2", "--rounds", "1"), env=environ())
    assert (node.ip("link"), node.run(["sysctl", "net.ipv4.ip_forward"]).stdout) == before
