"""``cni explain``: what plugins are there, and what their configurations may hold."""

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
from cni.explain.known import PLACES, Known, plugins
from cni.validate.findings import meant

_WIDEST = 100  # columns of text that are read with ease


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni explain``."""
    parser.add_argument("plugin", nargs="?", metavar="PLUGIN", help="the plugin's name; without one all are listed")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print it for a program to read")
    shape.add_argument("--markdown", action="store_true", help="print it as a page of documentation")
    shape.add_argument("--schema", action="store_true", help="print the JSON Schema; without PLUGIN that of lists")
    shape.add_argument("--schemas", type=Path, metavar="DIR", help="write the JSON Schemas of all into a folder")


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0, or 1 with words on stderr."""
    found, broken = plugins()
    for name, problem in broken.items():
        print(f"cni explain: plugin {name} cannot be loaded: {problem}", file=sys.stderr)
    if arguments.schemas:
        return _write(arguments.schemas, found)
    if not arguments.plugin:
        return _explain_all(arguments, found)
    if arguments.plugin not in found:
        likely = meant(arguments.plugin, found)
        hint = f"; {likely} is probably meant" if likely else ""
        print(f"cni explain: there is no plugin {arguments.plugin}{hint}", file=sys.stderr)
        return 1
    return _explain(arguments, found[arguments.plugin], found)


def _explain(arguments: argparse.Namespace, known: Known, found: dict[str, Known]) -> int:
    if arguments.schema:
        _print_json(schema.of_plugin(known, found.values()))
    elif arguments.json:
        _print_json(page.Page(known).as_dict())
    elif arguments.markdown:
        print(page.markdown(page.Page(known)), end="")
    else:
        width = min(shutil.get_terminal_size((_WIDEST, 0)).columns, _WIDEST)
        for style, line in page.lines(page.Page(known), width):
            say((line, style))
    return 0


def _explain_all(arguments: argparse.Namespace, found: dict[str, Known]) -> int:
    if arguments.schema:
        _print_json(schema.of_lists(found.values()))
    elif arguments.json:
        _print_json([{"name": one.name, "place": one.plugin.place, "summary": one.summary} for one in found.values()])
    elif arguments.markdown:
        print("\n".join(f"- `{one.name}`: {one.summary}" for one in found.values()))
    else:
        _list(found)
    return 0


def _list(found: dict[str, Known]) -> None:
    width = max(map(len, found))
    for place, title in PLACES.items():
        there = [one for one in found.values() if one.plugin.place == place]
        if there:
            say((title, "bold"))
        for one in there:
            say((f"  {one.name:{width}}", "cyan"), f"  {one.summary}")


def _write(folder: Path, found: dict[str, Known]) -> int:
    texts = {schema.LISTS: schema.of_lists(found.values())}
    texts |= {name: schema.of_plugin(one, found.values()) for name, one in found.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            path = folder / f"{name}.json"
            path.write_text(_text(text))
            print(path)
    except OSError as error:
        print(f"cni explain: {error}", file=sys.stderr)
        return 1
    return 0


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + os.linesep


def _print_json(value: Any) -> None:
    print(_text(value), end="")
