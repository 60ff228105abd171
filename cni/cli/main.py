"""The ``cni`` command: each subcommand is a module, imported only when it is used."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module

from cni.cli.extras import EXTRAS
from cni.spec.errors import CNIError, describe

# Name, module below cni.cli, description.
COMMANDS = (
    ("agent", "agent", "serve the plugins' calls from one warm process"),
    ("bench", "bench", "measure how long attachments take, beside other plugins"),
    ("install", "install", "put the plugins' executables into a folder"),
    ("uninstall", "uninstall", "remove what install put there"),
    ("list", "list", "list the attachments of this node, and their health"),
    ("graph", "graph", "draw this node's networks, as a tree or as a picture"),
    ("doctor", "doctor", "find what is wrong with this node, and how to cure it"),
    ("ipam", "ipam", "show which containers hold host-local's addresses"),
    ("validate", "validate", "find what is wrong with network configurations"),
    ("explain", "explain", "describe the keys of a plugin's configuration"),
    ("gc", "gc", "release what attachments that no longer exist left behind"),
    ("firewall", "firewall", "restore the rules of attachments after the firewall was flushed"),
    ("completion", "completion", "print a script that makes a shell complete these commands"),
)


# As shells report it: 128 plus the signal's number.
_INTERRUPTED, _BROKEN_PIPE = 130, 141


def main(argv: list[str] | None = None) -> int:
    """Run ``cni``. Return 0 for success, 1 for the answer "no" or for a failure (reported on stderr), 2 for misuse."""
    argv = sys.argv[1:] if argv is None else argv
    wanted = next((word for word in argv if not word.startswith("-")), None)
    try:
        parser, _ = command_line(lambda name: name == wanted)
        arguments = parser.parse_args(argv)
        status = int(arguments.run(arguments))
        sys.stdout.flush()  # here, where a failure can be reported
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe
        status = _BROKEN_PIPE
    except (CNIError, OSError) as error:
        print(f"cni {wanted}: {describe(error)}", file=sys.stderr)
        status = 1
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if not extra:
            raise
        print(f"cni {wanted}: {error.name} is not installed: pip install 'cni[{extra}]'", file=sys.stderr)
        status = 1
    _drop_unwritten()
    return status


def _drop_unwritten() -> None:
    """Discard output that cannot be written: Python would try again at exit, and complain."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def command_line(
    is_wanted: Callable[[str], bool], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser
) -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Return the parser of ``cni`` and those of its commands; only the wanted ones have arguments and `run`."""
    parser = parser_class(prog="cni", description="The Container Network Interface for Python.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module_name, description in COMMANDS:
        command = commands.add_parser(name, help=description, description=description.capitalize() + ".")
        if is_wanted(name):
            module = import_module(f"cni.cli.{module_name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser, commands.choices
