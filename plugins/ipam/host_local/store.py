"""The reservations of one network on disk, in Go's files, names, modes and lock.

    DATADIR/NETWORK/                      0755
    DATADIR/NETWORK/10.1.2.3              0600  container id CR LF ifname (old releases: the id alone)
    DATADIR/NETWORK/last_reserved_ip.0    0600  the address given out last from range set 0
    DATADIR/NETWORK/lock                  0750  empty; locked with flock(2)

Both plugins may work on one folder at the same time. Two names are ours: `.new`, a file about to be renamed, and
`.owners` (see owners.py), made for big pools only. Go takes neither for a reservation.
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
_BEGINNINGS = "0123456789abcdefABCDEF:"  # of addresses; a refusal by parse_ip takes longer than all the rest
_MANY = 32  # reservations that are worth a cache
_LOCK_TIMEOUT = 30.0  # seconds that others may keep the lock; Go's plugin waits for ever
_TRIES = 1024  # candidates that are looked at singly: 2 ms, where listing the folder of a full /16 takes 20


class Store:
    """A network's reservations, for who holds its lock: `with Store(data_dir, network) as store`.

    The folder and its lock are made where missing, and stay. Raises CNIError where they can't be.
    Go locks for each range set anew; the lock is taken once here, so nobody sees half of what a container is given.
    If the block is left by an exception, what was reserved in it is released: that, not what its container has held
    before, which Go would release too.
    """

    __slots__ = ("_fd", "_listed", "_lock", "_made", "_owners", "path")

    def __init__(self, data_dir: str, network: str) -> None:
        check_network_name(network)  # a part of a path from here on (CVE-2021-20206's lesson)
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
        self._made: dict[str, bytes] = {}
        self._listed: set[str] | None = None  # all names in the folder, while they are known
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if failure:
                self.release(self._made)
        except CNIError:
            pass  # `failure` is what to report; the DEL after it finds what is left
        finally:
            self._owners.seal()
            self._close()

    def _close(self) -> None:
        posix.close(self._fd)
        posix.close(self._lock)

    def need_writable(self) -> None:
        """Raises CNIError unless a reservation could be written."""
        if not posix.access(self.path, posix.W_OK | posix.X_OK):
            raise CNIError(f"the folder of reservations {self.path} is not writable", IO_FAILURE)

    def held(self, container_id: str, ifname: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """What this interface of the container holds, and what an old release reserved without noting an interface.

        Both as address -> owner. A prevResult would name addresses sooner, but not whether there are others, and
        all are to be freed, as Go does; so every reservation is read, or in a big pool looked up.
        """
        old = fsencode(container_id.strip())
        owner = _owner(container_id, ifname)
        known = self._owners.find(old)
        if known is None:
            known, _ = self.reservations()
            if len(known) >= _MANY:
                self._owners.rebuild(known)
        return self._held(owner, known), self._held(old, known)

    def reservations(self) -> tuple[dict[str, bytes], list[CNIError]]:
        """All that is reserved, as address -> owner, and what went wrong with those that can't be read."""
        found: dict[str, bytes] = {}
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
                    found[address] = owner.strip()
        return found, errors

    def addresses(self) -> list[str]:
        """What is reserved, whoever holds it; raises CNIError."""
        return [name for name in self._names() if is_address(name)]

    def look(self, address: str) -> tuple[bytes, int]:
        """A reservation's owner, and when it was made, in nanoseconds of the epoch; raises OSError."""
        made = posix.stat(address, dir_fd=self._fd, follow_symlinks=False).st_mtime_ns
        return (read_file(self._fd, address) or b"").strip(), made

    def last_reserved(self, number: int) -> IP | None:
        """The address given out last from range set `number`, if that is known; raises OSError."""
        noted = read_file(self._fd, _last(number))
        try:
            return IP.parse(noted.decode()) if noted else None
        except ValueError:
            return None

    def free(self, candidates: Iterable[tuple[str, Range]]) -> tuple[str, Range] | None:
        """The first candidate that nobody holds."""
        for tries, candidate in enumerate(candidates):
            if tries == _TRIES:
                self._names()
            if self.is_free(candidate[0]):
                return candidate
        return None

    def is_free(self, address: str) -> bool:
        """Whether nothing has the address's name: an empty file left by a crash blocks it too, as with Go."""
        if self._listed is not None:
            return address not in self._listed
        try:
            posix.stat(address, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return False

    def reserve(self, address: str, container_id: str, ifname: str, number: int) -> None:
        """Reserve what is_free() for the container, and note it as the last of range set `number`; raises CNIError."""
        with observed("file", f"write {self.path}/{address}"):
            owner = _owner(container_id, ifname)
            self._made[address] = owner
            self._listed = None
            self._write(address, owner)
            self._owners.add(address, owner)
            self._write(_last(number), address.encode())

    def release(self, reservations: dict[str, bytes]) -> None:
        """Free every one of them, whatever becomes of the others; raises CNIError with all that failed."""
        self._listed = None
        gone, errors = {}, []
        for address, owner in reservations.items():
            try:
                with observed("file", f"remove {self.path}/{address}"):
                    posix.unlink(address, dir_fd=self._fd)
            except FileNotFoundError:
                pass
            except OSError as error:
                errors.append(CNIError(f"cannot release {self.path}/{address}: {error.strerror}", IO_FAILURE))
                continue
            gone[address] = owner
        self._owners.remove(gone)
        if errors:
            raise joined(errors, ";")

    def _held(self, owner: bytes, known: dict[str, bytes]) -> dict[str, bytes]:
        """Of the known reservations those of one owner, whose files still say so: a person may have edited one."""
        mine = {}
        for address in [address for address, other in known.items() if other == owner]:
            try:
                said = read_file(self._fd, address)
            except OSError:
                continue
            if said is not None and said.strip() == owner:
                mine[address] = owner
        return mine

    def _names(self) -> list[str]:
        try:
            names = posix.listdir(self._fd)
        except OSError as error:
            raise CNIError(f"cannot list the reservations in {self.path}: {error.strerror}", IO_FAILURE) from error
        self._listed = set(names)
        return names

    def _write(self, name: str, data: bytes) -> None:
        """Make the file appear whole or not at all, wherever this process is killed. Raises CNIError.

        Under the lock one name for the new file does; what a killed process left there is overwritten.
        """
        try:
            replace_file(self._fd, name, _NEW, data)
        except OSError as error:
            raise CNIError(f"cannot write {self.path}/{name}: {error.strerror}", IO_FAILURE) from error


def holder(owner: bytes) -> tuple[str, str]:
    """The container id and the interface of a reservation, "" for the interface where an old release wrote it."""
    container_id, _, ifname = fsdecode(owner).partition("\r\n")
    return container_id, ifname


def is_torn(owner: bytes) -> bool:
    """Whether this is what a crash leaves of a file: nothing, or zeros where words were to be."""
    return not owner or b"\0" in owner


def _owner(container_id: str, ifname: str) -> bytes:
    return fsencode(f"{container_id.strip()}\r\n{ifname}")


def _last(number: int) -> str:
    return f"last_reserved_ip.{number}"


def is_address(name: str) -> bool:
    """Whether a file of that name is a reservation."""
    if name[0] not in _BEGINNINGS:
        return False
    try:
        parse_ip(name)
    except ValueError:
        return False
    return True


def _open_folder(path: str) -> int:
    """Open the folder, made where it is missing with all above it, of the mode that Go gives them."""
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
    try:
        return posix.open(path, flags)
    except FileNotFoundError:
        files.make_folders(path, 0o755)
        return posix.open(path, flags)


def _lock(fd: int, path: str) -> None:
    """Lock the file, which Go's plugin may hold as well; raises CNIError where others do not let go of it in time."""
    try:
        if not files.lock(fd, _LOCK_TIMEOUT):
            text = f"cannot lock {path}: others have held it for {_LOCK_TIMEOUT:g} seconds"
            raise CNIError(text, TRY_AGAIN_LATER, _who_holds(fd))
    except OSError as error:
        raise CNIError(f"cannot lock {path}: {error.strerror}", IO_FAILURE) from error


def _who_holds(fd: int) -> str:
    """The process that has the file locked, as far as /proc/locks tells (proc(5))."""
    status = posix.fstat(fd)
    file = f"{posix.major(status.st_dev):02x}:{posix.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", "rb", buffering=0) as locks:
            lines = [line.split() for line in locks.read().decode().splitlines()]
        pid = next(fields[4] for fields in lines if fields[1] == "FLOCK" and fields[5] == file)
        with open(f"/proc/{pid}/comm", "rb", buffering=0) as comm:
            return f"it is process {pid} ({fsdecode(comm.read()).strip()}) that holds it"
    except (OSError, StopIteration):
        return ""
