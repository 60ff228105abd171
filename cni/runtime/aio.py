"""The operations as coroutines.

Each operation runs in a thread of its own, since it waits for plugins and syncs results to disk. Cancelling it kills
the running plugin, starts no other and returns when the thread has ended. As after any failed ADD or DEL nothing is
rolled back, and the caller must call `delete`.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

from cni.runtime.executors import Exec
from cni.runtime.operations import CNI, _to_stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeVar

    from cni.runtime.attachment import Attachment, RuntimeConf
    from cni.runtime.operations import Network
    from cni.spec.result import Result
    from cni.spec.version import PluginInfo

    T = TypeVar("T")

# The interval, in seconds, at which a cancelled operation looks for a plugin to kill.
_POLL_INTERVAL = 0.01


class AsyncCNI:
    """`CNI` for asyncio: the same arguments, operations and errors. Operations may run concurrently.

    An operation's `timeout` raises DeadlineExceeded; `asyncio.timeout` cancels the operation and raises TimeoutError.
    """

    def __init__(
        self,
        path: Sequence[str],
        cache_dir: str = "",
        exec: Exec | None = None,
        *,
        warn: Callable[[str], object] = _to_stderr,
        trace: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        self._exec = exec or Exec()
        self._cni = CNI(path, cache_dir, self._exec, warn=warn, trace=trace)

    def __repr__(self) -> str:
        return repr(self._cni).replace("CNI", "AsyncCNI", 1)

    async def add(self, network: Network, rt: RuntimeConf, timeout: float | None = None) -> Result:
        """Attach the container, as `CNI.add`."""
        return await self._run(lambda cni: cni.add(network, rt, timeout))

    async def check(self, network: Network, rt: RuntimeConf, timeout: float | None = None) -> None:
        """Check the attachment, as `CNI.check`."""
        await self._run(lambda cni: cni.check(network, rt, timeout))

    async def delete(self, network: Network, rt: RuntimeConf, timeout: float | None = None) -> None:
        """Detach the container, as `CNI.delete`."""
        await self._run(lambda cni: cni.delete(network, rt, timeout))

    async def delete_all(
        self, attachments: Iterable[tuple[Network, RuntimeConf]], timeout: float | None = None
    ) -> None:
        """Detach many containers, as `CNI.delete_all`."""
        await self._run(lambda cni: cni.delete_all(attachments, timeout))

    async def gc(
        self, network: Network, valid: Iterable[RuntimeConf] | None = None, timeout: float | None = None
    ) -> None:
        """Delete stale attachments, as `CNI.gc`."""
        await self._run(lambda cni: cni.gc(network, valid, timeout))

    async def status(self, network: Network, timeout: float | None = None) -> None:
        """Ask the plugins whether they are ready, as `CNI.status`."""
        await self._run(lambda cni: cni.status(network, timeout))

    async def validate(self, network: Network, timeout: float | None = None) -> list[str]:
        """Check the plugins' versions, as `CNI.validate`."""
        return await self._run(lambda cni: cni.validate(network, timeout))

    async def version_info(self, plugin_type: str, timeout: float | None = None) -> PluginInfo:
        """Ask a plugin which versions it supports, as `CNI.version_info`."""
        return await self._run(lambda cni: cni.version_info(plugin_type, timeout))

    async def cached_result(self, network: Network, rt: RuntimeConf) -> Result | None:
        """Return the result of ADD, as `CNI.cached_result`."""
        return await self._run(lambda cni: cni.cached_result(network, rt))

    async def cached_config(self, network: Network, rt: RuntimeConf) -> tuple[bytes, RuntimeConf] | None:
        """Return the configuration and arguments of ADD, as `CNI.cached_config`."""
        return await self._run(lambda cni: cni.cached_config(network, rt))

    async def cached_attachments(self, container_id: str = "") -> list[Attachment]:
        """Return the cached attachments, as `CNI.cached_attachments`."""
        return await self._run(lambda cni: cni.cached_attachments(container_id))

    async def _run(self, operation: Callable[[CNI], T]) -> T:
        cni = copy.copy(self._cni)
        plugins = cni._exec = _StoppableExec(self._exec)
        # Not one of the loop's few threads: operations would wait for one another, and delay other users of the pool.
        thread = ThreadPoolExecutor(max_workers=1)
        call = contextvars.copy_context().run  # tracing libraries keep the span in a context variable
        work = asyncio.get_running_loop().run_in_executor(thread, call, plugins.run, lambda: operation(cni))
        thread.shutdown(wait=False)  # the thread ends with this call
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            plugins.stopped = True
            while not work.done():
                plugins.kill()
                await asyncio.wait((work,), timeout=_POLL_INTERVAL)
            if not work.cancelled():
                work.exception()  # retrieved, so that asyncio does not log it; the caller gets CancelledError
            raise


class _Stopped(BaseException):
    """The operation was cancelled. Not an Exception, so that it is not taken for a plugin's failure."""


class _StoppableExec(Exec):
    """Runs plugins from one thread, which another thread can stop."""

    def __init__(self, inner: Exec) -> None:
        self.stopped = False
        self.at_once = inner.at_once  # above 1, plugins that are running are waited for, not killed
        self._inner = inner
        self._thread = 0

    def run(self, operation: Callable[[], T]) -> T:
        self._thread = threading.get_native_id()
        try:
            return operation()
        finally:
            self._thread = 0

    def kill(self) -> None:
        """Kill the processes that the thread has started and not yet reaped."""
        for pid in self._children():
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                # Still a child: so the descriptor is not that of a later process with the same number.
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
            return []  # the thread has ended, or the kernel lacks CONFIG_PROC_CHILDREN: then the plugin is waited for

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
