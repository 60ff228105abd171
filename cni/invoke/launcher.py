"""Launchers: the executables with the plugins' names, their trailers, and the start of a plugin.

Each is a copy of one small native program (``src/launcher/launcher.c``) with a trailer
of fixed size that names the interpreter, the folders to import from and the plugin. So
a plugin needs only this one file, wherever it is copied to.
"""

from __future__ import annotations

import posix
import sys

from cni._core import fsdecode, fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

TRAILER_SIZE = 4096
MAGIC = b"cni launcher 1\n\0"
PACKAGES = __file__.rsplit("/", 3)[0]


class Trailer:
    """A launcher's trailer: the interpreter's path, folders for ``sys.path``, and ``module:attribute``."""

    __slots__ = ("folders", "interpreter", "reference")

    def __init__(self, interpreter: str, folders: tuple[str, ...], reference: str) -> None:
        self.interpreter = interpreter
        self.folders = folders
        self.reference = reference

    @property
    def is_ours(self) -> bool:
        """True if the launcher starts the very code that runs here, which can then run in this process instead."""
        return self.folders[0] == PACKAGES

    def encode(self) -> bytes:
        """Return the bytes at the end of a launcher's file. Raises ValueError if the paths do not fit."""
        if any(":" in folder for folder in self.folders):
            raise ValueError(f"a folder to import from cannot have a colon in its name: {self.folders}")
        fields = (self.interpreter, ":".join(self.folders), self.reference)
        data = MAGIC + b"".join(fsencode(field) + b"\0" for field in fields)
        if len(data) > TRAILER_SIZE:
            raise ValueError(f"the paths of the interpreter and of the packages are too long: {fields}")
        return data.ljust(TRAILER_SIZE, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> Trailer | None:
        """Return the trailer that ``data`` is, or None if it is not a trailer."""
        if len(data) != TRAILER_SIZE or not data.startswith(MAGIC):
            return None
        fields = data[len(MAGIC) :].split(b"\0", 3)
        if len(fields) != 4:
            return None
        interpreter, folders, reference, _ = fields
        return cls(fsdecode(interpreter), tuple(fsdecode(folders).split(":")), fsdecode(reference))


def read(path: str) -> Trailer | None:
    """Return the trailer of the executable at ``path``; None if it is not a launcher or cannot be read."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return None
    try:
        size = posix.fstat(fd).st_size
        return Trailer.decode(posix.pread(fd, TRAILER_SIZE, size - TRAILER_SIZE)) if size > TRAILER_SIZE else None
    except OSError:
        return None
    finally:
        posix.close(fd)


def load(reference: str) -> Any:
    """Return the object that ``module:attribute`` names. Raises ImportError or AttributeError."""
    module, _, attribute = reference.partition(":")
    __import__(module)
    return getattr(sys.modules[module], attribute)


def start(reference: str, arguments: list[str]) -> NoReturn:
    """Run the plugin's main with the arguments of the launcher's command line; launchers call this."""
    sys.argv = [reference, *arguments]
    load(reference).main()
    raise SystemExit(0)
