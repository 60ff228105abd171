"""The warm agent: the same answers as without it, and what becomes of a call when something is wrong with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import cni.kernel.links
from cni.agent import protocol
from cni.agent.server import Agent
from cni.invoke import launcher
from tests.kernel.conftest import links
from tests.waiting import LIMIT, until

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]
Done = subprocess.CompletedProcess[str]


class Site:
    """A node with executables, and an agent that they ask."""

    def __init__(self, node: Node, plugins: Path, work: Path) -> None:
        self.node = node
        self.work = work
        self.cold = plugins
        self.socket = work / "run" / "agent.sock"
        self.state = work / "state"
        # Without an interpreter: what these do is done by the agent.
        self.warm = work / "warm"
        shutil.copytree(plugins, self.warm)
        for path in self.warm.iterdir():
            trailer = launcher.read(str(path))
            assert trailer
            trailer.interpreter = "/no/interpreter"
            path.write_bytes(path.read_bytes()[: -launcher.TRAILER_SIZE] + trailer.encode())

    @contextlib.contextmanager
    def agent(self, netns: Node | None = None, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "cni", "agent", "--socket", str(self.socket)]
        entered = ["nsenter", f"--net={(netns or self.node).path}", *command]
        path = os.pathsep.join(filter(None, sys.path))
        with subprocess.Popen(entered, env={**os.environ, "PYTHONPATH": path, **environ}) as agent:
            try:
                until(lambda: self.answers() or agent.poll() is not None, "the agent")
                yield agent
            finally:
                agent.kill()

    def answers(self) -> bool:
        with contextlib.suppress(OSError, protocol.Refused), self.connect() as connection:
            protocol.ask(connection, [launcher.PACKAGES], "cni_plugins.main.bridge:plugin", {}, b"")
            return True
        return False

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(LIMIT)
        try:
            connection.connect(str(self.socket))
        except OSError:
            connection.close()
            raise
        return connection

    def config(self, **keys: Any) -> str:
        ipam = {"type": "host-local", "dataDir": str(self.state), "subnet": "10.1.0.0/16"}
        head = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "isGateway": True, "ipam": ipam}
        return json.dumps({**head, **keys})

    def environ(self, verb: str, container: Node | None, folder: Path, **environ: str) -> dict[str, str]:
        names = {"CNI_CONTAINERID": container.name, "CNI_NETNS": container.path} if container else {}
        variables = {"CNI_COMMAND": verb, "CNI_IFNAME": "eth0", "CNI_PATH": str(folder), **names}
        return {**variables, "CNI_AGENT_SOCKET": str(self.socket), **environ}

    def run(
        self, verb: str, container: Node | None = None, folder: Path | None = None, config: str = "", **environ: str
    ) -> Done:
        folder = folder or self.warm
        variables = self.environ(verb, container, folder, **environ)
        command = [str(folder / "bridge")]
        return self.node.run(command, stdin=config or self.config(), env=variables, check=False)

    def start(self, verb: str, container: Node, config: str) -> subprocess.Popen[str]:
        command = ["nsenter", f"--net={self.node.path}", str(self.warm / "bridge")]
        environ = {**os.environ, **self.environ(verb, container, self.warm)}
        with (self.work / "config").open("w+") as file:
            file.write(config)
            file.seek(0)
            return subprocess.Popen(command, env=environ, stdin=file, stdout=subprocess.PIPE, text=True)

    def program(self, script: str) -> None:
        """An IPAM plugin that is a process."""
        path = self.warm / "program"
        path.write_text(f"#!/bin/sh -e\n{script}\n")
        path.chmod(0o755)

    def blocking_program(self) -> Path:
        """An IPAM plugin whose ADD waits until something is written to the FIFO that is returned."""
        fifo = self.work / "fifo"
        os.mkfifo(fifo)
        self.program(f"[ $CNI_COMMAND != ADD ] || read line <{fifo}\n{ANSWER}")
        return fifo


ANSWER = """[ $CNI_COMMAND != ADD ] || echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.9/16"}]}'"""


def await_asking(launcher: subprocess.Popen[str]) -> None:
    """Wait until the launcher has sent its request. It sleeps for nothing but the answer."""
    stat = Path(f"/proc/{launcher.pid}/stat")
    until(lambda: "(bridge) S " in stat.read_text(), "the launcher to wait for the answer")


