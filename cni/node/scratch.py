"""A private node that is thrown away: processes with their own network and mounts, which end together.

All processes are in one PID namespace. When its first process is killed, the kernel kills all the others, and with the
last of them go the namespaces and file systems that only they had. So there is nothing to clean up, whatever happens:
the first process is killed when this one ends, in whichever way.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from cni.kernel.netns import NetNS

# linux/sched.h, linux/mount.h, linux/prctl.h
_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_PR_SET_PDEATHSIG = 1

UPLINK = "uplink0"  # a device for plugins that need one of the node's
_STATE = "/var/lib/cni"
_fork = multiprocessing.get_context("fork")
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def started(work: Callable[[Connection], None]) -> Iterator[Iterator[object]]:
    """Run ``work`` as the first process of a PID namespace, so that none of its processes outlives it.

    Yield what it sends, until it ends. At the end of the ``with`` block it is killed, with all processes that it
    started. It is in no process group of the terminal, so that Ctrl-C reaches this process alone. Raises OSError
    (not root).
    """
    receiver, sender = _fork.Pipe(duplex=False)
    process = _fork.Process(target=_first, args=(work, receiver, sender))
    # An interrupt must come either before the process is started, or where it is killed.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        _start_in_own_pid_namespace(process)
        sender.close()
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            yield _received(receiver)
        finally:
            process.kill()
            process.join()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        receiver.close()


def fork(work: Callable[[Connection], None]) -> Connection:
    """Run ``work`` in a child process with one end of a pipe, and return the other end."""
    ours, theirs = _fork.Pipe()
    _fork.Process(target=work, args=(theirs,)).start()
    theirs.close()
    return ours


class Numbers:
    """An iterator over 0 up to ``count`` that forked processes share: each number goes to one of them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._next = _fork.Value("q", 0)

    def __iter__(self) -> Iterator[int]:
        while True:
            with self._next.get_lock():
                number: int = self._next.value
                self._next.value = number + 1
            if number >= self._count:
                return
            yield number

    def clear(self) -> None:
        """End the iteration for all processes."""
        with self._next.get_lock():
            self._next.value = self._count


class Gate:
    """A barrier at which processes that have been forked since wait, until it is opened for all at once."""

    def __init__(self) -> None:
        self._inside, self._outside = _fork.Pipe(duplex=False)

    def wait(self) -> None:
        """Block until the gate is open."""
        self._outside.close()
        with contextlib.suppress(EOFError):
            self._inside.recv_bytes()  # ends when no process is left that could send

    def open(self) -> None:
        """Release all processes that wait."""
        self._outside.close()


def enter() -> None:
    """Move this process, which must have one thread, to a network and mounts of its own.

    The network has only ``lo`` and a device ``uplink0``, both up. There is no runtime's state, and there are no sockets
    of services. Raises OSError.
    """
    _system("unshare", _CLONE_NEWNET | _CLONE_NEWNS)
    _system("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    for folder in hidden():
        _system("mount", b"tmpfs", folder.encode(), b"tmpfs", 0, b"mode=0755")
    _system("mount", b"sysfs", b"/sys", b"sysfs", 0, None)  # of this network
    with NetNS.current() as here, here.netlink() as node:
        node.batch().link_set("lo", up=True).veth(UPLINK, "uplink1").commit()
        node.batch().link_set("uplink1", up=True).link_set(UPLINK, up=True).commit()


def hidden() -> list[str]:
    """Return the folders that are empty on a private node: those with state, and those with services that change it.

    If such a folder does not exist, its parent is hidden instead: nothing is created on the disk.
    """
    return ["/run", _STATE if os.path.isdir(_STATE) else os.path.dirname(_STATE)]


def is_visible(path: str) -> bool:
    """Return whether a private node has what is at ``path`` here."""
    real = os.path.realpath(path)
    return not any(real == folder or real.startswith(f"{folder}/") for folder in map(os.path.realpath, hidden()))


def _start_in_own_pid_namespace(process: multiprocessing.context.ForkProcess) -> None:
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _system("unshare", _CLONE_NEWPID)  # of future children
        try:
            process.start()
        finally:
            _system("setns", own, _CLONE_NEWPID)
    finally:
        os.close(own)


def _first(work: Callable[[Connection], None], receiver: Connection, sender: Connection) -> None:
    _system("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    receiver.close()
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _system("unshare", _CLONE_NEWNET | _CLONE_NEWNS)
    _system("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    _system("mount", b"proc", b"/proc", b"proc", 0, None)
    with contextlib.suppress(BrokenPipeError):  # the reader is gone
        work(sender)
    os._exit(0)  # without waiting for the other processes, which end with this one


def _received(receiver: Connection) -> Iterator[object]:
    with contextlib.suppress(EOFError):
        while True:
            yield receiver.recv()


def _system(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
