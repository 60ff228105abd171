"""Arguments that several commands share."""

from __future__ import annotations

import argparse

from cni.agent.address import Address
from cni.runtime.cache import DEFAULT_FOLDER


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    """Add --cache-dir, as all commands that look at attachments take it."""
    parser.add_argument(
        "--cache-dir",
        action="append",
        metavar="DIR",
        help=f"where runtimes cache their attachments; may be repeated (default: {DEFAULT_FOLDER})",
    )


def cache_dirs(arguments: argparse.Namespace) -> list[str]:
    """Return the folders that --cache-dir names, or the default."""
    return arguments.cache_dir or [DEFAULT_FOLDER]


def add_metrics_argument(parser: argparse.ArgumentParser, default: str | None = None, more: str = "") -> None:
    """Add --metrics, as the agent and its installation take it; `more` is appended to the help text."""
    parser.add_argument(
        "--metrics",
        type=_address,
        default=default,
        metavar="ADDRESS",
        help=f"where the agent's metrics can be read: HOST:PORT, PORT of 127.0.0.1, or the path of a socket{more}",
    )


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
