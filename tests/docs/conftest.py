"""Test what pages need: the node that each is tried on, and what `needs: ...` in a page's front matter asks for."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docs import runtimes
from tests.docs.blocks import Page
from tests.docs.node import Node, Shell
from tests.waiting import LIMIT
from tests.wheels.conftest import OLD_GLIBC, interpreter, run, workshop

if TYPE_CHECKING:
    from tests.wheels.conftest import Workshop

__all__ = ["workshop"]

_VERSION = "{}.{}".format(*sys.version_info)
_PROGRAMS = {
    "cni": "-m cni",
    "cnitool": "-c 'import sys; from cni.cli.cnitool import main; sys.exit(main())'",
    "python3": "",
}


class Desk:
    """Where a page is tried: a shell on a node of its own, whose home and current folder is `folder`.

    `bin` is first on its PATH: for what has to stand in for something else.
    """

    def __init__(self, page: Page, node: Node, base: Path) -> None:
        self.page = page
        self.folder = base / "home"
        self.bin = base / "bin"
        self.folder.mkdir()
        self.bin.mkdir()
        for name, arguments in _PROGRAMS.items():
            self.program(name, f'exec {sys.executable} -P {arguments} "$@"')
        path = [str(self.bin), *("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")]
        environ = {
            "CNI_AGENT_TIMEOUT": str(LIMIT),
            "COLUMNS": "100",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self.shell = Shell(node, environ)
        self.shell.run(f"cd {self.folder}")

    def program(self, name: str, script: str) -> None:
        """A program of that name on PATH, by the lines of a shell script."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def desk(request: pytest.FixtureRequest, plugins: Path) -> Iterator[Desk]:
    """The page's, with our executables in /opt/cni/bin unless the page installs them."""
    page = Page(request.param)
    # A short name: under a longer one podman waits 20 s for each container that exits.
    with tempfile.TemporaryDirectory(prefix="cni-") as folder:
        node = Node(Path(folder))
        try:
            desk = Desk(page, node, Path(folder))
            if not {"install", "venv"} & set(page.needs):
                desk.shell.run(f"mkdir -p /opt/cni/bin && cp {plugins}/* /opt/cni/bin")
            yield desk
            desk.shell.close()
        finally:
            node.close()


@pytest.fixture
def needs_install(desk: Desk, workshop: Workshop) -> None:
    """Nothing is there yet; `pip install` finds the wheel under test, and what pages need besides, in a folder."""

    def download(folder: Path) -> None:
        wheel = workshop.wheel(_VERSION, f"{OLD_GLIBC}_x86_64")
        # The last two are what a plugin's own package is built and tested with.
        wanted = [f"{wheel}[metrics]", "setuptools>=77", "pytest>=8"]
        run(sys.executable, "-m", "pip", "download", "-q", "--only-binary", ":all:", "-d", folder, *wanted)

    wheels = desk.folder.parent / "wheels"
    shutil.copytree(workshop.once(f"wheels-{_VERSION}", download), wheels)
    for name in _PROGRAMS:
        (desk.bin / name).unlink()
    desk.program("python3", f'exec {interpreter(_VERSION)} "$@"')
    desk.shell.run(f"unset PYTHONPATH; export PIP_NO_INDEX=1 PIP_FIND_LINKS={wheels}")


@pytest.fixture
def needs_venv(desk: Desk, needs_install: None) -> None:
    """All is as after the tutorial's first step."""
    desk.shell.run("python3 -m venv /opt/cni/venv && . /opt/cni/venv/bin/activate && pip install cni && cni install")


@pytest.fixture
def needs_systemctl(desk: Desk) -> None:
    """See systemctl.py."""
    desk.program("systemctl", f'exec {sys.executable} -P {Path(__file__).with_name("systemctl.py")} "$@"')
    desk.shell.run("mkdir -p /run/systemd/system /etc/systemd/system")  # by which a systemd is known, sd_booted(3)


@pytest.fixture
def needs_podman(desk: Desk, recipes: Path) -> None:
    """See runtimes.py."""
    runtimes.podman(desk, recipes)


@pytest.fixture
def needs_containerd(desk: Desk, recipes: Path) -> None:
    """See runtimes.py."""
    runtimes.containerd(desk, recipes)


@pytest.fixture
def needs_cri(desk: Desk, recipes: Path) -> None:
    """See runtimes.py."""
    runtimes.cri(desk, recipes)


@pytest.fixture
def needs_go_plugins(desk: Desk, go_plugins: Path) -> None:
    """The plugins' folder has the reference's, as on a node that is still to be moved."""
    desk.shell.run(f"rm /opt/cni/bin/* && cp {go_plugins}/* /opt/cni/bin")
