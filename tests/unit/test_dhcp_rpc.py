"""Test what plugin and daemon say to each other, byte by byte as Go's do."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.spec.errors import CNIError
from cni.spec.ip import CIDR, IP
from cni.spec.result import IPConfig, Result, Route
from cni_plugins.ipam.dhcp import gob, plugin, rpc

# Written by Go's encoder.
REQUEST = (
    "2e7f030101075265717565737401ff80000102010d536572766963654d6574686f64010c0001035365710106000000"
    "12ff80010d444843502e416c6c6f6361746500"
)
COMMAND = (
    "6cff8103010107436d644172677301ff82000107010b436f6e7461696e65724944010c0001054e65746e73010c00010649664e616d65010c"
    "00010441726773010c00010450617468010c00010d4e65746e734f76657272696465010c000109537464696e44617461010a000000"
    "30ff82010463696431010d2f72756e2f6e65746e732f6331010465746830020c2f6f70742f636e692f62696e02027b7d00"
)
RESPONSE = (
    "397f03010108526573706f6e736501ff80000103010d536572766963654d6574686f64010c00010353657101060001054572726f72010c000000"
    "12ff80010d444843502e416c6c6f6361746500"
)
ERROR = "18ff80010d444843502e416c6c6f636174650204626f6f6d00"
NOTHING = "0aff95030102ff9600000003ff9600"
RESULT_TYPES = (
    "51ff8103010106526573756c7401ff82000105010a434e4956657273696f6e010c00010a496e746572666163657301ff8600010349507301ff8c"
    "000106526f7574657301ff90000103444e5301ff92000000"
    "24ff85020101155b5d2a74797065733130302e496e7465726661636501ff860001ff840000"
    "4aff83030102ff8400010601044e616d65010c0001034d6163010c0001034d7475010400010753616e64626f78010c00010a536f636b65745061"
    "7468010c0001055063694944010c000000"
    "23ff8b020101145b5d2a74797065733130302e4950436f6e66696701ff8c0001ff880000"
    "33ff87030102ff880001030109496e7465726661636501040001074164647265737301ff8a00010747617465776179010a000000"
    "23ff890301010549504e657401ff8a00010201024950010a0001044d61736b010a000000"
    "1dff8f0201010e5b5d2a74797065732e526f75746501ff900001ff8e0000"
    "50ff8d030102ff8e000107010344737401ff8a0001024757010a0001034d545501040001064164764d5353010400010850"
    "72696f7269747901040001055461626c65010400010553636f70650104000000"
    "46ff9103010103444e5301ff92000104010b4e616d657365727665727301ff94000106446f6d61696e010c00010653656172636801ff94000107"
    "4f7074696f6e7301ff94000000"
    "16ff93020101085b5d737472696e6701ff9400010c0000"
)
RESULT = (
    "3aff820105312e312e300201020104c0a801050104ffffff00000104c0a8010100010101010400000000010400000000000104c0a8010100"
    "010000"
)
RESULT_WITH_METRIC = (
    "41ff820105312e312e300201020104c0a801050104ffffff00000104c0a8010100010101010400000000010400000000000104c0a8010103"
    "ffc802fe01fa00010000"
)

CALL = {"ServiceMethod": "DHCP.Allocate"}
ARGUMENTS = {
    "ContainerID": "cid1",
    "Netns": "/run/netns/c1",
    "IfName": "eth0",
    "Path": "/opt/cni/bin",
    "StdinData": b"{}",
}


def result(**route: Any) -> Result:
    gateway = IP.parse("192.168.1.1")
    return Result(
        ips=[IPConfig(CIDR.parse("192.168.1.5/24"), gateway)],
        routes=[Route(CIDR.parse("0.0.0.0/0"), gateway, **route)],
    )


def test_a_call_as_go_writes_it() -> None:
    encoder = gob.Encoder()
    assert encoder.encode(rpc.REQUEST, CALL).hex() == REQUEST
    assert encoder.encode(rpc.COMMAND, ARGUMENTS).hex() == COMMAND


def test_an_answer_as_go_writes_it() -> None:
    encoder = gob.Encoder()
    assert encoder.encode(rpc.RESPONSE, CALL).hex() == RESPONSE
    assert encoder.encode(rpc.RESPONSE, {**CALL, "Error": "boom"}).hex() == ERROR
    assert encoder.encode(rpc.NOTHING, {}).hex() == NOTHING
    value = {"CNIVersion": "1.1.0", **rpc.from_result(result())}
    assert encoder.encode(rpc.RESULT, value).hex() == RESULT_TYPES + RESULT
    value = {"CNIVersion": "1.1.0", **rpc.from_result(result(priority=100, scope=253))}
    assert encoder.encode(rpc.RESULT, value).hex() == RESULT_WITH_METRIC


def test_what_go_writes_is_read() -> None:
    decoder = gob.Decoder()
    head, command = decoder.feed(bytes.fromhex(REQUEST + COMMAND))
    assert head == CALL
    assert command == ARGUMENTS
    decoder = gob.Decoder()
    stream = bytes.fromhex(RESPONSE + RESULT_TYPES + RESULT + ERROR + NOTHING + RESULT_WITH_METRIC)
    values = [value for byte in stream for value in decoder.feed(bytes((byte,)))]
    assert values[0] == CALL
    assert values[1]["CNIVersion"] == "1.1.0"
    assert rpc.to_result(values[1]) == result()
    assert values[2:4] == [{**CALL, "Error": "boom"}, {}]
    assert rpc.to_result(values[4]) == result(priority=100, scope=253)


def test_numbers_of_types_are_what_the_stream_says() -> None:
    """In a stream of another program Request may be 70, and have its fields in another order."""
    fields = (("Extra", gob.BYTES), ("Seq", gob.UINT), ("ServiceMethod", gob.STRING))
    other = gob.Type("Request", 70, fields=fields)
    stream = gob.Encoder().encode(other, {"Extra": b"x", "Seq": 300, "ServiceMethod": "DHCP.Release"})
    assert gob.Decoder().feed(stream) == [{"Extra": b"x", "Seq": 300, "ServiceMethod": "DHCP.Release"}]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("prefix", [0, 1, 24, 31, 32])
def test_results_there_and_back(version: int, prefix: int) -> None:
    network = CIDR(IP.from_int(0x0A010203, version), prefix)
    there = Result(
        ips=[IPConfig(network, None), IPConfig(network, network.ip)],
        routes=[Route(network.network, mtu=1400, advmss=-5, priority=1 << 40, table=7)],
    )
    decoder = gob.Decoder()
    (value,) = decoder.feed(gob.Encoder().encode(rpc.RESULT, rpc.from_result(there)))
    assert rpc.to_result(value) == there


def test_v4_in_16_bytes() -> None:
    mapped = bytes(10) + b"\xff\xff"
    value = {"IPs": [{"Address": {"IP": mapped + bytes((10, 0, 0, 1)), "Mask": b"\xff\xff\0\0"}}]}
    assert str(rpc.to_result(value).ips[0].address) == "10.0.0.1/16"
    value["IPs"][0]["Address"]["Mask"] = b"\xff" * 15 + b"\0"
    assert str(rpc.to_result(value).ips[0].address) == "10.0.0.1/24"


SENSELESS: list[dict[str, Any]] = [
    {"IPs": [{}]},
    {"IPs": ["x"]},
    {"IPs": 5},
    {"IPs": [{"Address": {"IP": b"abc", "Mask": b"\xff\0\0\0"}}]},
    {"IPs": [{"Address": {"IP": b"abcd", "Mask": b"\xff\0\xff\0"}}]},
    {"IPs": [{"Address": {"IP": b"abcd", "Mask": b""}}]},
    {"Routes": [{"GW": b"abcd"}]},
]


@pytest.mark.parametrize("value", SENSELESS)
def test_a_senseless_result(value: dict[str, Any]) -> None:
    with pytest.raises(CNIError, match="invalid answer of the DHCP daemon"):
        rpc.to_result(value)


def message(hexadecimal: str) -> bytes:
    body = bytes.fromhex(hexadecimal)
    return gob._sized(body)


BROKEN = {
    "an empty message": ("00", "a message of 0 bytes"),
    "a huge message": ("fc7fffffff", "a message of 2147483647 bytes"),
    "an integer of nine bytes": ("f7" + "ff" * 9, "an integer of 9 bytes"),
    "an unknown type": (message("ff9000").hex(), "type 72 is not defined"),
    "no struct": (message("0605").hex(), "which is no struct"),
    "a text that is too long": (message("0cff").hex(), "longer than the data"),
    "bytes too many": (REQUEST[:94] + message("ff80000001").hex(), "2 bytes too many"),
    "a field too many": (REQUEST[:94] + message("ff800900").hex(), "field 8 of a struct that has 2"),
    "a struct without end": (REQUEST[:94] + message("ff80010141").hex(), "longer than the data"),
    "a type twice": (REQUEST[:94] + REQUEST[:94], "type 64 is defined already"),
    "one of gob's own types": (message("05" + "030102ff8000" + "0000").hex(), "type 3 is defined already"),
    "a type that is none": (message("7f00").hex(), "type 64 has no definition, or several"),
    "a list of a billion": (
        "16ff93020101085b5d737472696e6701ff9400010c0000" + message("ff94fc3b9aca00").hex(),
        "a list of 1000000000 in 0 bytes",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream(name: str) -> None:
    stream, problem = BROKEN[name]
    with pytest.raises(ValueError, match=problem):
        gob.Decoder().feed(bytes.fromhex(stream))


def test_a_type_that_consists_of_itself() -> None:
    endless = gob.Type("T", 64, fields=())
    endless.fields = (("T", endless),)
    encoder = gob.Encoder()
    definitions = encoder.encode(endless, {})
    with pytest.raises(ValueError, match="nested deeper"):
        gob.Decoder().feed(definitions + message("ff80" + "01" * 1000))


def test_types_without_end() -> None:
    decoder = gob.Decoder()
    with pytest.raises(ValueError, match="more than 64 types"):
        for number in range(64, 200):
            decoder.feed(gob.Encoder().encode(gob.Type("T", number, fields=()), {}))


STREAMS = [
    bytes.fromhex(stream) for stream in (REQUEST + COMMAND, RESPONSE + RESULT_TYPES + RESULT + RESULT_WITH_METRIC)
]


@settings(max_examples=300)
@given(
    st.sampled_from(STREAMS), st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=3)), max_size=8), st.data()
)
def test_mutated_streams(stream: bytes, changes: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """Values or ValueError, in a time that follows from the size."""
    changed = bytearray(stream)
    for position, replacement in changes:
        at = position % (len(changed) + 1)
        changed[at : at + 1] = replacement
    decoder = gob.Decoder()
    try:
        for value in decoder.feed(bytes(changed[: data.draw(st.integers(0, len(changed)))])):
            rpc.to_result(value)
    except (CNIError, ValueError):
        pass


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    try:
        gob.Decoder().feed(data)
        rpc.Session().feed(rpc.CONNECT + data)
    except ValueError:
        pass


class TestSession:
    def test_whole(self) -> None:
        session = rpc.Session()
        reply, calls = session.feed(rpc.CONNECT + bytes.fromhex(REQUEST + COMMAND))
        assert reply == b"HTTP/1.0 200 Connected to Go RPC\n\n"
        assert calls == [(CALL, ARGUMENTS)]
        assert session.is_between_calls
        answer = session.answer(CALL, result())
        assert answer.hex().startswith(RESPONSE + RESULT_TYPES)
        assert session.refuse(CALL, "boom").hex() == ERROR + NOTHING

    def test_byte_by_byte(self) -> None:
        session = rpc.Session()
        stream = b"CONNECT /_goRPC_ HTTP/1.0\r\nHost: x\r\n\r\n" + bytes.fromhex(REQUEST + COMMAND)
        said = [session.feed(bytes((byte,))) for byte in stream]
        assert b"".join(reply for reply, _ in said) == rpc.CONNECTED
        assert [call for _, calls in said for call in calls] == [(CALL, ARGUMENTS)]

    def test_a_release(self) -> None:
        assert rpc.Session().answer({"ServiceMethod": "DHCP.Release", "Seq": 7}).endswith(bytes.fromhex(NOTHING))

    @pytest.mark.parametrize("head", [b"GET / HTTP/1.0\n\n", b"CONNECT /x HTTP/1.0\n\n", b"\n\n"])
    def test_no_rpc(self, head: bytes) -> None:
        with pytest.raises(ConnectionRefusedError):
            rpc.Session().feed(head)

    def test_a_head_without_end(self) -> None:
        with pytest.raises(ValueError, match="is longer than 8192 bytes"):
            rpc.Session().feed(b"x" * 9000)


class Daemon:
    """Listens, hears one client out, and answers with what it is given."""

    def __init__(self, folder: Path, answer: bytes) -> None:
        self.path = str(folder / "s")
        self.heard = b""
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Daemon:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            self.heard = connection.recv(1 << 16)
            connection.sendall(self._answer)
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(1 << 16):
                self.heard += data


def run(verb: str, path: str, **more: Any) -> tuple[int, Any, str]:
    environ = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "cid1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    }
    config = {"cniVersion": "1.1.0", "name": "n", "type": "bridge", "ipam": {"type": "dhcp", "daemonSocketPath": path}}
    log: list[str] = []
    outcome = plugin.serve(environ, json.dumps({**config, **more}).encode, log.append)
    return outcome.status, json.loads(outcome.stdout or "null"), "".join(f"{text}\n" for text in log)


class TestPlugin:
    ANSWER = rpc.CONNECTED + bytes.fromhex(RESPONSE + RESULT_TYPES + RESULT)

    def test_add(self, tmp_path: Path) -> None:
        with Daemon(tmp_path, self.ANSWER) as daemon:
            status, printed, _ = run("ADD", daemon.path)
        assert (status, printed) == (
            0,
            {
                "cniVersion": "1.1.0",
                "ips": [{"address": "192.168.1.5/24", "gateway": "192.168.1.1"}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "192.168.1.1"}],
            },
        )
        reply, calls = rpc.Session().feed(daemon.heard)
        assert reply == rpc.CONNECTED
        ((head, arguments),) = calls
        assert head == CALL
        assert {key: arguments[key] for key in arguments if key != "StdinData"} == {
            key: value for key, value in ARGUMENTS.items() if key != "StdinData"
        }
        assert json.loads(arguments["StdinData"])["name"] == "n"

    @pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL"])
    def test_without_a_daemon(self, tmp_path: Path, verb: str) -> None:
        path = str(tmp_path / "s")
        problem = f"error dialing DHCP daemon: dial unix {path}: connect: no such file or directory"
        assert run(verb, path)[:2] == (1, {"code": 5, "msg": problem})

    def test_status(self, tmp_path: Path) -> None:
        status, printed, _ = run("STATUS", str(tmp_path / "s"))
        assert (status, printed["code"]) == (1, 50)
        with Daemon(tmp_path, rpc.CONNECTED) as daemon:
            assert run("STATUS", daemon.path)[0] == 0

    def test_an_error(self, tmp_path: Path) -> None:
        with Daemon(tmp_path, rpc.CONNECTED + bytes.fromhex(RESPONSE[:116] + ERROR + NOTHING)) as daemon:
            assert run("ADD", daemon.path)[:2] == (1, {"code": 999, "msg": "error calling DHCP.Allocate: boom"})

    @pytest.mark.parametrize(
        ("answer", "problem"),
        [
            (b"", "dial-http unix {}: unexpected EOF"),
            (rpc.REFUSED, "dial-http unix {}: unexpected HTTP response: 405 Method Not Allowed"),
            (b"SSH-2.0\n\n", "dial-http unix {}: unexpected HTTP response: "),
            (b"x" * 10000, "dial-http unix {}: the HTTP response is longer than 8192 bytes"),
        ],
    )
    def test_no_daemon_of_ours(self, tmp_path: Path, answer: bytes, problem: str) -> None:
        with Daemon(tmp_path, answer) as daemon:
            _, printed, _ = run("ADD", daemon.path)
        assert printed["msg"] == f"error dialing DHCP daemon: {problem.format(daemon.path)}"

    @pytest.mark.parametrize(
        ("answer", "problem"),
        [
            (rpc.CONNECTED, "error calling DHCP.Allocate: unexpected EOF"),
            (ANSWER[:-1], "error calling DHCP.Allocate: unexpected EOF"),
            (rpc.CONNECTED + b"\0", "error calling DHCP.Allocate: gob: a message of 0 bytes"),
        ],
    )
    def test_a_broken_answer(self, tmp_path: Path, answer: bytes, problem: str) -> None:
        with Daemon(tmp_path, answer) as daemon:
            assert run("ADD", daemon.path)[1]["msg"] == problem

    def test_check_knows_the_address(self, tmp_path: Path) -> None:
        for address, status in (("192.168.1.5/24", 0), ("192.168.1.6/24", 1)):
            (tmp_path / address[10]).mkdir()
            with Daemon(tmp_path / address[10], self.ANSWER) as daemon:
                previous = {"cniVersion": "1.1.0", "ips": [{"address": address}]}
                done = run("CHECK", daemon.path, prevResult=previous)
            assert done[0] == status
        assert done[1]["msg"] == "dhcp: the lease is for 192.168.1.5/24, the attachment has 192.168.1.6/24"

    def test_gc(self, tmp_path: Path) -> None:
        attachments = {"cni.dev/valid-attachments": []}
        refusal = {"ServiceMethod": rpc.COLLECT}
        for number, problem in enumerate((f"rpc: can't find method {rpc.COLLECT}", "broken")):
            (tmp_path / str(number)).mkdir()
            answer = rpc.CONNECTED + rpc.Session().refuse(refusal, problem)
            with Daemon(tmp_path / str(number), answer) as daemon:
                status, _, _ = run("GC", daemon.path, **attachments)
            assert status == number
        assert run("GC", "/does/not/exist")[0] == 0
        assert "nothing is released" in run("GC", "/does/not/exist")[2]

    def test_a_wrong_socket_path(self) -> None:
        code, printed, _ = run("ADD", "/x", ipam={"daemonSocketPath": 5})
        assert code == 1
        assert printed["msg"].startswith(
            "error obtaining socketPath: error parsing socket path conf: ipam.daemonSocketPath: 5"
        )
