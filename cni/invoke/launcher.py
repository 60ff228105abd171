"""The executables that stand under the plugins' names: what is in them, and what they start.

Each is a copy of one small native program (``src/launcher/launcher.c``) with a trailer
of fixed size that names the interpreter, the folders to import from and the plugin. So
one file is all that a plugin needs, wherever it is copied to.
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
    """What a launcher starts: an interpreter's path, folders for ``sys.path``, ``module:attribute``."""

    __slots__ = ("folders", "interpreter", "reference")

    def __init__(self, interpreter: str, folders: tuple[str, ...], reference: str) -> None:
        self.interpreter = interpreter
        self.folders = folders
        self.reference = reference

    @property
    def is_ours(self) -> bool:
        """Does it start the very code that runs here? Then it can as well run in this process."""
        return self.folders[0] == PACKAGES

    def encode(self) -> bytes:
        """The bytes at the end of a launcher's file. Raises ValueError if the paths do not fit."""
        if any(":" in folder for folder in self.folders):
            raise ValueError(f"a folder to import from cannot have a colon in its name: {self.folders}")
        fields = (self.interpreter, ":".join(self.folders), self.reference)
        data = MAGIC + b"".join(fsencode(field) + b"\0" for field in fields)
        if len(data) > TRAILER_SIZE:
            raise ValueError(f"the paths of the interpreter and of the packages are too long: {fields}")
        return data.ljust(TRAILER_SIZE, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> Trailer | None:
        """The trailer in ``data``, or None if it is none."""
        if len(data) != TRAILER_SIZE or not data.startswith(MAGIC):
            return None
        fields = data[len(MAGIC) :].split(b"\0", 3)
        if len(fields) != 4:
            return None
        interpreter, folders, reference, _ = fields
        return cls(fsdecode(interpreter), tuple(fsdecode(folders).split(":")), fsdecode(reference))


def read(path: str) -> Trailer | None:
    """The trailer of the executable at ``path``; None if it is no launcher or cannot be read."""
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
    """The object that ``module:attribute`` names. Raises ImportError or AttributeError."""
    module, _, attribute = reference.partition(":")
    __import__(module)
    return getattr(sys.modules[module], attribute)


def start(reference: str, arguments: list[str]) -> NoReturn:
    """What a launcher runs: the plugin's main, with the arguments of its command line."""
    sys.argv = [reference, *arguments]
    load(reference).main()
    raise SystemExit(0)
