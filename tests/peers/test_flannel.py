"""flannel whose delegates are the reference's: Go's bridge and host-local, and Go's and ours by turns.

The reference's flannel itself is no package of Debian's: what it would keep is in tests/unit/test_flannel.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import LIMIT

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]

ENV = """FLANNEL_NETWORK=10.1.0.0/16
FLANNEL_SUBNET=10.1.17.1/24
FLANNEL_IPV6_NETWORK=2001:db8::/32
FLANNEL_IPV6_SUBNET=2001:db8:0:1::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""


class Flannel:
    def __init__(self, node: Node, folders: dict[str, Path], folder: Path) -> None:
        self.node = node
        self.folders = folders
        self.data, self.state, env = folder / "flannel", folder / "state", folder / "subnet.env"
        env.write_text(ENV)
        self.config = {
            "cniVersion": "1.0.0",
            "name": "net",
            "type": "flannel",
            "subnetFile": str(env),
            "dataDir": str(self.data),
            "ipam": {"dataDir": str(self.state)},
        }

    def call(self, verb: str, container: Node, by: str, **keys: Any) -> Any:
        """`by` whose delegates."""
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container.name,
            "CNI_NETNS": container.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.folders[by]),
        }
        config = json.dumps({**self.config, **keys})
        done = self.node.run([str(self.folders["ours"] / "flannel")], stdin=config, env=environ, check=False)
        return json.loads(done.stdout or "null")

    def left(self) -> set[str]:
        held = {file.name for file in self.state.glob("*/*") if file.name[0].isdigit()}
        return held | {file.name for file in self.data.glob("*")}


@pytest.fixture
def flannel(node: Node, plugins: Path, go_plugins: Path, tmp_path: Path) -> Flannel:
    return Flannel(node, {"ours": plugins, "theirs": go_plugins}, tmp_path)


@pytest.mark.parametrize(("adds", "deletes"), [("theirs", "theirs"), ("theirs", "ours"), ("ours", "theirs")])
def test_either_s_delegates(adds: str, deletes: str, flannel: Flannel) -> None:
    container = flannel.node.container()
    result = flannel.call("ADD", container, adds)
    assert [ip["address"] for ip in result["ips"]] == ["10.1.17.2/24", "2001:db8:0:1::2/64"]
    assert container.ip("link", "show", "dev", "eth0")[0]["mtu"] == 1450
    container.run(["ping", "-n", "-c1", f"-W{LIMIT}", "10.1.17.1"])
    # Debian's Go bridge of 1.1 doesn't find routes again that leave the gateway to it, as flannel's do.
    assert flannel.call("CHECK", container, "ours", prevResult=result) is None
    for _ in range(2):
        assert flannel.call("DEL", container, deletes) is None
    assert flannel.left() == set()
    assert [link["ifname"] for link in container.ip("link")] == ["lo"]


def test_an_add_that_their_delegate_refuses(flannel: Flannel) -> None:
    flannel.config["ipam"] = {**flannel.config["ipam"], "rangeStart": "10.9.9.9", "subnet": "10.9.0.0/33"}  # type: ignore[dict-item]
    container = flannel.node.container()
    error = flannel.call("ADD", container, "theirs")
    assert error["msg"].startswith("failed to delegate add: ")
    assert flannel.left() == set()
    assert flannel.call("DEL", container, "theirs") is None
