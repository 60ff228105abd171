"""static whole: every verb through the plugin's frame."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni_plugins.ipam.static import plugin

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
DUAL = [
    {"address": "10.10.0.1/24", "gateway": "10.10.0.254"},
    {"address": "3ffe:ffff:0:01ff::1/64", "gateway": "3ffe:ffff:0::1"},
]
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.10.5.1"}, {"dst": "3ffe:ffff:0:01ff::1/64"}]
DNS = {"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"], "options": ["ndots:1"]}

BAD_ADDRESS = "the 'address' field is expected to be in CIDR notation, got: '{}'"
BAD_IP = "the 'ip' field is expected to be in CIDR notation, got: '{}'"
BAD_IPS = "an entry in the 'ips' field is NOT in CIDR notation, got: '{}'"


def conf(
    version: str = "1.1.0", *, runtime: list[Any] | None = None, args: list[Any] | None = None, **ipam: Any
) -> dict[str, Any]:
    given: dict[str, Any] = {"cniVersion": version, "name": "mynet", "type": "ipvlan", "master": "foo0"}
    given["ipam"] = {"type": "static", **ipam}
    if runtime is not None:
        given["runtimeConfig"] = {"ips": runtime}
    if args is not None:
        given["args"] = {"cni": {"ips": args}}
    return given


def call(verb: str, config: dict[str, Any], cni_args: str = "", container: str = "dummy") -> tuple[int, Any]:
    environ = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/does/not/exist",
        "CNI_PATH": "/does/not/exist",
        "CNI_ARGS": cni_args,
    }
    outcome = plugin.serve(environ, json.dumps(config).encode, print)
    return outcome.status, json.loads(outcome.stdout or "null")


def add(config: dict[str, Any], cni_args: str = "") -> dict[str, Any]:
    code, result = call("ADD", config, cni_args)
    assert code == 0, result
    assert isinstance(result, dict)
    return result


def failure(verb: str, config: dict[str, Any], cni_args: str = "") -> str:
    code, error = call(verb, config, cni_args)
    assert (code, error["code"]) == (1, 50 if verb == "STATUS" else 999)
    return str(error["msg"])


def addresses(config: dict[str, Any], cni_args: str = "") -> list[tuple[str, str | None]]:
    return [(ip["address"], ip.get("gateway")) for ip in add(config, cni_args).get("ips", [])]


@pytest.mark.parametrize("version", VERSIONS)
def test_add_check_del(version: str) -> None:
    config = conf(version, addresses=DUAL, routes=ROUTES, dns=DNS)
    result = add(config)
    assert result["cniVersion"] == version
    assert result["dns"] == DNS
    if version < "0.3.0":
        assert result["ip4"]["ip"] == "10.10.0.1/24"
        assert result["ip4"]["gateway"] == "10.10.0.254"
        assert result["ip4"]["routes"] == ROUTES[:2]
        assert result["ip6"]["ip"] == "3ffe:ffff:0:1ff::1/64"
        assert result["ip6"]["gateway"] == "3ffe:ffff::1"
        assert result["ip6"]["routes"] == [{"dst": "3ffe:ffff:0:1ff::1/64"}]
    else:
        families = ({"version": "4"}, {"version": "6"}) if version < "1.0.0" else ({}, {})
        assert result["ips"] == [
            {"address": "10.10.0.1/24", "gateway": "10.10.0.254", **families[0]},
            {"address": "3ffe:ffff:0:1ff::1/64", "gateway": "3ffe:ffff::1", **families[1]},
        ]
        assert result["routes"] == [*ROUTES[:2], {"dst": "3ffe:ffff:0:1ff::1/64"}]
        assert "interfaces" not in result
    if version >= "0.4.0":
        assert call("CHECK", {**config, "prevResult": result}) == (0, None)
    assert call("DEL", config) == (0, None)
    assert call("DEL", config, container="unknown") == (0, None)


def test_default_routes_by_two_gateways() -> None:
    routes = [{"dst": "0.0.0.0/0", "gw": "10.10.0.254"}, {"dst": "0.0.0.0/0", "gw": "10.10.0.253"}]
    assert add(conf(addresses=DUAL[:1], routes=routes))["routes"] == routes


def test_all_that_a_route_may_have() -> None:
    route = {
        "dst": "10.9.0.0/16",
        "gw": "10.1.2.9",
        "mtu": 1400,
        "advmss": 1360,
        "priority": 7,
        "table": 0,
        "scope": 253,
    }
    assert add(conf(addresses=DUAL[:1], routes=[route]))["routes"] == [route]
    assert add(conf("1.0.0", addresses=DUAL[:1], routes=[route]))["routes"][0]["dst"] == "10.9.0.0/16"


@pytest.mark.parametrize(
    ("config", "cni_args", "expected"),
    [
        ({}, "", []),
        ({"addresses": DUAL[:1]}, "", [("10.10.0.1/24", "10.10.0.254")]),
        ({"addresses": [{"address": "10.10.0.1/24"}]}, "", [("10.10.0.1/24", None)]),
        ({"addresses": [{"address": "::ffff:10.10.0.1/120", "gateway": ""}]}, "", [("10.10.0.1/24", None)]),
        ({}, "IP=10.10.0.1/24;GATEWAY=10.10.0.254", [("10.10.0.1/24", "10.10.0.254")]),
        (
            {},
            "IP=10.10.0.1/24,11.11.0.1/24;GATEWAY=10.10.0.254",
            [("10.10.0.1/24", "10.10.0.254"), ("11.11.0.1/24", None)],
        ),
        (
            {},
            "IP= 10.10.0.1/24 , fd00::1/64;GATEWAY= fd00::fe , 10.10.0.254",
            [("10.10.0.1/24", "10.10.0.254"), ("fd00::1/64", "fd00::fe")],
        ),
        ({}, "IP=10.10.0.1/24;GATEWAY=10.10.0.254,10.10.0.253", [("10.10.0.1/24", "10.10.0.253")]),
        ({}, "IP=;GATEWAY=", []),
        ({}, "GATEWAY=10.10.0.254", []),
        ({}, "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.10.0.1/24", [("10.10.0.1/24", None)]),
        # CNI_ARGS adds, and its gateways are for its own addresses.
        (
            {"addresses": [{"address": "10.10.0.1/24"}]},
            "IP=10.10.0.2/24;GATEWAY=10.10.0.254",
            [("10.10.0.1/24", None), ("10.10.0.2/24", "10.10.0.254")],
        ),
        # args replaces both, and runtimeConfig all three.
        ({"addresses": DUAL, "args": ["10.10.0.9/24"]}, "IP=10.10.0.2/24", [("10.10.0.9/24", None)]),
        (
            {"addresses": DUAL, "args": []},
            "",
            [("10.10.0.1/24", "10.10.0.254"), ("3ffe:ffff:0:1ff::1/64", "3ffe:ffff::1")],
        ),
        (
            {"addresses": DUAL, "args": ["10.10.0.9/24"], "runtime": ["10.10.0.8/24", "fd00::8/64"]},
            "IP=10.10.0.2/24;GATEWAY=10.10.0.254",
            [("10.10.0.8/24", None), ("fd00::8/64", None)],
        ),
        ({"runtime": [], "args": ["10.10.0.9/24"]}, "", [("10.10.0.9/24", None)]),
        # The same twice is nobody's business but the configuration's.
        ({"args": ["10.10.0.9/24", "10.10.0.9/24"]}, "", [("10.10.0.9/24", None)] * 2),
    ],
)
def test_where_addresses_come_from(
    config: dict[str, Any], cni_args: str, expected: list[tuple[str, str | None]]
) -> None:
    assert addresses(conf(**config), cni_args) == expected


@pytest.mark.parametrize(
    ("config", "cni_args", "expected"),
    [
        (
            {"addresses": [{"address": "10.10.0.1"}]},
            "",
            f"ipam.addresses[0].address: {BAD_ADDRESS.format('10.10.0.1')}",
        ),
        ({"addresses": [*DUAL, {}]}, "", f"ipam.addresses[2].address: {BAD_ADDRESS.format('')}"),
        ({"addresses": [{"address": ""}]}, "", f"ipam.addresses[0].address: {BAD_ADDRESS.format('')}"),
        ({"addresses": [{"address": 10}]}, "", f"ipam.addresses[0].address: {BAD_ADDRESS.format('10')}"),
        (
            {"addresses": [{"address": "10.0.0.1/24", "gateway": "x"}]},
            "",
            'ipam.addresses[0].gateway: "x" is not an IP address',
        ),
        ({}, "IP= 10.10.0.1 ,x", BAD_IP.format("10.10.0.1")),
        ({}, "IP=10.10.0.1/24,", BAD_IP.format("")),
        ({}, "GATEWAY= 10.10.0.300", "invalid gateway address:  10.10.0.300"),
        ({}, "ip=10.10.0.1/24", 'ARGS: unknown args ["ip=10.10.0.1/24"]'),
        ({}, "IP", 'ARGS: invalid pair "IP"'),
        ({"args": ["10.10.0.1"]}, "", f"args.cni.ips[0]: {BAD_IPS.format('10.10.0.1')}"),
        ({"runtime": ["10.10.0.1/24", "x"]}, "", f"runtimeConfig.ips[1]: {BAD_IPS.format('x')}"),
        ({"runtime": "10.10.0.1/24"}, "", 'runtimeConfig.ips: "10.10.0.1/24" is not a list'),
    ],
)
def test_what_cannot_be_read(config: dict[str, Any], cni_args: str, expected: str) -> None:
    assert failure("ADD", conf(**config), cni_args) == expected
    assert failure("CHECK", {**conf(**config), "prevResult": {"cniVersion": "1.1.0"}}, cni_args) == expected
    assert call("DEL", conf(**config), cni_args) == (0, None)


@pytest.mark.parametrize(
    "extra", [{"args": {"cni": {"ips": ["10.10.0.1/24"]}}}, {"runtimeConfig": {"ips": ["10.10.0.1/24"]}}]
)
def test_the_section_must_be_there(extra: dict[str, Any]) -> None:
    config = {"cniVersion": "1.1.0", "name": "mynet", "type": "ipvlan", **extra}
    assert failure("ADD", config, "IP=10.10.0.1/24") == "IPAM config missing 'ipam' key"
    assert failure("STATUS", config) == "IPAM config missing 'ipam' key"
    assert call("DEL", config) == (0, None)


@pytest.mark.parametrize("version", [*VERSIONS, ""])
@pytest.mark.parametrize(
    ("given", "cni_args"),
    [
        ({"addresses": [{"address": "10.10.0.1/24"}, {"address": "11.11.0.1/24"}]}, ""),
        ({"addresses": [{"address": "10.10.0.1/24"}]}, "IP=11.11.0.1/24"),
        ({}, "IP=10.10.0.1/24,11.11.0.1/24;GATEWAY=10.10.0.254"),
        ({"args": ["fd00::1/64", "fd01::1/64"]}, ""),
        ({"runtime": ["fd00::1/64", "fd01::1/64"]}, ""),
    ],
)
def test_two_of_a_family_need_a_newer_version(version: str, given: dict[str, Any], cni_args: str) -> None:
    config = conf(version, **given)
    if version < "0.3.0":
        expected = f"CNI version {version} does not support more than 1 address per family"
        assert failure("ADD", config, cni_args) == expected
    else:
        assert len(addresses(config, cni_args)) == 2


def test_nothing_to_tell() -> None:
    assert add(conf()) == {"cniVersion": "1.1.0"}
    assert failure("ADD", conf("0.2.0")) == "cannot convert: no valid IP addresses"


@pytest.mark.parametrize(
    ("found", "cni_args", "expected"),
    [
        ([{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}], "", ""),
        ([{"address": "10.10.0.1/16", "gateway": "10.10.0.254"}], "", ""),
        ([], "", ""),
        ([{"address": "10.10.0.7/24"}], "", ""),
        ([{"address": "10.10.0.1/24"}], "", "10.10.0.1"),
        ([{"address": "10.10.0.1/24", "gateway": "10.10.0.1"}], "", "10.10.0.1"),
        # Of two the first counts.
        ([{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}, {"address": "10.10.0.1/24"}], "", ""),
        ([{"address": "10.10.0.2/24", "gateway": "10.10.0.9"}], "IP=10.10.0.2/24", ""),
        ([{"address": "10.10.0.2/24", "gateway": "10.10.0.9"}], "IP=10.10.0.2/24;GATEWAY=10.10.0.8", "10.10.0.2"),
    ],
)
def test_check(found: list[dict[str, Any]], cni_args: str, expected: str) -> None:
    config = {**conf(addresses=DUAL[:1]), "prevResult": {"cniVersion": "1.1.0", "ips": found}}
    if expected:
        assert failure("CHECK", config, cni_args) == f"static: Failed to match addr {expected} on interface eth0"
    else:
        assert call("CHECK", config, cni_args) == (0, None)


def test_check_without_a_result() -> None:
    assert failure("CHECK", conf(addresses=DUAL)) == "Required prevResult missing"
    older = {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.10.0.1/24"}]}
    assert failure("CHECK", {**conf(), "prevResult": older}).startswith("could not ")


def test_status_and_gc() -> None:
    assert call("STATUS", conf(addresses=DUAL)) == (0, None)
    assert call("STATUS", conf()) == (0, None)
    assert call("GC", conf(addresses=DUAL)) == (0, None)
    assert call("GC", {**conf(), "cni.dev/valid-attachments": []}) == (0, None)
