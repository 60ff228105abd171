"""`cni install` and `cni uninstall`: what they put where, what they leave alone, and what they say."""

from __future__ import annotations

import base64
import configparser
import json
import os
import stat
import subprocess
import sys
from importlib import metadata
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path

import pytest

from cni.agent.address import Address
from cni.cli.main import main
from cni.install import units
from cni.invoke import launcher

Says = pytest.CaptureFixture[str]
PLUGINS = sorted(point.name for point in entry_points(group="cni.plugins"))


class Machine:
    """Folders of a node's, and the commands on them."""

    def __init__(self, work: Path, capsys: Says) -> None:
        self.work = work
        self.plugins = work / "bin"
        self.units = work / "units"
        self.cache = work / "cache"
        self.asked = work / "asked"
        self._capsys = capsys

    def run(self, command: str, *arguments: str) -> tuple[int, list[str], str]:
        """The exit status, the lines on stdout, and stderr."""
        argv = [command, "--dir", str(self.plugins), "--unit-dir", str(self.units), *arguments]
        if command == "uninstall":
            argv += ["--cache-dir", str(self.cache)]
        status = main(argv)
        said = self._capsys.readouterr()
        return status, said.out.splitlines(), said.err

    def is_systemds(self, monkeypatch: pytest.MonkeyPatch, script: str = "") -> None:
        program = self.work / "programs" / "systemctl"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "$*" >>{self.asked}\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        monkeypatch.setattr(units, "is_running", lambda: True)

    def requests(self) -> list[str]:
        return self.asked.read_text().splitlines() if self.asked.exists() else []

    def remembers(self, container: str, type: str) -> None:
        """As Go's library writes it."""
        config = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": type}]}
        entry = {
            "kind": "cniCacheV1",
            "containerId": container,
            "config": base64.b64encode(json.dumps(config).encode()).decode(),
            "ifName": "eth0",
            "networkName": "net",
            "netns": "/run/netns/none",
            "result": {"cniVersion": "1.0.0"},
        }
        folder = self.cache / "results"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"net-{container}-eth0").write_text(json.dumps(entry))

    def files(self, folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@pytest.fixture
def machine(tmp_path: Path, capsys: Says, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(units, "is_running", lambda: False)
    monkeypatch.setenv("NETCONFPATH", str(tmp_path / "net.d"))
    return Machine(tmp_path, capsys)


class TestExecutables:
    def test_come_and_go(self, machine: Machine) -> None:
        status, out, err = machine.run("install")
        assert (status, out, err) == (0, [str(machine.plugins / name) for name in PLUGINS], "")
        assert sorted(machine.files(machine.plugins)) == PLUGINS
        status, out, err = machine.run("uninstall")
        assert (status, out, err) == (0, [f"removed {machine.plugins / name}" for name in PLUGINS], "")
        assert machine.files(machine.plugins) == {}
        assert machine.run("uninstall") == (0, [], "")

    def test_where_there_is_nothing(self, machine: Machine) -> None:
        assert machine.run("uninstall", "--agent", "--dhcp-daemon") == (0, [], "")

    def test_dry_run(self, machine: Machine) -> None:
        status, out, _ = machine.run("install", "--dry-run")
        assert (status, out) == (0, [f"would write {machine.plugins / name}" for name in PLUGINS])
        assert not machine.plugins.exists()
        machine.run("install")
        before = machine.files(machine.plugins)
        status, out, _ = machine.run("uninstall", "--dry-run")
        assert (status, out) == (0, [f"would remove {machine.plugins / name}" for name in PLUGINS])
        assert machine.files(machine.plugins) == before

    def test_what_is_not_ours_stays(self, machine: Machine) -> None:
        machine.run("install")
        (machine.plugins / "calico").write_bytes(b"\x7fELF" + bytes(5000))
        (machine.plugins / "script").write_text("#!/bin/sh\n")
        (machine.plugins / "link").symlink_to(machine.plugins / "bridge")
        (machine.plugins / "folder").mkdir()
        os.mkfifo(machine.plugins / "fifo")
        assert machine.run("uninstall")[0] == 0
        assert sorted(path.name for path in machine.plugins.iterdir()) == [
            "calico", "fifo", "folder", "link", "script"
        ]  # fmt: skip

    def test_those_of_another_installation_go_too(self, machine: Machine) -> None:
        machine.run("install")
        other = launcher.Trailer("/gone/python", ("/gone/packages",), "theirs:plugin")
        (machine.plugins / "theirs").write_bytes(bytes(100) + other.encode())
        machine.run("uninstall")
        assert machine.files(machine.plugins) == {}

    @pytest.mark.parametrize("command", ["install", "uninstall"])
    def test_what_a_crash_left_goes(self, machine: Machine, command: str) -> None:
        machine.run("install")
        for name in (".bridge.cni-0123abcd", ".gone.cni-ffffffff"):
            (machine.plugins / name).write_bytes(b"\x7fELF")
        for name in (".bridge.0123abcd", ".bridge.cni-0123", ".cni-0123abcd.x"):
            (machine.plugins / name).touch()
        status, out, _ = machine.run(command)
        assert (status, out[:2]) == (0, [
            f"removed {machine.plugins / name}" for name in (".bridge.cni-0123abcd", ".gone.cni-ffffffff")
        ])  # fmt: skip
        stay = {".bridge.0123abcd", ".bridge.cni-0123", ".cni-0123abcd.x"}
        assert {name for name in machine.files(machine.plugins) if name.startswith(".")} == stay

    def test_two_at_once(self, machine: Machine) -> None:
        """Neither takes the other's files on their way for a crash's."""
        command = [sys.executable, "-P", "-m", "cni", "install", "--dir", str(machine.plugins)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        both = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        assert [process.communicate()[0].count("\n") for process in both] == [len(PLUGINS)] * 3
        assert [process.returncode for process in both] == [0] * 3
        assert sorted(machine.files(machine.plugins)) == PLUGINS

    @pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", ""])
    def test_names_that_lead_elsewhere(self, machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        points = EntryPoints([EntryPoint(name, "theirs:plugin", "cni.plugins")])
        monkeypatch.setattr(metadata, "entry_points", lambda group: points)
        status, out, err = machine.run("install")
        assert (status, out) == (1, [])
        assert err == f"cni install: a plugin cannot be called {name!r} (theirs:plugin)\n"
        assert machine.files(machine.plugins) == {}


class TestAttachments:
    def test_that_need_the_plugins(self, machine: Machine) -> None:
        machine.run("install")
        before = machine.files(machine.plugins)
        machine.remembers("web", "bridge")
        status, out, err = machine.run("uninstall")
        assert (status, out) == (1, [])
        assert "attachment web eth0 of network net" in err
        assert "--force" in err
        assert machine.files(machine.plugins) == before
        state = machine.files(machine.cache / "results")
        assert machine.run("uninstall", "--force")[0] == 0
        assert machine.files(machine.plugins) == {}
        assert machine.files(machine.cache / "results") == state

    def test_many(self, machine: Machine) -> None:
        machine.run("install")
        for number in range(20):
            machine.remembers(f"c{number}", "ptp")
        _, _, err = machine.run("uninstall")
        assert err.count("attachment c") == 5
        assert "and 15 more" in err

    def test_of_plugins_that_stay(self, machine: Machine) -> None:
        machine.run("install")
        machine.remembers("web", "calico")
        assert machine.run("uninstall")[0] == 0

    def test_that_nobody_can_read(self, machine: Machine) -> None:
        """Without its configuration it may be of any plugin."""
        machine.run("install")
        machine.remembers("web", "bridge")
        path = machine.cache / "results" / "net-web-eth0"
        path.write_text(json.dumps({**json.loads(path.read_text()), "config": ""}))
        assert machine.run("uninstall")[0] == 1


def parsed(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


# systemd.exec(5): what gives a service a mount namespace of its own, or other namespaces than the host's.
MAKES_NAMESPACES = {
    "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateNetwork", "PrivateUsers",
    "PrivateIPC", "PrivatePIDs", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectProc",
    "ProtectControlGroups", "ProtectHostname", "ProcSubset", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths",
    "ExecPaths", "NoExecPaths", "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "MountFlags", "MountAPIVFS",
    "MountImages", "RootDirectory", "RootImage", "ExtensionImages", "ExtensionDirectories", "DynamicUser",
    "NetworkNamespacePath", "IPCNamespacePath", "LogNamespace", "User", "LoadCredential", "SetCredential",
}  # fmt: skip


class TestUnits:
    @pytest.fixture
    def both(self, machine: Machine) -> list[str]:
        status, _, err = machine.run("install", "--agent", "--dhcp-daemon")
        assert status == 0
        assert "systemctl enable --now cni-agent.socket cni-agent.service cni-dhcp.socket cni-dhcp.service" in err
        return sorted(str(path) for path in machine.units.iterdir())

    def test_systemd_takes_them(self, both: list[str]) -> None:
        assert [Path(path).name for path in both] == [
            "cni-agent.service", "cni-agent.socket", "cni-dhcp.service", "cni-dhcp.socket"
        ]  # fmt: skip
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", *both], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    def test_the_host_s_namespaces(self, both: list[str]) -> None:
        for path in both:
            if path.endswith(".service"):
                assert not MAKES_NAMESPACES & set(parsed(Path(path))["Service"])

    def test_only_root_reaches_the_sockets(self, both: list[str]) -> None:
        for path, address in ((both[1], "/run/cni/agent.sock"), (both[3], "/run/cni/dhcp.sock")):
            socket = parsed(Path(path))["Socket"]
            assert socket["ListenStream"] == address
            assert (socket["SocketMode"], socket["DirectoryMode"]) == ("0600", "0700")
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o644

    def test_what_is_started(self, machine: Machine, both: list[str]) -> None:
        agent = parsed(Path(both[0]))["Service"]
        assert (agent["ExecStart"], agent["Type"]) == (f"{sys.executable} -I -m cni agent", "notify")
        assert parsed(Path(both[2]))["Service"]["ExecStart"] == f"{machine.plugins}/dhcp daemon"

    @pytest.mark.parametrize(
        ("asked", "word"),
        [
            ("9464", "127.0.0.1:9464"),
            ("[::1]:9464", "[::1]:9464"),
            ("/run/a b/50%$HOME.sock", '"/run/a b/50%%$$HOME.sock"'),
        ],
    )
    def test_metrics(self, machine: Machine, asked: str, word: str) -> None:
        service = machine.units / "cni-agent.service"
        command = f"{sys.executable} -I -m cni agent --metrics {word}"
        status, out, _ = machine.run("install", "--agent", "--metrics", asked, "--dry-run")
        assert (status, out[-1]) == (0, f"would write {service}, which runs {command}")
        assert machine.run("install", "--agent", "--metrics", asked)[0] == 0
        assert f"ExecStart={command}\n" in service.read_text()
        assert units.metrics_address(machine.units) == str(Address.parse(asked))
        assert machine.run("install", "--agent")[0] == 0
        assert units.metrics_address(machine.units) == ""

    def test_metrics_are_the_agent_s(self, machine: Machine) -> None:
        said = "cni install: --metrics is an option of the agent: add --agent\n"
        assert machine.run("install", "--metrics", "9464") == (2, [], said)
        assert not machine.plugins.exists()
        with pytest.raises(SystemExit, match="2"):
            machine.run("install", "--agent", "--metrics", "here")
        assert units.metrics_address(machine.units) == ""

    @pytest.mark.parametrize(
        ("path", "word"),
        [
            ("/usr/bin/python3", "/usr/bin/python3"),
            ("/a b/python", '"/a b/python"'),
            ("/50%/$HOME", "/50%%/$$HOME"),
            ('/a"b\\c', '"/a\\"b\\\\c"'),
        ],
    )
    def test_words(self, path: str, word: str) -> None:
        assert units._word(path) == word

    def test_a_path_that_cannot_stand_in_a_unit(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/a\nExecStartPre=/evil")
        status, _, err = machine.run("install", "--agent")
        assert (status, "cannot stand in a unit" in err) == (1, True)
        assert not machine.plugins.exists()

    def test_another_s_unit_is_not_overwritten(self, machine: Machine) -> None:
        machine.units.mkdir()
        (machine.units / "cni-dhcp.service").write_text("[Unit]\nDescription=CNI DHCP service\n")
        status, out, err = machine.run("install", "--dhcp-daemon")
        assert (status, out) == (1, [])
        assert f"{machine.units}/cni-dhcp.service has not been written by `cni install`" in err
        assert machine.run("uninstall", "--dhcp-daemon") == (0, [], "")
        assert list(machine.files(machine.units)) == ["cni-dhcp.service"]

    def test_started_and_stopped(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        machine.is_systemds(monkeypatch)
        status, out, err = machine.run("install", "--agent")
        asked = [
            "daemon-reload",
            "enable --quiet cni-agent.socket cni-agent.service",
            "start cni-agent.socket",
            "restart cni-agent.service",
        ]
        assert (status, err, machine.requests()) == (0, "", asked)
        assert out[-6:-4] == [f"{machine.units}/cni-agent.socket", f"{machine.units}/cni-agent.service"]
        assert out[-4:] == [f"systemctl {request}" for request in asked]
        machine.asked.unlink()
        status, out, err = machine.run("uninstall", "--agent")
        stop = "disable --quiet --now cni-agent.socket cni-agent.service"
        assert (status, err, machine.requests()) == (0, "", [stop, "daemon-reload"])
        assert out[0] == f"systemctl {stop}"  # who is stopped needs the plugins no more
        assert machine.files(machine.units) == {}

    def test_dry_run(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        machine.is_systemds(monkeypatch)
        status, out, _ = machine.run("install", "--agent", "--dry-run")
        assert (status, out[-1]) == (0, "would run systemctl restart cni-agent.service")
        assert (machine.requests(), machine.units.exists()) == ([], False)

    def test_systemd_refuses(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        machine.is_systemds(monkeypatch, 'case $1 in start) echo "Job failed." >&2; exit 1;; esac')
        status, _, err = machine.run("install", "--agent")
        assert (status, err) == (
            1,
            "cni install: systemctl start cni-agent.socket ended with 1: Job failed.\n",
        )
        assert sorted(machine.files(machine.plugins)) == PLUGINS

    def test_the_plugins_alone_are_removed(self, machine: Machine) -> None:
        machine.run("install", "--agent")
        status, _, err = machine.run("uninstall")
        assert (status, err) == (0, "cni uninstall: the service cni-agent stays; --agent removes it too\n")
        assert len(machine.files(machine.units)) == 2
