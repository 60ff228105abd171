"""host-local among many, killed, on disks that are full or read-only, and with a lock that others keep."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugins.ipam.host_local import plugin, store
from tests.waiting import lock_waiters, until

if TYPE_CHECKING:
    from tests.conftest import Call, Node

SUBNET = "10.77.2.0/23"


class Pool:
    """A network's configuration and folder."""

    def __init__(self, data_dir: Path, subnet: str = SUBNET) -> None:
        self.folder = data_dir / "net"
        ipam = {"type": "host-local", "dataDir": str(data_dir), "ranges": [[{"subnet": subnet}]]}
        self.conf = {"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam}
        self.text = json.dumps(self.conf)

    def environ(self, verb: str, container: str) -> dict[str, str]:
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}
        return {**environ, "CNI_NETNS": "/does/not/exist", "CNI_PATH": "/does/not/exist"}

    def run(self, verb: str, container: str = "c", **more: Any) -> tuple[int, dict[str, Any]]:
        """In this process."""
        text = json.dumps({**self.conf, **more})
        outcome = plugin.serve(self.environ(verb, container), text.encode, print)
        return outcome.status, json.loads(outcome.stdout or "{}")

    def exec(self, folder: Path, verb: str, container: str) -> tuple[int, dict[str, Any]]:
        """The executable."""
        environ = self.environ(verb, container)
        done = subprocess.run([folder / "host-local"], input=self.text, env=environ, capture_output=True, text=True)
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout or "{}")

    def exec_in(self, node: Node, folder: Path, verb: str, container: str = "c") -> tuple[int, dict[str, Any]]:
        """The executable, with the mounts of a node."""
        environ = self.environ(verb, container)
        done = node.run([str(folder / "host-local")], stdin=self.text, env=environ, check=False)
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout or "{}")

    def put(self, count: int) -> None:
        """Reservations of others, one after the other."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(2, 2 + count):
            (self.folder / f"10.77.{2 + number // 256}.{number % 256}").write_bytes(b"other%d\r\neth0" % number)

    def reservations(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir() if path.name[0].isdigit()}


# Many


@pytest.mark.parametrize("whose", ["ours", "ours and Go's"])
def test_256_adds_by_64_processes(tmp_path: Path, plugins: Path, go_plugins: Path, whose: str) -> None:
    pool = Pool(tmp_path)
    folders = [plugins, plugins if whose == "ours" else go_plugins]

    def work(verb: str, number: int) -> list[tuple[str, dict[str, Any]]]:
        answers = []
        for container in (f"c{number}-{turn}" for turn in range(4)):
            status, answer = pool.exec(folders[number % 2], verb, container)
            assert status == 0, answer
            answers.append((container, answer))
        return answers

    with ThreadPoolExecutor(64) as workers:
        answers = [each for some in workers.map(work, ["ADD"] * 64, range(64)) for each in some]
        given = {answer["ips"][0]["address"].partition("/")[0]: container for container, answer in answers}
        assert len(given) == 256
        assert pool.reservations() == {address: f"{given[address]}\r\neth0".encode() for address in given}
        # One after the other, though by many: no address was passed over.
        assert set(given) == {f"10.77.{2 + number // 256}.{number % 256}" for number in range(2, 258)}
        for _ in workers.map(work, ["DEL"] * 64, range(64)):
            pass
    assert pool.reservations() == {}


# Killed


@pytest.mark.killing
@pytest.mark.parametrize("others", [0, 300], ids=["small", "big"])
def test_killed_at_any_line(tmp_path: Path, node: Node, call: Call, others: int) -> None:
    """At most one reservation is left, whole, and DEL clears it."""
    pool = Pool(tmp_path)
    pool.put(others)

    def run(verb: str, container: str, **more: int) -> dict[str, Any]:
        return call("cni_plugins.ipam.host_local", node.path, pool.environ(verb, container), pool.text, **more)

    for container in ("first", "second"):  # a big pool's cache is made, and then used
        assert run("ADD", container)["status"] == 0
    before = pool.reservations()
    counted = run("ADD", "c", die_at=-1)
    assert counted["status"] == 0
    assert run("DEL", "c")["status"] == 0
    left_something = 0
    for line in range(counted["lines"]):
        assert run("ADD", "c", die_at=line)["status"] == -9
        left = {address: owner for address, owner in pool.reservations().items() if address not in before}
        assert list(left.values()) in ([], [b"c\r\neth0"])
        left_something += len(left)
        assert run("DEL", "c") == {"status": 0, "stdout": "", "stderr": "", "lines": 0}
        assert pool.reservations() == before
    assert 0 < left_something < counted["lines"]
    assert run("ADD", "c")["status"] == 0


@pytest.mark.killing
@pytest.mark.parametrize("others", [0, 40], ids=["small", "big"])
def test_killed_at_any_system_call(tmp_path: Path, plugins: Path, others: int) -> None:
    """As above, but within what the core does in one call, by strace: before each of the calls about the folder."""
    pool = Pool(tmp_path)
    pool.put(others)
    for container in ("first", "second"):
        assert pool.exec(plugins, "ADD", container)[0] == 0
    before = pool.reservations()
    seen = tmp_path / "strace"

    def traced(*options: str) -> int:
        command = [
            "strace",
            "-f",
            "-qq",
            "-o",
            str(seen),
            "-P",
            str(pool.folder),
            "-P",
            f"{pool.folder}/.new",
            *options,
        ]
        environ = pool.environ("ADD", "c") | {"CNI_AGENT_SOCKET": ""}
        done = subprocess.run(
            [*command, str(plugins / "host-local")], input=pool.text, env=environ, capture_output=True, text=True
        )
        return done.returncode

    assert traced() == 0
    calls = [line.split("(")[0].split()[1] for line in seen.read_text().splitlines()]
    assert calls.count("renameat") == 2
    assert pool.exec(plugins, "DEL", "c") == (0, {})
    left_something = 0
    for number, call in enumerate(calls):
        when = 1 + calls[:number].count(call)
        assert traced("-e", f"inject={call}:signal=KILL:when={when}") == -9
        left = {address: owner for address, owner in pool.reservations().items() if address not in before}
        assert list(left.values()) in ([], [b"c\r\neth0"])
        left_something += len(left)
        assert pool.exec(plugins, "DEL", "c") == (0, {})
        assert pool.reservations() == before
    assert 0 < left_something < len(calls)
    assert pool.exec(plugins, "ADD", "c")[0] == 0


@pytest.mark.killing
def test_what_a_kill_leaves_gc_clears(tmp_path: Path, node: Node, call: Call) -> None:
    pool = Pool(tmp_path)
    environ = pool.environ("ADD", "c")
    lines = call("cni_plugins.ipam.host_local", node.path, environ, pool.text, die_at=-1)["lines"]
    call("cni_plugins.ipam.host_local", node.path, pool.environ("DEL", "c"), pool.text)
    for line in range(lines - 8, lines):
        call("cni_plugins.ipam.host_local", node.path, environ, pool.text, die_at=line)
        pool.run("GC", cniVersion="1.1.0", **{"cni.dev/valid-attachments": []})
        assert pool.reservations() == {}


# Disks


def tmpfs(node: Node, folder: Path, options: str) -> None:
    """A small disk, for the node's programs alone."""
    node.hide(str(folder))
    node.run(["mount", "-t", "tmpfs", "-o", options, "small", str(folder)])


