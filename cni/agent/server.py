"""The agent itself: threads that each serve one connection at a time, and nothing that a restart would lose.

What is bounded: connections by the number of threads, what runs at once by slots, a request by its size and by the
time that it may take to arrive. Who finds no place is served by its launcher.
"""

from __future__ import annotations

import _socket
import contextlib
import ctypes
import gc
import os
import queue
import socket
import struct
import sys
import threading
import time
import traceback
from typing import Any

from cni._core import netns_identity
from cni.agent import protocol
from cni.invoke import launcher, registry
from cni.kernel.netns import Home, NetNS
from cni.runtime import group_delete
from cni.skel.plugin import Outcome, Plugin
from cni.spec.errors import CNIError
from cni.system import process

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
    """Serves what comes to `listener`, a listening Unix socket, until `stop` is called; `observer` is told of calls."""

    def __init__(self, listener: socket.socket, observer: Observer | None = None) -> None:
        self._listener = listener
        self._observer = observer or Observer()
        self._files = protocol.files()
        self._code = _code_identity()
        self._home = Home.current()
        self._plugins: dict[str, Plugin] = {}
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._slots = _Slots()
        self._turns = _Turns()
        self.reaper = group_delete.install()
        self._conversing = 0  # with launchers that may count on an answer
        self._is_stopping = False
        self._woken, self.wakeup = os.pipe()
        os.set_blocking(self.wakeup, False)

    def start(self) -> None:
        """Import what there is to import, and serve."""
        for point in registry.entry_points():
            with contextlib.suppress(Exception):  # a broken plugin is told to who calls it
                self._plugin(point.value)
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(_SWITCH)
        self._add_thread()

    def wait(self) -> None:
        """Until `stop` is called and what runs is done. What takes too long is left to the end of the process."""
        while not self._is_stopping:
            os.read(self._woken, 1)
        end = time.monotonic() + _FINISH
        while self._is_conversing() and time.monotonic() < end:
            time.sleep(0.01)

    def _is_conversing(self) -> bool:
        with self._lock:  # not between a launcher's being welcome and its being counted
            return self._conversing > 0

    def stop(self) -> None:
        """Take no more requests. May be called by a signal handler.

        A signal may be taken by a thread that is just being made, and so not interrupt the main thread, which runs
        the handler. What is written to `wakeup` does (signal.set_wakeup_fd).
        """
        self._is_stopping = True
        with contextlib.suppress(BlockingIOError):  # it has been told often enough
            os.write(self.wakeup, b"\0")

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
                # As accept(), but that the object is a plain one, which makes an enum of no number.
                descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]
            except OSError:  # a connection that has gone, or no descriptors left: who waits is served by the launcher
                time.sleep(0.01)
                continue
            with self._lock:
                self._idle -= 1
                is_last = not self._idle and self._threads < _CONNECTIONS
            if is_last:
                self._add_thread()
            self.converse(_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor))
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

    def converse(self, connection: _socket.socket) -> None:
        """Serve who is at the other end, and close it. Nothing is raised: a thread fewer would be worse than that."""
        try:
            self._converse(connection)
        except (OSError, protocol.Refused) as error:
            _log(f"a request was not served: {error}")
        except Exception:
            _log(traceback.format_exc())
        finally:
            connection.close()

    def _converse(self, connection: _socket.socket) -> None:
        if protocol.peer_uid(connection) != os.geteuid():
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
        with self._lock:
            if self._is_stopping:
                return
            self._conversing += 1
        try:
            self._talk(connection)
        finally:
            with self._lock:
                self._conversing -= 1

    def _talk(self, connection: _socket.socket) -> None:
        request = protocol.receive(connection)
        if request is None:
            return
        try:
            # Of a launcher that was killed the runtime's DEL may have been served already.
            if protocol.claim(request.stdin) and protocol.is_waiting(connection):
                protocol.answer(connection, *self._serve(request))
        finally:
            request.close()

    def _serve(self, request: protocol.Request) -> tuple[int, bytes, bytes]:
        try:
            plugin, config = self._accepted(request)
            with self._observer.call(request) as call, self._turns.of(request.environ), self._slots:
                call.begin()
                outcome, log = self._run(plugin, config, request)
                call.end(outcome.error)
            return outcome.status, outcome.stdout.encode(errors="replace"), log
        except _Declined as error:
            self._observer.declined(error.reason)
            _log(f"left to the launcher: {error}")
            return protocol.DECLINED, b"", str(error).encode(errors="replace")

    def _accepted(self, request: protocol.Request) -> tuple[Plugin, bytes]:
        if request.files != self._files:
            raise _Declined("other_files", "it sees other files, by its mount namespace or root folder")
        if request.packages != launcher.PACKAGES or _code_identity() != self._code:
            raise _Declined("other_installation", "it belongs to another installation")
        config = request.read_stdin()
        if config is None:
            raise _Declined("too_large", "its configuration is too large")
        try:
            return self._plugin(request.reference), config
        except (ImportError, AttributeError) as error:
            raise _Declined("no_plugin", f"{request.reference}: {error}") from error

    def _run(self, plugin: Plugin, config: bytes, request: protocol.Request) -> tuple[Outcome, bytes]:
        """Serve the call; return its outcome and what it logged."""
        logged: list[str] = []
        os.fchdir(request.folder)
        # Programs that the plugin starts are the caller's. Were they our executables, they would wait for their turn.
        process.caller.environ = {**request.environ, "CNI_AGENT_SOCKET": ""}
        host = self._host(request.netns)
        try:
            outcome = plugin.serve(process.caller.environ, lambda: config, logged.append, host)
        finally:
            host.close()
        return outcome, "".join(f"{text}\n" for text in logged).encode(errors="replace")

    def _host(self, fd: int) -> NetNS:
        """The caller's network namespace."""
        return self._home if netns_identity(fd) == self._home.identity else NetNS.of_fd(fd)

    def _plugin(self, reference: str) -> Plugin:
        plugin = self._plugins.get(reference)
        if plugin is None:
            loaded: Any = launcher.load(reference)
            self._plugins[reference] = plugin = loaded
        return plugin


