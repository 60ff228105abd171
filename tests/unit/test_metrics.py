"""The agent's metrics: what they are called, that callers can't make them many, and how they are read."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import cni
from cni.agent import metrics as module
from cni.agent import server
from cni.agent.address import Address
from cni.agent.metrics import BUCKETS, Metrics
from cni.agent.server import REASONS
from cni.node import pools
from cni.runtime.group_delete import GroupDeleter
from cni.spec import errors
from cni.spec.errors import CNIError
from tests.waiting import LIMIT

if TYPE_CHECKING:
    from cni.agent.protocol import Request

BRIDGE = "cni_plugins.main.bridge:plugin"
DURATION = "cni_request_duration_seconds"
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "metrics.md"


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    (tmp_path / "net.d").mkdir()
    monkeypatch.setenv("NETCONFPATH", str(tmp_path / "net.d"))
    monkeypatch.setattr(pools, "DATA_DIR", tmp_path / "networks")
    return Metrics()


def request(verb: str = "ADD", reference: str = BRIDGE) -> Request:
    return cast("Request", SimpleNamespace(environ={"CNI_COMMAND": verb}, reference=reference))


def serve(metrics: Metrics, error: CNIError | None = None, **call: str) -> None:
    with metrics.call(request(**call)) as served:
        served.begin()
        served.end(error)


def families(metrics: Metrics) -> dict[str, Metric]:
    """Return what who reads it makes of it."""
    text = generate_latest(metrics.registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """By the labels' values, in the labels' order."""
    found: dict[tuple[str, ...], float] = {}
    for family in families(metrics).values():
        for sample in family.samples:
            if sample.name == name:
                assert tuple(sample.labels.values()) not in found
                found[tuple(sample.labels.values())] = sample.value
    return found


# ---- calls ----


def test_calls_by_plugin_verb_and_outcome(metrics: Metrics) -> None:
    for _ in range(3):
        serve(metrics)
    serve(metrics, CNIError("no", 11))
    serve(metrics, CNIError("no", 11))
    serve(metrics, verb="DEL", reference="cni_plugins.ipam.host_local:plugin")
    assert samples(metrics, f"{DURATION}_count") == {
        ("ok", "bridge", "ADD"): 3,
        ("error", "bridge", "ADD"): 2,
        ("ok", "host-local", "DEL"): 1,
    }
    assert samples(metrics, "cni_errors_total") == {("11", "bridge", "ADD"): 2}
    assert samples(metrics, "cni_request_wait_seconds_count") == {(): 6}


def test_the_buckets(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    with metrics.call(request()) as call:
        now += 0.02  # spent waiting
        call.begin()
        now += 0.004
        call.end(None)
    found = samples(metrics, f"{DURATION}_bucket")
    bounds = {float(bound): value for (bound, *_), value in found.items()}
    assert [bound for bound in bounds if bound != float("inf")] == list(BUCKETS)
    assert (BUCKETS[0], BUCKETS[-1]) == (0.0005, 1)
    assert {bound for bound, value in bounds.items() if value} == {b for b in bounds if b >= 0.005}
    assert samples(metrics, f"{DURATION}_sum")["ok", "bridge", "ADD"] == pytest.approx(0.004)
    assert samples(metrics, "cni_request_wait_seconds_sum")[()] == pytest.approx(0.02)


def test_what_waits_and_what_runs(metrics: Metrics) -> None:
    def now() -> tuple[float, float]:
        return samples(metrics, "cni_requests_waiting")[()], samples(metrics, "cni_requests_running")[()]

    with metrics.call(request()), metrics.call(request()) as call:
        assert now() == (2, 0)
        call.begin()
        assert now() == (1, 1)
        call.end(None)
    assert now() == (0, 0)
    assert samples(metrics, f"{DURATION}_count") == {("ok", "bridge", "ADD"): 1}  # the other one never ran


def test_a_call_that_breaks_off_failed(metrics: Metrics) -> None:
    def break_off() -> None:
        with metrics.call(request()) as call:
            call.begin()
            raise OSError("its namespace is none")

    with pytest.raises(OSError, match="its namespace is none"):
        break_off()
    assert samples(metrics, f"{DURATION}_count") == {("error", "bridge", "ADD"): 1}
    assert samples(metrics, "cni_errors_total") == {("other", "bridge", "ADD"): 1}
    assert samples(metrics, "cni_requests_running") == {(): 0}


@pytest.mark.parametrize(
    ("code", "label"),
    [
        (errors.TRY_AGAIN_LATER, "11"),
        (errors.INTERNAL, "999"),
        (errors.UNKNOWN, "0"),
        (123456, "other"),  # a delegate's own
    ],
)
def test_an_error_s_code(metrics: Metrics, code: int, label: str) -> None:
    serve(metrics, CNIError("no", code))
    assert samples(metrics, "cni_errors_total") == {(label, "bridge", "ADD"): 1}


def test_callers_cannot_make_series(metrics: Metrics) -> None:
    """Nor memory: 10,000 calls of plugins, with verbs and codes, that nobody knows."""
    for number in range(10_000):
        serve(metrics, CNIError("no", 1000 + number), verb=f"VERB{number}", reference=f"module{number}:plugin")
    assert samples(metrics, "cni_errors_total") == {("other", "other", "other"): 10_000}
    assert samples(metrics, f"{DURATION}_count") == {("error", "other", "other"): 10_000}
    assert len(metrics._series) == 1


def test_the_reasons_are_the_server_s(metrics: Metrics) -> None:
    assert set(re.findall(r'_Declined\("(\w+)"', Path(server.__file__).read_text())) == set(REASONS)
    assert samples(metrics, "cni_requests_declined_total") == {(reason,): 0 for reason in REASONS}
    metrics.declined("no_place")
    assert samples(metrics, "cni_requests_declined_total")["no_place",] == 1


def test_the_rest(metrics: Metrics) -> None:
    metrics.watch(GroupDeleter())
    build = {"version": cni.__version__, "python": platform.python_version()}
    (sample,) = families(metrics)["cni_build_info"].samples
    assert (sample.labels, sample.value) == (build, 1)
    assert samples(metrics, "cni_links_being_deleted") == {(): 0}
    assert {"process_resident_memory_bytes", "process_open_fds", "python_info", "python_gc_collections"} <= set(
        families(metrics)
    )
    assert not [name for name in families(metrics) if name.endswith("_created")]


# ---- addresses ----


class Networks:
    def __init__(self, folder: Path) -> None:
        self.conf = folder / "net.d"
        self.data = folder / "networks"

    def configure(self, name: str, *ranges: str, data_dir: Path | None = None) -> None:
        sets = [[{"subnet": subnet}] for subnet in ranges]
        ipam = {"type": "host-local", "dataDir": str(data_dir or self.data), "ranges": sets}
        conf = {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge", "ipam": ipam}]}
        (self.conf / f"{name}.conflist").write_text(json.dumps(conf))

    def reserve(self, network: str, *addresses: str, folder: Path | None = None) -> None:
        place = (folder or self.data) / network
        place.mkdir(parents=True, exist_ok=True)
        (place / "lock").touch()
        for address in addresses:
            (place / address).write_text("c1\r\neth0")


@pytest.fixture
def networks(tmp_path: Path) -> Networks:
    return Networks(tmp_path)


def addresses(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return samples(metrics, "cni_ipam_addresses")


def test_addresses_by_range_set(metrics: Metrics, networks: Networks) -> None:
    networks.configure("pods", "10.1.2.0/24", "fd00::/64")
    networks.reserve("pods", "10.1.2.1", "10.1.2.2", "10.1.2.3", "fd00::2", "last_reserved_ip.0", "192.0.2.1")
    v4, v6 = "10.1.2.1-10.1.2.254", "fd00::1-fd00::ffff:ffff:ffff:ffff"
    assert addresses(metrics) == {
        ("pods", v4, "used"): 2,  # the gateway's takes nothing away
        ("pods", v4, "free"): 251,
        ("pods", v6, "used"): 1,
        ("pods", v6, "free"): 2.0**64,  # as near as a float comes
        ("pods", "", "used"): 1,
    }
    assert samples(metrics, "cni_ipam_unreadable") == {(): 0}


def test_an_unused_network_and_one_that_is_configured_no_more(metrics: Metrics, networks: Networks) -> None:
    networks.configure("new", "10.2.0.0/30")
    networks.reserve("gone", "10.3.0.2")
    assert addresses(metrics) == {
        ("new", "10.2.0.1-10.2.0.2", "used"): 0,
        ("new", "10.2.0.1-10.2.0.2", "free"): 1,
        ("gone", "", "used"): 1,
    }


def test_one_name_in_two_places_is_one_series(metrics: Metrics, networks: Networks, tmp_path: Path) -> None:
    networks.configure("pods", "10.1.2.0/24", data_dir=tmp_path / "new")
    networks.reserve("pods", "10.9.9.9", folder=tmp_path / "new")
    networks.reserve("pods", "10.1.2.2")
    assert addresses(metrics)["pods", "", "used"] == 2


def test_what_cannot_be_read_does_not_hide_the_rest(metrics: Metrics, networks: Networks) -> None:
    networks.configure("pods", "10.1.2.0/30")
    networks.configure("wrong", "10.1.2.1/30")
    (networks.conf / "broken.conflist").write_text("{")
    networks.configure("odd", "10.5.0.0/30")
    networks.data.mkdir()
    (networks.data / "odd").write_text("no folder")
    assert set(addresses(metrics)) == {("pods", "10.1.2.1-10.1.2.2", state) for state in ("used", "free")}
    assert samples(metrics, "cni_ipam_unreadable") == {(): 3}
    networks.conf.rename(networks.conf.with_name("away"))
    networks.conf.write_text("no folder")
    assert addresses(metrics) == {}
    assert samples(metrics, "cni_ipam_unreadable") == {(): 1}


def test_a_full_pool_opens_no_file(metrics: Metrics, networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    networks.configure("pods", "10.1.0.0/20")
    hosts = [f"10.1.{number >> 8}.{number & 255}" for number in range(2, 4095)]
    networks.reserve("pods", *hosts)
    read: list[str] = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(str(path)))
    assert addresses(metrics)["pods", "10.1.0.1-10.1.15.254", "free"] == 0
    assert read == []


# ---- addresses to listen at ----


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("9464", "127.0.0.1:9464"),
        ("0.0.0.0:9464", "0.0.0.0:9464"),
        ("localhost:1", "localhost:1"),
        ("[::1]:9464", "[::1]:9464"),
        ("/run/cni/metrics.sock", "/run/cni/metrics.sock"),
        ("./metrics.sock", os.path.abspath("metrics.sock")),
    ],
)
def test_an_address(text: str, meant: str) -> None:
    assert str(Address.parse(text)) == meant
    assert str(Address.parse(meant)) == meant


@pytest.mark.parametrize(
    "text", ["", ":9464", "::1:9464", "[]:9464", "[::1:9464", "host", "host:", "1.2.3.4:0", "65536"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="neither HOST:PORT"):
        Address.parse(text)


def test_a_socket_s_file(tmp_path: Path) -> None:
    address = Address.parse(str(tmp_path / "new" / "metrics.sock"))
    with address.listen(1):
        assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o700
        with pytest.raises(OSError, match="an agent is listening there already"):
            address.listen(1)
    address.listen(1).close()  # where one was left
    address.remove()
    assert not os.path.exists(address.path)
    address.remove()


def test_another_s_file_stays(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="the file is not a socket"):
        Address.parse(str(tmp_path / "file")).listen(1)
    assert (tmp_path / "file").read_text() == "precious"


# ---- HTTP ----


@pytest.fixture
def address(metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    monkeypatch.setattr(module, "_TIMEOUT", LIMIT)
    address = Address(str(tmp_path / "run" / "metrics.sock"))
    with contextlib.closing(address.listen(16)) as listener:
        module.serve(listener, metrics.registry)
        yield address
        # For its threads, which end with their process otherwise, to find nothing to accept.
        listener.shutdown(socket.SHUT_RDWR)


def get(address: Address, request: bytes) -> bytes:
    with address.connect(LIMIT) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_metrics_and_nothing_else(metrics: Metrics, address: Address) -> None:
    serve(metrics)
    head, _, body = get(address, b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Content-Type: text/plain; version=" in head
    assert "cni_request_duration_seconds" in [f.name for f in text_string_to_metric_families(body.decode())]
    openmetrics = get(address, b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n")
    assert openmetrics.endswith(b"# EOF\n")
    only = get(address, b"GET /metrics?name[]=cni_build_info HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")[2]
    assert [family.name for family in text_string_to_metric_families(only.decode())] == ["cni_build_info"]
    for path in (b"/", b"/metrics/", b"/etc/passwd"):
        assert get(address, b"GET %s HTTP/1.0\r\n\r\n" % path).startswith(b"HTTP/1.0 404 ")
    assert get(address, b"POST /metrics HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 501 ")
    assert b"400" in get(address, b"nonsense of a client's\r\n\r\n")
    with contextlib.suppress(ConnectionError):  # hung up on before it is read
        assert b"200" not in get(address, b"GET /metrics HTTP/1.0\r\nX: " + b"x" * 10_000)[:15]


def test_slow_clients_go_away(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are threads, at their first byte or somewhere in the middle: all are hung up on."""
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    slow = [address.connect(LIMIT) for _ in range(12)]
    for number, connection in enumerate(slow):
        connection.sendall(b"GET /metrics HTTP/1.0\r\n"[:number])
    assert b"200 OK" in get(address, b"GET /metrics HTTP/1.0\r\n\r\n")
    for connection in slow:
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        connection.close()


