from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.kernel.netns import NetNS
from cni.netfilter import nftables
from cni.netfilter.iptables import Iptables, IptablesError

if TYPE_CHECKING:
    from tests.conftest import Node

COMMENT = ["-m", "comment", "--comment", 'name: "my\\net" id: "cid1"\'s $x']
ADDRESS = {4: "10.1.2.3/32", 6: "2001:db8::3/128"}


@pytest.fixture(params=["nf_tables", "legacy"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "legacy":
        monkeypatch.setenv("PATH", request.getfixturevalue("legacy_path"))
    return {"nf_tables": "-nft", "legacy": "-legacy"}[request.param]


@pytest.fixture(params=["with libnftables", "without"])
def libnftables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setattr(nftables, "_loaded", "left out for this test")


@pytest.fixture(params=[4, 6])
def iptables(request: pytest.FixtureRequest, variant: str, libnftables: None, node: Node) -> Iterator[Iptables]:
    with NetNS.open(node.path) as netns:
        yield Iptables(request.param, netns)


def test_rules_are_listed_as_they_were_written(iptables: Iptables, node: Node, variant: str) -> None:
    rules = [
        ["-A", "POSTROUTING", "-s", ADDRESS[iptables.version], *COMMENT, "-j", "CNI-x"],
        ["-A", "CNI-x", "!", "-d", ADDRESS[iptables.version], *COMMENT, "-j", "MASQUERADE"],
    ]
    iptables.change("nat", rules, fresh=["CNI-x"])
    assert iptables.rules("nat", "POSTROUTING") == [["-P", "POSTROUTING", "ACCEPT"], rules[0]]
    assert iptables.rules("nat", "CNI-x") == [["-N", "CNI-x"], rules[1]]
    assert ":CNI-x -" in node.iptables_save(iptables.version, variant=variant)


def test_what_is_deleted_is_gone(iptables: Iptables) -> None:
    jump = ["POSTROUTING", "-s", ADDRESS[iptables.version], *COMMENT, "-j", "CNI-x"]
    iptables.change("nat", [["-A", *jump], ["-A", "CNI-x", "-j", "RETURN"]], fresh=["CNI-x"])
    iptables.change("nat", [["-D", *jump], ["-X", "CNI-x"]], fresh=["CNI-x"])
    assert iptables.rules("nat", "CNI-x") == []
    assert iptables.rules("nat", "POSTROUTING") == [["-P", "POSTROUTING", "ACCEPT"]]


def test_a_refused_change_leaves_nothing(iptables: Iptables) -> None:
    good = ["-A", "POSTROUTING", "-s", ADDRESS[iptables.version], "-j", "RETURN"]
    with pytest.raises(
        IptablesError, match=f"running .{iptables.command}-restore --noflush -w.: exit status"
    ) as failure:
        iptables.change("nat", [good, ["-A", "NOPE", "-j", "RETURN"]])
    assert "-A NOPE -j RETURN" in failure.value.details
    assert good not in iptables.rules("nat", "POSTROUTING")


def test_chains_that_are_not_there(iptables: Iptables) -> None:
    assert iptables.rules("nat", "CNI-x") == []
    iptables.change("nat", [], fresh=["CNI-y"])
    assert iptables.rules("nat", "CNI-x") == []
    assert iptables.rules("nat", "CNI-y") == [["-N", "CNI-y"]]


def test_looking_makes_no_table_and_starts_no_program(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with NetNS.open(node.path) as netns:
        assert Iptables(4, netns).rules("nat", "POSTROUTING") == []
        assert Iptables(6, netns).rules("nat", "POSTROUTING") == []
    assert node.nft_ruleset() == []


def test_usable(iptables: Iptables) -> None:
    assert iptables.usable()


def test_not_usable_without_privilege(node: Node) -> None:
    code = "import os\nfrom cni.netfilter.iptables import Iptables\nos.setuid(65534)\nprint(Iptables(4).usable())"
    assert node.python(code) == "False\n"
