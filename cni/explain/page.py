"""A plugin's page: what it is for, its keys, capabilities and arguments, and examples. As data, text or Markdown."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from cni.explain.examples import examples_of
from cni.explain.known import PLACES, Known
from cni.explain.tables import GIVEN, capabilities, table_of
from cni.skel.config import Config, Field, Settings

# Of the head what every plugin has alike, and what only those have a use for that make an interface.
_HEAD = [field for field in Config.fields() if field.key not in ("ipam", "dns")]
_OF_INTERFACES = (Config.ipam, Config.dns)
_STEP = "  "


class Key:
    """A key of a table, for a page; ``keys`` are those of the objects that it holds."""

    def __init__(self, field: Field[Any, Any]) -> None:
        default = field.default
        self.name = field.key
        self.kind = field.kind.replace("list of list of", "list of lists of")
        self.default = default if isinstance(default, (bool, int, str)) and default != "" else None
        self.meaning = field.meaning
        self.constraint = field.constraint
        table = table_of(field)
        self.keys = [Key(inner) for inner in table.fields()] if table else []

    def as_dict(self) -> dict[str, Any]:
        """All of it for a program."""
        told = {
            "key": self.name,
            "type": self.kind,
            "default": self.default,
            "constraint": self.constraint,
            "meaning": self.meaning,
        }
        return {**told, "keys": [key.as_dict() for key in self.keys]} if self.keys else told


class Page:
    """What there is to say of a plugin."""

    def __init__(self, known: Known) -> None:
        plugin = known.plugin
        self.name = known.name
        self.summary = known.summary
        self.text = known.text
        self.place = plugin.place
        self.versions = plugin.versions
        self.keys = _keys(plugin.config, has_interface=plugin.place in ("interface", ""))
        self.capabilities = capabilities(plugin)
        self.arguments = plugin.arguments
        self.examples = examples_of(known.name)

    def as_dict(self) -> dict[str, Any]:
        """All of it for a program."""
        return {
            "name": self.name,
            "summary": self.summary,
            "text": self.text,
            "place": self.place,
            "versions": self.versions,
            "keys": [key.as_dict() for key in self.keys],
            "capabilities": self.capabilities,
            "arguments": self.arguments,
            "examples": {name: json.loads(text) for name, text in self.examples.items()},
        }


def _keys(table: type[Settings], *, has_interface: bool) -> list[Key]:
    skipped = _HEAD if has_interface else [*_HEAD, *_OF_INTERFACES]
    return [Key(field) for field in table.fields() if field not in skipped and field.key not in GIVEN]


def _paragraphs(text: str) -> Iterator[tuple[str, bool]]:
    """Each, and whether its lines are to stay as they are."""
    for paragraph in filter(None, text.split("\n\n")):
        yield paragraph, paragraph.startswith((" ", "- ", "1. "))


# ---- text ----

Line = tuple[str, str]  # a style as rich has it, and the line


def lines(page: Page, width: int) -> Iterator[Line]:
    """The page as text of so many columns."""
    yield from (("bold", line) for line in _wrapped(f"{page.name}: {page.summary}", "", width))
    for paragraph, is_verbatim in _paragraphs(page.text):
        yield "", ""
        yield from (("", line) for line in (paragraph.splitlines() if is_verbatim else _wrapped(paragraph, "", width)))
    yield from _headed("Keys", [line for key in page.keys for line in _key_lines(key, _STEP, width)])
    if page.capabilities is None:
        yield from _headed("Capabilities", [("", f"{_STEP}any, which are passed on")])
    else:
        yield from _headed("Capabilities", list(_meanings(page.capabilities, width)))
    yield from _headed("CNI_ARGS", list(_meanings(page.arguments, width)))
    yield from _headed("Versions of the specification", [("", _STEP + ", ".join(page.versions))])
    for name, text in page.examples.items():
        yield from _headed(f"Example: {name}", [("", _STEP + line) for line in text.splitlines()])


def _headed(title: str, body: list[Line]) -> Iterator[Line]:
    if body:
        yield "", ""
        yield "bold", title
        yield from body


def _key_lines(key: Key, indent: str, width: int) -> Iterator[Line]:
    default = "" if key.default is None else f" = {json.dumps(key.default)}"
    yield "cyan", f"{indent}{key.name}: {key.kind}{default}"
    for words in filter(None, (key.meaning, key.constraint)):
        yield from (("", line) for line in _wrapped(words, indent + 2 * _STEP, width))
    for inner in key.keys:
        yield from _key_lines(inner, indent + 2 * _STEP, width)


def _meanings(words: dict[str, str], width: int) -> Iterator[Line]:
    for name, meaning in words.items():
        yield "cyan", _STEP + name
        yield from (("", line) for line in _wrapped(meaning, 3 * _STEP, width))


def _wrapped(words: str, indent: str, width: int) -> list[str]:
    lines = textwrap.wrap(" ".join(words.split()), width, initial_indent=indent, subsequent_indent=indent)
    return lines or [indent]


# ---- Markdown ----


def markdown(page: Page) -> str:
    """The page for the reference documentation."""
    parts = [f"# {page.name}", _sentence(page.summary)]
    parts += [text if is_verbatim else " ".join(text.split()) for text, is_verbatim in _paragraphs(page.text)]
    parts.append(f"{PLACES[page.place].removesuffix('s')}. Versions of the specification: {', '.join(page.versions)}.")
    parts += ["## Keys", "| Key | Type | Default | Meaning |\n|---|---|---|---|\n" + "\n".join(_rows(page.keys, ""))]
    if page.capabilities is None:
        parts += ["## Capabilities", "Any; they are passed on."]
    else:
        parts += _list("## Capabilities", page.capabilities)
    parts += _list("## CNI_ARGS", page.arguments)
    if page.examples:
        parts.append("## Examples")
        parts += [f"`{name}`:\n\n```json\n{text.rstrip()}\n```" for name, text in page.examples.items()]
    return "\n\n".join(parts) + "\n"


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _rows(keys: list[Key], path: str) -> Iterator[str]:
    for key in keys:
        default = "" if key.default is None else f"`{json.dumps(key.default)}`"
        meaning = "; ".join(filter(None, (key.meaning, key.constraint))).replace("|", "\\|")
        name = f"{path}{key.name}"
        yield f"| `{name}` | {key.kind} | {default} | {meaning} |"
        yield from _rows(key.keys, f"{name}[]." if key.kind.startswith("list") else f"{name}.")


def _list(title: str, words: dict[str, str]) -> list[str]:
    return [title, "\n".join(f"- `{name}`: {meaning}" for name, meaning in words.items())] if words else []
