"""Shells complete what the parsers know, and the manual pages say it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cni.cli.main import COMMANDS, main
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[2]
MAN = ROOT / "docs/man"
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
    ("cni explain mac", {"macvlan", "!"}),
    ("cni ipam show ", {"pods", "storage", "!"}),
    ("cni list --network p", {"pods", "!"}),
    ("cni validate {work}/a", {"{work}/a folder", "{work}/a.file", "!"}),
    ("cnitool d", {"del", "!"}),
    ("cnitool add s", {"storage", "!"}),
    ("cnitool add pods {work}/a.", {"{work}/a.file", "!"}),
]


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    path = folder / f"cni.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def run(*argv: str | Path, stdin: str = "") -> str:
    assert shutil.which(str(argv[0])), f"{argv[0]} is not installed"
    done = subprocess.run(list(map(str, argv)), input=stdin, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def compare(offered: set[str], wanted: set[str], work: Path) -> None:
    names = {name.format(work=work) for name in wanted - {"!"}}
    assert offered == names if "!" in wanted else offered >= names


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files, and ``cni`` on PATH, which knows two networks."""
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a.file").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/cni").write_text(f"#!{sys.executable}\nfrom cni.cli.main import main\n\nmain()\n")
    (tmp_path / "bin/cni").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "net").mkdir()
    for name in ("pods", "storage"):
        network = {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge"}]}
        (tmp_path / f"net/{name}.conflist").write_text(json.dumps(network))
    monkeypatch.setenv("NETCONFPATH", f"{tmp_path}/net")
    return tmp_path


@pytest.mark.parametrize(("typed", "wanted"), CASES)
def test_bash(typed: str, wanted: set[str], work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = """
    compopt() { :; }
    source "$1"
    COMP_WORDS=($2)
    [[ $2 != *' ' ]] || COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    read -ra spec < <(complete -p "${COMP_WORDS[0]}")
    "${spec[-2]}"
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


@pytest.mark.parametrize("loaded", ["fpath", "eval"])
@pytest.mark.parametrize(("typed", "wanted"), CASES)
def test_zsh(typed: str, wanted: set[str], loaded: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a terminal, as zsh completes nowhere else; what it would offer is printed instead."""
    script("zsh", work, capsys).rename(work / "_cni")
    program = """
    zmodload zsh/zpty
    zpty shell zsh -f -i
    zpty -w shell 'PS1= PS2=; unsetopt zle_bracketed_paste'
    zpty -w shell "source $1"
    zpty -r shell said $'*READY*'
    zpty -n -w shell "$2"$'\t'
    zpty -r shell said $'*OFFERS*END*'
    print -r -- "$said"
    """
    (work / "rc").write_text(f"""
    autoload -U compinit
    {f"fpath=({work} $fpath)" if loaded == "fpath" else ""}
    compinit -u -D
    {f'eval "$(<{work}/_cni)"' if loaded == "eval" else ""}
    compadd() {{
        if [[ ${{@[1,(i)(-|--)]}} == *-(O|A|D)* ]]; then builtin compadd "$@"; return; fi
        local -a offers
        builtin compadd -A offers "$@"
        collected+=("${{offers[@]}}")
        builtin compadd "$@"
    }}
    complete-all() {{
        typeset -ga collected=()
        zle complete-word
        print -lr -- OFFERS "${{collected[@]}}" END
    }}
    zle -N complete-all
    bindkey '^I' complete-all
    print REA''DY
    """)
    typed = typed.format(work=work)
    said = run("zsh", "-f", "-c", program, "zsh", work / "rc", typed)
    offers = said.replace("\r", "").partition("OFFERS\n")[2].partition("END")[0].splitlines()
    folder = re.sub("[^ /]*$", "", typed).rpartition(" ")[2]
    compare({folder + offer.replace("\\ ", " ") for offer in offers}, wanted, work)


def test_the_pages_are_current(tmp_path: Path) -> None:
    """Otherwise: make man."""
    run(sys.executable, ROOT / "scripts/manual.py", tmp_path)
    written, committed = ({path.name: path.read_text() for path in folder.iterdir()} for folder in (tmp_path, MAN))
    assert {*written} == {"cni.1", "cnitool.1", *(f"cni-{name}.1" for name in NAMES)}
    assert written == committed


@pytest.mark.parametrize("path", sorted(MAN.glob("*.1")), ids=lambda path: path.name)
def test_a_page_is_readable(path: Path) -> None:
    shown = run("groff", "-man", "-Tutf8", "-ww", "-P-cbou", path)
    assert "SYNOPSIS" in shown
    assert "\\" not in shown