def error(done: Done) -> Json:
    assert done.returncode == 1, done
    answer: Json = json.loads(done.stdout)
    return answer


def children(pid: int) -> list[str]:
    return subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()


@pytest.fixture
def site(node: Node, plugins: Path, tmp_path: Path) -> Site:
    return Site(node, plugins, tmp_path)


# ---- the same as without it ----


def test_an_attachment(site: Site) -> None:
    container = site.node.container()
    with site.agent():
        made = json.loads(site.run("ADD", container).stdout)
        assert made["ips"][0]["address"] == "10.1.0.2/16"
        assert [one["name"] for one in made["interfaces"]][2] == "eth0"
        assert "eth0" in links(container)
        checked = site.run("CHECK", container, config=site.config(prevResult=made))
        assert (checked.returncode, checked.stdout) == (0, "")
        assert site.run("DEL", container).returncode == 0
        assert site.run("DEL", container).returncode == 0
    assert links(container) == {"lo"}
    assert links(site.node) == {"lo", "cni0"}
    assert not list(site.state.glob("net/10.*"))


def test_errors_and_exit_codes(site: Site) -> None:
    with site.agent():
        for verb, config, environ in (
            ("ADD", "{", {}),
            ("ADD", site.config(bridge=5), {}),
            ("NOPE", "", {}),
            ("ADD", "", {"CNI_IFNAME": "a/b"}),
            ("CHECK", "", {}),
        ):
            warm = site.run(verb, site.node.container(), config=config, **environ)
            cold = site.run(
                verb, site.node.container(), site.cold, config=config, **{**environ, "CNI_AGENT_SOCKET": ""}
            )
            names = [json.loads(done.stdout)["msg"].replace(done.stdout, "") for done in (warm, cold)]
            assert warm.returncode == cold.returncode == 1
            assert json.loads(warm.stdout)["code"] == json.loads(cold.stdout)["code"]
            assert names[0].split("cnitest")[0] == names[1].split("cnitest")[0]


def test_version_needs_no_stdin(site: Site) -> None:
    with site.agent():
        environ = {**os.environ, **site.environ("VERSION", None, site.warm)}
        command = ["nsenter", f"--net={site.node.path}", str(site.warm / "bridge")]
        with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asking:
            assert asking.stdout
            assert b"1.1.0" in asking.stdout.read()


def test_who_starts_it_by_hand(site: Site) -> None:
    with site.agent():
        done = site.run("", None, site.cold)
    assert "CNI bridge plugin" in done.stderr


def test_callers_in_other_namespaces_than_the_agent(site: Site, make_node: Callable[[], Node]) -> None:
    """Of the network: their own one comes with the request."""
    elsewhere = make_node()
    container = site.node.container()
    with site.agent(elsewhere):
        assert site.run("ADD", container).returncode == 0
        assert "cni0" in links(site.node)
        assert links(elsewhere) == {"lo"}
        assert site.run("DEL", container).returncode == 0
    assert links(container) == {"lo"}


def test_a_program_that_the_plugin_starts_is_the_callers(site: Site, tmp_path: Path) -> None:
    container = site.node.container()
    told = tmp_path / "told"
    site.program(f"ip -o link >{told}.links\nenv >{told}.env\npwd >{told}.folder\n{ANSWER}")
    folder = tmp_path / "here"
    folder.mkdir()
    with site.agent():
        environ = site.environ("ADD", container, Path("../warm"), GREETING="hello")
        command = ["sh", "-c", f"cd {folder} && exec ../warm/bridge"]
        done = site.node.run(command, stdin=site.config(ipam={"type": "program"}), env=environ)
        assert "10.1.0.9" in done.stdout
    assert "cni0" in Path(f"{told}.links").read_text()
    assert "GREETING=hello\n" in Path(f"{told}.env").read_text()
    assert "CNI_AGENT_SOCKET=\n" in Path(f"{told}.env").read_text()
    assert Path(f"{told}.folder").read_text() == f"{folder}\n"


