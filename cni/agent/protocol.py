"""What launcher and agent say to each other, over a stream socket; src/_cnicore/launcher.c has the same in C.

    agent       hello: the files it sees, by the identity of its mount namespace and root folder
    launcher    request: what to run, the environment, and three descriptors: the current folder, the network
                namespace, a file with what was on stdin
    agent       answer: the exit code, and what goes to stdout and to stderr

A launcher that sees other files goes away after the hello, and does the work itself. So it does where it gets no hello
within a second: as long as it has sent no request nothing is done for it.
"""

from __future__ import annotations

import os
import socket
import struct

from cni._core import fsdecode

_MAGIC = b"cni agent 1\n\0\0\0\0"
_HELLO = struct.Struct("=16s IIQ IIQ")
_REQUEST = struct.Struct("=16s II")
_ANSWER = struct.Struct("=III")
_CREDENTIALS = struct.Struct("=iII")

LARGEST_CODE = 4096
LARGEST_ENVIRONMENT = 128 << 10
LARGEST_INPUT = 16 << 20
DECLINED = 256  # in place of an exit code: the launcher is to do it itself

_DESCRIPTORS = 3
_USUAL = 16 << 10  # bytes; more would have memory mapped for each request


class Refused(Exception):
    """What came is no request, or none that is served."""


class Request:
    """One call: `reference` is the plugin, `folders` where its launcher would import it from.

    `folder`, `netns` and `stdin` are descriptors, closed by `close`.
    """

    __slots__ = ("environ", "folder", "folders", "netns", "reference", "stdin")

    def __init__(self, code: bytes, environment: bytes, descriptors: list[int]) -> None:
        folders, reference = code.split(b"\0")[:2]
        self.folders = fsdecode(folders).split(":")
        self.reference = fsdecode(reference)
        pairs = (pair.partition("=") for pair in fsdecode(environment).split("\0") if pair)
        self.environ = {name: value for name, _, value in pairs}
        self.folder, self.netns, self.stdin = descriptors

    @property
    def is_large(self) -> bool:
        """Whether the configuration is more than is read."""
        return os.fstat(self.stdin).st_size > LARGEST_INPUT

    def read_stdin(self) -> bytes:
        return os.pread(self.stdin, LARGEST_INPUT, 0)

    def close(self) -> None:
        for descriptor in (self.folder, self.netns, self.stdin):
            os.close(descriptor)


def hello() -> bytes:
    """What this process says to who connects."""
    return _HELLO.pack(_MAGIC, *_identity("/proc/self/ns/mnt"), *_identity("/"))


def _identity(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return os.major(status.st_dev), os.minor(status.st_dev), status.st_ino


def peer_uid(connection: socket.socket) -> int:
    """Who is at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def peer_pid(connection: socket.socket) -> int:
    """The process at the other end, as it was when it began to listen."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[0])


def receive(connection: socket.socket) -> Request | None:
    """The request; None from a launcher that wants nothing. Raises Refused, OSError."""
    data, descriptors, flags, _ = socket.recv_fds(connection, _USUAL, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    try:
        if not data:
            return None
        if flags & socket.MSG_CTRUNC or len(descriptors) != _DESCRIPTORS:
            raise Refused("a request without its descriptors")
        data += _rest(connection, _REQUEST.size - len(data))
        magic, code_length, environment_length = _REQUEST.unpack_from(data)
        if magic != _MAGIC or code_length > LARGEST_CODE or environment_length > LARGEST_ENVIRONMENT:
            raise Refused("no request, or one that is too large")
        data += _rest(connection, _REQUEST.size + code_length + environment_length - len(data))
        code_end = _REQUEST.size + code_length
        code = data[_REQUEST.size : code_end]
        if code.count(b"\0") < 2:
            raise Refused("a request that names no plugin")
        request = Request(code, data[code_end : code_end + environment_length], descriptors)
        descriptors = []
        return request
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _rest(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise Refused("half a request")
        data += more
    return data


def answer(connection: socket.socket, status: int, stdout: bytes = b"", stderr: bytes = b"") -> None:
    """Tell what came of it. Raises OSError where nobody listens any more."""
    connection.sendall(_ANSWER.pack(status, len(stdout), len(stderr)) + stdout + stderr)


# ---- the launcher's side, for who wants to know whether an agent serves ----


def is_same_version(greeting: bytes) -> bool:
    """Whether a hello is one of this protocol."""
    return greeting.startswith(_MAGIC)


def ask(
    connection: socket.socket, folders: list[str], reference: str, environ: dict[str, str], stdin: bytes
) -> tuple[int, bytes]:
    """Have a plugin run, after the hello; its exit code and stdout. Raises Refused, OSError."""
    code = f"{':'.join(folders)}\0{reference}\0".encode()
    environment = b"".join(f"{name}={value}\0".encode() for name, value in environ.items())
    descriptors = []
    try:
        for path in (".", "/proc/thread-self/ns/net"):
            descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        descriptors.append(os.memfd_create("stdin"))
        os.write(descriptors[-1], stdin)
        head = _REQUEST.pack(_MAGIC, len(code), len(environment))
        socket.send_fds(connection, [head + code + environment], descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    status, length, _ = _ANSWER.unpack(_rest(connection, _ANSWER.size))
    return status, _rest(connection, length)
