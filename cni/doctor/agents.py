"""The warm agent: whether there is one, whether it answers, and whether it is of the executables' installation."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator

from cni.agent import protocol
from cni.agent.address import DEFAULT_SOCKET
from cni.doctor import metrics
from cni.doctor.finding import Finding, Patient
from cni.invoke import exec as invoke
from cni.invoke import launcher
from cni.node.severity import ERROR, NOTE, OK, WARNING
from cni.spec import gojson
from cni.spec.errors import CNIError
from cni.spec.version import CURRENT
from cni.system import process

_PATIENCE = 2.0  # seconds; launchers wait one
_SYSTEMD = "/run/systemd/system"
_UNITS = ("cni-agent.socket", "cni-agent.service")
_SLOWER = "until then the plugins do their work themselves, each call 10 to 20 ms slower"


def check(patient: Patient) -> Iterator[Finding]:
    """The agent as a launcher sees it, and its metrics as Prometheus does."""
    yield from _check_socket(patient)
    yield from metrics.check()


def _check_socket(patient: Patient) -> Iterator[Finding]:
    path = os.environ.get("CNI_AGENT_SOCKET", DEFAULT_SOCKET)
    if not path:
        yield Finding(NOTE, "the agent is turned off by CNI_AGENT_SOCKET=''", "each call of a plugin starts Python")
        return
    try:
        status = os.stat(path)
    except OSError:
        yield from _absent(path)
        return
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        yield Finding(WARNING, f"others than its owner may use {path}", "who asks it acts as root", f"chmod 600 {path}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE)
        yield from _converse(connection, path, patient)
    yield from _units()


def _absent(path: str) -> Iterator[Finding]:
    cure = "cni agent" + ("" if path == DEFAULT_SOCKET else f" --socket {path}")
    meaning = "each call of a plugin starts Python, which takes 10 to 20 ms"
    yield Finding(NOTE, f"no agent listens at {path}", meaning, cure)
    yield from _units()


def _converse(connection: socket.socket, path: str, patient: Patient) -> Iterator[Finding]:
    try:
        connection.connect(path)
    except OSError as error:
        yield Finding(
            WARNING,
            f"nobody answers at {path}: {error.strerror}",
            f"an agent has ended without removing its socket; {_SLOWER}",
            f"cni agent --socket {path}, or: systemctl restart cni-agent.socket",
        )
        return
    whom = f"the agent (process {protocol.peer_pid(connection)})"
    restart = f"kill {protocol.peer_pid(connection)}; then start it again, or: systemctl restart cni-agent.service"
    yield from _ask(connection, whom, restart, patient)


def _ask(connection: socket.socket, whom: str, restart: str, patient: Patient) -> Iterator[Finding]:
    """Have it tell a plugin's versions, which does nothing else."""
    folders, reference = _served(patient)
    stdin = gojson.dumps({"cniVersion": CURRENT}).encode()
    try:
        done, stdout, said = protocol.ask(connection, folders, reference, {"CNI_COMMAND": "VERSION"}, stdin)
    except TimeoutError:
        meaning = "each call of a plugin waits a second for it before it does its work itself"
        yield Finding(ERROR, f"{whom} is stuck: it has not answered for {_PATIENCE:g} s", meaning, restart)
        return
    except (OSError, protocol.Refused) as error:
        meaning = f"it is stopping, of another version, or not of this user; {_SLOWER}"
        yield Finding(WARNING, f"{whom} takes no request: {error}", meaning, restart)
        return
    if done == protocol.DECLINED:
        text = f"{whom} does not serve the executables of {folders[0]}: {said.decode(errors='replace')}"
        meaning = f"start it where the runtime runs, and anew after an upgrade; {_SLOWER}"
        yield Finding(WARNING, text, meaning, restart)
    elif done or b"supportedVersions" not in stdout:
        yield Finding(ERROR, f"{whom} failed at VERSION: {stdout.decode(errors='replace').strip()}", _SLOWER, restart)
    else:
        yield Finding(OK, f"{whom} answers, and serves the executables of {folders[0]}")


def _served(patient: Patient) -> tuple[list[str], str]:
    """What an executable of ours in CNI_PATH would ask for; without one, this installation's loopback."""
    for name in ("loopback", *patient.types):
        try:
            trailer = launcher.read(invoke.find(name, patient.paths))
        except CNIError:
            continue
        if trailer:
            return list(trailer.folders), trailer.reference
    return [launcher.PACKAGES], "cni_plugins.main.loopback:plugin"


def _units() -> Iterator[Finding]:
    """What systemd says about the agent's units, if they are there."""
    if not os.path.isdir(_SYSTEMD):
        return
    for unit in _UNITS:
        try:
            said = process.run(["systemctl", "is-failed", unit], timeout=10)
        except OSError:
            return
        if said.status == 0:
            cure = f"journalctl -u {unit}; systemctl reset-failed {unit}; systemctl start {unit}"
            yield Finding(WARNING, f"{unit} has failed", _SLOWER, cure)
