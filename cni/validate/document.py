"""A JSON text with the positions of its values and keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from cni.spec import gojson
from cni.spec.errors import CNIError

# The tokens of valid JSON; between them are white space, commas and colons.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]|[^\s{}\[\]:,"]+')
_POSITION = re.compile(r"line (\d+) column (\d+)")


class Malformed(CNIError):
    """The error that a text is not JSON, with the place in it."""

    def __init__(self, problem: str, line: int, column: int, excerpt: str) -> None:
        super().__init__(problem)
        self.line = line
        self.column = column
        self.excerpt = excerpt


class Document:
    """A JSON text and its value. Places have paths such as ``plugins[0].ipam.ranges[0][1].subnet``, not case-sensitive.

    ``repeated`` are the paths of keys that an object has more than once, in any spelling. Raises Malformed.
    """

    def __init__(self, data: bytes) -> None:
        self.text = data.decode("utf-8", "replace")
        try:
            self.value: Any = gojson.loads(data)
        except ValueError as error:
            raise self._malformed(error) from None
        self.repeated: list[str] = []
        self._keys: dict[str, int] = {}
        self._values: dict[str, int] = {}
        self._locate("", _TOKEN.finditer(self.text))

    def position(self, path: str, *, of_key: bool = False) -> tuple[int, int]:
        """Return line and column, counted from 1, of a value or its key; if missing, of the object it belongs into."""
        offsets = self._keys if of_key else self._values
        path = gojson.fold(path)
        while path not in offsets:
            offsets = self._values
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._line_and_column(offsets[path])

    def line(self, number: int) -> str:
        """Return the text of a line."""
        return self.text.split("\n")[number - 1].rstrip("\r")

    def _line_and_column(self, offset: int) -> tuple[int, int]:
        return self.text.count("\n", 0, offset) + 1, offset - self.text.rfind("\n", 0, offset)

    def _malformed(self, error: ValueError) -> Malformed:
        if isinstance(error, json.JSONDecodeError):
            words, line, column = error.msg[:1].lower() + error.msg[1:], error.lineno, error.colno
        elif position := _POSITION.search(str(error)):
            words, line, column = str(error)[: position.start()].rstrip(": "), int(position[1]), int(position[2])
        else:
            words, (line, column) = str(error), self._line_and_column(len(self.text.rstrip()))
        return Malformed(words, line, column, self.line(line))

    def _locate(self, path: str, tokens: Iterator[re.Match[str]]) -> None:
        self._record(path, next(tokens), tokens)

    def _record(self, path: str, token: re.Match[str], tokens: Iterator[re.Match[str]]) -> None:
        self._values[gojson.fold(path)] = token.start()
        if token[0] == "[":
            self._record_items(path, tokens)
        elif token[0] == "{":
            self._record_members(path, tokens)

    def _record_items(self, path: str, tokens: Iterator[re.Match[str]]) -> None:
        index = 0
        while (token := next(tokens))[0] != "]":
            self._record(f"{path}[{index}]", token, tokens)
            index += 1

    def _record_members(self, path: str, tokens: Iterator[re.Match[str]]) -> None:
        seen: set[str] = set()
        while (token := next(tokens))[0] != "}":
            name = gojson.loads(token[0])
            key = joined(path, name)
            if gojson.fold(name) in seen:
                self.repeated.append(key)
            seen.add(gojson.fold(name))
            self._keys[gojson.fold(key)] = token.start()
            self._record(key, next(tokens), tokens)


def joined(path: str, key: str) -> str:
    """Return the path of a key in the object at ``path``. A ``key`` that begins with a bracket is an index instead."""
    return f"{path}.{key}" if path and key and not key.startswith("[") else path + key
