"""Results in every version of the specification, and the conversions between them (pkg/types)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.spec import gojson
from cni.spec.errors import CNIError, ConfigError
from cni.spec.ip import CIDR, IP
from cni.spec.result import DNS, Interface, IPConfig, Result, Route, prev_result
from cni.spec.version import ALL, CURRENT

FIRST = ("0.1.0", "0.2.0")
MIDDLE = ("0.3.0", "0.3.1", "0.4.0")
LATEST = ("1.0.0", "1.1.0")
FAMILY = {version: family for family in (FIRST, MIDDLE, LATEST) for version in family}


def compact(result: Result, version: str) -> str:
    return gojson.dumps(result.encode(version))


def sample() -> Result:
    """Return what Go's static plugin was seen to print, see test_what_go_prints."""
    return Result(
        ips=[
            IPConfig(CIDR.parse("10.1.2.3/24"), IP.parse("10.1.2.1")),
            IPConfig(CIDR.parse("fd00::3/64")),
        ],
        routes=[
            Route(CIDR.parse("0.0.0.0/0")),
            Route(CIDR.parse("10.9.0.0/16"), IP.parse("10.1.2.9"), mtu=1400, table=0),
        ],
        dns=DNS(["1.1.1.1"]),
    )


def full() -> Result:
    """A result with everything that the newest version can say."""
    return Result(
        interfaces=[
            Interface("cni0", "00:11:22:33:44:55", mtu=1500),
            Interface("eth0", "00:11:22:33:44:66", "/run/netns/x", 1400, "/tmp/s.sock", "0000:00:01.2"),
        ],
        ips=[
            IPConfig(CIDR.parse("1.2.3.30/24"), IP.parse("1.2.3.1"), 0),
            IPConfig(CIDR.parse("abcd:1234:ffff::cdde/64"), IP.parse("abcd:1234:ffff::1"), 1),
        ],
        routes=[
            Route(CIDR.parse("15.5.6.0/24"), IP.parse("15.5.6.8"), 1450, 1410, 7, 50, 253),
            Route(CIDR.parse("1111:dddd::/80"), IP.parse("1111:dddd::aaaa")),
        ],
        dns=DNS(["1.2.3.4", "1::cafe"], "acompany.com", ["somedomain.com", "other.com"], ["foo", "bar"]),
    )


# what each version writes


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (
            "0.2.0",
            '{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.3/24","gateway":"10.1.2.1","routes":[{"dst":"0.0.0.0/0"},'
            '{"dst":"10.9.0.0/16","gw":"10.1.2.9"}]},"ip6":{"ip":"fd00::3/64"},"dns":{"nameservers":["1.1.1.1"]}}',
        ),
        (
            "0.4.0",
            '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.2.3/24","gateway":"10.1.2.1"},'
            '{"version":"6","address":"fd00::3/64"}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"10.9.0.0/16",'
            '"gw":"10.1.2.9","mtu":1400,"table":0}],"dns":{"nameservers":["1.1.1.1"]}}',
        ),
        (
            "1.1.0",
            '{"cniVersion":"1.1.0","dns":{"nameservers":["1.1.1.1"]},"ips":[{"address":"10.1.2.3/24",'
            '"gateway":"10.1.2.1"},{"address":"fd00::3/64"}],"routes":[{"dst":"0.0.0.0/0"},'
            '{"dst":"10.9.0.0/16","gw":"10.1.2.9","mtu":1400,"table":0}]}',
        ),
    ],
)
def test_what_go_prints(version: str, text: str) -> None:
    assert compact(sample(), version) == text
    for other in FAMILY[version]:
        assert compact(sample(), other) == text.replace(version, other)


