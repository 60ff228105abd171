"""`cni gc` on a node with containers that live, that have ended, and that nobody knows."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel.netns import NetNS
from cni.node import namespaces, staleness
from cni.node.collect import collect
from tests.waiting import until

if TYPE_CHECKING:
    from tests.conftest import Node

HOUR = 3600
SUBNET = f"10.203.{os.getpid() % 250}"  # this process's alone: what any namespace of the machine has is left alone


class Host:
    """A node with a network `pods`, and the commands as a person would call them."""

    def __init__(self, node: Node, folder: Path, plugins: Path) -> None:
        self.node = node
        self.conf = folder / "net.d"
        self.cache = folder / "cni"
        self.networks = folder / "networks"
        self.pool = self.networks / "pods"
        self.conf.mkdir()
        self.environ = {
            "NETCONFPATH": str(self.conf),
            "CNI_PATH": str(plugins),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        bridge = {"type": "bridge", "bridge": "br0", "ipMasq": True, "ipMasqBackend": "nftables"}
        bridge["ipam"] = {"type": "host-local", "subnet": f"{SUBNET}.0/24", "dataDir": str(self.networks)}
        self.configure({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]})

    def configure(self, conf: dict[str, Any]) -> None:
        (self.conf / f"{conf['name']}.conflist").write_text(json.dumps(conf))

    def attach(self, container: Node, ifname: str = "eth0") -> str:
        """By the runtime library; the address."""
        code = (
            "import sys; from cni.runtime import *; folder, cache, plugins, id, path, ifname = sys.argv[1:];"
            "CNI([plugins], cache).add(load_network_list(folder, 'pods'), RuntimeConf(id, path, ifname))"
        )
        words = [str(self.conf), str(self.cache), self.environ["CNI_PATH"], container.name, container.path, ifname]
        before = set(self.held())
        self.node.python(code, *words)
        (address,) = set(self.held()) - before
        return address

    def held(self) -> list[str]:
        return sorted(path.name for path in self.pool.glob(f"{SUBNET}.*")) if self.pool.exists() else []

    def remembered(self) -> list[str]:
        return sorted(os.listdir(self.cache / "results"))

    def masqueraded(self) -> str:
        return json.dumps(self.node.nft_ruleset())

    def reserve(self, number: int, owner: str, age: float) -> str:
        self.pool.mkdir(parents=True, exist_ok=True)
        path = self.pool / f"{SUBNET}.{number}"
        path.write_text(owner, newline="")
        os.utime(path, (time.time() - age,) * 2)
        return path.name

    def gc(self, *words: str, status: int = 0, **environ: str) -> tuple[list[str], str]:
        """The lines of its stdout, and its stderr."""
        command = [sys.executable, "-P", "-m", "cni", "gc", "--cache-dir", str(self.cache), *words]
        done = self.node.run(command, env={**self.environ, **environ}, check=False)
        assert done.returncode == status, done
        return done.stdout.splitlines(), done.stderr

    def findings(self, *words: str) -> dict[str, tuple[str, str]]:
        """By address or container: the verdict and the reason, of a dry run."""
        lines, _ = self.gc("--dry-run", "--json", *words)
        told = json.loads("\n".join(lines))
        assert told["dryRun"] is True
        assert not any(each["done"] for each in told["findings"])
        keys = {"attachment": "containerID", "reservation": "address"}
        return {each[keys[each["kind"]]]: (each["verdict"], each["reason"]) for each in told["findings"]}


@pytest.fixture
def host(node: Node, tmp_path: Path, plugins: Path) -> Host:
    return Host(node, tmp_path, plugins)


@pytest.fixture
def ended(host: Host) -> Iterator[Node]:
    """A container whose namespace goes as its test wants it to."""
    container = host.node.container()
    host.node._containers.remove(container)
    yield container
    subprocess.run(["ip", "netns", "delete", container.name], stderr=subprocess.DEVNULL)


def since_boot() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def remove(container: Node) -> None:
    subprocess.run(["ip", "netns", "delete", container.name], check=True)


def test_what_lives_stays_and_what_is_over_goes(host: Host, ended: Node) -> None:
    alive = host.node.container()
    kept = host.attach(alive)
    gone = host.attach(ended)
    remove(ended)
    assert f"{gone}" in host.masqueraded()
    reason = f"its namespace {ended.path} is gone"
    expected = [
        f"would delete attachment {ended.name} eth0 of network pods: {reason}",
        f"would release {gone} of network pods ({ended.name} eth0): {reason}",
        "1 address would be released, 1 kept",
    ]
    assert host.gc("--dry-run") == (expected, "")
    assert host.held() == sorted([kept, gone])
    assert len(host.remembered()) == 2
    done = [line.replace("would delete", "deleted").replace("would release", "released") for line in expected[:2]]
    assert host.gc() == ([*done, "1 address released, 1 kept"], "")
    assert host.held() == [kept]
    assert host.remembered() == [f"pods-{alive.name}-eth0"]
    assert gone not in host.masqueraded()
    assert kept in host.masqueraded()
    assert host.gc() == (["0 addresses released, 1 kept"], "")


def test_json_tells_what_was_done(host: Host, ended: Node) -> None:
    address = host.attach(ended)
    remove(ended)
    told = json.loads("\n".join(host.gc("--json")[0]))
    reason = f"its namespace {ended.path} is gone"
    outcome = {"verdict": "stale", "reason": reason, "done": True}
    names = {"network": "pods", "containerID": ended.name, "ifname": "eth0"}
    assert told == {
        "dryRun": False,
        "findings": [
            {"kind": "attachment", **names, "netns": ended.path, **outcome},
            {"kind": "reservation", **names, "address": address, **outcome},
        ],
    }


def test_a_namespace_without_a_name_that_still_has_the_address(host: Host, ended: Node) -> None:
    """Its path is gone, but a process is in it."""
    address = host.attach(ended)
    with host.node.start(["nsenter", f"--net={ended.path}", "sh", "-c", "echo; exec sleep 60"]) as inside:
        assert inside.stdout
        inside.stdout.readline()
        remove(ended)
        found = host.findings()
        assert found[address][0] == found[ended.name][0] == "live"
        assert found[address][1].startswith(f"its namespace {ended.path} is gone, but process ")
        assert host.gc()[0] == ["0 addresses released, 1 kept"]
        assert host.held() == [address]
    inside.wait()
    host.gc()
    assert host.held() == []


def test_torn_files(host: Host) -> None:
    alive = host.node.container()
    torn = host.attach(alive)
    (host.pool / torn).write_bytes(b"")
    for number, content in ((50, ""), (51, "\0" * 20), (52, "cid\r\n\0\0")):
        host.reserve(number, content, age=0)
    found = host.findings()
    assert {found[f"{SUBNET}.{number}"] for number in (50, 51, 52)} == {("stale", "its file is torn")}
    assert found[torn][0] == "live"  # the kernel knows better
    host.gc()
    assert host.held() == [torn]


def test_what_no_runtime_remembers(host: Host) -> None:
    before = since_boot() + HOUR
    young = host.reserve(50, "c1\r\neth0", age=0)
    old = host.reserve(51, "c2\r\neth0", age=since_boot() / 2)
    grace = f"--grace={since_boot() / 4}"
    before_boot = host.reserve(52, "c3\r\neth0", age=before)
    legacy = host.reserve(53, "c4", age=before)
    note = host.reserve(54, "the printer has this one", age=before)
    found = host.findings("--trust-cache", grace)
    assert found == {
        young: ("live", "its ADD may be under way"),
        old: ("stale", "no runtime remembers it, and no namespace has its address"),
        before_boot: ("stale", "it was reserved before this boot, and no runtime remembers it"),
        legacy: ("stale", "it was reserved before this boot, and no runtime remembers it"),
        note: ("live", "its file names no container"),
    }
    host.gc("--trust-cache", grace)
    assert host.held() == [young, note]
    host.gc("--trust-cache", "--grace", "0")
    assert host.held() == [note]


def test_not_every_namespace_can_be_looked_into(host: Host) -> None:
    """From a pod, for example: then what no runtime remembers is left alone, unless it is from before the boot."""
    old = host.reserve(51, "c2\r\neth0", age=since_boot() / 2)
    pid_namespace = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-P", "-m", "cni", "gc"]
    done = host.node.run([*pid_namespace, "--cache-dir", str(host.cache), "--grace", "0"], env=host.environ)
    why = "no runtime remembers it, but not every namespace can be examined"
    assert done.stdout.splitlines() == [
        f"left alone: {old} of network pods (c2 eth0): {why}",
        "0 addresses released, 1 kept",
    ]
    assert host.held() == [old]


def test_an_address_in_use_that_no_runtime_remembers(host: Host) -> None:
    container = host.node.container()
    address = host.attach(container)
    for path in (host.cache / "results").iterdir():
        path.unlink()
    os.utime(host.pool / address, (1, 1))
    verdict, reason = host.findings("--trust-cache")[address]
    assert verdict == "live"
    assert reason.startswith("it was reserved before this boot, and no runtime remembers it, but ")


def test_a_container_that_other_networks_remember(host: Host, ended: Node) -> None:
    """As with a runtime that remembers its own network, and has the delegates remembered elsewhere."""
    alive = host.node.container()
    host.attach(alive, "eth0")
    host.attach(ended, "eth0")
    other = host.reserve(60, f"{alive.name}\r\nnet1", age=since_boot() + HOUR)
    gone = host.reserve(61, f"{ended.name}\r\nnet1", age=HOUR)
    remove(ended)
    found = host.findings()
    assert found[other] == ("live", "")
    assert found[gone] == ("stale", f"its container's namespace {ended.path} is gone")


def test_a_container_that_starts_anew_under_its_id(host: Host, ended: Node) -> None:
    """Its old attachment is remembered, its new ADD is not done yet."""
    address = host.attach(ended)
    remove(ended)
    os.utime(host.cache / "results" / f"pods-{ended.name}-eth0", (time.time() - HOUR,) * 2)
    found = host.findings()
    assert found[address] == ("live", "its ADD may be under way")
    assert found[ended.name] == ("live", "its container is starting anew")
    os.utime(host.pool / address, (time.time() - HOUR / 2,) * 2)  # it never came up
    found = host.findings()
    assert found[address] == ("stale", f"its container's namespace {ended.path} is gone")
    assert found[ended.name] == ("stale", f"its namespace {ended.path} is gone")


def test_after_a_boot(host: Host, ended: Node) -> None:
    """The namespace's file is still there, but nothing is mounted on it."""
    address = host.attach(ended)
    remove(ended)
    Path(ended.path).touch()
    try:
        host.gc()
    finally:
        Path(ended.path).unlink()
    assert (host.held(), host.remembered()) == ([], [])
    assert address not in host.masqueraded()


