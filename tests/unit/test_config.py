"""A plugin's configuration as one table."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from cni.skel import config
from cni.skel.config import (
    Address,
    Choice,
    Config,
    Field,
    Flag,
    Integer,
    ListOf,
    MapOf,
    Network,
    Object,
    Resolver,
    RouteTo,
    Section,
    Settings,
    Table,
    Text,
)
from cni.spec import gojson
from cni.spec.errors import CNIError, ConfigError
from cni.spec.ip import CIDR, IP
from cni.spec.result import DNS, Route

if TYPE_CHECKING:
    from typing import assert_type


class Range(Settings):
    """One range of addresses."""

    subnet = Network(None, "the network")
    rangeStart = Address(None, "first address")


class Pool(config.IPAM):
    """An ipam section."""

    ranges = ListOf(ListOf(Table(Range)), "ranges by set")


class Conf(Config):
    """A plugin's table with every kind of field."""

    bridge = Text("cni0", "the bridge")
    master = Text(None, "the master")
    isGateway = Flag("be the gateway")
    promisc = Flag("promiscuous, or left alone", None)
    deterministicMAC = Flag("MAC from the address", True)
    mtu = Integer(0, "the MTU", minimum=0, maximum=65535)
    table = Integer(None, "routing table")
    floor = Integer(5, "", minimum=5)
    ceiling = Integer(5, "", maximum=5)
    mode = Choice("bridge", ("bridge", "private"), "the mode")
    backend = Choice(None, ("iptables", "nftables"), "the backend")
    gateway = Address(None, "the gateway")
    subnet = Network(None, "the network")
    networks = ListOf(Network(), "more networks")
    names = ListOf(Text(), "names")
    levels = ListOf(Integer(minimum=1), "levels")
    routes = ListOf(RouteTo(), "routes")
    sysctl = MapOf(Text(), "sysctls")
    limits = MapOf(ListOf(Integer()), "limits")
    extra = Object("anything")
    resolver = Resolver("the resolver")
    first = Table(Range, "a range or none")
    ipam = Section(Pool, "the pool")
    cgroup = Text("", "a key that is no name", key="example.com/c-group")


def parsed(text: str) -> Conf:
    return Conf.parse(gojson.loads(text))


def test_an_empty_configuration_has_the_defaults() -> None:
    conf = Conf.parse({})
    values = {field.name: getattr(conf, field.name) for field in Conf.fields()}
    ipam = values.pop("ipam")
    assert (ipam.type, ipam.ranges) == ("", [])
    assert values == {
        "cniVersion": "",
        "name": "",
        "type": "",
        "capabilities": {},
        "dns": DNS(),
        "prevResult": {},
        "valid_attachments": [],
        "bridge": "cni0",
        "master": None,
        "isGateway": False,
        "promisc": None,
        "deterministicMAC": True,
        "mtu": 0,
        "table": None,
        "floor": 5,
        "ceiling": 5,
        "mode": "bridge",
        "backend": None,
        "gateway": None,
        "subnet": None,
        "networks": [],
        "names": [],
        "levels": [],
        "routes": [],
        "sysctl": {},
        "limits": {},
        "extra": {},
        "resolver": DNS(),
        "first": None,
        "cgroup": "",
    }