FULL_TEXTS = {
    "0.2.0": """{
    "cniVersion": "0.2.0",
    "ip4": {
        "ip": "1.2.3.30/24",
        "gateway": "1.2.3.1",
        "routes": [
            {
                "dst": "15.5.6.0/24",
                "gw": "15.5.6.8"
            }
        ]
    },
    "ip6": {
        "ip": "abcd:1234:ffff::cdde/64",
        "gateway": "abcd:1234:ffff::1",
        "routes": [
            {
                "dst": "1111:dddd::/80",
                "gw": "1111:dddd::aaaa"
            }
        ]
    },
    "dns": {
        "nameservers": [
            "1.2.3.4",
            "1::cafe"
        ],
        "domain": "acompany.com",
        "search": [
            "somedomain.com",
            "other.com"
        ],
        "options": [
            "foo",
            "bar"
        ]
    }
}""",
    "0.4.0": """{
    "cniVersion": "0.4.0",
    "interfaces": [
        {
            "name": "cni0",
            "mac": "00:11:22:33:44:55"
        },
        {
            "name": "eth0",
            "mac": "00:11:22:33:44:66",
            "sandbox": "/run/netns/x"
        }
    ],
    "ips": [
        {
            "version": "4",
            "interface": 0,
            "address": "1.2.3.30/24",
            "gateway": "1.2.3.1"
        },
        {
            "version": "6",
            "interface": 1,
            "address": "abcd:1234:ffff::cdde/64",
            "gateway": "abcd:1234:ffff::1"
        }
    ],
    "routes": [
        {
            "dst": "15.5.6.0/24",
            "gw": "15.5.6.8",
            "mtu": 1450,
            "advmss": 1410,
            "priority": 7,
            "table": 50,
            "scope": 253
        },
        {
            "dst": "1111:dddd::/80",
            "gw": "1111:dddd::aaaa"
        }
    ],
    "dns": {
        "nameservers": [
            "1.2.3.4",
            "1::cafe"
        ],
        "domain": "acompany.com",
        "search": [
            "somedomain.com",
            "other.com"
        ],
        "options": [
            "foo",
            "bar"
        ]
    }
}""",
    "1.1.0": """{
    "cniVersion": "1.1.0",
    "dns": {
        "domain": "acompany.com",
        "nameservers": [
            "1.2.3.4",
            "1::cafe"
        ],
        "options": [
            "foo",
            "bar"
        ],
        "search": [
            "somedomain.com",
            "other.com"
        ]
    },
    "interfaces": [
        {
            "mac": "00:11:22:33:44:55",
            "mtu": 1500,
            "name": "cni0"
        },
        {
            "mac": "00:11:22:33:44:66",
            "mtu": 1400,
            "name": "eth0",
            "pciID": "0000:00:01.2",
            "sandbox": "/run/netns/x",
            "socketPath": "/tmp/s.sock"
        }
    ],
    "ips": [
        {
            "address": "1.2.3.30/24",
            "gateway": "1.2.3.1",
            "interface": 0
        },
        {
            "address": "abcd:1234:ffff::cdde/64",
            "gateway": "abcd:1234:ffff::1",
            "interface": 1
        }
    ],
    "routes": [
        {
            "advmss": 1410,
            "dst": "15.5.6.0/24",
            "gw": "15.5.6.8",
            "mtu": 1450,
            "priority": 7,
            "scope": 253,
            "table": 50
        },
        {
            "dst": "1111:dddd::/80",
            "gw": "1111:dddd::aaaa"
        }
    ]
}""",
}


@pytest.mark.parametrize("shown", FULL_TEXTS)
def test_exact_text_of_every_version(shown: str) -> None:
    for version in FAMILY[shown]:
        assert full().text(version) == FULL_TEXTS[shown].replace(f'"{shown}"', f'"{version}"')


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("0.3.0", '{"cniVersion":"0.3.0","dns":{}}'),
        ("0.3.1", '{"cniVersion":"0.3.1","dns":{}}'),
        ("0.4.0", '{"cniVersion":"0.4.0","dns":{}}'),
        ("1.0.0", '{"cniVersion":"1.0.0"}'),
        ("1.1.0", '{"cniVersion":"1.1.0"}'),
    ],
)
def test_empty_result(version: str, text: str) -> None:
    assert compact(Result(), version) == text


def test_empty_dns_of_the_first_versions() -> None:
    result = Result(ips=[IPConfig(CIDR.parse("10.0.0.1/8"))])
    assert compact(result, "0.1.0") == '{"cniVersion":"0.1.0","ip4":{"ip":"10.0.0.1/8"},"dns":{}}'


def test_no_version_means_0_1_0() -> None:
    assert compact(sample(), "") == compact(sample(), "0.1.0")


@pytest.mark.parametrize("version", FIRST)
def test_the_first_versions_cannot_do_without_an_address(version: str) -> None:
    layer2 = Result([Interface("eth0")], dns=DNS(["1.1.1.1"]))
    with pytest.raises(CNIError) as refusal:
        layer2.encode(version)
    assert refusal.value.to_dict() == {"code": 999, "msg": "cannot convert: no valid IP addresses"}


