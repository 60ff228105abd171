"""``cni list``: the attachments of this node, and whether each is as its ADD left it."""

from __future__ import annotations

import argparse
import json
import sys

from cni.cli.node import BROKEN, GONE, HEALTHY, IMPAIRED, Attached, View, add_cache_argument, cache_dirs, port_text
from cni.cli.terminal import age, console, print_table
from cni.errors import CNIError

_HEADS = ("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "MAC", "AGE", "HEALTH")
_COLOURS = {HEALTHY: "green", IMPAIRED: "yellow", BROKEN: "red", GONE: "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni list``."""
    parser.add_argument("--network", metavar="NET", help="only the attachments of this network")
    parser.add_argument("--container", metavar="ID", help="only those of containers whose id begins so")
    parser.add_argument("--json", action="store_true", help="print it for a program to read")
    add_cache_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0; 1 if there is none of what was asked for, or with words on stderr."""
    try:
        view = View(cache_dirs(arguments), _warn)
    except (CNIError, OSError) as error:
        _warn(str(error))
        return 1
    found = [each for each in view.attached if _is_asked_for(each, arguments)]
    if arguments.json:
        print(json.dumps({"attachments": [each.as_dict() for each in found]}, indent=2))
    else:
        _tell(found)
    return 0 if found or not (arguments.network or arguments.container) else 1


def _warn(text: str) -> None:
    print(f"cni list: {text}", file=sys.stderr)


def _is_asked_for(one: Attached, arguments: argparse.Namespace) -> bool:
    return arguments.network in (None, one.network) and one.container_id.startswith(arguments.container or "")


def _tell(found: list[Attached]) -> None:
    if not found:
        print("no attachments")
    elif sys.stdout.isatty():
        _tell_terminal(found)
    else:
        print_table([_HEADS, *map(_row, found)])


def _row(one: Attached) -> tuple[str, ...]:
    words = "; ".join(problem.text for problem in one.problems)
    return (
        one.network,
        one.name,
        one.ifname,
        ",".join(map(str, one.addresses)) or "-",
        one.mac or "-",
        age(one.age()),
        f"{one.health}: {words}" if words else one.health,
    )


def _tell_terminal(found: list[Attached]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for head in _HEADS:
        # What is wrong may be broken into lines; the rest is to be copied.
        table.add_column(head, no_wrap=head != "HEALTH", justify="right" if head == "AGE" else "left", overflow="fold")
    last = ""
    for one in found:
        network, name, ifname, _, mac, since, _ = _row(one)
        health = Text(one.health, _COLOURS[one.health])
        for problem in one.problems:
            health.append(f"\n{problem.text}", "default")
        heading = Text(network if network != last else "", "bold")
        places = [*map(str, one.addresses), *(port_text(port) for port in one.ports)]
        table.add_row(heading, name, ifname, "\n".join(places), mac, since, health)
        last = network
    console().print(table)
    _sum_up(found)


def _sum_up(found: list[Attached]) -> None:
    counts = [(sum(one.health == health for one in found), health) for health in _COLOURS]
    words = ", ".join(f"{count} {health}" for count, health in counts if count)
    cure = "; cni doctor tells what mends them" if any(one.problems for one in found) else ""
    print(f"{len(found)} attachments: {words}{cure}")
