"""The plugins' executables in a folder: install them, and find and remove them again.

Everything appears by a rename: a runtime may call at any moment, and gets the old executable or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

from cni.install.steps import Remove, Step, Write, leftovers
from cni.invoke import launcher, registry
from cni.node.pools import Warn
from cni.node.staleness import Remembered
from cni.runtime.cache import ResultCache
from cni.runtime.conf import conf_dir, load_networks
from cni.spec.errors import CNIError


def install(folder: Path) -> list[Path]:
    """Put a launcher for every installed plugin into `folder`, and return their paths. Raises OSError, ValueError."""
    with locked(folder):
        steps = list(installation(folder))
        for step in steps:
            step.do()
    return [step.path for step in steps if isinstance(step, Write)]


def installation(folder: Path) -> Iterator[Step]:
    """Yield the steps that install() takes, to be taken with the folder locked. Raises OSError, ValueError."""
    yield from leftovers(folder)
    program = (Path(launcher.PACKAGES) / "cni" / "_launcher").read_bytes()
    # A list, so that a plugin that cannot be installed stops the installation before the first file is written.
    yield from [Write(folder / name, program + trailer.encode(), 0o755) for name, trailer in _trailers()]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder if it does not exist, and lock it against other installations."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _trailers() -> Iterator[tuple[str, launcher.Trailer]]:
    interpreter = os.path.realpath(sys.executable)
    shared = [launcher.PACKAGES, *_cffi_folder()]
    for plugin in registry.entry_points():
        if "/" in plugin.name or plugin.name[:1] in ("", "."):
            raise ValueError(f"a plugin cannot be called {plugin.name!r} ({plugin.value})")
        folders = dict.fromkeys([*shared, *_folder_of(plugin)])
        yield plugin.name, launcher.Trailer(interpreter, tuple(folders), plugin.value)


def _cffi_folder() -> list[str]:
    """Return the folder of the foreign function interface, if it is installed: without it ``nft`` is run instead."""
    try:
        import _cffi_backend
    except ImportError:
        return []
    return [os.path.dirname(os.path.abspath(_cffi_backend.__file__))]


def _folder_of(plugin: EntryPoint) -> list[str]:
    return [os.path.abspath(str(plugin.dist.locate_file("")))] if plugin.dist else []


# ---- uninstalling ----


def launchers(folder: Path) -> list[Path]:
    """Return the executables in `folder` that end in a launcher's trailer, of whichever installation. Raises OSError.

    A folder that does not exist has none.
    """
    try:
        paths = [folder / name for name in sorted(os.listdir(folder))]
    except FileNotFoundError:
        return []
    return [path for path in paths if stat.S_ISREG(path.lstat().st_mode) and launcher.read(str(path))]


def removal(folder: Path, executables: Iterable[Path]) -> Iterator[Step]:
    """Yield the steps that remove executables from `folder`, and what a crash of an installation left there."""
    yield from leftovers(folder)
    yield from map(Remove, executables)


def attachments_that_need(plugins: set[str], cache_dirs: Iterable[str], warn: Warn) -> Iterator[Remembered]:
    """Yield the attachments in these caches that cannot be deleted without the plugins. Raises CNIError, OSError."""
    configured = load_networks(conf_dir(), warn)
    for folder in cache_dirs:
        cache = ResultCache(folder, warn)
        for remembered in (Remembered(attachment, cache, folder) for attachment in cache.attachments()):
            try:
                types = {plugin.type for plugin in remembered.network(configured).plugins}
            except CNIError:
                types = plugins  # the configuration is lost, so it may be of any plugin
            if types & plugins:
                yield remembered
