"""Locks between processes: flock(2), with a bound on how long one waits."""

from __future__ import annotations

import _thread
import fcntl
import posix

from cni._core import observed


def locked(fd: int, patience: float) -> bool:
    """Lock what a descriptor stands for; whether that could be had within so many seconds. Raises OSError.

    The lock ends with the last descriptor of this opening. A thread waits for it, as flock(2) itself knows no time
    limit: asking again and again would let others overtake. Where we have given up the lock is gone with the thread's.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        pass
    with observed("lock", f"wait for the lock on {_name(fd)}"):
        return _locked_in_time(fd, patience)


def _locked_in_time(fd: int, patience: float) -> bool:
    own = posix.dup(fd)
    waiting = _thread.allocate_lock()
    waiting.acquire()

    def wait() -> None:
        try:
            fcntl.flock(own, fcntl.LOCK_EX)
        except OSError:
            pass  # the attempt below meets the same
        finally:
            posix.close(own)
            waiting.release()

    _thread.start_new_thread(wait, ())
    if not waiting.acquire(timeout=patience):
        return False
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _name(fd: int) -> str:
    try:
        return posix.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # no /proc
        return f"descriptor {fd}"
