"""A new user's node: the wheel in a fresh environment, networks of their own and of podman's, and damage.

Everything is where it is by default: networks in /etc/cni/net.d, plugins in /opt/cni/bin, state in /var/lib/cni.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.invoke import launcher
from tests.runtimes.conftest import IMAGE, Podman
from tests.waiting import LIMIT
from tests.wheels.conftest import run

if TYPE_CHECKING:
    from tests.wheels.conftest import Workshop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="zig takes this machine's Python for an x86_64 one"),
]

VERSION = "{}.{}".format(*sys.version_info)
# No other process's: an address that any namespace of the machine has counts as in use.
NET, JOBS, PODMANS = (f"10.{number}.{os.getpid() % 250}" for number in (214, 215, 216))
PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
ATTACH = "CNI_PATH=/opt/cni/bin cnitool add pods /run/netns"
ESCAPE = "\x1b["


def conflist(name: str, bridge: str, subnet: str) -> dict[str, Any]:
    first = {
        "type": "bridge",
        "bridge": bridge,
        "isDefaultGateway": True,
        "ipMasq": True,
        "ipam": {"type": "host-local", "subnet": subnet},
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.1.0", "name": name, "plugins": [first, portmap, {"type": "firewall"}]}


class Box:
    """A machine with podman and the wheel: a network of its own, and folders of CNI's that are empty at first."""

    def __init__(self, recipes: Path, folder: Path, programs: Path) -> None:
        self.folder = folder
        self._enter = [str(recipes / "podman-cni"), "in", str(folder / "p"), "env", "-i"]
        self._environ = {"PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        plugins = folder / "bin"
        plugins.mkdir()
        self.podman = Podman(recipes, folder / "p", plugins)
        self.networks = self.podman.networks
        for hidden in ("/etc/cni", "/opt/cni", "/run/cni"):
            self.sh(f"mkdir -p {hidden}; mount -t tmpfs tmpfs {hidden}")
        for mine, usual in ((self.networks, "/etc/cni/net.d"), (plugins, "/opt/cni/bin")):
            self.sh(f"mkdir -p {usual}; mount --bind {mine} {usual}")

    def start(self, command: str, **streams: Any) -> subprocess.Popen[str]:
        """Begin a shell's command."""
        words = [*self._enter, *(f"{key}={value}" for key, value in self._environ.items()), "sh", "-c", command]
        return subprocess.Popen(words, text=True, stderr=subprocess.PIPE, **streams)

    def ask(self, command: str) -> tuple[int, str, str]:
        """Run a shell's command: its exit status, stdout and stderr."""
        with self.start(command, stdout=subprocess.PIPE) as process:
            stdout, stderr = process.communicate(timeout=LIMIT)
        assert "Traceback" not in stderr, stderr
        return process.returncode, stdout, stderr

    def sh(self, command: str, status: int = 0) -> str:
        """Its stdout, without escape sequences; with another exit status than this one the test fails."""
        done = self.ask(command)
        assert done[0] == status, (command, *done)
        assert ESCAPE not in done[1]
        return done[1]

    def json(self, command: str, status: int = 0) -> Any:
        return json.loads(self.sh(f"{command} --json", status))

    def terminal(self, command: str) -> str:
        """Return what a command shows on a terminal."""
        ours, theirs = os.openpty()
        with self.start(f"TERM=xterm {command}", stdin=theirs, stdout=theirs):
            os.close(theirs)
            shown = b"".join(iter(lambda: read(ours), b""))
        os.close(ours)
        return shown.decode().replace("\r\n", "\n")

    def configure(self, file: str, network: dict[str, Any]) -> Path:
        path = self.networks / file
        path.write_text(json.dumps(network, indent=2))
        return path

    def attach(self, container: str, **environ: str) -> None:
        """A namespace of that name."""
        variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in environ.items())
        self.sh(f"ip netns add {container} && {variables} {ATTACH}/{container}")

    def start_podman(self) -> None:
        self.podman("network", "create", "--subnet", f"{PODMANS}.0/24", "web")
        self.podman("run", "-d", "--name", "front", "--network", "web", "-p", "8443:443", IMAGE, "sleep", "infinity")

    def doctor(self, status: int) -> dict[str, str]:
        """Return what he complains of, and the cures."""
        found = self.json("cni doctor", status)["findings"]
        return {each["finding"]: each["cure"] for each in found if each["severity"] in ("error", "warning")}


