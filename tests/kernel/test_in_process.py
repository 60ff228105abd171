"""The runtime library with plugins in its own process: no process, same results, same state; and many DELs at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel.conftest import links

if TYPE_CHECKING:
    from tests.conftest import Node

# Run in the node: its arguments are plugins' folder, cache, containers; it prints what happened as JSON.
PROGRAM = """
import json, os, sys
from cni.system import process
from cni.runtime import CNI, Exec, InProcess, NetworkConfigList, RuntimeConf
from cni.spec.errors import CNIError
how, plugins, state, conf, *containers = sys.argv[1:]
started = []
run = process.run
process.run = lambda argv, *rest, **more: (started.append(argv[0].rpartition("/")[2]), run(argv, *rest, **more))[1]
cni = CNI([plugins], f"{state}/cache", InProcess() if how == "in process" else Exec())
network = NetworkConfigList.from_bytes(conf.encode())
runtimes = [RuntimeConf(path.rpartition("/")[2], path, "eth0") for path in containers]
results = []
for rt in runtimes:
    results.append(cni.add(network, rt).encode("1.1.0"))
    cni.check(network, rt)
cni.status(network)
versions = cni.version_info("bridge").supported
links = open("/proc/net/dev").read().count("veth")
cni.delete_all((network, rt) for rt in runtimes)
cni.gc(network, [])
try:
    cni.add(network, RuntimeConf("a", "/no/namespace", "eth0"))
except CNIError as error:
    failure = error.to_dict()
left = [name for _, _, files in os.walk(state) for name in files if name[0].isdigit() or "eth0" in name]
print(json.dumps([results, links, failure, left, list(versions), started]))
"""


def conf(state: Path, version: str = "1.1.0") -> str:
    ipam = {"type": "host-local", "dataDir": str(state / "ipam"), "subnet": "10.1.0.0/16"}
    bridge = {"type": "bridge", "isGateway": True, "ipam": ipam}
    return json.dumps({"cniVersion": version, "name": "net", "plugins": [bridge]})


def play(node: Node, how: str, plugins: Path, state: Path, version: str = "1.1.0") -> list[Any]:
    state.mkdir()
    containers = [node.container() for _ in range(6)]
    environ = {"CNI_AGENT_SOCKET": ""}
    paths = [container.path for container in containers]
    arguments = [how, str(plugins), str(state), conf(state, version), *paths]
    played: list[Any] = json.loads(node.python(PROGRAM, *arguments, env=environ))
    assert all(links(container) == {"lo"} for container in containers)
    return played


def told(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what chance or the test's own names make different."""
    bridge, _, inside = result["interfaces"]
    return {**result, "interfaces": [bridge["mac"], inside["name"], inside["mac"]]}


def test_the_same_as_with_processes(node: Node, plugins: Path, tmp_path: Path) -> None:
    first = play(node, "in process", plugins, tmp_path / "one")
    second = play(node, "processes", plugins, tmp_path / "two")
    assert [told(result) for result in first[0]] == [told(result) for result in second[0]]
    assert first[1] == second[1] == 6
    assert first[2] == second[2]
    assert first[3] == second[3] == []
    assert first[4] == second[4]
    assert first[5] == []
    assert set(second[5]) == {"bridge"}


def test_other_peoples_plugins_are_processes(node: Node, plugins: Path, go_plugins: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "bridge").symlink_to(plugins / "bridge")
    (mixed / "host-local").symlink_to(go_plugins / "host-local")
    played = play(node, "in process", mixed, tmp_path / "state", "1.0.0")
    assert set(played[5]) == {"host-local"}
    assert len(played[0]) == 6


@pytest.mark.parametrize("how", ["in process", "processes"])
def test_deleting_many_goes_on_past_failures(node: Node, plugins: Path, tmp_path: Path, how: str) -> None:
    code = """
import sys
from cni.spec.errors import CNIError
from cni.runtime import CNI, Exec, InProcess, NetworkConfigList, RuntimeConf
how, plugins, state, conf, good, bad = sys.argv[1:]
cni = CNI([plugins], f"{state}/cache", InProcess() if how == "in process" else Exec())
network = NetworkConfigList.from_bytes(conf.encode())
wrong = NetworkConfigList.from_bytes(conf.encode().replace(b'"host-local"', b'"missing"'))
fine = RuntimeConf("good", good, "eth0")
cni.add(network, fine)
try:
    cni.delete_all([(wrong, RuntimeConf("bad", bad, "eth0")), (network, fine)])
except CNIError as error:
    print(error)
"""
    good, bad = node.container(), node.container()
    said = node.python(code, how, str(plugins), str(tmp_path), conf(tmp_path), good.path, bad.path)
    assert said.startswith("bad eth0: ")
    assert "missing" in said
    assert links(good) == {"lo"}


def test_in_a_child_process_too(node: Node, plugins: Path, tmp_path: Path) -> None:
    """As in a server that forks: it has none of the threads that deleted links before."""
    code = """
import os, signal, sys
from cni.runtime import group_delete
from cni.runtime import CNI, InProcess, NetworkConfigList, RuntimeConf
plugins, state, conf, *containers = sys.argv[1:]
cni = CNI([plugins], f"{state}/cache", InProcess())
network = NetworkConfigList.from_bytes(conf.encode())
one, other = (RuntimeConf(path.rpartition("/")[2], path, "eth0") for path in containers)
cni.add(network, other)
for _ in range(group_delete._WORKERS):  # so that each thread has been at work
    cni.add(network, one)
    cni.delete(network, one)
child = os.fork()
if not child:
    signal.alarm(20)
    cni.delete(network, other)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    containers = [node.container() for _ in range(2)]
    paths = [container.path for container in containers]
    assert node.python(code, str(plugins), str(tmp_path), conf(tmp_path), *paths).strip() == "7"
    assert all(links(container) == {"lo"} for container in containers)


def test_it_needs_no_more_than_a_moment_for_many(node: Node, plugins: Path, tmp_path: Path) -> None:
    """Their links go as one group, or a few: the kernel's grace periods are waited for together."""
    code = """
import sys
from cni.runtime import group_delete
from cni.runtime import CNI, InProcess, NetworkConfigList, RuntimeConf
plugins, state, conf, *containers = sys.argv[1:]
sizes = []
delete = group_delete._delete_all
group_delete._delete_all = lambda node, batch: (sizes.append(len(batch)), delete(node, batch))[1]
cni = CNI([plugins], f"{state}/cache", InProcess())
network = NetworkConfigList.from_bytes(conf.encode())
runtimes = [RuntimeConf(path.rpartition("/")[2], path, "eth0") for path in containers]
for rt in runtimes:
    cni.add(network, rt)
cni.delete_all((network, rt) for rt in runtimes)
print(len(sizes), sum(sizes))
"""
    containers = [node.container() for _ in range(32)]
    paths = [container.path for container in containers]
    groups, deleted = map(int, node.python(code, str(plugins), str(tmp_path), conf(tmp_path), *paths).split())
    assert deleted == len(containers)
    assert groups < len(containers) / 2
