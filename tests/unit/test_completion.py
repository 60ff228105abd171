"""Shells complete what the parsers know, and the manual pages say it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cni.cli import completion, grammar, manual
from cni.cli.main import COMMANDS, main

MAN = Path(__file__).parents[2] / "docs" / "man"
NAMES = {name for name, _, _ in COMMANDS}

# What is typed, and what some of the offers are; a trailing "!" means that there are no others.
CASES = [
    ("cni ", NAMES),
    ("cni unin", {"uninstall", "!"}),
    ("cni install --d", {"--dir", "--dhcp-daemon", "--dry-run", "!"}),
    ("cni ipam ", {"list", "show"}),
    ("cni ipam show --", {"--json", "--help", "!"}),
    ("cni completion ", {"bash", "fish", "zsh", "!"}),
    ("cni install --dir {work}/a", {"{work}/a folder", "!"}),
    ("cnitool d", {"del", "!"}),
]


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    path = folder / f"cni.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def run(*argv: str | Path, stdin: str = "") -> str:
    assert shutil.which(str(argv[0])), f"{argv[0]} is not installed"
    done = subprocess.run(list(map(str, argv)), input=stdin, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def compare(offered: set[str], wanted: set[str], work: Path) -> None:
    names = {name.format(work=work) for name in wanted - {"!"}}
    assert offered == names if "!" in wanted else offered >= names


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a.file").touch()
    return tmp_path


@pytest.mark.parametrize(("typed", "wanted"), CASES)
def test_bash(typed: str, wanted: set[str], work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = """
    compopt() { :; }
    source "$1"
    COMP_WORDS=($2)
    [[ $2 != *' ' ]] || COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    spec=$(complete -p "${COMP_WORDS[0]}")
    if [[ $spec =~ -W\\ \\'(.*)\\' ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${BASH_REMATCH[1]}" -- "${COMP_WORDS[COMP_CWORD]}")
    else
        _cni
    fi
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    said = run("bash", "-c", program, "bash", script("bash", work, capsys), typed.format(work=work))
    compare(set(said.splitlines()), wanted, work)


@pytest.mark.parametrize(("typed", "wanted"), CASES)
def test_fish(typed: str, wanted: set[str], work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("fish", work, capsys)
    said = run("fish", "--no-config", "-c", f"source {path}; complete -C {typed.format(work=work)!r}")
    offered = {line.partition("\t")[0].rstrip("/") for line in said.splitlines()}
    if "--" not in typed:
        offered = {name for name in offered if not name.startswith("-")}
    compare(offered, wanted, work)


def test_zsh(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its functions ask for what zsh's own take: each command's, in its place."""
    program = """
    _arguments() { print -rl -- "$@"; state=$STATE; line=($LINE) }
    _describe() { print -rl -- "${(@P)2}" }
    service=cni
    STATE=command source $1
    STATE=argument LINE=ipam _cni
    """
    said = run("zsh", "-f", "-c", program, "zsh", script("zsh", work, capsys)).splitlines()
    assert {f"{name}:{meaning}" for name, _, meaning in COMMANDS} <= set(said)
    assert any("--help" in line for line in said)
    for command in grammar.cni().all():
        assert f"{completion._zsh_function(command)}() {{" in (work / "cni.zsh").read_text()


def test_the_pages_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise: make man."""
    monkeypatch.delenv("CNI_AGENT_SOCKET", raising=False)
    current = manual.pages()
    assert {path.name for path in MAN.iterdir()} == set(current) == {
        "cni.1", "cnitool.1", *(f"cni-{name}.1" for name in NAMES)
    }  # fmt: skip
    assert [name for name, text in current.items() if (MAN / name).read_text() != text] == []


@pytest.mark.parametrize("path", sorted(MAN.glob("*.1")), ids=lambda path: path.name)
def test_a_page_is_readable(path: Path) -> None:
    shown = run("groff", "-man", "-Tutf8", "-ww", "-P-cbou", path)
    assert "SYNOPSIS" in shown
    assert "\\" not in shown
