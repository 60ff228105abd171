"""``cni install``: put an executable for every plugin into a folder."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from cni import launcher

GROUP = "cni.plugins"
DEFAULT_DIR = "/opt/cni/bin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni install``."""
    parser.add_argument("--dir", default=DEFAULT_DIR, help="the folder to put them in (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0, or 1 with words on stderr."""
    try:
        for path in install(Path(arguments.dir)):
            print(path)
    except (OSError, ValueError) as error:
        print(f"cni install: {error}", file=sys.stderr)
        return 1
    return 0


def install(folder: Path) -> list[Path]:
    """Put a launcher for every plugin of the entry-point group ``cni.plugins`` into ``folder``.

    Each appears whole, by a rename, so a runtime may call at any moment. Raises OSError, ValueError.
    """
    program = (Path(launcher.__file__).parent / "_launcher").read_bytes()
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return [_write(folder / name, program + trailer.encode()) for name, trailer in _trailers()]


def _trailers() -> Iterator[tuple[str, launcher.Trailer]]:
    interpreter = os.path.realpath(sys.executable)
    shared = [launcher.PACKAGES, *_cffi_folder()]
    for plugin in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        folders = dict.fromkeys([*shared, *_folder_of(plugin)])
        yield plugin.name, launcher.Trailer(interpreter, tuple(folders), plugin.value)


def _cffi_folder() -> list[str]:
    """Where the foreign function interface is, if it is: without it ``nft`` is run as a program."""
    try:
        import _cffi_backend
    except ImportError:
        return []
    return [os.path.dirname(os.path.abspath(_cffi_backend.__file__))]


def _folder_of(plugin: EntryPoint) -> list[str]:
    return [os.path.abspath(str(plugin.dist.locate_file("")))] if plugin.dist else []


def _write(path: Path, data: bytes) -> Path:
    # Not the process's id: two containers that share the folder may have the same.
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o700)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o755)
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
