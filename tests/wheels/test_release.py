"""Test what a release is to consist of."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHONS = ["cp311", "cp312", "cp313", "cp314", "cp314t"]
LIBRARIES = ["manylinux", "musllinux"]
PROCESSORS = ["x86_64", "aarch64"]


def identifiers(*arguments: str) -> set[str]:
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", "linux", *arguments]
    return set(subprocess.run([*command, ROOT], capture_output=True, text=True, check=True).stdout.split())


def test_build_identifiers() -> None:
    wanted = itertools.product(PYTHONS, LIBRARIES, PROCESSORS)
    assert identifiers() == {f"{python}-{library}_{processor}" for python, library, processor in wanted}


def test_the_workflow_builds_them_all() -> None:
    """A job for each processor, on a machine that has it."""
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    assert "cibuildwheel" in workflow
    built = re.findall(r"^ +- \{ processor: (\w+), runner: [\w.-]+ \}$", workflow, re.MULTILINE)
    assert built == PROCESSORS
    assert set().union(*(identifiers("--archs", processor) for processor in built)) == identifiers()
