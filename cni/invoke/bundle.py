"""The bundle: one file with all the code that plugins import.

Python finds a module with half a dozen system calls, reads it from a file of its own, and creates it in a dozen steps;
for fifty modules that is a fifth of a plugin's time. A wheel, which is for one version of Python anyway, has them
compiled in one file, without docstrings, and with the imports of each, so that these are loaded before it. The code of
a module is read when it is imported. Without the file, as in a tree that is built in place, Python imports as usual.

    8 bytes     the length of the head, little-endian
    the head    marshal: this module's own code, and the index: name -> (file, offset of its code, length, imports)
    the rest    the modules' code, each as marshal writes it; of a module without code nothing

The launcher executes this module's own code from the file, with nothing imported (``src/launcher/boot.py``).
"""

from __future__ import annotations

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from collections.abc import Iterable, Iterator
    from types import CodeType, ModuleType

    Index = dict[str, tuple[str, int, int, tuple[str, ...]]]

# The packages below cni that a plugin's process may load, from the bottom up: each imports those before it alone. The
# bundle holds them and the plugins; every other package below cni belongs to services and tools.
HOT = ("spec", "system", "kernel", "netfilter", "invoke", "skel")

# In the package's folder, named after the version of Python as compiled files are.
NAME = f"_bundle.{sys.implementation.cache_tag}"

_Module = type(sys)


class Finder:
    """A finder and loader of the modules in the bundle at ``path``, whose sources are below ``folder``."""

    def __init__(self, path: str, index: Index, folder: str) -> None:
        self.path = path
        self.index = index
        self.folder = folder

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Return the spec of ``name`` if it is in the bundle, after loading the modules that it imports."""
        if name not in self.index:
            return None
        dependencies = [dependency for dependency in self._order(name, set()) if dependency != name]
        if dependencies:
            self._import(dependencies)
        return self._spec(name)

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None: Python's own type of module is used."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code in the module."""
        fd = posix.open(self.path, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            self._run(module, fd)
        finally:
            posix.close(fd)

    def _order(self, name: str, seen: set[str]) -> Iterator[str]:
        """Yield the modules that an import of ``name`` loads, itself last; loaded modules are left out."""
        if name in seen or name in sys.modules or name not in self.index:
            return
        seen.add(name)
        for dependency in self.index[name][3]:
            yield from self._order(dependency, seen)
        yield name

    def _import(self, names: Iterable[str]) -> None:
        """Import modules as Python does, but without a search for their finder, and without locks."""
        fd = posix.open(self.path, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            for name in names:
                module = _Module(name)
                spec = module.__spec__ = self._spec(name)
                module.__file__, module.__loader__, module.__package__ = spec.origin, spec.loader, spec.parent
                if spec.submodule_search_locations is not None:
                    module.__path__ = spec.submodule_search_locations
                sys.modules[name] = module
                try:
                    self._run(module, fd)
                except BaseException:
                    del sys.modules[name]
                    raise
                parent, _, child = name.rpartition(".")
                if parent:
                    setattr(sys.modules[parent], child, module)
        finally:
            posix.close(fd)

    def _spec(self, name: str) -> ModuleSpec:
        origin = f"{self.folder}/{self.index[name][0]}"
        package = origin.endswith("/__init__.py")
        spec = ModuleSpec(name, self, origin=origin, is_package=package)  # type: ignore[arg-type]
        spec.has_location = True
        if package:  # modules that are not in the bundle are found as usual
            spec.submodule_search_locations = [origin[: -len("/__init__.py")]]
        return spec

    def _run(self, module: ModuleType, fd: int) -> None:
        _, offset, length, _ = self.index[module.__name__]
        if length:
            exec(marshal.loads(posix.pread(fd, length, offset)), vars(module))  # noqa: S102, S302 - the package's own


def install(path: str, head: int, index: Index, folder: str) -> None:
    """Make the bundle Python's first finder. ``head`` is the end of its head, from which the index counts offsets."""
    absolute = {name: (file, head + offset, length, needs) for name, (file, offset, length, needs) in index.items()}
    sys.meta_path.insert(0, Finder(path, absolute, folder))


def hot_files(folder: str) -> list[str]:
    """Return the files below `folder` that the bundle holds, as names such as ``cni/skel/plugin.py``."""
    from pathlib import Path

    patterns = ("cni/*.py", *(f"cni/{package}/**/*.py" for package in HOT), "cni_plugins/**/*.py")
    return sorted(path.relative_to(folder).as_posix() for pattern in patterns for path in Path(folder).glob(pattern))


def write(folder: str, names: Iterable[str]) -> None:
    """Write the bundle of the modules with these file names (``cni/skel/plugin.py``) below ``folder``."""
    import ast

    files = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in names}
    index: Index = {}
    rest = b""
    for name, file in files.items():
        tree = _lean(folder, file)
        # Not a package's own modules: they are imported into the package once it exists.
        needs = [need for need in _imported(tree) if need in files and not f"{need}.".startswith(f"{name}.")]
        # A package that is only a docstring has no code to read.
        code = b"" if all(isinstance(node, ast.Expr) for node in tree.body) else marshal.dumps(_compiled(tree, file))
        index[name] = file, len(rest), len(code), tuple(dict.fromkeys([name.rpartition(".")[0], *needs]))
        rest += code
    own = "cni/invoke/bundle.py"
    head = marshal.dumps((_compiled(_lean(folder, own), own), index))
    with open(f"{folder}/cni/{NAME}", "wb") as bundle:
        bundle.write(len(head).to_bytes(8, "little") + head + rest)


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield what a module imports at its top level: modules, and names that may be modules of packages."""
    import ast

    for statement in tree.body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def _lean(folder: str, name: str) -> ast.Module:
    """Parse a module, without what only readers and type checkers need: annotations and their imports."""
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
        tree: ast.Module = ast.fix_missing_locations(Lean().visit(ast.parse(source.read())))
    return tree


def _compiled(tree: ast.Module, name: str) -> CodeType:
    """Compile a module, without docstrings."""
    return compile(tree, name, "exec", dont_inherit=True, optimize=2)


if __name__ == "__main__":
    write(sys.argv[1], hot_files(sys.argv[1]))
