"""All that is wrong with an object by its table: each value is read as the plugin reads it, by the table's own readers.

Where the plugin would stop at the first one, objects, lists and maps are gone into here one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cni.explain.tables import table_of
from cni.node.severity import ERROR, WARNING
from cni.skel.config import Field, Settings
from cni.spec import gojson
from cni.spec.errors import ConfigError
from cni.validate.document import joined
from cni.validate.findings import Problem, meant

# Free metadata: every plugin looks there for its own, and some are a runtime's.
_FREE = ("args", "args.cni", "runtimeConfig")
# What a plugin passes on to its IPAM plugin, folded.
_SHARED = ("ipam", "args", "runtimeconfig")


class Reader:
    """Looks for problems in an object for ``owner``, a plugin's name, whose section ``ipam`` is for ``ipam``.

    With ``ipam`` None nobody knows which keys there are in that section, and in those that both plugins look into.
    ``elsewhere`` tells of keys by their folded paths where they belong. A list's keys count as written (``exact``).
    """

    def __init__(
        self, owner: str, ipam: str | None = "", elsewhere: Mapping[str, str] | None = None, *, exact: bool = False
    ) -> None:
        self._owner = owner
        self._ipam = ipam
        self._elsewhere = elsewhere or {}
        self._exact = exact

    def problems(self, value: Any, table: type[Settings], path: str = "") -> Iterator[Problem]:
        """Of an object with a table."""
        if not isinstance(value, dict):
            yield _refused(gojson.mistyped(value, path, "an object"))
            return
        fields = {self._same(field.key): field for field in table.fields()}
        counting = {self._same(key): key for key in value}  # of several spellings the last
        for key in counting.values():
            where, of_key = joined(path, key), value[key]
            field = fields.get(self._same(key))
            if field is None:
                yield from self._unknown(key, path, table)
            elif of_key is not None and not (field.blank and of_key == ""):
                yield from self._of_field(of_key, field, where)

    def _same(self, key: str) -> str:
        return key if self._exact else gojson.fold(key)

    def _of_field(self, value: Any, field: Field[Any, Any], path: str) -> Iterator[Problem]:
        found = list(self._inside(value, field, path))
        yield from found
        if any(problem.severity == ERROR and problem.rule == "value" for problem in found):
            return
        try:
            field.read(value, path)
        except ConfigError as error:
            yield _refused(error)

    def _inside(self, value: Any, field: Field[Any, Any], path: str) -> Iterator[Problem]:
        if field.item and isinstance(value, list):
            for index, element in enumerate(value):
                yield from self._of_field(element, field.item, f"{path}[{index}]")
        elif field.item and isinstance(value, dict):
            for key, element in value.items():
                yield from self._of_field(element, field.item, joined(path, key))
        elif isinstance(value, dict) and not field.item and (table := table_of(field)):
            yield from self.problems(value, table, path)

    def _unknown(self, key: str, path: str, table: type[Settings]) -> Iterator[Problem]:
        """Go ignores it. One that is like a key that there is was hardly meant to be ignored."""
        where = joined(path, key)
        section = gojson.fold(where).partition(".")[0]
        if key.startswith(("$", "_")) or "/" in key:  # $schema; notes; other people's keys (cni.dev/..., x.org/...)
            return
        if section in _SHARED and (self._ipam is None if path else section != "ipam"):
            return
        owner = self._ipam if self._ipam and section == "ipam" else self._owner
        has_none = f"{owner} has no such key"
        if place := self._elsewhere.get(gojson.fold(where)):
            yield Problem("unknown-key", where, f"{has_none} here; it belongs {place}", is_key=True)
        elif likely := meant(key, (field.key for field in table.fields())):
            yield Problem("unknown-key", where, f'{has_none}; "{likely}" is probably meant', is_key=True)
        elif path not in _FREE:
            yield Problem("unknown-key", where, f"{has_none}; it is ignored", WARNING, is_key=True)


def _refused(error: ConfigError) -> Problem:
    return Problem("value", error.path, error.problem)