def test_a_byte_now_and_then_is_not_enough(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is for the whole request."""
    now = 0.0
    timeouts: list[float] = []

    def tick() -> float:
        nonlocal now
        now += 1.0
        return now

    class Dripping:
        def settimeout(self, seconds: float) -> None:
            timeouts.append(seconds)
            if seconds < 0.01:
                raise TimeoutError

        def recv(self, _: int) -> bytes:
            return b"x"

    monkeypatch.setattr(time, "monotonic", tick)
    with pytest.raises(TimeoutError):
        module._head(cast("socket.socket", Dripping()))
    assert timeouts == [4.0, 3.0, 2.0, 1.0, 0.001]


def test_a_collector_that_fails_ends_no_thread(
    metrics: Metrics, address: Address, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as broken:
        broken.setattr(module, "_pools", fail)
        for _ in range(module._THREADS + 1):
            assert get(address, b"GET /metrics HTTP/1.0\r\n\r\n") == b""
    assert "cni agent: metrics: Traceback" in capfd.readouterr().err
    assert b"200 OK" in get(address, b"GET /metrics HTTP/1.0\r\n\r\n")


# ---- the page about them ----


def test_the_page_tells_of_all_of_them(metrics: Metrics, networks: Networks) -> None:
    metrics.watch(GroupDeleter())
    serve(metrics, CNIError("no", 11))
    networks.configure("pods", "10.1.2.0/24")
    table = re.findall(r"^\| `(cni_\w+)(?:\{([\w,]+)\})?` \| (\w+) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    told = {name: (set(filter(None, labels.split(","))), kind, meaning) for name, labels, kind, meaning in table}
    found = {}
    for family in families(metrics).values():
        if family.name.startswith("cni_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
            found[name] = (labels, family.type, family.documentation)
    assert told == found
    assert re.findall(r"^\| `((?!cni_)\w+)` \|", PAGE.read_text(), re.MULTILINE) == list(REASONS)


def test_the_queries_on_the_page_name_what_there_is(metrics: Metrics, networks: Networks) -> None:
    serve(metrics, CNIError("no", 11))
    networks.configure("pods", "10.1.2.0/24")
    known = {sample.name for family in families(metrics).values() for sample in family.samples} | {"cni_agent"}
    blocks = re.findall(r"```(?:promql|yaml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    named = set(re.findall(r"\bcni_\w+", "".join(blocks)))
    assert named
    assert named <= known
