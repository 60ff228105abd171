"""The reservations of one network on disk, in Go's files, names, modes and lock.

    DATADIR/NETWORK/                      0755
    DATADIR/NETWORK/10.1.2.3              0600  container id CR LF ifname (old releases: the id alone)
    DATADIR/NETWORK/last_reserved_ip.0    0600  the last address allocated from range set 0
    DATADIR/NETWORK/lock                  0750  empty; locked with flock(2)

Both plugins may work on one folder at the same time. Two names are ours: `.new`, a file about to be renamed, and
`.owners` (see owners.py), which only big pools have. Go takes neither for a reservation.
"""

from __future__ import annotations

import posix

from cni._core import fsdecode, fsencode, observed, parse_ip, read_file, replace_file
from cni.spec.errors import IO_FAILURE, TRY_AGAIN_LATER, CNIError, joined
from cni.spec.ip import IP
from cni.spec.names import check_network_name
from cni.system import files
from cni_plugins.ipam.host_local.owners import Owners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from cni_plugins.ipam.host_local.ranges import Range

_NEW = ".new"
_FIRST_CHARACTERS = "0123456789abcdefABCDEF:"  # of addresses; an error of parse_ip takes longer than everything else
_CACHE_THRESHOLD = 32  # reservations
_LOCK_TIMEOUT = 30.0  # seconds; Go's plugin waits for ever
_MAX_LOOKUPS = 1024  # single lookups, which take 2 ms, before the folder is listed, which takes 20 ms for a full /16


