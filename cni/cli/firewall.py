"""``cni firewall reload``: restore the attachments' rules in iptables, nftables and firewalld."""

from __future__ import annotations

import argparse
import json
import sys

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.node import firewall_rules
from cni.node.firewall_rules import AttachmentRules
from cni.node.formatting import counted
from cni.spec.errors import CNIError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni firewall``."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    description = "restore the rules of all live attachments"
    reloading = commands.add_parser("reload", help=description, description=f"{description.capitalize()}.")
    reloading.add_argument("--dry-run", action="store_true", help="only print which rules are missing")
    reloading.add_argument("--json", action="store_true", help="print JSON")
    add_cache_argument(reloading)


def run(arguments: argparse.Namespace) -> int:
    """Restore the rules. Return 0, or 1 if any could not be restored."""
    reload = firewall_rules.examine if arguments.dry_run else firewall_rules.restore
    try:
        attachments = reload(cache_dirs(arguments), _warn)
    except (CNIError, OSError) as error:
        _warn(str(error))
        return 1
    if arguments.json:
        report = {"dryRun": arguments.dry_run, "attachments": [attachment.as_dict() for attachment in attachments]}
        print(json.dumps(report, indent=2))
    else:
        _print(attachments, dry_run=arguments.dry_run)
    return 1 if any(attachment.failure for attachment in attachments) else 0


def _warn(text: str) -> None:
    print(f"cni firewall: {text}", file=sys.stderr)


def _print(attachments: list[AttachmentRules], *, dry_run: bool) -> None:
    restored = complete = 0
    for attachment in attachments:
        if attachment.failure:
            _warn(f"cannot restore {attachment.remembered}: {attachment.failure}")
        elif not attachment.missing:
            complete += 1
        elif dry_run or attachment.is_restored:
            restored += 1
            missing = counted(len(attachment.missing), "missing rule")
            print(f"{'would restore' if dry_run else 'restored'} {attachment.remembered}: {missing}")
    print(f"{counted(restored, 'attachment')} {'would be ' if dry_run else ''}restored, {complete} had all their rules")
