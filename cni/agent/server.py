"""The agent itself: threads that each serve one connection at a time, and nothing that a restart would lose.

What is bounded: connections by the number of threads, what runs at once by slots, a request by its size and by the
time that it may take to arrive. Who finds no place is served by its launcher.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from cni import launcher, process, reaper
from cni.agent import protocol
from cni.netns import NetNS
from cni.skel import Plugin

_CONNECTIONS = 256  # at once, waiting ones included
_AT_ONCE = 64  # calls that run
_SPARE = 16  # threads that stay when there is nothing to do
_PATIENCE = struct.pack("ll", 2, 0)  # seconds that a request may take to arrive, and its answer to be taken
_PLACE = 0.5  # seconds to wait for a place among those that run
_TURN = 120.0  # seconds to wait for another call about the same interface of the same container
_FINISH = 60.0  # seconds that what runs may take to finish when the agent is to stop

_CLONE_FS = 0x200  # linux/sched.h
_SWITCH = 0.0005  # seconds; by default who has waited for the kernel waits 5 ms for who computes


class Agent:
    """Serves what comes to `listener`, a listening Unix socket, until `stop` is called."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._hello = protocol.hello()
        self._code = _code_identity()
        with NetNS.current() as own:
            self._netns = own.identity
        self._plugins: dict[str, Plugin] = {}
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._slots = threading.BoundedSemaphore(_AT_ONCE)
        self._turns = _Turns()
        reaper.install()
        self._conversing = 0  # with launchers that count on an answer
        self._stopping = threading.Event()

    def start(self) -> None:
        """Import what there is to import, and serve."""
        for point in entry_points(group="cni.plugins"):
            with contextlib.suppress(Exception):  # a broken plugin is told to who calls it
                self._plugin(point.value)
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(_SWITCH)
        self._add_thread()

    def wait(self) -> None:
        """Until `stop` is called and what runs is done. What takes too long is left to the end of the process."""
        self._stopping.wait()
        end = time.monotonic() + _FINISH
        while self._is_conversing() and time.monotonic() < end:
            time.sleep(0.01)

    def _is_conversing(self) -> bool:
        with self._lock:  # not between a launcher's being welcome and its being counted
            return self._conversing > 0

    def stop(self) -> None:
        """Take no more requests. May be called by a signal handler."""
        self._stopping.set()

    # ---- threads ----

    def _add_thread(self) -> None:
        with self._lock:
            self._threads += 1
            self._idle += 1
        threading.Thread(target=self._work, name="cni-agent", daemon=True).start()

    def _work(self) -> None:
        # A current folder of its own, for the callers'.
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_FS):
            raise OSError(ctypes.get_errno(), "unshare the current folder")
        while self._wants_more():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # a connection that has gone, or no descriptors left: who waits is served by the launcher
                time.sleep(0.01)
                continue
            with self._lock:
                self._idle -= 1
                is_last = not self._idle and self._threads < _CONNECTIONS
            if is_last:
                self._add_thread()
            self.converse(connection)
            with self._lock:
                self._idle += 1

    def _wants_more(self) -> bool:
        """Whether this thread is to go on; otherwise it doesn't count any more."""
        with self._lock:
            goes_on = self._idle <= _SPARE
            if not goes_on:
                self._threads -= 1
                self._idle -= 1
        return goes_on

    # ---- one connection ----

    def converse(self, connection: socket.socket) -> None:
        """Serve who is at the other end, and close it. Nothing is raised: a thread fewer would be worse than that."""
        try:
            with connection:
                self._converse(connection)
        except (OSError, protocol.Refused) as error:
            _log(f"a request was not served: {error}")
        except Exception:
            _log(traceback.format_exc())

    def _converse(self, connection: socket.socket) -> None:
        if protocol.peer_uid(connection) != os.geteuid():
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
        with self._counted() as is_welcome:
            if is_welcome:
                self._talk(connection)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[bool]:
        """From the hello on a launcher counts on an answer: `wait` waits for it. Whether there may be a hello."""
        with self._lock:
            is_welcome = not self._stopping.is_set()
            self._conversing += is_welcome
        try:
            yield is_welcome
        finally:
            with self._lock:
                self._conversing -= is_welcome

    def _talk(self, connection: socket.socket) -> None:
        connection.sendall(self._hello)
        request = protocol.receive(connection)
        if request is None:
            return
        with contextlib.closing(request):
            try:
                done = self._serve(request)
            except _Declined as error:
                _log(f"left to the launcher: {error}")
                done = (protocol.DECLINED, b"", b"")
            protocol.answer(connection, *done)

    def _serve(self, request: protocol.Request) -> tuple[int, bytes, bytes]:
        if request.folders[0] != launcher.PACKAGES or _code_identity() != self._code:
            raise _Declined("it belongs to another installation")
        if request.is_large:
            raise _Declined("its configuration is too large")
        try:
            plugin = self._plugin(request.reference)
        except (ImportError, AttributeError) as error:
            raise _Declined(f"{request.reference}: {error}") from error
        environ = request.environ
        with self._turns.of(environ), self._slot():
            return self._run(plugin, request, environ)

    def _run(self, plugin: Plugin, request: protocol.Request, environ: dict[str, str]) -> tuple[int, bytes, bytes]:
        printed: list[str] = []
        logged: list[str] = []
        os.fchdir(request.folder)
        # Programs that the plugin starts are the caller's. Were they our executables, they would wait for their turn.
        process.caller.environ = {**environ, "CNI_AGENT_SOCKET": ""}
        with self._host(request.netns) as host:
            status = plugin.run(process.caller.environ, request.read_stdin, printed.append, logged.append, host)
        return status, _bytes(printed), _bytes(logged)

    @contextlib.contextmanager
    def _host(self, fd: int) -> Iterator[NetNS | None]:
        """The caller's network namespace, None where it is the agent's."""
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) == self._netns:
            yield None
            return
        with NetNS.of_fd(fd) as netns:
            yield netns

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(timeout=_PLACE):
            raise _Declined(f"{_AT_ONCE} calls are running")
        try:
            yield
        finally:
            self._slots.release()

    def _plugin(self, reference: str) -> Plugin:
        plugin = self._plugins.get(reference)
        if plugin is None:
            loaded: Any = launcher.load(reference)
            self._plugins[reference] = plugin = loaded
        return plugin


