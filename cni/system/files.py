"""Whole files and locks: a crash leaves the old file or the new one, and waiting for a lock has a timeout."""

from __future__ import annotations

import _thread
import posix

from cni._core import observed, read_file
from cni.system.process import write_all

_AT_FDCWD = -100  # fcntl.h: paths are relative to the current folder


def read(path: str) -> bytes | None:
    """Return the content of the file, or None if it does not exist. A link is not followed. Raises OSError."""
    return read_file(_AT_FDCWD, path)


def write(path: str, data: bytes, mode: int = 0o600, *, sync: bool = False) -> None:
    """Create the file or replace it, even if it is a link. Missing folders are created with mode 0700.

    With `sync` the file survives a power failure once this returns, at the price of waiting for the disk. Until it is
    complete it has a random name that begins with a dot. Raises OSError, after which the file is as it was.
    """
    with observed("file", f"write {path}"):
        _replace(path, data, mode, sync)


def _replace(path: str, data: bytes, mode: int, sync: bool) -> None:
    folder = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    temporary = f"{folder}/.{posix.urandom(8).hex()}"
    fd = _create(temporary, folder, mode)
    try:
        try:
            write_all(fd, data)
            if sync:
                posix.fsync(fd)
        finally:
            posix.close(fd)
        posix.rename(temporary, path)
    except BaseException:  # an interrupt too: nothing else would remove the temporary file
        posix.unlink(temporary)
        raise
    if sync:
        _sync_folder(folder)


def remove(path: str) -> None:
    """Remove the file; a missing one is fine. Raises OSError."""
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass


def make_folders(path: str, mode: int) -> None:
    """Create the folder and all missing ones above it, each with this mode; os.makedirs() sets it on the last only.

    Raises OSError, but not if something else has such a name already: that shows when the folder is used.
    """
    for end, character in enumerate(f"{path}/"):
        if character == "/" and end:
            try:
                posix.mkdir(path[:end], mode)
            except FileExistsError:
                pass


def _create(path: str, folder: str, mode: int) -> int:
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
    try:
        return posix.open(path, flags, mode)
    except FileNotFoundError:
        make_folders(folder, 0o700)
        return posix.open(path, flags, mode)


def _sync_folder(path: str) -> None:
    """Flush the folder to disk: otherwise a new name in it may not survive a power failure."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        posix.fsync(fd)
    finally:
        posix.close(fd)


# ---- locks between processes ----


def lock(fd: int, timeout: float) -> bool:
    """Take an exclusive flock(2) on `fd`. Return False if it was not free within `timeout` seconds. Raises OSError.

    The lock ends with the last descriptor of this opening of the file. flock(2) has no timeout, so a thread waits for
    it: polling would let other processes overtake. If the thread gets it after the timeout, when the caller has closed
    `fd`, the lock ends with the thread's own descriptor.
    """
    import fcntl  # not builtin in every Python, and not needed to read and write files

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        pass
    with observed("lock", f"wait for the lock on {_path_of(fd)}"):
        if not _wait_for_lock(fd, timeout):
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True


def _wait_for_lock(fd: int, timeout: float) -> bool:
    """Wait until this opening of the file has the lock, or waiting failed. Return False after `timeout` seconds."""
    import fcntl

    own = posix.dup(fd)
    waiting = _thread.allocate_lock()
    waiting.acquire()

    def wait() -> None:
        try:
            fcntl.flock(own, fcntl.LOCK_EX)
        except OSError:
            pass  # the caller's own attempt fails in the same way
        finally:
            posix.close(own)
            waiting.release()

    _thread.start_new_thread(wait, ())
    return waiting.acquire(timeout=timeout)


def _path_of(fd: int) -> str:
    try:
        return posix.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # no /proc
        return f"descriptor {fd}"
