"""cnitool: grammar, environment and output of the Go tool; and the runtime library with plugins that are processes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni.cli import cnitool
from cni.invoke import launcher
from cni.runtime import CNI, DeadlineExceeded, NetworkConfigList, RuntimeConf, conf
from cni.spec import errors
from cni.spec.errors import CNIError

NETNS = "/run/netns/x"
CONTAINER_ID = "cnitool-" + hashlib.sha512(NETNS.encode()).digest()[:10].hex()
RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}]}
NOTE = "CNI_ARGS or config empty, no debug behavior\n"


class Node:
    """Folders with configurations and plugins, and the environment that names them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.environ = {"CNI_PATH": f"/no/such/folder:{folder}/bin", "NETCONFPATH": f"{folder}/net.d"}
        self.plugin("noop")
        (folder / "net.d").mkdir()

    def plugin(self, name: str) -> Path:
        file = self.folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!{sys.executable} -I\n" + Path(__file__).with_name("plugins_noop.py").read_text())
        file.chmod(0o755)
        return file

    def network(self, *plugins: dict[str, Any], name: str = "net", **keys: Any) -> NetworkConfigList:
        path = self.folder / "net.d" / f"{name}.conflist"
        elements = [{"type": "noop", **plugin} for plugin in plugins or ({},)]
        path.write_text(json.dumps({"name": name, "cniVersion": "1.1.0", "plugins": elements, **keys}))
        return NetworkConfigList.from_file(str(path))

    def debug(self, name: str = "debug", **behaviour: Any) -> dict[str, str]:
        """Return what a plugin's configuration says to have this behaviour."""
        path = self.folder / name
        path.write_text(json.dumps(behaviour))
        return {"debugFile": str(path)}

    def told(self, name: str = "debug") -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / name).read_text())
        return content

    def log(self) -> dict[str, str]:
        """Return what a plugin's configuration says to have its calls collected."""
        (self.folder / "log").touch()
        return {"commandLog": str(self.folder / "log")}

    @property
    def calls(self) -> list[dict[str, Any]]:
        text = (self.folder / "log").read_text()
        found: list[dict[str, Any]] = json.loads(text or "[]")
        return found

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """The tool as a process."""
        script = "import sys; from cni.cli.cnitool import main; sys.exit(main(sys.argv[2:], sys.argv[1]))"
        return subprocess.run(
            [sys.executable, "-c", script, str(self.cache), *words],
            env={**bare_environ(), **self.environ, **environ},
            capture_output=True,
            text=True,
            cwd=self.folder,
        )


def bare_environ() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("CNI_", "CAP_", "NETCONF"))}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


