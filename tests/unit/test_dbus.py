"""D-Bus against a real bus, and against one that answers what it should not."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_plugins.meta.firewall import dbus
from cni_plugins.meta.firewall.dbus import Bus, DBusError
from tests.waiting import LIMIT

DBUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
CONFIG = """
<busconfig>
  <type>system</type>
  <listen>{listen}</listen>
  <auth>{auth}</auth>
  <policy context="default">
    <allow user="*"/><allow send_destination="*"/><allow send_type="*"/><allow receive_type="*"/>
  </policy>
</busconfig>
"""


@pytest.fixture
def start_bus(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts a message bus; returns its address, as it tells it itself."""
    daemons = []

    def start(listen: str = "", auth: str = "EXTERNAL") -> str:
        assert shutil.which("dbus-daemon"), "Debian's package dbus-daemon is not installed"
        config = tmp_path / "bus.conf"
        config.write_text(CONFIG.format(listen=listen or f"unix:path={tmp_path}/bus", auth=auth))
        command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--nosyslog", "--print-address"]
        daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        daemons.append(daemon)
        assert daemon.stdout
        return daemon.stdout.readline().strip()

    yield start
    for daemon in daemons:
        daemon.kill()
        daemon.communicate()


def test_calls(start_bus: Callable[..., str]) -> None:
    address = start_bus()
    assert ",guid=" in address
    with Bus(address) as bus, Bus(address) as other:
        assert bus.call(*DBUS, "NameHasOwner", "org.example") == [False]
        assert bus.call(*DBUS, "NameHasOwner", "org.freedesktop.DBus") == [True]
        (identity,) = bus.call(*DBUS, "GetId")
        assert len(str(identity)) == 32
        assert other.call(*DBUS, "GetNameOwner", "org.freedesktop.DBus") == ["org.freedesktop.DBus"]
        assert other.call(*DBUS, "GetConnectionUnixUser", "org.freedesktop.DBus") == [os.geteuid()]
        assert bus.call(*DBUS, "ListNames") == []  # an array, which nobody here needs
        (text,) = bus.call(DBUS[0], DBUS[1], "org.freedesktop.DBus.Introspectable", "Introspect")
        assert str(text).startswith("<!DOCTYPE")


def test_errors_have_the_name_that_the_bus_gives_them(start_bus: Callable[..., str]) -> None:
    with Bus(start_bus()) as bus:
        with pytest.raises(DBusError, match=r"GetNameOwner: .*NameHasNoOwner: .*'org\.example'") as refused:
            bus.call(*DBUS, "GetNameOwner", "org.example")
        assert refused.value.name == "org.freedesktop.DBus.Error.NameHasNoOwner"
        with pytest.raises(DBusError) as refused:
            bus.call("org.example", "/x", "org.example.x", "Do", "a", "ä", "c")
        assert refused.value.name == "org.freedesktop.DBus.Error.NameHasNoOwner"  # nothing was started for us
        with pytest.raises(DBusError, match="NUL"):
            bus.call(*DBUS, "NameHasOwner", "a\0b")
        assert bus.call(*DBUS, "NameHasOwner", "org.example") == [False]


def test_long_strings_and_every_alignment(start_bus: Callable[..., str]) -> None:
    with Bus(start_bus()) as bus:
        for length in [*range(1, 20), 255, 100_000]:
            with pytest.raises(DBusError) as refused:
                bus.call(*DBUS, "GetNameOwner", "a" * length)
            assert refused.value.name.startswith("org.freedesktop.DBus.Error.")


@pytest.mark.parametrize("listen", ["unix:abstract=cni-test-%2d{pid}", "unix:path={tmp}/a%20b%2cc"])
def test_addresses(start_bus: Callable[..., str], listen: str, tmp_path: Path) -> None:
    address = start_bus(listen.format(pid=os.getpid(), tmp=tmp_path))
    for each in (address, f"tcp:host=localhost,port=1;{address}"):
        with Bus(each) as bus:
            assert bus.call(*DBUS, "NameHasOwner", "org.example") == [False]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("unix:path=/nowhere/bus", "No such file"),
        ("tcp:host=localhost,port=1", "unsupported address of the message bus"),
        ("", "unsupported address of the message bus"),
        ("unix:tmpdir=/tmp", "unsupported address of the message bus"),
        ("unix:path=/a%zz", "malformed"),
        ("unix:path=" + "x" * 200, "too long"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, words: str) -> None:
    with pytest.raises(DBusError, match=words):
        Bus(address)


