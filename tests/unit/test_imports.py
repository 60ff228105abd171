"""Test what a plugin may import: it lives for milliseconds, and most of the standard library costs several."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cni
from cni.invoke import bundle
from tests.waiting import LIMIT

Foreign = Callable[[set[str]], set[str]]

FOLDER = Path(cni.__path__[0]).parent

# `dhcp daemon` is a service, which starts once.
DHCP_DAEMON = tuple(
    f"cni_plugins.ipam.dhcp.{name}" for name in ("daemon", "flags", "lease", "leases", "link", "server", "store")
)

# `python -m cni` runs the first; the second needs a folder that a launcher names.
APART = ("cni.__main__", "cni._nftables", *DHCP_DAEMON)

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
__import__(sys.argv[2])
print(*sorted(sys.modules))
"""


def hot_modules() -> list[str]:
    """Return the names of the bundle's modules: all that plugins may import."""
    files = bundle.hot_files(str(FOLDER))
    names = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files]
    return [name for name in names if name not in APART]


def imported_by(module: str) -> set[str]:
    """Return what a fresh interpreter, started as plugins start theirs, has after importing ``module``."""
    command = [sys.executable, "-I", "-S", "-E", "-c", PROGRAM, str(FOLDER), module]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", hot_modules())
def test_a_module_imports_what_is_cheap(module: str, foreign: Foreign) -> None:
    assert foreign(imported_by(module)) == set()


@pytest.mark.parametrize("face", ["cni", "cni.skel", "cni.runtime"])
def test_public_names_are_imported_at_their_first_use(face: str) -> None:
    assert {name for name in imported_by(face) if name.startswith("cni")} == {"cni", face}


def test_the_measure_measures(foreign: Foreign) -> None:
    assert {"json", "re", "enum"} <= foreign(imported_by("json"))