# Why a call is left to its launcher, in the words that metrics have for it.
REASONS = ("other_files", "other_installation", "too_large", "no_plugin", "no_place", "no_turn")


class Call:
    """One observed call, from its arrival (`with`) to its answer. No method raises; here none does anything."""

    __slots__ = ()

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def begin(self) -> None:
        """Note that the call has its turn and its place."""

    def end(self, error: CNIError | None) -> None:
        """Note the end of the plugin's work, and the error it answered with, if any."""


class Observer:
    """The observer of an agent's calls that ignores them; metrics.py counts them."""

    def call(self, request: protocol.Request) -> Call:  # noqa: ARG002
        """Return the observed call for a request that has arrived."""
        return _UNOBSERVED

    def declined(self, reason: str) -> None:
        """Note a call that is left to its launcher; `reason` is one of REASONS."""


_UNOBSERVED = Call()


class _Declined(Exception):
    """The launcher is to do it; `reason` is one of few words, for who counts."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class _Slots:
    """Places for those that run. No semaphore, as a queue of tokens does without any Python of its own."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(_AT_ONCE):
            self._free.put(None)

    def __enter__(self) -> None:
        try:
            self._free.get(timeout=_PLACE)
        except queue.Empty:
            raise _Declined("no_place", f"{_AT_ONCE} calls are running") from None

    def __exit__(self, *exc: object) -> None:
        self._free.put(None)


class _Turns:
    """Calls about one interface of one container run one after the other.

    A runtime that loses patience kills the executable, not what runs here, and then asks for DEL: that has to wait.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: dict[tuple[str, str], tuple[threading.Lock, int]] = {}

    def of(self, environ: dict[str, str]) -> contextlib.AbstractContextManager[object]:
        """The turn of a call with this environment, for a `with` statement, which raises _Declined."""
        key = environ.get("CNI_CONTAINERID", ""), environ.get("CNI_IFNAME", "")
        return _Turn(self, key) if all(key) else contextlib.nullcontext()


class _Turn:
    __slots__ = ("_key", "_turns")

    def __init__(self, turns: _Turns, key: tuple[str, str]) -> None:
        self._turns = turns
        self._key = key

    def __enter__(self) -> None:
        with self._turns.lock:
            turn, waiting = self._turns.held.get(self._key, (None, 0))
            turn = turn or threading.Lock()
            self._turns.held[self._key] = turn, waiting + 1
        if not turn.acquire(timeout=_TURN):
            self._leave()
            raise _Declined("no_turn", f"another call about {self._key} has been running for {_TURN:g} s")

    def __exit__(self, *exc: object) -> None:
        self._leave().release()

    def _leave(self) -> threading.Lock:
        with self._turns.lock:
            turn, waiting = self._turns.held.pop(self._key)
            if waiting > 1:
                self._turns.held[self._key] = turn, waiting - 1
        return turn


def _code_identity() -> tuple[int, int] | None:
    """What changes with the package on disk: the code in memory is then another than the launcher's."""
    try:
        status = os.stat(f"{launcher.PACKAGES}/cni/_core.pyi")
    except OSError:
        return None  # it is just being replaced
    return status.st_ino, status.st_mtime_ns


def _log(text: str) -> None:
    print(f"cni agent: {text}", file=sys.stderr, flush=True)
