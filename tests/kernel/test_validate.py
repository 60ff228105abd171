"""`cni validate` on a node: what it says of the node's routes and plugins, and plans, which have to come true."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.invoke import launcher

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]
RANGES: Json = {"type": "host-local", "subnet": "10.1.0.0/24"}


class Host:
    """A node with a folder of configurations and our plugins."""

    def __init__(self, node: Node, plugins: Path, folder: Path) -> None:
        self.node = node
        self.folder = folder
        self._containers = [node.container(), node.container()]  # before mounts are the node's own
        for shared in ("/var/lib/cni", "/run/cni"):  # other tests may be at work there
            node.hide(shared)
        self.environ = {"CNI_PATH": str(plugins), "PYTHONPATH": launcher.PACKAGES, "NETCONFPATH": str(folder)}

    def list(self, *plugins: Json, file: str = "10-net.conflist", **keys: Any) -> Path:
        path = self.folder / file
        path.write_text(json.dumps({"cniVersion": "1.1.0", "name": "net", "plugins": plugins, **keys}))
        return path

    def cni(self, *words: str, status: int = 0, **environ: str) -> str:
        command = [sys.executable, "-P", "-m", "cni", *words]
        done = self.node.run(command, env={**self.environ, **environ}, check=False)
        assert done.returncode == status, done
        return done.stdout.replace(f"{self.folder}/", "")

    def findings(self, status: int = 0) -> list[str]:
        told = json.loads(self.cni("validate", "--json", status=status))["findings"]
        return [f"{one['file']}: {one['severity']}: {one['path']}: {one['message']}" for one in told]

    def plan(self, *words: str, status: int = 0, **environ: str) -> Json:
        (plan,) = json.loads(self.cni("validate", "--plan", "--json", *words, status=status, **environ))["plans"]
        return plan

    def add(self, **environ: str) -> Json:
        """Really."""
        command = [sys.executable, "-P", "-c", "import sys; from cni.cli.cnitool import main; sys.exit(main())"]
        container = self._containers.pop()
        # The plan's id, so that what is called after it bears the same name.
        added = self.node.run(
            [*command, "add", "net", container.path], env={**self.environ, "CNI_CONTAINERID": "container", **environ}
        )
        result: Json = json.loads(added.stdout)
        return result

    def state(self) -> list[str]:
        """All that a plan could have changed."""
        commands = [
            ["ip", "-o", "link"], ["ip", "-o", "address"], ["ip", "route", "show", "table", "all"],
            ["find", "/run/netns", "-name", "container"],
            ["nft", "list", "ruleset"], ["iptables-save", "-t", "nat"], ["find", "/var/lib/cni", "/run/cni"],
            ["cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"],
        ]  # fmt: skip
        printed = [self.node.run(command, check=False).stdout for command in commands]
        return ["\n".join(line for line in text.splitlines() if not line.startswith("#")) for text in printed]


@pytest.fixture
def host(node: Node, plugins: Path, tmp_path: Path) -> Host:
    folder = tmp_path / "net.d"
    folder.mkdir()
    return Host(node, plugins, folder)


# ---- the node ----


def test_damage_that_was_done_on_purpose(host: Host, plugins: Path, tmp_path: Path) -> None:
    """A typo in a key, a subnet that overlaps two others, a plugin that was deleted, a file that was put aside."""
    some = tmp_path / "bin"
    shutil.copytree(plugins, some)
    (some / "portmap").unlink()
    host.environ["CNI_PATH"] = str(some)
    host.node.run(["ip", "link", "add", "lan0", "type", "bridge"])
    host.node.run(["ip", "link", "set", "lan0", "up"])
    host.node.run(["ip", "address", "add", "10.1.0.77/25", "dev", "lan0"])
    bridge = {"type": "bridge", "isGateway": True, "ipam": RANGES}
    host.list(bridge, {"type": "portmap", "capabilities": {"portMappings": True}}, file="10-a.conflist", name="a")
    host.list({"type": "ptp", "ipMaskq": True, "ipam": RANGES}, file="20-b.conflist", name="b")
    host.list({"type": "loopback"}, file="30-c.conflist.disabled", name="c")
    route = "warning: plugins[0].ipam.subnet: 10.1.0.0/24 overlaps this node's route to 10.1.0.0/25 by lan0"
    assert host.findings(status=1) == [
        f"10-a.conflist: {route}",
        f'10-a.conflist: error: plugins[1].type: there is no plugin "portmap" in CNI_PATH ({some}); `cni install` puts '
        "it there",
        '20-b.conflist: error: plugins[0].ipMaskq: ptp has no such key; "ipMasq" is probably meant',
        f"20-b.conflist: {route}",
        "20-b.conflist: error: plugins[0].ipam.subnet: 10.1.0.1 to 10.1.0.254 are given out twice: here, and from "
        '10.1.0.0/24 by network "a" (10-a.conflist)',
        "30-c.conflist.disabled: warning: : runtimes ignore this file: its name has to end in .conflist, .conf, .json",
    ]


@pytest.mark.parametrize(
    "plugin", [{"type": "bridge", "isGateway": True, "ipam": RANGES}, {"type": "ptp", "ipam": RANGES}]
)
def test_a_networks_own_routes_are_no_others(host: Host, plugin: Json) -> None:
    host.list(plugin)
    host.add()
    assert host.node.ip("route")
    assert host.findings() == []


def test_a_masters_network_is_the_containers(host: Host) -> None:
    for name in ("lan0", "lan1"):
        host.node.run(["ip", "link", "add", name, "type", "veth", "peer", f"{name}p"])
        host.node.run(["ip", "link", "set", name, "up"])
        host.node.run(["ip", "link", "set", f"{name}p", "up"])
    host.node.run(["ip", "address", "add", "10.1.0.77/24", "dev", "lan0"])
    host.list({"type": "macvlan", "master": "lan0", "ipam": RANGES})
    assert host.findings() == []
    host.list({"type": "macvlan", "master": "lan1", "ipam": RANGES})
    assert host.findings() == [
        "10-net.conflist: warning: plugins[0].ipam.subnet: 10.1.0.0/24 overlaps this node's route to 10.1.0.0/24 "
        "by lan0"
    ]


# ---- plans ----

PORTS = json.dumps({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]})
BRIDGED: list[Json] = [
    {"type": "bridge", "isDefaultGateway": True, "ipMasq": True, "ipMasqBackend": "nftables", "ipam": RANGES},
    {"type": "portmap", "backend": "iptables", "capabilities": {"portMappings": True}},
]


def _without_what_differs(result: Json) -> Json:
    """Random names and MACs, and the container's path."""
    for interface in result["interfaces"]:
        interface.pop("sandbox", None)
        if interface["name"].startswith("veth"):
            interface.update(name="veth", mac="")
    return result


