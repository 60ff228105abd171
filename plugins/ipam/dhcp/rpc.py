"""Go's net/rpc between plugin and daemon: an HTTP CONNECT on a unix socket, then gob streams both ways.

A call is a request's head and the method's arguments; the answer is a response's head and the result, or an error's
text and an empty struct. `call` is the plugin's side, and `Session` the daemon's, without its sockets.
"""

from __future__ import annotations

import posix
import time

from cni.spec.errors import IO_FAILURE, CNIError
from cni.spec.ip import CIDR, IP
from cni.spec.result import IPConfig, Result, Route
from cni_plugins.ipam.dhcp import gob
from cni_plugins.ipam.dhcp.gob import BYTES, INT, STRING, UINT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

CONNECT = b"CONNECT /_goRPC_ HTTP/1.0\n\n"
CONNECTED = b"HTTP/1.0 200 Connected to Go RPC\n\n"
REFUSED = b"HTTP/1.0 405 Method Not Allowed\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n405 must CONNECT\n"

ALLOCATE = "DHCP.Allocate"
RELEASE = "DHCP.Release"
COLLECT = "DHCP.Collect"  # ours: Go's daemon has no garbage collection
UNKNOWN_METHOD = "rpc: can't find method "

# Seconds. A daemon gives up after 208 by default, and may be configured with a longer timeout; but Go's never answers
# if the interface is gone.
_ANSWER_TIMEOUT = 300.0
_HANDSHAKE_TIMEOUT = 10.0
_MAX_HEAD = 8192  # bytes of HTTP

REQUEST = gob.struct("Request", ServiceMethod=STRING, Seq=UINT)
COMMAND = gob.struct(
    "CmdArgs",
    ContainerID=STRING,
    Netns=STRING,
    IfName=STRING,
    Args=STRING,
    Path=STRING,
    NetnsOverride=STRING,
    StdinData=BYTES,
)
gob.number(REQUEST, COMMAND)

_INTERFACE = gob.struct("", Name=STRING, Mac=STRING, Mtu=INT, Sandbox=STRING, SocketPath=STRING, PciID=STRING)
_NETWORK = gob.struct("IPNet", IP=BYTES, Mask=BYTES)
_IP = gob.struct("", Interface=INT, Address=_NETWORK, Gateway=BYTES)
_ROUTE = gob.struct("", Dst=_NETWORK, GW=BYTES, MTU=INT, AdvMSS=INT, Priority=INT, Table=INT, Scope=INT)
_TEXTS = gob.slice_of("[]string", STRING)
_DNS = gob.struct("DNS", Nameservers=_TEXTS, Domain=STRING, Search=_TEXTS, Options=_TEXTS)
RESPONSE = gob.struct("Response", ServiceMethod=STRING, Seq=UINT, Error=STRING)
RESULT = gob.struct(
    "Result",
    CNIVersion=STRING,
    Interfaces=gob.slice_of("[]*types100.Interface", _INTERFACE),
    IPs=gob.slice_of("[]*types100.IPConfig", _IP),
    Routes=gob.slice_of("[]*types.Route", _ROUTE),
    DNS=_DNS,
)
NOTHING = gob.struct("")
gob.number(RESPONSE, RESULT, NOTHING)


