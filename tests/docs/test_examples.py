"""docs/examples: what pages show parts of works as a whole. note.py is tried by its page, and by test_validate.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Node

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
CALL = """
import json, sys
from cni.runtime import *
verb, folder, path, netns = sys.argv[1:]
network = NetworkConfigList.from_file(f"{folder}/net.conflist")
result = getattr(CNI(path.split(":"), f"{folder}/cache"), verb)(network, RuntimeConf("cid", netns, "eth0"))
print(json.dumps(result.encode("1.1.0") if result else None))
"""


@pytest.fixture
def call(node: Node, plugins: Path, tmp_path: Path) -> Callable[..., Any]:
    """`call("add", netns, *plugins' configurations)`: the result of a network of those."""
    for name in ("cable", "guard"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -P {EXAMPLES / name}.py "$@"\n')
        program.chmod(0o755)

    def call(verb: str, netns: str, *plugins_: dict[str, Any]) -> Any:
        network = {"cniVersion": "1.1.0", "name": "net", "plugins": plugins_}
        (tmp_path / "net.conflist").write_text(json.dumps(network))
        return json.loads(node.python(CALL, verb, str(tmp_path), f"{tmp_path}:{plugins}", netns))

    return call


def host_local(tmp_path: Path) -> dict[str, Any]:
    ranges = [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}]]
    return {"type": "host-local", "dataDir": str(tmp_path / "state"), "ranges": ranges}


def test_cable(node: Node, call: Callable[..., Any], tmp_path: Path) -> None:
    container = node.container()
    cable = {"type": "cable", "ipam": host_local(tmp_path)}
    result = call("add", container.path, cable)
    assert [ip["address"] for ip in result["ips"]] == ["10.1.2.2/24", "fd01::2/64"]
    (link,) = container.ip("address", "show", "dev", "eth0", "scope", "global")
    assert {address["local"] for address in link["addr_info"] if address} == {"10.1.2.2", "fd01::2"}
    assert link["operstate"] == "UP"
    call("check", container.path, cable)
    call("delete", container.path, cable)
    assert [link["ifname"] for link in node.ip("link")] == ["lo"]
    assert not list((tmp_path / "state/net").glob("10.*"))


def test_guard(node: Node, call: Callable[..., Any], tmp_path: Path) -> None:
    container = node.container()
    bridge = {"type": "bridge", "ipam": host_local(tmp_path)}
    guard = {"type": "guard", "deny": ["192.0.2.0/24", "198.51.100.1/32", "2001:db8::/32"]}
    call("add", container.path, bridge, guard)
    for version, address, denied in ((4, "10.1.2.2/32", 2), (6, "fd01::2/128", 1)):
        rules = node.iptables_save(version, "filter")
        assert sum(rule.startswith(f"-A FORWARD -s {address} -j CNI-GUARD-") for rule in rules) == 1
        assert sum(rule.startswith("-A CNI-GUARD-") and rule.endswith("DROP") for rule in rules) == denied
    for _ in range(2):  # nothing is there at the second time
        call("delete", container.path, bridge, guard)
    after = [node.iptables_save(version, "filter") for version in (4, 6)]
    assert [[line for line in lines if "CNI" in line] for lines in after] == [[], []]
