"""A minimal D-Bus client for calls of a system service's methods: all arguments are strings.

    with Bus("unix:path=/run/dbus/system_bus_socket") as bus:
        (answer,) = bus.call("org.example", "/org/example", "org.example.Interface", "Method", "argument")

The existing libraries cost more to import than a whole plugin (decision 6). The protocol is that of the D-Bus
specification, version 1; addresses of the kinds unix:path= and unix:abstract= are supported.
"""

from __future__ import annotations

import _socket
import posix

from cni._core import fsdecode, fsencode, observed
from cni.spec.errors import CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    Value = str | int | bool

_TIMEOUT = 25.0  # seconds, as in libdbus
_MAX_MESSAGE = 1 << 20  # bytes; the expected answers have a few hundred
_NO_AUTO_START = 0x2  # a container's start must not start a service

_CALL, _RETURN, _ERROR = 1, 2, 3  # kinds of messages
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 5, 6, 8  # header fields


class DBusError(CNIError):
    """A call failed. `name` is the D-Bus name of an error of the bus or the service, "" for other failures."""

    def __init__(self, msg: str, name: str = "") -> None:
        super().__init__(msg)
        self.name = name


class Bus:
    """A connection to a message bus. Raises DBusError if there is none, or it rejects the connection."""

    __slots__ = ("_buffer", "_serial", "_socket")

    def __init__(self, address: str) -> None:
        self._buffer = b""
        self._serial = 0
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_TIMEOUT)
            self._socket.connect(_socket_address(address))
            self._authenticate()
            self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
        except OSError as error:
            self.close()
            raise DBusError(f"cannot connect to the message bus at {address}: {error}") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def call(self, destination: str, path: str, interface: str, member: str, *arguments: str) -> list[Value]:
        """Call a method and return its answer, up to the first value that is no string, 32-bit integer or boolean.

        Raises DBusError.
        """
        with observed("dbus", f"call {interface}.{member}"):
            return self._call(destination, path, interface, member, arguments)

    def _call(
        self, destination: str, path: str, interface: str, member: str, arguments: tuple[str, ...]
    ) -> list[Value]:
        self._serial += 1
        fields = [
            (_PATH, "o", path),
            (_DESTINATION, "s", destination),
            (_INTERFACE, "s", interface),
            (_MEMBER, "s", member),
        ]
        try:
            self._socket.sendall(_message(self._serial, fields, arguments))
            while True:
                kind, reply_to, error, values = self._receive()
                if reply_to == self._serial and kind in (_RETURN, _ERROR):
                    break
        except (OSError, ValueError) as problem:
            raise DBusError(f"cannot call {interface}.{member}: {problem}") from problem
        if kind == _ERROR:
            reason = f": {values[0]}" if values else ""
            raise DBusError(f"{interface}.{member}: {error}{reason}", error)
        return values

    def _authenticate(self) -> None:
        """Authenticate by the user id, which the bus reads from the socket. Other mechanisms are not needed."""
        self._socket.sendall(b"\0AUTH EXTERNAL " + str(posix.geteuid()).encode().hex().encode() + b"\r\n")
        while b"\r\n" not in self._buffer:
            self._fill()
        answer, _, self._buffer = self._buffer.partition(b"\r\n")
        if not answer.startswith(b"OK "):
            raise DBusError(f"the message bus rejects the connection: {answer.decode(errors='replace')}")
        self._socket.sendall(b"BEGIN\r\n")

    def _receive(self) -> tuple[int, int, str, list[Value]]:
        """Receive a message. Returns its kind, the serial number of its call, the error's name and the values."""
        head = self._bytes(16)
        order = "little" if head[:1] == b"l" else "big"
        body, fields = _number(head, 4, order), _number(head, 12, order)
        size = 16 + _aligned(fields, 8) + body
        if size > _MAX_MESSAGE:
            raise ValueError(f"the message has {size} bytes, the limit is {_MAX_MESSAGE}")
        message = _Reader(self._bytes(size), order)
        self._buffer = self._buffer[size:]
        reply_to, error, signature = 0, "", ""
        message.position = 16
        while message.position < 16 + fields:
            message.align(8)
            field, value = message.byte(), message.variant()
            if field == _REPLY_SERIAL:
                reply_to = int(value)
            elif field == _ERROR_NAME:
                error = str(value)
            elif field == _SIGNATURE:
                signature = str(value)
        message.align(8)
        return head[1], reply_to, error, message.values(signature)

    def _bytes(self, count: int) -> bytes:
        """Return the received bytes, at least this many."""
        while len(self._buffer) < count:
            self._fill()
        return self._buffer

    def _fill(self) -> None:
        received = self._socket.recv(65536)
        if not received:
            raise OSError("the message bus closed the connection")
        self._buffer += received


