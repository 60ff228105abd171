"""What launcher and agent say to each other, over a stream socket; src/launcher/launcher.c has the same in C.

    launcher    request: the files that it sees, by the identity of its root folder and that folder's mount, what to
                run, the environment, and three descriptors: the current folder, the network namespace, a file with
                what was on stdin
    agent       answer: the exit code, and what goes to stdout and to stderr

Who seals that file has the call: the agent when it begins, or the launcher where it has waited for a second, or the
agent has hung up, and does the work itself. So a call is never done twice, nor by nobody.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import select
import socket
import struct

from cni._core import fsdecode

_MAGIC = b"cni agent 2\n\0\0\0\0"
_FILES = struct.Struct("=IIQQ")
_REQUEST = struct.Struct(f"=16s {_FILES.size}s II")
_ANSWER = struct.Struct("=16s III")
_CREDENTIALS = struct.Struct("=iII")
_DESCRIPTOR = struct.Struct("=i")

LARGEST_CODE = 4096
LARGEST_ENVIRONMENT = 128 << 10
LARGEST_INPUT = 16 << 20
DECLINED = 256  # in place of an exit code: the launcher is to do it itself

_USUAL = 16 << 10  # bytes; more would have memory mapped for each request
_PASSED = 3  # descriptors
_ROOM = socket.CMSG_SPACE(_PASSED * _DESCRIPTOR.size)
_TRUNCATED = int(socket.MSG_CTRUNC)


class Refused(Exception):
    """What came is no request, or none that is served."""


class Request:
    """One call: `reference` is the plugin, `packages` where its launcher would import it from.

    `files` identifies what its caller sees. `folder`, `netns` and `stdin` are descriptors, closed by `close`.
    """

    __slots__ = ("environ", "files", "folder", "netns", "packages", "reference", "stdin")

    def __init__(self, files: bytes, code: bytes, environment: bytes, descriptors: list[int]) -> None:
        folders, reference = code.split(b"\0")[:2]
        self.files = files
        self.packages = fsdecode(folders).partition(":")[0]
        self.reference = fsdecode(reference)
        pairs = [pair.partition("=") for pair in fsdecode(environment).split("\0") if pair]
        self.environ = {name: value for name, _, value in pairs}
        self.folder, self.netns, self.stdin = descriptors

    def read_stdin(self) -> bytes | None:
        """The configuration; None where it is larger than what is read."""
        data = os.pread(self.stdin, _USUAL, 0)
        if len(data) < _USUAL:
            return data
        return os.pread(self.stdin, LARGEST_INPUT, 0) if os.fstat(self.stdin).st_size <= LARGEST_INPUT else None

    def close(self) -> None:
        for descriptor in (self.folder, self.netns, self.stdin):
            os.close(descriptor)


def claim(stdin: int) -> bool:
    """Whether the call with this file is the agent's from here on; otherwise its launcher has it. Raises OSError."""
    try:
        fcntl.fcntl(stdin, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    except PermissionError:
        return False
    return True


def is_waiting(connection: _socket.socket) -> bool:
    """Whether somebody is at the other end."""
    poll = select.poll()
    poll.register(connection, 0)  # a hang-up is told anyway
    return not poll.poll(0)


def files() -> bytes:
    """What identifies the files that this process sees: its root folder, and the mount that this is in.

    Every mount namespace has mounts of its own, so that tells these apart as well (statx(2), STATX_MNT_ID).
    """
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(root)
        with open(f"/proc/self/fdinfo/{root}") as information:
            fields = dict(line.split(":", 1) for line in information)
    finally:
        os.close(root)
    return _FILES.pack(os.major(status.st_dev), os.minor(status.st_dev), status.st_ino, int(fields["mnt_id"]))


def peer_uid(connection: _socket.socket) -> int:
    """Who is at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def peer_pid(connection: _socket.socket) -> int:
    """The process at the other end, as it was when it began to listen."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[0])


def receive(connection: _socket.socket) -> Request | None:
    """The request; None from a launcher that wants nothing. Raises Refused, OSError."""
    data, ancillary, flags, _ = connection.recvmsg(_USUAL, _ROOM, socket.MSG_CMSG_CLOEXEC)
    descriptors = [fd for _, _, passed in ancillary for (fd,) in _DESCRIPTOR.iter_unpack(passed)]
    try:
        if not data:
            return None
        if flags & _TRUNCATED or len(descriptors) != _PASSED:
            raise Refused("a request without its descriptors")
        data += _rest(connection, _REQUEST.size - len(data))
        magic, sees, code_length, environment_length = _REQUEST.unpack_from(data)
        if magic != _MAGIC or code_length > LARGEST_CODE or environment_length > LARGEST_ENVIRONMENT:
            raise Refused("no request, or one that is too large")
        data += _rest(connection, _REQUEST.size + code_length + environment_length - len(data))
        code_end = _REQUEST.size + code_length
        code = data[_REQUEST.size : code_end]
        if code.count(b"\0") < 2:
            raise Refused("a request that names no plugin")
        request = Request(sees, code, data[code_end : code_end + environment_length], descriptors)
        descriptors = []
        return request
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _rest(connection: _socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise Refused("half a message")
        data += more
    return data


def answer(connection: _socket.socket, status: int, stdout: bytes = b"", stderr: bytes = b"") -> None:
    """Tell what came of it. Raises OSError where nobody listens any more."""
    connection.sendall(_ANSWER.pack(_MAGIC, status, len(stdout), len(stderr)) + stdout + stderr)


# ---- the launcher's side, for who wants to know whether an agent serves ----


def ask(
    connection: socket.socket, folders: list[str], reference: str, environ: dict[str, str], stdin: bytes
) -> tuple[int, bytes, bytes]:
    """Have a plugin run; its exit code, stdout and stderr. Raises Refused, OSError."""
    code = f"{':'.join(folders)}\0{reference}\0".encode()
    environment = b"".join(f"{name}={value}\0".encode() for name, value in environ.items())
    descriptors = []
    try:
        for path in (".", "/proc/thread-self/ns/net"):
            descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        descriptors.append(os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.write(descriptors[-1], stdin)
        head = _REQUEST.pack(_MAGIC, files(), len(code), len(environment))
        socket.send_fds(connection, [head + code + environment], descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    magic, status, length, logged = _ANSWER.unpack(_rest(connection, _ANSWER.size))
    if magic != _MAGIC:
        raise Refused("an answer in another version of the protocol")
    return status, _rest(connection, length), _rest(connection, logged)
