"""Command-line flags and durations as Go's `flag` and `time` packages read them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


class Help(Exception):
    """The flag -h or -help was given."""


class Misuse(Exception):
    """The flags are invalid."""


class Flag:
    """A flag. `read` parses its text; `kind` names its value, "" is a switch; `shown` is the default's text."""

    __slots__ = ("default", "kind", "meaning", "read", "shown")

    def __init__(self, kind: str, read: Callable[[str], Any], default: Any, meaning: str, shown: str = "") -> None:
        self.kind = kind
        self.read = read
        self.default = default
        self.meaning = meaning
        self.shown = shown


def text(meaning: str) -> Flag:
    return Flag("string", str, "", meaning)


def switch(meaning: str) -> Flag:
    return Flag("", _boolean, False, meaning)


def duration(default: str, meaning: str) -> Flag:
    return Flag("duration", seconds, seconds(default), meaning, default)


def parse(flags: dict[str, Flag], arguments: Sequence[str]) -> dict[str, Any]:
    """Parse flags: -x, --x, -x=value, -x value; a switch takes its value after `=` only.

    Parsing ends at the first argument that is no flag. Raises Help and Misuse.
    """
    values = {name: flag.default for name, flag in flags.items()}
    rest = list(arguments)
    while rest and rest[0].startswith("-") and len(rest[0]) > 1:
        argument = rest.pop(0)
        if argument == "--":
            break
        name, equals, value = argument[2 if argument.startswith("--") else 1 :].partition("=")
        if not name or name.startswith("-"):
            raise Misuse(f"bad flag syntax: {argument}")
        if name not in flags:
            raise Help if name in ("h", "help") else Misuse(f"flag provided but not defined: -{name}")
        flag = flags[name]
        if not equals and flag.kind:
            if not rest:
                raise Misuse(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        elif not equals:
            value = "true"
        try:
            values[name] = flag.read(value)
        except ValueError:
            place = f'value "{value}" for flag' if flag.kind else f'boolean value "{value}" for'
            raise Misuse(f"invalid {place} -{name}: parse error") from None
    return values


def usage(program: str, flags: dict[str, Flag]) -> str:
    lines = [f"Usage of {program}:"]
    for name, flag in sorted(flags.items()):
        default = f" (default {flag.shown})" if flag.shown else ""
        lines += [f"  -{name} {flag.kind}".rstrip(), f"    \t{flag.meaning}{default}"]
    return "\n".join(lines) + "\n"


def _boolean(value: str) -> bool:
    if value not in _BOOLEANS:
        raise ValueError(value)
    return _BOOLEANS[value]


def seconds(value: str) -> float:
    """Parse a duration such as 1h15m30.5s. Raises ValueError."""
    rest = value[1:] if value[:1] in ("+", "-") else value
    if rest == "0":
        return 0.0
    if not rest:
        raise ValueError(value)
    total = 0.0
    while rest:
        number = _leading(rest, "0123456789.")
        unit = _leading(rest[len(number) :], "nuµμmsh")
        if number.strip(".") == "" or number.count(".") > 1 or unit not in _UNITS:
            raise ValueError(value)
        total += float(number) * _UNITS[unit]
        rest = rest[len(number) + len(unit) :]
    return -total if value.startswith("-") else total


def _leading(value: str, characters: str) -> str:
    return value[: len(value) - len(value.lstrip(characters))]
