"""Run the agent as a service: its sockets, systemd's or its own, signals, and readiness."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import NoReturn

from cni.agent.address import Address
from cni.agent.server import Agent

_BACKLOG = 256
_METRICS_BACKLOG = 16
_FIRST_PASSED = 3  # sd_listen_fds(3)


def serve(address: Address, metrics: Address | None = None) -> NoReturn:
    """Serve at systemd's socket if there is one, or else at `address`, until SIGTERM or SIGINT; then exit.

    The agent's metrics can be read at `metrics`. Raises OSError if it cannot listen.
    """
    with contextlib.ExitStack() as cleanup:
        listener = _passed() or _listening(address, _BACKLOG, cleanup)
        metrics_listener = _listening(metrics, _METRICS_BACKLOG, cleanup) if metrics else None
        os.chdir("/")
        agent = _counting(listener, metrics_listener) if metrics_listener else Agent(listener)
        signal.set_wakeup_fd(agent.wakeup)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        agent.start()
        _notify("READY=1")
        agent.wait()
        _notify("STOPPING=1")
    os._exit(0)  # without joining the threads that wait for a connection


def _counting(listener: socket.socket, metrics_listener: socket.socket) -> Agent:
    """Return an agent whose calls are counted, and serve the counts at `metrics_listener`."""
    from cni.agent import metrics  # 35 ms and 5 MB, which an agent without metrics saves

    counts = metrics.Metrics()
    agent = Agent(listener, counts)
    counts.watch(agent.group_deleter)
    metrics.serve(metrics_listener, counts.registry)
    return agent


def _passed() -> socket.socket | None:
    """Return the socket that systemd listens on for this process, or None."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=_FIRST_PASSED)


def _listening(address: Address, backlog: int, cleanup: contextlib.ExitStack) -> socket.socket:
    """Return a listening socket; `cleanup` removes its file."""
    try:
        listener = address.listen(backlog)
    except OSError as error:
        raise OSError(f"cannot listen at {address}: {error.strerror or error}") from error
    cleanup.callback(address.remove)
    return listener


def _notify(state: str) -> None:
    """Send a state to systemd (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        address = "\0" + path[1:] if path.startswith("@") else path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.sendto(state.encode(), address)
