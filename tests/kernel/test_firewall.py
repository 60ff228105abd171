from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import until

from .conftest import Network, Refused, pings

if TYPE_CHECKING:
    from tests.conftest import Call, Node

Json = dict[str, Any]

TABLE = "inet cni_firewall"
IPTABLES = [":INPUT ACCEPT", ":FORWARD ACCEPT", ":OUTPUT ACCEPT"]
RULES = '-m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD'
OVERRIDES = '-m comment --comment "CNI firewall plugin admin overrides" -j'
OF_ALL = '-m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)"'
OTHERS = """
table inet others {
    set containers4 { type ipv4_addr ; elements = { 10.1.2.3 } ; }
    chain forward { type filter hook forward priority filter ; ip saddr 10.1.2.3 accept comment "d23676b4f2d9fe04-" ; }
}
"""


def comment(policy: str) -> str:
    return f'-m comment --comment "CNI firewall plugin rules (ingressPolicy: {policy})"'


def result(*addresses: str, bridge: str = "br0", version: str = "1.0.0") -> Json:
    """As of a bridge, of an attachment that isn't there."""
    interfaces = [{"name": bridge}, {"name": "veth0"}, {"name": "eth0", "sandbox": "/run/netns/x"}]
    ips: list[Json] = [{"address": address, "interface": 2} for address in addresses]
    if version < "1":
        ips = [{**ip, "version": "6" if ":" in ip["address"] else "4"} for ip in ips]
    return {"cniVersion": version, "interfaces": interfaces, "ips": ips, **({"dns": {}} if version < "1" else {})}


BOTH = result("10.1.2.3/24", "2001:db8::5/64")


class Firewall:
    """The plugin on a node, for attachments that come with a result and no more."""

    def __init__(self, node: Node, call: Call, config: Json) -> None:
        self.node = node
        self.call = call
        self.config: Json = {"cniVersion": "1.0.0", "name": "mynet", "type": "firewall", **config}
        self.container = node.container()
        self.log = ""

    def __call__(
        self, verb: str, previous: Json | None = BOTH, id: str = "cid1", netns: str | None = None, **keys: Any
    ) -> Any:
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": id,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": self.container.path if netns is None else netns,
            "CNI_PATH": "/nowhere",
            "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere",
        }
        die_at = keys.pop("die_at", None)
        config = {**self.config, **({"prevResult": previous} if previous else {}), **keys}
        more = {} if die_at is None else {"die_at": die_at}
        done = self.call("cni_plugins.meta.firewall", self.node.path, environ, json.dumps(config), **more)
        self.log = done["stderr"]
        if die_at is not None:
            return done
        answer = json.loads(done["stdout"] or "null")
        if done["status"]:
            raise Refused(**answer)
        return answer

    def elements(self, name: str) -> list[str]:
        """Of a set of the table, as nft has them, with their comments."""
        found = json.loads(self.node.run(["nft", "-j", "list", "set", *TABLE.split(), name]).stdout)["nftables"][1]
        return [entry["elem"]["val"] if "elem" in entry else entry for entry in found["set"].get("elem", [])]


@pytest.fixture
def make_firewall(node: Node, call: Call) -> Callable[..., Firewall]:
    return lambda **config: Firewall(node, call, config)


