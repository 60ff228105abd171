"""The core as AddressSanitizer and UBSan see it: not a byte is read or written that is not its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CORE = ROOT / "src" / "_cnicore"
HERE = Path(__file__).with_name("sanitized")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"]


def run(command: list[str], env: dict[str, str] | None = None) -> str:
    """stdout; a failure, or a report of the sanitizers, shows all that was printed."""
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "Sanitizer" not in printed
    assert "runtime error" not in printed
    return done.stdout


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as SANITIZE=1 builds it."""
    folder = tmp_path_factory.mktemp("sanitized")
    places = [f"--build-{name}={folder / name}" for name in ("base", "lib", "temp")]
    run([sys.executable, "setup.py", "-q", "build", *places], {"SANITIZE": "1"})
    return folder / "lib"


def session(sanitized: Path, what: str, *preload: str) -> str:
    libasan = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    path = [str(sanitized), *filter(None, sys.path)]
    environ = {
        "LD_PRELOAD": ":".join([libasan.stdout.strip(), *preload]),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own would be found
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that each object has its own bounds
        "PYTHONPATH": os.pathsep.join(path),
    }
    used = run([sys.executable, "-P", "-c", "import cni._core; print(cni._core.__file__)"], environ)
    assert used.startswith(str(sanitized))
    return run([sys.executable, str(HERE / "session.py"), what], environ)


def test_session(sanitized: Path) -> None:
    assert session(sanitized, "honest") == "malformed True\n"


def test_session_with_a_kernel_that_lies(sanitized: Path, tmp_path: Path) -> None:
    liar = str(tmp_path / "liar.so")
    run(["gcc", "-shared", "-fPIC", "-o", liar, str(HERE / "liar.c"), "-ldl"])
    assert session(sanitized, "lies", liar) == "failures True\n"


def test_acknowledgements(tmp_path: Path) -> None:
    program = str(tmp_path / "acknowledgements")
    sources = [str(CORE / f"{name}.c") for name in ("error", "netlink", "netns")]
    run(["gcc", *SANITIZERS, f"-I{CORE}", "-o", program, str(HERE / "acknowledgements.c"), *sources])
    assert "refused" in run([program])
