"""Sphinx extension: generate pages of the reference from the plugins' tables and the commands' parsers."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni import kernel
from cni.cli.cnitool import USAGE
from cni.cli.main import COMMANDS, main
from cni.explain import page
from cni.explain.catalog import PLACES, plugins

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx: the pages are written before Sphinx searches for sources."""
    document_core()
    app.connect("builder-inited", lambda app: write(Path(app.srcdir, "reference")))
    return {"parallel_read_safe": True}


def document_core() -> None:
    """Replace the core's classes in `cni.kernel` by those of its stub, where autodoc finds docstrings and types."""
    path = Path(kernel.__path__[0]).parent / "_core.pyi"
    code = compile(path.read_text(), path, "exec", flags=annotations.compiler_flag)
    stub: dict[str, Any] = {"__name__": kernel.__name__}
    exec(code, stub)
    vars(kernel).update({name: stub[name] for name in kernel.__all__})


def write(reference: Path) -> None:
    """Write the folders `plugins` and `commands`: a page for each plugin or command, and an index.

    Unchanged files keep their time, so that Sphinx does not read them again.
    """
    for name, pages in (("plugins", dict(plugin_pages())), ("commands", dict(command_pages()))):
        folder = reference / name
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.md"):
            if path.stem not in pages:
                path.unlink()
        for stem, text in pages.items():
            path = folder / f"{stem}.md"
            if not path.exists() or path.read_text() != text:
                path.write_text(text)


def _index(title: str, about: str, sections: dict[str, list[tuple[str, str, str]]]) -> str:
    """Return a page of links; `sections` maps headings to rows of (file, title, summary)."""
    parts = [f"# {title}", about]
    for heading, rows in sections.items():
        parts += [f"## {heading}"] if heading else []
        table = [f"| [{name}]({file}) | {summary} |" for file, name, summary in rows]
        parts.append("\n".join(["| | |", "|---|---|", *table]))
    files = [file.removesuffix(".md") for rows in sections.values() for file, _, _ in rows]
    parts.append("\n".join(["```{toctree}", ":hidden:", "", *files, "```"]))
    return "\n\n".join(parts) + "\n"


# ---- plugins ----


def plugin_pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page. Raises RuntimeError if a plugin cannot be loaded."""
    entries, broken = plugins()
    if broken:
        raise RuntimeError(f"generate the pages of plugins: these cannot be loaded: {broken}")
    for name, entry in entries.items():
        yield name, page.markdown(page.Page(entry))
    sections = {
        title: [(f"{name}.md", name, entry.summary) for name, entry in entries.items() if entry.plugin.place == place]
        for place, title in PLACES.items()
    }
    about = "After this page you can find the keys of every plugin. `cni explain PLUGIN` prints the same in a terminal."
    yield "index", _index("Plugins", about, {title: rows for title, rows in sections.items() if rows})


# ---- commands ----


def command_pages() -> Iterator[tuple[str, str]]:
    """Yield the name of each page and its text, which is what the command prints for --help."""
    for name, _, _ in COMMANDS:
        yield f"cni-{name}", "\n\n".join([f"# cni {name}", *map(_block, _help(name))]) + "\n"
    yield "cnitool", f"# cnitool\n\n{_block(USAGE)}\n"
    rows = [(f"cni-{name}.md", f"cni {name}", f"{meaning.capitalize()}.") for name, _, meaning in COMMANDS]
    rows.append(("cnitool.md", "cnitool", "Run a network configuration on a network namespace."))
    about = (
        "After this page you can find the options of every command. `--help` and the manual pages have the same text. "
        "The exit status is 0 for success, 1 for a negative answer or a failure, and 2 for a wrong command line."
    )
    yield "index", _index("Commands", about, {"": rows})


def _help(*words: str) -> Iterator[str]:
    """Yield the help of a command and of the commands below it."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    yield printed.getvalue()
    for command in re.findall(r"^    (\w+)", printed.getvalue(), re.MULTILINE):
        yield from _help(*words, command)


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"