class _Declined(Exception):
    """The launcher is to do it."""


class _Turns:
    """Calls about one interface of one container run one after the other.

    A runtime that loses patience kills the executable, not what runs here, and then asks for DEL: that has to wait.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def of(self, environ: dict[str, str]) -> Iterator[None]:
        key = environ.get("CNI_CONTAINERID", ""), environ.get("CNI_IFNAME", "")
        if not all(key):
            yield
            return
        with self._lock:
            turn, waiting = self._held.get(key, (threading.Lock(), 0))
            self._held[key] = turn, waiting + 1
        try:
            if not turn.acquire(timeout=_TURN):
                raise _Declined(f"another call about {key} has been running for {_TURN:g} s")
            try:
                yield
            finally:
                turn.release()
        finally:
            with self._lock:
                turn, waiting = self._held.pop(key)
                if waiting > 1:
                    self._held[key] = turn, waiting - 1


def _code_identity() -> tuple[int, int] | None:
    """What changes with the package on disk: the code in memory is then another than the launcher's."""
    try:
        status = os.stat(f"{launcher.PACKAGES}/cni/_core.pyi")
    except OSError:
        return None  # it is just being replaced
    return status.st_ino, status.st_mtime_ns


def _bytes(texts: list[str]) -> bytes:
    return "".join(texts).encode(errors="replace")


def _log(text: str) -> None:
    print(f"cni agent: {text}", file=sys.stderr, flush=True)
