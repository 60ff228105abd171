"""The bundle: every module works from it, and is what its file says but for what only readers need."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cni
import cni_plugins
from cni.invoke import bundle

PROGRAM = """
import marshal, sys
folder, file, *names = sys.argv[1:]
sys.path[:0] = [folder]
with open(file, "rb") as opened:
    length = int.from_bytes(opened.read(8), "little")
    code, index = marshal.loads(opened.read(length))
start = {"__name__": "cni.invoke.bundle"}
exec(code, start)
start["install"](file, 8 + length, index, folder)
for name in names:
    __import__(name)
import json
print(json.dumps({name: [type(sys.modules[name].__spec__.loader).__name__, sys.modules[name].__file__,
                         sys.modules[name].__doc__] for name in names}))
"""

# `python -m cni` runs the first; the second needs a folder that a launcher names.
APART = ("cni/__main__.py", "cni/_nftables.py")


def test_every_module_works_from_a_bundle(tmp_path: Path) -> None:
    for package in (cni, cni_plugins):
        shutil.copytree(package.__path__[0], tmp_path / package.__name__, ignore=shutil.ignore_patterns("__pycache__"))
    files = [name for name in bundle.hot_files(str(tmp_path)) if name not in APART]
    bundle.write(str(tmp_path), files)
    made = tmp_path / "cni" / bundle.NAME
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files]
    command = [sys.executable, "-I", "-S", "-E", "-W", "error", "-c", PROGRAM, str(tmp_path), str(made), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {name: ["Finder", f"{tmp_path}/{file}", None] for name, file in zip(names, files, strict=True)}


def test_code_has_nothing_for_readers(tmp_path: Path) -> None:
    source = tmp_path / "cni" / "some.py"
    source.parent.mkdir()
    source.write_text(
        '"""About."""\nfrom __future__ import annotations\n'
        "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    import nowhere\n"
        "class A:\n    x: Missing\n    y: Missing = 1\n    def f(self, a: Missing, *b: Missing) -> Missing:\n"
        '        """About."""\n        return a\n    async def g(self, c: Missing = 2) -> Missing: return c\n'
    )
    (tmp_path / "cni" / "invoke").mkdir()
    shutil.copy(bundle.__file__, tmp_path / "cni" / "invoke" / "bundle.py")
    bundle.write(str(tmp_path), ["cni/some.py"])
    code = bundle._compiled(bundle._lean(str(tmp_path), "cni/some.py"), "cni/some.py")
    module: dict[str, object] = {"__name__": "cni.some"}
    exec(code, module)
    made = module["A"]
    assert isinstance(made, type)
    assert (made().f(3), made.y, made.f.__annotations__, made.f.__doc__) == (3, 1, {}, None)  # type: ignore[attr-defined]
    assert made.g.__annotations__ == {}  # type: ignore[attr-defined]
    assert "nowhere" not in code.co_names
