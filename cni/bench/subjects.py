"""The subjects of a measurement: plugins in three ways, the bare kernel requests in two, an interpreter's start.

A subject lives on a node of its own (worker.py), and does ADD, CHECK and DEL for an attachment. It returns the seconds
that this took, without what the benchmark does before and after.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cni.bench import Failed, parallel
from cni.bench.network import DEFAULT, Network
from cni.install.executables import install
from cni.invoke import exec as invoke
from cni.invoke import launcher
from cni.kernel import hwaddr
from cni.kernel.netns import NetNS
from cni.spec.errors import CNIError
from cni.spec.ip import AF_INET, IP
from cni.system import process

MODES = ("exec", "agent", "in-process", "floor", "pyroute2", "python")
EXEC, AGENT, IN_PROCESS, FLOOR, PYROUTE2, PYTHON = MODES
WITH_PLUGINS = (EXEC, AGENT, IN_PROCESS)
LASTING = (AGENT, IN_PROCESS)  # one process serves all calls
VERBS = ("VERSION", "ADD", "CHECK", "DEL")

IFNAME = "eth0"
_INSTALLED = "/run/cni-bench/plugins"
_SOCKET = "/run/cni-bench/agent.sock"
_AGENT_LOG = "/run/cni-bench/agent.log"
_START = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); from cni.cli.main import main; sys.exit(main())"
_AGENT_TIMEOUT = 20.0  # seconds, for its start and for its end

_FIRST_ADDRESS = IP.parse("10.66.0.2")
_GATEWAY = IP.parse("10.66.0.1")
_PREFIX = 16


class Attachment:
    """An attachment of a container: its namespace and the result of ADD. ``number`` is unique on the node."""

    __slots__ = ("container", "id", "number", "path", "result")

    def __init__(self, number: int) -> None:
        self.number = number
        self.id = f"bench-{number}"
        self.container = NetNS.create()
        # Other processes can open it there as long as this process lives.
        self.path = f"/proc/{os.getpid()}/fd/{self.container.fd}"
        self.result = b""

    def close(self) -> None:
        """Close the namespace, which the kernel deletes some time later."""
        self.container.close()


class Plugins:
    """The plugins of a folder. Subclasses run them."""

    verbs: tuple[str, ...] = VERBS
    run_parallel: Any = staticmethod(parallel.processes)
    environ: Mapping[str, str] = {}
    pid: int | None = None  # the process that serves all calls, where there is one

    def __init__(self, folder: str, network: Network, label: str) -> None:
        self.label = label
        self._folder = folder or _installed()
        self._network = network
        self._paths = [f"{self._folder}/{name}" for name in network.types]
        if not network.has_check:
            self.verbs = tuple(verb for verb in VERBS if verb != "CHECK")

    def call(self, verb: str, attachment: Attachment) -> float:
        """Call all plugins of the network, one after the other, and return the seconds. Raises Failed."""
        environ = {
            "PATH": os.environ.get("PATH", os.defpath), "CNI_COMMAND": verb, "CNI_CONTAINERID": attachment.id,
            "CNI_NETNS": attachment.path, "CNI_IFNAME": IFNAME, "CNI_PATH": self._folder, "CNI_ARGS": "",
            **self.environ,
        }  # fmt: skip
        order = range(len(self._paths))
        result = b"" if verb == "ADD" or not self._network.remembers else attachment.result
        total = 0.0
        for index in reversed(order) if verb == "DEL" else order:
            config = self._network.config(index, attachment.number, result)
            try:
                seconds, output = self.run(self._paths[index], config, environ)
            except (CNIError, OSError) as error:
                raise Failed(f"{verb} by {self.label}: {self._network.types[index]}: {error}") from error
            total += seconds
            if verb == "ADD":
                result = output.strip()
        if verb == "ADD":
            attachment.result = result
        return total

    def run(self, path: str, config: bytes, environ: Mapping[str, str]) -> tuple[float, bytes]:
        """Run a plugin, and return the seconds and what it prints. Raises CNIError, OSError."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop what was started."""


class Exec(Plugins):
    """Each call is a process that does not use an agent."""

    environ: Mapping[str, str] = {"CNI_AGENT_SOCKET": ""}

    def run(self, path: str, config: bytes, environ: Mapping[str, str]) -> tuple[float, bytes]:
        """Measure from the start of the process to its end."""
        done = invoke.complete(path, config, environ)
        return done.seconds, done.stdout


