"""sbr as far as it gets without a kernel: its configuration, whose addresses count, and which rules are its own."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from cni import _core
from cni._core import NetlinkError, parse_attributes, u32
from cni.kernel.netns import NetNS
from cni.spec.ip import CIDR, IP
from cni.spec.result import Interface, IPConfig, Result
from cni.system import files
from cni_plugins.meta import sbr
from cni_plugins.meta.sbr import routing

HEAD = {"cniVersion": "1.1.0", "name": "net", "type": "sbr"}
PREVIOUS = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0"}], "ips": [{"address": "10.1.2.3/24"}]}


def run(verb: str, config: dict[str, Any], netns: str = "/nowhere") -> Any:
    """Return what the plugin prints; None if that is nothing."""
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_PATH": "/nowhere"}
    outcome = sbr.plugin.serve({**environ, "CNI_NETNS": netns}, json.dumps({**HEAD, **config}).encode, print)
    answer = json.loads(outcome.stdout or "null")
    assert outcome.status == int(answer is not None and "code" in answer)
    return answer


WRONG = [
    ({}, "This plugin must be called as chained plugin"),
    ({"prevResult": {**PREVIOUS, "ips": []}}, "No IP addresses supplied on interface: eth0"),
    (
        {
            "prevResult": {
                **PREVIOUS,
                "interfaces": [{"name": "eth1"}],
                "ips": [{"address": "10.1.2.3/24", "interface": 0}],
            }
        },
        "No IP addresses supplied on interface: eth0",
    ),
    ({"gateways": ["10.1.2.300"]}, "invalid static gateway IP address: 10.1.2.300"),
    ({"gateways": [""]}, "invalid static gateway IP address: "),
    ({"gateways": ["10.0.0.1", "10.0.0.2"]}, "gateways list contains multiple IPv4 addresses: 10.0.0.1 and 10.0.0.2"),
    ({"gateways": ["10.0.0.1", "10.0.0.1"]}, "gateways list contains multiple IPv4 addresses: 10.0.0.1 and 10.0.0.1"),
    ({"gateways": ["fd00::1", "fd00::2"]}, "gateways list contains multiple IPv6 addresses: fd00::1 and fd00::2"),
    (
        {"gateways": ["10.0.0.1", "fd00::1", "x"]},
        "gateways list cannot contain more than 2 entries (one IPv4, one IPv6)",
    ),
    ({"gateways": "10.0.0.1"}, 'gateways: "10.0.0.1" is not a list'),
    ({"gateways": [1]}, "gateways[0]: 1 is not a string"),
    ({"table": 0}, "table: 0 is not between 1 and 4294967295"),
    ({"table": 1 << 32}, "table: 4294967296 is not between 1 and 4294967295"),
    ({"table": "100"}, 'table: "100" is not an integer'),
    ({"addSourceHints": 1}, "addSourceHints: 1 is not true or false"),
]


@pytest.mark.parametrize(("config", "text"), WRONG)
def test_what_is_wrong_is_said_before_anything_is_done(config: dict[str, Any], text: str) -> None:
    previous = {} if config == {} else {"prevResult": PREVIOUS}
    said = run("ADD", {**previous, **config})["msg"]
    assert said.removeprefix("failed to parse network configuration: ") == text


def test_a_wrong_gateway_is_found_by_its_place() -> None:
    answer = run("ADD", {"prevResult": PREVIOUS, "gateways": ["10.0.0.1", "x"]})
    assert answer["details"] == "gateways[1]"


@pytest.mark.parametrize("gateways", [[], ["10.0.0.1"], ["fd00::1"], ["10.0.0.1", "fd00::1"], ["fd00::1", "10.0.0.1"]])
def test_one_gateway_of_a_family_is_fine(gateways: list[str]) -> None:
    assert run("ADD", {"prevResult": PREVIOUS, "gateways": gateways})["msg"].startswith(
        'failed to open netns "/nowhere"'
    )


def test_without_a_namespace_delete_succeeds_and_makes_no_file(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for config in ({}, {"prevResult": PREVIOUS}, {"gateways": ["what ADD refused"]}):
        for netns in ("", "/nowhere/at/all", str(gone)):
            assert run("DEL", config, netns) is None
    assert not gone.exists()


def test_what_is_no_namespace_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert run("DEL", {}, str(file))["msg"].startswith(f'failed to open netns "{file}": ')


# ---- whose addresses ----


class Asked:
    ifname = "net1"


def test_addresses_of_other_interfaces_do_not_count() -> None:
    ips = [
        IPConfig(CIDR.parse(f"10.0.0.{number}/24"), interface=interface)
        for number, interface in enumerate((None, 0, 1, 2, -1, 7))
    ]
    result = Result([Interface("eth0"), Interface("net1"), Interface("net1")], ips)
    found = [str(ip.address.ip) for ip in sbr._own_ips(Asked(), result)]  # type: ignore[arg-type]
    assert found == ["10.0.0.0", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]


# ---- tables ----


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (set(), [100, 101, 102]),
        ({100, 102}, [101, 103, 104]),
        ({1, 99, 1000}, [100, 101, 102]),
        (set(range(100, 252)), [252, 256, 257]),
    ],
)
def test_free_tables(used: set[int], expected: list[int]) -> None:
    assert list(islice(sbr._free_tables(used), 3)) == expected


# ---- rules ----

AF_INET, AF_INET6, RTNL_FAMILY_IPMR = 2, 10, 128
TO_TABLE, UNREACHABLE = 1, 7
SOURCE = IP.parse("10.0.0.1").packed


def attribute(number: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return length.to_bytes(2, "little") + number.to_bytes(2, "little") + value + bytes(-length % 4)


def rule(
    family: int = AF_INET,
    to: int = 0,
    length: int = 32,
    tos: int = 0,
    table: int = 100,
    action: int = TO_TABLE,
    flags: int = 0,
    source: bytes = SOURCE,
    **attributes: bytes,
) -> bytes:
    """A rule as the kernel tells it; `attributes` by names a1, a2 and so on."""
    header = bytes([family, to, length, tos, table if table < 256 else 252, 0, 0, action]) + u32(flags)
    told = {15: u32(table), 14: b"\xff" * 4, 21: b"\0", 6: u32(32765)}
    told |= {2: source} if source else {}
    told |= {int(name[1:]): value for name, value in attributes.items()}
    return header + b"".join(attribute(number, value) for number, value in told.items())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (rule(), (IP.parse("10.0.0.1"), 100)),
        (rule(table=70000), (IP.parse("10.0.0.1"), 70000)),
        (rule(AF_INET6, length=128, source=IP.parse("fd00::1").packed), (IP.parse("fd00::1"), 100)),
        (rule(length=24), (None, 100)),
        (rule(length=0, source=b""), (None, 100)),
        (rule(to=24, a1=SOURCE), (None, 100)),
        (rule(tos=16), (None, 100)),
        (rule(action=UNREACHABLE, table=0), (None, 0)),
        (rule(flags=2), (None, 100)),  # FIB_RULE_INVERT: "not from"
        (rule(a3=b"eth0\0"), (None, 100)),  # iif
        (rule(a10=u32(7)), (None, 100)),  # fwmark
        (rule(a17=b"eth0\0"), (None, 100)),  # oif
        (rule(a22=b"\6"), (None, 100)),  # ipproto
        (rule(a14=u32(0)), (None, 100)),  # suppress_prefixlength 0
        (rule(RTNL_FAMILY_IPMR), (None, 100)),
        (bytes([AF_INET, 0, 0, 0, 77, 0, 0, TO_TABLE]) + bytes(4), (None, 77)),
    ],
)
def test_rules_are_read(message: bytes, expected: tuple[IP | None, int]) -> None:
    assert parse_attributes(message[12:]) is not None
    assert routing._read_rule(message) == expected


# ---- what may be missing ----


class Kernel:
    """A node whose kernel answers a list of rules so."""

    def __init__(self, status: int) -> None:
        self.status = status

    def netlink(self) -> Kernel:
        return self

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None: ...

    def dump(self, type: int, header: bytes, attributes: object, what: str) -> list[Any]:
        assert (type, header[0]) == (34, AF_INET)
        if self.status:
            raise NetlinkError(self.status, what)
        return []


def test_status_tells_that_the_kernel_has_no_rules() -> None:
    def status(kernel: Kernel) -> Any:
        environ = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/nowhere"}
        outcome = sbr.plugin.serve(environ, json.dumps(HEAD).encode, print, kernel)  # type: ignore[arg-type]
        return json.loads(outcome.stdout or "null")

    assert status(Kernel(0)) is None
    assert status(Kernel(97)) == {
        "code": 50,
        "msg": "this kernel has no routing rules: list rules: address family not supported by protocol",
        "details": "sbr needs policy routing: CONFIG_IP_MULTIPLE_TABLES",
    }


def test_a_lock_that_another_process_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "lock", lambda fd, timeout: False)
    monkeypatch.setattr(sbr, "_LOCK_TIMEOUT", 0.0)
    with NetNS(_core.netns_current(), "/run/netns/x") as here, pytest.raises(sbr.CNIError) as refused:
        sbr._lock(here)
    assert refused.value.code == 11
    assert refused.value.msg == (
        'cannot lock the namespace "/run/netns/x": another process has held the lock for 0 seconds; try again later'
    )