def test_null_leaves_every_default() -> None:
    nulls = dict.fromkeys([field.key for field in Conf.fields()])
    conf, empty = Conf.parse(nulls), Conf.parse({})
    for field in Conf.fields():
        if field.name != "ipam":
            assert getattr(conf, field.name) == getattr(empty, field.name)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ('{"bridge": "br1"}', "bridge", "br1"),
        ('{"bridge": ""}', "bridge", ""),
        ('{"master": "eth0"}', "master", "eth0"),
        ('{"isGateway": true}', "isGateway", True),
        ('{"promisc": false}', "promisc", False),
        ('{"deterministicMAC": false}', "deterministicMAC", False),
        ('{"mtu": 65535}', "mtu", 65535),
        ('{"table": 0}', "table", 0),
        ('{"table": -1}', "table", -1),
        ('{"mode": "private"}', "mode", "private"),
        ('{"mode": ""}', "mode", "bridge"),
        ('{"backend": ""}', "backend", None),
        ('{"backend": "nftables"}', "backend", "nftables"),
        ('{"gateway": "::ffff:10.0.0.1"}', "gateway", IP.parse("10.0.0.1")),
        ('{"gateway": ""}', "gateway", None),
        ('{"subnet": "10.1.2.3/24"}', "subnet", CIDR.parse("10.1.2.3/24")),
        ('{"networks": ["10.0.0.0/8", "fd00::/64"]}', "networks", [CIDR.parse("10.0.0.0/8"), CIDR.parse("fd00::/64")]),
        ('{"names": []}', "names", []),
        ('{"names": ["a", ""]}', "names", ["a", ""]),
        ('{"routes": [{"dst": "::/0", "table": 0}]}', "routes", [Route(CIDR.parse("::/0"), table=0)]),
        ('{"sysctl": {"net.ipv4.ip_forward": "1"}}', "sysctl", {"net.ipv4.ip_forward": "1"}),
        ('{"limits": {"a": [1], "A": []}}', "limits", {"a": [1], "A": []}),
        ('{"extra": {"any": [1, {"x": null}]}}', "extra", {"any": [1, {"x": None}]}),
        ('{"dns": {"nameservers": []}}', "dns", DNS([])),
        ('{"resolver": {"domain": "x"}}', "resolver", DNS(domain="x")),
        ('{"example.com/c-group": "x"}', "cgroup", "x"),
        ('{"cgroup": "x"}', "cgroup", ""),
        ('{"capabilities": {"mac": true, "ips": false}}', "capabilities", {"mac": True, "ips": False}),
        ('{"prevResult": {"cniVersion": "1.0.0"}}', "prevResult", {"cniVersion": "1.0.0"}),
        ('{"cni.dev/valid-attachments": null}', "valid_attachments", []),
        ('{"unknown": {"x": 1}}', "name", ""),
        # any case of a key, and the last spelling
        ('{"BRIDGE": "br1"}', "bridge", "br1"),
        ('{"isgateway": true}', "isGateway", True),
        ('{"mtu": 1, "MTU": 2}', "mtu", 2),
        ('{"MTU": 2, "mtu": 1}', "mtu", 1),
        ('{"MTU": 2, "mtu": "wrong", "Mtu": 3}', "mtu", 3),
        ('{"PrevResult": {"x": 1}}', "prevResult", {"x": 1}),
    ],
)
def test_a_value_is_read(text: str, name: str, value: Any) -> None:
    read = getattr(parsed(text), name)
    assert read == value
    assert type(read) is type(value)


def test_nested_tables() -> None:
    conf = parsed(
        '{"ipam": {"Type": "host-local", "ranges": [[{"subnet": "10.0.0.0/8"}, {"Subnet": "fd00::/64",'
        ' "rangestart": "fd00::5"}], []]}, "first": {"subnet": "10.0.0.0/8"}}'
    )
    assert conf.ipam.type == "host-local"
    assert [[(str(r.subnet), r.rangeStart) for r in ranges] for ranges in conf.ipam.ranges] == [
        [("10.0.0.0/8", None), ("fd00::/64", IP.parse("fd00::5"))],
        [],
    ]
    assert conf.first is not None
    assert str(conf.first.subnet) == "10.0.0.0/8"