class Tool:
    """The tool within this process."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.node = node
        self.monkeypatch = monkeypatch
        self.capfd = capfd

    def __call__(self, *words: str, **environ: str) -> tuple[int, str, str]:
        with self.monkeypatch.context() as patch:
            for key in list(os.environ):
                patch.delenv(key)
            for key, value in {**bare_environ(), **self.node.environ, **environ}.items():
                patch.setenv(key, value)
            status = cnitool.main(words, str(self.node.cache))
        captured = self.capfd.readouterr()
        return status, captured.out, captured.err


@pytest.fixture
def tool(node: Node, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Tool:
    return Tool(node, monkeypatch, capfd)


class TestAsAProcess:
    def test_a_whole_life(self, node: Node) -> None:
        log = node.log()
        network = node.network({**node.debug(ReportResult=json.dumps(RESULT), ReportStderr="noted\n"), **log})
        done = node.run("add", "net", NETNS)
        assert (done.returncode, done.stderr) == (0, "noted\n")
        assert done.stdout == json.dumps(RESULT, indent=4)
        entry = json.loads((node.cache / f"results/net-{CONTAINER_ID}-eth0").read_text())
        assert base64.b64decode(entry["config"]) == network.raw
        for verb in ("check", "status", "del", "gc"):
            done = node.run(verb, "net", NETNS)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "noted\n")
        assert os.listdir(node.cache / "results") == []
        calls = node.calls
        assert [call["Command"] for call in calls] == ["ADD", "CHECK", "STATUS", "DEL", "GC"]
        assert calls[0]["CmdArgs"] | {"StdinData": ""} == {
            "ContainerID": CONTAINER_ID,
            "Netns": NETNS,
            "IfName": "eth0",
            "Args": "",
            "Path": node.environ["CNI_PATH"],
            "StdinData": "",
        }
        assert json.loads(calls[1]["CmdArgs"]["StdinData"])["prevResult"] == RESULT
        assert calls[4]["CmdArgs"]["ContainerID"] == ""

    def test_the_locale_changes_nothing(self, node: Node) -> None:
        node.network(node.debug(ReportResult=json.dumps({**RESULT, "dns": {"domain": "bücher.example"}})))
        for encoding in ("ascii", "latin-1"):
            done = node.run("add", "net", NETNS, PYTHONIOENCODING=encoding)
            assert (done.returncode, done.stderr) == (0, "")
            assert json.loads(done.stdout)["dns"] == {"domain": "bücher.example"}

    def test_failure(self, node: Node) -> None:
        node.network(node.debug(ReportError="no room", ReportErrorCode=123))
        done = node.run("add", "net", NETNS)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == 'plugin type="noop" failed (add): no room\n'

    def test_misuse(self, node: Node) -> None:
        done = node.run("frobnicate", "net", NETNS)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith('Error: unknown command "frobnicate" for "cnitool"\nUsage: cnitool ')

    def test_imports_little(self, node: Node) -> None:
        node.network()
        script = (
            "import sys; from cni.cli.cnitool import main; main(['add', 'net', '/x'], sys.argv[1]); print(*sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-S", "-c", script, str(node.cache)],  # -S: without the environment's packages
            env={**bare_environ(), **node.environ, "PYTHONPATH": launcher.PACKAGES},
            capture_output=True,
            text=True,
            check=True,
        )
        dear = {
            "json",
            "re",
            "typing",
            "asyncio",
            "threading",
            "subprocess",
            "argparse",
            "dataclasses",
            "enum",
            "socket",
        }
        assert not dear & set(done.stdout.split())


class TestCommandLine:
    @pytest.mark.parametrize("words", [("help",), ("--help",), ("-h",), ("add", "--help"), ("help", "add")])
    def test_help(self, tool: Tool, words: tuple[str, ...]) -> None:
        assert tool(*words) == (0, cnitool.USAGE, "")

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            ((), "no command was given"),
            (("x",), 'unknown command "x" for "cnitool"'),
            (("ADD", "net", NETNS), 'unknown command "ADD" for "cnitool"'),
            (("add",), "add needs the names of a network and of a namespace"),
            (("del", "net"), "del needs the names of a network and of a namespace"),
            (("gc", "net"), "gc needs the names of a network and of a namespace"),
            (("status", "net"), "status needs the names of a network and of a namespace"),
            (("-x", "add", "net", NETNS), "unknown option -x"),
            (("add", "net", NETNS, "--if"), "unknown option --if"),
            (("add", "net", NETNS, "-i"), "-i needs the name of an interface"),
            (("add", "net", NETNS, "--ifname"), "--ifname needs the name of an interface"),
        ],
    )
    def test_misuse(self, tool: Tool, words: tuple[str, ...], problem: str) -> None:
        assert tool(*words) == (1, "", f"Error: {problem}\n{cnitool.USAGE}")

    def test_the_arguments_of_the_process(self, monkeypatch: pytest.MonkeyPatch, tool: Tool) -> None:
        monkeypatch.setattr(sys, "argv", ["cnitool", "help"])
        assert cnitool.main() == 0

    def test_further_words_are_ignored(self, node: Node, tool: Tool) -> None:
        node.network()
        assert tool("add", "net", NETNS, "and", "more")[0] == 0

    @pytest.mark.parametrize(
        ("before", "after", "environ", "ifname"),
        [
            ((), (), {}, "eth0"),
            ((), (), {"CNI_IFNAME": "net1"}, "net1"),
            ((), (), {"CNI_IFNAME": ""}, "eth0"),
            (("-i", "net2"), (), {"CNI_IFNAME": "net1"}, "net2"),
            (("-inet2",), (), {}, "net2"),
            (("-i=net2",), (), {}, "net2"),
            (("--ifname", "net2"), (), {}, "net2"),
            ((), ("--ifname=net2",), {}, "net2"),
            (("-i", ""), (), {"CNI_IFNAME": "net1"}, "net1"),
        ],
    )
    def test_ifname(
        self,
        node: Node,
        tool: Tool,
        before: tuple[str, ...],
        after: tuple[str, ...],
        environ: dict[str, str],
        ifname: str,
    ) -> None:
        node.network(node.debug(ReportResult="{}"))
        assert tool(*before, "add", "net", NETNS, *after, **environ)[0] == 0
        assert node.told()["CmdArgs"]["IfName"] == ifname

    def test_two_dashes_end_the_options(self, node: Node, tool: Tool) -> None:
        node.network(node.debug(ReportResult="{}"))
        assert tool("add", "--", "net", "-i")[0] == 0
        assert node.told()["CmdArgs"]["Netns"] == f"{os.getcwd()}/-i"


class TestEnvironment:
    def test_a_container_of_another_runtimes(self, node: Node, tool: Tool) -> None:
        """Its id is the runtime's; of a container that is gone there need be no namespace."""
        node.network(node.debug(ReportResult="{}"))
        assert tool("add", "net", NETNS, CNI_CONTAINERID="web")[0] == 0
        assert node.told()["CmdArgs"]["ContainerID"] == "web"
        assert tool("del", "net", "", CNI_CONTAINERID="web")[0] == 0
        assert (node.told()["CmdArgs"]["ContainerID"], node.told()["CmdArgs"]["Netns"]) == ("web", "")

    def test_a_relative_netns(self, node: Node, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
        node.network(node.debug(ReportResult="{}"))
        monkeypatch.chdir(node.folder)
        assert tool("add", "net", "net.d/../x")[0] == 0
        netns = f"{node.folder}/x"
        told = node.told()["CmdArgs"]
        assert told["Netns"] == netns
        assert told["ContainerID"] == f"cnitool-{hashlib.sha512(netns.encode()).hexdigest()[:20]}"

    def test_arguments(self, node: Node, tool: Tool) -> None:
        node.network({**node.debug(ReportResult="{}"), "capabilities": {"mac": True}})
        assert tool("add", "net", NETNS, CNI_ARGS="A=1;B=2", CAP_ARGS='{"mac": "m", "other": 1}')[0] == 0
        told = node.told()["CmdArgs"]
        assert told["Args"] == "A=1;B=2"
        assert json.loads(told["StdinData"])["runtimeConfig"] == {"mac": "m"}

    def test_null_is_no_capability(self, node: Node, tool: Tool) -> None:
        node.network()
        assert tool("add", "net", NETNS, CAP_ARGS="null")[0] == 0

    @pytest.mark.parametrize("text", ["A", "A=", "=1", "A=1=2", "A=1;", ";", "A=1;B"])
    def test_broken_arguments(self, node: Node, tool: Tool, text: str) -> None:
        node.network()
        broken = next(pair for pair in text.split(";") if [bool(part) for part in pair.split("=")] != [True, True])
        assert tool("add", "net", NETNS, CNI_ARGS=text) == (1, "", f'invalid CNI_ARGS pair "{broken}"\n')

    @pytest.mark.parametrize("text", ["{", "[]", "x"])
    def test_broken_capability_arguments(self, node: Node, tool: Tool, text: str) -> None:
        node.network()
        status, out, err = tool("add", "net", NETNS, CAP_ARGS=text)
        assert (status, out) == (1, "")
        assert err.startswith("CAP_ARGS: ")

    def test_the_configuration_is_read_first(self, node: Node, tool: Tool) -> None:
        status, _, err = tool("add", "net", NETNS, CNI_ARGS="broken", CAP_ARGS="broken")
        assert (status, err) == (1, f"no net configurations found in {node.folder}/net.d\n")

    @pytest.mark.parametrize("environ", [{}, {"NETCONFPATH": ""}])
    def test_the_default_folder(
        self, tool: Tool, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], node: Node
    ) -> None:
        monkeypatch.setattr(conf, "DEFAULT_CONF_DIR", "/the/default")
        node.environ.pop("NETCONFPATH")
        assert tool("add", "net", NETNS, **environ) == (1, "", "no net configurations found in /the/default\n")

    def test_no_plugin_folders(self, node: Node, tool: Tool) -> None:
        node.network()
        assert tool("add", "net", NETNS, CNI_PATH="") == (1, "", 'plugin type="noop" failed (add): no paths provided\n')

    def test_a_single_configuration(self, node: Node, tool: Tool) -> None:
        config = {"name": "one", "type": "noop", "cniVersion": "0.2.0"}
        (node.folder / "net.d/10.conf").write_text(json.dumps(config))
        status, out, err = tool("add", "one", NETNS)
        assert (status, err) == (0, NOTE)
        assert out == '{\n    "cniVersion": "0.2.0",\n    "dns": {}\n}'


