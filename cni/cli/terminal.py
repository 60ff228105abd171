"""Output for people: plain tables, ages, and colour on a terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Part = str | tuple[str, str]  # a text, or a text and its style, as rich calls it


def print_table(rows: Sequence[Sequence[str]], numbers: int | None = None) -> None:
    """Print rows in columns, the headings first; columns from number `numbers` on are aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:numbers], widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(row[len(cells) :], widths[len(cells) :], strict=True)]
        print("  ".join(cells).rstrip())


def age(seconds: float) -> str:
    """Return a duration in the largest unit that fits: 3 d, 2 h, 5 min, 12 s."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def console() -> Console | None:
    """Return rich's console, coloured unless NO_COLOR is set; None without rich, or if stdout is no terminal."""
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    screen = Console(
        color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False, markup=False, emoji=False
    )
    return screen if screen.is_terminal else None


def say(*parts: Part, margin: Part = "", wrap: bool = False) -> None:
    """Print a line of these parts after a margin, which stays empty in further lines.

    With `wrap` a long line is wrapped beside the margin; otherwise the terminal wraps it, so that it can be copied.
    """
    screen = console()
    indent = "\n" + " " * len(_text(margin))
    if not screen:
        print(_text(margin) + "".join(map(_text, parts)).replace("\n", indent))
        return
    from rich.table import Table
    from rich.text import Text

    line = Text.assemble(*parts)
    if wrap:
        grid = Table.grid()
        grid.add_row(Text.assemble(margin), line)
        screen.print(grid)
    else:
        screen.print(Text.assemble(margin, Text(indent).join(line.split("\n"))), soft_wrap=True)


def _text(part: Part) -> str:
    return part if isinstance(part, str) else part[0]


class Tree:
    """A line with branches below it."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts
        self._branches: list[Tree] = []

    def add(self, *parts: Part) -> Tree:
        """Add a branch, and return it."""
        self._branches.append(Tree(*parts))
        return self._branches[-1]

    def print(self, margin: str = "", margin_below: str = "") -> None:
        """Print the line, and the branches with the lines that connect them."""
        say(*self._parts, margin=margin, wrap=True)
        for branch in self._branches:
            if branch is self._branches[-1]:
                branch.print(f"{margin_below}└── ", f"{margin_below}    ")
            else:
                branch.print(f"{margin_below}├── ", f"{margin_below}│   ")
