"""Write the manual pages of section 1 from the parsers: python scripts/manual.py docs/man.

They are committed and not written when a wheel is built: a wheel for another machine has a core that this one cannot
import.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from argparse_manpage.manpage import Manpage

from cni.cli.cnitool import USAGE
from cni.cli.main import COMMANDS, command_line

MEANING = "the Container Network Interface for Python"
EXIT_STATUS = """\
.TP
.B 0
Success.
.TP
.B 1
A check found problems, or an error occurred; standard error has the message.
.TP
.B 2
The command line is invalid."""
ENVIRONMENT = """\
.TP
.B NETCONFPATH
The folder of network configurations (/etc/cni/net.d).
.TP
.B CNI_PATH
The folders of plugins, separated by colons (/opt/cni/bin).
.TP
.B CNI_AGENT_SOCKET
The agent's socket (/run/cni/agent.sock); if it is empty, plugins run without an agent.
.TP
.B NO_COLOR
If it is set, nothing is coloured."""


def pages() -> Iterator[Manpage]:
    """Yield the pages, each with the name of its command as `prog`."""
    _, commands = command_line(lambda _: True)
    cni = argparse.ArgumentParser("cni", usage="cni COMMAND [argument ...]", add_help=False)
    links = "\n".join(f".TP\n.BR cni\\-{name} (1)\n{meaning}" for name, _, meaning in COMMANDS)
    yield page(cni, MEANING, commands=links, environment=ENVIRONMENT, exit_status=EXIT_STATUS)
    for name, _, meaning in COMMANDS:
        yield page(commands[name], meaning, exit_status=EXIT_STATUS)
    usage, _, rest = USAGE.removeprefix("Usage: ").partition("\n\n")
    cnitool = argparse.ArgumentParser("cnitool", usage=usage, add_help=False)
    description = rest.rstrip().replace("-", "\\-")
    yield page(cnitool, "run a network configuration on a network namespace", description=f".nf\n{description}\n.fi")


def page(parser: argparse.ArgumentParser, meaning: str, **sections: str) -> Manpage:
    """Return the page of a command, with further sections in roff."""
    manual = Manpage(parser, format="single-commands-section")
    manual.prog = parser.prog.replace(" ", "-")
    manual.description = meaning
    manual.source, manual.manual, manual.date = "cni", MEANING, ""
    for heading, content in sections.items():
        manual.add_section(heading.replace("_", " "), "=", content)
    related = [f".BR {other} (1)" for other in ("cni", "cnitool") if other != manual.prog]
    manual.add_section("see also", "=", ",\n".join(related))
    return manual


def main(folder: Path) -> None:
    """Write the pages, and remove those of commands that no longer exist."""
    for path in folder.glob("*.1"):
        path.unlink()
    for manual in pages():
        (folder / f"{manual.prog}.1").write_text(str(manual))


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"  # argparse wraps lines before they become roff
    os.environ.pop("CNI_AGENT_SOCKET", None)  # a help text shows it as a default
    main(Path(sys.argv[1]))
