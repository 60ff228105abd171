"""Check the warm agent: that there is one, that it answers, and that it serves the executables' installation."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator

from cni.agent import protocol
from cni.agent.address import DEFAULT_SOCKET
from cni.doctor import metrics
from cni.doctor.finding import Finding, NodeState
from cni.invoke import exec as invoke
from cni.invoke import launcher
from cni.node.severity import ERROR, NOTE, OK, WARNING
from cni.spec import gojson
from cni.spec.errors import CNIError
from cni.spec.version import CURRENT
from cni.system import process

_REPLY_TIMEOUT = 2.0  # seconds; launchers wait for one second
_SYSTEMD = "/run/systemd/system"
_UNITS = ("cni-agent.socket", "cni-agent.service")
_SLOWER = "until then the plugins do their work themselves, each call 10 to 20 ms slower"


def check(node: NodeState) -> Iterator[Finding]:
    """Check the agent as a launcher does, and its metrics as Prometheus does."""
    yield from _check_socket(node)
    yield from metrics.check()


def _check_socket(node: NodeState) -> Iterator[Finding]:
    path = os.environ.get("CNI_AGENT_SOCKET", DEFAULT_SOCKET)
    if not path:
        yield Finding(NOTE, "the agent is turned off by CNI_AGENT_SOCKET=''", "each call of a plugin starts Python")
        return
    try:
        file = os.stat(path)
    except OSError:
        yield from _absent(path)
        return
    if file.st_uid != os.geteuid() or stat.S_IMODE(file.st_mode) & 0o077:
        yield Finding(
            WARNING, f"users other than its owner may use {path}", "whoever uses it acts as root", f"chmod 600 {path}"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_REPLY_TIMEOUT)
        yield from _check_connection(connection, path, node)
    yield from _units()


def _absent(path: str) -> Iterator[Finding]:
    cure = "cni agent" + ("" if path == DEFAULT_SOCKET else f" --socket {path}")
    meaning = "each call of a plugin starts Python, which takes 10 to 20 ms"
    yield Finding(NOTE, f"no agent listens at {path}", meaning, cure)
    yield from _units()


def _check_connection(connection: socket.socket, path: str, node: NodeState) -> Iterator[Finding]:
    try:
        connection.connect(path)
    except OSError as error:
        yield Finding(
            WARNING,
            f"no agent answers at {path}: {error.strerror}",
            f"an agent has ended without removing its socket; {_SLOWER}",
            f"cni agent --socket {path}, or: systemctl restart cni-agent.socket",
        )
        return
    agent = f"the agent (process {protocol.peer_pid(connection)})"
    restart = f"kill {protocol.peer_pid(connection)}; then start it again, or: systemctl restart cni-agent.service"
    yield from _ask(connection, agent, restart, node)


def _ask(connection: socket.socket, agent: str, restart: str, node: NodeState) -> Iterator[Finding]:
    """Ask for a plugin's versions, which changes nothing."""
    folders, reference = _served(node)
    stdin = gojson.dumps({"cniVersion": CURRENT}).encode()
    try:
        status, stdout, stderr = protocol.ask(connection, folders, reference, {"CNI_COMMAND": "VERSION"}, stdin)
    except TimeoutError:
        meaning = "each call of a plugin waits a second for it, and then does its work itself"
        yield Finding(ERROR, f"{agent} is stuck: it has not answered for {_REPLY_TIMEOUT:g} s", meaning, restart)
        return
    except (OSError, protocol.Refused) as error:
        meaning = f"it is stopping, of another version, or not of this user; {_SLOWER}"
        yield Finding(WARNING, f"{agent} takes no request: {error}", meaning, restart)
        return
    if status == protocol.DECLINED:
        text = f"{agent} does not serve the executables of {folders[0]}: {stderr.decode(errors='replace')}"
        meaning = f"start it where the runtime runs, and restart it after an upgrade; {_SLOWER}"
        yield Finding(WARNING, text, meaning, restart)
    elif status or b"supportedVersions" not in stdout:
        yield Finding(ERROR, f"{agent} failed at VERSION: {stdout.decode(errors='replace').strip()}", _SLOWER, restart)
    else:
        yield Finding(OK, f"{agent} answers, and serves the executables of {folders[0]}")


def _served(node: NodeState) -> tuple[list[str], str]:
    """Return the request of an executable of ours in CNI_PATH, or without one that of this installation's loopback."""
    for name in ("loopback", *node.types):
        try:
            trailer = launcher.read(invoke.find(name, node.paths))
        except CNIError:
            continue
        if trailer:
            return list(trailer.folders), trailer.reference
    return [launcher.PACKAGES], "cni_plugins.main.loopback:plugin"


def _units() -> Iterator[Finding]:
    """Check the agent's systemd units, if there are any."""
    if not os.path.isdir(_SYSTEMD):
        return
    for unit in _UNITS:
        try:
            completed = process.run(["systemctl", "is-failed", unit], timeout=10)
        except OSError:
            return
        if completed.status == 0:
            cure = f"journalctl -u {unit}; systemctl reset-failed {unit}; systemctl start {unit}"
            yield Finding(WARNING, f"{unit} has failed", _SLOWER, cure)
