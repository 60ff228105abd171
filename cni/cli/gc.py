"""``cni gc``: release what attachments left behind that no longer exist."""

from __future__ import annotations

import argparse
import json
import sys

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.node.collect import collect
from cni.node.leftovers import ALIVE, GRACE, OVER, Node
from cni.spec.errors import CNIError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni gc``."""
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    parser.add_argument("--json", action="store_true", help="tell it, and what stays, for a program to read")
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE,
        metavar="SECONDS",
        help="leave alone what is younger and remembered by nobody, as its ADD may be under way (default: %(default)g)",
    )
    add_cache_argument(parser)
    parser.add_argument(
        "--trust-cache",
        action="store_true",
        help="what no runtime remembers is gone, even if not every namespace of the node can be looked into",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0, or 1 with words on stderr for what failed."""
    try:
        node = Node(cache_dirs(arguments), arguments.grace, trusted=arguments.trust_cache, warn=_warn)
    except (CNIError, OSError) as error:
        _warn(str(error))
        return 1
    if not arguments.dry_run:
        collect(node, _warn)
    findings = [*node.attachments, *node.reservations]
    if arguments.json:
        print(json.dumps({"dryRun": arguments.dry_run, "findings": [each.as_dict() for each in findings]}, indent=2))
    else:
        _tell(node, dry_run=arguments.dry_run)
    return 1 if any(each.failure for each in findings) else 0


def _warn(text: str) -> None:
    print(f"cni gc: {text}", file=sys.stderr)


def _tell(node: Node, *, dry_run: bool) -> None:
    for each in [*node.attachments, *node.reservations]:
        if each.failure:
            _warn(f"cannot {each.verb} {each}: {each.failure}")
        elif each.verdict == OVER:
            print(f"{f'would {each.verb}' if dry_run else f'{each.verb}d'} {each}: {each.reason}")
        elif each.verdict != ALIVE:
            print(f"left alone: {each}: {each.reason}")
    over = sum(each.verdict == OVER and not each.failure for each in node.reservations)
    stay = len(node.reservations) - over
    print(
        f"{over} addresses {'would be ' if dry_run else ''}released, {stay} {'would ' if dry_run else ''}stay reserved"
    )
