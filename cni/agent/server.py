"""The agent itself: threads that each serve one connection at a time, and no state that a restart would lose.

Limits: connections by the number of threads, running calls by slots, a request by its size and by the time that it may
take to arrive. A call that exceeds a limit is declined, as is one that sees other files or another installation: its
launcher then runs the plugin itself.
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

_MAX_CONNECTIONS = 256  # at once, including those of waiting calls
_MAX_RUNNING = 64  # calls at once
_SPARE_THREADS = 16  # idle threads that are kept
_IO_TIMEOUT = struct.pack("ll", 2, 0)  # seconds for a request to arrive, and for its answer to be read
_SLOT_TIMEOUT = 0.5  # seconds to wait for a slot
_TURN_TIMEOUT = 120.0  # seconds to wait for another call about the same interface of the same container
_STOP_TIMEOUT = 60.0  # seconds that running calls may take to finish when the agent stops

_CLONE_FS = 0x200  # linux/sched.h
_SWITCH_INTERVAL = 0.0005  # seconds; by default a thread that returns from the kernel waits 0.005 for one that computes


class Agent:
    """A server of calls from `listener`, a listening Unix socket, until `stop` is called; `observer` observes them."""

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
        self.group_deleter = group_delete.install()
        self._open_exchanges = 0  # with launchers that rely on an answer
        self._is_stopping = False
        self._wakeup_reader, self.wakeup = os.pipe()
        os.set_blocking(self.wakeup, False)

    def start(self) -> None:
        """Import all plugins, and begin to serve."""
        for point in registry.entry_points():
            with contextlib.suppress(Exception):  # a broken plugin is reported to its callers
                self._plugin(point.value)
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        self._add_thread()

    def wait(self) -> None:
        """Block until `stop` is called and running calls have finished; late ones end with the process."""
        while not self._is_stopping:
            os.read(self._wakeup_reader, 1)
        end = time.monotonic() + _STOP_TIMEOUT
        while self._has_open_exchanges() and time.monotonic() < end:
            time.sleep(0.01)

    def _has_open_exchanges(self) -> bool:
        with self._lock:  # so not while a launcher is admitted but not yet counted
            return self._open_exchanges > 0

    def stop(self) -> None:
        """Accept no more requests. May be called by a signal handler.

        A thread that is just being created may receive the signal, which then does not interrupt the main thread, where
        handlers run. The byte that is written to `wakeup` does (signal.set_wakeup_fd).
        """
        self._is_stopping = True
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so the main thread wakes up anyway
            os.write(self.wakeup, b"\0")

    # ---- threads ----

    def _add_thread(self) -> None:
        with self._lock:
            self._threads += 1
            self._idle += 1
        threading.Thread(target=self._work, name="cni-agent", daemon=True).start()

    def _work(self) -> None:
        # Each thread has a current folder of its own: it changes to its callers'.
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_FS):
            raise OSError(ctypes.get_errno(), "unshare the current folder")
        while self._keep_thread():
            try:
                # Like accept(), but without making a socket.socket, which converts its numbers to enums.
                descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]
            except OSError:  # the client has hung up, or no descriptors are left: launchers do without the agent
                time.sleep(0.01)
                continue
            with self._lock:
                self._idle -= 1
                is_last = not self._idle and self._threads < _MAX_CONNECTIONS
            if is_last:
                self._add_thread()
            self.handle(_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor))
            with self._lock:
                self._idle += 1

    def _keep_thread(self) -> bool:
        """Return True if this thread is to continue; if not, stop counting it."""
        with self._lock:
            is_needed = self._idle <= _SPARE_THREADS
            if not is_needed:
                self._threads -= 1
                self._idle -= 1
        return is_needed

    # ---- one connection ----

    def handle(self, connection: _socket.socket) -> None:
        """Serve the launcher at the other end, and close the connection. Never raises: that would end the thread."""
        try:
            self._admit(connection)
        except (OSError, protocol.Refused) as error:
            _log(f"a request was not served: {error}")
        except Exception:
            _log(traceback.format_exc())
        finally:
            connection.close()

    def _admit(self, connection: _socket.socket) -> None:
        """Exchange messages with a peer of the same user, within timeouts, unless the agent is stopping."""
        if protocol.peer_uid(connection) != os.geteuid():
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _IO_TIMEOUT)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _IO_TIMEOUT)
        with self._lock:
            if self._is_stopping:
                return
            self._open_exchanges += 1
        try:
            self._exchange(connection)
        finally:
            with self._lock:
                self._open_exchanges -= 1

    def _exchange(self, connection: _socket.socket) -> None:
        """Receive a request, claim the call, and answer it."""
        request = protocol.receive(connection)
        if request is None:
            return
        try:
            # If the launcher was killed, the runtime's DEL may have been served already.
            if protocol.claim(request.stdin) and protocol.is_waiting(connection):
                protocol.answer(connection, *self._serve(request))
        finally:
            request.close()

    def _serve(self, request: protocol.Request) -> tuple[int, bytes, bytes]:
        """Run the call in its turn, and return the answer; DECLINED if the call is left to its launcher."""
        try:
            plugin, config = self._prepare(request)
            with self._observer.call(request) as call, self._turns.of(request.environ), self._slots:
                call.begin()
                outcome, log = self._run(plugin, config, request)
                call.end(outcome.error)
            return outcome.status, outcome.stdout.encode(errors="replace"), log
        except _Declined as error:
            self._observer.declined(error.reason)
            _log(f"left to the launcher: {error}")
            return protocol.DECLINED, b"", str(error).encode(errors="replace")

    def _prepare(self, request: protocol.Request) -> tuple[Plugin, bytes]:
        """Return the request's plugin and configuration. Raises _Declined."""
        if request.files != self._files:
            raise _Declined("other_files", "the caller is in another mount namespace or root folder")
        if request.packages != launcher.PACKAGES or _code_identity() != self._code:
            raise _Declined("other_installation", "the executable belongs to another installation")
        config = request.read_stdin()
        if config is None:
            raise _Declined("too_large", "the configuration is too large")
        try:
            return self._plugin(request.reference), config
        except (ImportError, AttributeError) as error:
            raise _Declined("no_plugin", f"{request.reference}: {error}") from error

    def _run(self, plugin: Plugin, config: bytes, request: protocol.Request) -> tuple[Outcome, bytes]:
        """Run the plugin with the caller's environment, folder and network namespace; return its outcome and log."""
        logged: list[str] = []
        os.fchdir(request.folder)
        # For programs that the plugin starts. Without an agent, as our own executables would wait for this call's turn.
        process.caller.environ = {**request.environ, "CNI_AGENT_SOCKET": ""}
        host = self._host(request.netns)
        try:
            outcome = plugin.serve(process.caller.environ, lambda: config, logged.append, host)
        finally:
            host.close()
        return outcome, "".join(f"{text}\n" for text in logged).encode(errors="replace")

    def _host(self, fd: int) -> NetNS:
        """Return the caller's network namespace."""
        return self._home if netns_identity(fd) == self._home.identity else NetNS.of_fd(fd)

    def _plugin(self, reference: str) -> Plugin:
        plugin = self._plugins.get(reference)
        if plugin is None:
            loaded: Any = launcher.load(reference)
            self._plugins[reference] = plugin = loaded
        return plugin


