"""cnitool beside Go's library: on the reference's plugins, and on the cache's files as Go writes them."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.invoke import launcher
from cni.netfilter.naming import hashed

if TYPE_CHECKING:
    from tests.conftest import Node

RESULTS = "/var/lib/cni/results"


def network(version: str) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": "10.1.2.0/24"}
    bridge = {"type": "bridge", "isGateway": True, "capabilities": {"mac": True}, "ipam": ipam}
    chained = {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}}
    return {"cniVersion": version, "name": "net", "plugins": [bridge, chained]}


@pytest.fixture
def container(node: Node) -> Node:
    return node.container()


@pytest.fixture
def cnitool(node: Node, container: Node, tmp_path: Path, plugins: Path, go_plugins: Path) -> Callable[..., str]:
    """cnitool in the node, which has a /var/lib/cni of its own; `first` is whose plugins it finds first."""
    # After the container is made: what is mounted later on this machine, as its namespace is, is not seen there.
    node.hide("/var/lib/cni")
    folders = {"ours": [plugins, go_plugins], "theirs": [go_plugins]}

    def run(first: str, *arguments: str, **more: str) -> str:
        env = {"PYTHONPATH": launcher.PACKAGES, "NETCONFPATH": str(tmp_path), **more}
        env["CNI_PATH"] = ":".join(str(folder) for folder in folders[first])
        # -P: the packages that are tested, not those of the current folder
        return node.run([sys.executable, "-P", "-m", "cni.cli.cnitool", *arguments], env=env).stdout

    return run


def container_id(container: Node) -> str:
    return hashed(container.path, len("cnitool-") + 20, "cnitool-")


def entry(conflist: bytes, container: Node, result: dict[str, Any], **more: Any) -> str:
    """A cache file as Go's library writes it: the order of a struct, and sorted where it has a map."""
    head = {
        "kind": "cniCacheV1",
        "containerId": container_id(container),
        "config": base64.b64encode(conflist).decode(),
        "ifName": "eth0",
        "networkName": "net",
        "netns": container.path,
    }
    ordered = json.loads(json.dumps(result, sort_keys=True))
    return json.dumps({**head, **more, "result": ordered}, separators=(",", ":"))


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
@pytest.mark.parametrize(("first", "then"), [("theirs", "theirs"), ("theirs", "ours"), ("ours", "theirs")])
def test_attachment(
    cnitool: Callable[..., str], node: Node, container: Node, tmp_path: Path, version: str, first: str, then: str
) -> None:
    conflist = json.dumps(network(version), indent=2).encode()
    (tmp_path / "10-net.conflist").write_bytes(conflist)
    passed = {"CAP_ARGS": '{"mac": "c2:11:22:33:44:55"}', "CNI_ARGS": "IgnoreUnknown=1;K=V"}
    result = json.loads(cnitool(first, "add", "net", container.path, **passed))
    assert container.ip("link", "show", "eth0")[0]["address"] == "c2:11:22:33:44:55"

    file = f"{RESULTS}/net-{container_id(container)}-eth0"
    args = [["IgnoreUnknown", "1"], ["K", "V"]]
    expected = entry(conflist, container, result, cniArgs=args, capabilityArgs={"mac": "c2:11:22:33:44:55"})
    kept = node.run(["cat", file]).stdout
    assert (json.loads(kept), list(json.loads(kept))) == (json.loads(expected), list(json.loads(expected)))
    assert node.run(["stat", "-c", "%a", file, RESULTS]).stdout.split() == ["600", "700"]

    cnitool(then, "check", "net", container.path, **passed)
    cnitool(then, "del", "net", container.path, **passed)
    assert container.ip("link")[-1]["ifname"] == "lo"
    assert node.run(["ls", RESULTS]).stdout == ""
    assert node.run(["ls", "/var/lib/cni/networks/net"]).stdout.split() == ["last_reserved_ip.0", "lock"]


@pytest.mark.parametrize("verb", ["check", "del", "gc"])
def test_file_of_gos_library(
    cnitool: Callable[..., str], node: Node, container: Node, tmp_path: Path, verb: str
) -> None:
    conflist = json.dumps(network("1.0.0")).encode()
    (tmp_path / "10-net.conflist").write_bytes(conflist)
    result = json.loads(cnitool("theirs", "add", "net", container.path))
    file = f"{RESULTS}/net-{container_id(container)}-eth0"
    node.run(["tee", file], stdin=entry(conflist, container, result))
    cnitool("ours", verb, "net", container.path)
    left = node.run(["ls", RESULTS, "/var/lib/cni/networks/net"]).stdout
    assert ("eth0" in left, "10.1.2.2" in left) == ((True, True) if verb == "check" else (False, False))
