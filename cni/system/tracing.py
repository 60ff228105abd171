"""A call's steps, for who wants to see them: spans where there is a TRACEPARENT, lines with CNI_LOG=debug.

Nothing imports this before one of the two is in a call's environment. From then on the thread that serves the call
tells of its steps (`cni._core.observe`), and when the call has ended its spans are appended to a file, as OTLP/JSON: a
line for a call (OpenTelemetry Protocol File Exporter). What the call starts finds its own span's id in TRACEPARENT.

    CNI_LOG=debug   a line a step on stderr
    TRACEPARENT     the span that a call is part of (W3C Trace Context); nothing comes of one that is not sampled
    CNI_TRACES      the file, /run/cni/traces.jsonl by default; empty: none
"""

from __future__ import annotations

import _stat
import errno
import posix
import time

from cni import __version__
from cni._core import observe
from cni.spec import gojson
from cni.spec.errors import CNIError
from cni.system import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Self

    from cni._core import Observer

_FILE = "/run/cni/traces.jsonl"
_LARGEST = 8 << 20  # bytes; what comes then has the old file renamed
_LOCK_TIMEOUT = 1.0  # seconds that others may keep the file locked

# Of what a call tells, that much is kept.
_SPANS = 2000
_REQUESTS = 100  # of a step
_TEXT = 500  # characters

# opentelemetry/proto/trace/v1/trace.proto
_INTERNAL, _SERVER, _CLIENT = 1, 2, 3
_STATUS_ERROR = 2
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200
_SAMPLED = 0x01
_KNOWN_FLAGS = 0x03  # sampled; the trace's id is random

# Whoever serves the other end of these steps has a span of his own.
_CALLS = ("dbus", "process")

_SUBJECT = {"cni.container_id": "CNI_CONTAINERID", "cni.ifname": "CNI_IFNAME", "cni.netns": "CNI_NETNS"}
_LOWER_HEX = "0123456789abcdef"


