"""cni.runtime.cache: what a runtime remembers of its attachments, in the Go library's files."""

from __future__ import annotations

import base64
import json
import os
import posix
import stat
from pathlib import Path
from typing import Any

import pytest

from cni.runtime import Attachment, ResultCache
from cni.spec.errors import CNIError

RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]}
# As the Go library wrote it (keys in its order, the configuration in base64).
GO_ENTRY = (
    '{"kind":"cniCacheV1","containerId":"cid","config":"eyJuYW1lIjoibmV0In0=","ifName":"eth0","networkName":"net",'
    '"netns":"/run/netns/x","cniArgs":[["K","V"]],"capabilityArgs":{"mac":"0a:58:00:00:00:01"},'
    '"result":{"cniVersion":"0.4.0","dns":{},"ips":[{"address":"10.1.2.3/24","version":"4"}]}}'
)


class Folder:
    """A cache, its folder, and what it warned of."""

    def __init__(self, path: Path) -> None:
        self.path = path / "results"
        self.warnings: list[str] = []
        self.cache = ResultCache(str(path), self.warnings.append)

    def write(self, name: str, content: str | bytes | dict[str, Any]) -> None:
        self.path.mkdir(exist_ok=True)
        text = json.dumps(content) if isinstance(content, dict) else content
        (self.path / name).write_bytes(text.encode() if isinstance(text, str) else text)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def entry(**changes: Any) -> dict[str, Any]:
    return {**json.loads(GO_ENTRY), **changes}


