"""Who holds which address, for pools too big to be read through at every ADD and DEL.

Go's plugin reads every reservation of the network to learn what one container holds, which takes 150 ms where a /16
is full. Here the answer is kept in a folder of the network's own, `.owners`, spread over files by container id so
that a lookup reads one small file. It is nothing but a cache: removed, it is made again from the reservations.

Go's plugin may reserve and release between two calls of ours and knows nothing of this. Whatever it does changes the
modification time of the network's folder, as every creation and removal in it does. So the last thing done here is to
set that time to a moment that is past, and to note it: as long as the folder bears it, nothing has happened since.
A plugin that is killed leaves another time there, hence a cache that is not believed. Nor is it after a boot, for
the disk may not have got all that was written.
"""

from __future__ import annotations

import posix
import time

from cni._core import read_file, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_FOLDER = ".owners"
_SEAL = f"{_FOLDER}/seal"
_BOOT = "/proc/sys/kernel/random/boot_id"
# Files: few, as all are written when the cache is made, but enough for one to be small. A prime, so that no part of
# an id drops out of the remainder.
_PARTS = 61
_PAST = 10_000_000_000  # ns: longer than any file system's clock ticks
_END = b"\0"  # of a record; what a file system or a person put a NUL into is nobody's reservation


class Owners:
    """The cache in one network's folder, given by descriptor. Whoever uses it holds the network's lock.

    `current` says whether it may be believed. It ceases to be where it can't be written; that is no failure of the
    call, which only has to read the reservations themselves.
    """

    __slots__ = ("_changed", "_fd", "_records", "current")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._changed = False
        self._records: dict[str, list[bytes]] = {}  # by part, as they are in its file
        try:
            seal = read_file(fd, _SEAL)
            self.current = seal is not None and seal == self._stamp()
        except OSError:
            self.current = False

    def find(self, container_id: bytes) -> dict[str, bytes] | None:
        """Reservations, as address -> owner, all of the container's among them; None where they are not known."""
        if not self.current:
            return None
        try:
            records = self._read(_part(container_id))
        except OSError:
            self.current = False
            return None
        fields = (record.partition(b" ") for record in records if container_id in record)
        return {address.decode(): owner for address, _, owner in fields}

    def rebuild(self, reservations: dict[str, bytes]) -> None:
        """Hold these, and no others."""
        self._records.clear()
        parts: dict[str, list[bytes]] = {_name(number): [] for number in range(_PARTS)}
        for address, owner in reservations.items():
            parts[_part(_container_id(owner))].append(_record(address, owner))
        try:
            try:
                posix.mkdir(_FOLDER, 0o700, dir_fd=self._fd)
            except FileExistsError:
                pass
            for part, records in parts.items():
                write_file(self._fd, part, b"".join(records))
        except OSError:
            self._discard(parts)  # what room there is on the disk is for reservations
            return
        self.current = self._changed = True

    def _discard(self, parts: Iterable[str]) -> None:
        for part in (*parts, _SEAL):
            try:
                posix.unlink(part, dir_fd=self._fd)
            except OSError:
                pass

    def add(self, address: str, owner: bytes) -> None:
        if not self.current:
            return
        self._changed = True
        part = _part(_container_id(owner))
        self._records.pop(part, None)
        try:
            write_file(self._fd, part, _record(address, owner), append=True)
        except OSError:
            self.current = False

    def remove(self, reservations: dict[str, bytes]) -> None:
        if not (self.current and reservations):
            return
        self._changed = True
        gone = {address.encode() for address in reservations}
        try:
            for part in {_part(_container_id(owner)) for owner in reservations.values()}:
                self._records[part] = [r for r in self._read(part) if r.partition(b" ")[0] not in gone]
                write_file(self._fd, part, _END.join(self._records[part]))
        except OSError:
            self.current = False

    def seal(self) -> None:
        """Note that the cache is right as things stand; the last thing before the lock is given up."""
        if not (self.current and self._changed):
            return
        past = time.time_ns() - _PAST
        try:
            posix.utime(self._fd, ns=(past, past))
            write_file(self._fd, _SEAL, self._stamp())
        except OSError:
            pass  # not sealed, not believed

    def _stamp(self) -> bytes:
        """What the seal says: this very folder (not what a backup restored), as it was left, since this boot."""
        status = posix.fstat(self._fd)
        return b"%d %d %d %s" % (status.st_dev, status.st_ino, status.st_mtime_ns, _boot_id())

    def _read(self, part: str) -> list[bytes]:
        """The records of a part. Raises OSError."""
        if part not in self._records:
            content = read_file(self._fd, part)
            if content is None:  # somebody tidied up in here
                raise FileNotFoundError
            self._records[part] = content.split(_END)
        return self._records[part]


def _name(number: int) -> str:
    return f"{_FOLDER}/{number}"


def _boot_id() -> bytes:
    if not _boot:
        with open(_BOOT, "rb", buffering=0) as file:
            _boot.append(file.read())
    return _boot[0]


_boot: list[bytes] = []


def _part(container_id: bytes) -> str:
    return _name(int.from_bytes(container_id, "big") % _PARTS)


def _container_id(owner: bytes) -> bytes:
    return owner.partition(b"\r\n")[0]


def _record(address: str, owner: bytes) -> bytes:
    return b"" if _END in owner else address.encode() + b" " + owner + _END
