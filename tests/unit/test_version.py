"""Versions of the specification (pkg/version of the Go library)."""

from __future__ import annotations

import json

import pytest

from cni.spec import version
from cni.spec.errors import CNIError


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1.2.3", (1, 2, 3)),
        ("", (0, 1, 0)),
        ("1", (1, 0, 0)),
        ("0.4", (0, 4, 0)),
        ("99.0.0", (99, 0, 0)),
        ("1.02.3", (1, 2, 3)),
        ("+1.0.0", (1, 0, 0)),
        ("1.-2.3", (1, -2, 3)),
    ],
)
def test_parse(text: str, numbers: tuple[int, int, int]) -> None:
    assert version.parse(text) == numbers


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("asdf", 'failed to convert major version part "asdf": '),
        ("0.", 'failed to convert minor version part "": '),
        ("..", 'failed to convert major version part "": '),
        (".x", 'failed to convert major version part "": '),
        ("1.x", 'failed to convert minor version part "x": '),
        ("1.2.x", 'failed to convert micro version part "x": '),
        ("1.2.3-rc1", 'failed to convert micro version part "3-rc1": '),
        ("1. 2", 'failed to convert minor version part " 2": '),
        ("1_0.0", 'failed to convert major version part "1_0": '),
        ("١.0.0", 'failed to convert major version part "١": '),
        ("+.0.0", 'failed to convert major version part "+": '),
        ("1.2.3.4", 'invalid version "1.2.3.4": too many parts'),
        ("1.2.3.4.5", 'invalid version "1.2.3.4.5": too many parts'),
        ("...", 'invalid version "...": too many parts'),
    ],
)
def test_parse_refuses(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as refusal:
        version.parse(text)
    assert str(refusal.value).startswith(problem)


@pytest.mark.parametrize(
    ("one", "other", "at_least", "greater"),
    [
        ("1.2.34", "1.2.14", True, True),
        ("2.5.4", "2.4.4", True, True),
        ("1.2.3", "0.2.3", True, True),
        ("0.4.0", "0.3.1", True, True),
        ("0.3.1", "0.3.1", True, False),
        ("1.0", "1.0.0", True, False),
        ("", "0.1.0", True, False),
        ("0.3.0", "0.3.1", False, False),
        ("0.4.0", "1.0.0", False, False),
        ("1.2.9", "1.2.10", False, False),
    ],
)
def test_versions_are_compared_as_numbers(one: str, other: str, at_least: bool, greater: bool) -> None:
    assert version.at_least(one, other) is at_least
    assert version.greater(one, other) is greater


@pytest.mark.parametrize(("one", "other"), [("1.2.3", "x"), ("x", "1.2.3"), ("1.2.3.4", "1.0.0")])
def test_comparing_refuses_malformed_versions(one: str, other: str) -> None:
    for compare in (version.at_least, version.greater):
        with pytest.raises(ValueError):
            compare(one, other)


def test_known_versions() -> None:
    assert version.CURRENT == version.ALL[-1] == "1.1.0"
    assert version.ALL == ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
    assert list(version.ALL) == sorted(version.ALL, key=version.parse)
    assert version.since("0.3.1") == ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
    assert version.since("2.0.0") == ()


@pytest.mark.parametrize(
    ("known", "members"),
    [
        (["", "0.1.0", "0.2.0"], ("", "0.1.0", "0.2.0")),
        (["0.3.0", "0.3.1", "0.4.0"], ("0.3.0", "0.3.1", "0.4.0")),
        (["1.0.0", "1.1.0"], ("1.0.0", "1.1.0")),
    ],
)
def test_families(known: list[str], members: tuple[str, ...]) -> None:
    for text in known:
        assert version.family(text) == members


@pytest.mark.parametrize("text", ["0.3", "1.2.0", "5678.456", "x"])
def test_unknown_family(text: str) -> None:
    with pytest.raises(CNIError) as refusal:
        version.family(text)
    assert str(refusal.value) == f'unsupported CNI result version "{text}"'


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"cniVersion": "0.4.0"}, "0.4.0"),
        ({"CNIVersion": "0.4.0"}, "0.4.0"),
        ({"cniVersion": "anything"}, "anything"),
        ({"cniVersion": ""}, "0.1.0"),
        ({"cniVersion": None}, "0.1.0"),
        ({}, "0.1.0"),
    ],
)
def test_version_of_a_configuration(config: dict[str, object], expected: str) -> None:
    assert version.of_config(config) == expected


