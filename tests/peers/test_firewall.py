"""The Go plugin firewall beside ours: either may come first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]

SIDES = ["ours", "theirs"]
RESULT: Json = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "br0"}, {"name": "veth0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
    "ips": [{"address": "10.1.2.3/24", "interface": 2}, {"address": "2001:db8::5/64", "interface": 2}],
}


class Firewall:
    """Both sides' plugin for one attachment."""

    def __init__(self, node: Node, folders: dict[str, Path]) -> None:
        self.node = node
        self.container = node.container()
        self.folders = folders
        self.config: Json = {"cniVersion": "1.0.0", "name": "mynet", "type": "firewall", "backend": "iptables"}

    def __call__(self, by: str, verb: str, **config: Any) -> Json | None:
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "cid1",
            "CNI_NETNS": self.container.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/nowhere",
            "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere",
        }
        stdin = json.dumps({**self.config, "prevResult": RESULT, **config})
        done = self.node.run([str(self.folders[by] / "firewall")], stdin=stdin, env=environ, check=False)
        assert done.returncode == 0, f"{by}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout) if done.stdout else None

    def rules(self) -> list[list[str]]:
        """Of both families. The Go plugin of before 1.2 has one comment for all rules of isolation."""
        saved = [self.node.iptables_save(version, "filter") for version in (4, 6)]
        return [
            [line.replace("same-bridge|isolated", "same-bridge") for line in sorted_chains(lines)] for lines in saved
        ]


def sorted_chains(lines: list[str]) -> list[str]:
    """Each chain's rules keep their order."""
    return sorted(lines, key=lambda line: line.split()[:2] if line.startswith("-A") else ["", line])


@pytest.fixture
def make(make_node: Callable[[], Node], folders: dict[str, Path]) -> Callable[[], Firewall]:
    return lambda: Firewall(make_node(), folders)


CONFIGS: dict[str, Json] = {
    "open": {},
    "automatic": {"backend": ""},
    "another admin chain": {"iptablesAdminChainName": "MINE"},
    "same-bridge": {"ingressPolicy": "same-bridge"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_both_make_the_same_of_it(make: Callable[[], Firewall], name: str) -> None:
    theirs, ours = make(), make()
    result = ours("ours", "ADD", **CONFIGS[name])
    assert result == RESULT
    their_result = theirs("theirs", "ADD", **CONFIGS[name])
    assert their_result
    assert {**their_result, "dns": {}} == {**RESULT, "dns": {}}
    assert ours.rules() == theirs.rules()
    theirs("theirs", "DEL", **CONFIGS[name])
    ours("ours", "DEL", **CONFIGS[name])
    assert ours.rules() == theirs.rules()


@pytest.mark.parametrize("name", ["open", "automatic", "another admin chain"])
@pytest.mark.parametrize(("first", "second"), [SIDES, SIDES[::-1]])
def test_what_one_has_made_the_other_leaves_checks_and_removes(
    make: Callable[[], Firewall], first: str, second: str, name: str
) -> None:
    firewall = make()
    config = CONFIGS[name]
    firewall(first, "ADD", **config)
    made = firewall.rules()
    firewall(second, "CHECK", **config)
    firewall(second, "ADD", **config)
    assert firewall.rules() == made
    firewall(second, "DEL", **config)
    assert [line for lines in firewall.rules() for line in lines if "ACCEPT" in line and "CNI" in line] == []


@pytest.mark.parametrize(("first", "second"), [SIDES, SIDES[::-1]])
def test_isolation_by_both(make: Callable[[], Firewall], first: str, second: str) -> None:
    """Comments of before 1.2 differ, so that some rules are there twice; but each bridge's before the end."""
    firewall = make()
    for by in (first, second):
        firewall(by, "ADD", ingressPolicy="same-bridge")
    firewall("ours", "CHECK", ingressPolicy="same-bridge")
    for lines in firewall.rules():
        forward = [line.split()[-1] for line in lines if line.startswith("-A FORWARD")]
        assert list(dict.fromkeys(forward)) == ["CNI-ISOLATION-STAGE-1", "CNI-FORWARD"]
        for stage in (1, 2):
            ends = [line.split()[-1] for line in lines if line.startswith(f"-A CNI-ISOLATION-STAGE-{stage}")]
            assert ends[-1] == "RETURN"
            assert ends[0] == ("CNI-ISOLATION-STAGE-2" if stage == 1 else "DROP")


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_versions_that_both_have(make: Callable[[], Firewall], version: str) -> None:
    ips = [{"version": "4", "interface": 2, "address": "10.1.2.3/24"}] if version == "0.4.0" else RESULT["ips"]
    previous = {**RESULT, "cniVersion": version, "ips": ips}
    firewall = make()
    printed = [firewall(by, "ADD", cniVersion=version, prevResult=previous) for by in SIDES]
    for result in printed:
        assert result
        result.setdefault("dns", {})
    assert printed[0] == printed[1]
    for by in SIDES:
        firewall(by, "CHECK", cniVersion=version, prevResult=previous)
