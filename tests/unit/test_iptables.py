from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.netfilter.iptables import Iptables, IptablesError, _arguments, restore_input

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


def test_a_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "ip6tables-restore"
    program.write_text("#!/bin/sh\necho line 2 failed >&2\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IptablesError) as failure:
        Iptables(6).change("nat", [["-X", "CNI-x"]])
    assert failure.value.msg == "running [ip6tables-restore --noflush -w]: exit status 2: line 2 failed"
    assert failure.value.details == "*nat\n-X CNI-x\nCOMMIT"
