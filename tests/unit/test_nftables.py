from __future__ import annotations

from pathlib import Path

import pytest

from cni.netfilter import nftables
from cni.netfilter.nftables import Nft, NftError, _rules

LISTING = """table inet t {
\tchain c { # handle 1
\t\tcomment "a chain's comment, not a rule's # handle 9 "
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip daddr 224.0.0.0/4 return # handle 3
\t\tip saddr 10.1.2.3 ip daddr != 10.1.2.0/24 masquerade comment "1f-2e, net: n, id: # handle 7" # handle 12
\t\tip saddr { 10.0.0.1, 10.0.0.2,
\t\t\t     10.0.0.3 } drop # handle 13
\t}
}
"""


def test_reading_a_listing() -> None:
    assert [(rule.text.split(), rule.comment, rule.handle) for rule in _rules(LISTING)["c"]] == [
        (["ip", "daddr", "224.0.0.0/4", "return"], "", 3),
        (
            ["ip", "saddr", "10.1.2.3", "ip", "daddr", "!=", "10.1.2.0/24", "masquerade"],
            "1f-2e, net: n, id: # handle 7",
            12,
        ),
        (["ip", "saddr", "{", "10.0.0.1,", "10.0.0.2,", "10.0.0.3", "}", "drop"], "", 13),
    ]


def test_only_lines_that_end_in_a_handle_are_rules() -> None:
    assert len(_rules(LISTING)["c"]) == 3


def test_elements_of_sets() -> None:
    elements = '10.1.2.3 comment "1f-2e, net: n, if: eth0", "br0" . "br0",\n\t\t\t     10.1.2.4,'
    elements += '\n\t\t\t     tcp . 80 comment "c, d" : 10.1.2.3 . 8080'
    sets = f"\tset s {{\n\t\ttype ipv4_addr\n\t\telements = {{ {elements} }}\n\t}}\n\tset e {{\n\t}}\n"
    listing = f"table inet t {{\n{sets}}}\n"
    found = _rules(listing)
    assert [(element.text, element.comment) for element in found["s"]] == [
        ("10.1.2.3", "1f-2e, net: n, if: eth0"),
        ('"br0" . "br0"', ""),
        ("10.1.2.4", ""),
        ("tcp . 80 : 10.1.2.3 . 8080", "c, d"),
    ]
    assert found["e"] == []


def test_neither_library_nor_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nftables, "_loaded", "cannot open shared object file")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not Nft().usable()
    assert not Nft().in_process
    with pytest.raises(
        NftError, match=r"neither libnftables\.so\.1 \(cannot open .*\) nor nft \(No such file"
    ) as failure:
        Nft().run("list tables")
    assert not failure.value.is_missing


@pytest.mark.parametrize(
    ("version", "usable"), [("1.0.6", True), ("1.0.1", True), ("1.1", True), ("1.0.0", False), ("0.9.8", False)]
)
def test_an_old_nft_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, usable: bool) -> None:
    program = tmp_path / "nft"
    program.write_text(f'#!/bin/sh\necho \'{{"nftables": [{{"metainfo": {{"version": "{version}"}}}}]}}\'\n')
    program.chmod(0o755)
    monkeypatch.setattr(nftables, "_loaded", "not there")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Nft().usable() is usable
