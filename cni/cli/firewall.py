"""``cni firewall reload``: restore what the attachments of this node have in iptables, nftables and firewalld."""

from __future__ import annotations

import argparse
import json
import sys

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.node import rules
from cni.node.rules import AttachmentRules
from cni.spec.errors import CNIError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni firewall``."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    meaning = "put back the rules of all living attachments"
    reloading = commands.add_parser("reload", help=meaning, description=f"{meaning.capitalize()}.")
    reloading.add_argument("--dry-run", action="store_true", help="only tell what is missing")
    reloading.add_argument("--json", action="store_true", help="tell it for a program to read")
    add_cache_argument(reloading)


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0, or 1 with words on stderr for what could not be restored."""
    reload = rules.examine if arguments.dry_run else rules.restore
    try:
        attachments = reload(cache_dirs(arguments), _warn)
    except (CNIError, OSError) as error:
        _warn(str(error))
        return 1
    if arguments.json:
        told = {"dryRun": arguments.dry_run, "attachments": [each.as_dict() for each in attachments]}
        print(json.dumps(told, indent=2))
    else:
        _tell(attachments, dry_run=arguments.dry_run)
    return 1 if any(each.failure for each in attachments) else 0


def _warn(text: str) -> None:
    print(f"cni firewall: {text}", file=sys.stderr)


def _tell(attachments: list[AttachmentRules], *, dry_run: bool) -> None:
    for each in attachments:
        if each.failure:
            _warn(f"cannot restore {each.remembered}: {each.failure}")
        elif each.missing and (dry_run or each.is_restored):
            print(f"{'would restore' if dry_run else 'restored'} {each.remembered}: {len(each.missing)} were missing")
    missing = sum(bool(each.missing) and not each.failure and (dry_run or each.is_restored) for each in attachments)
    complete = sum(not each.missing and not each.failure for each in attachments)
    print(f"{missing} attachments {'would be ' if dry_run else ''}restored, {complete} had all their rules")