def test_a_plan_comes_true_and_touches_nothing(host: Host) -> None:
    host.node.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward"])
    host.list(*BRIDGED)
    before = host.state()
    plan = host.plan(CAP_ARGS=PORTS)
    assert host.state() == before
    result = host.add(CAP_ARGS=PORTS)
    assert _without_what_differs(plan["result"]) == _without_what_differs(result)
    on_node = plan["node"]
    assert on_node["links"][0] == "cni0: bridge, up, MTU 1500, MAC 0a:58:0a:01:00:01"
    assert on_node["addresses"] == ["10.1.0.1/24 on cni0"]
    assert on_node["routes"] == ["10.1.0.0/24 by cni0"]
    assert "net.ipv4.ip_forward = 1 (was 0)" in on_node["kernel parameters"]
    assert plan["container"]["addresses"] == ["10.1.0.2/24 on eth0"]
    assert plan["container"]["routes"] == ["default (IPv4) via 10.1.0.1 by eth0", "10.1.0.0/24 by eth0"]
    # Every rule of the plan is there now, by another view of it.
    saved = host.node.run(["iptables-save", "-t", "nat"]).stdout
    dnat = [rule for rule in on_node["iptables"] if "DNAT --to-destination 10.1.0.2:80" in rule]
    assert dnat
    assert "-j DNAT --to-destination 10.1.0.2:80" in saved
    ruleset = host.node.run(["nft", "list", "ruleset"]).stdout
    assert [line for line in on_node["nftables"] if "masquerade" in line]
    assert all(line.strip() in ruleset.replace("\t", "  ") for line in on_node["nftables"] if "comment" not in line)
    assert not any("HOSTPORT" in line for line in on_node["nftables"])  # which iptables has made, and shows
    files = [line.partition(": ")[0] for line in plan["files"][""]]
    assert {file for file in files if "/networks/" in file} == set(
        host.node.run(["find", "/var/lib/cni/networks", "-type", "f"]).stdout.split()
    )


def test_a_plan_goes_on_from_what_is_there(host: Host) -> None:
    """The next address, the bridge as it is, no rule that has been there before."""
    host.list(BRIDGED[0])
    host.add(CNI_CONTAINERID="first")
    plan = host.plan()
    assert plan["result"]["ips"][0]["address"] == "10.1.0.3/24"
    assert "addresses" not in plan["node"]
    assert [line for line in plan["node"]["links"] if line.startswith("cni0")] == []
    assert _without_what_differs(plan["result"]) == _without_what_differs(host.add(CNI_CONTAINERID="second"))


def test_a_plan_on_a_master(host: Host) -> None:
    host.node.run(["ip", "link", "add", "lan0", "type", "veth", "peer", "lan0p"])
    for name in ("lan0", "lan0p"):
        host.node.run(["ip", "link", "set", name, "addrgenmode", "none", "up"])  # no address that comes by itself
    host.node.run(["ip", "link", "set", "lan0", "mtu", "1400"])
    host.list({"type": "macvlan", "master": "lan0", "ipam": RANGES})
    before = host.state()
    assert host.plan()["container"]["links"] == ["eth0: macvlan, up, MTU 1400, MAC 0a:58:0a:01:00:02"]
    assert host.state() == before


def test_state_that_is_kept_elsewhere(host: Host, tmp_path: Path) -> None:
    elsewhere = tmp_path / "state"
    host.list({"type": "ptp", "ipam": {**RANGES, "dataDir": str(elsewhere)}})
    plan = host.plan()
    assert f'{elsewhere}/net/10.1.0.2: "container\\r\\neth0"' in plan["files"][""]
    assert not elsewhere.exists()


def test_a_plan_that_fails(host: Host) -> None:
    host.list({"type": "macvlan", "master": "none0", "ipam": RANGES})
    plan = host.plan(status=1)
    assert plan["failure"].startswith('plugin type="macvlan" failed (add): ')
    assert "none0" in plan["failure"]
    assert plan["result"] is None
    assert "would fail: plugin" in host.cni("validate", "--plan", status=1)


def test_a_plan_for_a_person(host: Host) -> None:
    host.list({"type": "ptp", "ipam": RANGES})
    assert "\n  container: addresses\n    10.1.0.2/24 on eth0\n" in host.cni("validate", "--plan")


def test_what_is_wrong_is_not_planned(host: Host) -> None:
    host.list({"type": "ptp", "mtu": "x", "ipam": RANGES})
    assert json.loads(host.cni("validate", "--plan", "--json", status=1))["plans"] == []