def names(node: Node, folder: Path) -> list[str]:
    return node.run(["ls", "-A", str(folder)]).stdout.split()


@pytest.mark.parametrize("options", ["size=16k", "size=20k", "size=24k", "nr_inodes=7", "nr_inodes=8"])
@pytest.mark.parametrize("filler", ["", "filler"])
def test_full_disk(tmp_path: Path, node: Node, plugins: Path, options: str, filler: str) -> None:
    pool = Pool(tmp_path / "disk")
    tmpfs(node, tmp_path / "disk", options)
    given = []
    for number in range(10):
        if filler and number == 1:
            node.run(["sh", "-c", f"echo x > {tmp_path}/disk/filler"])
        status, answer = pool.exec_in(node, plugins, "ADD", f"c{number}")
        if status:
            break
        given.append(answer["ips"][0]["address"].partition("/")[0])
    assert 1 <= len(given) < 5
    assert answer["code"] == 5
    assert answer["msg"].endswith(": no space left on device")
    assert f"cannot write {pool.folder}/" in answer["msg"]
    assert names(node, pool.folder) == sorted([*given, "last_reserved_ip.0", "lock"])
    for address in given:
        assert node.run(["cat", str(pool.folder / address)]).stdout.startswith("c")
    assert pool.exec_in(node, plugins, "DEL", "c0") == (0, {})
    node.run(["rm", "-f", f"{tmp_path}/disk/filler"])
    assert pool.exec_in(node, plugins, "ADD", "again")[0] == 0


def test_disk_full_from_the_start(tmp_path: Path, node: Node, plugins: Path) -> None:
    pool = Pool(tmp_path / "disk")
    tmpfs(node, tmp_path / "disk", "nr_inodes=1")
    status, answer = pool.exec_in(node, plugins, "ADD")
    assert (status, answer["code"]) == (1, 5)
    assert answer["msg"] == f"cannot open the folder of reservations {pool.folder}: No space left on device"


