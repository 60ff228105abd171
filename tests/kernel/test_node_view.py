"""`cni list`, `cni graph` and `cni doctor` on a node with containers, and with damage done on purpose."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.invoke import launcher
from tests.waiting import is_listening, until

if TYPE_CHECKING:
    from tests.conftest import Node
    from tests.kernel.conftest import Firewalld

# No other test's, nor that of a process beside this one: what any namespace of the machine has counts as in use.
SUBNET = f"10.209.{os.getpid() % 250}"
MAC = f"0a:58:0a:d1:{os.getpid() % 250:02x}:02"
HOUR = 3600
FORWARDING = "net/ipv4/ip_forward"
ATTACH = """
import json, sys
from cni.runtime import *
folder, cache, plugins, calls = sys.argv[1:]
for network, id, netns, ifname, ports in json.loads(calls):
    rt = RuntimeConf(id, netns, ifname, capability_args={"portMappings": ports} if ports else {})
    CNI([plugins], cache).add(load_network_list(folder, network), rt)
"""


class Host:
    """A node with an uplink and the networks `pods` (with published ports) and `storage`."""

    def __init__(self, node: Node, folder: Path, plugins: Path) -> None:
        self.node = node
        self.conf = folder / "net.d"
        self.cache = folder / "cni"
        self.state = folder / "networks"
        self.plugins = folder / "bin"
        self.conf.mkdir()
        self.plugins.mkdir()
        for path in plugins.iterdir():
            os.link(path, self.plugins / path.name)
        self.environ = {
            "NETCONFPATH": str(self.conf),
            "CNI_PATH": str(self.plugins),
            "CNI_AGENT_SOCKET": str(folder / "agent.sock"),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        node.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/conf/all/route_localnet"])
        for command in (
            "link add eth0 type veth peer name wire0",
            "address add 192.0.2.10/24 dev eth0",
            "link set eth0 up",
            "link set wire0 up",
            "route add default via 192.0.2.1",
        ):
            node.run(["ip", *command.split()])
        ipam = self.host_local(f"{SUBNET}.0/25")
        pods = {"type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "ipMasq": True, "ipam": ipam}
        portmap = {"type": "portmap", "backend": "iptables", "capabilities": {"portMappings": True}}
        self.configure("pods", {**pods, "ipMasqBackend": "nftables"}, portmap)
        self.configure("storage", {"type": "bridge", "bridge": "br1", "ipam": self.host_local(f"{SUBNET}.128/25")})

    def host_local(self, subnet: str) -> dict[str, Any]:
        return {"type": "host-local", "subnet": subnet, "dataDir": str(self.state)}

    def configure(self, name: str, *plugins: dict[str, Any]) -> Path:
        path = self.conf / f"{name}.conflist"
        path.write_text(json.dumps({"cniVersion": "1.1.0", "name": name, "plugins": plugins}, indent=2))
        return path

    def attach(self, *calls: tuple[Any, ...]) -> None:
        """Each call is a network, a container's id, its namespace, an interface and ports."""
        words = [str(self.conf), str(self.cache), str(self.plugins), json.dumps(calls)]
        self.node.python(ATTACH, *words, env=self.environ)

    def cni(self, *words: str, status: int | None = 0, **environ: str) -> str:
        command = [sys.executable, "-P", "-m", "cni", *words, "--cache-dir", str(self.cache)]
        done = self.node.run(command, env={**self.environ, **environ}, check=False)
        assert status in (None, done.returncode), done
        return done.stdout

    def listed(self) -> dict[str, dict[str, Any]]:
        """By container and interface."""
        told = json.loads(self.cni("list", "--json"))
        return {f"{one['containerID']} {one['ifname']}": one for one in told["attachments"]}

    def doctor(self, *topics: str, status: int | None, **environ: str) -> list[dict[str, str]]:
        told = json.loads(self.cni("doctor", *topics, "--json", status=status, **environ))
        found: list[dict[str, str]] = told["findings"]
        return found


def complaints(findings: list[dict[str, str]]) -> list[str]:
    return [each["finding"] for each in findings if each["severity"] in ("error", "warning")]


@pytest.fixture
def host(node: Node, tmp_path: Path, plugins: Path) -> Host:
    return Host(node, tmp_path, plugins)


