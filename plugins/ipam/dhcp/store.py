"""The leases on disk, so that a daemon that starts finds what an earlier one got.

    FOLDER/            0700  locked with flock(2) as long as a daemon keeps its leases there
    FOLDER/HASH.json   0600  one lease

Leases are for containers, which end with the node: records of before its last start are thrown away.
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
    """A folder of leases, made where it is missing. Raises CNIError where it can't be, or is another daemon's."""

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
        """Keep a lease: whole or as it was. A failure is logged: the lease is good as long as this daemon lives."""
        text = json.dumps({"version": _VERSION, "boot": self._boot, "client": name, **record}, indent=1)
        try:
            fd = os.open(_NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
            with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
            os.rename(_NEW, _file(name), src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError as error:
            self._log(f"{name}: the lease could not be written to {self.folder}: {error.strerror}")

    def remove(self, name: str) -> None:
        """Forget a lease."""
        self._unlink(_file(name))

    def load(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The leases of this boot, as name and record. What is no lease is logged and removed."""
        for file in sorted(os.listdir(self._fd)):
            try:
                record = self._read(file) if file.endswith(_SUFFIX) else {}
                name = record["client"] if record.get("version") == _VERSION else ""
            except (OSError, ValueError, KeyError, AttributeError) as error:
                self._log(f"{self.folder}/{file} is no lease: {error}")
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
            self._log(f"{self.folder}/{file} could not be removed: {error.strerror}")


def _file(name: str) -> str:
    """A name of fixed size, whatever the lease's consists of."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32] + _SUFFIX
