"""The agent's metrics for Prometheus, and the HTTP server from which they are read.

Labels have few values, whatever callers send: plugins are those of the entry-point group `cni.plugins`, by the names
under which they are installed; verbs and codes are the specification's; everything else is "other".
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
from cni.runtime.group_delete import GroupDeleter
from cni.spec import errors
from cni.spec.errors import CNIError

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)  # seconds

_OTHER = "other"
_VERBS = {"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"}
_CODES = {value: str(value) for name, value in vars(errors).items() if name.isupper() and type(value) is int}

_PATH = "/metrics"
_THREADS = 4  # connections served at once
_TIMEOUT = 5.0  # seconds for a request to arrive, and again for its answer to be read
_LARGEST_REQUEST = 8 << 10  # bytes


class Metrics(Observer):
    """Counts calls; `registry` has all metrics."""

    def __init__(self) -> None:
        # They would double the number of series, and all of them would say when the agent was started.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        self._names = {point.value: point.name for point in plugins.entry_points()}
        self._durations = Histogram(
            "cni_request_duration_seconds",
            "Time that a plugin took to serve a call, from its turn to its answer.",
            ("plugin", "verb", "outcome"),
            buckets=BUCKETS,
            registry=registry,
        )
        self.waits = Histogram(
            "cni_request_wait_seconds",
            "Time that a call waited for its turn and for a place among the running calls.",
            buckets=BUCKETS,
            registry=registry,
        )
        self._errors = Counter(
            "cni_errors", "Calls that failed, by the error's code.", ("plugin", "verb", "code"), registry=registry
        )
        self._declined = Counter(
            "cni_requests_declined", "Calls that the agent left to the executable.", ("reason",), registry=registry
        )
        for reason in REASONS:  # so that series begin at 0: Prometheus misses an increase that creates a series
            self._declined.labels(reason)
        self.waiting = Gauge(
            "cni_requests_waiting", "Calls that wait for their turn or for a place.", registry=registry
        )
        self.running = Gauge("cni_requests_running", "Calls that plugins are serving.", registry=registry)
        build = Info("cni_build", "The versions of the agent and of the interpreter.", registry=registry)
        build.info({"version": __version__, "python": platform.python_version()})
        registry.register(_Pools())
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        # Looking up a series by its labels takes longer than adding to it.
        self._series: dict[tuple[str, str, str], Histogram] = {}

    def watch(self, deleter: GroupDeleter) -> None:
        """Report the links that `deleter` is deleting."""
        deleted = Gauge(
            "cni_links_being_deleted", "Links whose deletion calls are waiting for.", registry=self.registry
        )
        deleted.set_function(lambda: deleter.pending)

    def call(self, request: Request) -> Call:
        """Return the counter of a call that has arrived."""
        verb = request.environ.get("CNI_COMMAND", "")
        return _Call(self, self._names.get(request.reference, _OTHER), verb if verb in _VERBS else _OTHER)

    def declined(self, reason: str) -> None:
        """Count a call that is left to its launcher."""
        self._declined.labels(reason).inc()

    def observe(self, plugin: str, verb: str, seconds: float, code: str) -> None:
        """Count a finished call; `code` is the error's, "" if it succeeded."""
        key = plugin, verb, "error" if code else "ok"
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = self._durations.labels(*key)
        series.observe(seconds)
        if code:
            self._errors.labels(plugin, verb, code).inc()


class _Call(Call):
    __slots__ = ("_code", "_is_running", "_metrics", "_plugin", "_since", "_verb")

    def __init__(self, metrics: Metrics, plugin: str, verb: str) -> None:
        self._metrics = metrics
        self._plugin = plugin
        self._verb = verb
        self._is_running = False
        self._code = _OTHER  # of a call that ended without an answer

    def __enter__(self) -> Call:
        self._metrics.waiting.inc()
        self._since = time.perf_counter()
        return self

    def begin(self) -> None:
        now = time.perf_counter()
        self._is_running = True
        self._metrics.waiting.dec()
        self._metrics.running.inc()
        self._metrics.waits.observe(now - self._since)
        self._since = now

    def end(self, error: CNIError | None) -> None:
        self._code = _CODES.get(error.code, _OTHER) if error else ""  # a delegate's may be any number

    def __exit__(self, *exc: object) -> None:
        if not self._is_running:
            self._metrics.waiting.dec()
            return
        self._metrics.running.dec()
        self._metrics.observe(self._plugin, self._verb, time.perf_counter() - self._since, self._code)