class Context:
    """What a traceparent says: the trace, the span that is the parent of ours, and flags."""

    __slots__ = ("flags", "span", "trace")

    def __init__(self, trace: str, span: str, flags: int) -> None:
        self.trace = trace
        self.span = span
        self.flags = flags

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None where it is malformed: version-trace-span-flags in lower case, no id of zeros alone.

        A version above 00 may have more fields; ff is none (W3C Trace Context, section 3.2).
        """
        version, *fields = text.split("-")
        if len(version) != 2 or version == "ff" or (version == "00" and len(fields) != 3):
            return None
        if [len(field) for field in fields[:3]] != [32, 16, 2]:
            return None
        trace, span, flags = fields[:3]
        if (version + trace + span + flags).strip(_LOWER_HEX) or not trace.strip("0") or not span.strip("0"):
            return None
        return cls(trace, span, int(flags, 16))

    def of(self, span: str) -> str:
        """The traceparent that makes `span` of this trace the parent."""
        return f"00-{self.trace}-{span}-{self.flags & _KNOWN_FLAGS:02x}"


class Span:
    """A step, or a call as a whole; times are nanoseconds of the epoch."""

    __slots__ = ("attributes", "end", "error", "id", "kind", "name", "parent", "start")

    def __init__(self, name: str, kind: int, parent: str, start: int, attributes: dict[str, Any]) -> None:
        self.name = name
        self.kind = kind
        self.parent = parent
        self.start = start
        self.attributes = attributes
        self.id = posix.urandom(8).hex()
        self.end = start
        self.error = ""


class Trace:
    """Is told of the steps of the call that a `with` block serves, and shows them if its environment asks for it.

    `name` is the call's, `log` takes what goes to stderr. That spans can't be written never makes the call fail.
    """

    def __init__(
        self,
        name: str,
        environ: Mapping[str, str],
        log: Callable[[str], object],
        attributes: Mapping[str, str],
        kind: int = _SERVER,
    ) -> None:
        self.name = name
        self._log = log
        self._is_told = environ.get("CNI_LOG") == "debug"
        self._path = environ.get("CNI_TRACES", _FILE)
        self._state = environ.get("TRACESTATE", "")
        context = Context.parse(environ.get("TRACEPARENT", ""))
        self._context = context if context and context.flags & _SAMPLED and self._path else None
        # By the steady clock, lest a step that was set right make a step longer than what it is part of.
        self._epoch = time.time_ns() - time.monotonic_ns()
        kept = {key: value for key, value in attributes.items() if value}
        self._root = Span(name, kind, context.span if context else "", self._now(), kept)
        self._open = [self._root]
        self._spans = [self._root]  # as they began: the parent of what is kept is kept
        self._dropped = 0
        self._before: Observer | None = None

    @classmethod
    def of_plugin(cls, plugin: str, environ: Mapping[str, str], log: Callable[[str], object]) -> Self:
        """Of a plugin's call with this environment."""
        verb = environ.get("CNI_COMMAND", "")
        subject = {key: environ.get(variable, "") for key, variable in _SUBJECT.items()}
        return cls(f"{plugin} {verb}", environ, log, {"cni.plugin": plugin, "cni.verb": verb, **subject})

    @classmethod
    def of_network(
        cls, network: str, verb: str, environ: Mapping[str, str], log: Callable[[str], object], **subject: str
    ) -> Self:
        """Of a runtime's call for a network; `subject` has an attachment's container_id, ifname and netns."""
        attributes = {"cni.network": network, "cni.verb": verb, **{f"cni.{key}": text for key, text in subject.items()}}
        return cls(f"network {network} {verb}", environ, log, attributes, _INTERNAL)

    def reading(self, stdin: Callable[[], bytes]) -> Callable[[], bytes]:
        """The same stdin; what it says about network and version becomes the span's."""

        def read() -> bytes:
            config = stdin()
            self._describe(config)
            return config

        return read

    def __enter__(self) -> Self:
        if self._is_told or self._context:
            self._before = observe(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self._is_told and not self._context:
            return
        observe(self._before)
        self.end(error)
        if self._dropped:
            self._root.attributes["cni.steps_dropped"] = self._dropped
        if self._context:
            self._export(self._context)

    # ---- what it is told (cni._core.Observer) ----

    def begin(self, kind: str, words: str) -> None:
        first, *more = lines = [_shortened(line) for line in words.splitlines()] or [kind]
        name = f"{first} (+{len(more)})" if more else first
        attributes: dict[str, Any] = {"cni.step": kind}
        if more:
            rest = [f"and {len(lines) - _REQUESTS} more"] if len(lines) > _REQUESTS else []
            attributes["cni.requests"] = lines[:_REQUESTS] + rest
        span_kind = _CLIENT if kind in _CALLS else _INTERNAL
        span = Span(name, span_kind, self._open[-1].id, self._now(), attributes)
        self._open.append(span)
        if len(self._spans) < _SPANS:
            self._spans.append(span)
        else:
            self._dropped += 1

    def end(self, error: BaseException | None) -> None:
        span = self._open.pop()
        span.end = self._now()
        if error is not None:
            span.error = _line(error.msg if isinstance(error, CNIError) else str(error)) or type(error).__name__
            span.attributes["error.type"] = type(error).__name__
            if isinstance(error, CNIError):
                span.attributes["cni.error_code"] = error.code
        if self._is_told:
            self._tell(span)

    def fail(self, words: str) -> None:
        self._open[-1].error = _line(words)

    def variables(self) -> dict[str, str]:
        return {"TRACEPARENT": self._context.of(self._open[-1].id)} if self._context else {}

    # ---- what it shows ----

    def _tell(self, span: Span) -> None:
        """When it began, how long it took, what it was. What it consists of has been told before, further in."""
        began, took = (span.start - self._root.start) / 1e6, (span.end - span.start) / 1e6
        words = "in all" if span is self._root else "; ".join(span.attributes.get("cni.requests", [span.name]))
        failure = f" -- failed: {span.error}" if span.error else ""
        indent = "  " * max(len(self._open) - 1, 0)
        self._log(f"cni {self.name}: {began:8.2f} {took:+8.2f} ms  {indent}{words}{failure}")

    def _export(self, context: Context) -> None:
        try:
            _append(self._path, f"{gojson.dumps(self._request(context))}\n".encode())
        except OSError as error:
            self._log(f"cni {self.name}: its spans could not be written to {self._path}: {error.strerror}")

    def _request(self, context: Context) -> dict[str, Any]:
        """An ExportTraceServiceRequest."""
        process = {
            "service.name": "cni",
            "service.version": __version__,
            "host.name": posix.uname().nodename,
            "process.pid": posix.getpid(),
        }
        spans = [self._encoded(span, context) for span in self._spans]
        scope = {"scope": {"name": "cni", "version": __version__}, "spans": spans}
        return {"resourceSpans": [{"resource": {"attributes": _attributes(process)}, "scopeSpans": [scope]}]}

    def _encoded(self, span: Span, context: Context) -> dict[str, Any]:
        is_remote = _IS_REMOTE if span is self._root else 0  # its parent
        return {
            "traceId": context.trace,
            "spanId": span.id,
            **({"traceState": self._state} if self._state else {}),
            "parentSpanId": span.parent,
            "flags": context.flags & _KNOWN_FLAGS | _HAS_IS_REMOTE | is_remote,
            "name": span.name,
            "kind": span.kind,
            "startTimeUnixNano": str(span.start),
            "endTimeUnixNano": str(span.end),
            "attributes": _attributes(span.attributes),
            "status": {"code": _STATUS_ERROR, "message": span.error} if span.error else {},
        }

    def _describe(self, config: bytes) -> None:
        try:
            fields = gojson.table(gojson.loads(config), "")
        except Exception:  # the plugin will say so
            return
        for attribute, key in (("cni.network", "name"), ("cni.version", "cniVersion")):
            if isinstance(fields.get(key), str):
                self._root.attributes[attribute] = fields[key]

    def _now(self) -> int:
        return self._epoch + time.monotonic_ns()


def _line(text: str) -> str:
    return _shortened(" ".join(text.split()))


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: str | int | list[str]) -> dict[str, Any]:
    """An AnyValue; 64-bit numbers are strings in JSON."""
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"arrayValue": {"values": [_value(each) for each in value]}}