def call(path: str, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a method of the daemon at the socket `path`, and return its answer. Raises CNIError with Go's message."""
    with _dial(path) as connection:
        try:
            encoder = gob.Encoder()
            head = encoder.encode(REQUEST, {"ServiceMethod": method})
            connection.sendall(head + encoder.encode(COMMAND, arguments))
            response, answer = _receive(connection, time.monotonic() + _ANSWER_TIMEOUT)
        except (OSError, ValueError) as error:
            raise CNIError(f"error calling {method}: {_reason(error)}", IO_FAILURE) from error
    if "Error" in response:
        raise CNIError(f"error calling {method}: {response['Error']}")
    return answer


def ping(path: str) -> None:
    """Raise CNIError unless a daemon answers."""
    _dial(path).close()


class _Connection:
    """A socket as a context manager. (`_socket` is the C part of `socket`; the Python part is expensive to import.)"""

    __slots__ = ("_socket",)

    def __init__(self, connected: socket) -> None:
        self._socket = connected

    def __enter__(self) -> socket:
        return self._socket

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()


def _dial(path: str) -> _Connection:
    import _socket

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(_HANDSHAKE_TIMEOUT)
        try:
            connection.connect(path)
        except OSError as error:
            raise CNIError(
                f"error dialing DHCP daemon: dial unix {path}: connect: {_reason(error)}", IO_FAILURE
            ) from error
        try:
            connection.sendall(CONNECT)
            _expect_connected(connection)
        except OSError as error:
            raise CNIError(f"error dialing DHCP daemon: dial-http unix {path}: {_reason(error)}", IO_FAILURE) from error
    except BaseException:
        connection.close()
        raise
    return _Connection(connection)


def _expect_connected(connection: socket) -> None:
    """Read exactly the head of the daemon's HTTP response. Raises OSError if it is another response."""
    head = b""
    while not head.endswith((b"\n\n", b"\n\r\n")):
        byte = connection.recv(1)
        if not byte or len(head) == _MAX_HEAD:
            raise OSError("unexpected EOF" if not byte else f"the HTTP response is longer than {_MAX_HEAD} bytes")
        head += byte
    protocol, _, status = head.partition(b"\n")[0].strip().partition(b" ")
    if not protocol.startswith(b"HTTP/") or status != b"200 Connected to Go RPC":
        raise OSError(f"unexpected HTTP response: {status.decode(errors='replace')}")


def _receive(connection: socket, deadline: float) -> tuple[dict[str, Any], dict[str, Any]]:
    decoder = gob.Decoder()
    values: list[dict[str, Any]] = []
    while len(values) < 2:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer within {_ANSWER_TIMEOUT:g} seconds")
        connection.settimeout(left)
        data = connection.recv(1 << 16)
        if not data:
            raise OSError("unexpected EOF")
        values += decoder.feed(data)
    return values[0], values[1]


def _reason(error: Exception) -> str:
    errno = getattr(error, "errno", None)
    return posix.strerror(errno).lower() if errno else str(error)


class Session:
    """The daemon's side of one connection: bytes in, calls out; answers in, bytes out."""

    __slots__ = ("_connected", "_decoder", "_encoder", "_head", "_values")

    def __init__(self) -> None:
        self._head = b""
        self._connected = False
        self._decoder = gob.Decoder()
        self._encoder = gob.Encoder()
        self._values: list[dict[str, Any]] = []

    def feed(self, data: bytes) -> tuple[bytes, list[tuple[dict[str, Any], dict[str, Any]]]]:
        """Return the data to send at once, and the calls that are complete, as heads and arguments.

        Raises ValueError for a violation of the protocol, and ConnectionRefusedError for another HTTP request.
        """
        reply = b""
        if not self._connected:
            self._head += data
            line, end, rest = _split(self._head)
            if not end:
                if len(self._head) > _MAX_HEAD:
                    raise ValueError(f"the HTTP request is longer than {_MAX_HEAD} bytes")
                return b"", []
            if line.split()[:2] != CONNECT.split()[:2]:
                raise ConnectionRefusedError
            self._connected = True
            self._head = b""
            reply, data = CONNECTED, rest
        self._values += self._decoder.feed(data)
        calls = []
        while len(self._values) >= 2:
            calls.append((self._values.pop(0), self._values.pop(0)))
        return reply, calls

    @property
    def is_between_calls(self) -> bool:
        """Return whether no part of a further call was received."""
        return self._connected and not self._values and not self._decoder.has_rest

    def answer(self, head: dict[str, Any], result: Result | None = None) -> bytes:
        """Return the messages with a call's result."""
        response = self._encoder.encode(RESPONSE, _response(head))
        if result is None:
            return response + self._encoder.encode(NOTHING, {})
        return response + self._encoder.encode(RESULT, from_result(result))

    def refuse(self, head: dict[str, Any], problem: str) -> bytes:
        """Return the messages with a call's error."""
        response = {**_response(head), "Error": problem}
        return self._encoder.encode(RESPONSE, response) + self._encoder.encode(NOTHING, {})


def _response(head: dict[str, Any]) -> dict[str, Any]:
    return {"ServiceMethod": head.get("ServiceMethod", ""), "Seq": head.get("Seq", 0)}


def _split(head: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the head's first line, the empty line that ends it (b"" if it is missing) and the rest."""
    ends = [(head.find(end), end) for end in (b"\n\n", b"\n\r\n") if end in head]
    if not ends:
        return b"", b"", b""
    position, end = min(ends)
    return head.partition(b"\n")[0], end, head[position + len(end) :]


def from_result(result: Result) -> dict[str, Any]:
    """Return a result as an RPC value.

    Like Go's daemon without the version: a client that is older than the daemon would refuse a newer one.
    """
    return {
        "IPs": [
            {"Address": _from_network(ip.address), "Gateway": _packed(ip.gateway), "Interface": ip.interface}
            for ip in result.ips
        ],
        "Routes": [
            {
                "Dst": _from_network(route.dst),
                "GW": _packed(route.gw),
                "MTU": route.mtu,
                "AdvMSS": route.advmss,
                "Priority": route.priority,
                "Table": route.table,
                "Scope": route.scope,
            }
            for route in result.routes
        ],
        "DNS": {},
    }


def to_result(value: dict[str, Any]) -> Result:
    """Return the result in a daemon's answer. Raises CNIError for an invalid answer."""
    try:
        ips = [
            IPConfig(_to_network(ip["Address"]), _to_ip(ip.get("Gateway")), ip.get("Interface"))
            for ip in value.get("IPs", [])
        ]
        routes = [
            Route(
                _to_network(route["Dst"]),
                _to_ip(route.get("GW")),
                route.get("MTU", 0),
                route.get("AdvMSS", 0),
                route.get("Priority", 0),
                route.get("Table"),
                route.get("Scope"),
            )
            for route in value.get("Routes", [])
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CNIError(f"invalid answer of the DHCP daemon: {type(error).__name__}: {error}") from error
    return Result(ips=ips, routes=routes)


def _packed(ip: IP | None) -> bytes:
    return b"" if ip is None else ip.packed


def _from_network(network: CIDR) -> dict[str, bytes]:
    bits = network.ip.bits
    mask = ((1 << network.prefix) - 1) << (bits - network.prefix)
    return {"IP": network.ip.packed, "Mask": mask.to_bytes(bits // 8, "big")}


def _to_ip(packed: bytes | None) -> IP | None:
    return IP(packed) if packed else None


def _to_network(value: dict[str, bytes]) -> CIDR:
    ip = IP(value["IP"])
    return CIDR(ip, prefix_of(value["Mask"][-len(ip.packed) :]))


def prefix_of(mask: bytes) -> int:
    """Return the prefix length of a mask. Raises ValueError unless its ones are contiguous."""
    bits = f"{int.from_bytes(mask, 'big'):0{len(mask) * 8}b}" if mask else ""
    prefix = bits.find("0") if "0" in bits else len(bits)
    if not bits or "1" in bits[prefix:]:
        raise ValueError(f"{mask.hex()} is not a network mask")
    return prefix
