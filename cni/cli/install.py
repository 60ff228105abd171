"""``cni install``: put an executable for every plugin into a folder, and the units of services into systemd's folder.

The executables are written first, because the services use them.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

from cni.cli.arguments import add_metrics_argument
from cni.cli.extras import require
from cni.install import executables, units
from cni.install.steps import Step, Write
from cni.runtime.conf import DEFAULT_PLUGIN_DIR
from cni.spec.errors import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni install``."""
    add_shared_arguments(parser)
    add_metrics_argument(parser)
    parser.epilog = (
        "To upgrade while runtimes are calling: install the new release into a virtual environment of its own, run "
        "its `cni install` with the same options, and remove the old environment after the agent has restarted."
    )


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``cni install`` and ``cni uninstall`` share."""
    parser.add_argument(
        "--dir", default=DEFAULT_PLUGIN_DIR, metavar="DIR", help="the folder of the plugins (default: %(default)s)"
    )
    parser.add_argument("--agent", action="store_true", help="include the agent, as a service of systemd")
    parser.add_argument("--dhcp-daemon", action="store_true", help="include the daemon of the plugin dhcp, as another")
    parser.add_argument(
        "--unit-dir",
        default=units.DEFAULT_DIR,
        metavar="DIR",
        help="the folder of the units (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")


def run(arguments: argparse.Namespace) -> int:
    """Install. Return 0, 1 for a failure, 2 for options that do not go together."""
    if arguments.metrics and not arguments.agent:
        print("cni install: --metrics is an option of the agent: add --agent", file=sys.stderr)
        return 2
    if arguments.metrics:
        require("prometheus_client")
    folder, unit_dir, dry_run = Path(arguments.dir), Path(arguments.unit_dir), arguments.dry_run
    try:
        services = _services(arguments, folder, unit_dir)
        for files in services.values():
            units.refuse_foreign(files)
        with contextlib.nullcontext() if dry_run else executables.locked(folder):
            carry_out(executables.installation(folder), dry_run=dry_run)
        if services and not dry_run:
            unit_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        carry_out(units.installation(services), dry_run=dry_run)
    except (OSError, ValueError) as error:
        print(f"cni install: {describe(error)}", file=sys.stderr)
        return 1
    if services and not units.is_running():
        names = " ".join(f"{name}.socket {name}.service" for name in services)
        print(
            "cni install: the services were not started, because systemd does not run here; where it does: "
            f"systemctl daemon-reload && systemctl enable --now {names}",
            file=sys.stderr,
        )
    return 0


def carry_out(steps: Iterable[Step], *, dry_run: bool) -> None:
    """Take the steps, or with `dry_run` only print them. Raises OSError at the first step that fails."""
    for step in steps:
        print(f"would {step}" if dry_run else step.do())


def _services(arguments: argparse.Namespace, folder: Path, unit_dir: Path) -> dict[str, list[Write]]:
    """Return the unit files of each service that the options include."""
    services = {}
    if arguments.agent:
        services[units.AGENT] = units.agent(unit_dir, arguments.metrics)
    if arguments.dhcp_daemon:
        services[units.DHCP] = units.dhcp_daemon(unit_dir, folder)
    return services
