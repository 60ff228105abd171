from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.iptables import Iptables, IptablesError, _arguments, restore_input

COMMENT = 'name: "mynet" id: "cid1"'


def test_what_iptables_restore_reads() -> None:
    rules = [
        ["-A", "CNI-x", "!", "-d", "224.0.0.0/4", "-m", "comment", "--comment", COMMENT, "-j", "MASQUERADE"],
        ["-A", "POSTROUTING", "-s", "10.1.2.3/32", "-j", "CNI-x"],
    ]
    assert restore_input("nat", rules, fresh=["CNI-x"]) == (
        "*nat\n"
        ":CNI-x - [0:0]\n"
        r'-A CNI-x ! -d 224.0.0.0/4 -m comment --comment "name: \"mynet\" id: \"cid1\"" -j MASQUERADE'
        "\n"
        "-A POSTROUTING -s 10.1.2.3/32 -j CNI-x\n"
        "COMMIT\n"
    )


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (
            r'-A CNI-x -d 10.1.2.0/24 -m comment --comment "name: \"mynet\" id: \"cid1\"" -j ACCEPT',
            ["-A", "CNI-x", "-d", "10.1.2.0/24", "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"],
        ),
        (r'--comment "a \'b\' \\ c" -j x', ["--comment", r"a 'b' \ c", "-j", "x"]),
        ("-P POSTROUTING ACCEPT", ["-P", "POSTROUTING", "ACCEPT"]),
        ('--comment "" -j x', ["--comment", "", "-j", "x"]),
    ],
)
def test_reading_a_listing(line: str, rule: list[str]) -> None:
    assert _arguments(line) == rule


@given(st.lists(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"])), min_size=1))
def test_what_is_quoted_is_read_back(rule: list[str]) -> None:
    line = restore_input("nat", [rule]).removeprefix("*nat\n").removesuffix("\nCOMMIT\n")
    assert "\n" not in line
    assert _arguments(line) == rule


@pytest.mark.parametrize("argument", ["x\nCOMMIT", "x\0"])
def test_an_argument_cannot_end_its_rule(argument: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        restore_input("nat", [["-A", "INPUT", "-m", "comment", "--comment", argument]])


def test_a_missing_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not Iptables(4).usable()
    with pytest.raises(IptablesError, match=r"running \[iptables-restore --noflush -w\]: .*No such file") as failure:
        Iptables(4).change("nat", [["-X", "CNI-x"]])
    assert failure.value.details == "*nat\n-X CNI-x\nCOMMIT"


@pytest.mark.parametrize(
    ("words", "is_missing"),
    [
        ("iptables: No chain/target/match by that name.", True),
        ("iptables: Bad rule (does a matching rule exist in that chain?).", True),
        ("iptables v1.8.7 (nf_tables): Chain 'x' does not exist", True),
        ("line 3 failed: No such file or directory.", True),
        ("can't initialize iptables table nat: Permission denied (you must be root)", False),
    ],
)
def test_what_counts_as_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, is_missing: bool) -> None:
    program = tmp_path / "iptables-restore"
    program.write_text(f'#!/bin/sh\necho "{words}" >&2\nexit 2\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IptablesError, match="exit status 2") as failure:
        Iptables(4).change("nat", [["-X", "CNI-x"]])
    assert str(failure.value).startswith(f"running [iptables-restore --noflush -w]: exit status 2: {words}; *nat\n")
    assert failure.value.is_missing is is_missing
