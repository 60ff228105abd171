"""`dhcp daemon`: the service that acquires and renews the leases of a node's containers.

It listens on the plugins' default socket, or takes over a socket of systemd's. The leases are saved in a folder beside
the socket (SOCKET without `.sock`, and `.leases`): the next daemon resumes them, and stopping releases none.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import signal
import socket
import sys

from cni.spec.errors import CNIError, quote
from cni_plugins.ipam.dhcp import SOCKET, flags, rpc
from cni_plugins.ipam.dhcp.lease import Timing
from cni_plugins.ipam.dhcp.leases import Leases
from cni_plugins.ipam.dhcp.server import Server
from cni_plugins.ipam.dhcp.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_FLAGS = {
    "broadcast": flags.switch("have servers broadcast their replies"),
    "hostprefix": flags.text("prefix of the paths of the socket and of namespaces"),
    "pidfile": flags.text("absolute path of a file to write the daemon's PID to"),
    "resendmax": flags.duration("62s", "the longest pause between two attempts"),
    "resendtimeout": flags.duration("208s", "the timeout for acquiring a lease"),
    "socketpath": flags.text(f"the socket to listen on, instead of {SOCKET}"),
    "timeout": flags.duration("10s", "the timeout for a server's first reply"),
}
_SYSTEMD_FD = 3  # the first of sd_listen_fds(3)
_BACKLOG = 1024
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """Run the daemon. Returns its exit status."""
    gc.enable()  # a plugin's process is started without it
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until there are handlers
    try:
        settings = flags.parse(_FLAGS, arguments)
    except flags.Help:
        sys.stderr.write(flags.usage("daemon", _FLAGS))
        return 0
    except flags.Misuse as error:
        sys.stderr.write(f"{error}\n{flags.usage('daemon', _FLAGS)}")
        return 2
    try:
        with Daemon(settings) as daemon:
            asyncio.run(daemon.run())
    except CNIError as error:
        log(str(error))
        return 1
    return 0


def log(text: str) -> None:
    """Write a line to stderr. The service manager adds the time."""
    try:
        sys.stderr.write(text.replace("\n", "\n\t") + "\n")
        sys.stderr.flush()
    except OSError:
        pass  # stderr has no reader


class Daemon:
    """The daemon and its files on the node: the socket, the PID's file, the folder of leases. Raises CNIError."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._path = settings["hostprefix"] + (settings["socketpath"] or SOCKET)
        self._pidfile = settings["pidfile"]
        self._is_handed_over = False

    def __enter__(self) -> Daemon:
        _allow_many_files()
        if self._pidfile:
            _write_pid(self._pidfile)
        try:
            _make_folder(os.path.dirname(self._path))
            self._store = Store(self._path.removesuffix(".sock") + ".leases", log)
            self._listener = self._listen()
        except BaseException:
            self._remove_pid()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.close()
        if not self._is_handed_over:  # systemd keeps its socket for the next daemon
            _remove(self._path)
        self._remove_pid()
        self._store.close()

    async def run(self) -> None:
        """Serve until a signal stops the daemon."""
        stopped = asyncio.Event()
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        settings = self._settings
        timing = Timing(settings["timeout"], settings["resendmax"], settings["resendtimeout"])
        leases = Leases(self._store, timing, log, broadcast=settings["broadcast"], prefix=settings["hostprefix"])
        leases.resume()
        methods = {rpc.ALLOCATE: leases.allocate, rpc.RELEASE: leases.release, rpc.COLLECT: leases.collect}
        server = Server(self._listener, methods, log)
        serving = asyncio.create_task(server.serve())
        await stopped.wait()
        serving.cancel()
        await server.close()
        await leases.close()

    def _listen(self) -> socket.socket:
        number = _handed_over()
        if number > 1:
            raise CNIError(f"Too many ({number}) FDs passed through socket activation")
        if number == 1:
            self._is_handed_over = True
            os.set_inheritable(_SYSTEMD_FD, False)
            return socket.socket(fileno=_SYSTEMD_FD)
        try:
            return _bind(self._path)
        except OSError as error:
            reason = error.strerror.lower() if error.strerror else str(error)
            raise CNIError(f"Error getting listener: listen unix {self._path}: {reason}") from error

    def _remove_pid(self) -> None:
        if self._pidfile:
            _remove(self._pidfile)


def _bind(path: str) -> socket.socket:
    """Return a listening socket at `path`, which replaces a stale one."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        if _is_stale(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener


def _make_folder(path: str) -> None:
    umask = os.umask(0o077)
    try:
        os.makedirs(path or ".", exist_ok=True)
    except OSError as error:
        raise CNIError(f"Error getting listener: mkdir {path}: {error.strerror}") from error
    finally:
        os.umask(umask)


def _is_stale(path: str) -> bool:
    """Return whether there is a socket at `path` on which no process listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _handed_over() -> int:
    """Return the number of sockets that systemd has opened for this process (sd_listen_fds(3))."""
    pid, number = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    return int(number) if pid == str(os.getpid()) and number.isdigit() else 0


def _write_pid(path: str) -> None:
    try:
        if not os.path.isabs(path):
            raise CNIError("path not absolute")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(fd, "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
    except (CNIError, OSError) as error:
        raise CNIError(f"Error writing pidfile {quote(path)}: {error}") from error


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # it is gone, or cannot be removed


def _allow_many_files() -> None:
    """Raise the limit of open files: many leases may be acquired at once, with a descriptor or two each."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))
