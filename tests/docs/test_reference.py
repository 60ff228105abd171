"""Pages that are written by hand name all that there is."""

from __future__ import annotations

import re
from pathlib import Path

from cni.cli.main import COMMANDS
from cni.spec import errors

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("cni", "plugins") for path in sorted((ROOT / folder).glob("**/*.py"))]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def test_every_error_code_is_told() -> None:
    codes = {name: value for name, value in vars(errors).items() if name.isupper() and type(value) is int}
    rows = re.findall(r"^\| (\d+) \| `(\w+)`", page("reference/errors.md"), re.MULTILINE)
    assert {name: int(code) for code, name in rows} | {"UNKNOWN": 0} == codes


def test_every_environment_variable_is_told() -> None:
    read = {
        name
        for path in SOURCES
        for name in re.findall(r'environ(?:\.get\(|\[|\.setdefault\()"([A-Z_]+)"', path.read_text())
    }
    told = set(re.findall(r"`([A-Z_]+)`", page("reference/environment.md")))
    assert read - {"PATH"} <= told


def test_the_map_names_every_module() -> None:
    words = set(re.findall(r"\w+", page("explanation/architecture.md")))
    commands = {name for name, _, _ in COMMANDS} | {"cnitool"}  # one module each
    modules = {path.stem for path in (ROOT / "cni").rglob("[a-z]*.py")} - commands
    packages = {path.parent.name for path in (ROOT / "cni").glob("[a-z]*/__init__.py")}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name.isalpha()}
    assert modules | packages | folders <= words


def test_the_tree_in_contributing_names_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    packages = {path.parent.name for path in (ROOT / "cni").glob("[a-z]*/__init__.py")}
    assert set(re.findall(r"^    (\w+)/ ", text, re.MULTILINE)) == packages
    tests = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name.isalpha()}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == tests


def test_every_plugin_and_command_has_a_line_where_it_should() -> None:
    readme = (ROOT / "README.md").read_text()
    schemas = {path.stem for path in (ROOT / "docs/schemas").glob("*.json")}
    assert {name for name in schemas if f"`{name}`" not in readme} == {"conflist"}
    assert {name for name in schemas if f"[{name}](" not in page("reference/schemas.md")} == {"conflist"}
