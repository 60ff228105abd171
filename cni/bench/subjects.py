"""What is measured: plugins in three ways of running them, twice the bare kernel requests they come down to, and the
start of an interpreter.

A subject lives on a node of its own (worker.py), and does ADD, CHECK and DEL for an attachment. What it returns is the
seconds that took; of what the benchmark does before and after nothing counts.
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

from cni.bench import Failed, crew
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
_READY = 20.0  # seconds that an agent may take to start, and to stop

_FIRST_ADDRESS = IP.parse("10.66.0.2")
_GATEWAY = IP.parse("10.66.0.1")
_PREFIX = 16


class Attachment:
    """One container's: its namespace, and what ADD said. ``number`` is its own on the node."""

    __slots__ = ("container", "id", "number", "path", "result")

    def __init__(self, number: int) -> None:
        self.number = number
        self.id = f"bench-{number}"
        self.container = NetNS.create()
        # Whoever is asked can open it there, as long as this process lives.
        self.path = f"/proc/{os.getpid()}/fd/{self.container.fd}"
        self.result = b""

    def close(self) -> None:
        """The namespace goes away, sooner or later."""
        self.container.close()


class Plugins:
    """The plugins of one folder, of which subclasses say how they are run."""

    verbs: tuple[str, ...] = VERBS
    crew: Any = staticmethod(crew.processes)
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
        """Have all plugins of the network do it, one after the other; raises Failed."""
        environ = {
            "PATH": os.environ.get("PATH", os.defpath), "CNI_COMMAND": verb, "CNI_CONTAINERID": attachment.id,
            "CNI_NETNS": attachment.path, "CNI_IFNAME": IFNAME, "CNI_PATH": self._folder, "CNI_ARGS": "",
            **self.environ,
        }  # fmt: skip
        order = range(len(self._paths))
        result = b"" if verb == "ADD" or not self._network.remembers else attachment.result
        taken = 0.0
        for index in reversed(order) if verb == "DEL" else order:
            config = self._network.config(index, attachment.number, result)
            try:
                seconds, output = self.run(self._paths[index], config, environ)
            except (CNIError, OSError) as error:
                raise Failed(f"{verb} by {self.label}: {self._network.types[index]}: {error}") from error
            taken += seconds
            if verb == "ADD":
                result = output.strip()
        if verb == "ADD":
            attachment.result = result
        return taken

    def run(self, path: str, config: bytes, environ: Mapping[str, str]) -> tuple[float, bytes]:
        """Have one plugin do it: how long it took, and what it prints. Raises CNIError, OSError."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop what was started."""


class Exec(Plugins):
    """Each call is a process, and no agent is asked."""

    environ: Mapping[str, str] = {"CNI_AGENT_SOCKET": ""}

    def run(self, path: str, config: bytes, environ: Mapping[str, str]) -> tuple[float, bytes]:
        """From the making of the process until it has ended."""
        done = invoke.complete(path, config, environ)
        return done.seconds, done.stdout


class Agent(Exec):
    """Each call is a process that asks an agent, which is of the same installation as the executables."""

    environ: Mapping[str, str] = {"CNI_AGENT_SOCKET": _SOCKET}

    def __init__(self, folder: str, network: Network, label: str) -> None:
        super().__init__(folder, network, label)
        trailer = launcher.read(self._paths[0])
        if trailer is None:
            raise Failed(f"{label}: {self._paths[0]} asks no agent")
        command = [trailer.interpreter, "-I", "-c", _START, ":".join(trailer.folders), "agent", "--socket", _SOCKET]
        Path(_AGENT_LOG).parent.mkdir(exist_ok=True)
        with open(_AGENT_LOG, "wb") as log:
            self._agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = self._agent.pid
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + _READY
        while not _answers(_SOCKET):
            if self._agent.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{self.label}: the agent does not start: {Path(_AGENT_LOG).read_text().strip()}")
            time.sleep(0.01)

    def close(self) -> None:
        """Stop the agent."""
        self._agent.terminate()
        try:
            status = self._agent.wait(_READY)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            raise Failed(f"{self.label}: the agent does not stop") from None
        if status:
            raise Failed(f"{self.label}: the agent ended with {status}: {Path(_AGENT_LOG).read_text().strip()}")


class InProcess(Plugins):
    """The plugins' code runs here, as the runtime library does it with plugins of ours."""

    crew = staticmethod(crew.threads)

    def __init__(self, folder: str, network: Network, label: str) -> None:
        super().__init__(folder, network, label)
        self.pid = os.getpid()
        for path in self._paths:
            trailer = launcher.read(path)
            if trailer is None or not trailer.is_ours:
                raise Failed(f"{label}: {path} starts other code than what runs here")

    def run(self, path: str, config: bytes, environ: Mapping[str, str]) -> tuple[float, bytes]:
        """From the reading of the configuration to the printing of the result."""
        begin = time.perf_counter()
        output = invoke.run(path, config, environ, log=_unheard)
        return time.perf_counter() - begin, output


class Floor:
    """What the kernel itself takes for what bridge and host-local do: the fewest requests, and nothing else."""

    verbs = ("ADD", "DEL")
    crew: Any = staticmethod(crew.threads)
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
        """Raises Failed."""
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
        """A socket of this thread's, as one that is shared would be waited for."""
        if not hasattr(self._sockets, "node"):
            with NetNS.current() as here:
                self._sockets.node = here.netlink()
        return self._sockets.node

    def close(self) -> None:
        """Nothing to do: the node goes."""


class Pyroute2:
    """The same steps as Floor's by pyroute2."""

    verbs = ("ADD", "DEL")
    crew: Any = staticmethod(crew.threads)
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
        """Raises Failed."""
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
        """Nothing to do: the node goes."""


class Python:
    """Each call is an interpreter, started as our executables start it, that ends at once. None of them beats that."""

    verbs = VERBS
    crew: Any = staticmethod(crew.processes)
    pid: int | None = None
    _command = (os.path.realpath(sys.executable), "-I", "-S", "-E", "-c", "import posix; posix._exit(0)")

    def __init__(self, label: str) -> None:
        self.label = label

    def call(self, verb: str, attachment: Attachment) -> float:  # noqa: ARG002 - it does nothing
        """Raises Failed."""
        try:
            done = process.run([*self._command], env={})
        except OSError as error:
            raise Failed(f"{self.label}: {error}") from error
        if done.status:
            raise Failed(f"{self.label}: {done.outcome}: {done.stderr.decode(errors='replace')}")
        return done.seconds

    def close(self) -> None:
        """Nothing to do."""


Subject = Plugins | Floor | Pyroute2 | Python
_WAYS: dict[str, type[Plugins]] = {EXEC: Exec, AGENT: Agent, IN_PROCESS: InProcess}


def open_subject(mode: str, folder: str, network: Network, label: str) -> Subject:
    """A subject on the node that this process is on; ``folder`` "" is a new installation of ours. Raises Failed."""
    if mode == FLOOR:
        return Floor(network, label)
    if mode == PYROUTE2:
        return Pyroute2(network, label)
    if mode == PYTHON:
        return Python(label)
    return _WAYS[mode](folder, network, label)


def _installed() -> str:
    install(Path(_INSTALLED))
    return _INSTALLED


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def _unheard(_: str) -> None:
    """What plugins log."""


def _refuse_other_networks(network: Network, label: str) -> None:
    if network.source != DEFAULT:
        raise Failed(f"{label} does what the network {DEFAULT} needs, and no other")


def _address(number: int) -> tuple[IP, str]:
    address = _FIRST_ADDRESS + number
    return address, hwaddr.from_ip(address)
