"""cni.runtime.aio: the operations as coroutines."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from cni.runtime import CNI, AsyncCNI, DeadlineExceeded, Exec, NetworkConfigList, RuntimeConf
from cni.spec.errors import CNIError
from cni.spec.version import PluginInfo
from tests.waiting import LIMIT

RT = RuntimeConf("cid", "/run/netns/x", "eth0")


def config_list(*types: str, version: str = "1.1.0") -> NetworkConfigList:
    keys = {"name": "net", "cniVersion": version, "plugins": [{"type": each} for each in types]}
    return NetworkConfigList.from_bytes(json.dumps(keys).encode())


class Folder:
    """A folder with plugins that are shell scripts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plugin("answers", 'echo \'{"ips":[{"address":"10.1.2.3/24"}]}\'')
        self.plugin("fails", 'echo \'{"code": 11, "msg": "busy"}\'; exit 1')
        self.plugin("lasts", f"echo $$ > {path}/pid; exec sleep 3600")
        self.cni = AsyncCNI([str(path)], str(path))

    def plugin(self, name: str, script: str) -> None:
        file = self.path / name
        file.write_text(f'#!/bin/sh\necho "$CNI_COMMAND $(basename $0)" >> {self.path}/log\n{script}\n')
        file.chmod(0o755)

    @property
    def log(self) -> list[str]:
        path = self.path / "log"
        return path.read_text().splitlines() if path.exists() else []

    async def started(self) -> int:
        """The process id of `lasts`, once it is there."""
        while not (text := (self.path / "pid").read_text() if (self.path / "pid").exists() else ""):
            await asyncio.sleep(0.005)
        return int(text)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_operations(folder: Folder) -> None:
    async def work() -> None:
        cni, network = folder.cni, config_list("answers")
        result = await cni.add(network, RT)
        assert str(result.ips[0].address) == "10.1.2.3/24"
        cached = await cni.cached_result(network, RT)
        assert cached == result
        config = await cni.cached_config(network, RT)
        assert config
        assert config[0] == network.raw
        assert [each.container_id for each in await cni.cached_attachments()] == ["cid"]
        await cni.check(network, RT)
        await cni.status(network)
        await cni.delete(network, RT)
        await cni.gc(network, [])
        assert await cni.cached_attachments("cid") == []

    asyncio.run(work())
    assert folder.log == [f"{verb} answers" for verb in ("ADD", "CHECK", "STATUS", "DEL", "GC")]


def test_versions(folder: Folder) -> None:
    folder.plugin("tells", 'echo \'{"cniVersion":"1.1.0","supportedVersions":["0.4.0"]}\'')
    assert asyncio.run(folder.cni.version_info("tells")).supported == ("0.4.0",)
    assert asyncio.run(folder.cni.validate(config_list("tells", version="0.4.0"))) == []


def test_errors(folder: Folder) -> None:
    with pytest.raises(CNIError) as caught:
        asyncio.run(folder.cni.add(config_list("answers", "fails"), RT))
    assert str(caught.value) == 'plugin type="fails" failed (add): busy'
    assert caught.value.code == 11


def test_side_by_side(folder: Folder) -> None:
    many = 40  # more than the threads that asyncio has of its own, on however many processors
    meeting = threading.Barrier(many, timeout=LIMIT)

    class Meets(Exec):
        def find(self, plugin_type: str, path: object) -> str:
            return plugin_type

        def execute(self, path: str, config: bytes, environ: Mapping[str, str], timeout: float | None) -> bytes:
            meeting.wait()
            return b"{}"

    async def work() -> None:
        cni = AsyncCNI([], str(folder.path), Meets())
        confs = [RuntimeConf(f"cid{number}", "", "eth0") for number in range(many)]
        await asyncio.gather(*(cni.add(config_list("a"), rt) for rt in confs))
        assert len(await cni.cached_attachments()) == many

    asyncio.run(work())


