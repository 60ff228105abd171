"""``cni ipam``: who holds which of host-local's addresses, since when, and how many are left."""

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

_MANY = 10**9  # addresses; nobody counts further


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni ipam``."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    meaning = "list the networks' ranges, and how much of each is left"
    listing = commands.add_parser("list", help=meaning, description=f"{meaning.capitalize()}.")
    meaning = "list a network's addresses that are held: by whom, and since when"
    showing = commands.add_parser("show", help=meaning, description=f"{meaning.capitalize()}.")
    showing.add_argument("network", metavar="NET", help="the network's name")
    for command in (listing, showing):
        command.add_argument("--json", action="store_true", help="print it for a program to read")


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0, or 1 with words on stderr."""
    try:
        found = pools(load_networks(conf_dir(), _warn), _warn)
        if arguments.what == "list":
            return _list(found, arguments.json)
        return _show(found, arguments.network, arguments.json)
    except (CNIError, OSError) as error:
        _warn(str(error))
        return 1


def _warn(text: str) -> None:
    print(f"cni ipam: {text}", file=sys.stderr)


def _list(found: list[Pool], as_json: bool) -> int:
    usages = [pool.as_dict() for pool in found]
    if as_json:
        print(json.dumps(usages, indent=2))
        return 0
    rows = [(usage["network"], *row) for usage in usages for row in _range_rows(usage)]
    print_table([("NETWORK", "RANGES", "HELD", "FREE", "SIZE"), *rows])
    return 0


def _show(found: list[Pool], name: str, as_json: bool) -> int:
    wanted = [pool for pool in found if pool.network == name]
    if not wanted:
        _warn(f"no network {name} is configured for host-local, or has addresses reserved")
        return 1
    shown = [pool.details() for pool in wanted]
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
    """As (ranges, held, free, size)."""
    for ranges in usage["ranges"]:
        yield ranges["ranges"], str(ranges["held"]), _count(ranges["free"]), _count(ranges["size"])
    if usage["heldElsewhere"] or not usage["ranges"]:
        where = "in no configured range" if usage["ranges"] else "ranges not configured here"
        yield where, str(usage["heldElsewhere"]), "", ""


def _count(number: int) -> str:
    return str(number) if number < _MANY else f"about 2^{round(math.log2(number))}"


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
