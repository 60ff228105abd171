"""Locks: had at once, had later, not had."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni import locks
from tests.waiting import LIMIT, lock_waiters, until

Opener = Callable[[], int]


@pytest.fixture
def opening(tmp_path: Path) -> Iterator[Opener]:
    """Opens one file, each time anew."""
    made: list[int] = []

    def opened() -> int:
        made.append(os.open(tmp_path / "file", os.O_RDONLY | os.O_CREAT))
        return made[-1]

    yield opened
    for fd in made:
        os.close(fd)


def held(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def test_a_free_lock(opening: Opener) -> None:
    one, other = opening(), opening()
    assert locks.locked(one, 0)
    assert locks.locked(one, 0)
    assert held(other)


def test_a_lock_that_is_let_go_of(opening: Opener) -> None:
    one, other = opening(), opening()
    fcntl.flock(other, fcntl.LOCK_EX)

    def release() -> None:
        until(lambda: lock_waiters(f"/proc/self/fd/{one}"), "a caller that waits for the lock")
        fcntl.flock(other, fcntl.LOCK_UN)

    thread = threading.Thread(target=release)
    thread.start()
    assert locks.locked(one, LIMIT)
    thread.join()
    assert held(other)


def test_a_lock_that_is_kept(opening: Opener) -> None:
    one, other = opening(), opening()
    fcntl.flock(other, fcntl.LOCK_EX)
    assert not locks.locked(one, 0.05)


def test_what_cannot_be_locked() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        locks.locked(1 << 20, 1)
