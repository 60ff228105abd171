"""A cache of the owners of addresses, for pools that are too big to be read at every ADD and DEL.

Go's plugin reads every reservation of the network to find those of one container, which takes 150 ms for a full /16.
Here they are cached in a folder of the network's own, `.owners`, distributed to files by container id, so that a lookup
reads one small file. If the cache is removed, it is rebuilt from the reservations.

Go's plugin may reserve and release between two of our calls, and does not update the cache. Whatever it does changes
the modification time of the network's folder, as every creation and removal in it does. So each of our calls ends with
setting that time to one in the past, and writing it to the seal: while the folder has that time, the cache is valid.
A plugin that is killed leaves another time, and so an invalid cache. It is invalid after a boot, too, since the disk
may have lost some of the writes.
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
# Files: few, as all are written when the cache is built, but enough to be small. A prime, so that all parts of an id
# count for the remainder.
_PARTS = 61
_PAST = 10_000_000_000  # ns: longer than any file system's clock tick
_END = b"\0"  # of a record; a file with a NUL is torn, and no reservation


class Owners:
    """The cache in one network's folder, given by descriptor. Callers hold the network's lock.

    `current` is True while the cache is valid. If it cannot be written it becomes False; that is no failure of the
    call, which then reads the reservations themselves.
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
        """Return reservations as address -> owner, including all of the container's; None if the cache is not valid."""
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
        """Replace the cache's contents with these reservations."""
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
            self._discard(parts)  # to leave the disk's space to reservations
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
        """Mark the cache as valid for the folder's present state. To be called last before the lock is released."""
        if not (self.current and self._changed):
            return
        past = time.time_ns() - _PAST
        try:
            posix.utime(self._fd, ns=(past, past))
            write_file(self._fd, _SEAL, self._stamp())
        except OSError:
            pass  # without a seal the cache is not valid

    def _stamp(self) -> bytes:
        """Return the seal's contents: this folder (not a restored backup), its modification time, and this boot."""
        status = posix.fstat(self._fd)
        return b"%d %d %d %s" % (status.st_dev, status.st_ino, status.st_mtime_ns, _boot_id())

    def _read(self, part: str) -> list[bytes]:
        """Return the records of a part. Raises OSError."""
        if part not in self._records:
            content = read_file(self._fd, part)
            if content is None:  # removed by someone
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
