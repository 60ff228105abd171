"""``cni install``: put an executable for every plugin into a folder, and services into systemd's.

Everything appears by a rename, the executables first: a runtime may call at any moment, and gets the old or the new.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

from cni.cli.arguments import add_metrics_argument
from cni.install import units
from cni.install.steps import Step, Write, carry_out, leftovers
from cni.invoke import launcher, registry
from cni.runtime.conf import DEFAULT_PLUGIN_DIR
from cni.spec.errors import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni install``."""
    add_shared_arguments(parser)
    add_metrics_argument(parser)
    parser.epilog = (
        "To upgrade while runtimes are calling: install the new release into a virtual environment of its own, run "
        "its `cni install` with the same options, and remove the old environment when the agent has restarted."
    )


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``cni install`` and ``cni uninstall`` are about."""
    parser.add_argument("--dir", default=DEFAULT_PLUGIN_DIR, help="the folder of the plugins (default: %(default)s)")
    parser.add_argument("--agent", action="store_true", help="the agent as well, as a service of systemd's")
    parser.add_argument("--dhcp-daemon", action="store_true", help="the daemon of the plugin dhcp as well")
    parser.add_argument(
        "--unit-dir", default=units.DEFAULT_DIR, metavar="DIR", help="the folder of the units (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0, or 1 with words on stderr; 2 for options that don't go together."""
    if arguments.metrics and not arguments.agent:
        print("cni install: --metrics is the agent's, and goes with --agent", file=sys.stderr)
        return 2
    folder = Path(arguments.dir)
    try:
        services = _services(arguments, folder)
        for files in services.values():
            units.refuse_foreign(files)
        with _locked(folder, dry_run=arguments.dry_run):
            carry_out(_executables(folder), dry_run=arguments.dry_run)
        carry_out(_activated(Path(arguments.unit_dir), services, arguments.dry_run), dry_run=arguments.dry_run)
    except (OSError, ValueError) as error:
        print(f"cni install: {describe(error)}", file=sys.stderr)
        return 1
    if services and not units.is_running():
        names = " ".join(f"{name}.socket {name}.service" for name in services)
        print(
            f"cni install: systemd does not run here; where it does: systemctl daemon-reload && "
            f"systemctl enable --now {names}",
            file=sys.stderr,
        )
    return 0


def install(folder: Path) -> list[Path]:
    """Put a launcher for every plugin of the entry-point group ``cni.plugins`` into ``folder``.

    Each appears whole, by a rename, so a runtime may call at any moment. Raises OSError, ValueError.
    """
    with _locked(folder):
        steps = list(_executables(folder))
        for step in steps:
            step.do()
    return [step.path for step in steps if isinstance(step, Write)]


@contextlib.contextmanager
def _locked(folder: Path, *, dry_run: bool = False) -> Iterator[None]:
    """The folder, made if need be, for nobody else who installs."""
    if dry_run:
        yield
        return
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _executables(folder: Path) -> Iterator[Step]:
    yield from leftovers(folder)
    program = (Path(launcher.PACKAGES) / "cni" / "_launcher").read_bytes()
    # All are made before the first is written: what is wrong with one is wrong with the installation.
    yield from [Write(folder / name, program + trailer.encode(), 0o755) for name, trailer in _trailers()]


def _services(arguments: argparse.Namespace, folder: Path) -> dict[str, list[Write]]:
    """The units' files of each service that is asked for."""
    unit_dir = Path(arguments.unit_dir)
    services = {}
    if arguments.agent:
        services[units.AGENT] = units.agent(unit_dir, arguments.metrics)
    if arguments.dhcp_daemon:
        services[units.DHCP] = units.dhcp_daemon(unit_dir, folder)
    return services


def _activated(unit_dir: Path, services: dict[str, list[Write]], dry_run: bool) -> Iterable[Step]:
    if services and not dry_run:
        unit_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name, files in services.items():
        yield from files
        if units.is_running():
            yield from units.activation(name)


def _trailers() -> Iterator[tuple[str, launcher.Trailer]]:
    interpreter = os.path.realpath(sys.executable)
    shared = [launcher.PACKAGES, *_cffi_folder()]
    for plugin in registry.entry_points():
        if "/" in plugin.name or plugin.name[:1] in ("", "."):
            raise ValueError(f"a plugin cannot be called {plugin.name!r} ({plugin.value})")
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