class _Pools(Collector):
    """host-local's addresses, counted when the metrics are read.

    Each range set has series of its own, since each can be exhausted by itself: in a sum, the 2^64 addresses of an IPv6
    range would hide that no IPv4 address is left.
    """

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield self._addresses()
        yield self._unreadable()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        warnings: list[str] = []
        counts: Tally[tuple[str, str, str]] = Tally()
        for pool in _pools(warnings):
            try:
                counts.update(_states(pool))
            except OSError as error:
                warnings.append(str(error))
        addresses, unreadable = self._addresses(), self._unreadable()
        for labels, count in counts.items():
            addresses.add_metric(labels, count)
        unreadable.add_metric((), len(warnings))
        yield addresses
        yield unreadable

    def _addresses(self) -> GaugeMetricFamily:
        text = "Addresses of host-local's range sets, and reserved addresses outside of them (ranges is empty then)."
        return GaugeMetricFamily("cni_ipam_addresses", text, labels=("network", "ranges", "state"))

    def _unreadable(self) -> GaugeMetricFamily:
        text = "Configurations and folders of reservations that cannot be read, and are left out above."
        return GaugeMetricFamily("cni_ipam_unreadable", text, labels=())


def _pools(warnings: list[str]) -> list[pools.Pool]:
    try:
        return pools.pools(load_networks(conf_dir(), warnings.append), warnings.append)
    except (CNIError, OSError) as error:
        warnings.append(str(error))
        return []


def _states(pool: pools.Pool) -> dict[tuple[str, str, str], int]:
    """Count a pool's used and free addresses, by the labels of their series."""
    usage = pool.usage()
    counts = {}
    for range_set in usage.sets:
        counts[pool.network, range_set.ranges, "used"] = range_set.held
        counts[pool.network, range_set.ranges, "free"] = range_set.free
    if usage.elsewhere or not usage.sets:
        counts[pool.network, "", "used"] = usage.elsewhere
    return counts


# ---- HTTP ----


def serve(listener: socket.socket, registry: CollectorRegistry) -> None:
    """Start a few threads that serve the connections to `listener`.

    A thread has one connection at a time, for a limited time: slow clients delay one another, but no calls.
    """
    handler = _Handler.factory(registry)
    for _ in range(_THREADS):
        threading.Thread(target=_work, args=(listener, handler), name="cni-metrics", daemon=True).start()


def _work(listener: socket.socket, handler: Any) -> None:
    while True:
        try:
            connection, address = listener.accept()
        except OSError:  # the client has hung up, or no descriptors are left
            time.sleep(0.1)
            continue
        with connection:
            _answer(connection, address, handler)


def _answer(connection: socket.socket, address: object, handler: Any) -> None:
    try:
        handler(connection, address, None)
    except OSError:
        return  # the client was too slow, or has hung up
    except Exception:
        print(f"cni agent: metrics: {traceback.format_exc()}", file=sys.stderr, flush=True)


class _Handler(MetricsHandler):
    timeout = _TIMEOUT  # for each write

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BytesIO(_head(self.connection))

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == _PATH:
            super().do_GET()
        else:
            self.send_error(404, f"the only page is {_PATH}")


def _head(connection: socket.socket) -> bytes:
    """Receive a request up to the end of its header fields. Raises TimeoutError if it takes too long as a whole."""
    deadline = time.monotonic() + _TIMEOUT
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _LARGEST_REQUEST:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = connection.recv(_LARGEST_REQUEST - len(head))
        if not chunk:
            break
        head += chunk
    connection.settimeout(_TIMEOUT)
    return head
