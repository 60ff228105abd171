"""``cni list``: list the attachments of this node, and whether each is as its ADD left it."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
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
)
from cni.node.formatting import counted, port_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_HEADINGS = ("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "MAC", "AGE", "HEALTH")
_MIN_HEALTH = 16  # characters of the column HEALTH
_GAP = 3  # characters between two columns
_COLOURS = {HEALTHY: "green", IMPAIRED: "yellow", BROKEN: "red", GONE: "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni list``."""
    parser.add_argument("--network", metavar="NET", help="list only the attachments of this network")
    parser.add_argument("--container", metavar="ID", help="list only those of containers whose id begins so")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_cache_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """List attachments. Return 0, or 1 if options select none. Raises CNIError, OSError."""
    view = View(cache_dirs(arguments), _warn)
    selected = [attached for attached in view.attached if _is_selected(attached, arguments)]
    if arguments.json:
        print(json.dumps({"attachments": [attached.as_dict() for attached in selected]}, indent=2))
    else:
        _print(selected)
    return 0 if selected or not (arguments.network or arguments.container) else 1


def _warn(text: str) -> None:
    print(f"cni list: {text}", file=sys.stderr)


def _is_selected(attached: Attached, arguments: argparse.Namespace) -> bool:
    is_network = arguments.network in (None, attached.network)
    return is_network and attached.container_id.startswith(arguments.container or "")


def _print(attachments: list[Attached]) -> None:
    if not attachments:
        print("no attachments")
    elif screen := console():
        _print_to_terminal(screen, attachments)
    else:
        print_table([_HEADINGS, *map(_row, attachments)])


def _row(attached: Attached) -> tuple[str, ...]:
    problems = "; ".join(problem.text for problem in attached.problems)
    return (
        attached.network,
        attached.name,
        attached.ifname,
        ",".join(map(str, attached.addresses)) or "-",
        attached.mac or "-",
        age(attached.age()),
        f"{attached.health}: {problems}" if problems else attached.health,
    )


def _print_to_terminal(screen: Console, attachments: list[Attached]) -> None:
    table = _table(attachments)
    if sum((column.min_width or 0) + _GAP for column in table.columns) <= screen.width:
        screen.print(table)
    else:
        _print_blocks(attachments)
    _print_summary(attachments)


def _table(attachments: list[Attached]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    rows = []
    last = ""
    for attached in attachments:
        network, name, ifname, _, mac, since, _ = _row(attached)
        container = f"{name}\n{attached.pod}".strip()
        addresses = "\n".join(_addresses_and_ports(attached))
        rows.append([network if network != last else "", container, ifname, addresses, mac, since])
        last = network
    for heading, *cells in zip(_HEADINGS, *rows, strict=False):
        width = max(len(line) for cell in (heading, *cells) for line in cell.splitlines())
        table.add_column(heading, min_width=width, no_wrap=True, justify="right" if heading == "AGE" else "left")
    # Problems may be wrapped; the other columns are for copying.
    table.add_column(_HEADINGS[-1], min_width=_MIN_HEALTH, overflow="fold")
    for row, attached in zip(rows, attachments, strict=True):
        table.add_row(Text(row[0], "bold"), *row[1:], Text.assemble(*_health(attached)))
    return table


def _print_blocks(attachments: list[Attached]) -> None:
    """Print a block of lines for each attachment, for a terminal that is too narrow for the table."""
    for attached in attachments:
        network, _, ifname, _, mac, since, _ = _row(attached)
        say((f"{network}  {attached.title}  {ifname}", "bold"), wrap=True)
        lines = [*_addresses_and_ports(attached), f"{mac}  {since}"]
        say("\n".join(lines), "\n", *_health(attached), margin="  ", wrap=True)


def _addresses_and_ports(attached: Attached) -> list[str]:
    return [*map(str, attached.addresses), *map(port_text, attached.ports)]


def _health(attached: Attached) -> list[Part]:
    return [(attached.health, _COLOURS[attached.health]), *(f"\n{problem.text}" for problem in attached.problems)]


def _print_summary(attachments: list[Attached]) -> None:
    tally = Counter(attached.health for attached in attachments)
    counts = ", ".join(f"{tally[health]} {health}" for health in _COLOURS if tally[health])
    hint = "; cni doctor prints the cures" if any(attached.problems for attached in attachments) else ""
    print(f"{counted(len(attachments), 'attachment')}: {counts}{hint}")
