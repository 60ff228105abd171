from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.spec import version
from tests.waiting import LIMIT

if TYPE_CHECKING:
    from tests.conftest import Call, Node

Json = dict[str, Any]
WITH_CHECK = [spec for spec in version.ALL if version.at_least(spec, "0.4.0")]


class Loopback:
    """The plugin, run in a node for a container whose lo is still down."""

    def __init__(self, node: Node, call: Call) -> None:
        self.node = node
        self.call = call
        self.container = node.container()
        self.container.run(["ip", "link", "set", "lo", "down"])

    def run(self, command: str, spec: str = "1.1.0", netns: str | None = None, **keys: Any) -> Any:
        """Return what is printed; the error's (code, message) where it fails."""
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": self.container.path if netns is None else netns,
            "CNI_IFNAME": "eth0",  # which is not looked at
            "CNI_PATH": "/nowhere",
        }
        config = {"cniVersion": spec, "name": "lo", "type": "loopback", **keys}
        done = self.call("cni_plugins.main.loopback", self.node.path, environ, json.dumps(config))
        answer = json.loads(done["stdout"] or "null")
        return (answer["code"], answer["msg"]) if done["status"] else answer

    def is_up(self) -> bool:
        (link,) = self.container.ip("link", "show", "dev", "lo")
        return "UP" in link["flags"]


@pytest.fixture
def loopback(node: Node, call: Call) -> Loopback:
    return Loopback(node, call)


@pytest.mark.parametrize("spec", version.ALL)
def test_up_and_down_in_every_version(loopback: Loopback, spec: str) -> None:
    result = loopback.run("ADD", spec)
    assert loopback.is_up()
    assert result["cniVersion"] == spec
    if version.at_least(spec, "0.3.0"):
        sandbox = loopback.container.path
        assert result["interfaces"] == [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": sandbox}]
        assert [(ip["address"], ip["interface"]) for ip in result["ips"]] == [("127.0.0.1/8", 0), ("::1/128", 0)]
    else:
        assert (result["ip4"]["ip"], result["ip6"]["ip"]) == ("127.0.0.1/8", "::1/128")
    assert loopback.run("ADD", spec) == result
    assert loopback.container.run(["ping", "-n", "-c1", f"-W{LIMIT}", "127.0.0.1"], check=False).returncode == 0
    assert loopback.run("DEL", spec) is None
    assert not loopback.is_up()
    assert loopback.run("DEL", spec) is None


@pytest.mark.parametrize("spec", WITH_CHECK)
def test_check(loopback: Loopback, spec: str) -> None:
    assert loopback.run("CHECK", spec) == (999, "loopback interface is down")
    loopback.run("ADD", spec)
    assert loopback.run("CHECK", spec) is None
    loopback.container.run(["ip", "link", "set", "lo", "down"])
    assert loopback.run("CHECK", spec) == (999, "loopback interface is down")


def test_the_result_of_the_plugin_before_is_passed_on(loopback: Loopback) -> None:
    before = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/x"}],
        "ips": [{"interface": 0, "address": "10.1.2.3/24"}],
        "dns": {},
    }
    passed_on = loopback.run("ADD", prevResult=before)
    assert {key: passed_on[key] for key in ("interfaces", "ips")} == {key: before[key] for key in ("interfaces", "ips")}
    assert loopback.is_up()


def test_a_result_of_another_family(loopback: Loopback) -> None:
    code, message = loopback.run("ADD", prevResult={"cniVersion": "0.4.0"})
    assert code == 999
    assert "could not parse prevResult" in message


def test_only_the_first_address_of_each_family(loopback: Loopback) -> None:
    loopback.container.run(["ip", "address", "add", "127.0.0.2/8", "dev", "lo"])
    result = loopback.run("ADD")
    assert len(result["ips"]) == 2


def test_an_address_that_does_not_belong_there(loopback: Loopback) -> None:
    loopback.container.run(["ip", "address", "add", "10.1.2.3/32", "dev", "lo"])
    message = 'loopback interface found with non-loopback address "10.1.2.3"'
    assert loopback.run("ADD") == (999, message)


def test_a_namespace_without_ipv6(loopback: Loopback) -> None:
    loopback.container.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/lo/disable_ipv6"])
    assert [ip["address"] for ip in loopback.run("ADD")["ips"]] == ["127.0.0.1/8"]


def test_a_namespace_that_is_not_there(loopback: Loopback) -> None:
    assert loopback.run("DEL", netns="/run/netns/not-there") is None
    assert loopback.run("DEL", netns="") is None
    message = 'failed to open netns "/run/netns/not-there": failed to Statfs "/run/netns/not-there": '
    for command in ("ADD", "CHECK"):
        assert loopback.run(command, netns="/run/netns/not-there") == (999, message + "no such file or directory")


def test_a_namespace_that_is_none(loopback: Loopback, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for command in ("ADD", "DEL"):
        code, message = loopback.run(command, netns=str(file))
        assert code == 999
        assert f'unknown FS magic on "{file}": ' in message


def test_what_it_has_nothing_to_do_for(loopback: Loopback) -> None:
    assert loopback.run("STATUS") is None
    assert loopback.run("GC") is None


def test_as_a_process(loopback: Loopback, plugins: Path) -> None:
    environ = {
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": loopback.container.path,
        "CNI_IFNAME": "lo",
        "CNI_PATH": str(plugins),
    }
    for command, up in (("ADD", True), ("CHECK", True), ("DEL", False)):
        config = json.dumps({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"})
        done = loopback.node.run([str(plugins / "loopback")], config, {**environ, "CNI_COMMAND": command})
        assert bool(done.stdout) == (command == "ADD")
        assert loopback.is_up() == up