def test_the_first_versions_pass_on_a_result_of_their_own_without_address() -> None:
    assert Result.decode({"cniVersion": "0.2.0"}).encode("0.1.0") == {"cniVersion": "0.1.0", "dns": {}}


@pytest.mark.parametrize("version", ["1.2.0", "0.3", "x"])
def test_unknown_target(version: str) -> None:
    with pytest.raises(CNIError) as refusal:
        full().encode(version)
    assert str(refusal.value) == f"no converter for CNI result version 1.1.0 to {version}"


def test_only_the_first_address_of_each_family_fits_the_first_versions() -> None:
    result = Result(
        ips=[IPConfig(CIDR.parse(text)) for text in ("fd00::1/64", "10.0.0.1/8", "10.0.0.2/8", "fd00::2/64")]
    )
    assert result.encode("0.2.0") == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.0.0.1/8"},
        "ip6": {"ip": "fd00::1/64"},
        "dns": {},
    }


def test_routes_of_a_family_without_address_are_dropped_by_the_first_versions() -> None:
    result = Result(
        ips=[IPConfig(CIDR.parse("fd00::1/64"), interface=0)],
        routes=[Route(CIDR.parse("0.0.0.0/0")), Route(CIDR.parse("::/0"), IP.parse("fd00::2"), mtu=9000)],
    )
    assert result.encode("0.2.0") == {
        "cniVersion": "0.2.0",
        "ip6": {"ip": "fd00::1/64", "routes": [{"dst": "::/0", "gw": "fd00::2"}]},
        "dns": {},
    }


def test_v4_mapped_counts_as_v4() -> None:
    result = Result(ips=[IPConfig(CIDR.parse("::ffff:10.0.0.1/120"))])
    assert compact(result, "0.4.0") == '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.1/24"}],"dns":{}}'


@pytest.mark.parametrize("version", MIDDLE + LATEST)
def test_zero_is_not_absent_where_the_difference_counts(version: str) -> None:
    given_zero = Result(
        ips=[IPConfig(CIDR.parse("10.0.0.1/8"), interface=0)], routes=[Route(CIDR.parse("::/0"), table=0, scope=0)]
    ).encode(version)
    assert given_zero["ips"][0]["interface"] == 0
    assert given_zero["routes"] == [{"dst": "::/0", "table": 0, "scope": 0}]
    absent = Result(ips=[IPConfig(CIDR.parse("10.0.0.1/8"))], routes=[Route(CIDR.parse("::/0"))]).encode(version)
    assert "interface" not in absent["ips"][0]
    assert absent["routes"] == [{"dst": "::/0"}]


# decoding


@pytest.mark.parametrize("version", MIDDLE)
def test_middle_versions_know_only_three_keys_of_an_interface(version: str) -> None:
    encoded = full().encode("1.1.0") | {"cniVersion": version}
    assert Result.decode(encoded).interfaces == [
        Interface("cni0", "00:11:22:33:44:55"),
        Interface("eth0", "00:11:22:33:44:66", "/run/netns/x"),
    ]


@pytest.mark.parametrize("version", LATEST)
def test_latest_versions_keep_everything(version: str) -> None:
    decoded = Result.decode(full().encode(version))
    assert decoded.version == version
    decoded.version = CURRENT
    assert decoded == full()


def test_latest_versions_ignore_the_version_of_an_address() -> None:
    result = Result.decode({"cniVersion": "1.0.0", "ips": [{"version": "6", "address": "10.0.0.1/8"}]})
    assert result.ips == [IPConfig(CIDR.parse("10.0.0.1/8"))]
    assert result.encode("0.4.0")["ips"] == [{"version": "4", "address": "10.0.0.1/8"}]


@pytest.mark.parametrize("written", ["4", "6", "", "five"])
def test_middle_versions_keep_the_version_of_an_address_as_it_was_written(written: str) -> None:
    result = Result.decode({"cniVersion": "0.3.1", "ips": [{"version": written, "address": "10.0.0.1/8"}]})
    for version in MIDDLE:
        assert result.encode(version)["ips"] == [{"version": written, "address": "10.0.0.1/8"}]
    assert result.encode("1.0.0")["ips"] == [{"address": "10.0.0.1/8"}]
    assert result.to_current().encode("0.4.0")["ips"] == [{"version": "4", "address": "10.0.0.1/8"}]


