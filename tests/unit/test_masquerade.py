"""Test what is sent to the kernel; tests/kernel/test_masquerade.py looks at what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cni.netfilter import masquerade, ruleset
from cni.netfilter.iptables import IptablesError
from cni.netfilter.naming import chain_name, owner_comment
from cni.netfilter.nftables import NftError, Rule
from cni.spec.errors import CNIError
from cni.spec.ip import CIDR

TABLE = "inet cni_plugins_masquerade"
CHAINS = f"""\
add table {TABLE} {{ comment "Masquerading for plugins from github.com/containernetworking/plugins" ; }}
add chain {TABLE} masq_checks {{ comment "Masquerade traffic from certain IPs to any (non-multicast) IP outside \
their subnet" ; }}
add chain {TABLE} postrouting {{ type nat hook postrouting priority 100 ; }}
"""
POSTROUTING = f"""\
flush chain {TABLE} postrouting
add rule {TABLE} postrouting ip daddr 224.0.0.0/4 return
add rule {TABLE} postrouting ip6 daddr ff00::/8 return
add rule {TABLE} postrouting goto masq_checks
"""


class FakeNft:
    """Stands in for Nft; `chains` is what is listed, `transactions` what was sent."""

    def __init__(self) -> None:
        self.chains: dict[str, list[Rule]] = {}
        self.transactions: list[str] = []
        self.refuses: str | None = None
        self.is_usable = True

    def rules(self, family: str, table: str, chain: str) -> list[Rule]:
        assert f"{family} {table}" == TABLE
        return self.chains.get(chain, [])

    def table(self, family: str, table: str) -> dict[str, list[Rule]]:
        assert f"{family} {table}" == TABLE
        return self.chains

    def run(self, commands: str) -> str:
        self.transactions.append(commands + "\n")
        if self.refuses is not None and self.refuses in commands:
            raise NftError("refused", commands)
        return ""

    def usable(self) -> bool:
        return self.is_usable


class FakeIptables:
    """Stands in for Iptables: records each change, or refuses it."""

    def __init__(self) -> None:
        self.changes: list[list[list[str]]] = []
        self.refuses = False
        self.netns = None
        self.is_usable = True

    def rules(self, table: str, chain: str) -> list[list[str]]:
        if self.refuses:
            raise IptablesError("no iptables")
        return []

    def change(self, table: str, rules: list[list[str]], fresh: Iterable[str] = ()) -> None:
        assert not list(fresh)
        if self.refuses:
            raise IptablesError("no iptables")
        self.changes.append(rules)

    def change_all(self, tables: dict[str, list[list[str]]]) -> None:
        assert list(tables) == ["nat"]
        self.change("nat", tables["nat"])

    def table(self, table: str) -> dict[str, list[list[str]]]:
        return {"POSTROUTING": self.rules(table, "POSTROUTING")}

    def usable(self) -> bool:
        return self.is_usable


@pytest.fixture
def nft(monkeypatch: pytest.MonkeyPatch) -> FakeNft:
    fake = FakeNft()
    for module in (masquerade, ruleset):
        monkeypatch.setattr(module, "Nft", lambda host: fake)
    return fake


@pytest.fixture
def iptables(monkeypatch: pytest.MonkeyPatch) -> FakeIptables:
    fake = FakeIptables()
    for module in (masquerade, ruleset):
        monkeypatch.setattr(module, "Iptables", lambda version, host: fake)
    return fake


def setup(backend: str | None, *addresses: str) -> None:
    cidrs = [CIDR.parse(address) for address in addresses]
    ruleset.establish(None, lambda wanted: masquerade.describe(wanted, backend, cidrs, "unit-test", "eth0", "two"))


# nftables


def test_nftables_setup_from_scratch(nft: FakeNft) -> None:
    setup("nftables", "192.168.1.2/24", "2001:db8::2/64")
    comment = 'comment "6fd94d501e58f0aa-d750b2c8f0f25d5f, net: unit-test, if: eth0, id: two"'
    assert nft.transactions == [
        CHAINS
        + POSTROUTING
        + f"add rule {TABLE} masq_checks ip saddr 192.168.1.2 ip daddr != 192.168.1.0/24 masquerade {comment}\n"
        + f"add rule {TABLE} masq_checks ip6 saddr 2001:db8::2 ip6 daddr != 2001:db8::/64 masquerade {comment}\n"
    ]


def test_nftables_setup_leaves_a_right_postrouting_alone_and_replaces_stale_rules(nft: FakeNft) -> None:
    texts = ("ip daddr 224.0.0.0/4 return", "ip6 daddr ff00::/8 return", "goto masq_checks")
    nft.chains = {
        "postrouting": [Rule(text, "", handle) for handle, text in enumerate(texts)],
        "masq_checks": [
            Rule("", "6fd94d501e58f0aa-d750b2c8f0f25d5f, net: unit-test, if: eth0, id: two", 7),
            Rule("", "6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one", 8),
            Rule("", "", 9),
        ],
    }
    setup("nftables")
    assert nft.transactions == [f"delete rule {TABLE} masq_checks handle 7\n"]


def test_nftables_setup_after_the_chains_have_vanished(nft: FakeNft) -> None:
    """Between the look at them and the transaction, say by a reload of the node's firewall."""
    texts = ("ip daddr 224.0.0.0/4 return", "ip6 daddr ff00::/8 return", "goto masq_checks")
    nft.chains = {"masq_checks": [], "postrouting": [Rule(text, "", n) for n, text in enumerate(texts)]}

    def run(commands: str) -> str:
        nft.transactions.append(commands)
        if not commands.startswith("add table"):
            raise NftError("no such table", commands)
        return ""

    nft.run = run  # type: ignore[method-assign]
    setup("nftables", "192.168.1.2/24")
    first, second = nft.transactions
    assert second == CHAINS + POSTROUTING + first


