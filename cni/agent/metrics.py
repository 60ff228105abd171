"""The agent's metrics, for Prometheus: what is counted, and the few pages of HTTP that it takes to read them.

Labels have few values, whatever callers send: plugins are those of the entry-point group ``cni.plugins`` by the names
they are installed under, verbs and codes those of the specification, and what is none of these is "other".
"""

from __future__ import annotations

import io
import platform
import socket
import sys
import threading
import time
import traceback
from collections import Counter as Tally
from collections.abc import Iterator
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    MetricsHandler,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cni import __version__
from cni.agent.protocol import Request
from cni.agent.server import REASONS, Call, Observer
from cni.invoke import registry as plugins
from cni.node import pools
from cni.runtime.conf import conf_dir, load_networks
from cni.runtime.group_delete import Reaper
from cni.spec import errors
from cni.spec.errors import CNIError

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)  # seconds

_OTHER = "other"
_VERBS = {"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"}
_CODES = {value: str(value) for name, value in vars(errors).items() if name.isupper() and type(value) is int}

_PATH = "/metrics"
_AT_ONCE = 4  # connections
_PATIENCE = 5.0  # seconds that a request may take to arrive, and its answer to be taken
_LARGEST = 8 << 10  # bytes of a request


class Metrics(Observer):
    """Counts calls; `registry` has all that there is to read."""

    def __init__(self) -> None:
        # They would be as many series again, which all say when the agent was started.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        self._names = {point.value: point.name for point in plugins.entry_points()}
        self._durations = Histogram(
            "cni_request_duration_seconds",
            "How long a plugin took for a call, from its turn to its answer.",
            ("plugin", "verb", "outcome"),
            buckets=BUCKETS,
            registry=registry,
        )
        self.waits = Histogram(
            "cni_request_wait_seconds",
            "How long a call waited for its turn and for a place among those that run.",
            buckets=BUCKETS,
            registry=registry,
        )
        self._errors = Counter(
            "cni_errors", "Calls that failed, by the error's code.", ("plugin", "verb", "code"), registry=registry
        )
        self._declined = Counter(
            "cni_requests_declined", "Calls that were left to the executable.", ("reason",), registry=registry
        )
        for reason in REASONS:  # from 0 on: Prometheus doesn't see how a series grew before it was there
            self._declined.labels(reason)
        self.waiting = Gauge("cni_requests_waiting", "Calls that wait for their turn or a place.", registry=registry)
        self.running = Gauge("cni_requests_running", "Calls that plugins are working on.", registry=registry)
        build = Info("cni_build", "The agent's release, and the interpreter's.", registry=registry)
        build.info({"version": __version__, "python": platform.python_version()})
        registry.register(_Pools())
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        # Looking a series up by its labels takes longer than adding to it.
        self._series: dict[tuple[str, str, str], Histogram] = {}

    def watch(self, reaper: Reaper) -> None:
        """Tell of the links that it deletes."""
        deleted = Gauge("cni_links_being_deleted", "Links that calls wait for to be gone.", registry=self.registry)
        deleted.set_function(lambda: reaper.pending)

    def call(self, request: Request) -> Call:
        """One that has arrived."""
        verb = request.environ.get("CNI_COMMAND", "")
        return _Call(self, self._names.get(request.reference, _OTHER), verb if verb in _VERBS else _OTHER)

    def declined(self, reason: str) -> None:
        """One that is left to its launcher."""
        self._declined.labels(reason).inc()

    def observe(self, plugin: str, verb: str, seconds: float, code: str) -> None:
        """A call that is done; `code` is "" where it succeeded."""
        key = plugin, verb, "error" if code else "ok"
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = self._durations.labels(*key)
        series.observe(seconds)
        if code:
            self._errors.labels(plugin, verb, code).inc()


