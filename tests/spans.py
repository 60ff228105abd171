"""Read the spans of cni/system/tracing.py with OpenTelemetry's own messages: each field is one of theirs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

IDS = ("traceId", "spanId", "parentSpanId")
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


class Node:
    """A span, and those whose parent it is, in the order in which they began."""

    def __init__(self, span: Any, resource: dict[str, Any]) -> None:
        self.span = span
        self.name: str = span.name
        self.id: str = span.span_id.hex()
        self.parent: str = span.parent_span_id.hex()
        self.attributes = {each.key: value_of(each.value) for each in span.attributes}
        self.resource = resource
        self.children: list[Node] = []

    @property
    def kind(self) -> str:
        return Span.SpanKind.Name(self.span.kind).removeprefix("SPAN_KIND_")

    @property
    def failure(self) -> str:
        """Return what it failed with, "" if it did not."""
        assert self.span.status.code in (Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR)
        assert bool(self.span.status.message) == (self.span.status.code == Status.STATUS_CODE_ERROR)
        return str(self.span.status.message)

    @property
    def requests(self) -> list[str]:
        """All that the step asked, one by one."""
        return self.attributes.get("cni.requests", [self.name])

    def all(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.all()

    def __repr__(self) -> str:
        return f"<{self.name}{self.children or ''}>"


def value_of(value: Any) -> Any:
    which = value.WhichOneof("value")
    return [value_of(each) for each in value.array_value.values] if which == "array_value" else getattr(value, which)


def read(*paths: Path) -> list[Node]:
    """Every span in the files; a line is one whole ExportTraceServiceRequest."""
    return [span for path in paths for line in path.read_text().splitlines() for span in parsed(line)]


def parsed(line: str) -> Iterator[Node]:
    fields = json.loads(line)
    for resource in fields["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for key in IDS:  # OTLP/JSON has them in hex, and bytes in JSON are base64 elsewhere
                    assert span[key] == span[key].lower()
                    span[key] = base64.b64encode(bytes.fromhex(span[key])).decode()
    message = json_format.ParseDict(fields, ExportTraceServiceRequest())
    for each in message.resource_spans:
        described = {attribute.key: value_of(attribute.value) for attribute in each.resource.attributes}
        for scope in each.scope_spans:
            yield from (Node(span, described) for span in scope.spans)


def trees(spans: Iterable[Node], parent: str = CALLER, trace: str = TRACE) -> list[Node]:
    """The spans below the caller's, each in its place; there is no other, and none is longer than its parent."""
    spans = sorted(spans, key=lambda span: int(span.span.start_time_unix_nano))
    by_id = {span.id: span for span in spans}
    assert len(by_id) == len(spans)
    roots = []
    for span in spans:
        assert span.span.trace_id.hex() == trace
        assert span.span.start_time_unix_nano <= span.span.end_time_unix_nano
        if span.parent == parent:
            roots.append(span)
            continue
        above = by_id[span.parent]
        above.children.append(span)
        assert above.span.start_time_unix_nano <= span.span.start_time_unix_nano
        assert span.span.end_time_unix_nano <= above.span.end_time_unix_nano
    return roots