def test_the_trace_is_the_callers(folder: Folder) -> None:
    """Tracing libraries keep the span in a context variable."""
    span: contextvars.ContextVar[str] = contextvars.ContextVar("span")
    sent: list[str] = []

    class Notes(Exec):
        def find(self, plugin_type: str, path: object) -> str:
            return plugin_type

        def execute(self, path: str, config: bytes, environ: Mapping[str, str], timeout: float | None) -> bytes:
            sent.append(environ["TRACEPARENT"])
            return b"{}"

    async def work() -> None:
        cni = AsyncCNI([], str(folder.path), Notes(), trace=lambda: {"traceparent": span.get()})
        for number in ("1", "2"):
            span.set(f"00-{number * 32}-{number * 16}-01")
            await cni.status(config_list("a"))

    asyncio.run(work())
    assert sent == [f"00-{number * 32}-{number * 16}-01" for number in ("1", "2")]


def test_timeout(folder: Folder) -> None:
    for operation in (folder.cni.add, folder.cni.delete, folder.cni.check):
        with pytest.raises(DeadlineExceeded, match="(ADD|DEL|CHECK) of .*/lasts was killed: .* 0.2 s"):
            asyncio.run(operation(config_list("lasts"), RT, timeout=0.2))


@pytest.mark.parametrize("operation", ["add", "check", "delete", "gc", "status", "validate", "version_info"])
def test_cancelling_kills_the_plugin(folder: Folder, operation: str) -> None:
    """And starts no other: not even an operation that goes on past failures."""
    network = config_list("lasts", "answers")

    async def work() -> None:
        cni = folder.cni
        calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "add": lambda: cni.add(network, RT),
            "check": lambda: cni.check(network, RT),
            "delete": lambda: cni.delete(config_list("answers", "lasts"), RT),
            "gc": lambda: cni.gc(network, []),
            "status": lambda: cni.status(network),
            "validate": lambda: cni.validate(network),
            "version_info": lambda: cni.version_info("lasts"),
        }
        task = asyncio.create_task(calls[operation]())
        pid = await folder.started()
        task.cancel()
        await asyncio.wait([task], timeout=LIMIT)
        assert task.cancelled()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(work())
    assert [line.split()[1] for line in folder.log] == ["lasts"]


def test_cancelling_leaves_others_alone(folder: Folder) -> None:
    async def work() -> None:
        other = RuntimeConf("other", "", "eth0")
        folder.plugin("waits", f"while [ ! -e {folder.path}/go ]; do sleep 0.01; done; echo '{{}}'")
        stays = asyncio.create_task(folder.cni.add(config_list("waits"), other))
        goes = asyncio.create_task(folder.cni.add(config_list("lasts"), RT))
        await folder.started()
        goes.cancel()
        with pytest.raises(asyncio.CancelledError):
            await goes
        (folder.path / "go").touch()
        assert await stays

    asyncio.run(work())


def test_a_time_out_of_asyncio(folder: Folder) -> None:
    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await folder.cni.add(config_list("lasts"), RT)
        assert not (folder.path / "results").exists()

    asyncio.run(work())


def test_cancelled_before_it_began(folder: Folder) -> None:
    async def work() -> None:
        task = asyncio.create_task(folder.cni.add(config_list("answers"), RT))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())


def test_an_own_exec_starts_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = threading.Event()

    class Slow(Exec):
        calls = 0

        def find(self, plugin_type: str, path: object) -> str:
            return plugin_type

        def execute(self, path: str, config: bytes, environ: Mapping[str, str], timeout: float | None) -> bytes:
            self.calls += 1
            failing.wait(LIMIT)
            raise CNIError("failed")

        def probe_version(self, path: str, timeout: float | None) -> PluginInfo:
            raise AssertionError

    exec = Slow()
    # It fails once the operation knows that it is cancelled.
    monkeypatch.setattr("cni.runtime.aio._StoppableExec.kill", lambda _: failing.set())

    async def work() -> None:
        task = asyncio.create_task(AsyncCNI([], str(tmp_path), exec).gc(config_list("a", "b"), []))
        while not exec.calls:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert exec.calls == 1


def test_same_operations_as_the_blocking_face() -> None:
    def names(cls: type) -> set[str]:
        return {name for name in vars(cls) if not name.startswith("_")}

    assert names(AsyncCNI) == names(CNI)
