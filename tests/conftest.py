"""For all tests: a node of their own (a private network namespace), and the plugins, ours and Go's."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.invoke import launcher
from tests.waiting import LIMIT, is_listening, until

if TYPE_CHECKING:
    from tests.lan import Lan

pytest.register_assert_rewrite("tests.networks")

# Python's `-c` and `-m` would import from the current folder, which is the tree and not what is installed.
os.environ["PYTHONSAFEPATH"] = "1"
# Executables wait for the agent, however slow the machine is, instead of doing its work.
AGENT_TIMEOUT = {"CNI_AGENT_TIMEOUT": str(LIMIT)}
os.environ.update(AGENT_TIMEOUT)

PATH = os.environ["PATH"]
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "recipes"

Call = Callable[..., dict[str, Any]]


def _program(name: str) -> str:
    """Found where this machine has it, whatever PATH a test has set since."""
    found = shutil.which(name, path=PATH)
    assert found, f"{name} is not installed"
    return found


class Node:
    """A network namespace to run things in, with nothing in it but `lo`, up."""

    def __init__(self) -> None:
        self.name = f"cnitest-{secrets.token_hex(4)}"
        self.path = f"/run/netns/{self.name}"
        self._environ = {**os.environ, "PATH": PATH}
        self._containers: list[Node] = []
        self._mounts: subprocess.Popen[bytes] | None = None
        subprocess.run([_program("ip"), "netns", "add", self.name], check=True)
        self.run(["ip", "link", "set", "lo", "up"])

    def run(
        self,
        argv: list[str],
        stdin: str | None = None,
        env: dict[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the node; `env` is added to this process's. A failure shows what it said."""
        command = [_program("nsenter"), f"--net={self.path}", *self._enter_mounts(), *argv]
        environ = {**self._environ, **(env or {})}
        done = subprocess.run(command, input=stdin, env=environ, capture_output=True, text=True, timeout=LIMIT)
        if check and done.returncode:
            pytest.fail(f"{argv} ended with {done.returncode}\nstdout: {done.stdout}\nstderr: {done.stderr}")
        return done

    @contextlib.contextmanager
    def start(self, argv: list[str]) -> Iterator[subprocess.Popen[str]]:
        """A program that runs in the node as long as the `with` block lasts."""
        command = [_program("nsenter"), f"--net={self.path}", *self._enter_mounts(), *argv]
        with subprocess.Popen(command, env=self._environ, stdout=subprocess.PIPE, text=True) as started:
            try:
                yield started
            finally:
                started.kill()

    def python(self, code: str, *arguments: str, env: dict[str, str] | None = None) -> str:
        """Run Python code that can import what this process can; its stdout."""
        path = os.pathsep.join(filter(None, sys.path))
        return self.run([sys.executable, "-P", "-c", code, *arguments], env={"PYTHONPATH": path, **(env or {})}).stdout

    def ip(self, *arguments: str) -> Any:
        """`ip -json -details`, parsed; None where it prints nothing."""
        printed = self.run(["ip", "-json", "-details", *arguments]).stdout
        return json.loads(printed) if printed.strip() else None

    def nft(self, commands: str) -> str:
        """Run nft commands by the program."""
        return self.run(["nft", "-f", "-"], stdin=commands).stdout

    def nft_ruleset(self) -> list[dict[str, Any]]:
        """Return what `nft -j list ruleset` finds, without handles."""
        objects = json.loads(self.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]
        found = [entry for entry in objects if "metainfo" not in entry]
        for entry in found:
            for properties in entry.values():
                properties.pop("handle", None)
        return found

    def iptables_save(self, version: int = 4, table: str = "nat", variant: str = "") -> list[str]:
        """The chains and rules of a table, without counters; `variant` is "", "-nft" or "-legacy"."""
        command = f"{'iptables' if version == 4 else 'ip6tables'}{variant}-save"
        lines = self.run([command, "-t", table]).stdout.splitlines()
        return [line.partition(" [")[0] for line in lines if line.startswith((":", "-A"))]

    def container(self) -> Node:
        """A further namespace, thrown away with this one."""
        self._containers.append(Node())
        return self._containers[-1]

    def hide(self, folder: str) -> None:
        """From now on the node's programs see an empty folder of their own there; other mounts are this process's."""
        if not self._mounts:
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep infinity"]
            self._mounts = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert self._mounts.stdout
            self._mounts.stdout.readline()  # the shell runs, so the mount namespace is there
        self.run(["mkdir", "-p", folder])
        self.run(["mount", "-t", "tmpfs", "cnitest", folder])

    def _enter_mounts(self) -> list[str]:
        return [f"--mount=/proc/{self._mounts.pid}/ns/mnt"] if self._mounts else []

    def close(self) -> None:
        for container in self._containers:
            container.close()
        if self._mounts:
            self._mounts.kill()
            self._mounts.communicate()
        subprocess.run([_program("ip"), "netns", "delete", self.name], check=True)


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()


