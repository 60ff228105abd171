"""What the README shows works."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Node

README = Path(__file__).parents[2] / "README.md"

NETWORK = {
    "cniVersion": "1.1.0",
    "name": "mynet",
    "plugins": [{"type": "bridge", "isGateway": True, "ipam": {"type": "host-local", "subnet": "10.5.0.0/24"}}],
}  # fmt: skip


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found
    return found.group(1)


def test_the_python_example(node: Node, plugins: Path, tmp_path: Path) -> None:
    for folder in ("/run", "/var/lib"):
        node.hide(folder)
    (tmp_path / "10-mynet.conflist").write_text(json.dumps(NETWORK))
    code = block("python").replace("/etc/cni/net.d", str(tmp_path)).replace("/opt/cni/bin", str(plugins))
    assert node.python(code) == "10.5.0.2/24 0a:58:0a:05:00:02\n"


def test_the_commands(node: Node, plugins: Path, tmp_path: Path) -> None:
    for folder in ("/run", "/var/lib"):
        node.hide(folder)
    (tmp_path / "10-mynet.conflist").write_text(json.dumps(NETWORK))
    commands = [line.strip() for line in README.read_text().splitlines() if line.startswith("    cnitool ")]
    assert [command.split()[1] for command in commands] == ["add", "check", "del"]
    node.run(["ip", "netns", "add", "blue"])
    cnitool = f"{sys.executable} -c 'import sys; from cni.cli.cnitool import main; sys.exit(main())'"
    environ = {
        "CNI_PATH": str(plugins),
        "NETCONFPATH": str(tmp_path),
        "PYTHONPATH": ":".join(filter(None, sys.path)),
    }
    for command in commands:
        node.run(["sh", "-euc", command.replace("cnitool", cnitool, 1)], env=environ)
