"""How the commands write for a person: plain tables, ages, and colour where there is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_WIDEST = 10_000  # columns, where no terminal limits them


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns that stand below each other; the first row is their heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def age(seconds: float) -> str:
    """In the greatest unit that fits: 3 d, 2 h, 5 min, 12 s."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def console(file: TextIO | None = None, *, soft_wrap: bool = False) -> Console:
    """Where rich writes: coloured on a terminal (unless NO_COLOR is set), and elsewhere plain and never broken.

    With `soft_wrap` lines are left to the terminal to break, so that they can be copied.
    """
    from rich.console import Console

    made = Console(
        file=file or sys.stdout,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        soft_wrap=soft_wrap,
        highlight=False,
        markup=False,
        emoji=False,
    )
    if not made.is_terminal:
        made.width = _WIDEST
    return made
