"""The manual pages of section 1, from the parsers: docs/man, which the wheel brings to share/man/man1.

python -m cni.cli.manual docs/man
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cni.cli import grammar
from cni.cli.cnitool import USAGE
from cni.cli.grammar import Argument, Command

_TITLE = '.TH {name} 1 "" cni "Container Network Interface for Python"'
_EXIT = """\
.SH EXIT STATUS
.TP
.B 0
All is fine, and done.
.TP
.B 1
The answer is no, or something failed; standard error says what.
.TP
.B 2
The command line makes no sense."""
_ENVIRONMENT = """\
.SH ENVIRONMENT
.TP
.B NETCONFPATH
The folder of network configurations (/etc/cni/net.d).
.TP
.B CNI_PATH
The folders of plugins, separated by colons (/opt/cni/bin).
.TP
.B CNI_AGENT_SOCKET
The agent's socket (/run/cni/agent.sock); where it is set to nothing, plugins do without an agent.
.TP
.B NO_COLOR
If it is set, nothing is coloured."""


def pages() -> dict[str, str]:
    """Every page by its file's name."""
    cni = grammar.cni()
    found = {f"{'-'.join(command.words)}.1": "\n".join(_page(command)) + "\n" for command in (cni, *cni.commands)}
    found["cnitool.1"] = "\n".join(_cnitool()) + "\n"
    return found


def _page(command: Command) -> Iterator[str]:
    name = "-".join(command.words)
    yield _TITLE.format(name=name.upper())
    yield f".SH NAME\n{_text(name)} \\- {_text(command.meaning)}"
    yield ".SH SYNOPSIS"
    for each in command.commands or [command]:
        if command.words == ("cni",):
            yield f".B cni {_text(each.name)}\n[\\fIargument\\fR ...]\n.br"
        else:
            yield f".B {_text(' '.join(each.words))}\n{' '.join(map(_used, each.arguments))}\n.br"
    if command.words == ("cni",):
        yield ".SH COMMANDS"
        for each in command.commands:
            yield f".TP\n.BR {_text('-'.join(each.words))} (1)\n{_sentence(each.meaning)}"
        yield _ENVIRONMENT
    else:
        for each in command.all():
            yield f".SH {'OPTIONS' if each is command else _text(' '.join(each.words).upper())}"
            if each is not command:
                yield _sentence(each.meaning)
            for argument in each.arguments:
                yield f".TP\n{_named(argument)}\n{_sentence(argument.help)}"
        if command.epilog:
            yield f".SH NOTES\n{_text(command.epilog)}"
    yield _EXIT
    others = ["cnitool"] if command.words == ("cni",) else ["cni", "cnitool"]
    yield ".SH SEE ALSO\n" + ",\n".join(f".BR {other} (1)" for other in others)


def _used(argument: Argument) -> str:
    value = f"\\fI{_text(argument.value)}\\fR" if argument.value else ""
    text = " ".join(filter(None, (f"\\fB{_text(argument.names[0])}\\fR" if argument.names else "", value)))
    text += " ..." if argument.many else ""
    return f"[{text}]" if argument.optional else text


def _named(argument: Argument) -> str:
    value = f" \\fI{_text(argument.value)}\\fR" if argument.value else ""
    if not argument.names:
        return value.strip()
    return ", ".join(f"\\fB{_text(name)}\\fR" for name in argument.names) + value


def _sentence(text: str) -> str:
    return _text(text[:1].upper() + text[1:].rstrip(".") + ".") if text else ""


def _text(text: str) -> str:
    """As roff shows it, whatever is in it."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    escaped = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", escaped)
    return re.sub(r"(?m)^\.", r"\\&.", escaped)


def _cnitool() -> Iterator[str]:
    """Its usage says it all; the grammar is Go's, not argparse's."""
    yield _TITLE.format(name="CNITOOL")
    yield ".SH NAME\ncnitool \\- run a network configuration on a network namespace"
    usage, _, rest = USAGE.partition("\n\n")
    yield f".SH SYNOPSIS\n.nf\n{_text(usage.removeprefix('Usage: '))}\n.fi"
    yield f".SH DESCRIPTION\n.nf\n{_text(rest.rstrip())}\n.fi"
    yield ".SH SEE ALSO\n.BR cni (1)"


def main(folder: Path) -> None:
    """Write the pages, and remove those of commands that are no more."""
    folder.mkdir(parents=True, exist_ok=True)
    current = pages()
    for path in folder.glob("*.1"):
        if path.name not in current:
            path.unlink()
    for name, text in current.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