class TestStore:
    def test_layout(self, folder: Folder) -> None:
        attachment = Attachment(
            "net",
            "cid",
            "eth0",
            netns="/run/netns/x",
            config=b'{ "name": "net" }',
            args=[("K", "V"), ("K2", "<")],
            capability_args={"portMappings": [{"hostPort": 80}]},
        )
        folder.cache.store(attachment, RESULT)
        config = base64.b64encode(b'{ "name": "net" }').decode()
        assert (folder.path / "net-cid-eth0").read_text() == (
            f'{{"kind":"cniCacheV1","containerId":"cid","config":"{config}","ifName":"eth0","networkName":"net",'
            '"netns":"/run/netns/x","cniArgs":[["K","V"],["K2","\\u003c"]],'
            '"capabilityArgs":{"portMappings":[{"hostPort":80}]},'
            '"result":{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}}'
        )

    def test_what_is_empty_is_left_out(self, folder: Folder) -> None:
        folder.cache.store(Attachment("net", "cid", "eth0"), {})
        found = json.loads((folder.path / "net-cid-eth0").read_text())
        assert list(found) == ["kind", "containerId", "config", "ifName", "networkName"]

    def test_modes(self, tmp_path: Path) -> None:
        mask = os.umask(0)
        try:
            cache = ResultCache(str(tmp_path / "lib" / "cni"), print)
            cache.store(Attachment("net", "cid", "eth0"), RESULT)
        finally:
            os.umask(mask)
        modes = {
            str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
            for path in [tmp_path / "lib", *(tmp_path / "lib").rglob("*")]
        }
        assert modes == {
            "lib": 0o700,
            "lib/cni": 0o700,
            "lib/cni/results": 0o700,
            "lib/cni/results/net-cid-eth0": 0o600,
        }

    def test_a_relative_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        ResultCache("cache", print).store(Attachment("net", "cid", "eth0"), RESULT)
        assert (tmp_path / "cache/results/net-cid-eth0").exists()

    def test_replaces_whole(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        """Synced before it gets its name, and the name synced after: a crash leaves the old entry or the new."""
        folder.cache.store(Attachment("net", "cid", "eth0"), {"cniVersion": "0.4.0"})
        before = (folder.path / "net-cid-eth0").stat().st_ino
        done: list[str] = []
        fsync, rename = posix.fsync, posix.rename

        def watched_fsync(fd: int) -> None:
            done.append("sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
            fsync(fd)

        def watched_rename(source: str, target: str) -> None:
            done.append("rename")
            assert os.path.dirname(source) == os.path.dirname(target)
            rename(source, target)

        monkeypatch.setattr(posix, "fsync", watched_fsync)
        monkeypatch.setattr(posix, "rename", watched_rename)
        folder.cache.store(Attachment("net", "cid", "eth0"), RESULT)
        assert done == ["sync file", "rename", "sync folder"]
        assert (folder.path / "net-cid-eth0").stat().st_ino != before
        assert folder.names() == ["net-cid-eth0"]

    @pytest.mark.parametrize("step", ["fsync", "rename"])
    def test_a_failure_leaves_the_old_entry_alone(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        folder.write("net-cid-eth0", GO_ENTRY)

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(posix, step, fail)
        with pytest.raises(OSError, match="No space left"):
            folder.cache.store(Attachment("net", "cid", "eth0"), RESULT)
        assert folder.names() == ["net-cid-eth0"]
        assert (folder.path / "net-cid-eth0").read_text() == GO_ENTRY

    def test_one_file_an_interface(self, folder: Folder) -> None:
        for ifname in ("eth0", "eth1"):
            folder.cache.store(Attachment("net", "cid", ifname), RESULT)
        assert folder.names() == ["net-cid-eth0", "net-cid-eth1"]


class TestPath:
    @pytest.mark.parametrize("names", [("", "cid", "eth0"), ("net", "", "eth0"), ("net", "cid", "")])
    def test_a_missing_name(self, folder: Folder, names: tuple[str, str, str]) -> None:
        network, container_id, ifname = names
        with pytest.raises(CNIError) as caught:
            folder.cache.path(*names)
        assert str(caught.value) == (
            f'cache file path requires network name ("{network}"), container ID ("{container_id}"), '
            f'and interface name ("{ifname}")'
        )

    @pytest.mark.parametrize(
        ("names", "code", "msg"),
        [
            (("../../etc", "cid", "eth0"), 7, "invalid characters found in network name"),
            (("net", "/../../cid", "eth0"), 4, "invalid characters in containerID"),
            (("net", "c\0d", "eth0"), 4, "invalid characters in containerID"),
            (("net", "cid", "../eth0"), 4, "interface name contains / or : or whitespace characters"),
        ],
    )
    def test_no_name_leads_out_of_the_folder(
        self, folder: Folder, names: tuple[str, str, str], code: int, msg: str
    ) -> None:
        for operation in (
            lambda: folder.cache.path(*names),
            lambda: folder.cache.store(Attachment(*names), RESULT),
            lambda: folder.cache.result(*names, "1.0.0"),
            lambda: folder.cache.attachment(*names),
        ):
            with pytest.raises(CNIError) as caught:
                operation()
            assert (caught.value.code, caught.value.msg) == (code, msg)
        folder.cache.remove(*names)

    def test_names_of_older_libraries_are_found(self, folder: Folder) -> None:
        folder.write("my net-c:id-eth0", RESULT)
        found = folder.cache.result("my net", "c:id", "eth0", "1.0.0")
        assert found
        assert str(found.ips[0].address) == "10.1.2.3/24"


class TestResult:
    def test_nothing_cached(self, folder: Folder) -> None:
        assert folder.cache.result("net", "cid", "eth0", "1.0.0") is None
        assert folder.cache.attachment("net", "cid", "eth0") is None

    def test_an_unreadable_file_is_nothing(self, folder: Folder) -> None:
        (folder.path / "net-cid-eth0").mkdir(parents=True)
        assert folder.cache.result("net", "cid", "eth0", "1.0.0") is None
        assert folder.cache.attachment("net", "cid", "eth0") is None

    @pytest.mark.parametrize(
        ("version", "encoded"),
        [
            ("0.4.0", {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.2.3/24"}], "dns": {}}),
            ("1.1.0", {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}]}),
            ("0.2.0", {"cniVersion": "0.2.0", "ip4": {"ip": "10.1.2.3/24"}, "dns": {}}),
            ("", {"cniVersion": "0.1.0", "ip4": {"ip": "10.1.2.3/24"}, "dns": {}}),
        ],
    )
    def test_in_the_version_asked_for(self, folder: Folder, version: str, encoded: dict[str, Any]) -> None:
        folder.write("net-cid-eth0", GO_ENTRY)
        found = folder.cache.result("net", "cid", "eth0", version)
        assert found
        assert found.version == (version or "0.1.0")
        assert found.encode(found.version) == encoded

    @pytest.mark.parametrize("version", ["1.2.3", "0.2.0"])
    def test_that_cannot_be_converted(self, folder: Folder, version: str) -> None:
        folder.write("net-cid-eth0", entry(result={"cniVersion": "1.0.0"}))
        with pytest.raises(CNIError, match=f'^failed to convert cached result to config version "{version}": '):
            folder.cache.result("net", "cid", "eth0", version)

    @pytest.mark.parametrize("content", [{"cniVersion": "0.3.1"}, {"kind": "other", "cniVersion": "0.3.1"}])
    def test_a_bare_result_from_before_0_8_0(self, folder: Folder, content: dict[str, Any]) -> None:
        folder.write("net-cid-eth0", {**content, "ips": [{"version": "4", "address": "10.1.2.3/24"}]})
        found = folder.cache.result("net", "cid", "eth0", "1.0.0")
        assert found
        assert found.encode("1.0.0") == RESULT

    def test_a_bare_result_without_a_version(self, folder: Folder) -> None:
        folder.write("net-cid-eth0", {"ip4": {"ip": "10.1.2.3/24"}})
        found = folder.cache.result("net", "cid", "eth0", "1.0.0")
        assert found
        assert found.encode("1.0.0") == RESULT

    def test_an_entry_without_a_result(self, folder: Folder) -> None:
        content = entry()
        del content["result"]
        folder.write("net-cid-eth0", content)
        found = folder.cache.result("net", "cid", "eth0", "1.0.0")
        assert found
        assert found.encode("1.0.0") == {"cniVersion": "1.0.0"}

    @pytest.mark.parametrize("content", ["", GO_ENTRY[:-40], "[]", "\0" * 100])
    def test_a_damaged_entry(self, folder: Folder, content: str) -> None:
        folder.write("net-cid-eth0", content)
        with pytest.raises(CNIError):
            folder.cache.result("net", "cid", "eth0", "1.0.0")

    def test_an_unknown_version(self, folder: Folder) -> None:
        folder.write("net-cid-eth0", entry(result={"cniVersion": "0.4567.0"}))
        with pytest.raises(CNIError, match=r'^unsupported CNI result version "0.4567.0"$'):
            folder.cache.result("net", "cid", "eth0", "1.0.0")


class TestAttachment:
    def test_what_go_wrote(self, folder: Folder) -> None:
        folder.write("net-cid-eth0", GO_ENTRY)
        found = folder.cache.attachment("net", "cid", "eth0")
        assert found
        assert (found.network, found.container_id, found.ifname) == ("net", "cid", "eth0")
        assert (found.netns, found.config) == ("/run/netns/x", b'{"name":"net"}')
        assert (found.args, found.capability_args) == ([("K", "V")], {"mac": "0a:58:00:00:00:01"})

    def test_of_another_kind(self, folder: Folder) -> None:
        folder.write("net-cid-eth0", {"kind": "cniCacheV2"})
        with pytest.raises(CNIError, match=r'^read cached network "net" config has wrong kind: cniCacheV2$'):
            folder.cache.attachment("net", "cid", "eth0")

    @pytest.mark.parametrize("content", ["", "{", entry(config="!"), entry(cniArgs=[["a"]]), entry(netns=1)])
    def test_damaged(self, folder: Folder, content: str | dict[str, Any]) -> None:
        folder.write("net-cid-eth0", content)
        with pytest.raises(CNIError, match=r'^failed to unmarshal cached network "net" config: '):
            folder.cache.attachment("net", "cid", "eth0")


class TestAttachments:
    def test_no_folder(self, folder: Folder) -> None:
        assert folder.cache.attachments() == []

    def test_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "results").touch()
        with pytest.raises(NotADirectoryError):
            ResultCache(str(tmp_path), print).attachments()

    def test_sorted_by_file(self, folder: Folder) -> None:
        for name in ("b", "a", "B"):
            folder.cache.store(Attachment(name, "cid", "eth0"), RESULT)
        assert [each.network for each in folder.cache.attachments()] == ["B", "a", "b"]

    def test_a_file_on_its_way_is_none(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        def crash(source: str, target: str) -> None:
            names.append(os.path.basename(source))
            raise KeyboardInterrupt

        names: list[str] = []
        monkeypatch.setattr(posix, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            folder.cache.store(Attachment("net", "cid", "eth0"), RESULT)
        assert folder.names() == []
        folder.write(names[0], GO_ENTRY)
        assert folder.cache.attachments() == folder.cache.attachments("cid") == []

    def test_identity_is_the_entrys_not_the_files(self, folder: Folder) -> None:
        folder.cache.store(Attachment("a-b", "c", "eth0"), RESULT)
        folder.cache.store(Attachment("a", "c", "b-c-eth0"), RESULT)
        folder.write("a-b-d-eth0", entry(networkName="a", containerId="b-d"))
        found = [(each.network, each.container_id, each.ifname) for each in folder.cache.attachments()]
        assert found == [("a-b", "c", "eth0"), ("a", "b-d", "eth0"), ("a", "c", "b-c-eth0")]
        assert [each.network for each in folder.cache.attachments("c")] == ["a-b", "a"]
        assert folder.cache.attachments("d") == []
        assert folder.cache.attachments("b") == []

    def test_of_one_container_no_other_file_is_read(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.cache.store(Attachment("net", "mine", "eth0"), RESULT)
        folder.write("net-other-eth0", "damaged")
        folder.write("-mine-eth0", "damaged")
        folder.write("net-mine-", "damaged")
        assert [each.container_id for each in folder.cache.attachments("mine")] == ["mine"]
        assert folder.warnings == []

    def test_unusable_entries_are_left_out(self, folder: Folder) -> None:
        folder.write("a-empty-eth0", "")
        folder.write("b-cut-eth0", GO_ENTRY[:50])
        folder.write("c-bare-eth0", RESULT)
        folder.write("d-kind-eth0", entry(kind="x"))
        folder.write("e-noif-eth0", entry(ifName=""))
        folder.write("f-nonet-eth0", entry(networkName=""))
        (folder.path / "g-folder-eth0").mkdir()
        folder.write("h-good-eth0", entry(containerId="good"))
        assert [each.container_id for each in folder.cache.attachments()] == ["good"]
        first, second = folder.warnings
        assert f"{folder.path}/a-empty-eth0" in first
        assert "unexpected end of JSON input" in first
        assert f"{folder.path}/b-cut-eth0" in second


class TestRemove:
    def test_removes_one(self, folder: Folder) -> None:
        folder.cache.store(Attachment("net", "cid", "eth0"), RESULT)
        folder.cache.store(Attachment("net", "cid", "eth1"), RESULT)
        folder.cache.remove("net", "cid", "eth0")
        folder.cache.remove("net", "cid", "eth0")
        assert folder.names() == ["net-cid-eth1"]
        assert folder.warnings == []

    def test_a_failure_is_only_warned_of(self, folder: Folder) -> None:
        (folder.path / "net-cid-eth0").mkdir(parents=True)
        folder.cache.remove("net", "cid", "eth0")
        [warning] = folder.warnings
        assert warning.startswith('the cached result of network "net" stays: ')
