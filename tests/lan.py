"""A network with a DHCP server on it: a bridge of the node's, dnsmasq, and a dhcp daemon."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni.kernel.netns import NetNS
from cni_plugins.ipam.dhcp.message import Message
from tests.waiting import LIMIT, is_listening, until

if TYPE_CHECKING:
    from tests.conftest import Node

SERVER = "10.80.0.1"
RANGE = "10.80.0.50,10.80.0.99"
ETH_P_ALL = 3


class Capture:
    """The DHCP messages that pass an interface, with the second at which each did."""

    def __init__(self, node: Node, interface: str) -> None:
        with NetNS.open(node.path) as netns:
            self._socket = socket.socket(fileno=netns.socket(socket.AF_PACKET, socket.SOCK_RAW))
        self._socket.bind((interface, ETH_P_ALL))
        self._socket.settimeout(0.1)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self.seen: list[tuple[float, Message]] = []
        self.on_message: Callable[[Message], object] = lambda found: None

    def __enter__(self) -> Capture:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError, ValueError, OSError):
                frame = self._socket.recv(1 << 16)
                if frame[12:14] != b"\x08\0" or frame[23] != 17 or frame[36:38] not in (b"\0\x43", b"\0\x44"):
                    continue
                found = Message.decode(frame[42:])
                self.seen.append((time.monotonic(), found))
                self.on_message(found)

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def of(self, kind: int, since: int = 0) -> list[Message]:
        return [found for _, found in self.seen[since:] if found.kind == kind]


class Lan:
    """`folders` are where executables of "ours" and "theirs" are."""

    def __init__(self, node: Node, folders: dict[str, Path], tmp: Path) -> None:
        self.node = node
        self.folders = folders
        self.tmp = tmp
        self.socket = tmp / "dhcp.sock"
        self.leases = tmp / "leases"
        self._dnsmasq: subprocess.Popen[str] | None = None
        self._daemon: subprocess.Popen[str] | None = None
        self._started = contextlib.ExitStack()
        for command in ("add br0 type bridge", "set br0 up"):
            node.run(["ip", "link", *command.split()])
        node.run(["ip", "address", "add", f"{SERVER}/24", "dev", "br0"])

    def close(self) -> None:
        self._started.close()

    # ---- the server ----

    def serve(self, *options: str, range: str = RANGE, forget: bool = False, node: Node | None = None) -> None:
        """Start dnsmasq, in place of the one that runs; its leases are kept unless it is to `forget`."""
        self.stop_serving()
        if forget:
            self.leases.unlink(missing_ok=True)
        command = [
            "dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground", "--user=root", "--port=0", "--interface=br0",
            "--bind-interfaces", "--no-ping", "--log-dhcp", f"--log-facility={self.tmp / 'dnsmasq.log'}",
            f"--dhcp-leasefile={self.leases}", f"--pid-file={self.tmp / 'dnsmasq.pid'}",
            f"--dhcp-range={range},255.255.255.0,2m", "--dhcp-authoritative", f"--dhcp-option=3,{SERVER}", *options,
        ]  # fmt: skip
        began = self.log.count("IP range")
        self._dnsmasq = self._started.enter_context((node or self.node).start(command))
        until(lambda: self.log.count("IP range") > began, "dnsmasq")

    def stop_serving(self) -> None:
        if self._dnsmasq:
            self._dnsmasq.kill()
            self._dnsmasq.wait()

    @property
    def log(self) -> str:
        """Return what dnsmasq said."""
        path = self.tmp / "dnsmasq.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def given(self) -> dict[str, str]:
        """The addresses that dnsmasq has given out, and to which client id."""
        lines = self.leases.read_text().splitlines() if self.leases.exists() else []
        return {line.split()[2]: bytes.fromhex(line.split()[4].replace(":", ""))[1:].decode() for line in lines}

    def was_given_back(self, address: str) -> None:
        until(lambda: address not in self.given, f"the release of {address}: {self.daemon_log}")

    # ---- the daemon ----

    def start_daemon(self, *flags: str, by: str = "ours") -> subprocess.Popen[str]:
        command = [str(self.folders[by] / "dhcp"), "daemon", "-socketpath", str(self.socket), *flags]
        with open(self.tmp / "daemon.log", "a") as log:
            # The log goes to a file, or the daemon would wait for who reads it.
            shell = ["sh", "-c", 'exec "$@" 2>>"$0"', log.name, *command]
            self._daemon = self._started.enter_context(self.node.start(shell))
        until(self._is_listening, "the daemon")
        return self._daemon

    def stop_daemon(self, by: int = signal.SIGTERM) -> int:
        assert self._daemon
        self._daemon.send_signal(by)
        return self._daemon.wait(LIMIT)

    def _is_listening(self) -> bool:
        assert self._daemon
        assert self._daemon.poll() is None, self.daemon_log
        return is_listening(self.socket)

    @property
    def daemon_log(self) -> str:
        return (self.tmp / "daemon.log").read_text()

    # ---- the plugins ----

    def call(
        self,
        verb: str,
        container: Node,
        ifname: str = "eth0",
        *,
        type: str = "bridge",
        by: str = "ours",
        ipam_by: str = "",
        args: str = "",
        ipam: dict[str, Any] | None = None,
        **config: Any,
    ) -> tuple[int, Any]:
        """The exit status and what was printed."""
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container.name,
            "CNI_NETNS": container.path,
            "CNI_IFNAME": ifname,
            "CNI_PATH": str(self.folders[ipam_by or by]),
            "CNI_ARGS": args,
        }
        given = {
            "cniVersion": "1.0.0",
            "name": "lan",
            "type": type,
            "bridge": "br0",
            "ipam": {"type": "dhcp", "daemonSocketPath": str(self.socket), **(ipam or {})},
            **config,
        }
        done = self.node.run([str(self.folders[by] / type)], stdin=json.dumps(given), env=env, check=False)
        return done.returncode, json.loads(done.stdout or "null")

    def add(self, container: Node, ifname: str = "eth0", **more: Any) -> dict[str, Any]:
        status, result = self.call("ADD", container, ifname, **more)
        assert status == 0, (result, self.daemon_log)
        return result  # type: ignore[no-any-return]

    def delete(self, container: Node, ifname: str = "eth0", **more: Any) -> None:
        assert self.call("DEL", container, ifname, **more) == (0, None)

    def interface(self, container: Node, ifname: str = "eth0") -> None:
        """An interface of the container's on the network, made by nobody's plugin."""
        peer = f"v{container.name[-8:]}{ifname[-4:]}"
        link = ["add", peer, "type", "veth", "peer", "name", ifname, "netns", container.name]
        for command in (link, ["set", peer, "master", "br0"], ["set", peer, "up"]):
            self.node.run(["ip", "link", *command])

    def capture(self, interface: str = "br0") -> Capture:
        return Capture(self.node, interface)


@contextlib.contextmanager
def made(node: Node, folders: dict[str, Path], tmp: Path) -> Iterator[Lan]:
    lan = Lan(node, folders, tmp)
    try:
        yield lan
    finally:
        lan.close()
