"""`cni firewall reload` on a node whose rules someone has flushed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.node.formatting import counted

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]

FOREIGN = "table inet others { chain c { type filter hook input priority 0 ; tcp dport 9 drop ; } ; }"
# A backend, the commands that take something away, and how many attachments that is about.
FLUSHES = [
    ("iptables", ["nft flush ruleset"], 3),
    (
        "iptables",
        [f"{command} -t {table} -F" for command in ("iptables", "ip6tables") for table in ("filter", "nat")],
        3,
    ),
    ("iptables", ["iptables -D CNI-FORWARD 2"], 1),
    ("nftables", ["nft flush ruleset"], 3),
    ("nftables", ["nft flush chain inet cni_plugins_masquerade masq_checks", "nft flush table bridge nat"], 3),
    ("nftables", ["nft flush set inet cni_firewall containers6", "nft delete table ip cni_hostport"], 3),
    ("nftables", ["nft flush chain bridge nat PREROUTING"], 2),
]
ADD = """
import sys
from cni.runtime import CNI, RuntimeConf, load_network_list
import json
folder, cache, plugins, id, path, name, arguments = sys.argv[1:]
rt = RuntimeConf(id, path, "eth0", capability_args=json.loads(arguments))
CNI([plugins], cache).add(load_network_list(folder, name), rt)
"""
DELETE = ADD.replace(".add(", ".delete(")


class Host:
    """A node with networks of bridge or ptp and what is chained to them, and the command as a person would call it."""

    def __init__(self, node: Node, folder: Path, plugins: Path) -> None:
        self.node = node
        self.folder = folder
        self.conf = folder / "net.d"
        self.cache = folder / "cni"
        self.plugins = plugins
        self.conf.mkdir()
        self.networks = 0
        self.environ = {
            "NETCONFPATH": str(self.conf),
            "CNI_PATH": str(plugins),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere",
        }

    def configure(self, *chained: Json, name: str = "pods", **first: Any) -> None:
        self.networks += 1
        ranges = [[{"subnet": f"10.{self.networks}.2.0/24"}], [{"subnet": f"2001:db8:{self.networks}::/64"}]]
        ipam = {"type": "host-local", "dataDir": str(self.folder / "networks"), "ranges": ranges}
        main = {
            "type": "bridge",
            "bridge": f"br{self.networks}",
            "isDefaultGateway": True,
            "ipMasq": True,
            "ipam": ipam,
        }
        conf = {"cniVersion": "1.0.0", "name": name, "plugins": [{**main, **first}, *chained]}
        (self.conf / f"{name}.conflist").write_text(json.dumps(conf))

    def attach(self, name: str = "pods", *, plugins: Path | None = None, **capabilities: Any) -> Node:
        container = self.node.container()
        self.runtime(ADD, container, name, plugins, capabilities)
        return container

    def delete(self, container: Node, name: str = "pods", **capabilities: Any) -> None:
        self.runtime(DELETE, container, name, None, capabilities)

    def runtime(self, code: str, container: Node, name: str, plugins: Path | None, capabilities: Json) -> None:
        words = [str(self.conf), str(self.cache), str(plugins or self.plugins), container.name, container.path, name]
        environ = {"DBUS_SYSTEM_BUS_ADDRESS": self.environ["DBUS_SYSTEM_BUS_ADDRESS"]}
        self.node.python(code, *words, json.dumps(capabilities), env=environ)

    def reload(self, *words: str, status: int = 0, **environ: str) -> tuple[list[str], str]:
        """The lines of its stdout, and its stderr."""
        command = [sys.executable, "-P", "-m", "cni", "firewall", "reload", "--cache-dir", str(self.cache), *words]
        done = self.node.run(command, env={**self.environ, **environ}, check=False)
        assert done.returncode == status, done
        return done.stdout.splitlines(), done.stderr

    def everything(self) -> Any:
        """All rules, by chain: chains may come back in another order."""
        ruleset = self.node.nft_ruleset()
        chains: Json = {}
        for entry in ruleset:
            for kind, properties in entry.items():
                table = f"{properties.get('family')} {properties.get('table', properties.get('name'))}"
                chain = properties.get("chain", f"{kind} {properties['name']}" if "name" in properties else kind)
                chains.setdefault(table, {}).setdefault(chain, []).append(_without_counters(properties))
        for table, of_table in chains.items():
            for chain, rules in of_table.items():
                # Elsewhere the order among attachments doesn't matter.
                if (table, chain) not in (("ip filter", "FORWARD"), ("ip6 filter", "FORWARD")):
                    rules.sort(key=json.dumps)
        return chains


def _without_counters(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_counters(each) for key, each in value.items() if key not in ("packets", "bytes")}
    return [_without_counters(each) for each in value] if isinstance(value, list) else value


@pytest.fixture
def host(node: Node, tmp_path: Path, plugins: Path) -> Host:
    return Host(node, tmp_path, plugins)


def lines_of(host: Host, *restored: Node, complete: int = 0, name: str = "pods") -> list[str]:
    lines, _ = host.reload()
    for container in restored:
        (line,) = [line for line in lines if container.name in line]
        assert line.startswith(f"restored attachment {container.name} eth0 of network "), line
        assert re.search(r": (1 missing rule|\d+ missing rules)$", line), line
    assert lines[-1] == f"{counted(len(restored), 'attachment')} restored, {complete} had all their rules"
    assert len(lines) == len(restored) + 1
    return lines


FIREWALL = {"type": "firewall", "ingressPolicy": "isolated"}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
PORTS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
]


@pytest.mark.parametrize(("backend", "commands", "count"), FLUSHES)
def test_everything_comes_back(host: Host, backend: str, commands: list[str], count: int) -> None:
    chained = [{**PORTMAP, "backend": backend}, {**FIREWALL, "backend": backend}]
    host.configure(*chained, ipMasqBackend=backend, macspoofchk=True)
    host.configure(*chained, name="wires", type="ptp", ipMasqBackend=backend)
    one, other = host.attach(portMappings=PORTS), host.attach()
    wire = host.attach("wires", portMappings=[{**PORTS[0], "hostPort": 8081}])
    before = host.everything()
    assert lines_of(host, complete=3) == ["0 attachments restored, 3 had all their rules"]
    assert host.everything() == before
    for command in commands:
        host.node.run(["sh", "-c", command])
    host.node.nft(FOREIGN)
    flushed = host.everything()
    told = host.reload("--dry-run")[0]
    assert told[-1] == f"{counted(count, 'attachment')} would be restored, {3 - count} had all their rules"
    assert [line for line in told if line.startswith("would restore attachment ")] == told[:-1]
    assert host.everything() == flushed
    lines_of(host, *[container for container in (one, other, wire) if container.name in f"{told}"], complete=3 - count)
    after = host.everything()
    assert after.pop("inet others")
    assert after == before
    lines_of(host, complete=3)
    for container, name in ((one, "pods"), (other, "pods"), (wire, "wires")):
        host.delete(container, name, portMappings=PORTS)
    left = json.dumps(host.everything())
    assert [each for each in left.split('"') if any(container.name in each for container in (one, other, wire))] == []


def address_of(container: Node) -> str:
    (eth0,) = container.ip("-4", "address", "show", "dev", "eth0")
    return str(eth0["addr_info"][0]["local"])


def test_rules_that_the_go_plugins_made(host: Host, go_plugins: Path) -> None:
    host.configure(PORTMAP, {"type": "firewall", "backend": "iptables"})
    container = host.attach(plugins=go_plugins, portMappings=PORTS)
    lines_of(host, complete=1)
    before = host.everything()
    host.node.run(["nft", "flush", "ruleset"])
    lines_of(host, container)
    assert host.everything() == before


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_what_a_delegate_has(host: Host, backend: str) -> None:
    """flannel's own rules are none; those of the bridge behind it are."""
    env = host.folder / "subnet.env"
    env.write_text("FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.2.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
    delegate = {"bridge": "br9", "ipMasqBackend": backend}
    keys = {"subnetFile": str(env), "dataDir": str(host.folder / "flannel"), "delegate": delegate}
    host.configure(type="flannel", ipam={"dataDir": str(host.folder / "networks")}, **keys)
    host.attach()
    before = host.everything()
    assert "10.9.2.2" in json.dumps(before)
    host.node.run(["nft", "flush", "ruleset"])
    host.reload()
    assert host.everything() == before


def test_where_nobody_is_attached(host: Host) -> None:
    assert host.reload() == (["0 attachments restored, 0 had all their rules"], "")
    assert host.node.nft_ruleset() == []


def test_what_is_over_is_left_to_gc(host: Host) -> None:
    host.configure(FIREWALL)
    alive, ended = host.attach(), host.attach()
    host.node.run(["nft", "flush", "ruleset"])
    host.node._containers.remove(ended)
    gone = address_of(ended)
    subprocess.run(["ip", "netns", "delete", ended.name], check=True)
    lines_of(host, alive)
    assert gone not in f"{host.everything()}"


def test_one_that_cannot_be_restored_does_not_stop_the_others(host: Host) -> None:
    host.configure(FIREWALL)
    fine, unreadable, refused = host.attach(), host.attach(), host.attach()
    entry = host.cache / "results" / f"pods-{unreadable.name}-eth0"
    cached = json.loads(entry.read_text())
    cached["result"]["ips"] = [{"address": "nowhere"}]
    entry.write_text(json.dumps(cached))
    entry = host.cache / "results" / f"pods-{refused.name}-eth0"
    cached = json.loads(entry.read_text())
    cached["result"]["interfaces"][0]["name"] = "a name that is much too long for a bridge"
    entry.write_text(json.dumps(cached))
    host.node.run(["nft", "flush", "ruleset"])
    lines, words = host.reload(status=1)
    assert [line for line in lines if line.startswith("restored")] == [line for line in lines if fine.name in line]
    assert lines[-1] == "1 attachment restored, 0 had all their rules"
    said = words.splitlines()
    assert [line for line in said if line.startswith(f"cni firewall: cannot restore attachment {unreadable.name} ")]
    assert [line for line in said if line.startswith(f"cni firewall: cannot restore attachment {refused.name} ")]
    assert address_of(fine) in f"{host.everything()}"
    told = json.loads("\n".join(host.reload("--json", status=1)[0]))
    states = {each["containerID"]: (each["restored"], "failure" in each) for each in told["attachments"]}
    assert states == {fine.name: (False, False), unreadable.name: (False, True), refused.name: (False, True)}


def test_json(host: Host) -> None:
    host.configure({**FIREWALL, "backend": "nftables"}, ipMasq=False)
    container = host.attach()
    names = {"network": "pods", "containerID": container.name, "ifname": "eth0", "netns": container.path}
    host.node.nft(f"delete element inet cni_firewall containers4 {{ {address_of(container)} }}")
    for words, restored in ((["--dry-run"], False), ([], True)):
        told = json.loads("\n".join(host.reload("--json", *words)[0]))
        (attachment,) = told.pop("attachments")
        (missing,) = attachment.pop("missing")
        assert missing.startswith(f"nft add element inet cni_firewall containers4 {{ {address_of(container)} comment ")
        assert (told, attachment) == ({"dryRun": not restored}, {**names, "restored": restored})


def test_a_network_that_is_not_configured_any_more(host: Host) -> None:
    host.configure(FIREWALL)
    container = host.attach()
    (host.conf / "pods.conflist").unlink()
    host.node.run(["nft", "flush", "ruleset"])
    lines_of(host, container)


@pytest.mark.parametrize("words", [["firewall"], ["firewall", "restore"], ["firewall", "reload", "--what"]])
def test_misuse(words: list[str], node: Node) -> None:
    done = node.run(
        [sys.executable, "-P", "-m", "cni", *words],
        check=False,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 2


def test_one_that_is_deleted_while_it_is_restored(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its DEL comes after the last look at the cache and before the transaction: the rules go again."""
    host.configure({**FIREWALL, "backend": "iptables"})
    container, kept = host.attach(), host.attach()
    gone = address_of(container)
    host.node.run(["nft", "flush", "ruleset"])
    entry = host.cache / "results" / f"pods-{container.name}-eth0"
    code = """
import os, sys
from cni.cli import main
from cni.netfilter.ruleset import Ruleset
commit = Ruleset.commit_rules
def late(self):
    os.unlink(sys.argv[1])
    commit(self)
Ruleset.commit_rules = late
sys.exit(main.main(["firewall", "reload", "--cache-dir", sys.argv[2]]))
"""
    host.node.python(code, str(entry), str(host.cache), env=host.environ)
    assert gone not in "\n".join(host.node.iptables_save(4, "filter") + host.node.iptables_save(4, "nat"))
    assert address_of(kept) in "\n".join(host.node.iptables_save(4, "filter"))