def test_an_address_of_no_family_is_none_for_the_first_versions() -> None:
    result = Result.decode({"cniVersion": "0.4.0", "ips": [{"address": "10.0.0.1/8"}]})
    with pytest.raises(CNIError, match="no valid IP addresses"):
        result.encode("0.2.0")
    assert result.to_current().encode("0.2.0")["ip4"] == {"ip": "10.0.0.1/8"}


def test_keys_match_in_any_case() -> None:
    result = Result.decode(
        {
            "CNIVersion": "1.1.0",
            "Interfaces": [{"Name": "eth0", "PciId": "x", "SOCKETPATH": "/s"}],
            "IPs": [{"Address": "10.0.0.1/8", "Gateway": ""}],
            "Routes": [{"Dst": "0.0.0.0/0", "GW": "10.0.0.2"}],
            "DNS": {"NameServers": ["1.1.1.1"]},
            "unknown": 5,
        }
    )
    assert result == Result(
        [Interface("eth0", pci_id="x", socket_path="/s")],
        [IPConfig(CIDR.parse("10.0.0.1/8"))],
        [Route(CIDR.parse("0.0.0.0/0"), IP.parse("10.0.0.2"))],
        DNS(["1.1.1.1"]),
    )


def test_null_is_absent() -> None:
    nulls: dict[str, Any] = dict.fromkeys(["interfaces", "ips", "routes", "dns"])
    assert Result.decode({"cniVersion": "1.1.0", **nulls}) == Result()
    assert Result.decode({"cniVersion": "0.2.0", "ip4": None, "ip6": None, "dns": None}) == Result(version="0.2.0")


@pytest.mark.parametrize(
    ("obj", "default", "version"),
    [
        ({}, None, "0.1.0"),
        ({"cniVersion": ""}, None, "0.1.0"),
        ({"cniVersion": None}, None, "0.1.0"),
        ({}, "0.4.0", "0.4.0"),
        ({"cniVersion": ""}, "0.4.0", "0.4.0"),
        ({"cniVersion": 5}, "1.0.0", "1.0.0"),
        ({"cniVersion": "0.3.1"}, "1.0.0", "0.3.1"),
        ({}, "", "0.1.0"),
        ({"cniVersion": "1.1.0"}, "", "1.1.0"),
    ],
)
def test_version_of_a_decoded_result(obj: dict[str, Any], default: str | None, version: str) -> None:
    assert Result.decode(obj, default).version == version


