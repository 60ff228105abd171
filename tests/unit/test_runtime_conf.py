"""cni.runtime: network configurations, as files and as text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cni import runtime
from cni.invoke import launcher
from cni.runtime import (
    NetworkConfigList,
    NoConfigsFound,
    NotFound,
    PluginConfig,
    config_files,
    inject,
    load_network_list,
    load_plugin,
)
from cni.spec import errors
from cni.spec.errors import CNIError


def network(**keys: Any) -> NetworkConfigList:
    return NetworkConfigList.from_bytes(json.dumps({"name": "net", "plugins": [{"type": "a"}], **keys}).encode())


def write(folder: Path, name: str, content: object) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def message(text: str) -> str:
    with pytest.raises(CNIError) as caught:
        NetworkConfigList.from_bytes(text.encode())
    return caught.value.msg


class TestList:
    def test_keys(self) -> None:
        data = b'{ "name": "net", "cniVersion": "1.0.0", "disableGC": true, "plugins": [ {"type":"a"}, {"type":"b"} ] }'
        found = NetworkConfigList.from_bytes(data)
        assert (found.name, found.cni_version, found.disable_check, found.disable_gc) == ("net", "1.0.0", False, True)
        assert [plugin.type for plugin in found.plugins] == ["a", "b"]
        assert found.raw == data

    def test_inlined_plugins_are_written_anew(self) -> None:
        data = b'{"name":"n","plugins":[{"type": "a", "z": "<&>", "b": {"y": 1, "x": [ ]}, "n": 10.0}]}'
        [plugin] = NetworkConfigList.from_bytes(data).plugins
        assert plugin.raw == rb'{"b":{"x":[],"y":1},"n":10,"type":"a","z":"\u003c\u0026\u003e"}'

    def test_a_list_may_leave_its_plugins_to_the_folder(self) -> None:
        assert NetworkConfigList.from_bytes(b'{"name":"n"}').plugins == []

    @pytest.mark.parametrize("name", ["", "../x", "a b"])
    def test_the_name_is_not_judged_yet(self, name: str) -> None:
        assert network(name=name).name == name

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('{"plugins":[]}', "no name"),
            ("null", "no name"),
            ('{"Name":"n"}', "no name"),
            ('{"name":1}', "invalid name type float64"),
            ('{"name":null}', "invalid name type <nil>"),
            ('{"name":["n"]}', "invalid name type []interface {}"),
            ('{"name":{"n":1}}', "invalid name type map[string]interface {}"),
            ('{"name":true}', "invalid name type bool"),
            ('{"name":"n","cniVersion":1.0}', "invalid cniVersion type float64"),
            ('{"name":"n","cniVersion":null}', "invalid cniVersion type <nil>"),
            ('{"name":"n","cniVersions":"1.0.0"}', "invalid type for cniVersions: []interface {}"),
            ('{"name":"n","cniVersions":null}', "invalid type for cniVersions: []interface {}"),
            ('{"name":"n","cniVersions":["1.0.0",2]}', "invalid type for cniVersions index 1: float64"),
            (
                '{"name":"n","cniVersions":["1.0.0","1.2.3.4"]}',
                'invalid cniVersions entry 1.2.3.4 at index 1: invalid version "1.2.3.4": too many parts',
            ),
            (
                '{"name":"n","cniVersion":"1.2.3.4","cniVersions":["1.0.0"]}',
                'invalid cniVersion 1.2.3.4: invalid version "1.2.3.4": too many parts',
            ),
            ('{"name":"n","disableCheck":1}', "invalid type float64 for disableCheck"),
            ('{"name":"n","disableCheck":null}', "invalid type <nil> for disableCheck"),
            ('{"name":"n","disableCheck":"Yes"}', 'invalid value "yes" for disableCheck'),
            ('{"name":"n","disableGC":""}', 'invalid value "" for disableGC'),
            ('{"name":"n","disableGC":[]}', "invalid type []interface {} for disableGC"),
            ('{"name":"n","loadOnlyInlinedPlugins":"x"}', 'invalid value "x" for loadOnlyInlinedPlugins'),
            (
                '{"name":"n","loadOnlyInlinedPlugins":true}',
                "`loadOnlyInlinedPlugins` is true, and no 'plugins' key",
            ),
            ('{"name":"n","plugins":{}}', "invalid 'plugins' type map[string]interface {}"),
            ('{"name":"n","plugins":null}', "invalid 'plugins' type <nil>"),
            ('{"name":"n","plugins":"a"}', "invalid 'plugins' type string"),
            ('{"name":"n","plugins":[]}', "no plugins in list"),
        ],
    )
    def test_problems(self, text: str, problem: str) -> None:
        assert message(text) == f"error parsing configuration list: {problem}"

    @pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"name":"n"} x'])
    def test_what_is_no_json_object(self, text: str) -> None:
        assert message(text).startswith("error parsing configuration list: ")

    @pytest.mark.parametrize(
        ("element", "problem"),
        [
            ("{}", "missing 'type'"),
            ("null", "missing 'type'"),
            ('{"type":""}', "missing 'type'"),
            ('{"type":1}', "type: 1 is not a string"),
            ('{"type":"b","capabilities":{"mac":"yes"}}', 'capabilities.mac: "yes" is not true or false'),
        ],
    )
    def test_problems_of_a_plugin(self, element: str, problem: str) -> None:
        text = f'{{"name":"n","plugins":[{{"type":"a"}},{element}]}}'
        assert message(text) == f"failed to parse plugin config 1: error parsing configuration: {problem}"

    def test_the_code_says_that_the_text_is_at_fault(self) -> None:
        with pytest.raises(CNIError) as caught:
            NetworkConfigList.from_bytes(b"{")
        assert caught.value.code == errors.DECODING_FAILURE

    @pytest.mark.parametrize(
        ("value", "meant"), [(True, True), (False, False), ("true", True), ("TRUE", True), ("False", False)]
    )
    @pytest.mark.parametrize("key", ["disableCheck", "disableGC", "loadOnlyInlinedPlugins"])
    def test_flags(self, key: str, value: object, meant: bool) -> None:
        found = network(**{key: value})
        flags = {
            "disableCheck": found.disable_check,
            "disableGC": found.disable_gc,
            "loadOnlyInlinedPlugins": found.load_only_inlined_plugins,
        }
        assert flags == {**dict.fromkeys(flags, False), key: meant}

    @pytest.mark.parametrize(
        ("keys", "chosen"),
        [
            ({}, ""),
            ({"cniVersion": "1.2.3"}, "1.2.3"),
            ({"cniVersion": "nonsense"}, "nonsense"),
            ({"cniVersions": []}, ""),
            ({"cniVersion": "0.4.0", "cniVersions": []}, "0.4.0"),
            ({"cniVersions": ["0.4.0", "1.0.0", "0.3.1"]}, "1.0.0"),
            ({"cniVersions": ["1.1.0", "99.0.0"]}, "1.1.0"),
            ({"cniVersions": ["99.0.0"]}, ""),
            ({"cniVersion": "1.1.0", "cniVersions": ["0.4.0", "1.0.0"]}, "1.1.0"),
            ({"cniVersion": "0.4.0", "cniVersions": ["1.0.0"]}, "1.0.0"),
            ({"cniVersion": "99.0.0", "cniVersions": ["1.0.0"]}, "1.0.0"),
            ({"cniVersion": "1.2.3", "cniVersions": ["99.0.0"]}, "1.2.3"),
            ({"cniVersions": ["0.10.0", "0.9.0"]}, "0.10.0"),
        ],
    )
    def test_version(self, keys: dict[str, Any], chosen: str) -> None:
        assert network(**keys).cni_version == chosen


class TestPlugin:
    def test_keys(self) -> None:
        data = b'{"type":"b","NAME":"n","cniVersion":"1.0.0","capabilities":{"mac":true,"ips":false,"x":null},"k":[1]}'
        plugin = PluginConfig.from_bytes(data)
        assert (plugin.type, plugin.name, plugin.cni_version, plugin.raw) == ("b", "n", "1.0.0", data)
        assert plugin.capabilities == {"mac": True, "ips": False, "x": False}

    @pytest.mark.parametrize(
        "text",
        ["", "[]", '{"type":[]}', '{"type":"a","ipam":"x"}', '{"type":"a","ipam":{"type":1}}', '{"type":"a","dns":1}'],
    )
    def test_wrong_types(self, text: str) -> None:
        with pytest.raises(CNIError, match=r"^error parsing configuration: "):
            PluginConfig.from_bytes(text.encode())

    def test_a_list_is_no_plugin(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.conf", {"name": "n", "plugins": [{"type": "a"}]})
        with pytest.raises(CNIError, match="missing 'type'") as caught:
            PluginConfig.from_file(path)
        assert caught.value.msg == "error parsing configuration: missing 'type'"
        assert caught.value.details == f"in {path}"

    def test_a_missing_file(self) -> None:
        with pytest.raises(CNIError, match=r"^error reading /no/such.conf: No such file") as caught:
            PluginConfig.from_file("/no/such.conf")
        assert caught.value.code == errors.IO_FAILURE

    def test_as_a_list(self) -> None:
        data = b'{"type":"b","name":"n","cniVersion":"0.4.0","disableCheck":true,"k":{"b":1,"a":2}}'
        found = NetworkConfigList.from_plugin(PluginConfig.from_bytes(data))
        assert (found.name, found.cni_version, found.disable_check) == ("n", "0.4.0", False)
        assert json.loads(found.raw) == {"name": "n", "cniVersion": "0.4.0", "plugins": [json.loads(data)]}
        [plugin] = found.plugins
        assert json.loads(plugin.raw) == json.loads(data)

    def test_as_a_list_without_a_version(self) -> None:
        found = NetworkConfigList.from_plugin(PluginConfig.from_bytes(b'{"type":"b","name":"n"}'))
        assert json.loads(found.raw)["cniVersion"] == ""


class TestInject:
    plugin = PluginConfig.from_bytes(b'{"type":"b","name":"old","z":1}')

    def test_adds_and_replaces(self) -> None:
        found = inject(self.plugin, {"name": "new", "nested": {"x": [1, None]}})
        assert found.raw == b'{"name":"new","nested":{"x":[1,null]},"type":"b","z":1}'
        assert found.name == "new"
        assert self.plugin.name == "old"

    def test_ours_wins_over_another_spelling(self) -> None:
        plugin = PluginConfig.from_bytes(b'{"type":"b","Name":"theirs","CNIVersion":"9.9.9"}')
        found = inject(plugin, {"name": "ours", "cniVersion": "1.0.0"})
        assert (found.name, found.cni_version) == ("ours", "1.0.0")

    @pytest.mark.parametrize(
        ("values", "problem"),
        [({"": 1}, "keys cannot be empty"), ({"x": None}, "key 'x' value must not be nil")],
    )
    def test_refused_values(self, values: dict[str, Any], problem: str) -> None:
        with pytest.raises(CNIError) as caught:
            inject(self.plugin, values)
        assert str(caught.value) == problem

    @pytest.mark.parametrize("raw", [b"{", b"[]"])
    def test_a_broken_original(self, raw: bytes) -> None:
        with pytest.raises(CNIError, match=r"^unmarshal existing network bytes: "):
            inject(PluginConfig(raw, "b"), {"x": 1})


class TestFiles:
    def test_which_files(self, tmp_path: Path) -> None:
        for name in ("b.conf", "a.json", ".conf", "é.conf", "c.conflist", "conf", "d.conf.bak", "E.CONF"):
            write(tmp_path, name, "")
        (tmp_path / "folder.conf").mkdir()
        (tmp_path / "link.conf").symlink_to(tmp_path / "folder.conf")
        names = [os.path.basename(path) for path in config_files(str(tmp_path), (".conf", ".json"))]
        assert names == [".conf", "a.json", "b.conf", "link.conf", "é.conf"]

    def test_no_folder_is_an_empty_folder(self) -> None:
        assert config_files("/no/such/folder", (".conf",)) == []

    def test_a_folder_that_cannot_be_listed(self, tmp_path: Path) -> None:
        path = write(tmp_path, "file", "")
        with pytest.raises(CNIError, match="Not a directory"):
            config_files(path, (".conf",))

    def test_plugins_of_the_folder_come_after_the_inlined(self, tmp_path: Path) -> None:
        path = write(tmp_path, "n.conflist", {"name": "net", "plugins": [{"type": "inlined"}]})
        write(tmp_path, "net/20.conf", '{ "type": "second" }')
        write(tmp_path, "net/10.conf", {"type": "first"})
        write(tmp_path, "net/30.json", {"type": "of another extension"})
        found = NetworkConfigList.from_file(path)
        assert [plugin.type for plugin in found.plugins] == ["inlined", "first", "second"]
        assert found.plugins[2].raw == b'{ "type": "second" }'

    def test_plugins_of_the_folder_alone(self, tmp_path: Path) -> None:
        path = write(tmp_path, "n.conflist", {"name": "net"})
        write(tmp_path, "net/10.conf", {"type": "first"})
        assert [plugin.type for plugin in NetworkConfigList.from_file(path).plugins] == ["first"]

    def test_only_inlined_plugins(self, tmp_path: Path) -> None:
        keys = {"name": "net", "loadOnlyInlinedPlugins": True, "plugins": [{"type": "inlined"}]}
        path = write(tmp_path, "n.conflist", keys)
        write(tmp_path, "net/10.conf", {"type": "first"})
        assert [plugin.type for plugin in NetworkConfigList.from_file(path).plugins] == ["inlined"]

    @pytest.mark.parametrize("folder", [True, False])
    def test_no_plugins_anywhere(self, tmp_path: Path, folder: bool) -> None:
        path = write(tmp_path, "n.conflist", {"name": "net"})
        if folder:
            (tmp_path / "net").mkdir()
        with pytest.raises(CNIError) as caught:
            NetworkConfigList.from_file(path)
        assert (caught.value.msg, caught.value.details) == ("no plugin configs found", f"in {path}")

    @pytest.mark.parametrize("name", ["", ".", "..", "../other", "/other", "a\0b"])
    def test_a_name_leads_to_no_other_folder(self, tmp_path: Path, name: str) -> None:
        folder = tmp_path / "net.d"
        path = write(folder, "n.conflist", {"name": name, "plugins": [{"type": "inlined"}]})
        write(folder, "here.conf", {"type": "here"})
        write(tmp_path, "there.conf", {"type": "there"})
        write(tmp_path, "other/x.conf", {"type": "other"})
        assert [plugin.type for plugin in NetworkConfigList.from_file(path).plugins] == ["inlined"]

    def test_a_broken_plugin_in_the_folder(self, tmp_path: Path) -> None:
        path = write(tmp_path, "n.conflist", {"name": "net", "plugins": [{"type": "inlined"}]})
        broken = write(tmp_path, "net/10.conf", "{}")
        with pytest.raises(CNIError) as caught:
            NetworkConfigList.from_file(path)
        assert str(caught.value) == f"error parsing configuration: missing 'type'; in {broken}"

    def test_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        path = write(tmp_path, "n.conflist", {"name": "net", "plugins": [{"type": "inlined"}]})
        write(tmp_path, "net", "")
        with pytest.raises(CNIError, match=f"^failed to read plugin config files in {tmp_path}/net: "):
            NetworkConfigList.from_file(path)


class TestLoad:
    def test_a_list_by_name(self, tmp_path: Path) -> None:
        write(tmp_path, "10.conflist", {"name": "other", "plugins": [{"type": "a"}]})
        write(tmp_path, "20.conflist", {"name": "net", "plugins": [{"type": "b"}]})
        write(tmp_path, "30.conflist", {"name": "net", "plugins": [{"type": "c"}]})
        assert load_network_list(str(tmp_path), "net").plugins[0].type == "b"

    @pytest.mark.parametrize("extension", ["conf", "json"])
    def test_a_single_configuration_becomes_a_list(self, tmp_path: Path, extension: str) -> None:
        write(tmp_path, "10.conflist", {"name": "other", "plugins": [{"type": "a"}]})
        write(tmp_path, f"10.{extension}", {"name": "net", "type": "b", "cniVersion": "0.2.0"})
        found = load_network_list(str(tmp_path), "net")
        assert (found.name, found.cni_version, found.plugins[0].type) == ("net", "0.2.0", "b")
        assert load_plugin(str(tmp_path), "net").type == "b"

    def test_a_list_is_preferred(self, tmp_path: Path) -> None:
        write(tmp_path, "10.conf", {"name": "net", "type": "single"})
        write(tmp_path, "90.conflist", {"name": "net", "plugins": [{"type": "listed"}]})
        assert load_network_list(str(tmp_path), "net").plugins[0].type == "listed"

    def test_conf_and_json_in_one_order(self, tmp_path: Path) -> None:
        write(tmp_path, "20.conf", {"name": "net", "type": "second"})
        write(tmp_path, "10.json", {"name": "net", "type": "first"})
        assert load_plugin(str(tmp_path), "net").type == "first"

    @pytest.mark.parametrize("load", [load_network_list, load_plugin])
    def test_nothing_there(self, tmp_path: Path, load: Any) -> None:
        write(tmp_path, "nested/10.conf", {"name": "net", "type": "a"})
        for folder in (str(tmp_path), "/no/such/folder"):
            with pytest.raises(NoConfigsFound) as caught:
                load(folder, "net")
            assert str(caught.value) == f"no net configurations found in {folder}"

    @pytest.mark.parametrize(
        "files",
        [
            {"10.conflist": {"name": "other", "plugins": [{"type": "a"}]}},
            {"10.conf": {"name": "other", "type": "a"}},
            {"10.conf": {"type": "a"}, "10.conflist": {"name": "other", "plugins": [{"type": "a"}]}},
        ],
    )
    def test_not_this_one(self, tmp_path: Path, files: dict[str, object]) -> None:
        for name, content in files.items():
            write(tmp_path, name, content)
        with pytest.raises(NotFound) as caught:
            load_network_list(str(tmp_path), "net")
        assert str(caught.value) == f'no net configuration with name "net" in {tmp_path}'
        assert (caught.value.folder, caught.value.name) == (str(tmp_path), "net")

    @pytest.mark.parametrize("broken", ["00.conflist", "00.conf", "00.json"])
    def test_a_broken_file_of_another_network_ends_the_search(self, tmp_path: Path, broken: str) -> None:
        path = write(tmp_path, broken, "{")
        write(tmp_path, "10.conf", {"name": "net", "type": "a"})
        with pytest.raises(CNIError, match=r"^error parsing configuration") as caught:
            load_network_list(str(tmp_path), "net")
        assert caught.value.details == f"in {path}"

    def test_an_unreadable_file(self, tmp_path: Path) -> None:
        (tmp_path / "10.conflist").symlink_to(tmp_path / "missing")
        with pytest.raises(CNIError, match=f"^error reading {tmp_path}/10.conflist: No such file or directory$"):
            load_network_list(str(tmp_path), "net")


class TestFace:
    @pytest.mark.parametrize("name", runtime.__all__)
    def test_every_public_name_is_there(self, name: str) -> None:
        assert getattr(runtime, name).__name__ == name
        assert name in dir(runtime)

    def test_another_name_is_not(self) -> None:
        with pytest.raises(AttributeError, match=r"cni.runtime.*nonsense"):
            _ = runtime.nonsense

    def test_loading_a_configuration_imports_little(self) -> None:
        script = "import sys; from cni.runtime import load_network_list; print(*sys.modules)"
        environ = {**os.environ, "PYTHONPATH": launcher.PACKAGES}  # -S: without the environment's packages
        done = subprocess.run(
            [sys.executable, "-S", "-c", script], env=environ, capture_output=True, text=True, check=True
        )
        dear = {"json", "re", "typing", "asyncio", "threading", "subprocess", "dataclasses", "enum", "socket"}
        assert not dear & set(done.stdout.split())
