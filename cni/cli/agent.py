"""``cni agent``: serve the plugins' calls from one warm process."""

from __future__ import annotations

import argparse
import os
import sys

from cni.agent.address import DEFAULT_SOCKET, Address
from cni.cli.arguments import add_metrics_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni agent``."""
    parser.add_argument(
        "--socket",
        default=os.environ.get("CNI_AGENT_SOCKET") or DEFAULT_SOCKET,
        metavar="PATH",
        help="where to listen, unless systemd passes a socket (default: $CNI_AGENT_SOCKET or %(default)s)",
    )
    add_metrics_argument(parser, os.environ.get("CNI_AGENT_METRICS") or None, " (default: $CNI_AGENT_METRICS, or none)")


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Return 1 if the agent cannot listen."""
    from cni.agent import daemon

    try:
        daemon.serve(Address(os.path.abspath(arguments.socket)), arguments.metrics)
    except OSError as error:
        print(f"cni agent: {error}", file=sys.stderr)
        return 1
