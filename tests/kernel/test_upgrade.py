"""An upgrade while containers run and a runtime is calling: no call fails, whatever moment it comes at."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.invoke import launcher
from tests.kernel.conftest import links
from tests.waiting import LIMIT, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Node

ROUNDS = 8
CALLERS = 3


class Release:
    """An installation of its own: the package's code, in another folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        for package in ("cni", "cni_plugins"):
            (folder / package).symlink_to(os.path.realpath(f"{launcher.PACKAGES}/{package}"))
        about: Any = next(iter(entry_points(group="cni.plugins"))).dist
        shutil.copytree(about._path, folder / about._path.name)
        path = os.pathsep.join([str(folder), *filter(None, sys.path)])
        self.folder = folder
        self.environ = {**os.environ, "PYTHONPATH": path}
        self.command = [sys.executable, "-P", "-m", "cni"]

    def install(self, folder: Path) -> None:
        subprocess.run([*self.command, "install", "--dir", folder], env=self.environ, check=True, capture_output=True)
        trailer = launcher.read(str(folder / "bridge"))
        assert trailer
        assert trailer.folders[0] == str(self.folder)


class Service:
    """A record of what systemd does: it holds the socket, and starts and stops the agent."""

    def __init__(self, node: Node, path: Path) -> None:
        path.parent.mkdir(mode=0o700)
        self._node = node
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(256)
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(path.with_name("notify")))
        self._notified.settimeout(LIMIT)
        self._agent: subprocess.Popen[bytes] | None = None

    def restart(self, release: Release) -> None:
        self.stop()
        fd = self._listener.fileno()
        script = f'exec env LISTEN_PID=$$ LISTEN_FDS=1 "$@" 3<&{fd}'
        entered = ["nsenter", f"--net={self._node.path}", "bash", "-c", script, "bash", *release.command, "agent"]
        environ = {**release.environ, "NOTIFY_SOCKET": self._notified.getsockname()}
        self._agent = subprocess.Popen(entered, env=environ, pass_fds=[fd], stderr=subprocess.DEVNULL)
        assert self._notified.recv(100) == b"READY=1"

    def terminate(self) -> subprocess.Popen[bytes]:
        assert self._agent
        agent, self._agent = self._agent, None
        agent.send_signal(signal.SIGTERM)
        return agent

    def stop(self) -> None:
        if self._agent:
            assert self.terminate().wait(LIMIT) == 0
            assert self._notified.recv(100) == b"STOPPING=1"

    def close(self) -> None:
        self.stop()
        self._listener.close()
        self._notified.close()


@pytest.fixture
def service(node: Node, tmp_path: Path) -> Iterator[Service]:
    with contextlib.closing(Service(node, tmp_path / "run" / "agent.sock")) as service:
        yield service


@pytest.fixture
def attach(node: Node, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "state"), "subnet": "10.1.0.0/16"}
    config: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "isGateway": True, "ipam": ipam}
    folder = tmp_path / "bin"

    def call(verb: str, container: Node, **more: Any) -> subprocess.CompletedProcess[str]:
        variables = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container.name,
            "CNI_NETNS": container.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(folder),
            "CNI_AGENT_SOCKET": str(tmp_path / "run" / "agent.sock"),
            "CNI_AGENT_TIMEOUT": "",  # the usual one, for both to serve calls
        }
        return node.run([str(folder / "bridge")], stdin=json.dumps({**config, **more}), env=variables, check=False)

    return call


@pytest.mark.slow
def test_no_call_fails(
    node: Node, service: Service, tmp_path: Path, attach: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    releases = [Release(tmp_path / name) for name in ("old", "new")]
    releases[0].install(tmp_path / "bin")
    service.restart(releases[0])
    running = node.container()
    before = json.loads(attach("ADD", running).stdout)
    failures: list[object] = []
    calls = [0] * CALLERS
    is_over = threading.Event()

    def churn(number: int, container: Node) -> None:
        while not is_over.is_set() and not failures:
            added = attach("ADD", container)
            done = [added, attach("CHECK", container, prevResult=json.loads(added.stdout)), attach("DEL", container)]
            failures.extend(each for each in done if each.returncode or each.stderr)
            calls[number] += len(done)

    callers = [threading.Thread(target=churn, args=(n, node.container())) for n in range(CALLERS)]
    for caller in callers:
        caller.start()
    for number in range(ROUNDS):
        release = releases[1 - number % 2]
        release.install(tmp_path / "bin")
        until(lambda: failures or min(calls) > number, "a call of each caller")  # noqa: B023
        service.restart(release)
    is_over.set()
    for caller in callers:
        caller.join()
    assert failures == []
    assert min(calls) >= ROUNDS
    # The container that ran all the time is as it was, and what the new release detaches is gone.
    assert attach("CHECK", running, prevResult=before).returncode == 0
    assert attach("DEL", running).returncode == 0
    assert links(running) == {"lo"}
    assert [name for name in os.listdir(tmp_path / "state" / "net") if name[0].isdigit()] == []


def test_a_call_that_runs_is_finished(
    node: Node, service: Service, tmp_path: Path, attach: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The agent that is to stop has accepted it, and waits for a slow IPAM plugin."""
    release = Release(tmp_path / "release")
    release.install(tmp_path / "bin")
    slow = tmp_path / "bin" / "slow"
    slow.write_text(
        f"#!/bin/sh\ntouch {tmp_path}/asked\nsleep 1\n"
        """echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.9/16"}]}'\n"""
    )
    slow.chmod(0o755)
    service.restart(release)
    container = node.container()
    answers: list[subprocess.CompletedProcess[str]] = []
    caller = threading.Thread(target=lambda: answers.append(attach("ADD", container, ipam={"type": "slow"})))
    caller.start()
    until(lambda: (tmp_path / "asked").exists() or not caller.is_alive(), "the IPAM plugin")
    service.stop()
    caller.join()
    (answer,) = answers
    assert (answer.returncode, answer.stderr) == (0, "")
    assert json.loads(answer.stdout)["ips"][0]["address"] == "10.1.0.9/16"