def test_valid_attachments() -> None:
    conf = Config.parse({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}, {"containerid": "c2"}]})
    assert [(a.containerID, a.ifname) for a in conf.valid_attachments] == [("c1", "eth0"), ("c2", "")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"bridge": 5}', "bridge: 5 is not a string"),
        ('{"BRIDGE": 5}', "bridge: 5 is not a string"),
        ('{"isGateway": "yes"}', 'isGateway: "yes" is not true or false'),
        ('{"isGateway": 1}', "isGateway: 1 is not true or false"),
        ('{"promisc": "true"}', 'promisc: "true" is not true or false'),
        ('{"mtu": "big"}', 'mtu: "big" is not an integer'),
        ('{"mtu": 1.5}', "mtu: 1.5 is not an integer"),
        ('{"mtu": true}', "mtu: true is not an integer"),
        ('{"mtu": -1}', "mtu: -1 is not between 0 and 65535"),
        ('{"mtu": 65536}', "mtu: 65536 is not between 0 and 65535"),
        ('{"floor": 4}', "floor: 4 is not 5 or more"),
        ('{"ceiling": 6}', "ceiling: 6 is not 5 or less"),
        ('{"table": 9223372036854775808}', "table: 9223372036854775808 is not an integer"),
        ('{"mode": "vepa"}', 'mode: "vepa" is not one of "bridge", "private"'),
        ('{"mode": "Private"}', 'mode: "Private" is not one of "bridge", "private"'),
        ('{"mode": 5}', "mode: 5 is not a string"),
        ('{"gateway": "1.2.3"}', 'gateway: "1.2.3" is not an IP address'),
        ('{"gateway": 5}', "gateway: 5 is not a string"),
        ('{"subnet": ""}', 'subnet: "" is not a CIDR'),
        ('{"subnet": "10.0.0.0"}', 'subnet: "10.0.0.0" is not a CIDR'),
        ('{"networks": ["10.0.0.0/8", "x"]}', 'networks[1]: "x" is not a CIDR'),
        ('{"networks": [null]}', "networks[0]: null is not a string"),
        ('{"names": "a"}', 'names: "a" is not a list'),
        ('{"names": ["a", {}]}', "names[1]: {} is not a string"),
        ('{"levels": [1, 0]}', "levels[1]: 0 is not 1 or more"),
        ('{"routes": [{"dst": "x"}]}', 'routes[0].dst: "x" is not a CIDR'),
        ('{"routes": [{}]}', "routes[0].dst: is missing"),
        ('{"sysctl": {"a": 1}}', "sysctl.a: 1 is not a string"),
        ('{"sysctl": ["a"]}', 'sysctl: ["a"] is not an object'),
        ('{"limits": {"a": [1, "x"]}}', 'limits.a[1]: "x" is not an integer'),
        ('{"extra": []}', "extra: [] is not an object"),
        ('{"dns": {"search": [5]}}', "dns.search[0]: 5 is not a string"),
        ('{"ipam": "host-local"}', 'ipam: "host-local" is not an object'),
        ('{"ipam": {"type": {}}}', "ipam.type: {} is not a string"),
        ('{"ipam": {"ranges": {}}}', "ipam.ranges: {} is not a list"),
        ('{"ipam": {"ranges": [{}]}}', "ipam.ranges[0]: {} is not a list"),
        (
            '{"ipam": {"ranges": [[{}, {"subnet": "10.0.0.0/33"}]]}}',
            'ipam.ranges[0][1].subnet: "10.0.0.0/33" is not a CIDR',
        ),
        ('{"first": 5}', "first: 5 is not an object"),
        ('{"example.com/c-group": 5}', "example.com/c-group: 5 is not a string"),
        ('{"capabilities": {"mac": "yes"}}', 'capabilities.mac: "yes" is not true or false'),
        ('{"prevResult": []}', "prevResult: [] is not an object"),
        ('{"cni.dev/valid-attachments": [{"ifname": 5}]}', "cni.dev/valid-attachments[0].ifname: 5 is not a string"),
        ('{"subnet": "<&>"}', r'subnet: "\u003c\u0026\u003e" is not a CIDR'),
        ("[]", "configuration: [] is not an object"),
        ("null", "configuration: null is not an object"),
    ],
)
def test_a_wrong_value_is_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parsed(text)
    assert str(refusal.value) == problem
    assert isinstance(refusal.value, CNIError)


def test_the_path_begins_where_the_object_stands() -> None:
    with pytest.raises(ConfigError) as refusal:
        Range.parse({"subnet": 5}, "runtimeConfig.ipRanges[0][0]")
    assert str(refusal.value) == "runtimeConfig.ipRanges[0][0].subnet: 5 is not a string"
    with pytest.raises(ConfigError) as refusal:
        Range.parse(5, "first")
    assert str(refusal.value) == "first: 5 is not an object"


def test_raw_is_the_decoded_object() -> None:
    obj = {"bridge": "x", "unknown": [1]}
    assert Conf.parse(obj).raw is obj


@pytest.mark.parametrize(
    ("obj", "given"),
    [({}, False), ({"ipam": None}, False), ({"ipam": {}}, True), ({"IPAM": {}}, True), ({"mtu": 0}, False)],
)
def test_has_tells_given_from_absent(obj: dict[str, Any], given: bool) -> None:
    assert Conf.parse(obj).has("ipam") is given


def test_values_may_be_set_and_stay_with_their_configuration() -> None:
    conf = Conf.parse({})
    conf.isGateway = True
    conf.names.append("x")
    conf.sysctl["a"] = "b"
    conf.ipam.type = "static"
    other = Conf.parse({})
    assert (conf.isGateway, other.isGateway) == (True, False)
    assert (other.names, other.sysctl, other.ipam.type) == ([], {}, "")


