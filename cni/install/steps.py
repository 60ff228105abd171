"""The steps of an installation or its removal: each is taken, or only printed with ``--dry-run``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

_MARK = ".cni-"  # in a temporary file's name: .bridge.cni-0123abcd
_RANDOM = 4  # bytes of the name


class Step(Protocol):
    """A step. `str()` describes it after the word "would"; `do` takes it, and returns what to print."""

    def do(self) -> str:
        """Take the step. Raises OSError."""


class Write:
    """Write a file, which appears whole by a rename: a process that executes or reads the old one is not disturbed.

    `about` is appended to the description.
    """

    def __init__(self, path: Path, data: bytes, mode: int, about: str = "") -> None:
        self.path = path
        self._data = data
        self._mode = mode
        self._about = about

    def __str__(self) -> str:
        return f"write {self.path}{self._about}"

    def do(self) -> str:
        # Not the process's id: processes in two containers that share the folder may have the same.
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
    """Remove a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return f"remove {self.path}"

    def do(self) -> str:
        self.path.unlink(missing_ok=True)
        return f"removed {self.path}"


class Run:
    """Run a program; with `optional` its failure is ignored."""

    def __init__(self, *argv: str, optional: bool = False) -> None:
        self.argv = argv
        self._optional = optional

    def __str__(self) -> str:
        return f"run {' '.join(self.argv)}"

    def do(self) -> str:
        completed = subprocess.run(self.argv, capture_output=True, text=True, check=False)
        if completed.returncode and not self._optional:
            raise OSError(f"{' '.join(self.argv)} ended with {completed.returncode}: {completed.stderr.strip()}")
        return " ".join(self.argv)


def leftovers(folder: Path) -> Iterator[Step]:
    """Yield the removal of temporary files that a crash left in the folder.

    The caller holds the folder's lock, so that no other installation is writing them.
    """
    for path in sorted(folder.glob(f".*{_MARK}{'[0-9a-f]' * (2 * _RANDOM)}")):
        if path.is_file() and not path.is_symlink():
            yield Remove(path)