def test_what_is_logged(site: Site) -> None:
    site.program(f"echo careful >&2\n{ANSWER}")
    with site.agent():
        done = site.run("ADD", site.node.container(), config=site.config(ipam={"type": "program"}))
    assert (done.returncode, done.stderr) == (0, "careful\n")


def test_many_at_once_leave_nothing(site: Site) -> None:
    containers = [site.node.container() for _ in range(24)]
    with site.agent() as agent, ThreadPoolExecutor(12) as threads:
        files = Path(f"/proc/{agent.pid}/fd")
        descriptors = []
        for _ in range(3):
            added = list(threads.map(lambda each: json.loads(site.run("ADD", each).stdout), containers))
            assert len({one["ips"][0]["address"] for one in added}) == len(containers)
            assert all(done.returncode == 0 for done in threads.map(lambda each: site.run("DEL", each), containers))
            descriptors.append(len(list(files.iterdir())))
        # A call's are closed after its answer.
        until(lambda: len(list(files.iterdir())) <= min(descriptors[1:]), "the calls' descriptors to be closed")
    assert links(site.node) == {"lo", "cni0"}
    assert not list(site.state.glob("net/10.*"))


# ---- when it can't be asked ----


@pytest.mark.parametrize("turned", ["off", "absent"])
def test_no_agent(site: Site, turned: str) -> None:
    path = "" if turned == "off" else "/no/agent.sock"
    assert site.run("VERSION", folder=site.cold, CNI_AGENT_SOCKET=path).returncode == 0
    assert "/no/interpreter" in error(site.run("VERSION", CNI_AGENT_SOCKET=path))["msg"]


def test_callers_that_see_other_files(site: Site) -> None:
    container = site.node.container()
    with site.agent():
        for command in (["unshare", "--mount"], ["unshare", "--mount", "chroot", "/"]):
            environ = site.environ("ADD", container, site.warm)
            done = site.node.run([*command, str(site.warm / "bridge")], site.config(), environ, check=False)
            assert "/no/interpreter" in error(done)["msg"]


def test_a_namespace_that_is_the_callers_own_affair(site: Site) -> None:
    container = site.node.container()
    with site.agent():
        environ = {"CNI_NETNS": "/proc/self/fd/9"}
        command = ["sh", "-c", f"exec {site.cold / 'bridge'} 9<{container.path}"]
        variables = site.environ("ADD", container, site.cold, **environ)
        assert site.node.run(command, site.config(), variables).returncode == 0
        assert "/no/interpreter" in error(site.run("ADD", container, **environ))["msg"]
    assert "eth0" in links(container)


def test_another_installation(site: Site) -> None:
    """Its launcher does the work itself, with the configuration that it has read."""
    container = site.node.container()
    path = site.cold / "bridge"
    trailer = launcher.read(str(path))
    assert trailer
    packages = site.work / "packages"
    packages.mkdir()
    for name in ("cni", "cni_plugins"):
        (packages / name).symlink_to(Path(launcher.PACKAGES, name))
    trailer.folders = (str(packages), *trailer.folders[1:])
    other = site.work / "other"
    other.mkdir()
    (other / "bridge").write_bytes(path.read_bytes()[: -launcher.TRAILER_SIZE] + trailer.encode())
    (other / "bridge").chmod(0o755)
    shutil.copy(site.cold / "host-local", other / "host-local")
    with site.agent():
        done = site.run("ADD", container, other)
    assert done.returncode == 0, done
    assert "10.1.0.2" in done.stdout


def stop(agent: subprocess.Popen[bytes]) -> None:
    """It takes connections and requests, as its kernel does that, but does not look at them."""
    os.kill(agent.pid, signal.SIGSTOP)
    threads = [task / "stat" for task in Path(f"/proc/{agent.pid}/task").iterdir()]
    until(lambda: all(stat.read_text().rpartition(") ")[2][0] == "T" for stat in threads), "all threads to stop")


@pytest.mark.parametrize("timeout", ["", "0", "soon", "100000", "1"])
def test_an_agent_that_is_stuck(site: Site, timeout: str) -> None:
    """The launcher does the work after a second, and the agent does not do it again once it goes on."""
    container = site.node.container()
    with site.agent() as agent:
        stop(agent)
        began = time.monotonic()
        assert site.run("ADD", container, site.cold, CNI_AGENT_TIMEOUT=timeout).returncode == 0
        assert time.monotonic() - began >= 1
        os.kill(agent.pid, signal.SIGCONT)
        assert site.run("VERSION").returncode == 0  # it is through with what came before
        assert site.run("DEL", container).returncode == 0
        assert not list(site.state.glob("net/10.*"))
        assert links(container) == {"lo"}


