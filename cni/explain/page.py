"""The page of a plugin as data, text or Markdown: its purpose, keys, capabilities, arguments and examples."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from cni.explain.catalog import PLACES, CatalogEntry
from cni.explain.common_keys import GIVEN, capabilities, table_of
from cni.explain.examples import examples_of
from cni.skel.config import Config, Field, Settings

# Keys that every plugin has and no page repeats, and keys that only plugins with an interface use.
_COMMON = [field for field in Config.fields() if field.key not in ("ipam", "dns")]
_OF_INTERFACES = (Config.ipam, Config.dns)
_INDENT = "  "


class Key:
    """A key of a table. ``keys`` are the keys of the objects that it holds."""

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
        """Return everything for a program."""
        described = {
            "key": self.name,
            "type": self.kind,
            "default": self.default,
            "constraint": self.constraint,
            "meaning": self.meaning,
        }
        return {**described, "keys": [key.as_dict() for key in self.keys]} if self.keys else described


class Page:
    """The documentation of a plugin."""

    def __init__(self, entry: CatalogEntry) -> None:
        plugin = entry.plugin
        self.name = entry.name
        self.summary = entry.summary
        self.text = entry.text
        self.place = plugin.place
        self.versions = plugin.versions
        self.keys = _keys(plugin.config, has_interface=plugin.place in ("interface", ""))
        self.capabilities = capabilities(plugin)
        self.arguments = plugin.arguments
        self.examples = examples_of(entry.name)

    def as_dict(self) -> dict[str, Any]:
        """Return everything for a program."""
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
    skipped = _COMMON if has_interface else [*_COMMON, *_OF_INTERFACES]
    return [Key(field) for field in table.fields() if field not in skipped and field.key not in GIVEN]


def _paragraphs(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each paragraph, and True if its line breaks are to be kept."""
    for paragraph in filter(None, text.split("\n\n")):
        yield paragraph, paragraph.startswith((" ", "- ", "1. "))


# ---- text ----

Line = tuple[str, str]  # the name of a style in rich, and the text


def lines(page: Page, width: int) -> Iterator[Line]:
    """Yield the lines of the page as text that is `width` columns wide."""
    yield from (("bold", line) for line in _wrapped(f"{page.name}: {page.summary}", "", width))
    for paragraph, is_verbatim in _paragraphs(page.text):
        yield "", ""
        yield from (("", line) for line in (paragraph.splitlines() if is_verbatim else _wrapped(paragraph, "", width)))
    yield from _headed("Keys", [line for key in page.keys for line in _key_lines(key, _INDENT, width)])
    if page.capabilities is None:
        yield from _headed("Capabilities", [("", f"{_INDENT}any; they are passed on")])
    else:
        yield from _headed("Capabilities", list(_meanings(page.capabilities, width)))
    yield from _headed("CNI_ARGS", list(_meanings(page.arguments, width)))
    yield from _headed("Versions of the specification", [("", _INDENT + ", ".join(page.versions))])
    for name, text in page.examples.items():
        yield from _headed(f"Example: {name}", [("", _INDENT + line) for line in text.splitlines()])


def _headed(title: str, body: list[Line]) -> Iterator[Line]:
    if body:
        yield "", ""
        yield "bold", title
        yield from body


def _key_lines(key: Key, indent: str, width: int) -> Iterator[Line]:
    default = "" if key.default is None else f" = {json.dumps(key.default)}"
    yield "cyan", f"{indent}{key.name}: {key.kind}{default}"
    for words in filter(None, (key.meaning, key.constraint)):
        yield from (("", line) for line in _wrapped(words, indent + 2 * _INDENT, width))
    for inner in key.keys:
        yield from _key_lines(inner, indent + 2 * _INDENT, width)


def _meanings(words: dict[str, str], width: int) -> Iterator[Line]:
    for name, meaning in words.items():
        yield "cyan", _INDENT + name
        yield from (("", line) for line in _wrapped(meaning, 3 * _INDENT, width))


def _wrapped(words: str, indent: str, width: int) -> list[str]:
    lines = textwrap.wrap(" ".join(words.split()), width, initial_indent=indent, subsequent_indent=indent)
    return lines or [indent]


# ---- Markdown ----


def markdown(page: Page) -> str:
    """Return the page in Markdown, for the reference."""
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
