"""`cni explain`: what is told of plugins, and the JSON Schemas, which must agree with the tables' own readers."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cni.cli.main import main
from cni.explain import catalog, schema
from cni.explain.common_keys import DNSConf, RouteConf, capabilities, table_of
from cni.explain.examples import all_examples, examples_of, plugins_in
from cni.skel.config import Config, Field, ListOf, Object, Text
from cni.skel.plugin import Plugin
from cni.spec.errors import CNIError
from cni.spec.ip import CIDR, IP
from cni.spec.result import DNS, Route

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "schemas"
OURS = list(catalog.plugins()[0].values())
NAMES = [one.name for one in OURS]


def run(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(["explain", *words]) == status
    return capsys.readouterr().out


# ---- texts ----


def test_all_plugins_are_listed_by_their_place(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys).splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "Interface plugins", "IPAM plugins", "Chained plugins", "Others, which may stand anywhere",
    ]  # fmt: skip
    assert {line.split()[0] for line in lines if line.startswith(" ")} == set(NAMES)
    assert "  host-local   addresses from ranges that this host allocates by itself" in lines
    told = json.loads(run(capsys, "--json"))
    assert {one["name"]: one["place"] for one in told}["portmap"] == "chained"
    assert "- `vlan`: " in run(capsys, "--markdown")


def test_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "macvlan")
    assert text.startswith("macvlan: an interface in the container with a MAC of its own")
    assert '\n  mode: string = "bridge"\n' in text
    assert '\n      one of "bridge", "private", "vepa", "passthru", "source"\n' in text
    assert "\nCapabilities\n  mac\n" in text
    assert "\nCNI_ARGS\n  MAC\n" in text
    assert "\nExample: macvlan.conflist\n  {\n" in text
    assert max(map(len, text.splitlines())) <= 100


def test_nested_keys_are_indented(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "host-local")
    assert "\n  ipam: object\n" in text
    assert "\n      ranges: list of lists of object\n" in text
    assert "\n          rangeStart: IP address\n" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_page_in_every_shape(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run(capsys, name).startswith(f"{name}: ")
    page = run(capsys, name, "--markdown")
    assert page.startswith(f"# {name}\n")
    told = json.loads(run(capsys, name, "--json"))
    assert told["examples"], "a plugin without an example"
    for key in _keys(told["keys"]):
        assert f"{key['key']}`" in page
        assert key["meaning"], f"{key['key']} has no meaning"


def _keys(keys: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for key in keys:
        yield key
        yield from _keys(key.get("keys", []))


def test_an_unknown_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "hostlocal"]) == 1
    assert capsys.readouterr().err == "cni explain: there is no plugin hostlocal; host-local is probably meant\n"


def test_arguments_are_those_that_the_sources_ask_for() -> None:
    """Whatever is passed to cni_args() and what is told of CNI_ARGS."""
    for one in OURS:
        module = inspect.getmodule(one.plugin._handlers["ADD"])
        assert module
        asked = re.findall(r"cni_args\(([^)]*?)(?:=|\))", inspect.getsource(module))
        assert set(re.findall(r"[A-Z]{2,}", " ".join(asked))) == set(one.plugin.arguments), one.name


# ---- tables ----


def test_the_keys_of_routes_and_of_resolver_settings_are_those_that_are_read() -> None:
    route = Route(CIDR.parse("10.0.0.0/8"), IP.parse("10.0.0.1"), 1, 2, 3, 4, 5)
    assert [field.key for field in RouteConf.fields()] == list(route.encode())
    assert {field.key for field in DNSConf.fields()} == set(DNS(["a"], "b", ["c"], ["d"]).encode())


def test_capabilities_are_those_of_both_plugins() -> None:
    found = catalog.plugins()[0]
    assert set(capabilities(found["bridge"].plugin) or ()) == {"mac"}
    assert set(capabilities(found["bridge"].plugin, found["host-local"].plugin) or ()) == {"mac", "ips", "ipRanges"}
    assert capabilities(found["flannel"].plugin) is None
    assert capabilities(found["dummy"].plugin) == {}


# ---- examples ----


def test_every_plugin_has_an_example_and_every_example_is_of_a_plugin() -> None:
    assert all(examples_of(name) for name in NAMES)
    for name, text in all_examples().items():
        assert any(name.startswith(plugin) for plugin in plugins_in(json.loads(text)))


# ---- schemas ----


@pytest.mark.parametrize("name", [schema.LISTS, *NAMES])
def test_the_committed_schemas_are_current(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """If this fails: cni explain --schemas docs/schemas"""
    words = [] if name == schema.LISTS else [name]
    assert (COMMITTED / f"{name}.json").read_text() == run(capsys, *words, "--schema")


def test_no_schema_is_left_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(capsys, "--schemas", str(tmp_path / "schemas")).split()
    assert {Path(path).name for path in printed} == {path.name for path in COMMITTED.iterdir()}


@pytest.mark.parametrize("name", [schema.LISTS, *NAMES])
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft7Validator.check_schema(json.loads((COMMITTED / f"{name}.json").read_text()))


def _lists() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(schema.of_lists(OURS))


@pytest.mark.parametrize("name", all_examples())
def test_examples_fit_the_schema(name: str) -> None:
    _lists().validate(json.loads(all_examples()[name]))


@pytest.mark.parametrize(
    ("plugin", "path"),
    [
        ({"type": "bridge", "mtu": "big"}, "mtu"),
        ({"type": "bridge", "vlan": 5000}, "vlan"),
        ({"type": "bridge", "vlanTrunk": [{"idd": 1}]}, "vlanTrunk[0]"),
        ({"type": "macvlan", "mode": "nat"}, "mode"),
        ({"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnett": "x"}]]}}, "ipam.ranges[0][0]"),
        ({"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.0.0.0"}}, "ipam.subnet"),
        ({"type": "ptp", "ipam": {"type": "host-local", "routes": [{}]}}, "ipam.routes[0]"),
        ({"type": "tuning", "sysctl": {"net.core.somaxconn": 5}}, "sysctl.net.core.somaxconn"),
        ({"mtu": 5}, ""),
    ],
)
def test_the_schema_of_lists_finds_faults_by_the_plugins_type(plugin: dict[str, Any], path: str) -> None:
    network = {"cniVersion": "1.1.0", "name": "net", "plugins": [plugin]}
    places = {re.sub(r"^\$\.plugins\[0\]\.?", "", error.json_path) for error in _lists().iter_errors(network)}
    assert places == {re.sub(r"\.net\..*", "['net.core.somaxconn']", path)}


def test_unknown_keys_and_plugins_are_allowed_where_the_specification_allows_them() -> None:
    plugins = [
        {"type": "bridge", "more": 1, "ipam": {"type": "whereabouts", "range": "x"}, "args": {"x": 1}},
        {"type": "stranger", "mtu": "x"},
    ]
    _lists().validate({"cniVersion": "1.1.0", "name": "net", "plugins": plugins, "more": 1})


# A schema must never refuse what the plugin takes; where types alone decide it refuses what the plugin refuses.
SAMPLES: list[Any] = [
    True, False, 0, 1, -1, 25, 4094, 70000, 2**32, 2**63, 1.5, "", "x", "10.0.0.1", "fd00::1", "::ffff:1.2.3.4",
    "10.0.0.0/24", "fd00::/64", "bridge", "l2", "veth", "iptables", "nftables", "tcp", "a/b", [], ["x"], [5],
    ["10.0.0.1"], ["10.0.0.0/24"], {}, {"a": "b"}, {"a": True}, {"dst": "10.0.0.0/8"}, [{"dst": "10.0.0.0/8"}], [[]],
    [[{"subnet": "10.0.0.0/24"}]], [{"id": 5}], {"cni": {"mac": "x"}}, {"nameservers": ["x"]},
]  # fmt: skip
_BY_TYPE_ALONE = ("string", "boolean", "list of string")


def _fields() -> Iterator[tuple[str, Field[Any, Any]]]:
    seen: set[type] = set()
    for one in OURS:
        tables: list[tuple[str, type]] = [(one.name, one.plugin.config)]
        for path, table in tables:
            if table in seen:
                continue
            seen.add(table)
            for field in table.fields():  # type: ignore[attr-defined]
                yield f"{path}.{field.key}", field
                if inner := table_of(field):
                    tables.append((f"{path}.{field.key}", inner))


@pytest.mark.parametrize(("path", "field"), [pytest.param(*pair, id=pair[0]) for pair in _fields()])
def test_a_schema_takes_what_the_reader_takes(path: str, field: Field[Any, Any]) -> None:
    validator = jsonschema.Draft7Validator(schema._value(field))
    for sample in SAMPLES:
        try:
            if not (field.blank and sample == ""):
                field.read(sample, path)
        except CNIError:
            if field.kind in _BY_TYPE_ALONE and not field.constraint:
                assert not validator.is_valid(sample), sample
        else:
            # A key that a small table does not have is ignored by the reader, but told in an editor.
            problems = [error for error in validator.iter_errors(sample) if error.validator != "additionalProperties"]
            assert not problems, sample


def test_a_third_partys_schema() -> None:
    class Conf(Config):
        """A table."""

        words = ListOf(Text(), "some words")
        rest = Object("anything")
        strange = Field(lambda value, path: value, "something else", lambda: None, "of a kind that nobody knows")

    one = catalog.CatalogEntry(Plugin("mine", config=Conf, add=lambda request: None), "mine: does things.")  # type: ignore[arg-type,return-value]
    properties = schema.of_plugin(one, [one])["properties"]
    assert properties["words"] == {"description": "some words", "type": "array", "items": {"type": "string"}}
    assert properties["strange"] == {"description": "of a kind that nobody knows"}
    assert properties["type"] == {"const": "mine", "description": "does things"}
