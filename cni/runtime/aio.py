"""The operations as coroutines.

Each runs in a thread of its own, since plugins are waited for and results synced to disk. Cancelling one kills the
plugin that is running, starts no other and returns when its thread has ended: as after any failed ADD or DEL, what
was done is not undone, and the caller is to ``delete``.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

from cni.runtime.operations import CNI, Exec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, TypeVar

    from cni.runtime.cache import Attachment
    from cni.runtime.conf import NetworkConfigList, PluginConfig
    from cni.runtime.operations import RuntimeConf
    from cni.spec.result import Result
    from cni.spec.version import PluginInfo

    Network = NetworkConfigList | PluginConfig
    T = TypeVar("T")

# How often, in seconds, a cancelled operation looks for the plugin it is to kill.
_PATIENCE = 0.01


class AsyncCNI:
    """`CNI` for asyncio: the same arguments, operations and errors. Operations may run side by side."""

    def __init__(self, path: Sequence[str], cache_dir: str = "", exec: Exec | None = None, **options: Any) -> None:
        self._exec = exec or Exec()
        self._make: Callable[[Exec], CNI] = lambda exec: CNI(path, cache_dir, exec, **options)

    async def add(self, network: Network, rt: RuntimeConf, timeout: float | None = None) -> Result:
        return await self._run(lambda cni: cni.add(network, rt, timeout))

    async def check(self, network: Network, rt: RuntimeConf, timeout: float | None = None) -> None:
        await self._run(lambda cni: cni.check(network, rt, timeout))

    async def delete(self, network: Network, rt: RuntimeConf, timeout: float | None = None) -> None:
        await self._run(lambda cni: cni.delete(network, rt, timeout))

    async def delete_all(
        self, attachments: Iterable[tuple[Network, RuntimeConf]], timeout: float | None = None
    ) -> None:
        await self._run(lambda cni: cni.delete_all(attachments, timeout))

    async def gc(
        self,
        network: Network,
        valid_attachments: Iterable[tuple[str, str]] | None = None,
        timeout: float | None = None,
    ) -> None:
        await self._run(lambda cni: cni.gc(network, valid_attachments, timeout))

    async def status(self, network: Network, timeout: float | None = None) -> None:
        await self._run(lambda cni: cni.status(network, timeout))

    async def validate(self, network: Network, timeout: float | None = None) -> list[str]:
        return await self._run(lambda cni: cni.validate(network, timeout))

    async def version_info(self, plugin_type: str, timeout: float | None = None) -> PluginInfo:
        return await self._run(lambda cni: cni.version_info(plugin_type, timeout))

    async def cached_result(self, network: Network, rt: RuntimeConf) -> Result | None:
        return await self._run(lambda cni: cni.cached_result(network, rt))

    async def cached_config(self, network: Network, rt: RuntimeConf) -> tuple[bytes, RuntimeConf] | None:
        return await self._run(lambda cni: cni.cached_config(network, rt))

    async def cached_attachments(self, container_id: str = "") -> list[Attachment]:
        return await self._run(lambda cni: cni.cached_attachments(container_id))

    async def _run(self, operation: Callable[[CNI], T]) -> T:
        plugins = _StoppableExec(self._exec)
        # Not one of the loop's few threads: operations would wait for one another, and keep others waiting.
        thread = ThreadPoolExecutor(max_workers=1)
        call = contextvars.copy_context().run  # where tracing libraries keep the span
        work = asyncio.get_running_loop().run_in_executor(
            thread, call, plugins.run, lambda: operation(self._make(plugins))
        )
        thread.shutdown(wait=False)  # it ends with this call
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            plugins.stopped = True
            while not work.done():
                plugins.kill()
                await asyncio.wait((work,), timeout=_PATIENCE)
            if not work.cancelled():
                work.exception()  # taken note of; that it was cancelled is what the caller gets to know
            raise


class _Stopped(BaseException):
    """The operation was cancelled. Not an Exception: no plugin's failure is to be made of it."""


class _StoppableExec(Exec):
    """Plugins started from one thread, for another to stop."""

    def __init__(self, inner: Exec) -> None:
        self.stopped = False
        self.at_once = inner.at_once  # if it is more than 1, what has been started is waited for, not killed
        self._inner = inner
        self._thread = 0

    def run(self, operation: Callable[[], T]) -> T:
        self._thread = threading.get_native_id()
        try:
            return operation()
        finally:
            self._thread = 0

    def kill(self) -> None:
        """Kill what the thread has started and not yet reaped."""
        for pid in self._children():
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                # Still ours: so the descriptor is the child's, not that of a later process with its number.
                if pid in self._children():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)

    def _children(self) -> list[int]:
        try:
            with open(f"/proc/self/task/{self._thread}/children") as file:
                return [int(pid) for pid in file.read().split()]
        except OSError:
            return []  # the thread is through; or a kernel without CONFIG_PROC_CHILDREN, where the plugin is waited for

    def find(self, plugin_type: str, path: Sequence[str]) -> str:
        return self._inner.find(plugin_type, path)

    def execute(self, path: str, config: bytes, environ: Mapping[str, str], timeout: float | None) -> bytes:
        self._check()
        return self._inner.execute(path, config, environ, timeout)

    def probe_version(self, path: str, timeout: float | None) -> PluginInfo:
        self._check()
        return self._inner.probe_version(path, timeout)

    def _check(self) -> None:
        if self.stopped:
            raise _Stopped
