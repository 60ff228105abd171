"""The daemon's socket: many connections, none of which can keep another one waiting."""

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

_PATIENCE = 10.0  # seconds that a client may take to say what it wants
_FINISH = 5.0  # seconds that calls may go on when the daemon is to stop: most leases are got in one
_MOST = 4096  # connections
_CHUNK = 1 << 16
_PAUSE = 0.1


class Server:
    """Serves the `methods` on a listening socket, to root and to the daemon's own user."""

    def __init__(self, listener: socket.socket, methods: Mapping[str, Method], log: Callable[[str], object]) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._methods = methods
        self._log = log
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                self._log(f"a connection could not be accepted: {error.strerror}")
                await asyncio.sleep(_PAUSE)
                continue
            if len(self._connections) >= _MOST or not _is_trusted(connection):
                connection.close()
                continue
            task = asyncio.create_task(self._converse(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def close(self) -> None:
        """Let calls be answered that are under way, and break off what takes too long."""
        if self._connections:
            await asyncio.wait(self._connections, timeout=_FINISH)
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _converse(self, connection: socket.socket) -> None:
        calls: set[asyncio.Task[None]] = set()
        try:
            await self._take_calls(connection, calls)
        except ConnectionRefusedError:
            await asyncio.get_running_loop().sock_sendall(connection, rpc.REFUSED)
        except TimeoutError:
            self._log("a client did not say what it wants")
        except (OSError, ValueError) as error:
            self._log(f"a client does not speak as it should: {error}")
        finally:
            for task in calls:  # nobody is there to be answered
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            connection.close()

    async def _take_calls(self, connection: socket.socket, calls: set[asyncio.Task[None]]) -> None:
        """Start every call as it comes; return when the client is gone."""
        loop = asyncio.get_running_loop()
        session = rpc.Session()
        writing = asyncio.Lock()
        while True:
            waits = session.is_between_calls and calls
            async with asyncio.timeout(None if waits else _PATIENCE):
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
                async with asyncio.timeout(_PATIENCE):
                    await asyncio.get_running_loop().sock_sendall(connection, answer)
            except OSError as error:
                self._log(f"an answer could not be sent: {error}")

    async def _call(self, name: str, arguments: dict[str, Any]) -> tuple[Result | None, str]:
        """The method's result, and what went wrong."""
        method = self._methods.get(name)
        if method is None:
            return None, rpc.UNKNOWN_METHOD + name
        try:
            return await method(arguments), ""
        except (CNIError, OSError) as error:
            return None, str(error) or type(error).__name__
        except Exception as error:  # a fault of ours: one call's failure, not the daemon's
            self._log("".join(traceback.format_exception(error)))
            return None, f"internal error: {error!r}"


def _is_trusted(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())
