"""A page as what a reader would do with it: its blocks of code, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
_DIRECTIVES = ("{toctree}", "{include}", "{eval-rst}")  # the site's own, and no code
_NEEDS = re.compile(r"(?:---\n|<!-- )needs: *([\w, ]+?)(?: -->|\n---)\n")  # at the beginning of a page


class Block:
    """A fenced block: the language and the attributes of its info string, and where it is."""

    def __init__(self, info: str, text: str, line: int) -> None:
        self.language, *attributes = shlex.split(info) or [""]
        self.attributes = dict(attribute.split("=", 1) for attribute in attributes)
        self.text = text
        self.line = line


class Page:
    """A page of the documentation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = path.read_text()
        needs = _NEEDS.match(self._text)
        self.needs = [need.strip() for need in needs.group(1).split(",")] if needs else []

    def blocks(self) -> Iterator[Block]:
        """All code; an indented block has no language."""
        for token in MarkdownIt().parse(self._text):
            if token.type in ("fence", "code_block") and not token.info.startswith(_DIRECTIVES):
                assert token.map
                yield Block(token.info, token.content, token.map[0] + 1)


class Command:
    """A command of a console block, and the output that is shown below it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.output: list[str] = []

    def is_answered_by(self, output: str) -> bool:
        """Return whether that is the output shown: `...` stands for anything; no output shown, for any."""
        if not self.output:
            return True
        pattern = "".join(map(_pattern, self.output))
        return (
            re.fullmatch(pattern, "".join(f"{_plain(line)}\n" for line in output.strip("\n").split("\n"))) is not None
        )


def commands(console: str) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    for line in console.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:]))
        elif (line == ">" or line.startswith("> ")) and found and not found[-1].output:
            found[-1].text += f"\n{line[2:]}"
        else:
            assert found, f"a console block starts with a command after `$ `, not with {line!r}"
            found[-1].output.append(line)
    return found


def _plain(line: str) -> str:
    """Without what a column's width makes of it."""
    return re.sub(r"\s+", " ", line).strip()


def _pattern(line: str) -> str:
    line = _plain(line)
    return r"(?:.*\n)*?" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + r"\n"