class _Call(Call):
    __slots__ = ("_code", "_metrics", "_plugin", "_runs", "_since", "_verb")

    def __init__(self, metrics: Metrics, plugin: str, verb: str) -> None:
        self._metrics = metrics
        self._plugin = plugin
        self._verb = verb
        self._runs = False
        self._code = _OTHER  # of a call that ended without an answer

    def __enter__(self) -> Call:
        self._metrics.waiting.inc()
        self._since = time.perf_counter()
        return self

    def begin(self) -> None:
        now = time.perf_counter()
        self._runs = True
        self._metrics.waiting.dec()
        self._metrics.running.inc()
        self._metrics.waits.observe(now - self._since)
        self._since = now

    def end(self, error: CNIError | None) -> None:
        self._code = _CODES.get(error.code, _OTHER) if error else ""  # a delegate's may be any number

    def __exit__(self, *exc: object) -> None:
        if not self._runs:
            self._metrics.waiting.dec()
            return
        self._metrics.running.dec()
        self._metrics.observe(self._plugin, self._verb, time.perf_counter() - self._since, self._code)


class _Pools(Collector):
    """host-local's addresses, counted when they are asked for.

    A range set is exhausted by itself, so each is told of by itself. Who looks at a sum would not see, beside the 2^64
    addresses of an IPv6 range, that there is no IPv4 address left.
    """

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield self._addresses()
        yield self._unreadable()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        warnings: list[str] = []
        counted: Tally[tuple[str, str, str]] = Tally()
        for pool in _pools(warnings):
            try:
                counted.update(_states(pool))
            except OSError as error:
                warnings.append(str(error))
        addresses, unreadable = self._addresses(), self._unreadable()
        for labels, count in counted.items():
            addresses.add_metric(labels, count)
        unreadable.add_metric((), len(warnings))
        yield addresses
        yield unreadable

    def _addresses(self) -> GaugeMetricFamily:
        meaning = "Addresses of host-local's range sets, and reserved ones in none of them (ranges is empty then)."
        return GaugeMetricFamily("cni_ipam_addresses", meaning, labels=("network", "ranges", "state"))

    def _unreadable(self) -> GaugeMetricFamily:
        meaning = "Configurations and folders of reservations that could not be read, and are left out above."
        return GaugeMetricFamily("cni_ipam_unreadable", meaning, labels=())


def _pools(warnings: list[str]) -> list[pools.Pool]:
    try:
        return pools.pools(load_networks(conf_dir(), warnings.append), warnings.append)
    except (CNIError, OSError) as error:
        warnings.append(str(error))
        return []


def _states(pool: pools.Pool) -> dict[tuple[str, str, str], int]:
    """How many addresses of a pool are used and free, by what becomes of it as labels."""
    usage = pool.usage()
    counted = {}
    for each in usage.sets:
        counted[pool.network, each.ranges, "used"] = each.held
        counted[pool.network, each.ranges, "free"] = each.free
    if usage.elsewhere or not usage.sets:
        counted[pool.network, "", "used"] = usage.elsewhere
    return counted


# ---- HTTP ----


def serve(listener: socket.socket, registry: CollectorRegistry) -> None:
    """Answer who connects to `listener`, from a few threads.

    Each has one connection at a time, and not for long: slow clients keep each other waiting, and nobody else.
    """
    handler = _Handler.factory(registry)
    for _ in range(_AT_ONCE):
        threading.Thread(target=_work, args=(listener, handler), name="cni-metrics", daemon=True).start()


def _work(listener: socket.socket, handler: Any) -> None:
    while True:
        try:
            connection, address = listener.accept()
        except OSError:  # a connection that has gone, or no descriptors left
            time.sleep(0.1)
            continue
        with connection:
            _answer(connection, address, handler)


def _answer(connection: socket.socket, address: object, handler: Any) -> None:
    try:
        handler(connection, address, None)
    except OSError:
        return  # it was too slow, or has gone
    except Exception:
        print(f"cni agent: metrics: {traceback.format_exc()}", file=sys.stderr, flush=True)


class _Handler(MetricsHandler):
    timeout = _PATIENCE  # seconds, for all that is sent at once

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BytesIO(_head(self.connection))

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == _PATH:
            super().do_GET()
        else:
            self.send_error(404, f"there is nothing but {_PATH}")


def _head(connection: socket.socket) -> bytes:
    """A request to the end of its header fields. Raises TimeoutError where it takes too long as a whole."""
    end = time.monotonic() + _PATIENCE
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _LARGEST:
        connection.settimeout(max(end - time.monotonic(), 0.001))
        more = connection.recv(_LARGEST - len(head))
        if not more:
            break
        head += more
    connection.settimeout(_PATIENCE)
    return head