class TestVerbs:
    def test_results_are_passed_on(self, node: Node, tool: Tool) -> None:
        node.network(
            node.debug("first", ReportResult=json.dumps(RESULT)),
            node.debug("second", ReportResult="PASSTHROUGH"),
            node.debug("third", ReportResult="INJECT-DNS"),
        )
        status, out, _ = tool("add", "net", NETNS)
        assert status == 0
        assert json.loads(out) == {**RESULT, "dns": {"nameservers": ["1.2.3.4"]}}

    @pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
    def test_in_an_older_version(self, node: Node, tool: Tool, version: str) -> None:
        older = {"cniVersion": version, "ips": [{"version": "4", "address": "10.1.2.3/24"}], "dns": {}}
        node.network(
            node.debug("first", ReportResult=json.dumps(older)),
            node.debug("second", ReportResult="PASSTHROUGH"),
            cniVersion=version,
        )
        status, out, _ = tool("add", "net", NETNS)
        assert (status, json.loads(out)) == (0, older)

    def test_check(self, node: Node, tool: Tool) -> None:
        node.network(cniVersion="0.3.1")
        text = 'configuration version "0.3.1" does not support the CHECK command\n'
        assert tool("check", "net", NETNS) == (1, "", text)

    def test_status(self, node: Node, tool: Tool) -> None:
        node.network(node.debug(ReportError="not yet", ReportErrorCode=50))
        assert tool("status", "net", NETNS) == (1, "", "not yet\n")

    def test_gc_deletes_every_attachment(self, node: Node, tool: Tool) -> None:
        log = node.log()
        node.network(log)
        for netns in ("/run/a", "/run/b"):
            assert tool("add", "net", netns)[0] == 0
        assert tool("gc", "net", "/run/c") == (0, "", NOTE * 3)
        assert sorted(call["Command"] for call in node.calls) == ["ADD", "ADD", "DEL", "DEL", "GC"]
        assert os.listdir(node.cache / "results") == []

    def test_del_of_what_is_damaged(self, node: Node, tool: Tool) -> None:
        node.network()
        assert tool("add", "net", NETNS)[0] == 0
        (node.cache / f"results/net-{CONTAINER_ID}-eth0").write_text("{")
        status, out, err = tool("del", "net", NETNS)
        assert (status, out) == (0, "")
        assert err.startswith('DEL goes on without the cached result of network "net": ')
        assert os.listdir(node.cache / "results") == []

    def test_details_are_told(self, node: Node, tool: Tool) -> None:
        node.network()
        status, _, err = tool("add", "net", NETNS, CNI_IFNAME="much-too-long-a-name")
        assert (status, err) == (
            1,
            'plugin type="noop" failed (add): interface name is too long; '
            "interface name should be less than 16 characters\n",
        )

    def test_a_cache_that_cannot_be_written(self, node: Node, tool: Tool) -> None:
        node.network()
        node.cache.touch()
        status, out, err = tool("add", "net", NETNS)
        assert (status, out) == (1, "")
        assert 'failed to set network "net" cached result: ' in err