def _socket_address(addresses: str) -> bytes:
    """Return the first of several addresses that is supported."""
    for address in addresses.split(";"):
        transport, _, rest = address.partition(":")
        if transport != "unix":
            continue
        for pair in rest.split(","):
            key, _, value = pair.partition("=")
            if key == "path":
                return _unescaped(value)
            if key == "abstract":
                return b"\0" + _unescaped(value)
    raise DBusError(f"unsupported address of the message bus: {addresses}; only unix:path= and unix:abstract= are")


def _unescaped(text: str) -> bytes:
    first, *rest = fsencode(text).split(b"%")
    try:
        return first + b"".join(bytes((int(part[:2], 16),)) + part[2:] for part in rest)
    except ValueError:
        raise DBusError(f"malformed address of the message bus: {text}") from None


# ---- messages ----


def _message(serial: int, fields: list[tuple[int, str, str]], arguments: tuple[str, ...]) -> bytes:
    body = b""
    for argument in arguments:
        body = _padded(body, 4) + _string(argument)
    header = b""
    for field, kind, text in fields:
        header = _padded(header, 8) + bytes((field, 1)) + kind.encode() + b"\0" + _string(text)
    if arguments:
        signature = b"s" * len(arguments)
        header = _padded(header, 8) + bytes((_SIGNATURE, 1)) + b"g\0" + bytes((len(signature),)) + signature + b"\0"
    start = b"l" + bytes((_CALL, _NO_AUTO_START, 1)) + _u32(len(body)) + _u32(serial) + _u32(len(header))
    return _padded(start + header, 8) + body


def _string(text: str) -> bytes:
    if "\0" in text:
        raise ValueError("a string with a NUL cannot be sent")
    data = fsencode(text)
    return _u32(len(data)) + data + b"\0"


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _padded(data: bytes, to: int) -> bytes:
    return data + bytes(_aligned(len(data), to) - len(data))


def _aligned(position: int, to: int) -> int:
    return -(-position // to) * to


def _number(data: bytes, position: int, order: str) -> int:
    if len(data) < position + 4:
        raise ValueError("the message is truncated")
    return int.from_bytes(data[position : position + 4], "little" if order == "little" else "big")


class _Reader:
    """A parser of a message's values. Raises ValueError for a malformed message."""

    __slots__ = ("data", "order", "position")

    def __init__(self, data: bytes, order: str) -> None:
        self.data = data
        self.order = order
        self.position = 0

    def values(self, signature: str) -> list[Value]:
        """Parse the values up to the first of an unsupported type."""
        parsed: list[Value] = []
        for kind in signature:
            if kind not in "sogub":
                break
            parsed.append(self.value(kind))
        return parsed

    def variant(self) -> Value:
        kind = self.signature()
        if len(kind) != 1 or kind not in "sogub":
            raise ValueError(f"a header field has the unsupported type {kind}")
        return self.value(kind)

    def value(self, kind: str) -> Value:
        if kind == "g":
            return self.signature()
        number = self.u32()
        if kind in "so":
            return self.text(number)
        return bool(number) if kind == "b" else number

    def byte(self) -> int:
        if self.position >= len(self.data):
            raise ValueError("the message is truncated")
        self.position += 1
        return self.data[self.position - 1]

    def u32(self) -> int:
        self.align(4)
        self.position += 4
        return _number(self.data, self.position - 4, self.order)

    def signature(self) -> str:
        return self.text(self.byte())

    def text(self, length: int) -> str:
        start, self.position = self.position, self.position + length + 1
        if self.position > len(self.data):
            raise ValueError("the message is truncated")
        return fsdecode(self.data[start : start + length])

    def align(self, to: int) -> None:
        self.position = _aligned(self.position, to)
