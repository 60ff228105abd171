"""Where the agent can be reached: a Unix socket, or a port."""

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
    """The file `path`, or `port` of `host` where there is no path."""

    __slots__ = ("host", "path", "port")

    def __init__(self, path: str = "", host: str = "", port: int = 0) -> None:
        self.path = path
        self.host = host
        self.port = port

    @classmethod
    def parse(cls, text: str) -> Address:
        """HOST:PORT, [IPV6]:PORT, PORT of the loopback address, or a path, which has a slash. Raises ValueError."""
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
        """The listening socket. A file has mode 0600, in a folder where nobody else may put things. Raises OSError."""
        if self.path:
            return _bound(self.path, backlog)
        try:
            return socket.create_server((self.host, self.port), family=self._family, backlog=backlog)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            text = f"another program has the port; `ss -ltnp sport = :{self.port}` tells which"
            raise OSError(errno.EADDRINUSE, text) from None

    def connect(self, seconds: float) -> socket.socket:
        """A connection that waits no longer than that for anything. Raises OSError."""
        connection = socket.socket(self._family, socket.SOCK_STREAM)
        connection.settimeout(seconds)
        try:
            connection.connect(self.path or (self.host, self.port))
        except OSError:
            connection.close()
            raise
        return connection

    def remove(self) -> None:
        """Take away the file that `listen` has made."""
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


def _bound(path: str, backlog: int) -> socket.socket:
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, 0o700, exist_ok=True)
    status = os.stat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(errno.EPERM, f"{folder} is a folder in which others may put things: give it mode 0700")
    _remove_dead(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(backlog)
    return listener


def _remove_dead(path: str) -> None:
    """Take away the socket of an agent that is no more. Raises OSError if there is one, or something else."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "something else than a socket is there: move it away, or name another path")
        Address(path).connect(1).close()
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    raise OSError(errno.EADDRINUSE, "an agent listens there already")