class Store:
    """A network's reservations, locked in a with block: `with Store(data_dir, network) as store`.

    The folder and its lock file are created if missing, and stay. Raises CNIError if that fails.
    Go locks for each range set anew; here the lock is taken once, so no call sees half of a container's reservations.
    If the block raises an exception, the addresses reserved in it are released, but not those that the container had
    before, which Go would release too.
    """

    __slots__ = ("_fd", "_listed", "_lock", "_owners", "_reserved", "path")

    def __init__(self, data_dir: str, network: str) -> None:
        check_network_name(network)  # it becomes part of a path (compare CVE-2021-20206)
        self.path = f"{data_dir.rstrip('/')}/{network}"
        try:
            self._fd = _open_folder(self.path)
        except OSError as error:
            raise CNIError(
                f"cannot open the folder of reservations {self.path}: {error.strerror}", IO_FAILURE
            ) from error
        try:
            flags = posix.O_RDONLY | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC
            self._lock = posix.open("lock", flags, 0o750, dir_fd=self._fd)
        except OSError as error:
            posix.close(self._fd)
            raise CNIError(f"cannot open the lock {self.path}/lock: {error.strerror}", IO_FAILURE) from error

    def __enter__(self) -> Self:
        try:
            _lock(self._lock, f"{self.path}/lock")
        except CNIError:
            self._close()
            raise
        self._owners = Owners(self._fd)
        self._reserved: dict[str, bytes] = {}
        self._listed: set[str] | None = None  # all names in the folder, after it was listed
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if failure:
                self.release(self._reserved)
        except CNIError:
            pass  # the error to report is `failure`; the next DEL cleans up
        finally:
            self._owners.seal()
            self._close()

    def _close(self) -> None:
        posix.close(self._fd)
        posix.close(self._lock)

    def require_writable(self) -> None:
        """Raise CNIError unless a reservation can be written."""
        if not posix.access(self.path, posix.W_OK | posix.X_OK):
            raise CNIError(f"the folder of reservations {self.path} is not writable", IO_FAILURE)

    def held(self, container_id: str, ifname: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Return the interface's reservations, and those that an old release has written without an interface.

        Both are address -> owner. A prevResult would have addresses without a search, but perhaps not all, and all must
        be released, as with Go; so every reservation is read, or in a big pool looked up in the cache.
        """
        old = fsencode(container_id.strip())
        owner = _owner(container_id, ifname)
        reservations = self._owners.find(old)
        if reservations is None:
            reservations, _ = self.reservations()
            if len(reservations) >= _CACHE_THRESHOLD:
                self._owners.rebuild(reservations)
        return self._held(owner, reservations), self._held(old, reservations)

    def reservations(self) -> tuple[dict[str, bytes], list[CNIError]]:
        """Return all reservations as address -> owner, and the errors of those that cannot be read."""
        reservations: dict[str, bytes] = {}
        errors = []
        with observed("file", f"read all of {self.path}"):
            for address in self.addresses():
                try:
                    owner = read_file(self._fd, address)
                except OSError as error:
                    text = f"cannot read the reservation {self.path}/{address}: {error.strerror}"
                    errors.append(CNIError(text, IO_FAILURE))
                    continue
                if owner is not None:
                    reservations[address] = owner.strip()
        return reservations, errors

    def addresses(self) -> list[str]:
        """Return all reserved addresses. Raises CNIError."""
        return [name for name in self._names() if is_address(name)]

    def look(self, address: str) -> tuple[bytes, int]:
        """Return a reservation's owner and time, in nanoseconds of the epoch. Raises OSError."""
        created = posix.stat(address, dir_fd=self._fd, follow_symlinks=False).st_mtime_ns
        return (read_file(self._fd, address) or b"").strip(), created

    def last_reserved(self, number: int) -> IP | None:
        """Return the last address allocated from range set `number`, None if it is unknown. Raises OSError."""
        text = read_file(self._fd, _last(number))
        try:
            return IP.parse(text.decode()) if text else None
        except ValueError:
            return None

    def free(self, candidates: Iterable[tuple[str, Range]]) -> tuple[str, Range] | None:
        """Return the first free candidate, None if there is none."""
        for lookups, candidate in enumerate(candidates):
            if lookups == _MAX_LOOKUPS:
                self._names()
            if self.is_free(candidate[0]):
                return candidate
        return None

    def is_free(self, address: str) -> bool:
        """Return whether no file has the address's name: an empty file left by a crash blocks it too, as with Go."""
        if self._listed is not None:
            return address not in self._listed
        try:
            posix.stat(address, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return False

    def reserve(self, address: str, container_id: str, ifname: str, number: int) -> None:
        """Reserve a free address, and save it as the last one of range set `number`. Raises CNIError."""
        with observed("file", f"write {self.path}/{address}"):
            owner = _owner(container_id, ifname)
            self._reserved[address] = owner
            self._listed = None
            self._write(address, owner)
            self._owners.add(address, owner)
            self._write(_last(number), address.encode())

    def release(self, reservations: dict[str, bytes]) -> None:
        """Release all of these, also if some fail. Raises CNIError with all failures."""
        self._listed = None
        released, errors = {}, []
        for address, owner in reservations.items():
            try:
                with observed("file", f"remove {self.path}/{address}"):
                    posix.unlink(address, dir_fd=self._fd)
            except FileNotFoundError:
                pass
            except OSError as error:
                errors.append(CNIError(f"cannot release {self.path}/{address}: {error.strerror}", IO_FAILURE))
                continue
            released[address] = owner
        self._owners.remove(released)
        if errors:
            raise joined(errors, ";")

    def _held(self, owner: bytes, reservations: dict[str, bytes]) -> dict[str, bytes]:
        """Return an owner's reservations, after comparing the files: they may have been edited by hand."""
        held = {}
        for address in [address for address, other in reservations.items() if other == owner]:
            try:
                content = read_file(self._fd, address)
            except OSError:
                continue
            if content is not None and content.strip() == owner:
                held[address] = owner
        return held

    def _names(self) -> list[str]:
        try:
            names = posix.listdir(self._fd)
        except OSError as error:
            raise CNIError(f"cannot list the reservations in {self.path}: {error.strerror}", IO_FAILURE) from error
        self._listed = set(names)
        return names

    def _write(self, name: str, data: bytes) -> None:
        """Write the file atomically, even if this process is killed. Raises CNIError.

        Because of the lock one temporary name is enough; a file left there by a killed process is overwritten.
        """
        try:
            replace_file(self._fd, name, _NEW, data)
        except OSError as error:
            raise CNIError(f"cannot write {self.path}/{name}: {error.strerror}", IO_FAILURE) from error


def holder(owner: bytes) -> tuple[str, str]:
    """Return the container id and the interface of a reservation, which is "" if an old release has written it."""
    container_id, _, ifname = fsdecode(owner).partition("\r\n")
    return container_id, ifname


def is_torn(owner: bytes) -> bool:
    """Return whether a crash has interrupted the file's write: then it is empty, or has zeros."""
    return not owner or b"\0" in owner


def _owner(container_id: str, ifname: str) -> bytes:
    return fsencode(f"{container_id.strip()}\r\n{ifname}")


def _last(number: int) -> str:
    return f"last_reserved_ip.{number}"


def is_address(name: str) -> bool:
    """Return whether a file of that name is a reservation."""
    if name[0] not in _FIRST_CHARACTERS:
        return False
    try:
        parse_ip(name)
    except ValueError:
        return False
    return True


def _open_folder(path: str) -> int:
    """Open the folder, which is created with its parents if it is missing, with Go's mode."""
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
    try:
        return posix.open(path, flags)
    except FileNotFoundError:
        from cni.system import files  # only needed once for a network

        files.make_folders(path, 0o755)
        return posix.open(path, flags)


def _lock(fd: int, path: str) -> None:
    """Lock the file, which Go's plugin locks too. Raises CNIError, also if that takes too long."""
    try:
        if not files.lock(fd, _LOCK_TIMEOUT):
            reason = f"another process has held the lock for {_LOCK_TIMEOUT:g} seconds"
            raise CNIError(f"cannot lock {path}: {reason}; try again later", TRY_AGAIN_LATER, _lock_holder(fd))
    except OSError as error:
        raise CNIError(f"cannot lock {path}: {error.strerror}", IO_FAILURE) from error


def _lock_holder(fd: int) -> str:
    """Return a sentence with the process that holds the lock, "" if /proc/locks (proc(5)) does not name it."""
    status = posix.fstat(fd)
    file = f"{posix.major(status.st_dev):02x}:{posix.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", "rb", buffering=0) as locks:
            lines = [line.split() for line in locks.read().decode().splitlines()]
        pid = next(fields[4] for fields in lines if fields[1] == "FLOCK" and fields[5] == file)
        with open(f"/proc/{pid}/comm", "rb", buffering=0) as comm:
            return f"process {pid} ({fsdecode(comm.read()).strip()}) holds the lock"
    except (OSError, StopIteration):
        return ""
