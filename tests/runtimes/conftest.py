"""Container runtimes as they are, each test's own: started by the recipes that lie beside the project."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import LIMIT, until

if TYPE_CHECKING:
    from tests.conftest import Node

IMAGE = "localhost/test/busybox:1"


def run(*argv: str | Path, check: bool = True) -> str:
    """A command's stdout; a failure shows what it said. Without `check`, all that it said."""
    command = [str(word) for word in argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        pytest.fail(f"{command} ended with {done.returncode}\nstdout: {done.stdout}\nstderr: {done.stderr}")
    return done.stdout if check else done.stdout + done.stderr


@pytest.fixture
def folder() -> Iterator[Path]:
    """The runtime's own. Its name is short: under a longer one podman waits 20 s for each container that exits."""
    with tempfile.TemporaryDirectory(prefix="cni-") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def nothing_left(folder: Path) -> Iterator[None]:
    """No process, mount or socket of the test's runtime is there after it."""
    shims = _entries("/run/containerd/s")
    yield
    until(lambda: _processes_of(folder) == [], "the runtime's processes to end")
    if "PYTEST_XDIST_WORKER" not in os.environ:  # else a neighbour's come and go
        assert _entries("/run/containerd/s") <= shims


def _entries(folder: str) -> set[str]:
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()


def _processes_of(folder: Path) -> list[str]:
    """Processes that name the folder, or see a mount that does: this one would see what is left on the machine."""
    return [
        _words(process)
        for process in Path("/proc").glob("[0-9]*")
        if _has(process / "cmdline", folder) or _has(process / "mountinfo", folder)
    ]


def _words(process: Path) -> str:
    with contextlib.suppress(OSError):
        return f"{process.name}: {(process / 'cmdline').read_text()}".replace("\0", " ")
    return f"{process.name}, which has ended"


def _has(file: Path, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.fsencode(folder) in file.read_bytes()
    return False


@pytest.fixture
def mixed(plugins: Path, go_plugins: Path, tmp_path: Path) -> Path:
    """A folder with our plugins and, for what a runtime chains behind them, the reference's."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for plugin in plugins.iterdir():
        (folder / plugin.name).symlink_to(plugin)
    for name in {"portmap", "firewall", "tuning", "bandwidth"} - {plugin.name for plugin in plugins.iterdir()}:
        (folder / name).symlink_to(go_plugins / name)
    return folder


class Call:
    """A record of what a runtime, or a plugin, asked of a plugin and was told."""

    def __init__(self, line: str) -> None:
        record = json.loads(line)
        self.plugin: str = record["plugin"]
        self.env: dict[str, str] = record["env"]
        self.verb = self.env["CNI_COMMAND"]
        self.config: dict[str, Any] = json.loads(record["stdin"]) if record["stdin"].strip() else {}
        self.status: int = record["rc"]
        self.stdout: str = record["stdout"]

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.stdout)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"{self.plugin} {self.verb} {self.env} -> {self.status} {self.stdout}"


class Logged:
    """A folder of plugins that write down what they are asked."""

    def __init__(self, recipes: Path, plugins: Path, folder: Path) -> None:
        self.folder = folder / "logged"
        self._log = folder / "calls"
        self._log.touch()
        run(recipes / "mk-logged-bin", plugins, self.folder, self._log)

    def calls(self, plugin: str, verb: str) -> list[Call]:
        calls = [Call(line) for line in self._log.read_text().splitlines()]
        return [call for call in calls if (call.plugin, call.verb) == (plugin, verb)]


@pytest.fixture
def logged(recipes: Path, tmp_path: Path) -> Callable[[Path], Logged]:
    """Wraps the plugins of a folder."""
    return lambda plugins: Logged(recipes, plugins, tmp_path)


class State:
    """A record of what is left of attachments: seen by commands in the node, and in its /var/lib/cni."""

    def __init__(self, run: Callable[..., str], folder: Path) -> None:
        self._run = run
        self.folder = folder

    def ports(self) -> list[str]:
        links = json.loads(self._run("ip", "-json", "link", "show", "type", "veth") or "[]")
        return [link["ifname"] for link in links]

    def addresses(self) -> list[str]:
        files = (self.folder / "networks").glob("*/*")
        return sorted(file.name for file in files if not re.fullmatch(r"lock|last_reserved_ip\.\d+", file.name))

    def results(self) -> list[Path]:
        return sorted((self.folder / "results").glob("*"))

    def rules(self) -> list[str]:
        """Rules and chains of single attachments; what plugins keep for all of them is not meant."""
        lines = [line for command in ("iptables-save", "ip6tables-save") for line in self._run(command).splitlines()]
        lines += self._run("nft", "list", "ruleset").splitlines()
        return [line for line in lines if re.search(r"CNI-(DN-|SN-)?[0-9a-f]{16,}|\b10\.7\d\.|\bfd7\d:|\bid: ", line)]

    def nothing_left(self) -> None:
        assert (self.ports(), self.addresses(), self.results(), self.rules()) == ([], [], [], [])


class Podman:
    """A podman with network_backend "cni" and a network namespace of its own."""

    def __init__(self, recipes: Path, folder: Path, plugins: Path) -> None:
        self._program = recipes / "podman-cni"
        self.folder = folder
        self.networks = folder / "net"
        run(self._program, "up", folder, plugins)
        self.state = State(self.inside, folder / "cni")

    def __call__(self, *arguments: str, check: bool = True) -> str:
        return run(self._program, self.folder, *arguments, check=check)

    def start(self, name: str, network: str, *options: str) -> None:
        """A container that serves the image's page."""
        self(
            "run", "-d", "--name", name, "--network", network, *options, IMAGE, "httpd", "-f", "-p", "80", "-h", "/www"
        )

    def inside(self, *argv: str) -> str:
        return run(self._program, "in", self.folder, *argv)

    def down(self) -> None:
        holder = int((self.folder / "pid").read_text())
        run(self._program, "down", self.folder)
        _await_end(holder)


@pytest.fixture
def podman(recipes: Path, folder: Path) -> Iterator[Callable[[Path], Podman]]:
    """Starts one with the plugins of a folder."""
    with contextlib.ExitStack() as stack:

        def start(plugins: Path) -> Podman:
            started = Podman(recipes, folder / "p", plugins)
            stack.callback(started.down)
            return started

        yield start


class Containerd:
    """A containerd in a node, with one network."""

    def __init__(self, recipes: Path, folder: Path, plugins: Path, node: Node, network: dict[str, Any]) -> None:
        self._recipes, self._plugins, self._node = recipes, plugins, node
        self._jobs: list[subprocess.Popen[str]] = []
        self.folder = folder / "c"
        self._conf = folder / "conf"
        self._conf.mkdir()
        (self._conf / "10-net.conflist").write_text(json.dumps(network))
        run(recipes / "containerd-up", self.folder, self._conf, plugins, node.name)
        # ctr is libcni's caller itself, and sees another /var/lib/cni than the daemon, which calls it for pods.
        self.ctr_state = State(self._inside, self._conf / ".state")
        self.pod_state = State(self._inside, self.folder / "cni")

    def _inside(self, *argv: str) -> str:
        return self._node.run(list(argv)).stdout

    def ctr(self, *arguments: str) -> str:
        return run("ctr", "-a", self.folder / "sock", *arguments)

    def run(self, name: str, script: str) -> str:
        """A container on the network that runs the script and is removed: what it printed."""
        return run(*self._run_command(name, script))

    def kill(self, name: str) -> None:
        self.ctr("task", "kill", "-s", "KILL", self._id(name))

    def _id(self, name: str) -> str:
        return f"{self._node.name}-{name}"  # runc's folder is the machine's own, and so shared by all tests' containers

    def start(self, name: str, script: str) -> tuple[subprocess.Popen[str], str]:
        """A container on the network that stays: `ctr`, which waits for it, and the first line it printed."""
        command = [str(word) for word in self._run_command(name, script)]
        job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._jobs.append(job)
        assert job.stdout
        return job, job.stdout.readline()

    def _run_command(self, name: str, script: str) -> list[str | Path]:
        enter = [self._recipes / "with-cni", self._conf, self._plugins, "-n", self._node.name, "--"]
        ctr = ["ctr", "-a", self.folder / "sock", "run", "--rm", "--cni", IMAGE]
        return [*enter, *ctr, self._id(name), "/bin/sh", "-c", script]

    def cri(self, *arguments: str) -> str:
        return run(sys.executable, self._recipes / "cri.py", self.folder / "sock", *arguments)

    def down(self) -> None:
        daemon = int((self.folder / "pid").read_text())
        run(self._recipes / "containerd-up", "-d", self.folder)
        _await_end(daemon)
        for job in self._jobs:
            job.communicate(timeout=LIMIT)


@pytest.fixture
def containerd(recipes: Path, folder: Path, node: Node) -> Iterator[Callable[[Path, dict[str, Any]], Containerd]]:
    """Starts one with the plugins of a folder and a network."""
    # The recipe hides /opt, where ctr has its plugins' folder built in.
    assert not os.path.realpath(sys.executable).startswith("/opt/"), "ctr's plugins cannot start a Python below /opt"
    with contextlib.ExitStack() as stack:

        def start(plugins: Path, network: dict[str, Any]) -> Containerd:
            started = Containerd(recipes, folder, plugins, node, network)
            stack.callback(started.down)
            return started

        yield start


def _await_end(pid: int) -> None:
    """Wait for a process that is not a child of this one."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            assert select.select([fd], [], [], LIMIT)[0], f"process {pid} of the runtime does not end"
        finally:
            os.close(fd)
