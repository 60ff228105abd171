"""What a plugin may import: it lives for milliseconds, and most of the standard library costs several."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cni
import cni_plugins

Foreign = Callable[[set[str]], set[str]]

FOLDER = Path(cni.__path__[0]).parent

# `dhcp daemon` is a service, which starts once.
DHCP_DAEMON = tuple(
    f"cni_plugins.ipam.dhcp.{name}" for name in ("daemon", "flags", "lease", "leases", "link", "server", "store")
)

# Commands, services and the runtime library are no part of a plugin; _nftables needs a folder that a launcher names.
APART = (
    "cni.agent",
    "cni.bench",
    "cni.cli",
    "cni.doctor",
    "cni.explain",
    "cni.install",
    "cni.node",
    "cni.runtime",
    "cni.validate",
    "cni.__main__",
    "cni._nftables",
    *DHCP_DAEMON,
)

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
__import__(sys.argv[2])
print(*sorted(sys.modules))
"""


def hot_modules() -> list[str]:
    """All that plugins may reach, by name."""
    found = []
    for package in (cni, cni_plugins):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found.append(".".join([package.__name__, *parts]).removesuffix(".__init__"))
    return [name for name in found if not name.startswith(APART)]


def imported_by(module: str) -> set[str]:
    """What a fresh interpreter, started as plugins start theirs, has after importing ``module``."""
    command = [sys.executable, "-I", "-S", "-E", "-c", PROGRAM, str(FOLDER), module]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", hot_modules())
def test_a_module_imports_what_is_cheap(module: str, foreign: Foreign) -> None:
    assert foreign(imported_by(module)) == set()


def test_the_measure_measures(foreign: Foreign) -> None:
    assert {"json", "re", "enum"} <= foreign(imported_by("json"))
