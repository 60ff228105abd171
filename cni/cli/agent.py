"""``cni agent``: serve the plugins' calls from one warm process."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import socket
import stat
import sys

from cni.agent.server import Agent

DEFAULT_SOCKET = "/run/cni/agent.sock"
_BACKLOG = 256
_FIRST_PASSED = 3  # sd_listen_fds(3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni agent``."""
    parser.add_argument(
        "--socket",
        default=os.environ.get("CNI_AGENT_SOCKET") or DEFAULT_SOCKET,
        metavar="PATH",
        help="where to listen, unless systemd passes a socket (default: $CNI_AGENT_SOCKET or %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. 0, or 1 with words on stderr."""
    try:
        listener, is_own = _listener(arguments.socket)
    except OSError as error:
        print(f"cni agent: {arguments.socket}: {error}", file=sys.stderr)
        return 1
    os.chdir("/")
    agent = Agent(listener)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    agent.start()
    _notify("READY=1")
    agent.wait()
    _notify("STOPPING=1")
    if is_own:
        with contextlib.suppress(OSError):
            os.unlink(arguments.socket)
    # Threads that wait for a connection are not to be waited for.
    os._exit(0)


def _listener(path: str) -> tuple[socket.socket, bool]:
    """The listening socket, and whether it is for us to remove."""
    passed = _passed()
    return (passed, False) if passed else (_bound(path), True)


def _passed() -> socket.socket | None:
    """The socket that systemd listens on for us."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=_FIRST_PASSED)


def _bound(path: str) -> socket.socket:
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, 0o700, exist_ok=True)
    status = os.stat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(errno.EPERM, f"{folder} is a folder in which others may put things: give it mode 0700")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _remove_dead(path)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    return listener


def _remove_dead(path: str) -> None:
    """Take away the socket of an agent that is no more. Raises OSError if there is one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "an agent listens there already")


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        address = "\0" + path[1:] if path.startswith("@") else path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.sendto(state.encode(), address)
