"""The set-up says what is missing where it can't install it, and is content where nothing is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.waiting import LIMIT

SETUP = Path(__file__).parents[2] / "scripts" / "setup"


class Machine:
    """A record of what the script sees: nothing but a shell and these programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = folder / "asked"
        self.has("id", "echo 0")

    def has(self, program: str, script: str) -> None:
        (self.folder / program).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / program).chmod(0o755)

    def has_packages(self, *missing: str) -> None:
        self.has("dpkg-query", f'for name; do :; done\ncase " {" ".join(missing)} " in *" $name "*) exit 1;; esac\n'
                 "printf installed")  # fmt: skip

    def has_apt(self, works_at: int = 1) -> None:
        """An apt-get that installs from its nth call on."""
        self.has("apt-get", f'echo "$*" >>{self.asked}\n[ $(wc -l <{self.asked}) -ge {works_at} ]')
        (self.folder / "wc").symlink_to("/usr/bin/wc")

    def set_up(self, what: str = "demo") -> tuple[int, str, list[str]]:
        """The exit status, what it said, and what apt-get was asked."""
        done = subprocess.run(
            ["/bin/sh", str(SETUP), what], env={"PATH": str(self.folder)}, capture_output=True, text=True, timeout=LIMIT
        )
        asked = self.asked.read_text().splitlines() if self.asked.exists() else []
        return done.returncode, done.stdout + done.stderr, asked


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_missing(machine: Machine) -> None:
    machine.has_packages()
    machine.has_apt()
    assert machine.set_up() == (0, "", [])


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    machine.has_packages("gcc", "iptables", "podman")
    machine.has_apt()
    assert machine.set_up() == (
        0,
        "installing gcc iptables\n",
        ["-qq install -y --no-install-recommends gcc iptables"],
    )


def test_lists_of_packages_that_are_too_old(machine: Machine) -> None:
    machine.has_packages("podman")
    machine.has_apt(works_at=2)
    install = "-qq install -y --no-install-recommends podman"
    assert machine.set_up("test") == (0, "installing podman\n", [install, "-qq update", install])


def test_a_user_is_told_what_to_install(machine: Machine) -> None:
    machine.has_packages("gcc", "iptables")
    machine.has_apt()
    machine.has("id", "echo 1000")
    status, said, asked = machine.set_up()
    assert (status, asked) == (1, [])
    assert said == "Packages are missing. As root:  apt-get install --no-install-recommends gcc iptables\n"


def test_without_apt_one_is_told_what_to_install(machine: Machine) -> None:
    machine.has_packages("gcc")
    status, said, _ = machine.set_up()
    assert (status, "gcc" in said) == (1, True)


def test_another_distribution(machine: Machine) -> None:
    status, said, _ = machine.set_up()
    assert status == 0
    assert "gcc" in said
    assert "nftables" in said


def test_misuse(machine: Machine) -> None:
    assert machine.set_up("lunch")[0] == 2
