"""``cni uninstall``: take away what ``cni install`` put there, and nothing else.

Executables are known by what is at their end, units by their first line. Networks, addresses and what runtimes
remember stay, and so do containers' interfaces. But without its plugins nobody can detach a container: as long as a
runtime remembers attachments made by them, it takes --force.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.cli.install import add_shared_arguments, carry_out
from cni.install import executables, units
from cni.install.steps import Step
from cni.node.leftovers import Remembered
from cni.spec.errors import CNIError

_TOLD = 5  # attachments that are named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni uninstall``."""
    add_shared_arguments(parser)
    add_cache_argument(parser)
    parser.add_argument("--force", action="store_true", help="even if there are attachments that need the plugins")


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0, or 1 with words on stderr."""
    folder, unit_dir = Path(arguments.dir), Path(arguments.unit_dir)
    try:
        plugins = executables.launchers(folder)
        names = {path.name for path in plugins}
        needing = list(executables.attachments_that_need(names, cache_dirs(arguments), _warn))
        if needing:
            _warn(_told(needing))
            if not arguments.force and not arguments.dry_run:
                _warn("nothing is removed; `cni gc` releases what is over, --force goes on all the same")
                return 1
        carry_out(_steps(folder, unit_dir, plugins, arguments), dry_run=arguments.dry_run)
    except (CNIError, OSError) as error:
        _warn(str(error))
        return 1
    for name, wanted, option in _services(arguments):
        if not wanted and units.exist(unit_dir, name):
            _warn(f"the service {name} stays: {option} removes it too")
    return 0


def _services(arguments: argparse.Namespace) -> tuple[tuple[str, bool, str], ...]:
    """Name, whether it is asked for, and how to."""
    agent = (units.AGENT, arguments.agent, "--agent")
    return agent, (units.DHCP, arguments.dhcp_daemon, "--dhcp-daemon")


def _steps(folder: Path, unit_dir: Path, plugins: list[Path], arguments: argparse.Namespace) -> Iterator[Step]:
    for name, wanted, _ in _services(arguments):
        if wanted:
            yield from units.removal(unit_dir, name)
    yield from executables.removal(folder, plugins)


def _told(needing: list[Remembered]) -> str:
    more = f" and {len(needing) - _TOLD} more" if len(needing) > _TOLD else ""
    return f"nobody can delete these without the plugins: {', '.join(map(str, needing[:_TOLD]))}{more}"


def _warn(text: str) -> None:
    print(f"cni uninstall: {text}", file=sys.stderr)
