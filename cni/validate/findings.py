"""Problems of a configuration, and where in a file they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from cni.node.severity import ERROR

_SIMILARITY = 0.66  # by difflib's measure: a word of three letters of which two are swapped reaches it


@dataclass(frozen=True)
class Problem:
    """Something wrong at a path: ``rule`` names its kind for programs; with ``is_key`` it is about the key there."""

    rule: str
    path: str
    message: str
    severity: str = ERROR
    is_key: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Finding:
    """A problem in a file. ``line`` and ``column`` are 0 if it is about the file as a whole."""

    file: str
    problem: Problem
    line: int = 0
    column: int = 0
    excerpt: str = ""

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
        """Return everything for a program."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "severity": self.problem.severity,
            "rule": self.problem.rule,
            "path": self.problem.path,
            "message": self.problem.message,
        }


def closest(word: str, choices: Iterable[str]) -> str:
    """Return the one of `choices` that is most like a word; "" if none is."""
    by_lower = {choice.lower(): choice for choice in choices}
    matches = get_close_matches(word.lower(), by_lower, 1, _SIMILARITY)
    return by_lower[matches[0]] if matches else ""