class TestLibraryWithProcesses:
    """Test what only a process shows of the runtime library."""

    rt = RuntimeConf("cid", NETNS, "eth0")

    @pytest.fixture
    def cni(self, node: Node) -> CNI:
        return CNI([f"{node.folder}/bin"], str(node.cache))

    def test_versions(self, node: Node, cni: CNI) -> None:
        assert cni.version_info("noop").supported == (
            "0.-42.0",
            "0.1.0",
            "0.2.0",
            "0.3.0",
            "0.3.1",
            "0.4.0",
            "1.0.0",
            "1.1.0",
        )
        (node.folder / "bin/noop.debug").write_text('{"ReportVersionSupport": ["0.1.0"]}')
        with pytest.raises(CNIError) as caught:
            cni.validate(node.network({}, {"type": "noop"}, {"type": "missing"}))
        unsupported = 'plugin noop does not support config version "1.1.0"'
        assert str(caught.value) == (
            f'[{unsupported} {unsupported} failed to find plugin "missing" in path [{node.folder}/bin]]'
        )

    @pytest.mark.parametrize(
        ("behaviour", "code", "text"),
        [
            ({"ReportError": "busy", "ReportErrorCode": 11}, 11, "busy"),
            ({"ReportError": "banana"}, 999, "banana"),
            ({"ExitWithCode": 2}, 0, "netplugin failed with no error message: exit status 2"),
            ({"ExitWithCode": 1, "ReportStderr": "why"}, 0, 'netplugin failed: "why": exit status 1'),
        ],
    )
    def test_failures(self, node: Node, cni: CNI, behaviour: dict[str, Any], code: int, text: str) -> None:
        network = node.network(node.debug(**behaviour))
        with pytest.raises(CNIError) as caught:
            cni.add(network, self.rt)
        assert caught.value.code == code
        assert str(caught.value) == f'plugin type="noop" failed (add): {text}'

    def test_output_that_is_no_json(self, node: Node, cni: CNI) -> None:
        network = node.network(node.debug(ReportResult="nonsense", ExitWithCode=1))
        with pytest.raises(CNIError, match="error parsing its diagnostic message"):
            cni.add(network, self.rt)
        network = node.network(node.debug(ReportResult="nonsense"))
        with pytest.raises(CNIError, match="failed to unmarshal raw result"):
            cni.add(network, self.rt)

    def test_arguments_name_the_debug_file(self, node: Node, cni: CNI) -> None:
        file = node.debug(ReportResult=json.dumps(RESULT))["debugFile"]
        cni.add(node.network(), RuntimeConf("cid", NETNS, "eth0", [("FOO", "BAR"), ("DEBUG", file)]))
        assert node.told()["CmdArgs"]["Args"] == f"FOO=BAR;DEBUG={file}"

    @pytest.mark.parametrize("operation", ["add", "check", "delete", "gc", "status", "validate", "version_info"])
    def test_a_timeout_kills_the_plugin(self, node: Node, cni: CNI, operation: str) -> None:
        sleeps = node.folder / "bin/sleeps"
        sleeps.write_text(f"#!/bin/sh\necho $$ > {node.folder}/pid\nexec sleep 60\n")
        sleeps.chmod(0o755)
        network = node.network({"type": "sleeps"})
        operations: dict[str, Callable[[], object]] = {
            "add": lambda: cni.add(network, self.rt, timeout=0.2),
            "check": lambda: cni.check(network, self.rt, timeout=0.2),
            "delete": lambda: cni.delete(network, self.rt, timeout=0.2),
            "gc": lambda: cni.gc(network, timeout=0.2),
            "status": lambda: cni.status(network, timeout=0.2),
            "validate": lambda: cni.validate(network, timeout=0.2),
            "version_info": lambda: cni.version_info("sleeps", timeout=0.2),
        }
        with pytest.raises(DeadlineExceeded, match=r"netplugin failed: [A-Z]+ of .*/sleeps was killed: ") as caught:
            operations[operation]()
        assert caught.value.code == errors.UNKNOWN
        pid = node.folder / "pid"
        if pid.exists() and (number := pid.read_text()):  # else the shell had not got as far
            with pytest.raises(ProcessLookupError):
                os.kill(int(number), 0)
