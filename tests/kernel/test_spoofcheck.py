"""The MAC spoof check: rules, and what they do to packets; other programs read both."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel.netns import NetNS
from cni.netfilter import nftables
from cni.spec.errors import CNIError
from cni_plugins.main.bridge import spoofcheck
from tests.waiting import LIMIT

from .conftest import Attachment, Network, links, pings

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]

CID, MAC, PORT = "container99", "02:00:00:00:12:34", "vethfeed"
BASE: list[Json] = [
    {"table": {"family": "bridge", "name": "nat"}},
    {
        "chain": {
            "family": "bridge",
            "table": "nat",
            "name": "PREROUTING",
            "type": "filter",
            "hook": "prerouting",
            "prio": -300,
            "policy": "accept",
        }
    },
]
FOREIGN = """
table bridge nat {
    chain PREROUTING {
        type filter hook prerouting priority -300; policy accept;
        iifname "vethother" counter comment "macspoofchk-of-another-kind"
        iifname "vethfeed" ether saddr 02:00:00:00:00:01 counter comment "by hand"
        counter
    }
    chain cni-br-iface-mine { counter comment "macspoofchk-container99-net1"; }
}
table bridge filter { chain forward { type filter hook forward priority 0; ether type arp counter; }; }
table inet filter { chain input { type filter hook input priority 0; tcp dport 22 accept; }; }
"""


@pytest.fixture(params=["with libnftables", "without"])
def libnftables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setattr(nftables, "_loaded", "left out for this test")


def setup(node: Node, port: str = PORT, mac: str = MAC, cid: str = CID, ifname: str = "net1") -> None:
    with NetNS.open(node.path) as host:
        spoofcheck.setup(port, mac, cid, ifname, host)


def check(node: Node, port: str = PORT, mac: str = MAC, cid: str = CID, ifname: str = "net1") -> None:
    with NetNS.open(node.path) as host:
        spoofcheck.check(port, mac, cid, ifname, host)


def teardown(node: Node, cid: str = CID, ifname: str = "net1") -> None:
    with NetNS.open(node.path) as host:
        spoofcheck.teardown(cid, ifname, host)


def gc(node: Node, *valid: tuple[str, str]) -> None:
    with NetNS.open(node.path) as host:
        spoofcheck.gc(valid, host)


def equal(left: Json, right: str) -> Json:
    return {"match": {"op": "==", "left": left, "right": right}}


def rule(chain: str, comment: str, *statements: Json) -> Json:
    properties = {"family": "bridge", "table": "nat", "chain": chain, "comment": comment, "expr": list(statements)}
    return {"rule": properties}


def protected(port: str = PORT, mac: str = MAC, cid: str = CID, ifname: str = "net1") -> list[Json]:
    """Return what there is for one attachment."""
    chain, comment = f"cni-br-iface-{cid}-{ifname}", f"macspoofchk-{cid}-{ifname}"
    return [
        {"chain": {"family": "bridge", "table": "nat", "name": chain}},
        {"chain": {"family": "bridge", "table": "nat", "name": f"{chain}-mac"}},
        rule("PREROUTING", comment, equal({"meta": {"key": "iifname"}}, port), {"jump": {"target": chain}}),
        rule(chain, comment, {"jump": {"target": f"{chain}-mac"}}),
        rule(
            f"{chain}-mac",
            comment,
            equal({"payload": {"protocol": "ether", "field": "saddr"}}, mac),
            {"return": None},
        ),
        rule(f"{chain}-mac", comment, {"drop": None}),
    ]


def found(node: Node) -> list[str]:
    """The ruleset, order of chains aside; that of the rules in a chain is kept."""
    return sorted_objects(node.nft_ruleset())


def sorted_objects(objects: list[Json]) -> list[str]:
    def place(entry: Json) -> tuple[str, str]:
        return next(iter(entry)), entry["rule"]["chain"] if "rule" in entry else ""

    ordered = sorted(objects, key=place)
    rules = [json.dumps(entry, sort_keys=True) for entry in ordered if "rule" in entry]
    return sorted(json.dumps(entry, sort_keys=True) for entry in ordered if "rule" not in entry) + rules


# ---- the rules ----


@pytest.mark.usefixtures("libnftables")
def test_the_layout(node: Node) -> None:
    setup(node)
    assert found(node) == sorted_objects(BASE + protected())
    check(node)
    setup(node, "veth2", "02:00:00:00:00:02", "other", "eth0")
    assert found(node) == sorted_objects(BASE + protected() + protected("veth2", "02:00:00:00:00:02", "other", "eth0"))
    teardown(node)
    assert found(node) == sorted_objects(BASE + protected("veth2", "02:00:00:00:00:02", "other", "eth0"))
    check(node, "veth2", "02:00:00:00:00:02", "other", "eth0")
    teardown(node, "other", "eth0")
    assert found(node) == sorted_objects(BASE)


def test_a_stale_one_is_replaced(node: Node) -> None:
    setup(node, "vethstale", "02:00:00:00:00:05")
    setup(node)
    assert found(node) == sorted_objects(BASE + protected())
    setup(node)
    assert found(node) == sorted_objects(BASE + protected())


@pytest.mark.usefixtures("libnftables")
def test_teardown_of_nothing(node: Node) -> None:
    teardown(node)
    assert node.nft_ruleset() == []
    setup(node)
    teardown(node)
    teardown(node)
    assert found(node) == sorted_objects(BASE)


@pytest.mark.parametrize(
    "damage",
    [
        "flush chain bridge nat PREROUTING",
        "flush chain bridge nat cni-br-iface-container99-net1",
        "flush chain bridge nat cni-br-iface-container99-net1\n"
        "delete chain bridge nat cni-br-iface-container99-net1-mac",
        "flush chain bridge nat PREROUTING\ndelete chain bridge nat cni-br-iface-container99-net1",
        # As the Go plugins may leave it, which do not look for stale ones.
        'add rule bridge nat PREROUTING iifname "vethold" jump cni-br-iface-container99-net1 '
        'comment "macspoofchk-container99-net1"',
    ],
)
def test_half_of_it(node: Node, damage: str) -> None:
    """Whatever is left is removed, or made whole."""
    setup(node)
    node.nft(damage)
    setup(node)
    assert found(node) == sorted_objects(BASE + protected())
    node.nft(damage)
    teardown(node)
    assert found(node) == sorted_objects(BASE)


def test_what_others_have_is_not_touched(node: Node) -> None:
    node.nft(FOREIGN)
    before = found(node)
    setup(node)
    setup(node, "veth2", cid="other")
    gc(node, (CID, "net1"))
    check(node)
    gc(node)
    assert found(node) == before
    setup(node)
    teardown(node)
    teardown(node)
    assert found(node) == before


def test_gc_takes_those_without_a_port(node: Node) -> None:
    node.run(["ip", "link", "add", "vethlive", "type", "veth", "peer", "name", "x"])
    setup(node, "vethlive", cid="live")
    setup(node, "vethdead", cid="valid")
    setup(node, "vethdead", cid="gone")
    setup(node, "vethdead", cid="gone", ifname="net2")
    node.nft(
        'add rule bridge nat PREROUTING iifname "vethold" jump cni-br-iface-gone-net2 comment "macspoofchk-gone-net2"'
    )
    gc(node, ("valid", "net1"))
    assert found(node) == sorted_objects(BASE + protected("vethlive", cid="live") + protected("vethdead", cid="valid"))
    gc(node, ("live", "net1"), ("valid", "net1"))
    check(node, "vethlive", cid="live")
    check(node, "vethdead", cid="valid")


def test_gc_of_nothing(node: Node) -> None:
    gc(node, (CID, "net1"))
    assert node.nft_ruleset() == []


@pytest.mark.parametrize("ifname", ["eth+0", 'a"b', "näme", "$x@{0}", "a b".replace(" ", ";")])
def test_any_name_of_an_interface(node: Node, ifname: str) -> None:
    setup(node, ifname=ifname)
    assert found(node) == sorted_objects(BASE + protected(ifname=ifname))
    check(node, ifname=ifname)
    setup(node, ifname=ifname)
    check(node, ifname=ifname)
    teardown(node, ifname=ifname)
    assert found(node) == sorted_objects(BASE)


@pytest.mark.parametrize(
    ("damage", "chain"),
    [
        ("flush ruleset", "PREROUTING"),
        ("flush chain bridge nat PREROUTING", "PREROUTING"),
        ("flush chain bridge nat cni-br-iface-container99-net1", "cni-br-iface-container99-net1"),
        ("flush chain bridge nat cni-br-iface-container99-net1-mac", "cni-br-iface-container99-net1-mac"),
        ("insert rule bridge nat cni-br-iface-container99-net1 accept", "cni-br-iface-container99-net1"),
        (
            "insert rule bridge nat cni-br-iface-container99-net1-mac ether saddr 02:00:00:00:00:77 return",
            "cni-br-iface-container99-net1-mac",
        ),
    ],
)
def test_check_names_the_chain(node: Node, damage: str, chain: str) -> None:
    setup(node)
    node.nft(damage)
    with pytest.raises(
        CNIError, match=rf"^net1 of container99 may spoof its MAC .* chain bridge nat {chain} is not as"
    ):
        check(node)


@pytest.mark.parametrize("wrong", [{"mac": "02:00:00:00:00:09"}, {"port": "veth9"}, {"cid": "9"}, {"ifname": "net9"}])
def test_check_of_another(node: Node, wrong: dict[str, str]) -> None:
    setup(node)
    with pytest.raises(CNIError, match=r" may spoof its MAC "):
        check(node, **wrong)


def test_a_name_that_nftables_does_not_take(node: Node) -> None:
    with pytest.raises(CNIError, match=r"^failed to setup spoof-check: nftables refused a transaction: "):
        setup(node, cid="c" * 250)
    assert node.nft_ruleset() == []
    teardown(node, cid="c" * 250)


def test_where_there_is_no_nftables(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nftables, "_loaded", "left out for this test")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CNIError, match=r"^failed to setup spoof-check: nftables can't be used: "):
        setup(node)
    teardown(node)  # there can be nothing
    gc(node)


def test_many_at_once(node: Node) -> None:
    """On a node where nothing is there yet."""
    names = [f"c{number}" for number in range(16)]
    imported = "import sys; from cni_plugins.main.bridge import spoofcheck;"
    program = imported + " spoofcheck.setup(f'veth{sys.argv[1]}', %r, sys.argv[1], 'eth0')"
    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(lambda name: node.python(program % MAC, name), names))
    for name in names:
        check(node, f"veth{name}", cid=name, ifname="eth0")
    program = imported + " spoofcheck.teardown(sys.argv[1], 'eth0')"
    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(lambda name: node.python(program, name), names + names[:8]))
    assert found(node) == sorted_objects(BASE)


# ---- by the plugin ----


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    return make_network(type="bridge", bridge="br0", macspoofchk=True)


def by_go(network: Network, go_plugins: Path) -> Network:
    """The network, served by the Go plugins."""
    network.plugins, network.paths = go_plugins, [str(go_plugins)]
    network.call = network.by_executable
    return network


def rules_of(*attachments: Attachment) -> list[Json]:
    rules = []
    for attachment in attachments:
        _, port, inside = attachment.result["interfaces"]
        rules += protected(port["name"], inside["mac"], attachment.id, "eth0")
    return rules


@pytest.mark.parametrize("spoofcheck", [False, True])
def test_what_comes_from_another_mac(network: Network, spoofcheck: bool) -> None:
    network.config["macspoofchk"] = spoofcheck
    one, other = network.attach(), network.attach()
    assert pings(one.container, other.address(4))
    assert pings(other.container, one.address(4))
    for mac, passes in (("02:00:00:00:00:66", not spoofcheck), (one.mac, True)):
        one.container.run(["ip", "link", "set", "eth0", "address", mac])
        for end in (one, other):
            end.container.run(["ip", "neigh", "flush", "dev", "eth0"])
        assert pings(one.container, other.address(4), LIMIT if passes else 0.3) == passes
    # The other's MAC is no better.
    one.container.run(["ip", "link", "set", "eth0", "address", other.mac])
    learned = network.node.run(["bridge", "fdb", "show", "dev", one.port]).stdout
    assert ("02:00:00:00:00:66" in learned) == (not spoofcheck)


@pytest.mark.parametrize("layer", [2, 3])
def test_an_attachments_life(network: Network, layer: int) -> None:
    if layer == 2:
        network.config["ipam"] = {}
    one, other = network.attach(), network.attach()
    assert found(network.node) == sorted_objects(BASE + rules_of(one, other))
    one.check()
    network.node.nft(f"flush chain bridge nat cni-br-iface-{one.id}-eth0-mac")
    assert "may spoof its MAC" in one.refused("CHECK")
    other.check()
    for _ in range(2):
        one.delete()
        assert found(network.node) == sorted_objects(BASE + rules_of(other))


def test_the_mac_that_is_asked_for(network: Network) -> None:
    one = network.attach(args={"cni": {"mac": "02:00:00:00:00:42"}})
    assert one.result["interfaces"][2]["mac"] == "02:00:00:00:00:42"
    assert found(network.node) == sorted_objects(BASE + rules_of(one))


def test_an_add_that_fails(network: Network) -> None:
    network.ipam(subnet="10.1.2.0/24", routes=[{"dst": "192.0.2.0/24", "gw": "198.51.100.1"}])
    network.attachment().refused("ADD")
    assert found(network.node) == sorted_objects(BASE)
    assert links(network.node) == {"lo", "br0"}


def test_an_add_that_nftables_refuses(network: Network) -> None:
    one = network.attachment(id="c" * 250)
    assert one.refused("ADD").startswith("failed to setup spoof-check: ")
    assert network.node.nft_ruleset() == []
    assert links(network.node) == {"lo", "br0"}
    one.delete()


def test_del_when_the_link_is_gone(network: Network) -> None:
    one = network.attach()
    one.container.run(["ip", "link", "delete", "eth0"])
    one.delete()
    assert found(network.node) == sorted_objects(BASE)


def test_gc(network: Network) -> None:
    valid, leaked, gone = (network.attach() for _ in range(3))
    gone.container.run(["ip", "link", "delete", "eth0"])
    network.gc(valid)
    # What still has its link may be another network's, and goes with its own DEL.
    assert found(network.node) == sorted_objects(BASE + rules_of(valid, leaked))


# ---- with the Go plugin ----


def test_go_and_we_make_the_same(
    make_node: Callable[[], Node], make_network: Callable[..., Network], go_plugins: Path
) -> None:
    rulesets = []
    for go in (False, True):
        network = make_network(on=make_node(), type="bridge", bridge="br0", macspoofchk=True, cniVersion="1.0.0")
        one = (by_go(network, go_plugins) if go else network).attach()
        _, port, inside = one.result["interfaces"]
        names = {one.id: "ID", port["name"]: "PORT", inside["mac"]: "MAC"}
        text = json.dumps(found(network.node))
        for name, word in names.items():
            text = text.replace(name, word)
        rulesets.append(json.loads(text))
    assert rulesets[0] == rulesets[1]


def test_each_checks_and_removes_the_others(make_network: Callable[..., Network], go_plugins: Path) -> None:
    # Without isGateway the Go plugin's CHECK takes the bridge's changing MAC for a fault.
    config: Json = {"type": "bridge", "bridge": "br0", "macspoofchk": True, "isGateway": True, "cniVersion": "1.0.0"}
    ours, theirs = make_network(**config), by_go(make_network(**config), go_plugins)
    one, other = ours.attach(), theirs.attach()
    one.network, other.network = theirs, ours
    other.check()
    one.check()
    one.delete()
    assert found(ours.node) == sorted_objects(BASE + rules_of(other))
    other.delete()
    assert found(ours.node) == sorted_objects(BASE)
