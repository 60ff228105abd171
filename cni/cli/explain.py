"""``cni explain``: list the plugins, or print the keys, capabilities and examples of one."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from cni.cli.terminal import say
from cni.explain import page, schema
from cni.explain.catalog import PLACES, CatalogEntry, plugins
from cni.validate.findings import closest

_MAX_WIDTH = 100  # columns: longer lines are hard to read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni explain``."""
    parser.add_argument("plugin", nargs="?", metavar="PLUGIN", help="the name of a plugin; without it, all are listed")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--markdown", action="store_true", help="print a page of documentation")
    output.add_argument("--schema", action="store_true", help="print the JSON Schema; without PLUGIN, that of lists")
    output.add_argument("--schemas", type=Path, metavar="DIR", help="write all JSON Schemas into a folder")


def run(arguments: argparse.Namespace) -> int:
    """Explain a plugin, or list all. Return 0, or 1 with a message on stderr."""
    entries, broken = plugins()
    for name, problem in broken.items():
        print(f"cni explain: plugin {name} cannot be loaded: {problem}", file=sys.stderr)
    if arguments.schemas:
        return _write_schemas(arguments.schemas, entries)
    if not arguments.plugin:
        return _explain_all(arguments, entries)
    if arguments.plugin not in entries:
        likely = closest(arguments.plugin, entries)
        hint = f"; {likely} is probably meant" if likely else ""
        print(f"cni explain: there is no plugin {arguments.plugin}{hint}", file=sys.stderr)
        return 1
    return _explain(arguments, entries[arguments.plugin], entries)


def _explain(arguments: argparse.Namespace, entry: CatalogEntry, entries: dict[str, CatalogEntry]) -> int:
    if arguments.schema:
        _print_json(schema.of_plugin(entry, entries.values()))
    elif arguments.json:
        _print_json(page.Page(entry).as_dict())
    elif arguments.markdown:
        print(page.markdown(page.Page(entry)), end="")
    else:
        width = min(shutil.get_terminal_size((_MAX_WIDTH, 0)).columns, _MAX_WIDTH)
        for style, line in page.lines(page.Page(entry), width):
            say((line, style))
    return 0


def _explain_all(arguments: argparse.Namespace, entries: dict[str, CatalogEntry]) -> int:
    if arguments.schema:
        _print_json(schema.of_lists(entries.values()))
    elif arguments.json:
        _print_json(
            [{"name": entry.name, "place": entry.plugin.place, "summary": entry.summary} for entry in entries.values()]
        )
    elif arguments.markdown:
        print("\n".join(f"- `{entry.name}`: {entry.summary}" for entry in entries.values()))
    else:
        _list(entries)
    return 0


def _list(entries: dict[str, CatalogEntry]) -> None:
    width = max(map(len, entries))
    for place, title in PLACES.items():
        group = [entry for entry in entries.values() if entry.plugin.place == place]
        if group:
            say((title, "bold"))
        for entry in group:
            say((f"  {entry.name:{width}}", "cyan"), f"  {entry.summary}")


def _write_schemas(folder: Path, entries: dict[str, CatalogEntry]) -> int:
    schemas = {schema.LISTS: schema.of_lists(entries.values())}
    schemas |= {name: schema.of_plugin(entry, entries.values()) for name, entry in entries.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in schemas.items():
            path = folder / f"{name}.json"
            path.write_text(_json(content))
            print(path)
    except OSError as error:
        print(f"cni explain: {error}", file=sys.stderr)
        return 1
    return 0


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + os.linesep


def _print_json(value: Any) -> None:
    print(_json(value), end="")
