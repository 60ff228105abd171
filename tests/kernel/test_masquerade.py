from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.kernel.netns import NetNS
from cni.netfilter import masquerade, nftables
from cni.netfilter.naming import chain_name, rule_comment
from cni.netfilter.ruleset import establish
from cni.spec.errors import CNIError
from cni.spec.ip import CIDR

if TYPE_CHECKING:
    from tests.conftest import Node

NETWORK, CID = "mynet", "cid1"
CHAIN = chain_name(NETWORK, CID)
EMPTY = [":PREROUTING ACCEPT", ":INPUT ACCEPT", ":OUTPUT ACCEPT", ":POSTROUTING ACCEPT"]
TABLE = "inet cni_plugins_masquerade"


@pytest.fixture(params=["nf_tables", "legacy"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """iptables' variant that programs without a path are, here and in the node."""
    if request.param == "legacy":
        monkeypatch.setenv("PATH", request.getfixturevalue("legacy_path"))
    return {"nf_tables": "-nft", "legacy": "-legacy"}[request.param]


@pytest.fixture(params=["with libnftables", "without"])
def libnftables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setattr(nftables, "_loaded", "left out for this test")


def setup(
    node: Node, backend: str | None, *addresses: str, owner: tuple[str, str, str] = (NETWORK, "eth0", CID)
) -> None:
    with NetNS.open(node.path) as host:
        cidrs = [CIDR.parse(address) for address in addresses]
        establish(host, lambda ruleset: masquerade.describe(ruleset, backend, cidrs, *owner))


def teardown(node: Node, network: str = NETWORK, ifname: str = "eth0", container_id: str = CID) -> None:
    with NetNS.open(node.path) as host:
        masquerade.teardown(network, ifname, container_id, host)


def gc(node: Node, network: str, *valid: tuple[str, str]) -> None:
    with NetNS.open(node.path) as host:
        masquerade.gc(network, valid, host)


def check(node: Node, *addresses: str) -> None:
    with NetNS.open(node.path) as host:
        masquerade.check([CIDR.parse(address) for address in addresses], NETWORK, "eth0", CID, host)


class GoBridge:
    """The Go plugin, run in a node for a container of its own."""

    def __init__(self, node: Node, plugins: Path, folder: Path) -> None:
        self.plugins = plugins
        self.node = node
        self.container = node.container()
        ranges = [[{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]]
        self.config = {
            "cniVersion": "1.0.0",
            "name": NETWORK,
            "type": "bridge",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "dataDir": str(folder), "ranges": ranges},
        }
        self.environ = {
            "CNI_CONTAINERID": CID,
            "CNI_NETNS": self.container.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(plugins),
            "PATH": os.environ["PATH"],
        }

    def add(self) -> list[str]:
        """The addresses it gave."""
        return [ip["address"] for ip in json.loads(self._run("ADD"))["ips"]]

    def delete(self) -> None:
        self._run("DEL")

    def _run(self, command: str) -> str:
        environ = {**self.environ, "CNI_COMMAND": command}
        return self.node.run([f"{self.plugins}/bridge"], stdin=json.dumps(self.config), env=environ).stdout


@pytest.fixture
def go_bridge(go_plugins: Path, tmp_path: Path, variant: str) -> Callable[[Node], GoBridge]:
    return lambda node: GoBridge(node, go_plugins, tmp_path / "ipam")


# iptables, against the Go plugin


def test_the_iptables_layout_is_the_go_plugins(
    make_node: Callable[[], Node], go_bridge: Callable[[Node], GoBridge], variant: str
) -> None:
    theirs, ours = make_node(), make_node()
    addresses = go_bridge(theirs).add()
    assert len(addresses) == 2
    setup(ours, "iptables", *addresses)
    for version in (4, 6):
        rules = theirs.iptables_save(version, variant=variant)
        assert ours.iptables_save(version, variant=variant) == rules
        assert len([rule for rule in rules if rule.startswith("-A")]) == 3


def test_adding_to_what_the_go_plugin_made_changes_nothing(
    node: Node, go_bridge: Callable[[Node], GoBridge], variant: str, libnftables: None
) -> None:
    addresses = go_bridge(node).add()
    before = [node.iptables_save(version, variant=variant) for version in (4, 6)]
    setup(node, "iptables", *addresses)
    assert [node.iptables_save(version, variant=variant) for version in (4, 6)] == before


def test_ours_removes_theirs(
    node: Node, go_bridge: Callable[[Node], GoBridge], variant: str, libnftables: None
) -> None:
    go_bridge(node).add()
    teardown(node)
    assert [node.iptables_save(version, variant=variant) for version in (4, 6)] == [EMPTY, EMPTY]


def test_theirs_removes_ours(node: Node, go_bridge: Callable[[Node], GoBridge], variant: str) -> None:
    bridge = go_bridge(node)
    addresses = bridge.add()
    teardown(node)
    setup(node, "iptables", *addresses)
    bridge.delete()
    assert [node.iptables_save(version, variant=variant) for version in (4, 6)] == [EMPTY, EMPTY]


# iptables, on its own


def test_iptables_setup_twice_leaves_each_rule_once(node: Node, variant: str, libnftables: None) -> None:
    setup(node, "iptables", "10.1.2.3/24", "2001:db8::3/64")
    before = [node.iptables_save(version, variant=variant) for version in (4, 6)]
    setup(node, "iptables", "10.1.2.3/24", "2001:db8::3/64")
    assert [node.iptables_save(version, variant=variant) for version in (4, 6)] == before


def test_iptables_setup_mends_what_is_half_there(node: Node, variant: str, libnftables: None) -> None:
    setup(node, "iptables", "10.1.2.3/24")
    whole = node.iptables_save(4, variant=variant)
    node.run([f"iptables{variant}", "-t", "nat", "-F", "POSTROUTING"])
    setup(node, "iptables", "10.1.2.3/24")
    assert node.iptables_save(4, variant=variant) == whole


def test_two_interfaces_of_a_container_share_the_iptables_chain(node: Node, variant: str, libnftables: None) -> None:
    setup(node, "iptables", "10.1.2.3/24")
    setup(node, "iptables", "10.1.3.4/24", owner=(NETWORK, "net1", CID))
    rules = [rule for rule in node.iptables_save(4, variant=variant) if rule.startswith("-A")]
    assert [rule.split()[-1] for rule in rules] == [CHAIN, CHAIN, "ACCEPT", "MASQUERADE", "ACCEPT"]
    assert [rule.split()[3] for rule in rules if "POSTROUTING" in rule] == ["10.1.2.3/32", "10.1.3.4/32"]
    teardown(node)
    assert node.iptables_save(4, variant=variant) == EMPTY


def test_iptables_teardown_leaves_others_alone(node: Node, variant: str, libnftables: None) -> None:
    setup(node, "iptables", "10.1.2.4/24", owner=(NETWORK, "eth0", "cid2"))
    node.run([f"iptables{variant}", "-t", "nat", "-A", "POSTROUTING", "-s", "10.9.9.9", "-j", "RETURN"])
    others = node.iptables_save(4, variant=variant)
    setup(node, "iptables", "10.1.2.3/24")
    assert node.iptables_save(4, variant=variant) != others
    teardown(node)
    assert node.iptables_save(4, variant=variant) == others
    teardown(node)
    assert node.iptables_save(4, variant=variant) == others


def test_iptables_teardown_of_what_very_old_plugins_made(node: Node, variant: str, libnftables: None) -> None:
    """Before v0.8.0 the jump named the network, not the address."""
    node.run([f"iptables{variant}", "-t", "nat", "-N", CHAIN])
    comment = ["-m", "comment", "--comment", rule_comment(NETWORK, CID)]
    for source in ("10.1.2.3/24", "10.1.2.3"):
        rule = ["-A", "POSTROUTING", "-s", source, "-j", CHAIN, *comment]
        node.run([f"iptables{variant}", "-t", "nat", *rule])
    teardown(node)
    assert node.iptables_save(4, variant=variant) == EMPTY


def test_iptables_teardown_of_a_chain_that_nothing_enters(node: Node, variant: str, libnftables: None) -> None:
    node.run([f"iptables{variant}", "-t", "nat", "-N", CHAIN])
    teardown(node)
    assert node.iptables_save(4, variant=variant) == EMPTY


def test_iptables_gc(node: Node, variant: str, libnftables: None) -> None:
    setup(node, "iptables", "10.1.2.4/24", owner=(NETWORK, "eth0", "cid2"))
    setup(node, "iptables", "10.1.2.3/24", owner=("othernet", "eth0", CID))
    kept = node.iptables_save(4, variant=variant)
    setup(node, "iptables", "10.1.2.3/24", "2001:db8::3/64")
    gc(node, NETWORK, ("cid2", "eth0"), ("cid3", "eth0"))
    assert sorted(node.iptables_save(4, variant=variant)) == sorted(kept)
    assert node.iptables_save(6, variant=variant) == EMPTY
    gc(node, NETWORK)
    gc(node, "othernet")
    assert node.iptables_save(4, variant=variant) == EMPTY


def test_teardown_and_gc_of_nothing_leave_no_trace(node: Node, libnftables: None) -> None:
    teardown(node)
    gc(node, NETWORK)
    assert node.nft_ruleset() == []


# nftables


def as_the_go_plugin(*rules: str) -> str:
    """Return what the Go plugins (1.6 and later) send to nft for these rules of `masq_checks`."""
    return f"""
        add table {TABLE} {{ comment "Masquerading for plugins from github.com/containernetworking/plugins" ; }}
        add chain {TABLE} masq_checks {{ comment "Masquerade traffic from certain IPs to any (non-multicast) IP \
outside their subnet" ; }}
        add chain {TABLE} postrouting {{ type nat hook postrouting priority 100 ; }}
        flush chain {TABLE} postrouting
        add rule {TABLE} postrouting ip daddr == 224.0.0.0/4  return
        add rule {TABLE} postrouting ip6 daddr == ff00::/8  return
        add rule {TABLE} postrouting goto masq_checks
    """ + "".join(f"\nadd rule {TABLE} masq_checks {rule}" for rule in rules)


def go_rules(owner: str, *networks: tuple[str, str]) -> list[str]:
    family = {False: "ip", True: "ip6"}
    return [
        f'{family[":" in ip]} saddr == {ip} {family[":" in ip]} daddr != {network} masquerade comment "{owner}"'
        for ip, network in networks
    ]


ONE = go_rules(
    "6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one", ("192.168.1.1", "192.168.1.0/24")
)
TWO = go_rules(
    "6fd94d501e58f0aa-d750b2c8f0f25d5f, net: unit-test, if: eth0, id: two",
    ("192.168.1.2", "192.168.1.0/24"),
    ("2001:db8::2", "2001:db8::/64"),
)
THREE = go_rules(
    "6fd94d501e58f0aa-a4d4adb82b669cfe, net: unit-test, if: eth0, id: three", ("192.168.99.5", "192.168.99.0/24")
)
ALTERNATE = go_rules(
    "82783ef24bdc7036-acb19d111858e348, net: alternate, if: net1, id: three",
    ("10.0.0.5", "10.0.0.0/24"),
    ("10.0.0.6", "10.0.0.0/24"),
    ("10.0.1.7", "10.0.1.0/24"),
    ("2001:db8::5", "2001:db8::/64"),
    ("2001:db8::6", "2001:db8::/64"),
    ("2001:db8:1::7", "2001:db8:1::/64"),
)
FOUR = go_rules(
    "6fd94d501e58f0aa-e766de567ef6c543, net: unit-test, if: eth0, id: four", ("192.168.1.1", "192.168.1.0/24")
)


def setup_all(node: Node) -> None:
    for network, ifname, container_id, addresses in (
        ("unit-test", "eth0", "one", ["192.168.1.1/24"]),
        ("unit-test", "eth0", "two", ["192.168.1.2/24", "2001:db8::2/64"]),
        ("unit-test", "eth0", "three", ["192.168.99.5/24"]),
        (
            "alternate",
            "net1",
            "three",
            ["10.0.0.5/24", "10.0.0.6/24", "10.0.1.7/24", "2001:db8::5/64", "2001:db8::6/64", "2001:db8:1::7/64"],
        ),
    ):
        setup(node, "nftables", *addresses, owner=(network, ifname, container_id))


def test_the_nftables_layout_is_the_go_plugins(make_node: Callable[[], Node], libnftables: None) -> None:
    """The Go plugins' own scenario: their rulesets, made by nft in a node beside."""

    def ruleset(*rules: str) -> list[dict[str, object]]:
        node = make_node()
        node.nft(as_the_go_plugin(*rules))
        return node.nft_ruleset()

    node = make_node()
    setup_all(node)
    assert node.nft_ruleset() == ruleset(*ONE, *TWO, *THREE, *ALTERNATE)

    # "four" gets the address of "one" before "one" is deleted
    setup(node, "nftables", "192.168.1.1/24", owner=("unit-test", "eth0", "four"))
    teardown(node, "unit-test", "eth0", "one")
    assert node.nft_ruleset() == ruleset(*TWO, *THREE, *ALTERNATE, *FOUR)

    gc(node, "unit-test", ("two", "eth0"), ("three", "eth0"), ("one", "eth0"))
    gc(node, "alternate", ("three", "net1"))
    assert node.nft_ruleset() == ruleset(*TWO, *THREE, *ALTERNATE)

    gc(node, "unit-test")
    gc(node, "alternate")
    assert node.nft_ruleset() == ruleset()


def test_ours_on_top_of_the_go_plugins_nftables_changes_nothing(node: Node, libnftables: None) -> None:
    node.nft(as_the_go_plugin(*ONE, *TWO))
    before = node.nft_ruleset()
    setup(node, "nftables", "192.168.1.1/24", owner=("unit-test", "eth0", "one"))
    assert node.nft_ruleset() == before


def test_nftables_setup_replaces_stale_rules(node: Node, libnftables: None) -> None:
    setup(node, "nftables", "10.1.2.3/24", "10.1.2.4/24")
    setup(node, "nftables", "10.1.2.5/24")
    texts = node.run(["nft", "list", "chain", *TABLE.split(), "masq_checks"]).stdout
    assert "10.1.2.5" in texts
    assert "10.1.2.3" not in texts
    assert "10.1.2.4" not in texts


@pytest.mark.parametrize(
    "damage",
    [
        f"flush chain {TABLE} postrouting",
        f"insert rule {TABLE} postrouting accept",
        "flush ruleset",
        f"flush chain {TABLE} postrouting; delete chain {TABLE} masq_checks",
    ],
)
def test_nftables_setup_mends_the_chains(node: Node, damage: str) -> None:
    setup(node, "nftables", "10.1.2.3/24")
    whole = node.nft_ruleset()
    node.nft(damage)
    setup(node, "nftables", "10.1.2.3/24")
    key = json.dumps
    assert sorted(node.nft_ruleset(), key=key) == sorted(whole, key=key)


def test_nftables_needs_no_program(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    setup(node, "nftables", "10.1.2.3/24", "2001:db8::3/64")
    check(node, "10.1.2.3/24", "2001:db8::3/64")
    teardown(node)
    gc(node, NETWORK)


def test_nftables_where_iptables_is_not_installed(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    setup(node, None, "10.1.2.3/24")
    assert "masq_checks" in json.dumps(node.nft_ruleset())


def test_iptables_where_both_can_be_used(node: Node) -> None:
    setup(node, None, "10.1.2.3/24")
    assert CHAIN in " ".join(node.iptables_save())


# both


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_check(node: Node, backend: str, libnftables: None) -> None:
    addresses = "10.1.2.3/24", "2001:db8::3/64"
    with pytest.raises(CNIError, match="cid1 is not masqueraded in network mynet"):
        check(node, *addresses)
    setup(node, backend, *addresses)
    check(node, *addresses)
    with pytest.raises(CNIError, match=r"10\.1\.2\.4"):
        check(node, *addresses, "10.1.2.4/24")
    teardown(node)
    with pytest.raises(CNIError):
        check(node, *addresses)


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_nothing_is_printed(node: Node, backend: str) -> None:
    """A plugin's stdout is its result's, and its stderr goes to the runtime's log."""
    code = f"""
from cni.netfilter import masquerade
from cni.spec.ip import CIDR
from cni.netfilter.ruleset import establish
owner = "mynet", "eth0", "cid1"
for _ in range(2):
    addresses = [CIDR.parse("10.1.2.3/24"), CIDR.parse("2001:db8::3/64")]
    establish(None, lambda ruleset: masquerade.describe(ruleset, "{backend}", addresses, *owner))
masquerade.check([CIDR.parse("10.1.2.3/24")], *owner)
masquerade.gc("mynet", [("cid1", "eth0")])
masquerade.teardown(*owner)
masquerade.teardown(*owner)
"""
    done = node.run([sys.executable, "-c", code], env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_attachments_made_and_removed_at_the_same_time(node: Node, backend: str) -> None:
    code = """
import sys
from cni.netfilter import masquerade
from cni.spec.ip import CIDR
from cni.netfilter.ruleset import establish
backend, number = sys.argv[1:]
for turn in range(10):
    attachment = "mynet", "eth0", f"cid-{number}-{turn}"
    address = CIDR.parse(f"10.1.{number}.{turn}/16")
    establish(None, lambda ruleset: masquerade.describe(ruleset, backend, [address], *attachment))
    masquerade.check([address], *attachment)
    masquerade.teardown(*attachment)
    establish(None, lambda ruleset: masquerade.describe(ruleset, backend, [address], *attachment))
"""
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: node.python(code, backend, str(number)), range(6)))
    made = json.dumps(node.nft_ruleset())
    assert made.count('"right": "10.1.') == 60
    if backend == "nftables":
        assert made.count('"goto"') == 1
    gc(node, "mynet")
    assert '"right": "10.1.' not in json.dumps(node.nft_ruleset())


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_what_the_world_sees(node: Node, backend: str) -> None:
    """A container's packets bear the node's address out in the world, its own within its network."""
    container, neighbour, world = node.container(), node.container(), node.container()
    node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    for peer, name, address, gateway in (
        (container, "veth-c", "10.1.2.2/25", "10.1.2.1/25"),
        (neighbour, "veth-n", "10.1.2.130/25", "10.1.2.129/25"),
        (world, "veth-w", "192.0.2.9/24", "192.0.2.1/24"),
    ):
        node.run(["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", peer.name])
        node.run(["ip", "address", "add", gateway, "dev", name])
        node.run(["ip", "link", "set", name, "up"])
        peer.run(["ip", "address", "add", address, "dev", "eth0"])
        peer.run(["ip", "link", "set", "eth0", "up"])
        peer.run(["ip", "route", "add", "default", "via", gateway.partition("/")[0]])

    def seen_by(server: Node, address: str) -> str:
        """The source address of what the container sends there."""
        code = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 7777))
server.settimeout(60)
print(server.recvfrom(9)[1][0])
"""
        send = f"while :; do echo x > /dev/udp/{address}/7777; sleep 0.05; done"
        with container.start(["bash", "-c", send]):
            return server.python(code).strip()

    setup(node, backend, "10.1.2.2/24")
    assert seen_by(world, "192.0.2.9") == "192.0.2.1"
    assert seen_by(neighbour, "10.1.2.130") == "10.1.2.2"
    teardown(node)
    assert seen_by(world, "192.0.2.9") == "10.1.2.2"