def test_no_room_for_the_cache_of_a_big_pool(tmp_path: Path, node: Node, plugins: Path) -> None:
    """It is no more than a cache: everything else works, and is right."""
    pool = Pool(tmp_path / "disk")
    tmpfs(node, tmp_path / "disk", "nr_inodes=310")
    fill = "for n in $(seq 2 2 254); do for net in 2 3; do printf 'other\\r\\neth0' > 10.77.$net.$n; done; done"
    node.run(["sh", "-c", f"mkdir {pool.folder}; cd {pool.folder}; {fill}"])
    status, answer = pool.exec_in(node, plugins, "ADD")
    assert (status, answer["ips"][0]["address"]) == (0, "10.77.2.3/23")
    assert pool.exec_in(node, plugins, "ADD", "d")[1]["ips"][0]["address"] == "10.77.2.5/23"
    status, answer = pool.exec_in(node, plugins, "ADD")
    assert "10.77.2.3 has been allocated to c" in answer["msg"]
    assert pool.exec_in(node, plugins, "DEL") == (0, {})
    assert not {"10.77.2.3", ".new"} & set(names(node, pool.folder))


def test_read_only_disk(tmp_path: Path, node: Node, plugins: Path) -> None:
    pool = Pool(tmp_path / "disk")
    tmpfs(node, tmp_path / "disk", "size=1m")
    assert pool.exec_in(node, plugins, "ADD", "there")[0] == 0
    node.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")])
    before = names(node, pool.folder)
    status, answer = pool.exec_in(node, plugins, "ADD")
    assert (status, answer["code"]) == (1, 5)
    assert answer["msg"].endswith(f"cannot write {pool.folder}/10.77.2.3: read-only file system")
    status, answer = pool.exec_in(node, plugins, "DEL", "there")
    assert (status, answer["code"]) == (1, 5)
    assert answer["msg"] == f"cannot release {pool.folder}/10.77.2.2: Read-only file system"
    assert pool.exec_in(node, plugins, "DEL", "unknown") == (0, {})
    assert pool.exec_in(node, plugins, "CHECK", "there") == (0, {})
    assert names(node, pool.folder) == before


def test_folders_that_cannot_be_made(tmp_path: Path, node: Node, plugins: Path) -> None:
    pool = Pool(tmp_path / "disk" / "deep" / "down")
    tmpfs(node, tmp_path / "disk", "size=1m")
    assert pool.exec_in(node, plugins, "ADD")[0] == 0
    node.run(["rm", "-r", f"{tmp_path}/disk/deep"])
    node.run(["sh", "-c", f"echo > {tmp_path}/disk/deep"])
    status, answer = pool.exec_in(node, plugins, "ADD")
    assert (status, answer["code"]) == (1, 5)
    assert answer["msg"] == f"cannot open the folder of reservations {pool.folder}: Not a directory"
    node.run(["sh", "-c", f"rm {tmp_path}/disk/deep; mount -o remount,ro {tmp_path}/disk"])
    status, answer = pool.exec_in(node, plugins, "ADD")
    assert answer["msg"] == f"cannot open the folder of reservations {pool.folder}: Read-only file system"


# A lock that others keep


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_the_lock_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    pool = Pool(tmp_path)
    version = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
    monkeypatch.setattr(store, "_LOCK_TIMEOUT", 0.2)
    assert pool.run("ADD", "first")[0] == 0
    before = sorted(os.listdir("/proc/self/fd")), pool.reservations()
    with (pool.folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        begun = time.monotonic()
        status, answer = pool.run(verb, **version)
        assert time.monotonic() - begun >= 0.2
        assert (status, answer["code"]) == (1, 50 if verb == "STATUS" else 11)
        reason = "another process has held the lock for 0.2 seconds; try again later"
        assert answer["msg"] == f"cannot lock {pool.folder}/lock: {reason}"
        own = Path("/proc/self/comm").read_text().strip()
        assert answer["details"] == f"process {os.getpid()} ({own}) holds the lock"
    # Who gave up waiting takes nothing with it when the lock is free.
    until(lambda: (sorted(os.listdir("/proc/self/fd")), pool.reservations()) == before, "the descriptors to be closed")
    assert pool.run("ADD", "second")[0] == 0


def test_the_lock_goes_to_who_waits(tmp_path: Path, plugins: Path) -> None:
    """Many executables that came while it was held all get it."""
    pool = Pool(tmp_path)
    pool.run("ADD", "first")
    with ThreadPoolExecutor(16) as workers:
        with (pool.folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = [workers.submit(pool.exec, plugins, "ADD", f"c{number}") for number in range(16)]
            until(lambda: lock_waiters(lock.name) == 16, "all of them to wait for the lock")
            assert len(pool.reservations()) == 1
        assert [each.result()[0] for each in waiting] == [0] * 16
    assert len(pool.reservations()) == 17
