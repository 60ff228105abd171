"""Addresses that the agent listens on: a Unix socket, or a TCP port."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

DEFAULT_SOCKET = "/run/cni/agent.sock"  # as src/launcher has it

_LOOPBACK = "127.0.0.1"
_LARGEST_PORT = 65535


class Address:
    """A Unix socket's `path`, or, if that is empty, a TCP `port` of `host`."""

    __slots__ = ("host", "path", "port")

    def __init__(self, path: str = "", host: str = "", port: int = 0) -> None:
        self.path = path
        self.host = host
        self.port = port

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse HOST:PORT, [IPV6]:PORT, PORT (of the loopback address), or a path with a slash. Raises ValueError."""
        if "/" in text:
            return cls(path=os.path.abspath(text))
        host, colon, port = text.rpartition(":")
        host = host if colon else _LOOPBACK
        if ":" in host or "[" in host:
            host = host[1:-1] if host[0] == "[" and host[-1] == "]" else ""
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= _LARGEST_PORT:
            raise ValueError(f"{text!r} is neither HOST:PORT (such as 127.0.0.1:9464 or [::1]:9464) nor a path")
        return cls(host=host, port=int(port))

    def listen(self, backlog: int) -> socket.socket:
        """Open the listening socket. Raises OSError.

        A Unix socket has mode 0600, and its folder must not be writable for others.
        """
        if self.path:
            return _bind(self.path, backlog)
        try:
            return socket.create_server((self.host, self.port), family=self._family, backlog=backlog)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            text = f"another program has the port; `ss -ltnp sport = :{self.port}` shows which"
            raise OSError(errno.EADDRINUSE, text) from None

    def connect(self, timeout: float) -> socket.socket:
        """Open a connection whose operations time out after `timeout` seconds. Raises OSError."""
        connection = socket.socket(self._family, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect(self.path or (self.host, self.port))
        except OSError:
            connection.close()
            raise
        return connection

    def remove(self) -> None:
        """Remove the Unix socket that `listen` created."""
        if self.path:
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    @property
    def _family(self) -> socket.AddressFamily:
        if self.path:
            return socket.AF_UNIX
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _bind(path: str, backlog: int) -> socket.socket:
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, 0o700, exist_ok=True)
    status = os.stat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(errno.EPERM, f"others may write to the folder {folder}: give it mode 0700")
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous_umask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(previous_umask)
    listener.listen(backlog)
    return listener


def _remove_stale(path: str) -> None:
    """Remove the socket of an agent that has ended. Raises OSError if an agent listens, or if it is no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "the file is not a socket: move it away, or choose another path")
        Address(path).connect(1).close()
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    raise OSError(errno.EADDRINUSE, "an agent is listening there already")
