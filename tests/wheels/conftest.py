"""Test what the tests of wheels share: everything is built once for all of pytest's workers, by whoever comes first."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.waiting import LIMIT

ROOT = Path(__file__).parents[2]
ZIG = f"{sys.executable} -m ziglang"
OLD_GLIBC = "manylinux_2_17"


def run(*argv: str | Path, cwd: Path | None = None, **environ: str) -> str:
    """Return what a program prints; a failure shows all it said."""
    done = subprocess.run(
        list(map(str, argv)),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environ},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, f"{argv} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@cache
def interpreter(version: str) -> str:
    """A Python of that version, with headers: the one that runs the tests, on PATH, or one of pyenv's."""
    candidates = [sys.executable, shutil.which(f"python{version}") or ""]
    candidates += sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    code = "import ensurepip, os, sys, sysconfig as s; assert os.path.exists(s.get_path('include') + '/Python.h'); "
    code += "print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return candidate
    pytest.skip(f"there is no Python {version} with its headers on this machine (looked on PATH and at pyenv's)")


class Workshop:
    """Builds things, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder `name`, filled by `make` if nobody has done it yet."""
        folder = self._folder / name
        with (self._folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / ".made").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                (folder / ".made").touch()
        return folder

    def sdist(self) -> Path:
        """The source distribution of this tree."""

        def make(folder: Path) -> None:
            (folder / "cfg").write_text(f"[egg_info]\negg_base = {folder}\n")
            command = ["-m", "build", "--no-isolation", "--sdist", "-o", str(folder), str(ROOT)]
            run(sys.executable, *command, DIST_EXTRA_CONFIG=str(folder / "cfg"))

        return next(self.once("sdist", make).glob("cni-*.tar.gz"))

    def tree(self) -> Path:
        """Return what is in the source distribution, with Cython's output, which is the same for all versions."""

        def make(folder: Path) -> None:
            with tarfile.open(self.sdist()) as archive:
                archive.extractall(folder, filter="data")
            run(sys.executable, "setup.py", "-q", "--version", cwd=next(folder.glob("cni-*")))

        return next(self.once("tree", make).glob("cni-*"))

    def builder(self, version: str) -> Path:
        """A Python with what pyproject.toml says is needed to build."""
        requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]

        def make(folder: Path) -> None:
            run(interpreter(version), "-m", "venv", folder / "venv")
            run(folder / "venv/bin/pip", "install", "-q", *requires)

        interpreter(version)
        return self.once(f"builder-{version}", make) / "venv/bin/python"

    def wheel(self, version: str, platform: str) -> Path:
        """A wheel for that version of Python and that platform, built with zig."""

        def make(folder: Path) -> None:
            tree, python = self.tree(), self.builder(version)
            run(tree / "scripts/zig-wheel", python, platform, folder, cwd=tree, ZIG=ZIG)

        interpreter(version)
        return next(self.once(f"wheel-{version}-{platform}", make).glob("*.whl"))

    def fresh(self, version: str, *extras: str) -> Path:
        """A virtual environment with that wheel, some of its extras, and nothing to build with."""

        def make(folder: Path) -> None:
            run(interpreter(version), "-m", "venv", folder / "venv")
            wheel = self.wheel(version, f"{OLD_GLIBC}_x86_64")
            wanted = f"{wheel}[{','.join(extras)}]" if extras else wheel
            only = ["-q", "--only-binary", ":all:"]
            run(folder / "venv/bin/pip", "install", *only, wanted, PATH=str(folder / "venv/bin"), CC="/bin/false")

        return self.once("-".join(["fresh", version, *extras]), make) / "venv"


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "workshop"
    folder.mkdir(exist_ok=True)
    return Workshop(folder)
