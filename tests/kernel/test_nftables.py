from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.kernel.netns import NetNS
from cni.netfilter import nftables
from cni.netfilter.nftables import Nft, NftError

if TYPE_CHECKING:
    from tests.conftest import Node

TABLE = """
add table inet t
add chain inet t c
add rule inet t c ip saddr 10.1.2.3 ip daddr != 10.1.2.0/24 counter accept comment "a comment, with: a # handle 7"
add rule inet t c ip6 saddr 2001:db8::1 drop
"""


@pytest.fixture(params=["library", "program"])
def nft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, node: Node, tmp_path: Path) -> Iterator[Nft]:
    """nftables of the node: once through libnftables, with no program in reach, and once through the program."""
    if request.param == "library":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setattr(nftables, "_loaded", "left out for this test")
    with NetNS.open(node.path) as netns:
        yield Nft(netns)


def test_a_transaction_lands_in_its_namespace(
    nft: Nft,
    node: Node,
) -> None:
    nft.run(TABLE)
    assert [next(iter(entry)) for entry in node.nft_ruleset()] == ["table", "chain", "rule", "rule"]
    assert nft.rules("inet", "t", "c")
    assert not Nft().rules("inet", "t", "c")


def test_rules(nft: Nft) -> None:
    nft.run(TABLE)
    first, second = nft.rules("inet", "t", "c")
    assert first.comment == "a comment, with: a # handle 7"
    assert first.text == "ip saddr 10.1.2.3 ip daddr != 10.1.2.0/24 counter packets 0 bytes 0 accept"
    assert (second.text, second.comment) == ("ip6 saddr 2001:db8::1 drop", "")
    nft.run(f"delete rule inet t c handle {first.handle}")
    assert [rule.handle for rule in nft.rules("inet", "t", "c")] == [second.handle]


def test_rules_with_long_sets(nft: Nft) -> None:
    addresses = [f"10.9.{number}.1" for number in range(100)]
    nft.run(f'add table ip t\nadd chain ip t c\nadd rule ip t c ip saddr {{ {", ".join(addresses)} }} drop comment "x"')
    (rule,) = nft.rules("ip", "t", "c")
    assert rule.text.replace(",", " ").split() == ["ip", "saddr", "{", *addresses, "}", "drop"]
    assert rule.comment == "x"


def test_what_is_not_there_has_no_rules(nft: Nft) -> None:
    assert nft.rules("inet", "t", "c") == []
    nft.run("add table inet t")
    assert nft.rules("inet", "t", "c") == []
    nft.run("add chain inet t c")
    assert nft.rules("inet", "t", "c") == []


@pytest.mark.parametrize("command", ["list chain inet t x", "delete rule inet t c handle 99", "add rule inet x y drop"])
def test_missing_objects(nft: Nft, command: str) -> None:
    nft.run(TABLE)
    with pytest.raises(NftError, match=r"nftables refused a transaction: .*No such file or directory") as failure:
        nft.run(command)
    assert failure.value.is_missing
    assert command in failure.value.msg


def test_a_refused_transaction_leaves_nothing(nft: Nft) -> None:
    with pytest.raises(NftError, match="syntax error") as failure:
        nft.run(TABLE + "add nonsense inet t\n")
    assert failure.value.details.endswith("add nonsense inet t\n")
    assert not failure.value.is_missing
    assert nft.rules("inet", "t", "c") == []


def test_a_nul_character_is_refused(nft: Nft) -> None:
    with pytest.raises(NftError):
        nft.run('add table inet t\0{ comment "x" ; }')


def test_json(nft: Nft) -> None:
    nft.run(TABLE)
    metainfo, *objects = nft.json("list table inet t")
    assert metainfo["metainfo"]["json_schema_version"] == 1
    assert [next(iter(entry)) for entry in objects] == ["table", "chain", "rule", "rule"]
    nft.json(json.dumps({"nftables": [{"delete": {"table": {"family": "inet", "name": "t"}}}]}))
    assert nft.json("list tables")[1:] == []


def test_usable(nft: Nft) -> None:
    assert nft.usable()


@pytest.mark.parametrize("left_out", ["", "nftables._loaded = 'left out'"])
def test_not_usable_without_privilege(node: Node, left_out: str) -> None:
    code = """
import os
from cni.netfilter import nftables
nft = nftables.Nft()
assert nft.usable()
os.setuid(65534)
print(nft.usable())
"""
    assert node.python(code.replace("nft =", f"{left_out}\nnft =")) == "False\n"


def test_the_own_namespace_needs_no_program_and_no_thread(node: Node, tmp_path: Path) -> None:
    code = """
import sys
from cni.netfilter.nftables import Nft
nft = Nft()
assert nft.in_process and nft.usable()
nft.run("add table inet t; add chain inet t c; add rule inet t c drop")
handle = nft.rules("inet", "t", "c")[0].handle
nft.run(f"delete rule inet t c handle {handle}")
print(nft.rules("inet", "t", "c"), [name for name in ("threading", "json", "re", "socket") if name in sys.modules])
"""
    assert node.python(code, env={"PATH": str(tmp_path)}).startswith("[] ")
    assert [next(iter(entry)) for entry in node.nft_ruleset()] == ["table", "chain"]


def test_many_threads(node: Node) -> None:
    """libnftables is not thread-safe; the agent serves from threads."""
    code = """
import sys, threading
from cni.netfilter.nftables import Nft
def work(number):
    Nft().run("add table inet t; add chain inet t c")
    for turn in range(20):
        Nft().run(f'add rule inet t c ip saddr 10.0.{number}.{turn} drop comment "{number}"')
        assert any(rule.comment == str(number) for rule in Nft().rules("inet", "t", "c"))
failures = []
threading.excepthook = failures.append
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(failures, len(Nft().rules("inet", "t", "c")))
"""
    assert node.python(code) == "[] 160\n"