def test_comments_on_tables_and_chains_are_dropped_where_they_are_not_taken(nft: FakeNft) -> None:
    nft.refuses = "Masquerading for plugins"
    setup("nftables")
    first, second = nft.transactions
    assert first == CHAINS + POSTROUTING
    assert second.startswith(f"add table {TABLE}\nadd chain {TABLE} masq_checks\nadd chain {TABLE} postrouting {{ type")
    assert second.endswith(POSTROUTING)


def test_nftables_refusing_for_good(nft: FakeNft) -> None:
    nft.refuses = ""
    with pytest.raises(NftError, match="refused"):
        setup("nftables")


@pytest.mark.parametrize(
    ("network", "ifname", "container_id", "comment"),
    [
        ("alternate", "net1", "three", "82783ef24bdc7036-acb19d111858e348, net: alternate, if: net1, id: three"),
        ('un"it', 'e"th0', 'o"ne', ", net: unit, if: eth0, id: one"),
    ],
)
def test_comments(network: str, ifname: str, container_id: str, comment: str) -> None:
    assert owner_comment(network, ifname, container_id).endswith(comment)


def test_comments_are_cut_to_128_bytes_and_stay_text() -> None:
    assert owner_comment("n" * 200, "eth0", "one")[33:] == ", net: " + "n" * (128 - 33 - 7)
    cut = owner_comment("n" * (128 - 33 - 7 - 7), "€", "one")
    assert cut[33 + 7 :].lstrip("n") == ", if: "
    assert len(cut) == 127


# the choice of backend, and what counts as a failure


def test_unknown_backends() -> None:
    for backend in ("x", ""):
        with pytest.raises(CNIError, match=f'^unknown ipmasq backend "{backend}"$'):
            setup(backend)


def test_iptables_comes_first(nft: FakeNft, iptables: FakeIptables) -> None:
    setup(None, "10.1.2.3/24")
    assert len(iptables.changes) == 1
    assert nft.transactions == []


def test_nftables_where_iptables_is_not_usable(nft: FakeNft, iptables: FakeIptables) -> None:
    iptables.refuses, iptables.is_usable = True, False
    setup(None, "10.1.2.3/24")
    assert len(nft.transactions) == 1


@pytest.mark.parametrize(("iptables_usable", "nft_usable"), [(True, True), (True, False), (False, False)])
def test_iptables_failure_counts_unless_only_nftables_is_usable(
    nft: FakeNft, iptables: FakeIptables, iptables_usable: bool, nft_usable: bool
) -> None:
    iptables.refuses, iptables.is_usable, nft.is_usable = True, iptables_usable, nft_usable
    with pytest.raises(IptablesError, match="no iptables"):
        setup(None, "10.1.2.3/24")
    assert nft.transactions == []


def test_iptables_rules_of_several_addresses_share_what_they_can(iptables: FakeIptables) -> None:
    setup("iptables", "10.1.2.3/24", "10.1.2.4/24", "10.2.0.1/16")
    ((new, *rules),) = iptables.changes
    chain = chain_name("unit-test", "two")
    assert new == ["-N", chain]
    assert [" ".join(argument for argument in rule if "name:" not in argument) for rule in rules] == [
        f"-A {chain} -d 10.1.2.0/24 -m comment --comment -j ACCEPT",
        f"-A {chain} ! -d 224.0.0.0/4 -m comment --comment -j MASQUERADE",
        f"-A POSTROUTING -s 10.1.2.3/32 -m comment --comment -j {chain}",
        f"-A POSTROUTING -s 10.1.2.4/32 -m comment --comment -j {chain}",
        f"-A {chain} -d 10.2.0.0/16 -m comment --comment -j ACCEPT",
        f"-A POSTROUTING -s 10.2.0.1/32 -m comment --comment -j {chain}",
    ]
    assert all('name: "unit-test" id: "two"' in rule for rule in rules)


@pytest.mark.parametrize("usable", [True, False])
def test_teardown_failures_count_where_the_backend_is_usable(
    nft: FakeNft, iptables: FakeIptables, usable: bool
) -> None:
    comment = "6fd94d501e58f0aa-d750b2c8f0f25d5f, net: unit-test, if: eth0, id: two"
    nft.chains = {"masq_checks": [Rule("", comment, 7)]}
    nft.refuses, iptables.refuses = "delete rule", True
    nft.is_usable = iptables.is_usable = usable
    transaction = f"delete rule {TABLE} masq_checks handle 7\n"
    if usable:
        with pytest.raises(CNIError) as failure:
            masquerade.teardown("unit-test", "eth0", "two")
        assert failure.value.msg == "no iptables\nno iptables\nrefused; " + transaction.strip()  # IPv4, IPv6, nftables
    else:
        masquerade.teardown("unit-test", "eth0", "two")
    assert nft.transactions == [transaction] * 3


def test_a_rule_that_somebody_else_deletes_first_is_looked_for_again(nft: FakeNft, iptables: FakeIptables) -> None:
    comment = "6fd94d501e58f0aa-d750b2c8f0f25d5f, net: unit-test, if: eth0, id: two"
    nft.chains = {"masq_checks": [Rule("", comment, 7)]}

    def run(commands: str) -> str:
        nft.chains = {}
        raise NftError("gone", commands)

    nft.run = run  # type: ignore[method-assign]
    masquerade.teardown("unit-test", "eth0", "two")
