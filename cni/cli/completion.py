"""``cni completion bash|fish|zsh``: print the script by which a shell completes cni and cnitool.

source <(cni completion bash)                                           # or into /etc/bash_completion.d/cni
cni completion fish >~/.config/fish/completions/cni.fish
cni completion zsh >"${fpath[1]}/_cni"
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TypeVar

import shtab

from cni.cli.cnitool import VERBS
from cni.cli.main import command_line
from cni.explain.catalog import plugins
from cni.runtime.conf import conf_dir, load_networks

ActionT = TypeVar("ActionT", bound=argparse.Action)

_SHELLS = ("bash", "fish", "zsh")
_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "networks": lambda: {network.name for network in load_networks(conf_dir(), lambda _: None)},
    "plugins": lambda: plugins()[0],
}
# The metavar of an argument says what its value names.
_COMPLETERS = {
    **dict.fromkeys(("DIR", "NAME=DIR"), shtab.DIRECTORY),
    **dict.fromkeys(("FILE", "FILE|DIR", "FILE.svg", "NETNS", "PATH"), shtab.FILE),
    "NET": shtab.cmd("cni completion --names networks 2>/dev/null"),
    "PLUGIN": shtab.cmd("cni completion --names plugins 2>/dev/null"),
}
# In zsh one file completes both commands: an autoloaded one runs for `$service`, one that is evaluated defines both.
_ZSH = """\
#compdef cni cnitool
if [[ $service != cnitool ]]; then
{cni}
fi
if [[ $service != cni ]]; then
{cnitool}
fi"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni completion``."""
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("shell", nargs="?", choices=_SHELLS, help="the shell")
    wanted.add_argument("--names", choices=_NAMES, help=argparse.SUPPRESS)  # asked by the scripts
    parser.epilog = "For bash: source <(cni completion bash)"


def run(arguments: argparse.Namespace) -> int:
    """Print the script, or the names that a script asks for."""
    if arguments.names:
        print(*sorted(_NAMES[arguments.names]()), sep="\n")
        return 0
    scripts = {parser.prog: shtab.complete(parser, arguments.shell) for parser in (_cni(), _cnitool())}
    print(_ZSH.format(**scripts) if arguments.shell == "zsh" else "\n".join(scripts.values()))
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that tells shtab what completes each argument, those of its groups too."""

    def _add_action(self, action: ActionT) -> ActionT:
        if action.metavar in _COMPLETERS:
            action.complete = _COMPLETERS[action.metavar]  # type: ignore[attr-defined]
        return super()._add_action(action)


def _cni() -> argparse.ArgumentParser:
    parser, _ = command_line(lambda _: True, _Parser)
    return parser


def _cnitool() -> argparse.ArgumentParser:
    """Return a parser with the grammar of cnitool, which itself starts faster without argparse."""
    parser = _Parser("cnitool", add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="print the usage")
    parser.add_argument("-i", "--ifname", metavar="IFNAME", help="the interface's name")
    parser.add_argument("command", choices=(*VERBS, "help"), help="what to run")
    parser.add_argument("network", metavar="NET", help="the network's name")
    parser.add_argument("netns", metavar="NETNS", help="the path of the network namespace")
    return parser
