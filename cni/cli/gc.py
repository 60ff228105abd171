"""``cni gc``: release what attachments that no longer exist left behind."""

from __future__ import annotations

import argparse
import json
import sys

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.node.collect import collect
from cni.node.formatting import counted
from cni.node.staleness import GRACE, LIVE, STALE, Leftovers
from cni.spec.errors import CNIError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni gc``."""
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")
    parser.add_argument("--json", action="store_true", help="print JSON: what is done, and what stays")
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE,
        metavar="SECONDS",
        help="keep what is younger and in no runtime's cache, as its ADD may be under way (default: %(default)g)",
    )
    add_cache_argument(parser)
    parser.add_argument(
        "--trust-cache",
        action="store_true",
        help="take what is in no runtime's cache for stale, even if not every namespace of the node can be examined",
    )


def run(arguments: argparse.Namespace) -> int:
    """Collect garbage. Return 0, or 1 if anything failed."""
    try:
        leftovers = Leftovers(cache_dirs(arguments), arguments.grace, trusted=arguments.trust_cache, warn=_warn)
    except (CNIError, OSError) as error:
        _warn(str(error))
        return 1
    if not arguments.dry_run:
        collect(leftovers, _warn)
    candidates = [*leftovers.attachments, *leftovers.reservations]
    if arguments.json:
        findings = [candidate.as_dict() for candidate in candidates]
        print(json.dumps({"dryRun": arguments.dry_run, "findings": findings}, indent=2))
    else:
        _print(leftovers, dry_run=arguments.dry_run)
    return 1 if any(candidate.failure for candidate in candidates) else 0


def _warn(text: str) -> None:
    print(f"cni gc: {text}", file=sys.stderr)


def _print(leftovers: Leftovers, *, dry_run: bool) -> None:
    for candidate in [*leftovers.attachments, *leftovers.reservations]:
        if candidate.failure:
            _warn(f"cannot {candidate.verb} {candidate}: {candidate.failure}")
        elif candidate.verdict == STALE:
            outcome = f"would {candidate.verb}" if dry_run else f"{candidate.verb}d"
            print(f"{outcome} {candidate}: {candidate.reason}")
        elif candidate.verdict != LIVE:
            print(f"left alone: {candidate}: {candidate.reason}")
    released = sum(reserved.verdict == STALE and not reserved.failure for reserved in leftovers.reservations)
    kept = len(leftovers.reservations) - released
    print(f"{counted(released, 'address', 'addresses')} {'would be ' if dry_run else ''}released, {kept} kept")
