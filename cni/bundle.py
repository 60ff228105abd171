"""One file with all the code that plugins import.

Python finds a module with half a dozen system calls and reads it from a file of its own; thirty of them are a tenth
of a plugin's time. A wheel, which is for one version of Python anyway, has them compiled in one file, without
docstrings. Each is decoded when it is imported. Without the file everything works as usual: so it is in a tree that
is built in place.

The launcher executes this module's own code from the file, with nothing imported (``src/_cnicore/launcher.c``).
"""

from __future__ import annotations

import marshal
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType, ModuleType

# In the package's folder, named after the version of Python as compiled files are.
NAME = f"_bundle.{sys.implementation.cache_tag}"


class Finder:
    """Finds the modules of a bundle: name -> (its file below ``folder``, its code as ``marshal`` writes it)."""

    def __init__(self, modules: dict[str, tuple[str, bytes]], folder: str) -> None:
        self.modules = modules
        self.folder = folder

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Where ``name`` is, if it is in the bundle."""
        if name not in self.modules:
            return None
        origin = f"{self.folder}/{self.modules[name][0]}"
        package = origin.endswith("/__init__.py")
        spec = ModuleSpec(name, self, origin=origin, is_package=package)  # type: ignore[arg-type]
        spec.has_location = True
        if package:  # modules that are not in the bundle are found as usual
            spec.submodule_search_locations = [origin[: -len("/__init__.py")]]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Python's own kind of module will do."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code in it."""
        exec(marshal.loads(self.modules[module.__name__][1]), vars(module))  # noqa: S102, S302 - the package's own


def install(modules: dict[str, tuple[str, bytes]], folder: str) -> None:
    """Let Python look here first."""
    sys.meta_path.insert(0, Finder(modules, folder))


def write(folder: str, names: Iterable[str]) -> None:
    """Make the bundle of the modules with these file names (``cni/skel.py``) below ``folder``."""
    modules = {}
    for name in names:
        parts = name.removesuffix(".py").removesuffix("/__init__")
        modules[parts.replace("/", ".")] = (name, marshal.dumps(_compiled(folder, name)))
    with open(f"{folder}/cni/{NAME}", "wb") as file:
        file.write(marshal.dumps((_compiled(folder, "cni/bundle.py"), modules)))


def _compiled(folder: str, name: str) -> CodeType:
    """A module's code without what is only for readers and type checkers: docstrings, annotations, their imports."""
    import ast

    class Lean(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
            node.returns = None
            return self.generic_visit(node)

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_arg(self, node: ast.arg) -> ast.AST:
            node.annotation = None
            return node

        def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
            if node.value is None:
                return ast.Pass()
            return self.generic_visit(ast.Assign([node.target], node.value))

        def visit_If(self, node: ast.If) -> ast.AST:
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                node.body, node.test = [ast.Pass()], ast.Constant(False)
            return self.generic_visit(node)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
            return ast.Pass() if node.module == "__future__" else node

    with open(f"{folder}/{name}", encoding="utf-8") as source:
        tree = ast.fix_missing_locations(Lean().visit(ast.parse(source.read())))
    return compile(tree, name, "exec", dont_inherit=True, optimize=2)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2:])
