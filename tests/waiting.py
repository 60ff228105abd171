"""Wait for what happens, on a machine of any speed."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

# Seconds. A guard against tests that hang forever; no test passes or fails because of how fast the machine is.
LIMIT = 600
_INTERVAL = 0.01

T = TypeVar("T")


def until(condition: Callable[[], T | None], what: str) -> T:
    """Return the condition's value as soon as it is true. Fail if it is still false at the limit."""
    end = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {LIMIT} s in vain for {what}"
        time.sleep(_INTERVAL)
    return value


def is_listening(path: str | os.PathLike[str]) -> bool:
    """Return whether a process accepts connections at this Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def lock_waiters(path: str | os.PathLike[str]) -> int:
    """Return how many callers wait for the flock on a file."""
    inode = os.stat(path).st_ino
    waiting = [line for line in Path("/proc/locks").read_text().splitlines() if " -> " in line]
    return sum(f":{inode} " in line for line in waiting)