@pytest.fixture(params=["nf_tables", "legacy"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """iptables' variant that programs without a path are, here and in the node."""
    if request.param == "legacy":
        monkeypatch.setenv("PATH", request.getfixturevalue("legacy_path"))
    return {"nf_tables": "-nft", "legacy": "-legacy"}[request.param]


def saved(node: Node, variant: str, version: int = 4) -> list[str]:
    return node.iptables_save(version, "filter", variant)


def everything(node: Node, variant: str = "") -> tuple[Any, ...]:
    legacy = [node.iptables_save(version, "filter", "-legacy") for version in (4, 6)] if variant == "-legacy" else []
    return (node.nft_ruleset(), *legacy)


# iptables


def opened(address: str, admin: str = "CNI-ADMIN") -> list[str]:
    return [
        *IPTABLES,
        *sorted([f":{admin} -", ":CNI-FORWARD -"]),
        f"-A FORWARD {RULES}",
        f"-A CNI-FORWARD {OVERRIDES} {admin}",
        f"-A CNI-FORWARD -d {address} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"-A CNI-FORWARD -s {address} -j ACCEPT",
    ]


def in_order(lines: list[str]) -> list[str]:
    """The variants list chains in different orders; that of the rules in each chain counts."""
    return sorted(lines, key=lambda line: line.split()[:2] if line.startswith("-A") else ["", line])


@pytest.mark.parametrize("admin", ["CNI-ADMIN", "MINE"])
def test_the_layout_of_iptables(make_firewall: Callable[..., Firewall], variant: str, admin: str) -> None:
    firewall = make_firewall(backend="iptables", **({} if admin == "CNI-ADMIN" else {"iptablesAdminChainName": admin}))
    assert firewall("ADD") == BOTH
    node = firewall.node
    assert in_order(saved(node, variant, 4)) == in_order(opened("10.1.2.3/32", admin))
    assert in_order(saved(node, variant, 6)) == in_order(opened("2001:db8::5/128", admin))
    firewall("CHECK")
    firewall("ADD")
    assert in_order(saved(node, variant, 4)) == in_order(opened("10.1.2.3/32", admin))
    firewall("ADD", result("10.1.2.4/24"), id="cid2")
    firewall("DEL", result("10.1.2.4/24"), id="cid2")
    firewall("CHECK")
    for _ in range(2):
        assert firewall("DEL") is None
        assert in_order(saved(node, variant, 4)) == in_order(opened("10.1.2.3/32", admin)[:-2])
        assert in_order(saved(node, variant, 6)) == in_order(opened("2001:db8::5/128", admin)[:-2])


def isolation(bridge: str, policy: str) -> list[list[str]]:
    """Return what STAGE-1 and STAGE-2 have for a bridge."""
    among = [f"-A CNI-ISOLATION-STAGE-1 -i {bridge} -o {bridge} {comment(policy)} -j DROP"]
    stage_1 = [f"-A CNI-ISOLATION-STAGE-1 -i {bridge} ! -o {bridge} {comment(policy)} -j CNI-ISOLATION-STAGE-2"]
    stage_2 = [f"-A CNI-ISOLATION-STAGE-2 -o {bridge} {OF_ALL} -j DROP"]
    return [(among if policy == "isolated" else []) + stage_1, stage_2]


def test_the_layout_of_isolation(make_firewall: Callable[..., Firewall], variant: str) -> None:
    firewall = make_firewall(backend="iptables", ingressPolicy="same-bridge")
    firewall("ADD")
    firewall("ADD", result("10.2.2.3/24", bridge="br1"), id="cid2", ingressPolicy="isolated")
    firewall("ADD", result("10.2.2.4/24", bridge="br1"), id="cid3", ingressPolicy="isolated")
    (same_1, same_2), (isolated_1, isolated_2) = isolation("br0", "same-bridge"), isolation("br1", "isolated")
    returns = [f"-A CNI-ISOLATION-STAGE-{number} {OF_ALL} -j RETURN" for number in (1, 2)]
    chains = {
        "FORWARD": [f"-A FORWARD {OF_ALL} -j CNI-ISOLATION-STAGE-1", f"-A FORWARD {RULES}"],
        "CNI-ISOLATION-STAGE-1": [*isolated_1, *same_1, returns[0]],
        "CNI-ISOLATION-STAGE-2": [*isolated_2, *same_2, returns[1]],
    }
    for chain, rules in chains.items():
        assert [line for line in saved(firewall.node, variant) if line.startswith(f"-A {chain} ")] == rules
    of_six = [line for line in saved(firewall.node, variant, 6) if "STAGE-1 -i" in line]
    assert of_six == same_1
    before = everything(firewall.node, variant)
    firewall("CHECK")
    firewall("ADD")
    assert everything(firewall.node, variant) == before
    firewall("DEL", result("10.2.2.3/24", bridge="br1"), id="cid2", ingressPolicy="isolated")
    firewall("CHECK", result("10.2.2.4/24", bridge="br1"), id="cid3", ingressPolicy="isolated")


def test_only_the_families_in_use_need_their_program(
    make_firewall: Callable[..., Firewall], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for program in ("iptables", "iptables-save", "iptables-restore"):
        (tmp_path / program).symlink_to(f"/usr/sbin/{program}")
    monkeypatch.setenv("PATH", str(tmp_path))
    firewall = make_firewall(backend="iptables", ingressPolicy="isolated")
    four = result("10.1.2.3/24")
    for verb in ("ADD", "CHECK", "DEL"):
        firewall(verb, four)
    with pytest.raises(Refused, match="ip6tables"):
        firewall("ADD")
    monkeypatch.undo()
    assert [line for line in saved(firewall.node, "-nft") if "10.1.2.3" in line] == []


@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_other_peoples_rules_are_left_alone(
    make_firewall: Callable[..., Firewall], variant: str, backend: str, policy: str
) -> None:
    firewall = make_firewall(backend=backend, ingressPolicy=policy)
    node = firewall.node
    firewall("ADD", result("10.9.9.9/24", "2001:db8:9::9/64"), id="other")
    for command in ("iptables", "ip6tables"):
        node.run(["sh", "-ec", f"""
            {command} -N CNI-ADMIN 2>/dev/null || true
            {command} -A CNI-ADMIN -p tcp --dport 99 -j DROP
            {command} -A FORWARD -p tcp --dport 98 -m comment --comment 'CNI firewall plugin rules' -j ACCEPT
            {command} -A INPUT -i lo -j ACCEPT
            {command} -t nat -A POSTROUTING -o dummy9 -j MASQUERADE"""])  # fmt: skip
    node.nft(OTHERS)
    if backend == "nftables":
        node.nft(f"add rule {TABLE} admin tcp dport 99 drop; add element {TABLE} containers4 {{ 10.7.7.7 }}")
    before = everything(node, variant)
    firewall("ADD")
    assert everything(node, variant) != before
    firewall("CHECK")
    firewall("DEL")
    assert everything(node, variant) == before


def deletable(node: Node) -> list[tuple[str, str]]:
    """The commands that would take a rule away, one each."""
    return [
        (command, line.replace("-A ", "-D ", 1))
        for command, version in (("iptables", 4), ("ip6tables", 6))
        for line in node.iptables_save(version, "filter")
        if line.startswith("-A")
    ]


@pytest.mark.slow
def test_check_finds_every_rule_that_is_missing_and_makes_none(make_firewall: Callable[..., Firewall]) -> None:
    firewall = make_firewall(backend="iptables", ingressPolicy="isolated")
    firewall("ADD")
    commands = deletable(firewall.node)
    assert len(commands) == 20
    for command, line in commands:
        firewall.node.run(["sh", "-c", f"{command} {line}"])
        before = everything(firewall.node)
        with pytest.raises(
            Refused, match=r"^the firewall is not as ADD left it: ip6?tables -t filter -[AI] "
        ) as refused:
            firewall("CHECK")
        assert everything(firewall.node) == before
        assert len(refused.value.details.splitlines()) == 1
        firewall("ADD")
        firewall("CHECK")
    firewall.node.run(["iptables", "-F"])
    with pytest.raises(Refused, match="not as ADD left it"):
        firewall("CHECK")


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
@pytest.mark.parametrize("backend", ["iptables", "nftables", ""])
@pytest.mark.parametrize(
    ("previous", "policy", "words"),
    [
        (None, "open", "missing prevResult from earlier plugin"),
        (BOTH, "closed", 'unknown ingress policy: "closed"'),
        (
            {**BOTH, "interfaces": []},
            "same-bridge",
            'interface needs to be set for ingress policy "same-bridge", '
            'make sure to chain "firewall" plugin with "bridge"',
        ),
        (result("10.1.2.3/24", bridge=""), "isolated", "got empty bridge name"),
    ],
)
def test_refusals_come_before_anything_is_done(
    make_firewall: Callable[..., Firewall], verb: str, backend: str, previous: Json, policy: str, words: str
) -> None:
    firewall = make_firewall(backend=backend, ingressPolicy=policy)
    if previous and not previous["interfaces"]:
        previous = {**previous, "ips": [{"address": "10.1.2.3/24"}]}
    with pytest.raises(Refused) as refused:
        firewall(verb, previous)
    assert str(refused.value) == words
    assert firewall.node.nft_ruleset() == []
    firewall("DEL", previous)


@pytest.mark.parametrize("name", ['br"; flush ruleset; #', 'a"b', "a*", "a\\b"])
def test_bridges_that_nftables_cannot_be_told(make_firewall: Callable[..., Firewall], name: str) -> None:
    firewall = make_firewall(backend="nftables", ingressPolicy="isolated")
    with pytest.raises(Refused):
        firewall("ADD", result("10.1.2.3/24", bridge=name))
    assert firewall.node.nft_ruleset() == []


def test_a_broken_previous_result_does_not_keep_delete_from_its_work(make_firewall: Callable[..., Firewall]) -> None:
    firewall = make_firewall(backend="nftables")
    firewall("ADD")
    with pytest.raises(Refused, match="prevResult"):
        firewall("DEL", {"cniVersion": "1.0.0", "ips": [{"address": "nowhere"}]})
    assert firewall.elements("containers4") == []


@pytest.mark.parametrize("backend", ["", "automatic"])
def test_the_automatic_choice(make_firewall: Callable[..., Firewall], backend: str) -> None:
    firewall = make_firewall(backend=backend)
    firewall("STATUS", None, cniVersion="1.1.0")
    firewall("ADD")
    note = f'firewall: unknown backend "{backend}": the choice is automatic\n'
    assert firewall.log == (note if backend else "")
    assert in_order(saved(firewall.node, "-nft")) == in_order(opened("10.1.2.3/32"))
    firewall("CHECK")
    firewall("DEL")
    assert len(saved(firewall.node, "-nft")) == 7


def test_nftables_where_iptables_is_unusable(
    make_firewall: Callable[..., Firewall], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    firewall = make_firewall(ingressPolicy="same-bridge")
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        firewall("STATUS", None, cniVersion="1.1.0")
        firewall("ADD")
        firewall("CHECK")
        with pytest.raises(Refused, match="iptables cannot be used on this node") as refused:
            firewall("STATUS", None, cniVersion="1.1.0", backend="iptables")
        assert refused.value.code == 50
    assert firewall.elements("containers4") == ["10.1.2.3"]
    # What ADD did counts, whatever would be chosen now.
    firewall("CHECK")
    firewall("DEL")
    assert firewall.elements("containers4") == []


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_all_versions(make_firewall: Callable[..., Firewall], backend: str, version: str) -> None:
    previous = result("10.1.2.3/24", "2001:db8::5/64", version=version)
    firewall = make_firewall(cniVersion=version, backend=backend)
    assert firewall("ADD", previous) == previous
    firewall("CHECK", previous)
    firewall("DEL", previous)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1"])
def test_older_versions_are_refused(make_firewall: Callable[..., Firewall], version: str) -> None:
    with pytest.raises(Refused, match="incompatible CNI versions") as refused:
        make_firewall(cniVersion=version)("ADD", result("10.1.2.3/24", version=version))
    assert refused.value.code == 1


# nftables


def test_elements_of_nftables(make_firewall: Callable[..., Firewall]) -> None:
    firewall = make_firewall(backend="nftables", ingressPolicy="same-bridge")
    for _ in range(2):
        assert firewall("ADD") == BOTH
        assert firewall.elements("containers4") == ["10.1.2.3"]
        assert firewall.elements("containers6") == ["2001:db8::5"]
        assert firewall.elements("isolated") == ["br0"]
        assert firewall.elements("same_bridge") == [{"concat": ["br0", "br0"]}]
        assert firewall.elements("closed") == []
    firewall("CHECK")
    comments = f"{firewall.node.nft_ruleset()}"
    assert "net: mynet, if: eth0, id: cid1" in comments
    # Neither result nor namespace.
    for _ in range(2):
        firewall("DEL", None, netns="")
    assert firewall.elements("containers4") == firewall.elements("containers6") == []
    assert firewall.elements("isolated") == ["br0"]


def test_an_address_that_has_gone_to_another_container(make_firewall: Callable[..., Firewall]) -> None:
    firewall = make_firewall(backend="nftables")
    firewall("ADD")
    firewall("ADD", id="cid2")
    firewall("DEL")
    firewall("CHECK", id="cid2")
    firewall("DEL", id="cid2")
    assert firewall.elements("containers4") == []


def test_gc(make_firewall: Callable[..., Firewall]) -> None:
    firewall = make_firewall(backend="nftables", cniVersion="1.1.0")
    for number in range(1, 4):
        firewall("ADD", result(f"10.1.2.{number}/24"), id=f"cid{number}")
    firewall("ADD", result("10.8.8.8/24"), name="other")
    firewall.node.nft(f"add element {TABLE} containers4 {{ 10.7.7.7 }}")
    firewall("GC", None)
    assert len(firewall.elements("containers4")) == 5
    valid = [{"containerID": "cid2", "ifname": "eth0"}]
    firewall("GC", None, **{"cni.dev/valid-attachments": valid})
    assert sorted(firewall.elements("containers4")) == ["10.1.2.2", "10.7.7.7", "10.8.8.8"]
    firewall("GC", None, **{"cni.dev/valid-attachments": []})
    assert sorted(firewall.elements("containers4")) == ["10.7.7.7", "10.8.8.8"]


def test_an_administrators_policy_and_rules_stay_when_the_table_is_mended(
    make_firewall: Callable[..., Firewall],
) -> None:
    firewall = make_firewall(backend="nftables", ingressPolicy="isolated")
    firewall("ADD")
    firewall.node.nft(f"add chain {TABLE} forward {{ policy drop ; }}; add rule {TABLE} admin tcp dport 99 drop")
    before = firewall.node.nft_ruleset()
    assert "'policy': 'drop'" in f"{before}"
    firewall.node.nft(f"flush chain {TABLE} forward; delete element {TABLE} containers4 {{ 10.1.2.3 }}")
    with pytest.raises(Refused, match="not as ADD left it"):
        firewall("CHECK")
    firewall("ADD")
    firewall("CHECK")
    assert firewall.node.nft_ruleset() == before


# traffic


class Site:
    """Two bridges on a node with two containers each, and a machine beyond the node."""

    def __init__(self, make_network: Callable[..., Network], node: Node, **firewall: Any) -> None:
        self.node = node
        self.outside = node.container()
        node.ip("link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", self.outside.name)
        node.ip("addr", "add", "10.50.0.1/24", "dev", "up0")
        node.ip("link", "set", "up0", "up")
        self.outside.ip("addr", "add", "10.50.0.2/24", "dev", "eth0")
        self.outside.ip("link", "set", "eth0", "up")
        self.outside.ip("route", "add", "default", "via", "10.50.0.1")
        self.pairs = []
        for number in (1, 2):
            ipam = {"type": "host-local", "dataDir": f"/nowhere{number}"}
            network = make_network([{"type": "firewall", **firewall}], type="bridge", isDefaultGateway=True, ipam=ipam)
            network.config |= {"name": f"net{number}", "bridge": f"br{number}", "cniVersion": "1.1.0"}
            network.ipam(ranges=[[{"subnet": f"10.{number}.0.0/24"}]])
            self.pairs.append((network.attach(), network.attach()))

    def reaches(self) -> dict[str, bool]:
        (one, other), (across, _) = self.pairs
        return {
            "same bridge": pings(one.container, other.address(4), 1),
            "other bridge": pings(one.container, across.address(4), 1),
            "other bridge, back": pings(across.container, one.address(4), 1),
            "outside": pings(one.container, "10.50.0.2", 1),
            "from outside": pings(self.outside, one.address(4), 1),
            "node": pings(one.container, "10.1.0.1", 1),
        }


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["iptables", "nftables"])
@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
def test_who_reaches_whom(make_network: Callable[..., Network], node: Node, backend: str, policy: str) -> None:
    site = Site(make_network, node, backend=backend, ingressPolicy=policy)
    for one in [one for pair in site.pairs for one in pair]:
        one.check()
    across = policy == "open"
    among = policy != "isolated"
    expected = {
        "same bridge": among,
        "other bridge": across,
        "other bridge, back": across,
        "outside": True,
        "from outside": True,
        "node": True,
    }
    until(lambda: site.reaches() == expected, f"what reaches what: {expected}")


@pytest.mark.slow
def test_nftables_where_all_else_is_dropped(make_network: Callable[..., Network], node: Node) -> None:
    site = Site(make_network, node, backend="nftables")
    node.nft(f"add chain {TABLE} forward {{ policy drop ; }}")
    until(lambda: [way for way, is_open in site.reaches().items() if not is_open] == ["from outside"], "all other ways")


# failures


def test_a_failed_add_leaves_no_rule(
    make_firewall: Callable[..., Firewall], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for program in ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save"):
        (tmp_path / program).symlink_to(f"/usr/sbin/{program}")
    broken = tmp_path / "ip6tables-restore"
    broken.write_text("#!/bin/sh\necho out of order >&2; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    firewall = make_firewall(backend="iptables")
    with pytest.raises(Refused, match="out of order"):
        firewall("ADD")
    assert [line for line in saved(firewall.node, "-nft") if "10.1.2.3" in line] == []


def left_over(node: Node) -> list[str]:
    """Every rule and element of an attachment with the test's addresses."""
    lines = [line for version in (4, 6) for line in node.iptables_save(version, "filter")]
    elements = [
        f"{element}"
        for entry in node.nft_ruleset()
        if "set" in entry and entry["set"]["name"].startswith("containers")
        for element in entry["set"].get("elem", ())
    ]
    return [line for line in lines if "ACCEPT" in line and line.startswith("-A CNI-FORWARD")] + elements


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_killed_between_any_two_lines_that_change_something(
    make_network: Callable[..., Network], make_firewall: Callable[..., Firewall], backend: str
) -> None:
    """The runtime then knows no result; the interface is still there."""
    network = make_network(type="bridge", isGateway=True)
    network.ipam(ranges=[[{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]])
    attachment = network.attach()
    firewall = make_firewall(backend=backend, ingressPolicy="isolated")
    firewall.container = attachment.container
    lines = firewall("ADD", attachment.result, die_at=-1)["lines"]
    firewall("DEL", None)
    assert left_over(firewall.node) == []
    killed = 0
    for line in range(0, lines, max(1, lines // 40)):
        killed += firewall("ADD", attachment.result, die_at=line)["status"] == -signal.SIGKILL
        firewall("DEL", None)
        assert left_over(firewall.node) == [], f"killed at line {line} of {lines}"
    assert killed > 30
    firewall("ADD", attachment.result)
    firewall("CHECK", attachment.result)


@pytest.mark.slow
def test_many_at_once(node: Node, plugins: Path, tmp_path: Path) -> None:
    """Nobody's rule is lost, and what is shared is there once."""
    import os
    import subprocess

    container = node.container()

    def all_at_once(verb: str) -> None:
        running = []
        for number in range(1, 25):
            config = {"cniVersion": "1.0.0", "name": "mynet", "type": "firewall", "backend": "iptables"}
            file = tmp_path / f"{number}.json"
            file.write_text(
                json.dumps({**config, "prevResult": result(f"10.1.2.{number}/24"), "ingressPolicy": "isolated"})
            )
            environ = {
                **os.environ, "CNI_COMMAND": verb, "CNI_CONTAINERID": f"c{number}", "CNI_NETNS": container.path,
                "CNI_IFNAME": "eth0", "CNI_PATH": str(plugins),
            }  # fmt: skip
            command = ["nsenter", f"--net={node.path}", str(plugins / "firewall")]
            with file.open() as stdin:
                running.append(subprocess.Popen(command, env=environ, stdin=stdin, stdout=subprocess.PIPE, text=True))
        answers = [process.communicate()[0] for process in running]
        assert [answer for process, answer in zip(running, answers, strict=True) if process.returncode] == []

    all_at_once("ADD")
    lines = [line for line in node.iptables_save(4, "filter") if line.startswith("-A")]
    assert len(lines) == len(set(lines)) == 2 + 1 + 2 * 24 + 3 + 2
    all_at_once("DEL")
    assert left_over(node) == []