def test_a_caller_that_is_killed_before_it_is_served(site: Site) -> None:
    """The runtime's DEL may have been done elsewhere meanwhile, so nothing may be made any more."""
    container = site.node.container()
    with site.agent() as agent:
        stop(agent)
        asking = site.start("ADD", container, site.config())
        await_asking(asking)
        asking.kill()
        asking.communicate()
        os.kill(agent.pid, signal.SIGCONT)
        assert site.run("VERSION").returncode == 0
        assert links(container) == {"lo"}
        assert not site.state.exists()


def test_an_agent_that_stops_before_it_has_begun(site: Site) -> None:
    """It hangs up, and the call is its launcher's."""
    with site.agent() as agent, site.connect() as early:
        agent.terminate()
        assert agent.wait(LIMIT) == 0
        assert early.recv(100) == b""


@pytest.mark.parametrize("size", [100_000, 17_000_000])
def test_large_configurations(site: Site, size: int) -> None:
    with site.agent():
        config = site.config(padding="x" * size)
        done = site.run("ADD", site.node.container(), site.cold, config=config)
        assert done.returncode == 0, done.stdout
        warm = site.run("ADD", site.node.container(), config=config)
        assert warm.returncode == (0 if size < protocol.LARGEST_INPUT else 1)


def test_a_large_environment(site: Site) -> None:
    with site.agent():
        filling = {f"FILLING{number}": "x" * 60_000 for number in range(4)}
        assert site.run("VERSION", folder=site.cold, **filling).returncode == 0
        assert site.run("VERSION", **{"FILLING": "x" * 100_000}).returncode == 0


def test_other_users(site: Site) -> None:
    """The socket is root's alone; and if it were not, the agent asks the kernel who is there."""
    with site.agent():
        status = site.socket.stat()
        assert oct(status.st_mode & 0o777) == "0o600"
        assert oct(site.socket.parent.stat().st_mode & 0o777) == "0o700"
        for path in (site.socket, *site.socket.parents[:-2]):
            path.chmod(0o777)
        code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(site.socket)!r}); print(s.recv(100))"
        command = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", code]
        assert site.node.run(command).stdout == "b''\n"


# ---- clients that misbehave ----


def test_stuck_clients_block_nobody(site: Site) -> None:
    def is_served_beside_them() -> bool:
        with contextlib.ExitStack() as stack:
            silent, halting = ([stack.enter_context(site.connect()) for _ in range(20)] for _ in range(2))
            for connection in halting:
                connection.send(b"cni agent 2\n")
            assert site.run("VERSION").returncode == 0
            timed_out, _, _ = select.select(silent, [], [], 0)
            assert silent[0].recv(100) == b""
            assert halting[0].recv(100) == b""
            return not timed_out

    with site.agent():
        until(is_served_beside_them, "an answer before the stuck clients time out")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n12345678",
        protocol._REQUEST.pack(protocol._MAGIC, protocol.files(), 10, 1 << 30),
        protocol._REQUEST.pack(protocol._MAGIC, protocol.files(), 1 << 30, 10),
        protocol._REQUEST.pack(protocol._MAGIC, protocol.files(), 4, 0) + b"abcd",
    ],
)
@pytest.mark.parametrize("descriptors", [0, 3, 5])
def test_what_is_no_request(site: Site, data: bytes, descriptors: int) -> None:
    with site.agent() as agent:
        files = Path(f"/proc/{agent.pid}/fd")
        before = len(list(files.iterdir()))
        with site.connect() as connection, open("/dev/null") as null:
            socket.send_fds(connection, [data], [null.fileno()] * descriptors)
            assert connection.recv(100) == b""
        assert site.run("VERSION").returncode == 0
        until(lambda: len(list(files.iterdir())) <= before, "the descriptors to be closed")


# ---- ends ----


