"""The reference's plugins beside ours: one network, run by either."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Node


class Answer:
    """A record of what a plugin said and ended with."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status = done.returncode
        self.stdout = done.stdout
        self.stderr = done.stderr

    def __repr__(self) -> str:
        return f"exit status {self.status}\nstdout: {self.stdout}\nstderr: {self.stderr}"


class Network:
    """A plugin's configuration on a node, with whose executable serves it and whose its IPAM plugin is."""

    def __init__(self, node: Node, config: dict[str, Any], folders: dict[str, Path], by: str, ipam: str) -> None:
        self.node = node
        self.config = config
        self._folders = folders
        self._plugin = folders[by] / config["type"]
        self._path = folders[ipam]

    def by(self, by: str, ipam: str = "") -> Network:
        """The same network, served by "ours" or "theirs"; IPAM too, if nothing else is said."""
        return Network(self.node, self.config, self._folders, by, ipam or by)

    def call(
        self, verb: str, container: Node, ifname: str = "eth0", *, netns: str | None = None, **more: Any
    ) -> Answer:
        """One call; `more` goes into the configuration."""
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container.name,
            "CNI_NETNS": container.path if netns is None else netns,
            "CNI_IFNAME": ifname,
            "CNI_PATH": str(self._path),
        }
        config = json.dumps({**self.config, **more})
        return Answer(self.node.run([str(self._plugin)], stdin=config, env=env, check=False))

    def add(self, container: Node, ifname: str = "eth0") -> dict[str, Any]:
        answer = self.call("ADD", container, ifname)
        assert answer.status == 0, answer
        return json.loads(answer.stdout)  # type: ignore[no-any-return]

    def check(self, container: Node, result: dict[str, Any], ifname: str = "eth0") -> None:
        answer = self.call("CHECK", container, ifname, prevResult=result)
        assert (answer.status, answer.stdout) == (0, ""), answer

    def delete(self, container: Node, ifname: str = "eth0", **more: Any) -> None:
        answer = self.call("DEL", container, ifname, **more)
        assert (answer.status, answer.stdout) == (0, ""), answer

    def reserved(self) -> dict[str, bytes]:
        """The addresses' files in host-local's folder."""
        folder = Path(self.config["ipam"]["dataDir"]) / self.config["name"]
        return {file.name: file.read_bytes() for file in folder.glob("*") if not file.name.startswith(("lock", "last"))}

    def nothing_left(self) -> None:
        """Of attachments, that is: the bridge stays."""
        assert self.reserved() == {}
        assert self.node.ip("link", "show", "type", "veth") in (None, [])
        rules = [*self.node.iptables_save(), *self.node.iptables_save(6)]
        assert [rule for rule in rules if "CNI-" in rule] == []


@pytest.fixture
def folders(plugins: Path, go_plugins: Path) -> dict[str, Path]:
    return {"ours": plugins, "theirs": go_plugins}


@pytest.fixture
def network(node: Node, folders: dict[str, Path], tmp_path: Path) -> Callable[..., Network]:
    """Makes a network on the node: bridge and host-local, with changes to either's configuration."""

    def make(version: str = "1.0.0", *, ipam: dict[str, Any] | None = None, **changes: Any) -> Network:
        host_local = {
            "type": "host-local",
            "dataDir": str(tmp_path / "networks"),
            **(ipam or {"subnet": "10.1.2.0/24"}),
        }
        config = {
            "cniVersion": version,
            "name": "net",
            "type": "bridge",
            "bridge": "br0",
            "ipam": host_local,
            **changes,
        }
        return Network(node, config, folders, "ours", "ours")

    return make
