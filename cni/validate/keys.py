"""The problems of an object by its table: each value is read by the table's own readers, as the plugin reads it.

The plugin stops at the first problem; here all values in objects, lists and maps are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cni.explain.common_keys import table_of
from cni.node.severity import ERROR, WARNING
from cni.skel.config import Field, Settings
from cni.spec import gojson
from cni.spec.errors import ConfigError
from cni.validate.document import joined
from cni.validate.findings import Problem, closest

# Sections for anybody's keys: every plugin looks there for its own, and some keys are a runtime's.
_FREE = ("args", "args.cni", "runtimeConfig")
# Sections that a plugin passes on to its IPAM plugin, folded.
_SHARED = ("ipam", "args", "runtimeconfig")


class Reader:
    """A search for problems in the object of the plugin ``owner``, whose section ``ipam`` is for the plugin ``ipam``.

    With ``ipam`` None that plugin's keys are unknown, and so are those of the sections that both plugins read.
    ``elsewhere`` says of keys, by their folded paths, where they belong. With ``exact`` keys are
    case-sensitive, as in a list.
    """

    def __init__(
        self, owner: str, ipam: str | None = "", elsewhere: Mapping[str, str] | None = None, *, exact: bool = False
    ) -> None:
        self._owner = owner
        self._ipam = ipam
        self._elsewhere = elsewhere or {}
        self._exact = exact

    def problems(self, value: Any, table: type[Settings], path: str = "") -> Iterator[Problem]:
        """Yield the problems of an object by its table."""
        if not isinstance(value, dict):
            yield _refused(gojson.mistyped(value, path, "an object"))
            return
        fields = {self._same(field.key): field for field in table.fields()}
        keys = {self._same(key): key for key in value}  # of several spellings the last one counts
        for key in keys.values():
            key_path, member = joined(path, key), value[key]
            field = fields.get(self._same(key))
            if field is None:
                yield from self._unknown(key, path, table)
            elif member is not None and not (field.blank and member == ""):
                yield from self._of_field(member, field, key_path)

    def _same(self, key: str) -> str:
        return key if self._exact else gojson.fold(key)

    def _of_field(self, value: Any, field: Field[Any, Any], path: str) -> Iterator[Problem]:
        problems = list(self._inside(value, field, path))
        yield from problems
        if any(problem.severity == ERROR and problem.rule == "value" for problem in problems):
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
        """Yield the problem of an unknown key. Go ignores it; but one that is like a known key is likely a mistake."""
        key_path = joined(path, key)
        section = gojson.fold(key_path).partition(".")[0]
        if key.startswith(("$", "_")) or "/" in key:  # $schema; notes; keys of others (cni.dev/..., x.org/...)
            return
        if section in _SHARED and (self._ipam is None if path else section != "ipam"):
            return
        owner = self._ipam if self._ipam and section == "ipam" else self._owner
        has_none = f"{owner} has no such key"
        if place := self._elsewhere.get(gojson.fold(key_path)):
            yield Problem("unknown-key", key_path, f"{has_none} here; it belongs {place}", is_key=True)
        elif likely := closest(key, (field.key for field in table.fields())):
            yield Problem("unknown-key", key_path, f'{has_none}; "{likely}" is probably meant', is_key=True)
        elif path not in _FREE:
            yield Problem("unknown-key", key_path, f"{has_none}; it is ignored", WARNING, is_key=True)


def _refused(error: ConfigError) -> Problem:
    return Problem("value", error.path, error.problem)
