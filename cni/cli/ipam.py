"""``cni ipam``: host-local's reserved addresses, their holders, and how many addresses are free."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from cni.cli.terminal import age, print_table
from cni.node.pools import Pool, pools
from cni.runtime.conf import conf_dir, load_networks
from cni.spec.errors import CNIError

_MAX_EXACT = 10**9  # addresses; larger numbers are printed as powers of two


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni ipam``."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    description = "list the networks' ranges, and how many addresses of each are free"
    listing = commands.add_parser("list", help=description, description=f"{description.capitalize()}.")
    description = "list a network's reserved addresses: their containers, and since when"
    showing = commands.add_parser("show", help=description, description=f"{description.capitalize()}.")
    showing.add_argument("network", metavar="NET", help="the network's name")
    for command in (listing, showing):
        command.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """List or show pools. Return 0, or 1 for a failure."""
    try:
        all_pools = pools(load_networks(conf_dir(), _warn), _warn)
        if arguments.what == "list":
            return _list(all_pools, arguments.json)
        return _show(all_pools, arguments.network, arguments.json)
    except (CNIError, OSError) as error:
        _warn(str(error))
        return 1


def _warn(text: str) -> None:
    print(f"cni ipam: {text}", file=sys.stderr)


def _list(all_pools: list[Pool], as_json: bool) -> int:
    usages = [pool.as_dict() for pool in all_pools]
    if as_json:
        print(json.dumps(usages, indent=2))
        return 0
    rows = [(usage["network"], *row) for usage in usages for row in _range_rows(usage)]
    print_table([("NETWORK", "RANGES", "HELD", "FREE", "SIZE"), *rows])
    return 0


def _show(all_pools: list[Pool], name: str, as_json: bool) -> int:
    own = [pool for pool in all_pools if pool.network == name]
    if not own:
        _warn(f"network {name} is not configured for host-local, and has no reserved addresses")
        return 1
    shown = [pool.details() for pool in own]
    if as_json:
        print(json.dumps(shown, indent=2))
        return 0
    for usage in shown:
        print(f"network {usage['network']}, reservations in {usage['folder']}")
        for ranges, held, free, size in _range_rows(usage):
            print(f"  {ranges}: {held} held" + (f", {free} of {size} free" if size else ""))
        if usage["reservations"]:
            print()
            print_table([("ADDRESS", "CONTAINER", "INTERFACE", "SINCE", "NOTE"), *map(_row, usage["reservations"])])
    return 0


def _range_rows(usage: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield rows of (ranges, held, free, size)."""
    for ranges in usage["ranges"]:
        yield ranges["ranges"], str(ranges["held"]), _count(ranges["free"]), _count(ranges["size"])
    if usage["heldElsewhere"] or not usage["ranges"]:
        where = "in no configured range" if usage["ranges"] else "ranges not configured here"
        yield where, str(usage["heldElsewhere"]), "", ""


def _count(number: int) -> str:
    return str(number) if number < _MAX_EXACT else f"about 2^{round(math.log2(number))}"


def _row(reservation: dict[str, str]) -> tuple[str, ...]:
    since = datetime.fromisoformat(reservation["since"])
    when = f"{since.astimezone():%Y-%m-%d %H:%M:%S} ({age(time.time() - since.timestamp())})"
    note = reservation["note"]
    return (
        reservation["address"],
        reservation["containerID"] or "-",
        reservation["ifname"] or "-",
        when,
        f"looks dead: {note}" if note else "",
    )