def test_a_bus_that_takes_others_only(start_bus: Callable[..., str]) -> None:
    with pytest.raises(DBusError, match="the message bus rejects the connection: REJECTED"):
        Bus(start_bus(auth="DBUS_COOKIE_SHA1"))


# a bus that answers what it should not


def message(
    kind: int, serial: int, body: bytes = b"", signature: str = "", order: str = "little", **more: str
) -> bytes:
    def number(value: int) -> bytes:
        return value.to_bytes(4, "little" if order == "little" else "big")

    fields = bytes((5, 1)) + b"u\0" + number(serial)
    if signature:
        fields += bytes((8, 1)) + b"g\0" + bytes((len(signature),)) + signature.encode() + b"\0"
    if "error" in more:
        fields += bytes(-len(fields) % 8) + bytes((4, 1)) + b"s\0" + number(len(more["error"]))
        fields += more["error"].encode() + b"\0"
    start = (
        (b"l" if order == "little" else b"B")
        + bytes((kind, 0, 1))
        + number(len(body))
        + number(7)
        + number(len(fields))
    )
    return start + fields + bytes(-len(fields) % 8) + body


def text(value: str, order: str = "little") -> bytes:
    return len(value).to_bytes(4, "little" if order == "little" else "big") + value.encode() + b"\0"


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """Starts a bus that says hello, answers the next call so, and hangs up. Returns its address."""
    threads = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp_path}/bus")
    listener.listen()
    listener.settimeout(LIMIT)

    def serve(answer: bytes) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(LIMIT)
            connection.recv(4096)
            connection.sendall(b"OK 1234")
            connection.sendall(b"deadbeef\r\n")
            received = b""
            while b"Hello" not in received:
                received += connection.recv(4096)
            # A signal comes between, and all of it in pieces.
            for byte in message(4, 0, text("x"), "s") + message(2, 1, text(":1.1"), "s"):
                connection.sendall(bytes((byte,)))
            connection.recv(4096)
            connection.sendall(answer)

    def start(answer: bytes) -> str:
        threads.append(threading.Thread(target=serve, args=(answer,)))
        threads[0].start()
        return f"unix:path={tmp_path}/bus"

    yield start
    for thread in threads:
        thread.join()
    listener.close()


@pytest.mark.parametrize(
    ("answer", "values"),
    [
        (message(2, 2), []),
        (message(2, 2, text("a") + bytes(2) + text("bc"), "ss"), ["a", "bc"]),
        (message(2, 2, text("a", "big") + bytes(2) + text("bc", "big"), "ss", order="big"), ["a", "bc"]),
        (message(2, 2, bytes((1, 0, 0, 0, 9, 0, 0, 0)), "bu"), [True, 9]),
        (message(2, 2, text("a") + b"\0" * 30, "sas"), ["a"]),
        (message(2, 2, b"\x02su\0" + text("x"), "gs"), ["su", "x"]),
        (message(2, 1, text("old"), "s") + message(2, 2, text("new"), "s"), ["new"]),
        (message(1, 2, text("a call"), "s") + message(2, 2, text("new"), "s"), ["new"]),
    ],
)
def test_answers(answering: Callable[[bytes], str], answer: bytes, values: list[object]) -> None:
    with Bus(answering(answer)) as bus:
        assert bus.call("a.b", "/a", "a.b", "C") == values


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection"),
        (message(2, 2)[:-1], "closed the connection"),
        (message(2, 2, b"\xff\xff\0\0abc\0", "s"), "is truncated"),
        (message(2, 2, b"", "s"), "is truncated"),
        (b"l\2\0\1\xff\xff\xff\x7f" + bytes(8), "the message has 21474836"),
        (b"l\2\0\1" + bytes(8) + b"\2\0\0\0\5\1" + bytes(6), "is truncated|header field"),
        (b"l\2\0\1" + bytes(8) + b"\x08\0\0\0\5\1v\0\0\0\0\0", "a header field has the unsupported type v"),
        (message(3, 2, text("no"), "s", error="a.b.No"), "a.b.C: a.b.No: no"),
        (message(3, 2, error="a.b.No"), "a.b.C: a.b.No$"),
        (message(3, 2, bytes(4), "u", error="a.b.No"), "a.b.C: a.b.No: 0"),
    ],
)
def test_answers_that_are_none(answering: Callable[[bytes], str], answer: bytes, words: str) -> None:
    with Bus(answering(answer)) as bus, pytest.raises(DBusError, match=words):
        bus.call("a.b", "/a", "a.b", "C")


def test_a_bus_that_never_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dbus, "_TIMEOUT", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/bus")
        listener.listen()
        with pytest.raises(DBusError, match="timed out"):
            Bus(f"unix:path={tmp_path}/bus")