def test_fields_are_the_table_in_order() -> None:
    names = [field.name for field in Conf.fields()]
    head = [field.name for field in Config.fields()]
    assert names[: len(head)] == head
    assert head == [
        "cniVersion",
        "name",
        "type",
        "capabilities",
        "ipam",
        "dns",
        "prevResult",
        "valid_attachments",
    ]
    assert names[len(head) : len(head) + 3] == ["bridge", "master", "isGateway"]
    assert len(set(names)) == len(names)


def test_a_table_may_replace_a_field_of_its_base() -> None:
    ipam = next(field for field in Conf.fields() if field.name == "ipam")
    assert ipam.table is Pool
    assert next(field for field in Config.fields() if field.name == "ipam").table is config.IPAM


@pytest.mark.parametrize(
    ("name", "key", "kind", "default", "meaning", "constraint", "table"),
    [
        ("bridge", "bridge", "string", "cni0", "the bridge", "", None),
        ("master", "master", "string", None, "the master", "", None),
        ("isGateway", "isGateway", "boolean", False, "be the gateway", "", None),
        ("mtu", "mtu", "integer", 0, "the MTU", "between 0 and 65535", None),
        ("mode", "mode", "string", "bridge", "the mode", 'one of "bridge", "private"', None),
        ("gateway", "gateway", "IP address", None, "the gateway", "", None),
        ("subnet", "subnet", "CIDR", None, "the network", "", None),
        ("networks", "networks", "list of CIDR", [], "more networks", "", None),
        ("levels", "levels", "list of integer", [], "levels", "1 or more", None),
        ("routes", "routes", "list of route", [], "routes", "", None),
        ("sysctl", "sysctl", "map to string", {}, "sysctls", "", None),
        ("limits", "limits", "map to list of integer", {}, "limits", "", None),
        ("extra", "extra", "object", {}, "anything", "", None),
        ("resolver", "resolver", "DNS settings", DNS(), "the resolver", "", None),
        ("first", "first", "object", None, "a range or none", "", Range),
        ("cgroup", "example.com/c-group", "string", "", "a key that is no name", "", None),
    ],
)
def test_a_field_describes_itself(
    name: str, key: str, kind: str, default: Any, meaning: str, constraint: str, table: type[Settings] | None
) -> None:
    field = getattr(Conf, name)
    assert isinstance(field, Field)
    assert (field.name, field.key, field.kind, field.default) == (name, key, kind, default)
    assert (field.meaning, field.constraint, field.table) == (meaning, constraint, table)


def test_a_nested_table_is_reached_through_the_list() -> None:
    ranges = next(field for field in Pool.fields() if field.name == "ranges")
    assert (ranges.kind, ranges.table) == ("list of list of object", Range)


def test_every_field_of_the_head_has_a_meaning() -> None:
    for table in (Config, config.IPAM, config.Attachment):
        for field in table.fields():
            assert field.meaning
            assert not re.search(r"[.\s]$", field.meaning)


def types(conf: Conf) -> None:
    """Never run: the attributes' types, for the type checker."""
    assert_type(Conf.bridge, Field[str, str])
    assert_type(conf.bridge, str)
    assert_type(conf.master, str | None)
    assert_type(conf.isGateway, bool)
    assert_type(conf.promisc, bool | None)
    assert_type(conf.deterministicMAC, bool)
    assert_type(conf.mtu, int)
    assert_type(conf.table, int | None)
    assert_type(conf.mode, str)
    assert_type(conf.backend, str | None)
    assert_type(conf.gateway, IP | None)
    assert_type(conf.subnet, CIDR | None)
    assert_type(conf.networks, list[CIDR])
    assert_type(conf.routes, list[Route])
    assert_type(conf.sysctl, dict[str, str])
    assert_type(conf.limits, dict[str, list[int]])
    assert_type(conf.extra, dict[str, Any])
    assert_type(conf.dns, DNS)
    assert_type(conf.first, Range | None)
    assert_type(conf.ipam, Pool)
    assert_type(conf.ipam.ranges, list[list[Range]])
    assert_type(conf.valid_attachments, list[config.Attachment])
    assert_type(Conf.parse({}), Conf)