def test_a_network_that_only_the_cache_still_has(host: Host, ended: Node) -> None:
    address = host.attach(ended)
    remove(ended)
    (host.conf / "pods.conflist").unlink()
    assert address in host.held()
    lines, _ = host.gc()
    assert lines[-1] == "1 address released, 0 kept"
    assert (host.held(), host.remembered()) == ([], [])
    assert address not in host.masqueraded()


def test_a_del_that_fails(host: Host, ended: Node) -> None:
    """The address is free all the same; the attachment stays remembered for the next time."""
    address = host.attach(ended)
    remove(ended)
    lines, errors = host.gc(status=1, CNI_PATH="/does/not/exist")
    assert lines[-1] == "1 address released, 0 kept"
    assert errors.startswith(f"cni gc: cannot delete attachment {ended.name} eth0 of network pods: ")
    assert 'failed to find plugin "bridge"' in errors
    assert host.held() == []
    assert host.remembered() == [f"pods-{ended.name}-eth0"]
    assert address in host.masqueraded()
    host.gc()
    assert host.remembered() == []
    assert address not in host.masqueraded()


def test_a_killed_add(host: Host) -> None:
    """Nothing remembers it; its namespace never got the address."""
    plugin = Path(host.environ["CNI_PATH"]) / "host-local"
    conf = json.loads((host.conf / "pods.conflist").read_text())
    text = json.dumps({**conf["plugins"][0], "name": "pods", "cniVersion": "1.0.0"}).encode()
    environ = {"CNI_COMMAND": "ADD", "CNI_IFNAME": "eth0", "CNI_NETNS": "/none", "CNI_PATH": "/none"}

    @contextlib.contextmanager
    def adding(number: int) -> Iterator[None]:
        environ["CNI_CONTAINERID"] = f"c{number}"
        with subprocess.Popen([plugin], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environ) as victim:
            assert victim.stdin
            victim.stdin.write(text)
            victim.stdin.close()
            yield
            victim.kill()

    for number in range(40):  # at whatever moment of its work that is
        with adding(number):
            time.sleep(number / 2000)
    before = host.held()
    with adding(40):
        until(lambda: host.held() != before, "a reservation")
    assert host.gc()[0] == [f"0 addresses released, {len(host.held())} kept"]  # they are young
    host.gc("--grace", "0", "--trust-cache")
    assert host.held() == []


