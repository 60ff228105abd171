"""For tests of what plugins make of this machine's kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.networks import (
    Attachment,
    Network,
    Refused,
    addresses,
    call_here,
    doomed,
    link,
    links,
    make_network,
    module_of,
    pings,
    setting,
)

__all__ = [
    "OTHERS",
    "Attachment",
    "Firewalld",
    "Network",
    "Refused",
    "addresses",
    "call_here",
    "doomed",
    "link",
    "links",
    "make_network",
    "module_of",
    "pings",
    "setting",
]

if TYPE_CHECKING:
    from tests.conftest import Node

OTHERS = "10.99.0.0/16"


class Firewalld:
    """Runs in a node."""

    def __init__(self, node: Node, recipe: Path, folder: Path) -> None:
        self.node = node
        self.recipe = recipe
        self.folder = folder
        command = ["bash", str(recipe), str(folder), node.name]
        self.address = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def cmd(self, *words: str, check: bool = True) -> str:
        environ = {"DBUS_SYSTEM_BUS_ADDRESS": self.address}
        return self.node.run(["firewall-cmd", *words], env=environ, check=check).stdout.strip()

    def sources(self, zone: str = "trusted") -> set[str]:
        return set(self.cmd(f"--zone={zone}", "--list-sources").split())

    def stop(self) -> None:
        subprocess.run(["bash", str(self.recipe), "-d", str(self.folder)], check=True)


@pytest.fixture
def firewalld(node: Node, recipes: Path, tmp_path: Path) -> Iterator[Firewalld]:
    started = Firewalld(node, recipes / "firewalld-up", tmp_path / "firewalld")
    started.cmd("--zone=trusted", f"--add-source={OTHERS}")
    yield started
    started.stop()
