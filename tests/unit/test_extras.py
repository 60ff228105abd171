"""Without the packages of the extras a command does the same in plain text, or says what is to be installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cni.cli.extras import EXTRAS

ROOT = Path(__file__).parents[2]
CODE = "import sys; sys.modules.update(dict.fromkeys({absent!r})); from cni.cli.main import main; sys.exit(main())"
TYPO = '{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge", "mtuu": 1}]}'


def cni(*words: str, absent: tuple[str, ...] = tuple(EXTRAS), **environ: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command where the packages `absent` are not installed."""
    command = [sys.executable, "-c", CODE.format(absent=absent), *words]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        ("completion bash", "shtab", "cli"),
        ("agent --socket {tmp}/socket --metrics {tmp}/metrics", "prometheus_client", "metrics"),
        ("install --dir {tmp}/bin --unit-dir {tmp} --agent --metrics 9464", "prometheus_client", "metrics"),
        ("bench --svg {tmp}", "matplotlib", "bench"),
    ],
)
def test_what_is_to_be_installed(words: str, package: str, extra: str, tmp_path: Path) -> None:
    status, stdout, stderr = cni(*words.format(tmp=tmp_path).split())
    assert (status, stdout) == (1, "")
    assert [line for line in stderr.splitlines() if package in line or "Traceback" in line] == [
        f"cni {words.split()[0]}: {package} is not installed: pip install 'cni[{extra}]'"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["explain", "explain bridge", "validate --files-only {net}", "graph", "doctor tools"])
def test_plain_text_without_rich(words: str, tmp_path: Path) -> None:
    """On a terminal, which FORCE_COLOR stands for, it is what a pipe gets."""
    (tmp_path / "net.conflist").write_text(TYPO)
    argv = words.format(net=tmp_path / "net.conflist").split()
    environ = {"NETCONFPATH": str(tmp_path), "COLUMNS": "100", "NO_COLOR": ""}
    piped = cni(*argv, absent=(), **environ)
    assert cni(*argv, FORCE_COLOR="1", **environ) == piped
    assert "\x1b[" in cni(*argv, absent=(), FORCE_COLOR="1", **environ)[1]


def test_the_extras_bring_the_packages() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(wanted.startswith(package.replace("_", "-")) for wanted in extras[extra])