@pytest.fixture
def two(host: Host) -> tuple[Node, Node]:
    """`web` on both networks, with a published port, and `db` on one."""
    web, db = host.node.container(), host.node.container()
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    host.attach(
        ("pods", "web", web.path, "eth0", ports),
        ("storage", "web", web.path, "net1", []),
        ("storage", "db", db.path, "eth0", []),
    )
    return web, db


def problems(one: dict[str, Any]) -> list[str]:
    return [problem["problem"] for problem in one["problems"]]


Damage = Callable[[Host, "Node", str], object]


def inside(command: str) -> Damage:
    """By `ip` in the container."""
    return lambda host, web, port: web.run(["ip", *command.split()])


def outside(command: str) -> Damage:
    """By `ip` on the node."""
    return lambda host, web, port: host.node.run(["ip", *command.format(port=port).split()])


def reserved_for(whom: str) -> Damage:
    """The address is another's, or nobody's."""

    def damage(host: Host, web: Node, port: str) -> None:
        path = host.state / "pods" / f"{SUBNET}.2"
        path.unlink()
        if whom:
            path.write_text(f"{whom}\r\neth0")

    return damage


class TestList:
    def test_a_sound_node(self, host: Host, two: tuple[Node, Node]) -> None:
        lines = host.cni("list").splitlines()
        assert lines[0].split() == ["NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "MAC", "AGE", "HEALTH"]
        assert [line.split()[:4] for line in lines[1:]] == [
            ["pods", "web", "eth0", f"{SUBNET}.2/25"],
            ["storage", "web", "net1", f"{SUBNET}.130/25"],
            ["storage", "db", "eth0", f"{SUBNET}.131/25"],
        ]
        assert all(line.endswith("healthy") for line in lines[1:])
        web = host.listed()["web eth0"]
        (link,) = two[0].ip("link", "show", "dev", "eth0")
        assert web["mac"] == link["address"]
        assert web["ports"] == [":8080 -> 80/tcp"]
        assert (web["bridge"], web["health"], web["problems"]) == ("cni0", "healthy", [])
        assert web["hostInterface"] in {one["ifname"] for one in host.node.ip("link", "show", "master", "cni0")}

    def test_a_cache_that_does_not_say_where_containers_are(self, host: Host, two: tuple[Node, Node]) -> None:
        """As Go's libcni before 1.2 writes it, so podman and containerd 1: the result has to tell."""
        for path in (host.cache / "results").iterdir():
            entry = json.loads(path.read_text())
            del entry["netns"]
            path.write_text(json.dumps(entry))
        listed = host.listed()
        assert {each["health"] for each in listed.values()} == {"healthy"}
        assert listed["db eth0"]["netns"] == two[1].path
        assert complaints(host.doctor("attachments", "leftovers", status=0)) == []

    def test_filters(self, host: Host, two: tuple[Node, Node]) -> None:
        assert len(host.cni("list", "--network", "storage").splitlines()) == 3
        assert len(host.cni("list", "--container", "we", "--network", "pods").splitlines()) == 2
        assert host.cni("list", "--network", "nowhere", status=1) == "no attachments\n"

    @pytest.mark.parametrize(
        ("damage", "health", "expected"),
        [
            (inside("link set eth0 down"), "broken", "its interface eth0 is down"),
            (inside("link delete eth0"), "broken", "its interface eth0 is gone"),
            (inside("address flush dev eth0"), "broken", "its address {subnet}.2/25 is gone"),
            (
                inside("link set eth0 address 02:00:00:00:00:07"),
                "impaired",
                "its MAC is 02:00:00:00:00:07, where ADD set {mac}",
            ),
            (outside("link delete cni0"), "broken", "its bridge cni0 is gone"),
            (outside("link set cni0 down"), "broken", "its bridge cni0 is down"),
            (outside("link set {port} down"), "broken", "the node's end of its link, {port}, is down"),
            (outside("link set {port} nomaster"), "broken", "{port} is no port of the bridge cni0 any more"),
            (reserved_for(""), "impaired", "its address {subnet}.2 is not reserved: another container may get it"),
            (reserved_for("other"), "broken", "its address {subnet}.2 is reserved for other"),
        ],
    )
    def test_damage(self, host: Host, two: tuple[Node, Node], damage: Damage, health: str, expected: str) -> None:
        port = host.listed()["web eth0"]["hostInterface"]
        damage(host, two[0], port)
        listed = host.listed()
        assert listed["web eth0"]["health"] == health
        assert expected.format(port=port, subnet=SUBNET, mac=MAC) in problems(listed["web eth0"])
        assert listed["db eth0"]["health"] == "healthy"

    def test_a_namespace_that_is_gone(self, host: Host, two: tuple[Node, Node], doomed: Callable[[Node], None]) -> None:
        doomed(two[1])
        one = host.listed()["db eth0"]
        assert (one["health"], problems(one)) == ("gone", [f"its namespace {two[1].path} is gone"])
        assert one["problems"][0]["cure"] == "cni gc"


class TestGraph:
    def test_the_tree(self, host: Host, two: tuple[Node, Node]) -> None:
        tree = host.cni("graph")
        for words in (
            "eth0  uplink  192.0.2.10/24  default route  routes for cni0",
            f"cni0  bridge: pods  {SUBNET}.1/25",
            "br1  bridge: storage",
            f"web  eth0 {SUBNET}.2/25",
            f"web  net1 {SUBNET}.130/25",
            "node :8080 -> 80/tcp",
        ):
            assert words in tree
        assert "storage" not in host.cni("graph", "--network", "pods")
        told = json.loads(host.cni("graph", "--json"))
        assert [(one["device"], one["state"]) for one in told["segments"]] == [("br1", "up"), ("cni0", "up")]

    def test_what_is_down_or_gone_is_told(self, host: Host, two: tuple[Node, Node]) -> None:
        host.node.run(["ip", "link", "delete", "br1"])
        host.node.run(["ip", "link", "set", "cni0", "down"])
        tree = host.cni("graph")
        assert "br1  bridge: storage  gone" in tree
        assert f"cni0  bridge: pods  {SUBNET}.1/25  down" in tree
        assert "its bridge br1 is gone" in tree

    def test_a_port_that_nobody_remembers(self, host: Host, two: tuple[Node, Node]) -> None:
        for path in (host.cache / "results").glob("storage-db-*"):
            path.unlink()
        assert "a port of no attachment that a runtime remembers" in host.cni("graph")
        assert "a port of no attachment" in host.cni("graph", "--output", "-")

    def test_twenty_containers_are_drawn_without_overlaps(self, host: Host) -> None:
        calls: list[tuple[Any, ...]] = []
        for number in range(20):
            id = hashlib.sha256(str(number).encode()).hexdigest()
            container = host.node.container()
            ports = [{"hostPort": 8000 + number, "containerPort": 80, "protocol": "tcp"}] if number % 4 == 0 else []
            calls.append(("storage" if number % 3 == 0 else "pods", id, container.path, "eth0", ports))
            if number % 5 == 1:
                calls.append(("storage" if number % 3 else "pods", id, container.path, "net1", []))
        host.attach(*calls)
        sound = host.cni("graph", "--output", "-")
        host.node.run(["ip", "link", "delete", "br1"])
        damaged = host.cni("graph", "--output", "-")
        for svg in (sound, damaged):
            assert_legible(svg)
            for _, id, *_ in calls:
                assert id[:12] in svg
        assert "its bridge br1 is gone" not in sound
        assert "its bridge br1 is gone" in damaged


Extent = tuple[float, float, float, float]  # left, top, right, bottom


def assert_legible(svg: str) -> None:
    """No text lies over another or over a frame, no box over another, and all of it is in the picture."""
    root = ET.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    texts = [_extent_of_text(one) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    boxes = [_extent_of_rect(one) for one in root.iter("{http://www.w3.org/2000/svg}rect") if "x" in one.attrib]
    assert len(boxes) > 40
    for left, top, right, bottom in (*texts, *boxes):
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
    for one, other in combinations(texts, 2):
        assert not _overlap(one, other), (one, other)
    for one, other in combinations(boxes, 2):
        assert not _overlap(one, other), (one, other)
    for text in texts:
        for box in boxes:
            assert not _overlap(text, box) or _is_within(text, box), (text, box)


def _extent_of_text(one: ET.Element) -> Extent:
    x, y = float(one.attrib["x"]), float(one.attrib["y"])
    return x, y - 11, x + len(one.text or "") * 12 * 0.61, y + 3


def _extent_of_rect(one: ET.Element) -> Extent:
    x, y, width, height = (float(one.attrib[name]) for name in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


def _overlap(one: Extent, other: Extent) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _is_within(inner: Extent, outer: Extent) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


class TestDoctor:
    def test_a_sound_node_is_well(self, host: Host, two: tuple[Node, Node]) -> None:
        findings = host.doctor(status=0)
        assert complaints(findings) == []
        topics = ["kernel", "tools", "permissions", "sysctls", "plugins", "configuration"]
        fine = {each["topic"] for each in findings if each["severity"] == "ok"}
        assert fine == {*topics, "attachments", "leftovers", "firewall"}
        assert "as ADD left them: 3 of 3" in host.cni("doctor", "attachments")
        assert "all is well" in host.cni("doctor", "attachments", "leftovers")

    def test_nothing_of_the_nodes_is_changed(self, host: Host, two: tuple[Node, Node]) -> None:
        def state() -> Any:
            links = [(one["ifindex"], one["ifname"], one["flags"]) for one in host.node.ip("link")]
            return links, host.node.iptables_save(), len(host.node.nft_ruleset())

        before = state()
        host.doctor(status=0)
        assert state() == before

    def test_a_node_where_nothing_is_set_up_yet(self, host: Host) -> None:
        for path in (*host.plugins.iterdir(), *host.conf.iterdir()):
            path.unlink()
        found = host.doctor("plugins", "configuration", "attachments", "leftovers", status=0)
        assert complaints(found)[0] == f"there is no plugin in {host.plugins}"
        assert complaints(found)[1:] == [f"no network is configured in {host.conf}"]

    def test_an_unknown_topic_is_misuse(self, host: Host) -> None:
        host.cni("doctor", "weather", status=2)

    def test_a_deleted_bridge(self, host: Host, two: tuple[Node, Node]) -> None:
        host.node.run(["ip", "link", "delete", "br1"])
        (found,) = [each for each in host.doctor("attachments", status=1) if each["severity"] == "error"]
        assert found["finding"] == "bridge: storage: br1 is gone"
        assert found["meaning"] == "containers that were on it have no network: db, web"

    def test_a_stale_reservation(self, host: Host, two: tuple[Node, Node]) -> None:
        path = host.state / "storage" / f"{SUBNET}.200"
        path.write_text("long-gone\r\neth0")
        os.utime(path, (time.time() - float(Path("/proc/uptime").read_text().split()[0]) - HOUR,) * 2)
        (found,) = [each for each in host.doctor("leftovers", status=0) if each["severity"] == "warning"]
        assert found["finding"].startswith(f"stale reservation: {SUBNET}.200 of network storage (long-gone eth0): ")
        assert "cni gc" in found["cure"]

    def test_an_attachment_that_is_over(
        self, host: Host, two: tuple[Node, Node], doomed: Callable[[Node], None]
    ) -> None:
        doomed(two[1])
        found = complaints(host.doctor("leftovers", "attachments", status=0))
        assert f"stale attachment: db eth0 of network storage: its namespace {two[1].path} is gone" in found

    def test_rules_of_nobody(self, host: Host, two: tuple[Node, Node]) -> None:
        for path in (host.cache / "results").glob("pods-web-*"):
            path.unlink()
        found = complaints(host.doctor("leftovers", status=0))
        assert "no runtime remembers web of network pods, which has rules in iptables and nftables" in found

    def test_a_missing_plugin(self, host: Host) -> None:
        (host.plugins / "portmap").unlink()
        (found,) = [each for each in host.doctor("plugins", status=1) if each["severity"] == "error"]
        assert found["finding"] == f"plugin portmap is in none of {host.plugins}"
        assert found["meaning"] == "no container can be attached to pods"
        assert found["cure"] == f"cni install --dir {host.plugins}"

    def test_executables_that_cannot_run(self, host: Host) -> None:
        bridge, portmap = host.plugins / "bridge", host.plugins / "portmap"
        data = bridge.read_bytes()
        bridge.unlink()  # a link to what other tests use
        bridge.write_bytes(data)
        bridge.chmod(0o644)
        portmap.unlink()
        portmap.write_bytes(
            data.replace(
                os.path.realpath(sys.executable).encode(),
                b"/nowhere/python".ljust(len(os.path.realpath(sys.executable)), b"3"),
            )
        )
        portmap.chmod(0o755)
        local = host.plugins / "host-local"
        local.unlink()
        local.write_text("#!/bin/sh\n")
        local.chmod(0o755)
        findings = host.doctor("plugins", status=1)
        told = {each["finding"]: each["severity"] for each in findings}
        assert told[f"{bridge} is not executable"] == "error"
        assert told[f"not of this project: host-local in {host.plugins}"] == "note"
        assert any(text.startswith(f"{portmap} cannot start: /nowhere/python3") for text in told)

    def test_a_typo_in_a_key(self, host: Host) -> None:
        path = host.configure(
            "storage", {"type": "bridge", "brigde": "br1", "ipam": host.host_local(f"{SUBNET}.128/25")}
        )
        found = [each for each in complaints(host.doctor("configuration", status=1)) if str(path) in each]
        assert len(found) == 1
        assert "brigde" in found[0]
        assert "bridge" in found[0].replace("brigde", "")

    @pytest.mark.parametrize("accepted", [False, True])
    def test_a_policy_that_drops(self, host: Host, two: tuple[Node, Node], accepted: bool) -> None:
        host.node.run(["iptables", "-P", "FORWARD", "DROP"])
        if accepted:
            host.node.run(["iptables", "-A", "FORWARD", "-s", f"{SUBNET}.0/24", "-j", "ACCEPT"])
            host.node.run(["iptables", "-A", "FORWARD", "-d", f"{SUBNET}.0/24", "-j", "ACCEPT"])
        findings = [
            each for each in host.doctor("firewall", status=0 if accepted else 1) if each["severity"] == "error"
        ]
        if accepted:
            assert findings == []
            return
        (found,) = findings
        words = "drops what containers of pods send: no rule accepts it"
        assert found["finding"] == f"iptables' FORWARD (policy DROP) {words}"
        assert f"iptables -I FORWARD -s {SUBNET}.2 -j ACCEPT" in found["cure"]

    def test_a_table_of_nftables_that_drops(self, host: Host, two: tuple[Node, Node]) -> None:
        rule = "add rule inet wall forward iifname eth0 accept"
        host.node.nft(f"add table inet wall\nadd chain inet wall forward {{ type filter hook forward priority 0 ; "
                      f"policy drop ; }}\n{rule}\n")  # fmt: skip
        found = complaints(host.doctor("firewall", status=1))
        assert found == ["nftables' chain inet wall forward drops what containers of pods send: no rule accepts it"]

    def test_rules_that_were_flushed(self, host: Host, two: tuple[Node, Node]) -> None:
        host.node.run(["nft", "flush", "ruleset"])
        (found,) = [each for each in host.doctor("firewall", status=1) if each["severity"] == "error"]
        assert re.match(r"attachment web eth0 of network pods lacks \d+ rules, such as: ", found["finding"])
        assert found["cure"] == "cni firewall reload"

    @pytest.mark.parametrize("with_plugin", [False, True])
    def test_firewalld(self, host: Host, firewalld: Firewalld, with_plugin: bool) -> None:
        """The real one: networks are to tell it of their addresses, and what they tell it lets packets through."""
        if with_plugin:
            for path in host.conf.iterdir():
                network = json.loads(path.read_text())
                network["plugins"].append({"type": "firewall"})
                path.write_text(json.dumps(network))
        host.environ["DBUS_SYSTEM_BUS_ADDRESS"] = firewalld.address
        container = host.node.container()
        host.attach(("pods", "web", container.path, "eth0", []))
        found = complaints(host.doctor("firewall", status=0))
        without = ["firewalld runs, and the networks pods, storage have no firewall plugin"]
        assert found == ([] if with_plugin else without)

    def test_rules_of_the_other_iptables(self, host: Host, tmp_path: Path) -> None:
        folder = tmp_path / "nft"
        folder.mkdir()
        for name in ("iptables", "ip6tables"):
            (folder / name).symlink_to(f"/usr/sbin/{name}-nft")
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        assert complaints(host.doctor("firewall", status=0, PATH=path)) == []
        host.node.run(["iptables-legacy", "-A", "FORWARD", "-s", "192.0.2.7", "-j", "DROP"])
        (found,) = complaints(host.doctor("firewall", status=0, PATH=path))
        variants = "iptables is the nf_tables variant, but there are tables of the legacy one as well: filter"
        assert found == variants

    def test_forwarding_that_was_switched_off(self, host: Host, two: tuple[Node, Node]) -> None:
        host.node.run(["sh", "-c", f"echo 0 >/proc/sys/{FORWARDING}"])
        (found,) = [each for each in host.doctor("sysctls", status=1) if each["severity"] == "error"]
        assert found["finding"] == "net.ipv4.ip_forward is 0"
        assert found["cure"].startswith("sysctl -w net.ipv4.ip_forward=1")

    def test_a_kernel_that_lacks_what_a_network_needs(self, host: Host) -> None:
        host.configure("pairs", {"type": "ptp", "linkType": "netkit"})
        findings = host.doctor("kernel", status=1)
        assert complaints(findings)[0].startswith("the kernel lacks netkit: ")
        assert "containers cannot be attached to pairs" in [each["meaning"] for each in findings]


@contextlib.contextmanager
def listening(path: str, answer: bytes = b"") -> Iterator[None]:
    """A process that listens, and says nothing but `answer`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(1)
        yield


class TestDoctorOfTheAgent:
    def test_no_agent_is_no_fault(self, host: Host) -> None:
        (found,) = [each for each in host.doctor("agent", status=0) if each["severity"] != "warning"]
        assert (found["severity"], found["finding"]) == (
            "note",
            f"no agent listens at {host.environ['CNI_AGENT_SOCKET']}",
        )
        (found,) = host.doctor("agent", status=0, CNI_AGENT_SOCKET="")
        assert found["severity"] == "note"

    def test_an_agent_that_is_stuck(self, host: Host) -> None:
        with listening(host.environ["CNI_AGENT_SOCKET"]):
            (found,) = [each for each in host.doctor("agent", status=1) if each["severity"] == "error"]
        assert found["finding"] == f"the agent (process {os.getpid()}) is stuck: it has not answered for 2 s"
        assert found["cure"].startswith(f"kill {os.getpid()};")

    def test_a_socket_that_nobody_listens_at(self, host: Host) -> None:
        with listening(host.environ["CNI_AGENT_SOCKET"]):
            pass
        found = complaints(host.doctor("agent", status=0))
        assert found[0].startswith(f"no agent answers at {host.environ['CNI_AGENT_SOCKET']}: ")

    def test_a_unit_that_failed(self, host: Host, tmp_path: Path) -> None:
        """As systemd would say it, which does not run on the node."""
        host.node.hide("/run")
        host.node.run(["mkdir", "-p", "/run/systemd/system"])
        systemctl = tmp_path / "systemctl"
        systemctl.write_text('#!/bin/sh\ntest "$*" = "is-failed cni-agent.service"\n')
        systemctl.chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        (found,) = [one for one in host.doctor("agent", status=0, PATH=path) if one["severity"] == "warning"]
        assert found["finding"] == "cni-agent.service has failed"
        assert "systemctl reset-failed cni-agent.service; systemctl start cni-agent.service" in found["cure"]

    @pytest.mark.killing
    def test_an_agent_of_this_installation_and_one_of_another(self, host: Host) -> None:
        address = host.environ["CNI_AGENT_SOCKET"]
        os.chmod(os.path.dirname(address), 0o700)
        command = [sys.executable, "-P", "-m", "cni", "agent", "--socket", address]

        def is_found(severity: str, text: str) -> bool:
            found = host.doctor("agent", status=None)  # "stuck" as long as the agent is slower than the doctor waits
            return any(each["severity"] == severity and each["finding"].startswith(text) for each in found)

        with serving(command, host) as agent:
            serves = f"the agent (process {agent}) answers, and serves the executables of "
            until(lambda: is_found("ok", serves), "an answer within the doctor's timeout")
            loopback = host.plugins / "loopback"
            data = loopback.read_bytes()
            trailer = launcher.read(str(loopback))
            assert trailer
            folder = trailer.folders[0].encode()
            loopback.unlink()
            loopback.write_bytes(data.replace(folder, b"/elsewhere".ljust(len(folder), b"/")))
            loopback.chmod(0o755)
            serves_not = f"the agent (process {agent}) does not serve the executables of /elsewhere"
            until(lambda: is_found("warning", serves_not), "an answer within the doctor's timeout")


@contextlib.contextmanager
def serving(command: list[str], host: Host) -> Iterator[int]:
    with subprocess.Popen(command, env={**os.environ, **host.environ}) as agent:
        try:
            address = host.environ["CNI_AGENT_SOCKET"]
            until(lambda: is_listening(address) or agent.poll() is not None, "the agent")
            yield agent.pid
        finally:
            agent.terminate()
