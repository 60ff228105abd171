"""``cni uninstall``: remove what ``cni install`` put there, and nothing else.

Executables are recognised by their trailer, units by their first line. Networks, addresses, runtimes' caches and
containers' interfaces stay. But without the plugins no container can be detached: while a runtime remembers attachments
that need them, uninstalling takes --force.
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
from cni.node.staleness import Remembered
from cni.spec.errors import CNIError

_MAX_NAMED = 5  # attachments in a message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni uninstall``."""
    add_shared_arguments(parser)
    add_cache_argument(parser)
    parser.add_argument("--force", action="store_true", help="uninstall even if attachments need the plugins")


def run(arguments: argparse.Namespace) -> int:
    """Uninstall. Return 0, or 1 for a failure, or if attachments need the plugins."""
    folder, unit_dir = Path(arguments.dir), Path(arguments.unit_dir)
    try:
        plugins = executables.launchers(folder)
        names = {path.name for path in plugins}
        needing = list(executables.attachments_that_need(names, cache_dirs(arguments), _warn))
        if needing:
            _warn(_needed_by(needing))
            if not arguments.force and not arguments.dry_run:
                _warn("nothing is removed; `cni gc` deletes stale attachments, --force uninstalls nevertheless")
                return 1
        carry_out(_steps(folder, unit_dir, plugins, arguments), dry_run=arguments.dry_run)
    except (CNIError, OSError) as error:
        _warn(str(error))
        return 1
    for name, wanted, option in _services(arguments):
        if not wanted and units.exist(unit_dir, name):
            _warn(f"the service {name} stays; {option} removes it too")
    return 0


def _services(arguments: argparse.Namespace) -> tuple[tuple[str, bool, str], ...]:
    """Return each service's name, whether the options include it, and the option for it."""
    agent = (units.AGENT, arguments.agent, "--agent")
    return agent, (units.DHCP, arguments.dhcp_daemon, "--dhcp-daemon")


def _steps(folder: Path, unit_dir: Path, plugins: list[Path], arguments: argparse.Namespace) -> Iterator[Step]:
    for name, wanted, _ in _services(arguments):
        if wanted:
            yield from units.removal(unit_dir, name)
    yield from executables.removal(folder, plugins)


def _needed_by(needing: list[Remembered]) -> str:
    more = f" and {len(needing) - _MAX_NAMED} more" if len(needing) > _MAX_NAMED else ""
    return f"these cannot be deleted without the plugins: {', '.join(map(str, needing[:_MAX_NAMED]))}{more}"


def _warn(text: str) -> None:
    print(f"cni uninstall: {text}", file=sys.stderr)
