"""What a plugin's start may import: a plugin lives for milliseconds, and each of DEAR costs several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cni

FOLDER = Path(cni.__path__[0]).parent

DEAR = (
    "argparse",
    "asyncio",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "inspect",
    "ipaddress",
    "json",
    "logging",
    "pathlib",
    "re",
    "socket",
    "struct",
    "subprocess",
    "threading",
    "typing",
)

# Everything that ADD and DEL reach.
MODULES = (
    "cni",
    "cni.config",
    "cni.errors",
    "cni.gojson",
    "cni.ip",
    "cni.result",
    "cni.version",
)

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
__import__(sys.argv[2])
print(*sorted(set(sys.argv[3].split(",")).intersection(sys.modules)))
"""


def dear_modules_of(module: str) -> list[str]:
    """Those of DEAR that a fresh interpreter, started as plugins start theirs, has after importing `module`."""
    command = [sys.executable, "-I", "-S", "-E", "-c", PROGRAM, str(FOLDER), module, ",".join(DEAR)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()


@pytest.mark.parametrize("module", MODULES)
def test_a_plugins_start_imports_nothing_dear(module: str) -> None:
    assert dear_modules_of(module) == []


def test_the_measure_measures() -> None:
    assert "json" in dear_modules_of("json")


def test_working_imports_nothing_dear_either() -> None:
    """From the configuration's text to the result's: no import waits inside a function on that way."""
    work = """
from cni import config, gojson, result, version
conf = gojson.loads(b'{"cniVersion": "1.0.0", "name": "n", "dns": {"search": ["\\\\ud800"]}, "prevResult": {}}')
version.reconcile(version.of_config(conf), version.ALL)
config.Config.parse(conf)
result.prev_result(conf, "1.0.0").text("1.0.0")
"""
    program = PROGRAM.replace("__import__(sys.argv[2])", work)
    command = [sys.executable, "-I", "-S", "-E", "-c", program, str(FOLDER), "", ",".join(DEAR)]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split() == []