@pytest.mark.parametrize(
    ("obj", "problem"),
    [
        ({"cniVersion": "0.4567.0"}, 'unsupported CNI result version "0.4567.0"'),
        ({"cniVersion": "1.2.0"}, 'unsupported CNI result version "1.2.0"'),
        ({"cniVersion": 5}, "cniVersion: 5 is not a string"),
        ([], "[] is not an object"),
        (None, "null is not an object"),
        ({"cniVersion": "1.1.0", "interfaces": {}}, "interfaces: {} is not a list"),
        ({"cniVersion": "1.1.0", "interfaces": [{"name": 5}]}, "interfaces[0].name: 5 is not a string"),
        ({"cniVersion": "1.1.0", "interfaces": [{}, {"mtu": "1"}]}, 'interfaces[1].mtu: "1" is not an integer'),
        ({"cniVersion": "0.4.0", "interfaces": ["eth0"]}, 'interfaces[0]: "eth0" is not an object'),
        ({"cniVersion": "1.1.0", "ips": [{"address": "1.2.3/45"}]}, 'ips[0].address: "1.2.3/45" is not a CIDR'),
        ({"cniVersion": "1.1.0", "ips": [{"address": ""}]}, 'ips[0].address: "" is not a CIDR'),
        ({"cniVersion": "1.1.0", "ips": [{"address": 5}]}, "ips[0].address: 5 is not a string"),
        ({"cniVersion": "1.1.0", "ips": [{}]}, "ips[0].address: is missing"),
        ({"cniVersion": "1.1.0", "ips": [None]}, "ips[0]: null is not an object"),
        (
            {"cniVersion": "1.1.0", "ips": [{"address": "1.2.3.4/24", "gateway": "x"}]},
            'ips[0].gateway: "x" is not an IP address',
        ),
        (
            {"cniVersion": "0.4.0", "ips": [{"address": "1.2.3.4/24", "interface": "0"}]},
            'ips[0].interface: "0" is not an integer',
        ),
        (
            {"cniVersion": "0.4.0", "ips": [{"address": "1.2.3.4/24", "version": 4}]},
            "ips[0].version: 4 is not a string",
        ),
        (
            {"cniVersion": "1.1.0", "routes": [{"dst": "1.2.3.0/24", "gw": "1.2.3.x"}]},
            'routes[0].gw: "1.2.3.x" is not an IP address',
        ),
        ({"cniVersion": "1.1.0", "routes": [{"gw": "1.2.3.4"}]}, "routes[0].dst: is missing"),
        ({"cniVersion": "1.1.0", "routes": [{"dst": "::/0", "table": 1.5}]}, "routes[0].table: 1.5 is not an integer"),
        ({"cniVersion": "1.1.0", "dns": {"search": "a"}}, 'dns.search: "a" is not a list'),
        ({"cniVersion": "1.1.0", "dns": {"nameservers": [1]}}, "dns.nameservers[0]: 1 is not a string"),
        ({"cniVersion": "0.2.0", "ip4": {}}, "ip4.ip: is missing"),
        ({"cniVersion": "0.2.0", "ip6": {"ip": "x"}}, 'ip6.ip: "x" is not a CIDR'),
        ({"cniVersion": "0.2.0", "ip4": "10.0.0.1/8"}, 'ip4: "10.0.0.1/8" is not an object'),
        (
            {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/8", "routes": [{"dst": 5}]}},
            "ip4.routes[0].dst: 5 is not a string",
        ),
    ],
)
def test_decoding_refuses_and_names_the_path(obj: Any, problem: str) -> None:
    with pytest.raises(CNIError) as refusal:
        Result.decode(obj)
    assert str(refusal.value) == problem


# conversions


def expected_after(source: str, target: str) -> Result:
    """full() after being written for `source`, read, and written for `target`: the rules in other words."""
    result = full()
    lowest = min(ALL.index(source), ALL.index(target))
    if lowest <= ALL.index("0.4.0"):
        result.interfaces = [Interface(i.name, i.mac, i.sandbox) for i in result.interfaces]
    if lowest <= ALL.index("0.2.0"):
        result.interfaces = []
        result.ips = [IPConfig(ip.address, ip.gateway) for ip in result.ips]
        result.routes = [Route(route.dst, route.gw) for route in result.routes]
    return result


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("source", ALL)
def test_conversion_of_every_pair(source: str, target: str) -> None:
    read = Result.decode(full().encode(source))
    assert read.version == source
    written = read.encode(target)
    assert written["cniVersion"] == target
    assert written == expected_after(source, target).encode(target)
    assert list(written) == list(expected_after(source, target).encode(target))


@pytest.mark.parametrize("version", ALL)
def test_the_same_version_comes_back_unchanged(version: str) -> None:
    text = full().text(version)
    assert Result.decode(json.loads(text)).text(version) == text


@pytest.mark.parametrize("routes", [[{"dst": "0.0.0.0/0"}], [{"dst": "15.5.6.0/24", "gw": "15.5.6.8"}], []])
def test_up_and_down_again_loses_and_invents_nothing(routes: list[dict[str, str]]) -> None:
    ip4: dict[str, Any] = {"ip": "1.2.3.30/24", "gateway": "1.2.3.1"}
    original = {"cniVersion": "0.2.0", "ip4": ip4 | ({"routes": routes} if routes else {}), "dns": {}}
    for middle in MIDDLE + LATEST:
        up = Result.decode(original).encode(middle)
        assert up.get("routes", []) == routes
        assert Result.decode(up).encode("0.2.0") == original


def test_the_first_versions_become_lists_with_ip4_first() -> None:
    first = {
        "cniVersion": "0.1.0",
        "ip6": {"ip": "fd00::1/64", "routes": [{"dst": "::/0"}]},
        "ip4": {"ip": "10.0.0.1/8", "gateway": "10.0.0.2", "routes": [{"dst": "0.0.0.0/0"}]},
        "dns": {"domain": "x"},
    }
    assert Result.decode(first).encode("0.3.0") == {
        "cniVersion": "0.3.0",
        "ips": [
            {"version": "4", "address": "10.0.0.1/8", "gateway": "10.0.0.2"},
            {"version": "6", "address": "fd00::1/64"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {"domain": "x"},
    }


ADDRESSES = st.builds(lambda ip, n: CIDR.parse(f"{ip}/{n}"), st.ip_addresses(v=4), st.integers(0, 32)) | st.builds(
    lambda n, prefix: CIDR(IP.from_int(n, 6), prefix), st.integers(1 << 100, (1 << 128) - 1), st.integers(0, 128)
)
IPS = st.none() | st.builds(lambda cidr: cidr.ip, ADDRESSES)
NUMBERS = st.integers(0, 2**32 - 1)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
LISTS = st.none() | st.lists(WORDS, min_size=1, max_size=2)
RESULTS = st.builds(
    Result,
    st.lists(st.builds(Interface, WORDS, WORDS, WORDS, NUMBERS, WORDS, WORDS), max_size=2),
    st.lists(st.builds(IPConfig, ADDRESSES, IPS, st.none() | st.integers(-1, 5)), max_size=3),
    st.lists(
        st.builds(Route, ADDRESSES, IPS, NUMBERS, NUMBERS, NUMBERS, st.none() | NUMBERS, st.none() | NUMBERS),
        max_size=3,
    ),
    st.builds(DNS, LISTS, WORDS, LISTS, LISTS),
)


@given(RESULTS)
def test_any_result_survives_its_own_version(result: Result) -> None:
    assert Result.decode(gojson.loads(result.text(CURRENT))) == result


@given(RESULTS, st.sampled_from(MIDDLE + LATEST), st.sampled_from(MIDDLE + LATEST))
def test_conversion_does_not_depend_on_the_way(result: Result, one: str, other: str) -> None:
    lower = min(one, other, key=ALL.index)
    via = Result.decode(Result.decode(result.encode(one)).encode(other))
    direct = Result.decode(result.encode(lower))
    assert via.to_current() == direct.to_current()


# prevResult


def config(version: str | None, prev: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": "n", "type": "t", "prevResult": prev}


@pytest.mark.parametrize("own", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("version", ALL)
def test_prev_result_must_be_of_the_family(version: str, own: str) -> None:
    encoded = sample().encode(own)
    if own in FAMILY[version]:
        expected = sample()
        if own in FIRST:
            expected.routes = [Route(route.dst, route.gw) for route in expected.routes]
        assert prev_result(config(version, encoded), version) == expected
    else:
        listed = " ".join(FAMILY[version])
        listed = f"[ {listed}]" if version in FIRST else f"[{listed}]"
        with pytest.raises(CNIError) as refusal:
            prev_result(config(version, encoded), version)
        assert str(refusal.value) == (
            f'could not parse prevResult: result type supports {listed} but unmarshalled CNIVersion is "{own}"'
        )


@pytest.mark.parametrize(
    ("version", "prev", "problem"),
    [
        ("1.1.0", {"cniVersion": "0.4.0"}, 'result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is "0.4.0"'),
        (
            "1.0.0",
            {"cniVersion": "5678.456"},
            'result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is "5678.456"',
        ),
        ("0.4.0", {"cniVersion": ""}, 'result type supports [0.3.0 0.3.1 0.4.0] but unmarshalled CNIVersion is ""'),
        (
            "0.2.0",
            {"cniVersion": "1.0.0"},
            'result type supports [ 0.1.0 0.2.0] but unmarshalled CNIVersion is "1.0.0"',
        ),
        ("", {"cniVersion": "0.4.0"}, 'result type supports [ 0.1.0 0.2.0] but unmarshalled CNIVersion is "0.4.0"'),
        ("5678.456", {}, 'unsupported CNI result version "5678.456"'),
        ("1.2.0", {"cniVersion": "1.1.0"}, 'unsupported CNI result version "1.2.0"'),
        ("1.0.0", {"cniVersion": 5}, "cniVersion: 5 is not a string"),
        ("1.0.0", {"ips": [{"address": "x"}]}, 'ips[0].address: "x" is not a CIDR'),
    ],
)
def test_prev_result_refuses(version: str, prev: dict[str, Any], problem: str) -> None:
    with pytest.raises(CNIError) as refusal:
        prev_result(config(version, prev), version)
    assert str(refusal.value) == f"could not parse prevResult: {problem}"


@pytest.mark.parametrize("version", ["", *ALL])
def test_prev_result_without_version_is_of_the_configurations(version: str) -> None:
    encoded = sample().encode(version)
    del encoded["cniVersion"]
    expected = Result.decode(sample().encode(version)).to_current()
    assert prev_result(config(version, encoded), version) == expected
    assert prev_result(config(version, encoded | {"cniVersion": None}), version) == expected


@pytest.mark.parametrize("version", ["", "0.1.0", "0.2.0"])
def test_an_empty_version_belongs_to_the_first_family(version: str) -> None:
    result = prev_result(config(version, {"cniVersion": "", "ip4": {"ip": "10.0.0.1/8"}}), version)
    assert result == Result(ips=[IPConfig(CIDR.parse("10.0.0.1/8"))])


def test_prev_result_is_found_in_any_case() -> None:
    assert prev_result({"PrevResult": {"CNIVersion": "1.0.0"}}, "1.1.0") == Result()


@pytest.mark.parametrize("conf", [{}, {"prevResult": None}])
def test_no_prev_result(conf: dict[str, Any]) -> None:
    assert prev_result(conf, "1.1.0") is None
    assert prev_result(conf, "unknown") is None


@pytest.mark.parametrize(("prev", "shown"), [([], "[]"), ("x", '"x"'), (5, "5")])
def test_prev_result_must_be_an_object(prev: Any, shown: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        prev_result(config("1.0.0", prev), "1.0.0")
    assert str(refusal.value) == f"prevResult: {shown} is not an object"


def test_prev_result_is_as_the_newest_version_has_it() -> None:
    encoded = {"cniVersion": "0.3.1", "ips": [{"version": "", "address": "10.0.0.1/8"}]}
    result = prev_result(config("0.4.0", encoded), "0.4.0")
    assert result is not None
    assert result.version == CURRENT
    assert result.encode("0.4.0")["ips"] == [{"version": "4", "address": "10.0.0.1/8"}]


# parts


@pytest.mark.parametrize(
    ("dns", "empty", "configured"),
    [
        (DNS(), True, False),
        (DNS([]), True, True),
        (DNS(search=[]), True, True),
        (DNS(options=[]), True, True),
        (DNS(domain="x"), False, True),
        (DNS(["1.1.1.1"]), False, True),
        (DNS(search=["a"]), False, True),
        (DNS(options=["a"]), False, True),
    ],
)
def test_dns_tells_empty_from_unconfigured(dns: DNS, empty: bool, configured: bool) -> None:
    assert (dns.encode() == {}, dns.is_configured) == (empty, configured)


def test_dns_decode_keeps_given_lists_apart_from_absent_ones() -> None:
    assert DNS.decode({"nameservers": [], "domain": ""}, "dns") == DNS([])
    assert DNS.decode({"search": None}, "dns") == DNS()


def test_route_round_trip() -> None:
    encoded = {
        "dst": "1.2.3.0/24",
        "gw": "1.2.3.1",
        "mtu": 1500,
        "advmss": 1340,
        "priority": 100,
        "table": 50,
        "scope": 253,
    }
    route = Route.decode(encoded, "routes[0]")
    assert route == Route(CIDR.parse("1.2.3.0/24"), IP.parse("1.2.3.1"), 1500, 1340, 100, 50, 253)
    assert route.encode() == encoded
    assert list(route.encode()) == ["dst", "gw", "mtu", "advmss", "priority", "table", "scope"]
    assert Route.decode({"dst": "1.2.3.9/24"}, "").encode() == {"dst": "1.2.3.9/24"}


def test_values_compare_by_content_and_show_it() -> None:
    assert Interface("a") == Interface("a")
    assert Interface("a") != Interface("b")
    assert Interface("a") != "a"
    assert repr(DNS(["1.1.1.1"])) == "DNS(domain='', nameservers=['1.1.1.1'], options=None, search=None)"
    with pytest.raises(TypeError):
        hash(Interface("a"))


def test_results_do_not_share_their_lists() -> None:
    Result().ips.append(IPConfig(CIDR.parse("10.0.0.1/8")))
    assert Result().ips == []