def test_version_of_a_configuration_must_be_text() -> None:
    with pytest.raises(CNIError) as refusal:
        version.of_config({"cniVersion": 1})
    assert refusal.value.code == 6
    assert str(refusal.value) == "decoding version from network config: cniVersion: 1 is not a string"


def test_reconcile() -> None:
    version.reconcile("0.3.1", version.ALL)
    version.reconcile("9.8.7", ["9.8.7", "10.0.0"])


@pytest.mark.parametrize(
    ("config", "supported", "details"),
    [
        ("0.1.0", ["1.2.3", "4.3.2"], 'config is "0.1.0", plugin supports ["1.2.3" "4.3.2"]'),
        ("1.0", ["1.0.0"], 'config is "1.0", plugin supports ["1.0.0"]'),
        ("0.1.0", [], 'config is "0.1.0", plugin supports []'),
        (
            "9.9.9",
            version.ALL,
            'config is "9.9.9", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]',
        ),
    ],
)
def test_reconcile_refuses(config: str, supported: list[str], details: str) -> None:
    with pytest.raises(CNIError) as refusal:
        version.reconcile(config, supported)
    assert refusal.value.to_dict() == {"code": 1, "msg": "incompatible CNI versions", "details": details}


def test_plugin_info_is_one_line_as_gos() -> None:
    expected = '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0"]}\n'
    assert version.PluginInfo(["0.4.0", "1.0.0"]).encode() == expected


def test_plugin_info_round_trip() -> None:
    info = version.PluginInfo.decode(version.PluginInfo(version.ALL, "0.9.0").encode())
    assert (info.cni_version, info.supported) == ("0.9.0", version.ALL)


@pytest.mark.parametrize(
    ("printed", "cni_version", "supported"),
    [
        ({"cniVersion": "0.2.0"}, "0.2.0", ("0.1.0", "0.2.0")),
        ({"cniVersion": "0.2.0", "supportedVersions": []}, "0.2.0", ("0.1.0", "0.2.0")),
        ({"cniVersion": "0.2.0", "supportedVersions": ["0.2.0"]}, "0.2.0", ("0.2.0",)),
        ({"CNIVersion": "1.0.0", "SupportedVersions": ["x"], "more": 1}, "1.0.0", ("x",)),
    ],
)
def test_plugin_info_decode(printed: object, cni_version: str, supported: tuple[str, ...]) -> None:
    info = version.PluginInfo.decode(json.dumps(printed).encode())
    assert (info.cni_version, info.supported) == (cni_version, supported)


@pytest.mark.parametrize(
    ("printed", "problem"),
    [
        ("{}", "missing field cniVersion"),
        ('{"supportedVersions": ["foo"]}', "missing field cniVersion"),
        ('{"cniVersion": "some-version"}', "missing field supportedVersions"),
        ('{"cniVersion": "1.0.0", "supportedVersions": []}', "missing field supportedVersions"),
        ('{"cniVersion": 5}', "cniVersion: 5 is not a string"),
        ('{"cniVersion": "1.0.0", "supportedVersions": "1.0.0"}', 'supportedVersions: "1.0.0" is not a list'),
        ("[]", "[] is not an object"),
        ("", "unexpected end of JSON input"),
        ("{bad", ""),
    ],
)
def test_plugin_info_decode_refuses(printed: str, problem: str) -> None:
    with pytest.raises(CNIError) as refusal:
        version.PluginInfo.decode(printed)
    assert str(refusal.value).startswith(f"decoding version info: {problem}")
