"""The command line of ``cni`` as data, read from argparse's parsers: what completions and manual pages are made of."""

from __future__ import annotations

import argparse

from cni.cli.main import command_line

FOLDER, FILE, OTHER = "folder", "file", "other"


class Argument:
    """An option, or with no names a word in its place. `value` is what it takes is called, "" for nothing."""

    def __init__(self, action: argparse.Action, help: str) -> None:
        self.names = tuple(action.option_strings)
        self.help = help
        self.choices = tuple(map(str, action.choices or ()))
        self.many = action.nargs in ("*", "+")
        self.optional = bool(self.names) or action.nargs in ("?", "*")
        self.value = "" if action.nargs == 0 else _value(action)

    @property
    def kind(self) -> str:
        """What its value names."""
        if "FOLDER" in self.value or "DIR" in self.value:
            return FOLDER
        return FILE if "FILE" in self.value or "PATH" in self.value else OTHER


class Command:
    """One command: its words (``cni``, ``ipam``, ``show``), what it does, and what it takes."""

    def __init__(self, words: tuple[str, ...], meaning: str, parser: argparse.ArgumentParser) -> None:
        self.words = words
        self.meaning = meaning
        self.epilog = parser.epilog or ""
        self.arguments: list[Argument] = []
        self.commands: list[Command] = []
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                meanings = {choice.dest: choice.help or "" for choice in action._choices_actions}
                for name, sub in action.choices.items():
                    self.commands.append(Command((*words, name), meanings.get(name, ""), sub))
            elif action.help != argparse.SUPPRESS:
                self.arguments.append(Argument(action, parser._get_formatter()._expand_help(action)))

    @property
    def name(self) -> str:
        return self.words[-1]

    @property
    def options(self) -> list[Argument]:
        return [argument for argument in self.arguments if argument.names]

    @property
    def positionals(self) -> list[Argument]:
        return [argument for argument in self.arguments if not argument.names]

    def all(self) -> list[Command]:
        """It and those below it."""
        return [self, *(each for command in self.commands for each in command.all())]


def cni() -> Command:
    """The command ``cni`` with all below it. Imports every command."""
    parser, _ = command_line(lambda _: True)
    return Command(("cni",), "the Container Network Interface for Python", parser)


def _value(action: argparse.Action) -> str:
    metavar = action.metavar[0] if isinstance(action.metavar, tuple) else action.metavar
    return str(metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper()))
