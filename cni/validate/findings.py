"""What was found in a file, and where."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from cni.node.severity import ERROR

_ALIKE = 0.66  # of difflib's measure: two letters of three that are in the wrong order still are


class Problem:
    """Something wrong at a place: ``rule`` names its kind for programs, ``is_key`` tells that it is about the key."""

    def __init__(self, rule: str, path: str, message: str, severity: str = ERROR, *, is_key: bool = False) -> None:
        self.rule = rule
        self.path = path
        self.message = message
        self.severity = severity
        self.is_key = is_key


class Finding:
    """A problem in a file. ``line`` and ``column`` are 0 where it is about the file as a whole."""

    def __init__(self, file: str, problem: Problem, line: int = 0, column: int = 0, excerpt: str = "") -> None:
        self.file = file
        self.problem = problem
        self.line = line
        self.column = column
        self.excerpt = excerpt

    @property
    def is_error(self) -> bool:
        return self.problem.severity == ERROR

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    @property
    def words(self) -> str:
        return ": ".join(filter(None, (self.problem.path, self.problem.message)))

    def __str__(self) -> str:
        return f"{self.place}: {self.problem.severity}: {self.words}"

    def as_dict(self) -> dict[str, Any]:
        """All of it for a program."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "severity": self.problem.severity,
            "rule": self.problem.rule,
            "path": self.problem.path,
            "message": self.problem.message,
        }


def meant(word: str, known: Iterable[str]) -> str:
    """Which of the known words was probably meant; "" where none is like it."""
    by_lower = {each.lower(): each for each in known}
    close = get_close_matches(word.lower(), by_lower, 1, _ALIKE)
    return by_lower[close[0]] if close else ""
