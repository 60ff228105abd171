"""Tracing: report the steps of a call as debug lines (CNI_LOG=debug) or OpenTelemetry spans (TRACEPARENT).

This module is imported only if one of the two is in a call's environment. A `Trace` is then the observer of the thread
that serves the call (`cni._core.observe`), and when the call has ended its spans are appended to a file as OTLP/JSON,
one line for a call (OpenTelemetry Protocol File Exporter). A program that the call starts finds the id of its parent
span in TRACEPARENT.

    CNI_LOG=debug   a line for each step on stderr
    TRACEPARENT     the span that the call is part of (W3C Trace Context); one that is not sampled is ignored
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
_LARGEST_FILE = 8 << 20  # bytes; a larger one is renamed
_LOCK_TIMEOUT = 1.0  # seconds that others may keep the file locked

# Limits: what a call reports beyond them is dropped.
_MOST_SPANS = 2000
_MOST_REQUESTS = 100  # of a step
_LONGEST_TEXT = 500  # characters

# opentelemetry/proto/trace/v1/trace.proto
_INTERNAL, _SERVER, _CLIENT = 1, 2, 3
_STATUS_ERROR = 2
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200
_SAMPLED = 0x01
_KNOWN_FLAGS = 0x03  # sampled; the trace's id is random

# Kinds of steps that call another process, which may report a span of its own.
_CALLS = ("dbus", "process")

_SUBJECT = {"cni.container_id": "CNI_CONTAINERID", "cni.ifname": "CNI_IFNAME", "cni.netns": "CNI_NETNS"}
_LOWER_HEX = "0123456789abcdef"


class Context:
    """A parsed traceparent: the trace, the parent span, and flags."""

    __slots__ = ("flags", "span", "trace")

    def __init__(self, trace: str, span: str, flags: int) -> None:
        self.trace = trace
        self.span = span
        self.flags = flags

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse version-trace-span-flags; return None if it is malformed: in upper case, or an id of zeros alone.

        A version above 00 may have more fields; ff is invalid (W3C Trace Context, section 3.2).
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
        """Return the traceparent that makes `span` of this trace the parent."""
        return f"00-{self.trace}-{span}-{self.flags & _KNOWN_FLAGS:02x}"


class Span:
    """A step, or a whole call; times are nanoseconds since the epoch."""

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
    """The observer of the call that a `with` block serves; does nothing unless the call's environment asks for it.

    `name` is the call's, `log` writes to stderr. A failure to write the spans never makes the call fail.
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
        self._is_debug = environ.get("CNI_LOG") == "debug"
        self._path = environ.get("CNI_TRACES", _FILE)
        self._state = environ.get("TRACESTATE", "")
        context = Context.parse(environ.get("TRACEPARENT", ""))
        self._context = context if context and context.flags & _SAMPLED and self._path else None
        # Times come from the monotonic clock: if the system's clock were set meanwhile, a step could be longer than its
        # parent.
        self._epoch = time.time_ns() - time.monotonic_ns()
        not_empty = {key: value for key, value in attributes.items() if value}
        self._root = Span(name, kind, context.span if context else "", self._now(), not_empty)
        self._open = [self._root]
        self._spans = [self._root]  # in the order of their beginning, so that no span is kept without its parent
        self._dropped = 0
        self._outer: Observer | None = None

    @classmethod
    def of_plugin(cls, plugin: str, environ: Mapping[str, str], log: Callable[[str], object]) -> Self:
        """Return a trace of a plugin's call with this environment."""
        verb = environ.get("CNI_COMMAND", "")
        subject = {key: environ.get(variable, "") for key, variable in _SUBJECT.items()}
        return cls(f"{plugin} {verb}", environ, log, {"cni.plugin": plugin, "cni.verb": verb, **subject})

    @classmethod
    def of_network(
        cls, network: str, verb: str, environ: Mapping[str, str], log: Callable[[str], object], **subject: str
    ) -> Self:
        """Return a trace of a runtime's call for a network.

        `subject` has an attachment's container_id, ifname and netns.
        """
        attributes = {"cni.network": network, "cni.verb": verb, **{f"cni.{key}": text for key, text in subject.items()}}
        return cls(f"network {network} {verb}", environ, log, attributes, _INTERNAL)

    def reading(self, stdin: Callable[[], bytes]) -> Callable[[], bytes]:
        """Return a reader of the same stdin that adds the configuration's network and version to the span."""

        def read() -> bytes:
            config = stdin()
            self._describe(config)
            return config

        return read

    def __enter__(self) -> Self:
        if self._is_debug or self._context:
            self._outer = observe(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self._is_debug and not self._context:
            return
        observe(self._outer)
        self.end(error)
        if self._dropped:
            self._root.attributes["cni.steps_dropped"] = self._dropped
        if self._context:
            self._export(self._context)

    # ---- the observer (cni._core.Observer) ----

    def begin(self, kind: str, words: str) -> None:
        first, *more = lines = [_shortened(line) for line in words.splitlines()] or [kind]
        name = f"{first} (+{len(more)})" if more else first
        attributes: dict[str, Any] = {"cni.step": kind}
        if more:
            rest = [f"and {len(lines) - _MOST_REQUESTS} more"] if len(lines) > _MOST_REQUESTS else []
            attributes["cni.requests"] = lines[:_MOST_REQUESTS] + rest
        span_kind = _CLIENT if kind in _CALLS else _INTERNAL
        span = Span(name, span_kind, self._open[-1].id, self._now(), attributes)
        self._open.append(span)
        if len(self._spans) < _MOST_SPANS:
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
        if self._is_debug:
            self._log_step(span)

    def fail(self, words: str) -> None:
        self._open[-1].error = _line(words)

    def variables(self) -> dict[str, str]:
        return {"TRACEPARENT": self._context.of(self._open[-1].id)} if self._context else {}

    # ---- output ----

    def _log_step(self, span: Span) -> None:
        """Log when the step began, how long it took and what it was. Its own steps came before, further indented."""
        began, took = (span.start - self._root.start) / 1e6, (span.end - span.start) / 1e6
        words = "total" if span is self._root else "; ".join(span.attributes.get("cni.requests", [span.name]))
        failure = f" -- failed: {span.error}" if span.error else ""
        indent = "  " * max(len(self._open) - 1, 0)
        self._log(f"cni {self.name}: {began:8.2f} {took:+8.2f} ms  {indent}{words}{failure}")

    def _export(self, context: Context) -> None:
        try:
            _append(self._path, f"{gojson.dumps(self._request(context))}\n".encode())
        except OSError as error:
            self._log(f"cni {self.name}: write the spans to {self._path}: {error.strerror}")

    def _request(self, context: Context) -> dict[str, Any]:
        """Return an ExportTraceServiceRequest."""
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
        is_remote = _IS_REMOTE if span is self._root else 0  # the parent is another process's
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
        except Exception:  # the plugin reports it
            return
        for attribute, key in (("cni.network", "name"), ("cni.version", "cniVersion")):
            if isinstance(fields.get(key), str):
                self._root.attributes[attribute] = fields[key]

    def _now(self) -> int:
        return self._epoch + time.monotonic_ns()


def _line(text: str) -> str:
    return _shortened(" ".join(text.split()))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: str | int | list[str]) -> dict[str, Any]:
    """Return an AnyValue; 64-bit numbers are strings in JSON."""
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"arrayValue": {"values": [_value(text) for text in value]}}


