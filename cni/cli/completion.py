"""``cni completion bash|zsh|fish``: what makes a shell complete the commands of this project.

source <(cni completion bash)                                           # or into /etc/bash_completion.d/cni
cni completion zsh >"${fpath[1]}/_cni"
cni completion fish >~/.config/fish/completions/cni.fish
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

from cni.cli import grammar
from cni.cli.cnitool import VERBS
from cni.cli.grammar import FILE, FOLDER, Argument, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni completion``."""
    parser.add_argument("shell", choices=sorted(SHELLS), help="which shell's")
    parser.epilog = "For bash: source <(cni completion bash)"


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    print("\n".join(SHELLS[arguments.shell](grammar.cni())))
    return 0


# ---- bash ----

_BASH = """\
# Completion of cni and cnitool for bash.
_cni() {
    local command= word words= cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$command $word" in
        %s) command="${command:+$command }$word" ;;
        esac
    done
    case "$command $prev" in
%s
    esac
    if [[ $cur != -* ]]; then
        case $command in
%s
        esac
    fi
    case $command in
%s
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _cni cni
complete -W %s cnitool"""


def bash(cni: Command) -> Iterator[str]:
    """By a function that knows the words of every command."""
    values: list[str] = []
    places: list[str] = []
    words: list[str] = []
    for command in cni.all():
        path = " ".join(command.words[1:])
        for option in command.options:
            if option.value:
                pattern = " | ".join(shlex.quote(f"{path} {name}") for name in option.names)
                values.append(f"    {pattern}) {_bash_value(option)} ;;")
        for positional in command.positionals:
            if positional.choices or positional.kind in (FOLDER, FILE):
                places.append(f"        {shlex.quote(path)}) {_bash_value(positional)} ;;")
        names = [each.name for each in command.commands] + [name for each in command.options for name in each.names]
        words.append(f"    {shlex.quote(path)}) words={shlex.quote(' '.join(names))} ;;")
    known = " | ".join(shlex.quote(f"{' '.join(each.words[1:-1])} {each.name}") for each in cni.all()[1:])
    parts = (known, *("\n".join(lines) for lines in (values, places, words)), shlex.quote(" ".join(VERBS)))
    yield _BASH % parts


def _bash_value(argument: Argument) -> str:
    if argument.choices:
        return f'mapfile -t COMPREPLY < <(compgen -W {shlex.quote(" ".join(argument.choices))} -- "$cur"); return'
    flag = {FOLDER: "-d", FILE: "-f"}.get(argument.kind)
    if flag:
        return f'compopt -o filenames; mapfile -t COMPREPLY < <(compgen {flag} -- "$cur"); return'
    return "return"


# ---- zsh ----


def zsh(cni: Command) -> Iterator[str]:
    """By a function for every command."""
    yield "#compdef cni cnitool"
    for command in cni.all():
        yield f"{_zsh_function(command)}() {{"
        specs = [_zsh_argument(argument) for argument in command.arguments]
        if command.commands:
            yield "    local line state"
            specs += ["'1:command:->command'", "'*::argument:->argument'"]
        yield "    _arguments -C " + " \\\n        ".join(specs)
        if command.commands:
            described = " ".join(_zsh_text(f"{each.name}:{each.meaning}") for each in command.commands)
            yield "    case $state in"
            yield f"    command) local -a commands=({described}); _describe command commands ;;"
            yield "    argument) case $line[1] in"
            for each in command.commands:
                yield f"        {each.name}) {_zsh_function(each)} ;;"
            yield "        esac ;;"
            yield "    esac"
        yield "}"
    yield f"_cnitool() {{ _arguments '1:command:({' '.join(VERBS)})' '2:network:' '3:namespace:_files' }}"
    yield 'if [[ $service == cnitool ]]; then _cnitool "$@"; else _cni "$@"; fi'


def _zsh_function(command: Command) -> str:
    return "_" + "_".join(command.words).replace("-", "_")


def _zsh_text(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh_argument(argument: Argument) -> str:
    help = argument.help.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    action = f"({' '.join(argument.choices)})" if argument.choices else ""
    action = action or {FOLDER: "_files -/", FILE: "_files"}.get(argument.kind, " ")
    value = f":{argument.value.replace(':', ' ')}:{action}" if argument.value else ""
    if not argument.names:
        return _zsh_text(f"{'*' if argument.many else ':' if argument.optional else ''}{value}")
    return " ".join(_zsh_text(f"*{name}[{help}]{value}") for name in argument.names)


# ---- fish ----


def fish(cni: Command) -> Iterator[str]:
    """By rules that say when they hold."""
    yield "# Completion of cni and cnitool for fish."
    yield "complete -c cni -f"
    for command in cni.all():
        where = f" -n {_fish_text(_fish_condition(command))}"
        for each in command.commands:
            yield f"complete -c cni{where} -a {each.name} -d {_fish_text(each.meaning)}"
        for option in command.options:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
            value = f" -x{_fish_value(option)}" if option.value else ""
            yield f"complete -c cni{where} {names}{value} -d {_fish_text(option.help)}"
        for positional in command.positionals:
            if _fish_value(positional):
                yield f"complete -c cni{where}{_fish_value(positional)}"
    yield "complete -c cnitool -n 'not __fish_seen_subcommand_from " + f"{' '.join(VERBS)}' -f -a '{' '.join(VERBS)}'"


def _fish_condition(command: Command) -> str:
    if len(command.words) == 1:
        return "__fish_use_subcommand"
    seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in command.words[1:])
    if command.commands:
        seen += f"; and not __fish_seen_subcommand_from {' '.join(each.name for each in command.commands)}"
    return seen


def _fish_value(argument: Argument) -> str:
    if argument.choices:
        return f" -a {_fish_text(' '.join(argument.choices))}"
    if argument.kind == FOLDER:
        return " -a '(__fish_complete_directories)'"
    return " -a '(__fish_complete_path)'" if argument.kind == FILE else ""


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