def test_an_agent_that_dies_at_work(site: Site) -> None:
    """The call gets an error, and a later DEL clears what it left."""
    container = site.node.container()
    site.blocking_program()
    config = site.config(ipam={"type": "program"})
    with site.agent() as agent:
        asking = site.start("ADD", container, config)
        until(lambda: children(agent.pid), "the program")
        program = children(agent.pid)
        agent.kill()
        answer, _ = asking.communicate()
        assert asking.returncode == 1
        assert "exited while serving this call" in json.loads(answer)["msg"]
        for pid in program:
            os.kill(int(pid), signal.SIGKILL)
    with site.agent():
        assert site.run("DEL", container, config=config).returncode == 0
    assert links(container) == {"lo"}


def test_a_caller_that_is_killed(site: Site) -> None:
    """A runtime that has lost patience asks for DEL, which waits for what is still at work."""
    container = site.node.container()
    fifo = site.blocking_program()
    config = site.config(ipam={"type": "program"})
    with site.agent() as agent:
        asking = site.start("ADD", container, config)
        until(lambda: children(agent.pid), "the program")
        asking.kill()
        asking.communicate()
        deleting = site.start("DEL", container, config)
        await_asking(deleting)
        fifo.write_text("\n")
        deleting.communicate()
        assert deleting.returncode == 0
        assert links(container) == {"lo"}
        time.sleep(0.2)
        assert links(container) == {"lo"}


def test_it_finishes_what_it_is_at(site: Site) -> None:
    container = site.node.container()
    fifo = site.blocking_program()
    with site.agent() as agent:
        asking = site.start("ADD", container, site.config(ipam={"type": "program"}))
        until(lambda: children(agent.pid), "the program")
        agent.terminate()
        until(lambda: not site.answers(), "the agent to take no more calls")
        fifo.write_text("\n")
        answer, _ = asking.communicate()
        assert asking.returncode == 0
        assert "10.1.0.9" in answer
        assert agent.wait(LIMIT) == 0
    assert not site.socket.exists()


def test_two_of_them(site: Site) -> None:
    with site.agent(), site.agent() as second:
        assert second.wait(LIMIT) == 1
        assert site.run("VERSION").returncode == 0


def test_the_socket_of_one_that_is_gone(site: Site) -> None:
    for _ in range(2):
        with site.agent() as agent:
            assert site.run("VERSION").returncode == 0
            agent.kill()
    assert site.socket.exists()


def test_a_folder_where_others_may_write(site: Site) -> None:
    site.socket.parent.mkdir()
    site.socket.parent.chmod(0o777)
    with site.agent() as agent:
        assert agent.wait(LIMIT) == 1


def test_as_a_service_of_systemd(site: Site) -> None:
    """The socket is passed and stays, and it is told when the agent is ready."""
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ready.bind(str(site.work / "notify"))
    ready.settimeout(LIMIT)
    site.socket.parent.mkdir(mode=0o700)
    passed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    passed.bind(str(site.socket))
    passed.listen(5)
    script = f"""
import os, sys
os.dup2({passed.fileno()}, 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "cni", "agent"])
"""
    environ = {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(site.work / "notify"),
    }  # fmt: skip
    command = ["nsenter", f"--net={site.node.path}", sys.executable, "-c", script]
    with ready, passed, subprocess.Popen(command, env=environ, pass_fds=[passed.fileno()]) as agent:
        try:
            assert ready.recv(100) == b"READY=1"
            assert site.run("VERSION").returncode == 0
            agent.terminate()
            assert ready.recv(100) == b"STOPPING=1"
            assert agent.wait(LIMIT) == 0
        finally:
            agent.kill()
    assert site.socket.exists()


def test_an_upgrade(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment that there is other code on the disk, launchers start that."""
    site.socket.parent.mkdir(mode=0o700)
    monkeypatch.setattr(cni.kernel.links, "group_delete", None)  # to be taken away again
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, ThreadPoolExecutor(1) as thread:
        listener.bind(str(site.socket))
        listener.listen(5)
        agent = Agent(listener)
        monkeypatch.setattr(agent, "_code", (0, 0))
        thread.submit(lambda: agent.handle(listener.accept()[0]))
        assert "/no/interpreter" in error(site.run("VERSION"))["msg"]
