"""What ``cni install`` and ``cni uninstall`` do, one step after the other; told instead of done with ``--dry-run``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

_MARK = ".cni-"  # in a temporary file's name: .bridge.cni-0123abcd
_RANDOM = 4  # bytes of the name


class Step(Protocol):
    """Something to do. `str()` of it says what, after "would"; `do` does it and says what to print."""

    def do(self) -> str:
        """Raises OSError."""


class Write:
    """A file that appears whole, by a rename, whoever may be executing or reading what was there.

    `about` is what else to tell of it before it is written.
    """

    def __init__(self, path: Path, data: bytes, mode: int, about: str = "") -> None:
        self.path = path
        self._data = data
        self._mode = mode
        self._about = about

    def __str__(self) -> str:
        return f"write {self.path}{self._about}"

    def do(self) -> str:
        # Not the process's id: two containers that share the folder may have the same.
        temporary = self.path.with_name(f".{self.path.name}{_MARK}{os.urandom(_RANDOM).hex()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o700)
        try:
            with open(fd, "wb") as file:
                file.write(self._data)
                os.fchmod(file.fileno(), self._mode)
                os.fsync(file.fileno())
            temporary.rename(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return str(self.path)


class Remove:
    """A file that is to go."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return f"remove {self.path}"

    def do(self) -> str:
        self.path.unlink(missing_ok=True)
        return f"removed {self.path}"


class Run:
    """A program; with `optional` one that may as well fail."""

    def __init__(self, *argv: str, optional: bool = False) -> None:
        self.argv = argv
        self._optional = optional

    def __str__(self) -> str:
        return f"run {' '.join(self.argv)}"

    def do(self) -> str:
        done = subprocess.run(self.argv, capture_output=True, text=True, check=False)
        if done.returncode and not self._optional:
            raise OSError(f"{' '.join(self.argv)} ended with {done.returncode}: {done.stderr.strip()}")
        return " ".join(self.argv)


def leftovers(folder: Path) -> Iterator[Step]:
    """Files that a crash left on their way into the folder. Who calls holds the folder's lock: nobody else writes."""
    for path in sorted(folder.glob(f".*{_MARK}{'[0-9a-f]' * (2 * _RANDOM)}")):
        if path.is_file() and not path.is_symlink():
            yield Remove(path)