class Agent(Exec):
    """Each call is a process that uses an agent of the same installation as the executables."""

    environ: Mapping[str, str] = {"CNI_AGENT_SOCKET": _SOCKET}

    def __init__(self, folder: str, network: Network, label: str) -> None:
        super().__init__(folder, network, label)
        trailer = launcher.read(self._paths[0])
        if trailer is None:
            raise Failed(f"{label}: {self._paths[0]} cannot use an agent")
        command = [trailer.interpreter, "-I", "-c", _START, ":".join(trailer.folders), "agent", "--socket", _SOCKET]
        Path(_AGENT_LOG).parent.mkdir(exist_ok=True)
        with open(_AGENT_LOG, "wb") as log:
            self._agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = self._agent.pid
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + _AGENT_TIMEOUT
        while not _answers(_SOCKET):
            if self._agent.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{self.label}: the agent does not start: {Path(_AGENT_LOG).read_text().strip()}")
            time.sleep(0.01)

    def close(self) -> None:
        """Stop the agent."""
        self._agent.terminate()
        try:
            status = self._agent.wait(_AGENT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            raise Failed(f"{self.label}: the agent does not stop") from None
        if status:
            raise Failed(f"{self.label}: the agent ended with {status}: {Path(_AGENT_LOG).read_text().strip()}")


class InProcess(Plugins):
    """The plugins run in this process, as the runtime library runs plugins of ours."""

    run_parallel = staticmethod(parallel.threads)

    def __init__(self, folder: str, network: Network, label: str) -> None:
        super().__init__(folder, network, label)
        self.pid = os.getpid()
        for path in self._paths:
            trailer = launcher.read(path)
            if trailer is None or not trailer.is_ours:
                raise Failed(f"{label}: {path} starts other code than this process has loaded")

    def run(self, path: str, config: bytes, environ: Mapping[str, str]) -> tuple[float, bytes]:
        """Measure from the parsing of the configuration to the printed result."""
        begin = time.perf_counter()
        output = invoke.run(path, config, environ, log=_discard)
        return time.perf_counter() - begin, output


class Floor:
    """The fewest requests to the kernel that do what bridge and host-local do, and nothing else."""

    verbs = ("ADD", "DEL")
    run_parallel: Any = staticmethod(parallel.threads)
    pid: int | None = None

    def __init__(self, network: Network, label: str) -> None:
        _refuse_other_networks(network, label)
        self.label = label
        self._sockets = threading.local()
        with NetNS.current() as here:
            self._node = here
            with here.netlink() as node:
                (bridge,) = node.batch().link_create("bridge", "cni0").link_get("cni0").commit()
                node.batch().link_set(bridge.index, up=True).address_add(
                    bridge.index, _GATEWAY.packed, _PREFIX
                ).commit()
        self._bridge = bridge.index

    def call(self, verb: str, attachment: Attachment) -> float:
        """Run a verb and return the seconds. Raises Failed."""
        begin = time.perf_counter()
        try:
            step = self._add if verb == "ADD" else self._delete
            step(attachment)
        except OSError as error:
            raise Failed(f"{verb} by {self.label}: {error}") from error
        return time.perf_counter() - begin

    def _add(self, attachment: Attachment) -> None:
        address, mac = _address(attachment.number)
        node, port = self._netlink(), f"veth{attachment.number}"
        veth = node.batch().veth(port, IFNAME, netns=attachment.container.fd, peer_hwaddr=mac, master=self._bridge)
        veth.link_set(port, up=True).commit()
        with attachment.container.netlink() as inside:
            link = inside.link(IFNAME)
            batch = inside.batch().address_add(link.index, address.packed, _PREFIX).link_set(link.index, up=True)
            batch.route_add(bytes(4), 0, gateway=_GATEWAY.packed).commit()

    def _delete(self, attachment: Attachment) -> None:
        self._netlink().batch().link_delete(f"veth{attachment.number}").commit()

    def _netlink(self) -> Any:
        """Return this thread's socket. Threads that share one would wait for each other."""
        if not hasattr(self._sockets, "node"):
            with NetNS.current() as here:
                self._sockets.node = here.netlink()
        return self._sockets.node

    def close(self) -> None:
        """Do nothing: the node is thrown away."""


class Pyroute2:
    """The same steps as Floor, by pyroute2."""

    verbs = ("ADD", "DEL")
    run_parallel: Any = staticmethod(parallel.threads)
    pid: int | None = None

    def __init__(self, network: Network, label: str) -> None:
        _refuse_other_networks(network, label)
        try:
            import pyroute2
        except ImportError as error:
            raise Failed(f"{label}: pyroute2 is not installed ({error})") from error
        self.label = label
        self._pyroute2 = pyroute2
        self._sockets = threading.local()
        node = self._netlink()
        node.link("add", ifname="cni0", kind="bridge", state="up")
        (self._bridge,) = node.link_lookup(ifname="cni0")
        node.addr("add", index=self._bridge, address=str(_GATEWAY), prefixlen=_PREFIX)

    def call(self, verb: str, attachment: Attachment) -> float:
        """Run a verb and return the seconds. Raises Failed."""
        begin = time.perf_counter()
        try:
            step = self._add if verb == "ADD" else self._delete
            step(attachment)
        except (OSError, self._pyroute2.NetlinkError) as error:
            raise Failed(f"{verb} by {self.label}: {error}") from error
        return time.perf_counter() - begin

    def _add(self, attachment: Attachment) -> None:
        address, mac = _address(attachment.number)
        node, port = self._netlink(), f"veth{attachment.number}"
        peer = {"ifname": IFNAME, "address": mac, "net_ns_fd": attachment.container.fd}
        node.link("add", ifname=port, kind="veth", peer=peer, master=self._bridge)
        (index,) = node.link_lookup(ifname=port)
        node.link("set", index=index, state="up")
        with self._pyroute2.IPRoute(netns=attachment.path) as inside:
            (index,) = inside.link_lookup(ifname=IFNAME)
            inside.addr("add", index=index, address=str(address), prefixlen=_PREFIX)
            inside.link("set", index=index, state="up")
            inside.route("add", dst="default", gateway=str(_GATEWAY), family=AF_INET)

    def _delete(self, attachment: Attachment) -> None:
        node = self._netlink()
        (index,) = node.link_lookup(ifname=f"veth{attachment.number}")
        node.link("del", index=index)

    def _netlink(self) -> Any:
        if not hasattr(self._sockets, "node"):
            self._sockets.node = self._pyroute2.IPRoute()
        return self._sockets.node

    def close(self) -> None:
        """Do nothing: the node is thrown away."""


class Python:
    """Each call starts an interpreter as our executables do. It exits at once, so no executable can be faster."""

    verbs = VERBS
    run_parallel: Any = staticmethod(parallel.processes)
    pid: int | None = None
    _command = (os.path.realpath(sys.executable), "-I", "-S", "-E", "-c", "import posix; posix._exit(0)")

    def __init__(self, label: str) -> None:
        self.label = label

    def call(self, verb: str, attachment: Attachment) -> float:  # noqa: ARG002 - it does nothing
        """Run a verb and return the seconds. Raises Failed."""
        try:
            done = process.run([*self._command], env={})
        except OSError as error:
            raise Failed(f"{self.label}: {error}") from error
        if done.status:
            raise Failed(f"{self.label}: {done.outcome}: {done.stderr.decode(errors='replace')}")
        return done.seconds

    def close(self) -> None:
        """Do nothing."""


Subject = Plugins | Floor | Pyroute2 | Python
_BY_MODE: dict[str, type[Plugins]] = {EXEC: Exec, AGENT: Agent, IN_PROCESS: InProcess}


def open_subject(mode: str, folder: str, network: Network, label: str) -> Subject:
    """Return a subject on this process's node. ``folder`` "" is a new installation of this version. Raises Failed."""
    if mode == FLOOR:
        return Floor(network, label)
    if mode == PYROUTE2:
        return Pyroute2(network, label)
    if mode == PYTHON:
        return Python(label)
    return _BY_MODE[mode](folder, network, label)


def _installed() -> str:
    install(Path(_INSTALLED))
    return _INSTALLED


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def _discard(_: str) -> None:
    """Discard what plugins log."""


def _refuse_other_networks(network: Network, label: str) -> None:
    if network.source != DEFAULT:
        raise Failed(f"{label} can only be measured with the network {DEFAULT}")


def _address(number: int) -> tuple[IP, str]:
    address = _FIRST_ADDRESS + number
    return address, hwaddr.from_ip(address)
