"""cni.runtime: the operations, with plugins that are functions."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cni.runtime import (
    CNI,
    AsyncCNI,
    CheckNotSupported,
    DeadlineExceeded,
    Exec,
    NetworkConfigList,
    PluginConfig,
    PluginFailed,
    RuntimeConf,
    config_files,
)
from cni.spec import errors
from cni.spec.errors import CNIError
from cni.spec.version import ALL, PluginInfo

CNI_VARIABLES = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH")


class Call:
    """One execution of a plugin: what it was given."""

    def __init__(self, path: str, config: bytes, environ: Mapping[str, str], timeout: float | None) -> None:
        self.plugin = os.path.basename(path)
        self.verb = environ["CNI_COMMAND"]
        self.config: dict[str, Any] = json.loads(config)
        self.environ = {name: environ[name] for name in CNI_VARIABLES}
        self.all_environ = environ
        self.timeout = timeout

    def __repr__(self) -> str:
        return f"{self.verb} {self.plugin}"


class Plugins(Exec):
    """Plugins without processes; ``answers`` says what "VERB plugin" prints or raises."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: dict[str, bytes | Exception | Callable[[Call], bytes]] = {}
        self.missing: set[str] = set()
        self.versions: dict[str, Sequence[str] | Exception] = {}

    def find(self, plugin_type: str, path: Sequence[str]) -> str:
        if plugin_type in self.missing:
            raise CNIError(f'failed to find plugin "{plugin_type}" in path [{" ".join(path)}]')
        return os.path.join(path[0], plugin_type)

    def execute(self, path: str, config: bytes, environ: Mapping[str, str], timeout: float | None) -> bytes:
        call = Call(path, config, environ, timeout)
        self.calls.append(call)
        answer = self.answers.get(repr(call), result(f"{len(self.calls)}") if call.verb == "ADD" else b"")
        if isinstance(answer, Exception):
            raise answer
        return answer(call) if callable(answer) else answer

    def probe_version(self, path: str, timeout: float | None) -> PluginInfo:
        found = self.versions.get(os.path.basename(path), ALL)
        if isinstance(found, Exception):
            raise found
        return PluginInfo(found)

    @property
    def done(self) -> list[str]:
        return [repr(call) for call in self.calls]