@pytest.fixture
def make_node() -> Iterator[Callable[[], Node]]:
    """For tests that compare several nodes."""
    nodes: list[Node] = []

    def make() -> Node:
        nodes.append(Node())
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def legacy_path(tmp_path: Path) -> str:
    """A PATH on which iptables is the legacy variant, whichever one is the machine's own."""
    folder = tmp_path / "legacy"
    folder.mkdir()
    for command in ("iptables", "ip6tables"):
        for suffix in ("", "-restore", "-save"):
            (folder / f"{command}{suffix}").symlink_to(_program(f"{command}-legacy{suffix}"))
    return f"{folder}{os.pathsep}{PATH}"


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our plugins, installed as a user would."""
    folder = tmp_path_factory.mktemp("bin")
    # From the folder of the test's own packages: `-m` looks into the current one first.
    command = [sys.executable, "-m", "cni", "install", "--dir", str(folder)]
    environ = {**os.environ, "PYTHONPATH": launcher.PACKAGES}
    subprocess.run(command, cwd=folder, env=environ, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def go_plugins() -> Path:
    """The reference's plugins: Debian's package containernetworking-plugins."""
    folder = Path("/usr/lib/cni")
    assert (folder / "bridge").exists(), "Debian's package containernetworking-plugins is not installed"
    return folder


@pytest.fixture
def lan(node: Node, plugins: Path, go_plugins: Path, tmp_path: Path) -> Iterator[Lan]:
    """A network with a DHCP server on the node (see lan.py)."""
    spec = importlib.util.spec_from_file_location("lan", Path(__file__).with_name("lan.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.made(node, {"ours": plugins, "theirs": go_plugins}, tmp_path) as lan:
        yield lan


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-recipes",
        action="store_true",
        help="skip what needs the scripts that start runtimes and guest kernels, instead of failing without them",
    )


@pytest.fixture(scope="session")
def recipes(pytestconfig: pytest.Config) -> Path:
    """Return the folder of scripts that start runtimes and guests: beside the project, or CNI_RECIPES."""
    if pytestconfig.getoption("--without-recipes"):
        pytest.skip("needs the recipes (--without-recipes)")
    folder = Path(os.environ.get("CNI_RECIPES") or BESIDE)
    assert folder.is_dir(), f"the recipes are not in {folder}; CNI_RECIPES can name another folder"
    return folder


# How a call is served. A test that kills what serves it, or counts its lines, takes the first alone.
MODES = ("by a process", "by the agent", "in this process")


def pytest_configure() -> None:
    """Return what a shell has a job in the background ignore stays ignored in all that is started: tests send both."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests, those in a guest, and those that kill what serves them are not repeated in each mode."""
    items[:] = [item for item in items if _mode(item) == MODES[0] or not _is_for_processes(item)]


def _mode(item: pytest.Item) -> object:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("call", MODES[0]) if callspec else MODES[0]