def read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except OSError:  # the other end is closed
        return b""


@contextmanager
def boxed(workshop: Workshop, recipes: Path) -> Iterator[Box]:
    programs = workshop.fresh(VERSION, "cli") / "bin"
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cni-"))  # a short name, for podman's sake
        box = Box(recipes, Path(folder), programs)
        stack.callback(box.podman.down)
        yield box


@pytest.fixture(scope="module")
def box(workshop: Workshop, recipes: Path) -> Iterator[Box]:
    """Two containers on `pods`, one with a published port, and podman's on `web`; each test leaves it so."""
    with boxed(workshop, recipes) as box:
        box.sh("cni install")
        box.configure("10-pods.conflist", conflist("pods", "cni0", f"{NET}.0/24"))
        box.attach("one", CAP_ARGS=json.dumps(PORTS))
        box.attach("two")
        box.start_podman()
        yield box


# ---- the first five minutes ----


def test_from_nothing_to_two_containers(workshop: Workshop, recipes: Path) -> None:
    """Whatever is to be done next is told at each step."""
    with boxed(workshop, recipes) as box:
        complaints = box.doctor(0)
        assert [text for text in complaints if text.startswith("no network is configured in /etc/cni/net.d")]
        (install,) = {cure for cure in complaints.values() if cure.startswith("cni install")}
        assert box.sh(install).count("/opt/cni/bin/") > 15
        box.configure("10-pods.conflist", box.json("cni explain bridge")["examples"]["bridge.conflist"])
        assert box.sh("cni validate").startswith("no errors and no warnings in 1 network")
        assert "10.88.0.2/16 on eth0" in box.sh("cni validate --plan")
        assert box.sh("cni list") == "no attachments\n"
        box.attach("one")
        box.sh("CNI_PATH=/opt/cni/bin cnitool check pods /run/netns/one")
        box.start_podman()
        assert box.doctor(0) == {}
        assert [each["network"] for each in box.json("cni list")["attachments"]] == ["pods", "web"]
        box.sh("CNI_PATH=/opt/cni/bin cnitool del pods /run/netns/one")
        box.podman("rm", "-f", "-t", "0", "front")
        assert box.json("cni list")["attachments"] == []
        assert box.json("cni gc --dry-run")["findings"] == []
        box.sh("cni uninstall")
        assert box.sh("ls -A /opt/cni/bin") == ""


def test_help(box: Box) -> None:
    commands = re.findall(r"^    (\w+)", box.sh("cni --help"), re.MULTILINE)
    assert {"install", "list", "graph", "doctor", "validate", "explain", "ipam", "gc", "bench", "agent"} <= {*commands}
    for command in commands:
        assert box.sh(f"cni {command} --help").startswith(f"usage: cni {command} ")
    assert box.sh("cnitool --help").startswith("Usage: cnitool ")
    assert "_cni" in box.sh("bash -c 'source <(cni completion bash); complete -p cni'")


