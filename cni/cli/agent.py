"""``cni agent``: serve the plugins' calls from one warm process."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys

from cni.agent.address import Address
from cni.agent.server import Agent

DEFAULT_SOCKET = "/run/cni/agent.sock"
_BACKLOG = 256
_READERS = 16  # of metrics, that wait for their turn
_FIRST_PASSED = 3  # sd_listen_fds(3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni agent``."""
    parser.add_argument(
        "--socket",
        default=os.environ.get("CNI_AGENT_SOCKET") or DEFAULT_SOCKET,
        metavar="PATH",
        help="where to listen, unless systemd passes a socket (default: $CNI_AGENT_SOCKET or %(default)s)",
    )
    add_metrics_argument(parser, os.environ.get("CNI_AGENT_METRICS") or None, " (default: $CNI_AGENT_METRICS, or none)")


def add_metrics_argument(parser: argparse.ArgumentParser, default: str | None = None, more: str = "") -> None:
    """--metrics, for who starts an agent or has one started."""
    parser.add_argument(
        "--metrics",
        type=_address,
        default=default,
        metavar="ADDRESS",
        help=f"where the agent's metrics can be read: HOST:PORT, PORT of 127.0.0.1, or the path of a socket{more}",
    )


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. 0, or 1 with words on stderr."""
    with contextlib.ExitStack() as made:
        try:
            listener = _passed() or _listening(Address(os.path.abspath(arguments.socket)), _BACKLOG, made)
            readers = arguments.metrics and _listening(arguments.metrics, _READERS, made)
        except OSError as error:
            print(f"cni agent: {error}", file=sys.stderr)
            return 1
        os.chdir("/")
        agent = _counting(listener, readers) if readers else Agent(listener)
        signal.set_wakeup_fd(agent.wakeup)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        agent.start()
        _notify("READY=1")
        agent.wait()
        _notify("STOPPING=1")
    # Threads that wait for a connection are not to be waited for.
    os._exit(0)


def _counting(listener: socket.socket, readers: socket.socket) -> Agent:
    """An agent that counts its calls, for who connects to `readers`."""
    from cni.agent import metrics  # 35 ms and 5 MB, for who wants them

    counts = metrics.Metrics()
    agent = Agent(listener, counts)
    counts.watch(agent.reaper)
    metrics.serve(readers, counts.registry)
    return agent


def _passed() -> socket.socket | None:
    """The socket that systemd listens on for us."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=_FIRST_PASSED)


def _listening(address: Address, backlog: int, made: contextlib.ExitStack) -> socket.socket:
    """A socket there, whose file is gone when `made` is left."""
    try:
        listener = address.listen(backlog)
    except OSError as error:
        raise OSError(f"cannot listen at {address}: {error.strerror or error}") from error
    made.callback(address.remove)
    return listener


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        address = "\0" + path[1:] if path.startswith("@") else path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.sendto(state.encode(), address)
