"""The error object (specification, "Error") and Go's ways of printing strings and lists."""

from __future__ import annotations

import pytest

from cni.spec import errors
from cni.spec.errors import CNIError, ConfigError, bracketed, joined, quote


def test_codes_are_those_of_the_specification() -> None:
    codes = {name: value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    codes.pop("TYPE_CHECKING")
    assert codes == {
        "UNKNOWN": 0,
        "INCOMPATIBLE_CNI_VERSION": 1,
        "UNSUPPORTED_FIELD": 2,
        "UNKNOWN_CONTAINER": 3,
        "INVALID_ENVIRONMENT_VARIABLES": 4,
        "IO_FAILURE": 5,
        "DECODING_FAILURE": 6,
        "INVALID_NETWORK_CONFIG": 7,
        "INVALID_NETNS": 8,
        "TRY_AGAIN_LATER": 11,
        "PLUGIN_NOT_AVAILABLE": 50,
        "LIMITED_CONNECTIVITY": 51,
        "INTERNAL": 999,
    }


@pytest.mark.parametrize(
    ("error", "text", "obj"),
    [
        (CNIError("broken"), "broken", {"code": 999, "msg": "broken"}),
        (CNIError("broken", 7, "why"), "broken; why", {"code": 7, "msg": "broken", "details": "why"}),
        (CNIError("", 0), "", {"code": 0, "msg": ""}),
        (ConfigError("a.b[0]", "is missing"), "a.b[0]: is missing", {"code": 999, "msg": "a.b[0]: is missing"}),
        (ConfigError("", "5 is not an object"), "5 is not an object", {"code": 999, "msg": "5 is not an object"}),
    ],
)
def test_text_and_object(error: CNIError, text: str, obj: dict[str, object]) -> None:
    assert str(error) == text
    assert error.to_dict() == obj
    assert list(error.to_dict()) == list(obj), "code, msg, details: in this order"


def test_config_error_keeps_its_parts() -> None:
    error = ConfigError("mtu", '"big" is not an integer')
    assert (error.path, error.problem) == ("mtu", '"big" is not an integer')
    assert isinstance(error, CNIError)


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        ({"code": 11, "msg": "later", "details": "busy"}, (11, "later", "busy")),
        ({"cniVersion": "1.0.0", "code": 11, "msg": "later"}, (11, "later", "")),
        ({}, (0, "", "")),
        ({"code": None, "msg": None}, (0, "", "")),
        ({"Code": 100, "MSG": "old library", "Details": "x"}, (100, "old library", "x")),
    ],
)
def test_from_dict(obj: dict[str, object], expected: tuple[int, str, str]) -> None:
    error = CNIError.from_dict(obj)
    assert (error.code, error.msg, error.details) == expected


@pytest.mark.parametrize(
    "obj",
    [[], "text", 5, None, {"code": "7"}, {"code": True}, {"code": -1}, {"code": 1.5}, {"msg": 5}, {"details": []}],
)
def test_from_dict_refuses_what_is_no_error(obj: object) -> None:
    with pytest.raises(ValueError, match="error"):
        CNIError.from_dict(obj)


def test_from_dict_reads_what_to_dict_wrote() -> None:
    error = CNIError("a", 51, "b")
    assert CNIError.from_dict(error.to_dict()).args == error.args


def test_prefixed_keeps_code_and_details() -> None:
    error = ConfigError("mtu", "is missing").prefixed("failed to load netconf: ")
    assert str(error) == "failed to load netconf: mtu: is missing"
    error = CNIError("x", 50, "why").prefixed("could not: ")
    assert error.to_dict() == {"code": 50, "msg": "could not: x", "details": "why"}


def test_joined_keeps_all_texts_and_the_first_code_that_says_something() -> None:
    error = joined([OSError("disk"), CNIError("plain"), CNIError("full", 11, "pool"), CNIError("other", 50)])
    assert str(error) == "disk\nplain\nfull; pool\nother"
    assert error.code == 11


def test_joined_with_a_separator_and_no_code() -> None:
    error = joined([ValueError("a"), ValueError("b")], ", ")
    assert (str(error), error.code) == ("a, b", 999)


def test_joined_leaves_a_single_error_as_it_is() -> None:
    only = CNIError("full", 11, "pool")
    assert joined([only]) is only
    assert joined(iter([ValueError("a")])).to_dict() == {"code": 999, "msg": "a"}


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ("plain", '"plain"'),
        ('say "x"', r'"say \"x\""'),
        ("back\\slash", r'"back\\slash"'),
        ("a\nb\tc\r", r'"a\nb\tc\r"'),
        ("\a\b\f\v", r'"\a\b\f\v"'),
        ("\x00\x1b\x7f", r'"\x00\x1b\x7f"'),
        ("é日本😀", '"é日本😀"'),
        ("\u0085\u00a0\u00ad\u2028\ufeff", r'"\u0085\u00a0\u00ad\u2028\ufeff"'),
        ("\U000e0001", r'"\U000e0001"'),
        ("\udcff", r'"\xff"'),
        ("it's", '"it\'s"'),
    ],
)
def test_quote_is_gos(text: str, quoted: str) -> None:
    assert quote(text) == quoted


@pytest.mark.parametrize(
    ("items", "text"),
    [([], "[]"), (["a"], "[a]"), (["a", "b"], "[a b]"), (("", "0.1.0"), "[ 0.1.0]"), ([1, 2], "[1 2]")],
)
def test_bracketed_is_gos(items: list[object], text: str) -> None:
    assert bracketed(items) == text