# ---- the file ----


def _append(path: str, line: bytes) -> None:
    """Append to the file, which other processes append to as well; a full one is renamed first. Raises OSError."""
    while True:
        fd = _open_file(path)
        try:
            if not files.lock(fd, _LOCK_TIMEOUT):
                raise TimeoutError(errno.ETIMEDOUT, f"it has been locked for more than {_LOCK_TIMEOUT:g} s")
            if not _is_at(path, fd):
                continue  # renamed while this process waited for the lock
            size = posix.fstat(fd).st_size
            if not size or size + len(line) <= _LARGEST_FILE:
                _write(fd, line, size)
                return
            posix.rename(path, f"{path}.1")
        finally:
            posix.close(fd)


def _open_file(path: str) -> int:
    # O_NONBLOCK: a FIFO must not block.
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
    raise OSError(errno.EPERM, "not a regular file of this user")


def _is_at(path: str, fd: int) -> bool:
    """Return True if the open file still has that path."""
    try:
        current, opened = posix.stat(path, follow_symlinks=False), posix.fstat(fd)
    except FileNotFoundError:
        return False
    return (current.st_dev, current.st_ino) == (opened.st_dev, opened.st_ino)


def _write(fd: int, line: bytes, size: int) -> None:
    """Write the whole line or, if the disk is full, nothing of it."""
    written = posix.write(fd, line)
    if written != len(line):
        posix.ftruncate(fd, size)
        raise OSError(errno.ENOSPC, posix.strerror(errno.ENOSPC))