def test_no_store_no_cache(host: Host) -> None:
    assert host.gc() == (["0 addresses released, 0 kept"], "")
    assert not host.pool.exists()


def test_a_store_that_cannot_be_written(host: Host) -> None:
    address = host.reserve(50, "", age=0)
    host.node.hide("/mnt")
    host.node.run(["mount", "--bind", str(host.networks), str(host.networks)])
    host.node.run(["mount", "-o", "remount,bind,ro", str(host.networks)])
    lines, errors = host.gc(status=1)
    assert lines == ["0 addresses released, 1 kept"]
    assert errors.startswith(f"cni gc: cannot release {address} of network pods: cannot ")
    assert "Read-only file system" in errors
    assert host.held() == [address]


@pytest.mark.parametrize("words", [["--grace"], ["--grace", "soon"], ["pods"]])
def test_misuse(host: Host, words: list[str]) -> None:
    assert "usage: cni" in host.gc(*words, status=2)[1]


def test_what_changes_between_judging_and_doing_stays(host: Host, ended: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    address = host.attach(ended)
    torn = host.reserve(50, "", age=0)
    remove(ended)
    monkeypatch.setenv("NETCONFPATH", str(host.conf))
    warned: list[str] = []
    node = staleness.Leftovers([str(host.cache)], 600, trusted=False, warn=warned.append)
    assert [each.verdict for each in (*node.attachments, *node.reservations)] == ["stale"] * 3
    host.reserve(50, "c9\r\neth0", age=0)
    os.utime(host.pool / address)
    os.utime(host.cache / "results" / f"pods-{ended.name}-eth0")
    collect(node, warned.append)
    assert host.held() == sorted([address, torn])
    one = node.attachments[0]
    assert (one.verdict, one.reason, one.failure) == ("live", "it has changed meanwhile", "")
    assert warned == []


def test_beside_adds_and_dels(host: Host) -> None:
    """Whatever comes and goes meanwhile, nothing that lives is taken away."""
    code = (
        "import sys; from cni.runtime import *; folder, cache, plugins, number = sys.argv[1:];"
        "from cni.kernel.netns import NetNS\n"
        "network, cni = load_network_list(folder, 'pods'), CNI([plugins], cache)\n"
        "for turn in range(8):\n"
        "    with NetNS.create(f'cnitest-gc-{number}-{turn}') as container:\n"
        "        rt = RuntimeConf(f'c{number}', container.path, 'eth0')\n"
        "        try:\n"
        "            cni.add(network, rt)\n"
        "            cni.check(network, rt)\n"
        "            cni.delete(network, rt)\n"
        "        finally:\n"
        "            container.remove()\n"
    )
    with ThreadPoolExecutor(3) as pool:
        words = [str(host.conf), str(host.cache), host.environ["CNI_PATH"]]
        workers = [pool.submit(host.node.python, code, *words, f"{os.getpid()}-{number}") for number in range(3)]
        rounds = 0
        while not all(worker.done() for worker in workers):
            assert host.gc("--trust-cache")[1] == ""
            rounds += 1
        for worker in workers:
            worker.result()
    assert rounds
    assert (host.held(), host.remembered()) == ([], [])


# Which addresses are in use


def test_every_way_to_hold_a_namespace_is_seen(node: Node) -> None:
    def use(path: str, number: int) -> None:
        address = f"{SUBNET}.{number}/32"
        subprocess.run(["nsenter", f"--net={path}", "ip", "address", "add", address, "dev", "lo"], check=True)

    use(node.path, 201)
    with NetNS.create() as held:
        use(f"/proc/{os.getpid()}/fd/{held.fd}", 202)
        hidden = node.container()
        use(hidden.path, 203)
        node.hide("/mnt")
        node.run(["touch", "/mnt/a name"])
        node.run(["mount", "--bind", hidden.path, "/mnt/a name"])
        subprocess.run(["ip", "netns", "delete", hidden.name], check=True)  # the mount in the node's view keeps it
        node._containers.remove(hidden)
        found = namespaces.InUse().where
    for number, name in ((201, node.path), (202, "a descriptor of process"), (203, "/mnt/a name")):
        assert found[f"{SUBNET}.{number}"].startswith(name), found
