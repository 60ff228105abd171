"""Test what is run and compared: a page that is wrong is found out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.docs import test_pages
from tests.docs.blocks import Block, Page, commands


class Shell:
    """Prints the same for every command."""

    def run(self, text: str, status: int = 0) -> str:
        assert status == 0, "it ended with 0"
        return "one 1\ntwo  2\nthree 3\n"


DESK: Any = SimpleNamespace(shell=Shell(), page=SimpleNamespace(path=Path("page.md")))


def problem(info: str, text: str) -> str:
    return test_pages.problem(DESK, Block(info, text, 1))


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "one 1\ntwo 2\nthree 3",
        "...",
        "one 1\n...",
        "...\ntwo  ...\n...",
        "one 1\ntwo 2\n...\nthree 3\n...",
        "o...e 1\n...",
    ],
)
def test_output_that_comes(shown: str) -> None:
    assert problem("console", f"$ list\n{shown}\n" if shown else "$ list\n") == ""


@pytest.mark.parametrize(
    "shown", ["one 1", "one 1\nthree 3\ntwo 2", "one 1\ntwo 3\nthree 3", "...\ntwo", "one 1\n\n..."]
)
def test_output_that_does_not_come(shown: str) -> None:
    assert "and not" in problem("console", f"$ list\n{shown}\n")


def test_another_exit_status() -> None:
    assert "ended with" in problem("console status=1", "$ list\n")


def test_further_lines_of_a_command() -> None:
    first, second = commands("$ cat <<E\n> a\n>\n> b\n> E\n> c\n$ next\n> x\ny\n> z\n")
    assert (first.text, first.output) == ("cat <<E\na\n\nb\nE\nc", [])
    assert (second.text, second.output) == ("next\nx", ["y", "> z"])


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ("", "make test\n"),
        ("sh", "make test\n"),
        ("console", "make test\n"),
        ('text unchecked="no"', "a map\n"),
        ("json", "{"),
        ("json", '{"type": "bridge", "mtu": "x"}'),
        ("toml", "a = "),
        ("yaml", "a: ["),
        ("yaml", "rules: [{expr: 'rate(cni_nothing[5m])'}]"),
        ("promql", "rate(cni_errors_total[5m)]"),
        ("python", "import"),
        ("python from=docs/examples/note.py", "def add(request):\n"),
    ],
)
def test_what_is_refused(info: str, text: str) -> None:
    assert problem(info, text)


def test_blocks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "---\nneeds: a, b_c\n---\n# T\n\n```json file=x\n1\n```\n\n    indented\n\n- x\n\n  ```{toctree}\n  ```\n"
    )
    read = Page(page)
    assert read.needs == ["a", "b_c"]
    assert [(block.language, block.attributes, block.line) for block in read.blocks()] == [
        ("json", {"file": "x"}, 6),
        ("", {}, 10),
    ]
    page.write_text("<!-- needs: a -->\n# T\n")
    assert Page(page).needs == ["a"]
