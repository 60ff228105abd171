"""Where the plugins are: ours as `cni install` puts them, and the Go reference's of Debian's package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cni import launcher


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our plugins, installed as a user would."""
    folder = tmp_path_factory.mktemp("bin")
    # From the folder of the test's own packages: `-m` looks into the current one first.
    command = [sys.executable, "-m", "cni", "install", "--dir", str(folder)]
    environ = {**os.environ, "PYTHONPATH": launcher.PACKAGES}
    subprocess.run(command, cwd=folder, env=environ, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def go_plugins() -> Path:
    """The reference's plugins: Debian's package containernetworking-plugins."""
    folder = Path("/usr/lib/cni")
    assert (folder / "bridge").exists(), "Debian's package containernetworking-plugins is not installed"
    return folder