def _is_for_processes(item: pytest.Item) -> bool:
    in_guest = item.path.is_relative_to(Path(__file__).with_name("vm"))
    return in_guest or any(item.get_closest_marker(name) for name in ("slow", "killing"))


@pytest.fixture(scope="session", params=MODES)
def call(request: pytest.FixtureRequest) -> Iterator[Call]:
    """Run a plugin: `call(module, netns, environ, config)` is its `status`, `stdout` and `stderr`."""
    serving = {"by a process": _forking, "by the agent": _asking, "in this process": _calling}[request.param]
    with serving(request) as call:
        yield call


@contextlib.contextmanager
def _forking(_: pytest.FixtureRequest) -> Iterator[Call]:
    """By a fresh process, forked from one that has everything imported (see fork_server.py)."""
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as forker:
        assert forker.stdin
        assert forker.stdout
        requests, answers = forker.stdin, forker.stdout

        def call(module: str, netns: str, environ: dict[str, str], config: str, **more: int) -> dict[str, Any]:
            # A test may have changed PATH since.
            variables = {"PATH": os.environ["PATH"], **environ}
            request = {"plugin": module, "netns": netns, "environ": variables, "config": config, **more}
            requests.write(json.dumps(request) + "\n")
            answer: dict[str, Any] = json.loads(answers.readline())
            return answer

        yield call
        requests.close()


@contextlib.contextmanager
def _asking(request: pytest.FixtureRequest) -> Iterator[Call]:
    """By the executables, which ask an agent in another network namespace than theirs."""
    plugins: Path = request.getfixturevalue("plugins")
    folder: Path = request.getfixturevalue("tmp_path_factory").mktemp("agent", numbered=True)
    address = str(folder / "agent.sock")
    names = {point.module: point.name for point in importlib.metadata.entry_points(group="cni.plugins")}
    command = [sys.executable, "-m", "cni", "agent", "--socket", address]
    environment = {**os.environ, "PYTHONPATH": launcher.PACKAGES}
    with subprocess.Popen(command, cwd="/", env=environment) as agent:
        until(lambda: is_listening(address) or agent.poll() is not None, "the agent")

        def call(module: str, netns: str, environ: dict[str, str], config: str) -> dict[str, Any]:
            variables = {"PATH": os.environ["PATH"], **environ, **AGENT_TIMEOUT, "CNI_AGENT_SOCKET": address}
            entered = [_program("nsenter"), f"--net={netns}", str(plugins / names[module])]
            done = subprocess.run(entered, input=config, env=variables, capture_output=True, text=True, check=False)
            return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}

        yield call
        agent.terminate()
        assert agent.wait() == 0


@contextlib.contextmanager
def _calling(_: pytest.FixtureRequest) -> Iterator[Call]:
    """By the plugin within this process."""
    from tests.networks import call_here

    yield call_here


# What the interpreter starts with, and what costs next to nothing: C modules.
START = {
    "__main__", "_abc", "_codecs", "_frozen_importlib", "_frozen_importlib_external", "_imp", "_io", "_signal",
    "_thread", "_warnings", "_weakref", "abc", "builtins", "codecs", "encodings", "encodings.aliases",
    "encodings.utf_8", "io", "marshal", "posix", "sys", "time", "zipimport", "winreg",
}  # fmt: skip
ALLOWED = START | {
    "__future__", "_cffi_backend", "_json", "_sha2", "_sha512", "_socket", "_stat", "errno", "fcntl", "gc", "select",
}  # fmt: skip


@pytest.fixture(scope="session")
def foreign() -> Callable[[set[str]], set[str]]:
    """Of modules' names those that are neither ours nor cheap enough for a plugin."""
    ours = ("cni.", "cni_plugins.", "cython_runtime", "_cython_")
    return lambda modules: {name for name in modules if not name.startswith(ours)} - ALLOWED - {"cni", "cni_plugins"}
