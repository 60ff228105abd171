"""Imports point down: from the commands over services and libraries to the plugins and what they are written with."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import cni
from cni.invoke import bundle

ROOT = Path(cni.__path__[0]).parent

# From the top. A package imports itself and what stands below it. "cni" is the modules directly in that package: its
# names are for users, and __main__ is the command.
LAYERS = (
    "cni",
    "cni.cli",
    "cni.doctor",
    "cni.bench",
    "cni.validate",
    "cni.install",
    "cni.agent",
    "cni.node",
    "cni.explain",
    "cni.runtime",
    "cni_plugins",
    *(f"cni.{package}" for package in reversed(bundle.HOT)),
    "cni._core",
    "cni._nftables",
)
EVERYWHERE = {"cni.__version__", "cni.lazy_names"}


def modules(root: Path) -> dict[str, Path]:
    """Return the files of all modules below `root`, by the modules' names."""
    paths = [path for top in ("cni", "cni_plugins") for path in sorted(root.glob(f"{top}/**/*.py"))]
    parts = {path: path.relative_to(root).with_suffix("").parts for path in paths}
    return {".".join(names).removesuffix(".__init__"): path for path, names in parts.items()}


def imported_by(path: Path) -> Iterator[str]:
    """Yield what a module imports of ours, in functions too; not what is for type checkers alone."""
    for node in _executed(parse(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively, which this test does not follow"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in ("cni", "cni_plugins"))


@cache
def parse(path: Path) -> ast.AST:
    return ast.parse(path.read_text())


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            child = ast.Module(child.orelse, [])  # noqa: PLW2901
        yield child
        yield from _executed(child)


def layer(name: str) -> int:
    """Return the place in LAYERS of a module, or of a name in one."""
    package = ".".join(name.split(".")[:2]) if name.startswith("cni.") else name.partition(".")[0]
    return LAYERS.index(package if package in LAYERS else "cni")


def plugin_of(name: str) -> str:
    """Return the plugin that a module belongs to, such as "main.bridge"; "" if it belongs to none."""
    top, *parts = name.split(".")
    return ".".join(parts[:2]) if top == "cni_plugins" else ""


def upward(module: str, path: Path) -> list[str]:
    """Return the imports of a module that point up."""
    own = layer(module)
    return [name for name in imported_by(path) if name not in EVERYWHERE and layer(name) < own]


def of_other_plugins(module: str, path: Path) -> list[str]:
    """Return the imports of a plugin's module that belong to another plugin."""
    own = plugin_of(module)
    return [name for name in imported_by(path) if own and plugin_of(name) not in ("", own)]


def unplaced(root: Path) -> set[str]:
    """Return the packages below `root` that LAYERS does not name."""
    return {f"cni.{path.parent.name}" for path in root.glob("cni/*/*.py")} - set(LAYERS)


ALL = modules(ROOT)
for path in ALL.values():  # now: Python 3.11 counts the depth of a tree wrong if another thread parses meanwhile
    parse(path)


@pytest.mark.parametrize("module", ALL)
def test_imports_point_down(module: str) -> None:
    assert upward(module, ALL[module]) == []


@pytest.mark.parametrize("module", [name for name in ALL if plugin_of(name)])
def test_no_plugin_imports_another(module: str) -> None:
    assert of_other_plugins(module, ALL[module]) == []


def test_every_package_has_its_place() -> None:
    assert unplaced(ROOT) == set()


# The test itself, on trees that are wrong


def made(root: Path, module: str, text: str) -> tuple[str, Path]:
    """Write a module below `root`, and return it as modules() finds it."""
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    found = modules(root)
    return module.removesuffix(".__init__"), found[module.removesuffix(".__init__")]


@pytest.mark.parametrize(
    ("module", "text", "faults"),
    [
        ("cni.node.pools", "from cni.cli import terminal\n", ["cni.cli.terminal"]),
        ("cni.node.pools", "from cni.cli.gc import f, g\n", ["cni.cli.gc.f", "cni.cli.gc.g"]),
        ("cni.node.pools", "import cni.cli.terminal as terminal\n", ["cni.cli.terminal"]),
        ("cni.node.pools", "def f():\n    if f:\n        from cni.doctor import host\n", ["cni.doctor.host"]),
        ("cni.spec.__init__", "from cni.system.undo import Undo\n", ["cni.system.undo.Undo"]),
        ("cni.kernel.links", "from cni import CNI\n", ["cni.CNI"]),
        ("cni.kernel.links", "import cni\nfrom cni.__main__ import main\n", ["cni", "cni.__main__.main"]),
        ("cni.skel.plugin", "from cni_plugins.main import bridge\n", ["cni_plugins.main.bridge"]),
        ("cni_plugins.main.tap", "from cni.runtime import cache\n", ["cni.runtime.cache"]),
        ("cni_plugins.main.tap", "try:\n    import cni.runtime\nexcept ImportError:\n    pass\n", ["cni.runtime"]),
        ("cni.node.pools", "from cni import __version__, _core\nfrom cni.node import rules\nimport json\n", []),
        ("cni.node.pools", "if TYPE_CHECKING:\n    from cni.cli import terminal\n", []),
        ("cni.node.pools", "if TYPE_CHECKING:\n    x = 1\nelse:\n    from cni import cli\n", ["cni.cli"]),
        ("cni.__main__", "from cni.cli.main import main\n", []),
        ("cni_plugins.main.tap", "from cni import _nftables\nfrom cni.skel.plugin import Plugin\n", []),
    ],
)  # fmt: skip
def test_an_import_that_points_up_is_found(tmp_path: Path, module: str, text: str, faults: list[str]) -> None:
    assert upward(*made(tmp_path, module, text)) == faults


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("from cni_plugins.main import bridge\n", ["cni_plugins.main.bridge"]),
        ("def f():\n    import cni_plugins.ipam.dhcp.link\n", ["cni_plugins.ipam.dhcp.link"]),
        ("from cni_plugins.ipam.host_local import ranges\nfrom cni.skel import ipam\n", []),
    ],
)
def test_an_import_of_another_plugin_is_found(tmp_path: Path, text: str, faults: list[str]) -> None:
    assert of_other_plugins(*made(tmp_path, "cni_plugins.ipam.host_local.store", text)) == faults


def test_a_package_without_a_place_is_found(tmp_path: Path) -> None:
    made(tmp_path, "cni.attic.box", "")
    made(tmp_path, "cni.node.pools", "")
    assert unplaced(tmp_path) == {"cni.attic"}
    assert upward(*made(tmp_path, "cni.cli.gc", "from cni.attic import box\n")) == ["cni.attic.box"]


def test_a_relative_import_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="imports relatively"):
        upward(*made(tmp_path, "cni.spec.ip", "from ..cli import terminal\n"))