def test_a_plain_installation(workshop: Workshop) -> None:
    """It has the README's commands, and no package that only some others need: the README is tried with it, too."""
    programs = workshop.fresh(VERSION) / "bin"
    installed = {package["name"] for package in json.loads(run(programs / "pip", "list", "--format=json"))}
    assert installed - {"pip", "setuptools"} == {"cni", "cffi", "pycparser"}
    assert run(programs / "cni", "explain").startswith("Interface plugins\n")
    done = subprocess.run([programs / "cni", "completion", "bash"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "cni completion: shtab is not installed: pip install 'cni[cli]'\n"


# ---- a node that is well ----


def test_all_is_well(box: Box) -> None:
    assert box.doctor(0) == {}
    assert box.sh("cni doctor --quiet") == "all is well\n"
    assert box.sh("cni validate").startswith("no errors and no warnings in 2 networks")
    assert {one["valid"] for one in box.json("cni validate")["networks"]} == {True}
    listed = {one["network"]: one for one in box.json("cni list")["attachments"]}
    assert {one["health"] for one in listed.values()} == {"healthy"}
    assert (listed["web"]["pod"], listed["web"]["ports"]) == ("front", [":8443 -> 443/tcp"])
    assert box.sh("cni list").count("healthy") == 3
    tree = box.sh("cni graph")
    assert f"cni0  bridge: pods  {NET}.1/24" in tree
    assert re.search(rf"veth\w+ -- \w{{12}} front  eth0 {PODMANS}.2/24\n.* node :8443 -> 443/tcp", tree)
    assert [one["state"] for one in box.json("cni graph")["segments"]] == ["up", "up"]
    assert ET.fromstring(box.sh("cni graph --output -")).tag.endswith("svg")
    assert [(one["network"], one["held"]) for one in box.json("cni ipam list")] == [("pods", 2), ("web", 1)]
    assert box.sh("cni ipam list").splitlines()[1].split() == ["pods", f"{NET}.1-{NET}.254", "2", "251", "253"]
    assert f"\n{NET}.2 " in box.sh("cni ipam show pods")
    assert len(box.json("cni ipam show pods")[0]["reservations"]) == 2
    assert box.sh("cni gc --dry-run") == "0 addresses would be released, 3 kept\n"
    assert {one["verdict"] for one in box.json("cni gc --dry-run")["findings"]} == {"live"}
    assert "isDefaultGateway: boolean = false" in box.sh("cni explain bridge")


# ---- damage ----


class Damage:
    """Something wrong. `told` is who names it, with which exit status, and in which words, as text and as JSON."""

    def __init__(
        self,
        inflict: Callable[[Box], object],
        told: dict[str, tuple[int, str]],
        edit: Callable[[Box], object] = lambda _: None,
    ) -> None:
        self.inflict = inflict
        self.told = told
        self.edit = edit  # what an editor has to do before the cure's command

    def is_named(self, box: Box, *, alone: bool) -> None:
        """By all of them; with others the exit status is theirs as well."""
        for command, (status, words) in self.told.items():
            done, stdout, _ = box.ask(f"cni {command}")
            assert done == status or not alone, stdout
            assert words in stdout
            done, stdout, _ = box.ask(f"cni {command} --json")
            assert done == status or not alone, stdout
            assert any(words in text for text in texts(json.loads(stdout))), stdout


def texts(value: Any) -> Iterator[str]:
    """All strings in it."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(inner)


def commands(cure: str) -> list[str]:
    """Return what a cure has one type: the lines after its first one, or what is after the last "then:"."""
    return cure.splitlines()[1:] or [cure.rpartition("then: ")[2]]


def replaced(file: str, old: str, new: str) -> Callable[[Box], object]:
    """An edit of a configuration."""

    def edit(box: Box) -> None:
        path = box.networks / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


def leave_a_reservation(box: Box) -> None:
    file = f"/var/lib/cni/networks/pods/{NET}.99"
    box.sh(f"printf 'long-gone\\r\\neth0' >{file}; touch -d 2020-01-01 {file}")


def kill_a_container(box: Box) -> None:
    box.attach("three")
    box.sh("ip netns delete three")


def lose_a_container(box: Box) -> None:
    """And all that was known of it, but for its rules."""
    box.attach("four", CAP_ARGS=json.dumps({"portMappings": [{"hostPort": 8081, "containerPort": 80}]}))
    (lost,) = [one for one in box.json("cni list")["attachments"] if one["netns"] == "/run/netns/four"]
    (address,) = lost["addresses"]
    box.sh("ip netns delete four")
    box.sh(f"rm /var/lib/cni/results/*{lost['containerID']}* /var/lib/cni/networks/pods/{address.partition('/')[0]}")


BEFORE_BOOT = "reserved before this boot"
GONE = "its bridge cni0 is gone"
DEAD = "its namespace /run/netns/three is gone"
MEANT = 'bridge has no such key; "isDefaultGateway" is probably meant'
TWICE = f'{NET}.1 to {NET}.254 are given out twice: here, and from {NET}.0/24 by network "pods"'
DAMAGE = {
    "a missing plugin": Damage(
        lambda box: box.sh("rm /opt/cni/bin/portmap"),
        {
            "doctor": (1, "plugin portmap is in none of /opt/cni/bin"),
            "validate": (1, 'there is no plugin "portmap" in CNI_PATH (/opt/cni/bin)'),
        },
    ),
    "a typo in a key": Damage(
        replaced("10-pods.conflist", "isDefaultGateway", "isDefaultGatway"),
        {
            "doctor": (1, f"10-pods.conflist:8:7: plugins[0].isDefaultGatway: {MEANT}"),
            "validate": (1, MEANT),
        },
        replaced("10-pods.conflist", "isDefaultGatway", "isDefaultGateway"),
    ),
    "an overlapping subnet": Damage(
        lambda box: box.configure("50-jobs.conflist", conflist("jobs", "cni1", f"{NET}.0/24")),
        {"doctor": (1, TWICE), "validate": (1, TWICE), "graph": (0, "not in use yet")},
        replaced("50-jobs.conflist", f"{NET}.", f"{JOBS}."),
    ),
    "a deleted bridge": Damage(
        lambda box: box.sh("ip link delete cni0"),
        {"doctor": (1, "bridge: pods: cni0 is gone"), "list": (0, GONE), "graph": (0, GONE)},
    ),
    "a stale reservation": Damage(
        leave_a_reservation,
        {
            "doctor": (0, f"stale reservation: {NET}.99 of network pods (long-gone eth0): it was {BEFORE_BOOT}"),
            "ipam show pods": (0, BEFORE_BOOT),
            "gc --dry-run": (0, BEFORE_BOOT),
        },
    ),
    "rules of nobody": Damage(
        lose_a_container,
        {"doctor": (0, "of network pods, which has rules in iptables")},
    ),
    "a container that died": Damage(
        kill_a_container,
        {"doctor": (0, DEAD), "list": (0, DEAD), "graph": (0, DEAD), "gc --dry-run": (0, DEAD)},
    ),
}


@pytest.mark.parametrize("names", [*([name] for name in DAMAGE), [*DAMAGE]], ids=[*DAMAGE, "all at once"])
def test_damage_is_named_and_the_cure_helps(box: Box, names: list[str]) -> None:
    """Each command that could know names it; what the doctor has one type mends it."""
    inflicted = [DAMAGE[name] for name in names]
    for damage in reversed(inflicted):  # those of containers first, for which the rest is needed
        damage.inflict(box)
    for damage in inflicted:
        damage.is_named(box, alone=len(inflicted) == 1)
    complaints = box.doctor(max(damage.told["doctor"][0] for damage in inflicted))
    picture = box.sh("cni graph --output -")
    assert all(damage.told["graph"][1] in picture for damage in inflicted if "graph" in damage.told)
    for damage in inflicted:
        damage.edit(box)
    for command in dict.fromkeys(command for cure in complaints.values() for command in commands(cure)):
        box.sh(command)
    (box.networks / "50-jobs.conflist").unlink(missing_ok=True)
    assert box.doctor(0) == {}
    listed = box.json("cni list")["attachments"]
    assert [(one["network"], one["health"]) for one in listed] == 2 * [("pods", "healthy")] + [("web", "healthy")]
    assert sorted(port for one in listed for port in one["ports"]) == [":8080 -> 80/tcp", ":8443 -> 443/tcp"]


# ---- manners ----

SHOWING = ("doctor", "graph", "list", "validate", "explain bridge", "ipam list", "gc --dry-run")


def test_colours_are_for_terminals(box: Box) -> None:
    for command in ("doctor", "graph", "list", "explain bridge"):
        assert ESCAPE in box.terminal(f"cni {command}")
    for command in SHOWING:
        assert ESCAPE not in box.terminal(f"NO_COLOR=1 cni {command}")
        assert ESCAPE not in box.sh(f"cni {command}")  # what is no terminal


def test_narrow_terminals(box: Box) -> None:
    """Nothing is cut off, nor broken within what is to be copied."""
    for command in ("doctor", "graph", "list"):
        lines = box.terminal(f"COLUMNS=60 NO_COLOR=1 cni {command}").splitlines()
        assert [line for line in lines[:-1] if len(line.rstrip()) > 60 and "cure: " not in line] == []
        assert not any("\u2026" in line for line in lines)
    listed = box.terminal("COLUMNS=60 NO_COLOR=1 cni list").split()
    for one in box.json("cni list")["attachments"]:
        assert {one["network"], one["containerID"][:12], one["ifname"], *one["addresses"], one["mac"]} <= {*listed}


def test_who_stops_reading_is_not_told_of_it(box: Box) -> None:
    for command in (*SHOWING, "list --json", "explain bridge --json", "completion bash"):
        _, stdout, stderr = box.ask(f"cni {command} | head -n 0")
        assert (stdout, stderr) == ("", "")


def test_a_full_disk(box: Box) -> None:
    for command in SHOWING:
        status, _, stderr = box.ask(f"cni {command} >/dev/full")
        assert (status, stderr) == (1, f"cni {command.split()[0]}: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("command", ["cni validate {}", "NETCONFPATH=$(dirname {}) cnitool add pods /run/netns/one"])
def test_ctrl_c(box: Box, tmp_path: Path, command: str) -> None:
    fifo = tmp_path / "10-net.conflist"
    os.mkfifo(fifo)
    with box.start(f"exec env {command.format(fifo)}") as process:
        writer = os.open(fifo, os.O_WRONLY)  # from now on it reads
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=LIMIT)
        os.close(writer)
    assert (process.returncode, stderr) == (130, "")


def test_without_root(box: Box) -> None:
    """A sentence that says so; what needs no root is answered."""
    nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups"
    nobody += " --inh-caps +dac_read_search --ambient-caps +dac_read_search"  # the environment is root's own
    for command in ("list", "graph"):
        assert box.sh(f"{nobody} cni {command}").count("operation not permitted; run this as root") == 3
    status, stdout, stderr = box.ask(f"{nobody} cni install")
    assert (status, stdout) == (1, "")
    assert re.fullmatch(r"cni install: .*Permission denied.*; run this as root\n", stderr)
    status, stdout, _ = box.ask(f"{nobody} cni doctor")
    assert status == 1
    assert "run this, and the runtime, as root" in stdout
    assert box.ask(f"{nobody} env {ATTACH}/one")[2].endswith("cnitool was not run as root, which attaching takes\n")
    assert box.sh(f"{nobody} cni ipam list")
    assert box.sh(f"{nobody} cni validate --files-only")


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("cni list --network pots", 1, ""),
        ("cni graph --network pots", 1, "cni graph: network pots is not configured, and has no containers attached\n"),
        (
            "cni ipam show pots",
            1,
            "cni ipam: network pots is not configured for host-local, and has no reserved addresses\n",
        ),
        ("cni explain brigde", 1, "cni explain: there is no plugin brigde; bridge is probably meant\n"),
        ("cni validate /nowhere", 1, ""),
        ("cni doctor weather", 2, "cni doctor: there is no topic weather; there are kernel, "),
        ("cni frobnicate", 2, "usage: cni "),
        ("cni list --frobnicate", 2, "usage: cni "),
        ("CNI_PATH=/opt/cni/bin cnitool add pots x", 1, 'no net configuration with name "pots" in /etc/cni/net.d\n'),
    ],
)
def test_what_is_not_there(box: Box, command: str, status: int, said: str) -> None:
    done, stdout, stderr = box.ask(command)
    assert done == status
    assert stderr.startswith(said)
    assert stdout or stderr


# ---- start-up ----

PLUGIN = """
import sys
sys.path[:0] = sys.argv[2:]
from cni.invoke import launcher
launcher.load(sys.argv[1]).serve({"CNI_COMMAND": "VERSION"}, lambda: b"{}", lambda _: None)
print(*sorted(sys.modules))
"""
CNITOOL = """
import sys
sys.path[:0] = sys.argv[1:]
import cni.cli.cnitool
print(*sorted(sys.modules))
"""


def modules(code: str, *arguments: str) -> set[str]:
    command = [sys.executable, "-I", "-S", "-E", "-c", code, *arguments]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_the_wheel_imports_what_the_tree_does(
    workshop: Workshop, plugins: Path, foreign: Callable[[set[str]], set[str]], tmp_path: Path
) -> None:
    """For cnitool and each plugin: nothing of the tools for people is loaded, and nothing dear."""
    fresh = workshop.fresh(VERSION)
    run(fresh / "bin/cni", "install", "--dir", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in plugins.iterdir()}
    for path in tmp_path.iterdir():
        ours, theirs = launcher.read(str(plugins / path.name)), launcher.read(str(path))
        assert ours
        assert theirs
        assert Path(theirs.folders[0]).is_relative_to(os.path.realpath(fresh))
        loaded = modules(PLUGIN, theirs.reference, *theirs.folders)
        assert loaded == modules(PLUGIN, ours.reference, *ours.folders)
        assert foreign(loaded) == set()
    loaded = modules(CNITOOL, theirs.folders[0])
    assert loaded == modules(CNITOOL, launcher.PACKAGES)
    assert {name for name in loaded if name.startswith("cni.cli")} == {"cni.cli", "cni.cli.cnitool"}