class Node:
    """A runtime with its folders and its plugins."""

    def __init__(self, folder: Path) -> None:
        self.plugins = Plugins()
        self.warnings: list[str] = []
        self.folder = folder
        self.cni = CNI(["/bin/one", "/bin/two"], str(folder), self.plugins, warn=self.warnings.append)

    def cached(self, name: str = "net-cid-eth0") -> Path:
        return self.folder / "results" / name

    def write_cached(self, content: str | dict[str, Any], name: str = "net-cid-eth0") -> None:
        self.cached().parent.mkdir(exist_ok=True)
        self.cached(name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def result(last: str = "9", version: str = "1.0.0") -> bytes:
    address = {"address": f"10.1.2.{last}/24", **({"version": "4"} if version < "1" else {})}
    return json.dumps({"cniVersion": version, "ips": [address]}).encode()


def config_list(*plugins: dict[str, Any] | str, **keys: Any) -> NetworkConfigList:
    elements = [{"type": plugin} if isinstance(plugin, str) else plugin for plugin in plugins or ("a", "b", "c")]
    keys = {"cniVersion": "1.1.0", "name": "net", "plugins": elements} | keys
    return NetworkConfigList.from_bytes(json.dumps(keys, indent=1).encode())


def single(**keys: Any) -> PluginConfig:
    return PluginConfig.from_bytes(json.dumps({"cniVersion": "1.1.0", "name": "net", "type": "a"} | keys).encode())


def runtime_conf(container_id: str = "cid", ifname: str = "eth0", **keys: Any) -> RuntimeConf:
    return RuntimeConf(container_id, "/run/netns/x", ifname, **keys)


ADDRESS_9 = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.9/24"}]}


class TestAdd:
    def test_in_order_each_with_the_result_of_the_one_before(self, node: Node) -> None:
        found = node.cni.add(config_list(), runtime_conf())
        assert node.plugins.done == ["ADD a", "ADD b", "ADD c"]
        before = [call.config.get("prevResult") for call in node.plugins.calls]
        assert before == [
            None,
            {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.1/24"}]},
            {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.2/24"}]},
        ]
        assert found.encode("1.0.0") == {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]}

    def test_environment(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CNI_ARGS", "of=the caller")
        monkeypatch.setenv("SOMETHING", "else")
        rt = runtime_conf(args=[("A", "1"), ("B", "2")])
        node.cni.add(config_list("a"), rt)
        [call] = node.plugins.calls
        assert call.environ == {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "cid",
            "CNI_NETNS": "/run/netns/x",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "A=1;B=2",
            "CNI_PATH": "/bin/one:/bin/two",
        }
        assert call.all_environ["SOMETHING"] == "else"
        assert os.environ["CNI_ARGS"] == "of=the caller"

    def test_request(self, node: Node) -> None:
        plugin = {"type": "a", "name": "own", "cniVersion": "0.1.0", "dns": {}, "capabilities": {"mac": True}, "k": [1]}
        node.cni.add(config_list(plugin), runtime_conf())
        [call] = node.plugins.calls
        assert call.config == {**plugin, "name": "net", "cniVersion": "1.1.0"}

    def test_a_version_that_is_not_stated_is_stated_empty(self, node: Node) -> None:
        node.plugins.answers["ADD a"] = b'{"ip4":{"ip":"10.0.0.1/24"}}'
        network = NetworkConfigList.from_bytes(b'{"name":"net","plugins":[{"type":"a"}]}')
        found = node.cni.add(network, runtime_conf())
        assert node.plugins.calls[0].config["cniVersion"] == ""
        assert found.version == "0.1.0"

    @pytest.mark.parametrize(
        ("capabilities", "given", "passed"),
        [
            ({"mac": True, "ips": False}, {"mac": "m", "ips": ["i"], "other": 1}, {"mac": "m"}),
            ({"mac": True}, {"mac": None}, {"mac": None}),
            ({"mac": True}, {}, "absent"),
            ({"mac": False}, {"mac": "m"}, "absent"),
            (None, {"mac": "m"}, "absent"),
        ],
    )
    def test_runtime_config(self, node: Node, capabilities: object, given: dict[str, Any], passed: object) -> None:
        network = config_list({"type": "a", "capabilities": capabilities})
        node.cni.add(network, runtime_conf(capability_args=given))
        assert node.plugins.calls[0].config.get("runtimeConfig", "absent") == passed

    def test_runtime_config_replaces_the_users(self, node: Node) -> None:
        plugin = {"type": "a", "capabilities": {"mac": True}, "runtimeConfig": {"user": 1}}
        node.cni.add(config_list(plugin), runtime_conf(capability_args={"mac": "m"}))
        node.cni.add(config_list(plugin), runtime_conf())
        assert [call.config["runtimeConfig"] for call in node.plugins.calls] == [{"mac": "m"}, {"user": 1}]

    @pytest.mark.parametrize(
        ("output", "version"),
        [(b"{}", "1.1.0"), (b"null", "1.1.0"), (b'{"cniVersion":""}', "1.1.0"), (b'{"cniVersion":"0.4.0"}', "0.4.0")],
    )
    def test_the_results_version(self, node: Node, output: bytes, version: str) -> None:
        node.plugins.answers["ADD a"] = output
        assert node.cni.add(config_list("a", "b"), runtime_conf())
        assert node.plugins.calls[1].config["prevResult"]["cniVersion"] == version

    @pytest.mark.parametrize("output", [b"", b"[]", b"{} {}"])
    def test_no_result(self, node: Node, output: bytes) -> None:
        node.plugins.answers["ADD a"] = output
        with pytest.raises(CNIError, match=r'^plugin type="a" failed \(add\): '):
            node.cni.add(config_list("a"), runtime_conf())

    @pytest.mark.parametrize(
        ("name", "rt", "code", "msg", "details"),
        [
            ("net", runtime_conf(""), 3, "missing containerID", ""),
            ("net", runtime_conf("a/b"), 4, "invalid characters in containerID", "a/b"),
            ("", runtime_conf(), 7, "missing network name:", ""),
            ("a b", runtime_conf(), 7, "invalid characters found in network name", "a b"),
            ("net", runtime_conf(ifname=""), 4, "interface name is empty", ""),
            (
                "net",
                runtime_conf(ifname="a" * 16),
                4,
                "interface name is too long",
                "interface name should be less than 16 characters",
            ),
        ],
    )
    def test_names_are_checked(self, node: Node, name: str, rt: RuntimeConf, code: int, msg: str, details: str) -> None:
        with pytest.raises(PluginFailed) as caught:
            node.cni.add(config_list("a", name=name), rt)
        cause = caught.value.cause
        assert isinstance(cause, CNIError)
        assert (cause.code, cause.msg, cause.details) == (code, msg, details)
        assert (caught.value.code, caught.value.details) == (code, details)
        assert node.plugins.calls == []

    def test_a_missing_plugin_is_told_before_a_bad_name(self, node: Node) -> None:
        node.plugins.missing = {"a"}
        with pytest.raises(CNIError) as caught:
            node.cni.add(config_list("a"), runtime_conf("a/b"))
        assert str(caught.value) == (
            'plugin type="a" failed (add): failed to find plugin "a" in path [/bin/one /bin/two]'
        )

    def test_failure(self, node: Node) -> None:
        node.plugins.answers["ADD b"] = CNIError("no room", 123, "at all")
        network = config_list("a", {"type": "b", "name": 'my "b"'}, "c")
        with pytest.raises(PluginFailed) as caught:
            node.cni.add(network, runtime_conf())
        failure = caught.value
        assert str(failure) == 'plugin type="b" name="my \\"b\\"" failed (add): no room; at all'
        assert (failure.code, failure.details, failure.verb) == (123, "at all", "add")
        assert failure.cause is failure.__cause__ is node.plugins.answers["ADD b"]
        assert failure.plugin is network.plugins[1]
        assert node.plugins.done == ["ADD a", "ADD b"]
        assert not node.cached().exists()

    def test_a_failure_of_another_kind(self, node: Node) -> None:
        node.plugins.answers["ADD a"] = OSError(13, "Permission denied")
        with pytest.raises(PluginFailed, match="Permission denied") as caught:
            node.cni.add(config_list("a"), runtime_conf())
        assert caught.value.code == errors.INTERNAL

    def test_what_is_remembered(self, node: Node) -> None:
        node.plugins.answers["ADD b"] = result(version="0.4.0")
        network = config_list("a", "b")
        node.cni.add(network, runtime_conf(args=[("A", "1")], capability_args={"mac": "m"}))
        entry = json.loads(node.cached().read_text())
        assert base64.b64decode(entry.pop("config")) == network.raw
        assert entry == {
            "kind": "cniCacheV1",
            "containerId": "cid",
            "ifName": "eth0",
            "networkName": "net",
            "netns": "/run/netns/x",
            "cniArgs": [["A", "1"]],
            "capabilityArgs": {"mac": "m"},
            "result": {"cniVersion": "0.4.0", "dns": {}, "ips": [{"version": "4", "address": "10.1.2.9/24"}]},
        }

    def test_a_result_that_cannot_be_remembered(self, node: Node) -> None:
        (node.folder / "results").write_text("no folder")
        with pytest.raises(CNIError, match=r'^failed to set network "net" cached result: '):
            node.cni.add(config_list("a"), runtime_conf())
        assert node.plugins.done == ["ADD a"]

    @pytest.mark.parametrize("version", ["0.1.0", "0.2.0", ""])
    def test_a_result_without_addresses_of_an_old_version(self, node: Node, version: str) -> None:
        node.plugins.answers["ADD a"] = node.plugins.answers["ADD b"] = b"{}"
        found = node.cni.add(config_list("a", "b", cniVersion=version), runtime_conf())
        assert found.encode(version) == {"cniVersion": version or "0.1.0", "dns": {}}

    def test_no_plugins(self, node: Node) -> None:
        with pytest.raises(CNIError, match='network "net" has no plugins'):
            node.cni.add(NetworkConfigList.from_bytes(b'{"name":"net"}'), runtime_conf())

    def test_single(self, node: Node) -> None:
        plugin = single(capabilities={"mac": True})
        found = node.cni.add(plugin, runtime_conf(capability_args={"mac": "m"}))
        assert found.encode("1.0.0")["ips"] == [{"address": "10.1.2.1/24"}]
        assert node.plugins.calls[0].config["runtimeConfig"] == {"mac": "m"}
        assert base64.b64decode(json.loads(node.cached().read_text())["config"]) == plugin.raw

    def test_a_failure_of_a_single_one_is_not_wrapped(self, node: Node) -> None:
        node.plugins.answers["ADD a"] = CNIError("no room", 123)
        with pytest.raises(CNIError) as caught:
            node.cni.add(single(), runtime_conf())
        assert caught.value is node.plugins.answers["ADD a"]

    @pytest.mark.parametrize("own", [True, False])
    def test_where_it_is_remembered(self, tmp_path: Path, own: bool) -> None:
        """The CNI object's folder goes before the RuntimeConf's."""
        first, second = tmp_path / "first", tmp_path / "second"
        cni = CNI(["/bin"], str(first) if own else "", Plugins())
        cni.add(single(), runtime_conf(cache_dir=str(second)))
        assert [first.exists(), second.exists()] == [own, not own]

    def test_trace_context(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        context = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "baggage": "k=v"}
        cni = CNI(["/bin"], str(node.folder), node.plugins, trace=lambda: context)
        cni.add(single(), runtime_conf())
        cni.status(single())
        for call in node.plugins.calls:
            assert call.all_environ["TRACEPARENT"] == context["traceparent"]
            assert call.all_environ["BAGGAGE"] == "k=v"


class TestCheck:
    def test_in_order_with_the_final_result(self, node: Node) -> None:
        node.write_cached(ADDRESS_9)
        node.cni.check(config_list(cniVersion="0.4.0"), runtime_conf())
        assert node.plugins.done == ["CHECK a", "CHECK b", "CHECK c"]
        for call in node.plugins.calls:
            assert call.config["prevResult"] == {
                "cniVersion": "0.4.0",
                "ips": [{"version": "4", "address": "10.1.2.9/24"}],
                "dns": {},
            }
            assert call.environ["CNI_NETNS"] == "/run/netns/x"

    def test_runtime_config(self, node: Node) -> None:
        network = config_list({"type": "a", "capabilities": {"mac": True}})
        node.cni.check(network, runtime_conf(capability_args={"mac": "m"}))
        assert node.plugins.calls[0].config["runtimeConfig"] == {"mac": "m"}

    def test_nothing_remembered(self, node: Node) -> None:
        node.cni.check(config_list("a"), runtime_conf())
        assert "prevResult" not in node.plugins.calls[0].config

    @pytest.mark.parametrize("version", ["", "0.1.0", "0.3.1"])
    @pytest.mark.parametrize("disabled", [True, False])
    def test_a_version_without_check(self, node: Node, version: str, disabled: bool) -> None:
        with pytest.raises(CheckNotSupported) as caught:
            node.cni.check(config_list("a", cniVersion=version, disableCheck=disabled), runtime_conf())
        assert str(caught.value) == f'configuration version "{version}" does not support the CHECK command'

    def test_a_version_that_is_none(self, node: Node) -> None:
        with pytest.raises(CNIError, match="failed to convert major version part"):
            node.cni.check(config_list("a", cniVersion="x"), runtime_conf())

    def test_disabled(self, node: Node) -> None:
        node.write_cached("damaged")
        node.cni.check(config_list("a", disableCheck=True), runtime_conf())
        assert node.plugins.calls == []

    def test_a_single_one_cannot_be_disabled(self, node: Node) -> None:
        node.cni.check(single(disableCheck=True), runtime_conf())
        assert node.plugins.done == ["CHECK a"]

    @pytest.mark.parametrize("content", ["", "adfadsf", {"cniVersion": "0.4567.0"}])
    @pytest.mark.parametrize("network", [config_list("a"), single()])
    def test_damaged(self, node: Node, content: str | dict[str, Any], network: Any) -> None:
        node.write_cached(content)
        with pytest.raises(CNIError, match=r'^failed to get network "net" cached result: '):
            node.cni.check(network, runtime_conf())
        assert node.plugins.calls == []

    def test_a_name_that_leads_elsewhere(self, node: Node) -> None:
        with pytest.raises(CNIError) as caught:
            node.cni.check(config_list("a"), runtime_conf("../../x"))
        assert caught.value.code == errors.INVALID_ENVIRONMENT_VARIABLES

    def test_the_first_failure_is_told_as_it_is(self, node: Node) -> None:
        node.plugins.answers["CHECK b"] = CNIError("gone", 100)
        with pytest.raises(CNIError) as caught:
            node.cni.check(config_list(), runtime_conf())
        assert caught.value is node.plugins.answers["CHECK b"]
        assert node.plugins.done == ["CHECK a", "CHECK b"]


class TestDelete:
    def test_in_reverse_with_the_final_result(self, node: Node) -> None:
        network = config_list()
        node.cni.add(network, runtime_conf())
        node.plugins.calls.clear()
        node.cni.delete(network, runtime_conf())
        assert node.plugins.done == ["DEL c", "DEL b", "DEL a"]
        for call in node.plugins.calls:
            assert call.config["prevResult"] == {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}]}
        assert not node.cached().exists()

    def test_again(self, node: Node) -> None:
        node.cni.delete(config_list("a"), runtime_conf())
        assert "prevResult" not in node.plugins.calls[0].config
        assert node.warnings == []

    @pytest.mark.parametrize("version", ["", "0.2.0", "0.3.1"])
    def test_an_old_version_gets_no_result(self, node: Node, version: str) -> None:
        node.write_cached(ADDRESS_9)
        node.cni.delete(config_list("a", cniVersion=version), runtime_conf())
        assert "prevResult" not in node.plugins.calls[0].config
        assert not node.cached().exists()

    def test_a_version_that_is_none(self, node: Node) -> None:
        with pytest.raises(CNIError, match="too many parts"):
            node.cni.delete(config_list("a", cniVersion="1.2.3.4"), runtime_conf())

    def test_failure(self, node: Node) -> None:
        network = config_list()
        node.cni.add(network, runtime_conf())
        node.plugins.calls.clear()
        node.plugins.answers["DEL b"] = CNIError("busy", errors.TRY_AGAIN_LATER)
        with pytest.raises(PluginFailed) as caught:
            node.cni.delete(network, runtime_conf())
        assert str(caught.value) == 'plugin type="b" failed (delete): busy'
        assert caught.value.code == errors.TRY_AGAIN_LATER
        assert node.plugins.done == ["DEL c", "DEL b", "DEL a"]  # the others' addresses and rules must not stay
        assert node.cached().exists()

    def test_several_failures(self, node: Node) -> None:
        network = config_list()
        node.cni.add(network, runtime_conf())
        node.plugins.answers |= {"DEL c": CNIError("stuck", 100), "DEL a": CNIError("busy", 11)}
        with pytest.raises(CNIError) as caught:
            node.cni.delete(network, runtime_conf())
        assert str(caught.value) == 'plugin type="c" failed (delete): stuck\nplugin type="a" failed (delete): busy'
        assert caught.value.code == 100

    def test_a_failure_of_a_single_one_is_not_wrapped(self, node: Node) -> None:
        node.plugins.answers["DEL a"] = CNIError("busy", 11)
        with pytest.raises(CNIError) as caught:
            node.cni.delete(single(), runtime_conf())
        assert caught.value is node.plugins.answers["DEL a"]

    @pytest.mark.parametrize(
        "content", ["", "adfadsf", "\0\0", {"cniVersion": "0.4567.0"}, {"kind": "cniCacheV1", "result": []}]
    )
    @pytest.mark.parametrize("network", [config_list("a"), single()])
    def test_a_damaged_entry_does_not_keep_it(self, node: Node, content: str | dict[str, Any], network: Any) -> None:
        node.write_cached(content)
        node.plugins.answers["DEL a"] = lambda call: bytes(node.cached().exists())
        node.cni.delete(network, runtime_conf())
        assert "prevResult" not in node.plugins.calls[0].config
        [warning] = node.warnings
        assert warning.startswith('DEL goes on without the cached result of network "net": ')
        assert not node.cached().exists()

    def test_warnings_go_to_stderr(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        node.write_cached("")
        CNI(["/bin"], str(node.folder), node.plugins).delete(single(), runtime_conf())
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("DEL goes on")
        assert captured.err.endswith("\n")

    @pytest.mark.parametrize("version", ["0.3.1", "1.0.0"])
    def test_a_name_that_leads_elsewhere_is_the_plugins_to_refuse(self, node: Node, version: str) -> None:
        outside = node.folder / "x-eth0"
        outside.write_text(json.dumps(ADDRESS_9))
        node.write_cached(ADDRESS_9)
        node.cni.delete(config_list("a", cniVersion=version), runtime_conf("/../../x"))
        [call] = node.plugins.calls
        assert "prevResult" not in call.config
        assert outside.exists()

    def test_netns_may_be_gone(self, node: Node) -> None:
        node.cni.delete(config_list("a"), RuntimeConf("cid", "", "eth0"))
        assert node.plugins.calls[0].environ["CNI_NETNS"] == ""


class TestGC:
    def setup_attachments(self, node: Node, network: NetworkConfigList, *others: str) -> None:
        for container_id in ("one", "two"):
            rt = RuntimeConf(container_id, f"/run/{container_id}", "eth0", [("A", container_id)], {"mac": container_id})
            node.cni.add(network, rt)
        for name in others:
            node.cni.add(config_list("a", name=name), runtime_conf("one"))
        node.plugins.calls.clear()

    def test_nothing_is_valid(self, node: Node) -> None:
        network = config_list({"type": "a", "capabilities": {"mac": True}}, "b")
        self.setup_attachments(node, network, "other", "net-one")
        node.cni.gc(network)
        assert node.plugins.done == ["DEL b", "DEL a", "DEL b", "DEL a", "GC a", "GC b"]
        first = node.plugins.calls[1]
        assert first.environ["CNI_CONTAINERID"] == "one"
        assert first.environ["CNI_NETNS"] == "/run/one"
        assert first.environ["CNI_ARGS"] == "A=one"
        assert first.config["runtimeConfig"] == {"mac": "one"}
        assert "prevResult" in first.config
        for call in node.plugins.calls[4:]:
            assert "cni.dev/valid-attachments" not in call.config
            assert "cni.dev/attachments" not in call.config
        assert sorted(os.listdir(node.folder / "results")) == ["net-one-one-eth0", "other-one-eth0"]

    def test_request_and_environment(self, node: Node) -> None:
        node.cni.gc(config_list({"type": "a", "k": 1, "capabilities": {"mac": True}}), [runtime_conf("one")])
        [call] = node.plugins.calls
        valid = [{"containerID": "one", "ifname": "eth0"}]
        assert call.config == {
            "name": "net",
            "cniVersion": "1.1.0",
            "type": "a",
            "k": 1,
            "capabilities": {"mac": True},
            "cni.dev/valid-attachments": valid,
            "cni.dev/attachments": valid,
        }
        assert call.environ == {
            **dict.fromkeys(CNI_VARIABLES, ""),
            "CNI_COMMAND": "GC",
            "CNI_PATH": "/bin/one:/bin/two",
        }

    def test_valid_ones_stay(self, node: Node) -> None:
        network = config_list("a")
        self.setup_attachments(node, network)
        [two] = node.cni.cached_attachments("two")
        node.cni.gc(network, iter([two, runtime_conf("one", "eth1")]))
        assert node.plugins.done == ["DEL a", "GC a"]
        assert node.plugins.calls[0].environ["CNI_CONTAINERID"] == "one"
        assert os.listdir(node.folder / "results") == ["net-two-eth0"]

    def test_an_empty_list_is_a_list(self, node: Node) -> None:
        network = config_list("a")
        self.setup_attachments(node, network)
        node.cni.gc(network, iter([]))
        assert node.plugins.done == ["DEL a", "DEL a", "GC a"]
        assert node.plugins.calls[2].config["cni.dev/valid-attachments"] == []

    def test_disabled(self, node: Node) -> None:
        network = config_list("a", disableGC=True)
        self.setup_attachments(node, network)
        node.cni.gc(network)
        assert node.plugins.calls == []

    @pytest.mark.parametrize("version", ["1.0.0", "0.3.1"])
    def test_a_version_without_gc(self, node: Node, version: str) -> None:
        network = config_list("a", cniVersion=version)
        self.setup_attachments(node, network)
        node.cni.gc(network)
        assert node.plugins.done == ["DEL a", "DEL a"]

    def test_goes_on_and_tells_all(self, node: Node) -> None:
        network = config_list("a", "b")
        self.setup_attachments(node, network)
        node.plugins.answers |= {
            "DEL b": lambda call: fail_for(call, "one", CNIError("stuck", 11)),
            "GC a": CNIError("no way", 100, "really"),
        }
        with pytest.raises(CNIError) as caught:
            node.cni.gc(network)
        assert str(caught.value) == (
            'failed to delete stale attachment one eth0: plugin type="b" failed (delete): stuck\n'
            "failed to GC plugin a: no way; really"
        )
        assert caught.value.code == 11
        assert node.plugins.done == ["DEL b", "DEL a", "DEL b", "DEL a", "GC a", "GC b"]

    def test_a_missing_plugin(self, node: Node) -> None:
        node.plugins.missing = {"a"}
        with pytest.raises(CNIError, match=r'^failed to GC plugin a: failed to find plugin "a"'):
            node.cni.gc(config_list("a", "b"))
        assert node.plugins.done == ["GC b"]

    def test_a_cache_that_cannot_be_listed(self, node: Node) -> None:
        (node.folder / "results").write_text("no folder")
        node.cni.gc(config_list("a"))
        assert node.plugins.calls == []
        assert len(node.warnings) == 1

    def test_damaged_entries_are_passed_over(self, node: Node) -> None:
        network = config_list("a")
        self.setup_attachments(node, network)
        node.write_cached("", "net-one-eth0")
        node.cni.gc(network)
        assert node.plugins.done == ["DEL a", "GC a"]
        assert len(node.warnings) == 1


def fail_for(call: Call, container_id: str, error: Exception) -> bytes:
    if call.environ["CNI_CONTAINERID"] == container_id:
        raise error
    return b""


class TestStatus:
    def test_request_and_environment(self, node: Node) -> None:
        node.cni.status(config_list({"type": "a", "k": 1}, "b"))
        assert node.plugins.done == ["STATUS a", "STATUS b"]
        call = node.plugins.calls[0]
        assert call.config == {"name": "net", "cniVersion": "1.1.0", "type": "a", "k": 1}
        assert call.environ == {
            **dict.fromkeys(CNI_VARIABLES, ""),
            "CNI_COMMAND": "STATUS",
            "CNI_PATH": "/bin/one:/bin/two",
        }

    def test_the_first_refusal_is_told_as_it_is(self, node: Node) -> None:
        node.plugins.answers["STATUS b"] = CNIError("not yet", errors.PLUGIN_NOT_AVAILABLE)
        with pytest.raises(CNIError) as caught:
            node.cni.status(config_list())
        assert caught.value is node.plugins.answers["STATUS b"]
        assert node.plugins.done == ["STATUS a", "STATUS b"]

    @pytest.mark.parametrize("version", ["", "1.0.0", "nonsense"])
    def test_a_version_without_status(self, node: Node, version: str) -> None:
        node.cni.status(config_list("a", cniVersion=version))
        assert node.plugins.calls == []

    def test_a_configuration_that_cannot_be_written(self, node: Node) -> None:
        network = NetworkConfigList(b"", "net", "1.1.0", [PluginConfig(b"{", "a")])
        text = "^failed to generate configuration to get plugin STATUS a: unmarshal existing network bytes: "
        with pytest.raises(CNIError, match=text):
            node.cni.status(network)
        with pytest.raises(CNIError, match=r"^failed to generate configuration to GC plugin a: unmarshal existing"):
            node.cni.gc(network)


class TestValidate:
    def test_capabilities(self, node: Node) -> None:
        network = config_list(
            {"type": "a", "capabilities": {"mac": True, "ips": False}},
            {"type": "b", "capabilities": {"mac": True, "dns": True}},
        )
        assert node.cni.validate(network) == ["dns", "mac"]
        assert node.cni.validate(network.plugins[0]) == ["mac"]

    def test_all_failures(self, node: Node) -> None:
        node.plugins.missing = {"a"}
        node.plugins.versions = {"b": ["0.4.0"], "c": CNIError("broken")}
        with pytest.raises(CNIError) as caught:
            node.cni.validate(config_list())
        assert str(caught.value) == (
            '[failed to find plugin "a" in path [/bin/one /bin/two] '
            'plugin b does not support config version "1.1.0" broken]'
        )

    def test_the_failure_of_a_single_one(self, node: Node) -> None:
        with pytest.raises(CNIError) as caught:
            node.cni.validate(single(cniVersion="broken"))
        assert str(caught.value) == 'plugin a does not support config version "broken"'

    @pytest.mark.parametrize(("speaks", "good"), [("0.1.0", True), ("0.2.0", False)])
    def test_no_version_is_the_oldest(self, node: Node, speaks: str, good: bool) -> None:
        node.plugins.versions = {"a": [speaks]}
        network = config_list("a", cniVersion="")
        if good:
            assert node.cni.validate(network) == []
            return
        with pytest.raises(CNIError, match=r'does not support config version "0.1.0"'):
            node.cni.validate(network)

    def test_version_info(self, node: Node) -> None:
        node.plugins.versions = {"a": ["0.3.1", "1.0.0"]}
        assert node.cni.version_info("a").supported == ("0.3.1", "1.0.0")
        node.plugins.missing = {"a"}
        with pytest.raises(CNIError, match="failed to find plugin"):
            node.cni.version_info("a")


class TestCached:
    def test_nothing(self, node: Node) -> None:
        assert node.cni.cached_result(config_list(), runtime_conf()) is None
        assert node.cni.cached_config(config_list(), runtime_conf()) is None
        assert node.cni.cached_attachments() == []

    def test_after_add(self, node: Node) -> None:
        network = config_list()
        node.cni.add(network, runtime_conf(args=[("A", "1")], capability_args={"mac": "m"}))
        found = node.cni.cached_result(network, runtime_conf())
        assert found
        assert found.encode("1.1.0")["ips"] == [{"address": "10.1.2.3/24"}]
        cached = node.cni.cached_config(network, runtime_conf(args=[("B", "2")], capability_args={"dns": 1}))
        assert cached
        config, rt = cached
        assert config == network.raw
        assert (rt.container_id, rt.netns, rt.ifname) == ("cid", "/run/netns/x", "eth0")
        assert (rt.args, rt.capability_args) == ([("A", "1")], {"mac": "m"})
        [attachment] = node.cni.cached_attachments("cid")
        assert (attachment.network, attachment.config) == ("net", network.raw)
        assert node.cni.cached_attachments("other") == []

    def test_an_attachment_has_its_result(self, node: Node) -> None:
        """Decoded at the first use, so that a damaged result is its own problem alone."""
        network = config_list()
        node.cni.add(network, runtime_conf())
        [attachment] = node.cni.cached_attachments()
        cached = node.cni.cached_result(network, attachment)
        assert cached
        assert attachment.result
        assert attachment.result.encode("1.1.0") == cached.encode("1.1.0")
        assert attachment.result is attachment.result
        entry = json.loads(node.cached().read_text())
        node.write_cached({**entry, "result": {"cniVersion": "1.0.0", "ips": 5}})
        [damaged] = node.cni.cached_attachments()
        with pytest.raises(CNIError, match="ips"):
            _ = damaged.result
        node.write_cached({key: value for key, value in entry.items() if key != "result"})
        assert node.cni.cached_attachments()[0].result is None

    def test_an_attachment_serves_as_a_runtime_conf(self, node: Node, tmp_path: Path) -> None:
        """With what ADD was given, and in the cache that it is from."""
        other = str(tmp_path / "other")
        network = config_list({"type": "a", "capabilities": {"mac": True}})
        rt = runtime_conf(args=[("A", "1")], capability_args={"mac": "m"}, cache_dir=other)
        CNI(["/bin"], "", node.plugins).add(network, rt)
        [attachment] = CNI([], other).cached_attachments()
        cni = CNI(["/bin"], "", node.plugins)
        cni.check(network, attachment)
        cni.delete(network, attachment)
        for call in node.plugins.calls[1:]:
            assert (call.environ["CNI_NETNS"], call.environ["CNI_ARGS"]) == ("/run/netns/x", "A=1")
            assert call.config["runtimeConfig"] == {"mac": "m"}
        assert CNI([], other).cached_attachments() == []

    def test_arguments_that_were_not_given(self, node: Node) -> None:
        node.cni.add(single(), runtime_conf())
        cached = node.cni.cached_config(single(), runtime_conf(args=[("B", "2")], capability_args={"dns": 1}))
        assert cached
        assert (cached[1].args, cached[1].capability_args) == ([("B", "2")], {})

    def test_attachments_of_the_default_folder_only(self, node: Node, tmp_path: Path) -> None:
        other = str(tmp_path / "other")
        CNI(["/bin"], "", node.plugins).add(single(), runtime_conf(cache_dir=other))
        assert node.cni.cached_attachments() == []
        assert len(CNI([], other).cached_attachments()) == 1


class TestDeleteAll:
    def test_runtime_confs_and_attachments(self, node: Node) -> None:
        network = config_list("a")
        for container_id in ("one", "two"):
            node.cni.add(network, runtime_conf(container_id))
        [one] = node.cni.cached_attachments("one")
        node.cni.delete_all(iter([(network, one), (network, runtime_conf("two"))]))
        assert node.plugins.done[2:] == ["DEL a", "DEL a"]
        assert node.cni.cached_attachments() == []

    def test_goes_on_and_tells_all(self, node: Node) -> None:
        node.plugins.answers["DEL a"] = lambda call: fail_for(call, "one", CNIError("stuck", 11))
        with pytest.raises(CNIError, match='^one eth0: plugin type="a" failed .delete.: stuck$') as caught:
            node.cni.delete_all([(config_list("a"), runtime_conf(name)) for name in ("one", "two")])
        assert caught.value.code == 11
        assert node.plugins.done == ["DEL a", "DEL a"]


class TestMisuse:
    """A value that would be taken apart letter by letter, or fail later elsewhere, is a TypeError at once."""

    @pytest.mark.parametrize("kind", [CNI, AsyncCNI])
    @pytest.mark.parametrize("path", ["/opt/cni/bin", b"/opt/cni/bin", Path("/opt/cni/bin")])
    def test_a_folder_for_a_list_of_folders(self, kind: type, path: Any) -> None:
        with pytest.raises(TypeError, match=r'must be a list of folders.*: did you mean \["/opt/cni/bin"\]\?$'):
            kind(path)

    def test_folders_may_be_paths(self, tmp_path: Path) -> None:
        cni = CNI([Path("/opt/cni/bin")], cache_dir=tmp_path)  # type: ignore[list-item,arg-type]
        assert (cni.path, cni.cache_dir) == (["/opt/cni/bin"], str(tmp_path))

    @pytest.mark.parametrize("args", ["A=1", {"A": "1"}])
    def test_arguments_that_are_no_pairs(self, args: Any) -> None:
        with pytest.raises(TypeError, match=r"^args must be a list of pairs such as .*, not "):
            runtime_conf(args=args)

    @pytest.mark.parametrize("valid", ["one eth0", [("one", "eth0")], ["one"]])
    def test_names_for_valid_attachments(self, node: Node, valid: Any) -> None:
        node.cni.add(config_list("a"), runtime_conf("one"))
        with pytest.raises(TypeError, match=r"^valid must hold RuntimeConf or Attachment objects, not "):
            node.cni.gc(config_list("a"), valid)
        assert node.plugins.done == ["ADD a"]

    def test_attachments_that_are_no_pairs(self, node: Node) -> None:
        network, rt = config_list("a"), runtime_conf()
        text = r"^attachments must be pairs \(network, RuntimeConf or Attachment\), not "
        for attachments in ("one", [rt], (network, rt), [(rt, network)], [(network, "cid")]):
            with pytest.raises(TypeError, match=text):
                node.cni.delete_all(attachments)  # type: ignore[arg-type]
        assert node.plugins.done == []

    def test_a_string_for_a_list_of_extensions(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r'did you mean \[".conflist"\]\?$'):
            config_files(str(tmp_path), ".conflist")


class TestTimeout:
    def test_the_plugins_share_it(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])

        def takes_two_seconds(_: Call) -> bytes:
            now[0] += 2
            return b"{}"

        for plugin in "abc":
            for verb in ("ADD", "CHECK", "DEL", "GC", "STATUS"):
                node.plugins.answers[f"{verb} {plugin}"] = takes_two_seconds
        network = config_list()
        operations: list[Callable[[float], object]] = [
            lambda timeout: node.cni.add(network, runtime_conf(), timeout),
            lambda timeout: node.cni.check(network, runtime_conf(), timeout),
            lambda timeout: node.cni.delete(network, runtime_conf(), timeout),
            lambda timeout: node.cni.gc(network, [], timeout),
            lambda timeout: node.cni.status(network, timeout),
        ]
        for operation in operations:
            node.plugins.calls.clear()
            operation(10.0)
            assert [call.timeout for call in node.plugins.calls] == [10.0, 8.0, 6.0]
        for operation in operations:
            node.plugins.calls.clear()
            text = r"\w (ADD|CHECK|DEL|GC|STATUS) was not started: the operation's timeout of 3 s has expired"
            with pytest.raises(DeadlineExceeded, match=text):
                operation(3.0)
            assert [call.timeout for call in node.plugins.calls] == [3.0, 1.0]

    def test_one_that_is_used_up(self, node: Node) -> None:
        for operation in (node.cni.status, node.cni.validate):
            with pytest.raises(DeadlineExceeded, match="a (STATUS|VERSION) was not started"):
                operation(config_list("a"), 0)
            with pytest.raises(DeadlineExceeded, match="b (STATUS|VERSION) was not started|a STATUS"):
                operation(config_list("a", "b"), 0)
        with pytest.raises(DeadlineExceeded):
            node.cni.version_info("a", -1)
        assert node.plugins.calls == []

    def test_a_plugin_of_a_list_that_is_killed(self, node: Node) -> None:
        """The caller may catch what happened, or where: the error is both."""
        killed = DeadlineExceeded("netplugin failed: ADD of /bin/b was killed: it had not finished after 1 s", 0)
        node.plugins.answers |= {"ADD b": killed, "DEL b": killed}
        for operation, verb in ((node.cni.add, "add"), (node.cni.delete, "delete")):
            with pytest.raises(DeadlineExceeded) as caught:
                operation(config_list("a", "b"), runtime_conf())
            assert isinstance(caught.value, PluginFailed)
            assert caught.value.plugin.type == "b"
            assert str(caught.value) == f'plugin type="b" failed ({verb}): {killed}'
            assert caught.value.code == 0

    def test_another_failure_beside_it(self, node: Node) -> None:
        """It is a timeout if every failure is one."""
        killed = DeadlineExceeded("killed")
        node.plugins.answers |= {"DEL a": killed, "DEL b": killed}
        with pytest.raises(DeadlineExceeded, match=r"killed\n.*killed"):
            node.cni.delete(config_list("a", "b"), runtime_conf())
        node.plugins.answers |= {"DEL a": CNIError("broken", 7)}
        with pytest.raises(CNIError, match=r"killed\n.*broken") as caught:
            node.cni.delete(config_list("a", "b"), runtime_conf())
        assert not isinstance(caught.value, DeadlineExceeded)
        assert caught.value.code == 7

    def test_stale_attachments_share_it(self, node: Node) -> None:
        node.cni.add(config_list("a"), runtime_conf())
        with pytest.raises(DeadlineExceeded) as caught:
            node.cni.gc(config_list("a"), timeout=0)
        assert str(caught.value).count("has expired") == 2
        assert node.cached().exists()

    def test_none(self, node: Node) -> None:
        node.cni.add(config_list("a"), runtime_conf())
        assert node.plugins.calls[0].timeout is None