# ---- the file ----


def _append(path: str, line: bytes) -> None:
    """Append to the file, which others append to as well; past its size it is renamed first. Raises OSError."""
    while True:
        fd = _opened(path)
        try:
            if not files.lock(fd, _LOCK_TIMEOUT):
                raise TimeoutError(errno.ETIMEDOUT, f"others keep it locked for more than {_LOCK_TIMEOUT:g} s")
            if not _is_at(path, fd):
                continue  # renamed while we waited
            size = posix.fstat(fd).st_size
            if not size or size + len(line) <= _LARGEST:
                _write(fd, line, size)
                return
            posix.rename(path, f"{path}.1")
        finally:
            posix.close(fd)


def _opened(path: str) -> int:
    # Not to wait at a FIFO.
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
    try:
        fd = posix.open(path, flags, 0o600)
    except FileNotFoundError:
        files.make_folders(path.rpartition("/")[0], 0o700)
        fd = posix.open(path, flags, 0o600)
    status = posix.fstat(fd)
    if _stat.S_ISREG(status.st_mode) and status.st_uid == posix.geteuid():
        return fd
    posix.close(fd)
    raise OSError(errno.EPERM, "it is no regular file of this user's")


def _is_at(path: str, fd: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        there, ours = posix.stat(path, follow_symlinks=False), posix.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _write(fd: int, line: bytes, size: int) -> None:
    """The whole line, or nothing of it: a disk may be full."""
    written = posix.write(fd, line)
    if written != len(line):
        posix.ftruncate(fd, size)
        raise OSError(errno.ENOSPC, posix.strerror(errno.ENOSPC))
