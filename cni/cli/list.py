"""``cni list``: the attachments of this node, and whether each is as its ADD left it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.cli.terminal import Part, age, console, print_table, say
from cni.node.attachments import (
    BROKEN,
    GONE,
    HEALTHY,
    IMPAIRED,
    Attached,
    View,
    port_text,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_HEADS = ("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "MAC", "AGE", "HEALTH")
_NARROWEST = 16  # columns for what is wrong
_BETWEEN = 3  # columns from one to the next
_COLOURS = {HEALTHY: "green", IMPAIRED: "yellow", BROKEN: "red", GONE: "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni list``."""
    parser.add_argument("--network", metavar="NET", help="only the attachments of this network")
    parser.add_argument("--container", metavar="ID", help="only those of containers whose id begins so")
    parser.add_argument("--json", action="store_true", help="print it for a program to read")
    add_cache_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0; 1 if there is none of what was asked for. Raises CNIError, OSError."""
    view = View(cache_dirs(arguments), _warn)
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
    elif screen := console():
        _tell_terminal(screen, found)
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


def _tell_terminal(screen: Console, found: list[Attached]) -> None:
    table = _table(found)
    if sum((column.min_width or 0) + _BETWEEN for column in table.columns) <= screen.width:
        screen.print(table)
    else:
        _tell_blocks(found)
    _sum_up(found)


def _table(found: list[Attached]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    rows = []
    last = ""
    for one in found:
        network, name, ifname, _, mac, since, _ = _row(one)
        whom = f"{name}\n{one.pod}".strip()
        rows.append([network if network != last else "", whom, ifname, "\n".join(_places(one)), mac, since])
        last = network
    for head, *cells in zip(_HEADS, *rows, strict=False):
        width = max(len(line) for cell in (head, *cells) for line in cell.splitlines())
        table.add_column(head, min_width=width, no_wrap=True, justify="right" if head == "AGE" else "left")
    # What is wrong may be broken into lines; the rest is to be copied.
    table.add_column(_HEADS[-1], min_width=_NARROWEST, overflow="fold")
    for row, one in zip(rows, found, strict=True):
        table.add_row(Text(row[0], "bold"), *row[1:], Text.assemble(*_health(one)))
    return table


def _tell_blocks(found: list[Attached]) -> None:
    """For a terminal that is too narrow for the table."""
    for one in found:
        network, _, ifname, _, mac, since, _ = _row(one)
        say((f"{network}  {one.title}  {ifname}", "bold"), wrap=True)
        lines = [*_places(one), f"{mac}  {since}"]
        say("\n".join(lines), "\n", *_health(one), margin="  ", wrap=True)


def _places(one: Attached) -> list[str]:
    return [*map(str, one.addresses), *map(port_text, one.ports)]


def _health(one: Attached) -> list[Part]:
    return [(one.health, _COLOURS[one.health]), *(f"\n{problem.text}" for problem in one.problems)]


def _sum_up(found: list[Attached]) -> None:
    counts = [(sum(one.health == health for one in found), health) for health in _COLOURS]
    words = ", ".join(f"{count} {health}" for count, health in counts if count)
    cure = "; cni doctor tells what mends them" if any(one.problems for one in found) else ""
    print(f"{len(found)} attachments: {words}{cure}")
