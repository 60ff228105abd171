"""JSON as Go reads and writes it; the peer in these tests is the standard library's json."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.spec import gojson
from cni.spec.errors import ConfigError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXT, children, max_size=4),
    max_leaves=20,
)


# loads


@given(JSON)
def test_loads_reads_what_json_writes(value: Any) -> None:
    assert gojson.loads(json.dumps(value)) == value
    assert gojson.loads(json.dumps(value, ensure_ascii=False, indent=2).encode()) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (' \t\r\n{"a": [1, -2.5, true, false, null, "x"]}\n', {"a": [1, -2.5, True, False, None, "x"]}),
        ("0", 0),
        ('""', ""),
        ("1e3", 1000.0),
        ('"\\u00e9\\n\\/\\ud83d\\ude00"', "é\n/😀"),
        ("9223372036854775808", 2**63),
        (b'"\xc3\xa9"', "é"),
    ],
)
def test_loads(text: str | bytes, value: Any) -> None:
    loaded = gojson.loads(text)
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'"a\xffb"', "a\ufffdb"),
        (r'"\ud800"', "\ufffd"),
        (r'"a\uDC80b\ud800c"', "a\ufffdb\ufffdc"),
        (r'{"\udfff": ["\ud83d\ude00"]}', {"\ufffd": ["😀"]}),
        (r'"\\ud800"', r"\ud800"),
    ],
)
def test_loads_makes_text_that_can_be_written(data: str | bytes, value: Any) -> None:
    assert gojson.loads(data) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "unexpected end of JSON input"),
        (" \n ", "unexpected end of JSON input"),
        ("x", "invalid character 'x' looking for beginning of value: line 1 column 1"),
        ("\n  nope", "invalid character 'n' looking for beginning of value: line 2 column 3"),
        ('{"a": 1} x', "invalid character 'x' after top-level value: line 1 column 10"),
        ("{}\n{}", "invalid character '{' after top-level value: line 2 column 1"),
        ('{"a": }', "line 1 column 7"),
        ('{"a" 1}', "line 1 column 6"),
        ('{"a": 1', "line 1 column 8"),
        ("{'a': 1}", "line 1 column 2"),
        ('["a",]', "line 1 column"),
        ('{"a":1,}', "line 1 column"),
        ('"open', "line 1 column 1"),
        ('"tab\there"', "line 1 column 5"),
        (r'"\x"', "line 1 column 2"),
        (b'\xef\xbb\xbf{"bom": 1}', "invalid character"),
        ("NaN", "NaN is not JSON"),
        ("[Infinity]", "Infinity is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("1e999", "1e999 is out of range"),
        ("01", "after top-level value"),
        ("1" * 5000, "digits"),
    ],
)
def test_loads_refuses_with_the_place(text: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError) as refusal:
        gojson.loads(text)
    assert problem in str(refusal.value)


@pytest.mark.parametrize("bomb", ["[" * 200_000, '{"a":' * 200_000, '[{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_loads_refuses_nesting_bombs(bomb: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        gojson.loads(bomb)


def test_loads_takes_any_sensible_nesting() -> None:
    value = gojson.loads("[" * 200 + "]" * 200)
    assert gojson.dumps(value) == "[" * 200 + "]" * 200


# dumps


@given(JSON, st.sampled_from([0, 2, 4]), st.booleans())
def test_dumps_writes_what_json_reads(value: Any, indent: int, sort_keys: bool) -> None:
    assert json.loads(gojson.dumps(value, indent, sort_keys)) == value


@given(st.recursive(st.none() | st.booleans() | st.integers(), lambda c: st.lists(c) | st.dictionaries(TEXT, c)))
def test_dumps_lays_out_as_json_does_but_for_the_escapes(value: Any) -> None:
    def escaped(text: str) -> str:
        for char in "<>&\u2028\u2029":
            text = text.replace(char, f"\\u{ord(char):04x}")
        return text

    assert gojson.dumps(value) == escaped(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    assert gojson.dumps(value, 4) == escaped(json.dumps(value, ensure_ascii=False, indent=4))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, False, None]}, '{"b":1,"a":[true,false,null]}'),
        ({}, "{}"),
        ([], "[]"),
        ((1, 2), "[1,2]"),
        ("<a & b>\u2028\u2029", r'"\u003ca \u0026 b\u003e\u2028\u2029"'),
        ({"<": 1}, r'{"\u003c":1}'),
        ('"\\\n\r\t\x00\x1f\x7f', '"\\"\\\\\\n\\r\\t\\u0000\\u001f\x7f"'),
        ("é日本😀", '"é日本😀"'),
        ("bad\udc80\ud800", '"bad\ufffd\ufffd"'),
        (1500.0, "1500"),
        (-0.25, "-0.25"),
        (1e20, "100000000000000000000"),
        (2**70, str(2**70)),
    ],
)
def test_dumps_compact(value: Any, text: str) -> None:
    assert gojson.dumps(value) == text


def test_dumps_indented_as_marshal_indent() -> None:
    value = {"code": 4, "list": [1, {"x": []}], "none": {}, "empty": []}
    assert gojson.dumps(value, indent=4) == (
        "{\n"
        '    "code": 4,\n'
        '    "list": [\n'
        "        1,\n"
        "        {\n"
        '            "x": []\n'
        "        }\n"
        "    ],\n"
        '    "none": {},\n'
        '    "empty": []\n'
        "}"
    )


def test_dumps_sorts_keys_at_every_level_when_asked() -> None:
    value = {"b": {"z": 1, "y": 2}, "a": [{"d": 1, "c": 2}]}
    assert gojson.dumps(value, sort_keys=True) == '{"a":[{"c":2,"d":1}],"b":{"y":2,"z":1}}'


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf]])
def test_dumps_refuses_numbers_that_json_lacks(value: Any) -> None:
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        gojson.dumps(value)


@pytest.mark.parametrize("value", [object(), {1: 2}, b"bytes", {"a": {1, 2}}])
def test_dumps_refuses_other_types(value: Any) -> None:
    with pytest.raises(TypeError):
        gojson.dumps(value)


def test_dumps_refuses_bottomless_nesting() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested too deeply"):
        gojson.dumps(loop)


# keys


@pytest.mark.parametrize(
    ("document", "key", "value"),
    [
        ('{"mtu": 1}', "mtu", 1),
        ('{"MTU": 1}', "mtu", 1),
        ('{"hostport": 1}', "hostPort", 1),
        ('{"HostPort": 1}', "hostPort", 1),
        ('{"mtu": 1, "MTU": 2}', "mtu", 2),
        ('{"MTU": 2, "mtu": 1}', "mtu", 1),
        ('{"mtu": 1, "MTU": 2, "mtu": 3}', "mtu", 3),
        ('{"mtu": 1, "MTU": 2, "mtu": 3, "Mtu": 4}', "mtu", 4),
        ('{"mtu": 1, "MTU": null}', "mtu", None),
        ('{"mac\u017f": 1}', "macs", 1),  # Go folds the long s
        ('{"\u212a": 1}', "k", 1),  # and the Kelvin sign
        ('{"stra\u00dfe": 1}', "strasse", "absent"),  # but one letter never becomes two
        ('{"mt u": 1}', "mtu", "absent"),
        ("{}", "mtu", "absent"),
    ],
)
def test_get_matches_keys_as_go_does(document: str, key: str, value: Any) -> None:
    assert gojson.get(gojson.loads(document), key, "absent") == value


def test_get_defaults_to_none() -> None:
    assert gojson.get({}, "mtu") is None


# readers


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (gojson.text, ""),
        (gojson.text, "x"),
        (gojson.flag, True),
        (gojson.flag, False),
        (gojson.integer, 0),
        (gojson.integer, 2**63 - 1),
        (gojson.integer, -(2**63)),
        (gojson.table, {"a": 1}),
        (gojson.array(gojson.integer), [1, 2]),
        (gojson.array(gojson.array(gojson.text)), [["a"], []]),
    ],
)
def test_readers_take_their_own_type(read: Any, value: Any) -> None:
    assert read(value, "path") == value


@pytest.mark.parametrize(
    ("read", "value", "problem"),
    [
        (gojson.text, 5, "p: 5 is not a string"),
        (gojson.text, None, "p: null is not a string"),
        (gojson.flag, "yes", 'p: "yes" is not true or false'),
        (gojson.flag, 1, "p: 1 is not true or false"),
        (gojson.integer, "1", 'p: "1" is not an integer'),
        (gojson.integer, True, "p: true is not an integer"),
        (gojson.integer, 1.0, "p: 1 is not an integer"),
        (gojson.integer, 1.5, "p: 1.5 is not an integer"),
        (gojson.integer, 2**63, "p: 9223372036854775808 is not an integer"),
        (gojson.table, [], "p: [] is not an object"),
        (gojson.array(gojson.text), {"a": 1}, 'p: {"a":1} is not a list'),
        (gojson.array(gojson.text), ["a", None], "p[1]: null is not a string"),
        (gojson.array(gojson.array(gojson.text)), [["a"], ["b", {}]], "p[1][1]: {} is not a string"),
    ],
)
def test_readers_name_path_value_and_type(read: Any, value: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(value, "p")
    assert str(refusal.value) == problem


def test_long_values_are_cut_in_errors() -> None:
    with pytest.raises(ConfigError) as refusal:
        gojson.integer("x" * 10_000, "mtu")
    assert len(str(refusal.value)) < 150
    assert str(refusal.value).endswith("... is not an integer")


def test_fields() -> None:
    fields = gojson.Fields({"MTU": 5, "none": None, "bad": "x"}, "ipam")
    assert fields.get("mtu", gojson.integer, 0) == 5
    assert fields.get("none", gojson.integer, 7) == 7
    assert fields.get("absent", gojson.integer, None) is None
    assert fields.need("mtu", gojson.integer) == 5
    for key, problem in [("bad", 'ipam.bad: "x" is not an integer'), ("none", "ipam.none: is missing")]:
        with pytest.raises(ConfigError) as refusal:
            fields.need(key, gojson.integer)
        assert str(refusal.value) == problem
    with pytest.raises(ConfigError, match=r"^mtu: \"big\" is not an integer$"):
        gojson.Fields({"mtu": "big"}, "").get("mtu", gojson.integer, 0)
    with pytest.raises(ConfigError, match=r"^dns: 5 is not an object$"):
        gojson.Fields(5, "dns")


def test_pairs_are_as_written() -> None:
    text = b' {"a": {"k": 1, "k": [{"x": {}}]}, "A": "\xff", "a": null} '
    assert gojson.pairs(text) == (
        ("a", (("k", 1), ("k", [(("x", ()),)]))),
        ("A", "\ufffd"),
        ("a", None),
    )
    with pytest.raises(ValueError, match="after top-level value"):
        gojson.pairs(b"{} {}")
