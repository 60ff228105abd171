"""``cni graph``: draw this node's networks, as a tree in the terminal or as a picture."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.cli.terminal import Part, Tree
from cni.node.attachments import BROKEN, GONE, IMPAIRED, Attached, View
from cni.node.topology import UNUSED, UP, Segment, Topology, Uplink, lines, published

_COLOURS = {IMPAIRED: "yellow", BROKEN: "red", GONE: "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni graph``."""
    parser.add_argument("--output", type=Path, metavar="FILE.svg", help="write a picture to a file; - is stdout")
    parser.add_argument("--network", metavar="NET", help="draw only this network")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_cache_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draw the networks. Return 0, or 1 if there is no such network. Raises CNIError, OSError."""
    topology = Topology(View(cache_dirs(arguments), _warn), arguments.network)
    if arguments.network and not topology.segments:
        _warn(f"network {arguments.network} is not configured, and has no containers attached")
        return 1
    if arguments.output:
        _draw(topology, arguments.output)
    if arguments.json:
        print(json.dumps(topology.as_dict(), indent=2))
    elif not arguments.output:
        _tree(topology).print()
    return 0


def _warn(text: str) -> None:
    print(f"cni graph: {text}", file=sys.stderr)


def _draw(topology: Topology, output: Path) -> None:
    from cni.node.picture import Picture

    svg = Picture(topology, f"networks of {os.uname().nodename}").svg()
    if str(output) == "-":
        print(svg, end="")
    else:
        output.write_text(svg)


# ---- the tree ----


def _tree(topology: Topology) -> Tree:
    tree = Tree((f"networks of {os.uname().nodename}", "bold"))
    for uplink in topology.uplinks:
        tree.add(*_uplink(uplink))
    for segment in topology.segments:
        branch = tree.add(*_segment(segment))
        for attached in segment.attached:
            _attachment(branch, attached)
        for link in segment.strays:
            branch.add((f"{link.name} a port of no attachment that a runtime remembers", "yellow"))
    return tree


def _uplink(uplink: Uplink) -> list[Part]:
    to = [f"carries {', '.join(segment.title for segment in uplink.carries)}"] if uplink.carries else []
    to += [f"routes for {', '.join(segment.title for segment in uplink.routes)}"] if uplink.routes else []
    description = ["uplink", *uplink.addresses, *(["default route"] if uplink.is_default else []), *to]
    state: list[Part] = [] if uplink.state == UP else [(f"  {uplink.state}", "red")]
    return [(uplink.link.name, "bold cyan"), f"  {'  '.join(description)}", *state]


def _segment(segment: Segment) -> list[Part]:
    description = [segment.about, *(segment.addresses if segment.is_bridge else [])]
    colour = {UP: "bold green", UNUSED: "dim"}.get(segment.state, "bold red")
    state: list[Part] = (
        [] if segment.state == UP else [(f"  {segment.state}", "dim" if segment.state == UNUSED else "red")]
    )
    return [(segment.title, colour), f"  {'  '.join(description)}", *state]


def _attachment(branch: Tree, attached: Attached) -> None:
    colour = _COLOURS.get(attached.health, "default")
    port = attached.port.name if attached.port else attached.port_name
    host_end: list[Part] = [(f"{port} -- ", "dim" if attached.port and attached.port.is_up else "red")] if port else []
    first, *others = lines(attached)
    text = [first, *(other.strip() for other in others)]
    leaf = branch.add(*host_end, (attached.title, "bold"), (f"  {'  '.join(text)}", colour))
    for line in published(attached):
        leaf.add((line, "cyan"))
    for problem in attached.problems:
        leaf.add((problem.text, colour))
