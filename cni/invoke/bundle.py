"""One file with all the code that plugins import.

Python finds a module with half a dozen system calls, reads it from a file of its own, and takes a dozen steps to make
it; for fifty of them that is a fifth of a plugin's time. A wheel, which is for one version of Python anyway, has them
compiled in one file, without docstrings, and with what each imports, so that a module's are there before it asks. Each
is read when it is imported. Without the file everything works as usual: so it is in a tree that is built in place.

    8 bytes     the length of the head, little-endian
    the head    marshal: this module's own code, and the index: name -> (file, where its code begins, length, imports)
    the rest    the modules' code, each as marshal writes it

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
    """Finds the modules of the bundle at ``path``, whose files would be below ``folder``."""

    def __init__(self, path: str, index: Index, folder: str) -> None:
        self.path = path
        self.index = index
        self.folder = folder

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Where ``name`` is, if it is in the bundle. What it imports is there from then on."""
        if name not in self.index:
            return None
        before = [needed for needed in self._order(name, set()) if needed != name]
        if before:
            self._import(before)
        return self._spec(name)

    def create_module(self, spec: ModuleSpec) -> None:
        """Python's own kind of module will do."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code in it."""
        fd = posix.open(self.path, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            self._run(module, fd)
        finally:
            posix.close(fd)

    def _order(self, name: str, seen: set[str]) -> Iterator[str]:
        """What an import of ``name`` imports, and in the end itself; what is there already is left out."""
        if name in seen or name in sys.modules or name not in self.index:
            return
        seen.add(name)
        for needed in self.index[name][3]:
            yield from self._order(needed, seen)
        yield name

    def _import(self, names: Iterable[str]) -> None:
        """As Python imports modules, but that it is known whose they are, and that nobody else imports them now."""
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
        _, begin, length, _ = self.index[module.__name__]
        exec(marshal.loads(posix.pread(fd, length, begin)), vars(module))  # noqa: S102, S302 - the package's own


def install(path: str, head: int, index: Index, folder: str) -> None:
    """Let Python look here first; ``head`` is where the bundle's head ends, from where places in the index count."""
    placed = {name: (file, head + begin, length, needs) for name, (file, begin, length, needs) in index.items()}
    sys.meta_path.insert(0, Finder(path, placed, folder))


def hot_files(folder: str) -> list[str]:
    """Return the files below `folder` that the bundle holds, as names such as ``cni/skel/plugin.py``."""
    from pathlib import Path

    patterns = ("cni/*.py", *(f"cni/{package}/**/*.py" for package in HOT), "cni_plugins/**/*.py")
    return sorted(path.relative_to(folder).as_posix() for pattern in patterns for path in Path(folder).glob(pattern))


def write(folder: str, names: Iterable[str]) -> None:
    """Make the bundle of the modules with these file names (``cni/skel/plugin.py``) below ``folder``."""
    files = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in names}
    index: Index = {}
    rest = b""
    for name, file in files.items():
        tree = _lean(folder, file)
        # Not a package's own modules, which are imported into it once it is there.
        needs = [need for need in _imported(tree) if need in files and not f"{need}.".startswith(f"{name}.")]
        code = marshal.dumps(_compiled(tree, file))
        index[name] = file, len(rest), len(code), tuple(dict.fromkeys([name.rpartition(".")[0], *needs]))
        rest += code
    own = "cni/invoke/bundle.py"
    head = marshal.dumps((_compiled(_lean(folder, own), own), index))
    with open(f"{folder}/cni/{NAME}", "wb") as made:
        made.write(len(head).to_bytes(8, "little") + head + rest)


def _imported(tree: ast.Module) -> Iterator[str]:
    """What a module imports when it is imported itself: modules, and what may be modules in packages."""
    import ast

    for statement in tree.body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def _lean(folder: str, name: str) -> ast.Module:
    """A module without what is only for readers and type checkers: annotations, their imports."""
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
    """Without docstrings."""
    return compile(tree, name, "exec", dont_inherit=True, optimize=2)


if __name__ == "__main__":
    write(sys.argv[1], hot_files(sys.argv[1]))
