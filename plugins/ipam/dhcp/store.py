"""The leases on disk, so that a daemon can resume those of an earlier one.

    FOLDER/            0700  locked with flock(2) while a daemon uses it
    FOLDER/HASH.json   0600  one lease

A container does not survive a reboot: records from before the last boot are removed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os

from cni.spec.errors import CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_NEW = ".new"
_SUFFIX = ".json"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_VERSION = 1


class Store:
    """A folder of leases, created if it is missing. Raises CNIError if that fails, or another daemon uses it."""

    def __init__(self, folder: str, log: Callable[[str], object]) -> None:
        self.folder = folder
        self._log = log
        with open(_BOOT_ID, encoding="ascii") as file:
            self._boot = file.read().strip()
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise CNIError(f"cannot open the folder of leases {folder}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            if error.errno == errno.EWOULDBLOCK:
                raise CNIError(f"another daemon keeps its leases in {folder}") from None
            raise CNIError(f"cannot lock the folder of leases {folder}: {error.strerror}") from error

    def save(self, name: str, record: dict[str, Any]) -> None:
        """Save a lease atomically. A failure is only logged: the lease stays valid while this daemon runs."""
        text = json.dumps({"version": _VERSION, "boot": self._boot, "client": name, **record}, indent=1)
        try:
            fd = os.open(_NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
            with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
            os.rename(_NEW, _file(name), src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError as error:
            self._log(f"{name}: cannot write the lease to {self.folder}: {error.strerror}")

    def remove(self, name: str) -> None:
        """Remove a lease."""
        self._unlink(_file(name))

    def load(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the leases of this boot as name and record. Other files are removed, and invalid ones logged."""
        for file in sorted(os.listdir(self._fd)):
            try:
                record = self._read(file) if file.endswith(_SUFFIX) else {}
                name = record["client"] if record.get("version") == _VERSION else ""
            except (OSError, ValueError, KeyError, AttributeError) as error:
                self._log(f"cannot load a lease from {self.folder}/{file}: {error}")
                name = ""
            if name and record.get("boot") == self._boot:
                yield name, record
            else:
                self._unlink(file)

    def close(self) -> None:
        os.close(self._fd)

    def _read(self, file: str) -> Any:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        with open(fd, encoding="utf-8", errors="surrogateescape") as content:
            return json.load(content)

    def _unlink(self, file: str) -> None:
        try:
            os.unlink(file, dir_fd=self._fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._log(f"cannot remove {self.folder}/{file}: {error.strerror}")


def _file(name: str) -> str:
    """Return a file name of fixed size with characters that are valid in a file name."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32] + _SUFFIX
