"""Every block of code in the documentation is run or checked, from each page's top to its bottom (see blocks.py).

`file=` writes a block to a file of the page's node, `from=` says which file of the tree it is a part of, `status=1`
that the last command answers no; `also="--count 2"` has words put after each command, for what would take an hour.
`unchecked="why"` is the only way not to be checked.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import tomllib
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from tests.docs.blocks import ROOT, Block, Page, commands

if TYPE_CHECKING:
    from pathlib import Path

    from tests.docs.conftest import Desk

# Made of the plugins' tables and of the commands' parsers; the examples there have tests of their own.
GENERATED = [ROOT / "docs/reference" / folder for folder in ("plugins", "commands")]


def _pages() -> list[Path]:
    """Those with code."""
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
    return [path for path in pages if path.parent not in GENERATED and any(Page(path).blocks())]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("desk", _pages(), ids=_name, indirect=True)
def test_page(desk: Desk, request: pytest.FixtureRequest) -> None:
    for need in desk.page.needs:
        request.getfixturevalue(f"needs_{need}")
    for block in desk.page.blocks():
        place = f"{_name(desk.page.path)}:{block.line}"
        if wrong := problem(desk, block):
            pytest.fail(f"{place}: {wrong}", pytrace=False)


def problem(desk: Desk, block: Block) -> str:
    """Return what is wrong with it, "" for nothing."""
    try:
        _try(desk, block)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _try(desk: Desk, block: Block) -> None:
    assert block.language, "a block without a language is neither run nor checked"
    if "unchecked" in block.attributes:
        assert len(block.attributes["unchecked"].split()) > 2, "unchecked= says why"
        return
    if "file" in block.attributes:
        desk.shell.write(block.attributes["file"], block.text)
    assert block.language in CHECKS, f"{block.language} is neither run nor checked"
    CHECKS[block.language](desk, block)


def _run(desk: Desk, block: Block) -> None:
    *others, last = commands(block.text)
    for command in [*others, last]:
        status = int(block.attributes.get("status", 0)) if command is last else 0
        also = f" {block.attributes['also']}" if "also" in block.attributes else ""
        output = desk.shell.run(command.text + also, status)
        shown = "\n".join(command.output)
        assert command.is_answered_by(output), f"{command.text}\nprinted\n{output}\nand not\n{shown}"


def _run_python(desk: Desk, block: Block) -> None:
    compile(block.text, str(desk.page.path), "exec")
    if "from" in block.attributes:
        _is_part(block.text, (ROOT / block.attributes["from"]).read_text())
    elif "file" not in block.attributes:
        script = desk.folder / f".line-{block.line}.py"
        script.write_text(block.text)
        desk.shell.run(f"python3 {script}")


def _is_part(text: str, whole: str) -> None:
    """Its parts are in the whole, one behind the other; `...` on a line of its own is between them."""
    for part in re.split(r"(?m)^ *\.\.\.\n", text):
        assert part in whole, f"not found, or not in this order:\n{part}"
        whole = whole.partition(part)[2]


def _check_json(desk: Desk, block: Block) -> None:
    value = json.loads(block.text)
    if not isinstance(value, dict):
        return
    if "plugins" in value or {"name", "type"} <= value.keys():
        _validate(desk, block)
    elif (schema := ROOT / f"docs/schemas/{value.get('type')}.json").exists():
        jsonschema.validate(value, json.loads(schema.read_text()))


def _validate(desk: Desk, block: Block) -> None:
    suffix = "conflist" if "plugins" in json.loads(block.text) else "conf"
    file = block.attributes.get("file", str(desk.folder / f".line-{block.line}.{suffix}"))
    desk.shell.write(file, block.text)
    told = json.loads(desk.shell.run(f"cni validate --json {file} || true"))
    found = [f"{one['path']}: {one['message']}" for one in told["findings"] if one["rule"] != "missing-plugin"]
    assert not found, "\n".join(found)


def _check_unit(desk: Desk, block: Block) -> None:
    file = block.attributes["file"]
    unit = os.path.dirname(file).removesuffix(".d") if file.endswith(".conf") else file
    desk.shell.run(f"systemd-analyze verify {unit}")


def _check_yaml(desk: Desk, block: Block) -> None:
    for document in yaml.safe_load_all(block.text):
        for expression in _expressions(document):
            _is_query(expression)


def _expressions(value: Any) -> list[str]:
    """The queries of Prometheus in its rules."""
    if isinstance(value, list):
        return [expression for inner in value for expression in _expressions(inner)]
    if isinstance(value, dict):
        return ([value["expr"]] if "expr" in value else []) + _expressions(list(value.values()))
    return []


def _is_query(text: str) -> None:
    """Its brackets match, and it asks for what the agent has: the metrics of the page, which test_metrics.py proves."""
    brackets = re.sub(r'"[^"]*"|[^][(){}]', "", text)
    while (inner := re.sub(r"\(\)|\[\]|{}", "", brackets)) != brackets:
        brackets = inner
    assert not brackets, f"brackets that don't match: {text}"
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bcni_\w+", text)}
    page = (ROOT / "docs/howto/metrics.md").read_text()
    assert all(re.search(rf"^\| `{name}\b", page, re.MULTILINE) for name in names), names


CHECKS = {
    "console": _run,
    "python": _run_python,
    "json": _check_json,
    "toml": lambda _, block: tomllib.loads(block.text),
    "ini": lambda _, block: configparser.ConfigParser(strict=False).read_string(block.text),
    "yaml": _check_yaml,
    "systemd": _check_unit,
    "promql": lambda _, block: _is_query(block.text),
}
