"""State on disk that is whole at any time: what a crash interrupts leaves the old file or the new one."""

from __future__ import annotations

import posix

from cni._core import observed, read_file
from cni.system.process import write_all

_AT_FDCWD = -100  # fcntl.h: paths are from the current folder


def read(path: str) -> bytes | None:
    """What the file holds, or None where there is none. A link is not followed. Raises OSError."""
    return read_file(_AT_FDCWD, path)


def write(path: str, data: bytes, mode: int = 0o600, *, sync: bool = False) -> None:
    """Make the file, or replace it, a link included. Folders that are missing are made, of mode 0700.

    With `sync` it outlasts a power failure once this returns, at the price of waiting for the disk. While it is on its
    way, its name is random behind a dot. Raises OSError, after which the file is as it was.
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
    except BaseException:  # an interrupt too: nobody else would take away what is left here
        posix.unlink(temporary)
        raise
    if sync:
        _sync_folder(folder)


def remove(path: str) -> None:
    """Take the file away; that it is not there is fine. Raises OSError."""
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass


def make_folders(path: str, mode: int) -> None:
    """Make the folder and all above it that are missing, each of this mode: os.makedirs() gives it to the last only.

    Raises OSError; not where something else has such a name already, which is found out when the folder is used.
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
    """Only then does a new name in it outlast a power failure."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        posix.fsync(fd)
    finally:
        posix.close(fd)
