"""The daemon's socket: many connections, none of which can block another one."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import traceback

from cni.spec.errors import CNIError
from cni_plugins.ipam.dhcp import rpc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Any

    from cni.spec.result import Result

    Method = Callable[[dict[str, Any]], Awaitable[Result | None]]

_CLIENT_TIMEOUT = 10.0  # seconds for a client to send a call, and to receive the answer
_STOP_TIMEOUT = 5.0  # seconds until running calls are cancelled: most leases are acquired within one second
_MAX_CONNECTIONS = 4096
_CHUNK = 1 << 16
_ACCEPT_PAUSE = 0.1  # seconds after an error


class Server:
    """Serves the `methods` on a listening socket, to root and to the daemon's own user."""

    def __init__(self, listener: socket.socket, methods: Mapping[str, Method], log: Callable[[str], object]) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._methods = methods
        self._log = log
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Accept connections until this task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                self._log(f"cannot accept a connection: {error.strerror}")
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            if len(self._connections) >= _MAX_CONNECTIONS or not _is_trusted(connection):
                connection.close()
                continue
            task = asyncio.create_task(self._handle(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def close(self) -> None:
        """Wait for running calls, and cancel them after a timeout."""
        if self._connections:
            await asyncio.wait(self._connections, timeout=_STOP_TIMEOUT)
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _handle(self, connection: socket.socket) -> None:
        calls: set[asyncio.Task[None]] = set()
        try:
            await self._take_calls(connection, calls)
        except ConnectionRefusedError:
            await asyncio.get_running_loop().sock_sendall(connection, rpc.REFUSED)
        except TimeoutError:
            self._log(f"a client has not sent a complete call for {_CLIENT_TIMEOUT:g} seconds")
        except (OSError, ValueError) as error:
            self._log(f"cannot read from a client: {error}")
        finally:
            for task in calls:  # the client is gone
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            connection.close()

    async def _take_calls(self, connection: socket.socket, calls: set[asyncio.Task[None]]) -> None:
        """Start every call when it is received. Return when the client is gone."""
        loop = asyncio.get_running_loop()
        session = rpc.Session()
        writing = asyncio.Lock()
        while True:
            is_waiting = session.is_between_calls and calls
            async with asyncio.timeout(None if is_waiting else _CLIENT_TIMEOUT):
                data = await loop.sock_recv(connection, _CHUNK)
            if not data:
                return
            reply, new = session.feed(data)
            if reply:
                await loop.sock_sendall(connection, reply)
            for head, arguments in new:
                task = asyncio.create_task(self._answer(connection, session, writing, head, arguments))
                calls.add(task)
                task.add_done_callback(calls.discard)

    async def _answer(
        self,
        connection: socket.socket,
        session: rpc.Session,
        writing: asyncio.Lock,
        head: dict[str, Any],
        arguments: dict[str, Any],
    ) -> None:
        result, problem = await self._call(head.get("ServiceMethod", ""), arguments)
        async with writing:
            answer = session.refuse(head, problem) if problem else session.answer(head, result)
            try:
                async with asyncio.timeout(_CLIENT_TIMEOUT):
                    await asyncio.get_running_loop().sock_sendall(connection, answer)
            except OSError as error:
                self._log(f"cannot send an answer: {error}")

    async def _call(self, name: str, arguments: dict[str, Any]) -> tuple[Result | None, str]:
        """Call a method. Returns its result, and the error's text or ""."""
        method = self._methods.get(name)
        if method is None:
            return None, rpc.UNKNOWN_METHOD + name
        try:
            return await method(arguments), ""
        except (CNIError, OSError) as error:
            return None, str(error) or type(error).__name__
        except Exception as error:  # a bug must end one call, not the daemon
            self._log("".join(traceback.format_exception(error)))
            return None, f"internal error: {error!r}"


def _is_trusted(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())
