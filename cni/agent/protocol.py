"""The protocol between launcher and agent, over a stream socket; src/launcher/agent.c implements it in C.

    launcher    request: the files that it sees, by the identity of its root folder and that folder's mount; what to
                run; the environment; and three descriptors: the current folder, the network namespace, a file with
                the content of stdin
    agent       answer: the exit code, and the output for stdout and for stderr

Whichever side seals that file owns the call: the agent when it begins; or the launcher, when it has waited for
CNI_AGENT_TIMEOUT (1 second) or the agent has hung up, and then it runs the plugin itself. So a call is executed exactly
once.
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
DECLINED = 256  # in place of an exit code: the launcher must run the plugin itself

_USUAL_SIZE = 16 << 10  # bytes; a larger buffer would be mapped again for each request
_DESCRIPTORS = 3  # passed with a request
_ANCILLARY_SIZE = socket.CMSG_SPACE(_DESCRIPTORS * _DESCRIPTOR.size)
_TRUNCATED = int(socket.MSG_CTRUNC)


class Refused(Exception):
    """The data is not a request or answer of this protocol, or one that is not served."""


class Request:
    """A call: `reference` names the plugin, `packages` the folder from which its launcher would import it.

    `files` identifies the files that the caller sees. `folder`, `netns` and `stdin` are descriptors, closed by `close`.
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
        """Return the configuration; None if it is larger than LARGEST_INPUT."""
        data = os.pread(self.stdin, _USUAL_SIZE, 0)
        if len(data) < _USUAL_SIZE:
            return data
        return os.pread(self.stdin, LARGEST_INPUT, 0) if os.fstat(self.stdin).st_size <= LARGEST_INPUT else None

    def close(self) -> None:
        for descriptor in (self.folder, self.netns, self.stdin):
            os.close(descriptor)


def claim(stdin: int) -> bool:
    """Claim the call with this file for the agent. Return False if its launcher has claimed it. Raises OSError."""
    try:
        fcntl.fcntl(stdin, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    except PermissionError:
        return False
    return True


def is_waiting(connection: _socket.socket) -> bool:
    """Return True if the launcher has not hung up."""
    poll = select.poll()
    poll.register(connection, 0)  # a hang-up is reported without being asked for
    return not poll.poll(0)


def files() -> bytes:
    """Return what identifies the files that this process sees: its root folder, and the mount which that is in.

    Every mount namespace has mounts of its own, so the mount distinguishes namespaces too (statx(2), STATX_MNT_ID).
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
    """Return the user id of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def peer_pid(connection: _socket.socket) -> int:
    """Return the id of the process at the other end, at the time when it began to listen."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[0])


def receive(connection: _socket.socket) -> Request | None:
    """Receive a request; None if the launcher hangs up without one. Raises Refused, OSError."""
    data, ancillary, flags, _ = connection.recvmsg(_USUAL_SIZE, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
    descriptors = [fd for _, _, passed in ancillary for (fd,) in _DESCRIPTOR.iter_unpack(passed)]
    try:
        if not data:
            return None
        if flags & _TRUNCATED or len(descriptors) != _DESCRIPTORS:
            raise Refused("a request without its descriptors")
        data += _rest(connection, _REQUEST.size - len(data))
        magic, seen_files, code_length, environment_length = _REQUEST.unpack_from(data)
        if magic != _MAGIC or code_length > LARGEST_CODE or environment_length > LARGEST_ENVIRONMENT:
            raise Refused("not a request, or one that is too large")
        data += _rest(connection, _REQUEST.size + code_length + environment_length - len(data))
        code_end = _REQUEST.size + code_length
        code = data[_REQUEST.size : code_end]
        if code.count(b"\0") < 2:
            raise Refused("a request that names no plugin")
        request = Request(seen_files, code, data[code_end : code_end + environment_length], descriptors)
        descriptors = []
        return request
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _rest(connection: _socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        chunk = connection.recv(length - len(data))
        if not chunk:
            raise Refused("an incomplete message")
        data += chunk
    return data


def answer(connection: _socket.socket, status: int, stdout: bytes = b"", stderr: bytes = b"") -> None:
    """Send the outcome of a call. Raises OSError if the launcher has hung up."""
    connection.sendall(_ANSWER.pack(_MAGIC, status, len(stdout), len(stderr)) + stdout + stderr)


# ---- the launcher's side, for checking whether an agent serves ----


def ask(
    connection: socket.socket, folders: list[str], reference: str, environ: dict[str, str], stdin: bytes
) -> tuple[int, bytes, bytes]:
    """Have the agent run a plugin, and return its exit code, stdout and stderr. Raises Refused, OSError."""
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
    magic, status, stdout_length, stderr_length = _ANSWER.unpack(_rest(connection, _ANSWER.size))
    if magic != _MAGIC:
        raise Refused("an answer in another version of the protocol")
    return status, _rest(connection, stdout_length), _rest(connection, stderr_length)
