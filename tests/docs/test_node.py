"""The node of a page keeps to itself what a page does there, however careless."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.node import Node, Shell

KERNELS = ("/dev", "/proc", "/run", "/sys")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shared = tmp_path / "shared"
    shared.mkdir()
    node = Node(shared)
    shell = Shell(node, dict(os.environ))
    yield shell
    shell.close()
    node.close()


def folders() -> list[str]:
    """Those of the machine's root that hold files."""
    entries = sorted(entry.path for entry in os.scandir("/") if entry.is_dir(follow_symlinks=False))
    return [path for path in entries if path not in KERNELS]


def test_no_folder_is_the_machines(shell: Shell) -> None:
    for folder in (*folders(), "/run", "/dev/shm"):
        shell.run(f"touch {folder}/.page")
        assert not Path(folder, ".page").exists(), folder
    for folder in ("/", "/dev"):
        shell.run(f"! touch {folder}/.page")


def test_what_is_removed_there_stays_here(shell: Shell, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("kept")
    shell.run(f"rm {mine} && test ! -e {mine}")
    assert mine.read_text() == "kept"


def test_one_folder_is_shared(shell: Shell, tmp_path: Path) -> None:
    shell.run(f"echo from the node >{tmp_path}/shared/file")
    assert (tmp_path / "shared/file").read_text() == "from the node\n"


def test_settings_that_are_not_the_networks_are_refused(shell: Shell) -> None:
    shell.run("! echo 1 >/proc/sys/kernel/panic")
    shell.run("echo 1 >/proc/sys/net/ipv4/ip_forward")
