"""Tests of what this machine's kernel may lack: run in a guest kernel that has every link type (recipes: vm-run).

How to add one: write an ordinary test in an ordinary tests/vm/test_*.py, with the fixtures of tests/conftest.py
(`node`, `call`, `plugins`, ...) and of tests/networks.py (`make_network`), whose names this file has too; but no
classes of tests and no autouse fixtures. Every test here runs INSIDE a guest, as root, by the interpreter and the
packages that run pytest outside; nothing in the file has to know that. One guest is booted for each file and runs all
of its tests that were selected; each is reported outside under its own name, with its own traceback. A guest that
does not boot, or dies, fails the tests that it owes.

In the guest this machine's files are seen, and what is written to them is forgotten. There is no network but what the
test makes. A program takes 25 ms to start, a plugin's executable 80 ms, so prefer `call` (10 ms) where the process
is not what is tested. An ADD with an IPv6 gateway waits 1-2 s for duplicate address detection. CNI_GUEST_LOG=1 (with
pytest's -s) shows what the guest's own pytest prints.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.networks import Attachment, Network, Refused, addresses, links, make_network, pings, setting
from tests.waiting import LIMIT

__all__ = ["Attachment", "Network", "Refused", "addresses", "links", "make_network", "pings", "setting"]

HERE = Path(__file__).parent
TIME_LIMIT = 3 * LIMIT  # seconds for one file's guest

# Set in the guest: the file to which its pytest writes what became of each test, a line of JSON each phase.
REPORTS = os.environ.get("CNI_GUEST_REPORTS")

Reports = dict[str, list[dict[str, str]]]  # by test


if REPORTS:

    def pytest_runtest_logreport(report: pytest.TestReport) -> None:
        told = {"test": report.nodeid, "when": report.when, "outcome": report.outcome, "text": _words(report)}
        # To the disk at once: the guest's kernel may not live to do it later.
        with open(str(REPORTS), "a") as reports:
            print(json.dumps(told), file=reports, flush=True)
            os.fsync(reports.fileno())

else:

    @pytest.hookimpl(trylast=True)  # of those that are left, as in the guest
    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        """Put in the place of each test here one that asks for its outcome in the guest."""
        for number, item in enumerate(items):
            if item.path.is_relative_to(HERE):
                items[number] = pytest.Function.from_parent(item.parent, name=item.name, callobj=_outcome)
                items[number].own_markers = item.own_markers
                items[number].keywords.update(item.keywords)


def _words(report: pytest.TestReport) -> str:
    """Why a test was skipped, or all about its failure; the first line is what a summary shows."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    captured = [f"---- {title} ----\n{text}" for title, text in report.sections]
    return "\n".join([crash.message if crash else "", f"in the guest, {report.when}:", report.longreprtext, *captured])


def _outcome(request: pytest.FixtureRequest, guest: Callable[[Path, list[str]], Reports]) -> None:
    """Return what a test here does outside the guest."""
    of_file = [item.nodeid for item in request.session.items if item.path == request.node.path]
    for report in guest(request.node.path, of_file)[request.node.nodeid]:
        if report["outcome"] == "skipped":
            pytest.skip(report["text"])
        if report["outcome"] == "failed":
            pytest.fail(report["text"], pytrace=False)


@pytest.fixture(scope="session")
def guest(
    request: pytest.FixtureRequest, recipes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path, list[str]], Reports]:
    """Runs a file's tests in a guest, once, whoever of pytest-xdist's workers asks first."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the workers have it in common

    def run(path: Path, tests: list[str]) -> Reports:
        place = folder / f"guest-{path.stem}"
        place.mkdir(exist_ok=True)
        with _lock(place / "lock"):
            reports = place / "reports"
            if not reports.exists():
                reports.touch()
                (place / "log").write_text(_boot(recipes / "vm-run", place, request.config.rootpath, tests))
        return _read(reports, tests, (place / "log").read_text())

    return run


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _boot(vm_run: Path, place: Path, root: Path, tests: list[str]) -> str:
    """Run the tests in a new guest; what it printed, which says too why there is no guest."""
    command: list[Any] = [vm_run, "-w", place, "--", "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    command += [f"CNI_GUEST_REPORTS={place / 'reports'}", f"PYTHONPATH={os.pathsep.join(filter(None, sys.path))}"]
    command += [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-v",
        "--color=no",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        root,
        *tests,
    ]
    log = None if os.environ.get("CNI_GUEST_LOG") else subprocess.PIPE
    try:
        vm = subprocess.Popen(
            [str(word) for word in command], cwd=root, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    except OSError as error:
        return f"{vm_run} cannot be started: {error}"
    try:
        printed, _ = vm.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return _stop(vm) + f"\nstopped: it took longer than {TIME_LIMIT} seconds"
    except BaseException:
        _stop(vm)
        raise
    return f"{(printed or b'').decode(errors='replace')}\n{vm_run} ended with {vm.returncode}"


def _stop(vm: subprocess.Popen[bytes]) -> str:
    """It is asked to, that it may take the guest with it."""
    vm.terminate()
    printed, _ = vm.communicate()
    return (printed or b"").decode(errors="replace")


def _read(reports: Path, tests: list[str], log: str) -> Reports:
    died = {"outcome": "failed", "text": f"The guest ended before this test did. It printed last:\n{log[-4000:]}"}
    read: Reports = {test: [] for test in tests}
    for line in reports.read_text().splitlines():
        report = json.loads(line)
        read[report["test"]].append(report)
    for phases in read.values():
        if not phases or phases[-1]["when"] != "teardown":
            phases.append(died)
    return read