# Why a call is left to its launcher: the values of the metrics' label `reason`.
REASONS = ("other_files", "other_installation", "too_large", "no_plugin", "no_place", "no_turn")


class Call:
    """An observed call, from its arrival (`with`) to its answer. No method raises; those of this class do nothing."""

    __slots__ = ()

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def begin(self) -> None:
        """Note that the call has its turn and its slot."""

    def end(self, error: CNIError | None) -> None:
        """Note the end of the plugin's work, and the error that it returned, if any."""


class Observer:
    """The observer of an agent's calls that ignores them; metrics.py counts them."""

    def call(self, request: protocol.Request) -> Call:  # noqa: ARG002
        """Return the observed call for a request that has arrived."""
        return _UNOBSERVED

    def declined(self, reason: str) -> None:
        """Note a call that is left to its launcher; `reason` is one of REASONS."""


_UNOBSERVED = Call()


class _Declined(Exception):
    """The call is left to its launcher; `reason` is one of REASONS."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class _Slots:
    """Slots for running calls: a queue of tokens, because a semaphore would run Python code."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(_MAX_RUNNING):
            self._free.put(None)

    def __enter__(self) -> None:
        try:
            self._free.get(timeout=_SLOT_TIMEOUT)
        except queue.Empty:
            raise _Declined("no_place", f"{_MAX_RUNNING} calls are running") from None

    def __exit__(self, *exc: object) -> None:
        self._free.put(None)


class _Turns:
    """Turns of calls: those about the same interface of the same container run one after the other.

    A runtime that times out kills the executable, not the call that runs here. Its DEL then has to wait for that call.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: dict[tuple[str, str], tuple[threading.Lock, int]] = {}

    def of(self, environ: dict[str, str]) -> contextlib.AbstractContextManager[object]:
        """Return a context manager that waits for the turn of a call with this environment, and raises _Declined."""
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
        if not turn.acquire(timeout=_TURN_TIMEOUT):
            self._leave()
            raise _Declined("no_turn", f"another call about {self._key} has been running for {_TURN_TIMEOUT:g} s")

    def __exit__(self, *exc: object) -> None:
        self._leave().release()

    def _leave(self) -> threading.Lock:
        with self._turns.lock:
            turn, waiting = self._turns.held.pop(self._key)
            if waiting > 1:
                self._turns.held[self._key] = turn, waiting - 1
        return turn


def _code_identity() -> tuple[int, int] | None:
    """Return what changes when the package on disk is replaced: then this process and launchers have different code."""
    try:
        status = os.stat(f"{launcher.PACKAGES}/cni/_core.pyi")
    except OSError:
        return None  # it is being replaced right now
    return status.st_ino, status.st_mtime_ns


def _log(text: str) -> None:
    print(f"cni agent: {text}", file=sys.stderr, flush=True)
