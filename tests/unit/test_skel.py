"""cni.skel: the order, codes and texts of a plugin's frame (Go's pkg/skel tests, and more)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from cni import __version__
from cni.kernel.netns import NetNS
from cni.skel import plugin as frame_module
from cni.skel.config import Config, Integer
from cni.skel.plugin import Outcome, Plugin
from cni.skel.request import Request
from cni.spec import gojson, names, version
from cni.spec.errors import CNIError
from cni.spec.ip import CIDR
from cni.spec.result import IPConfig, Result
from cni.system import process
from tests.waiting import LIMIT

ENVIRON = {
    "CNI_CONTAINERID": "some-container-id",
    "CNI_NETNS": "/does/not/exist",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "some;extra;args",
    "CNI_PATH": "/some/cni/path",
}
CONFIG = {"cniVersion": "1.1.0", "name": "skel-test", "some": "config"}
EVERY_VERB = ["ADD", "DEL", "CHECK", "GC", "STATUS"]
OWN_NETNS = "/proc/self/ns/net"


class Answer:
    """A record of what a call ended with, and the requests that its handlers saw."""

    def __init__(self, code: int, stdout: str, stderr: str, requests: list[Request]) -> None:
        self.code = code
        self.stdout = stdout
        self.stderr = stderr
        self.requests = requests

    @property
    def error(self) -> tuple[Any, Any, Any]:
        assert self.code == 1
        error = json.loads(self.stdout)
        assert list(error) == ["code", "msg", "details"][: len(error)]
        return error["code"], error["msg"], error.get("details", "")


def serve(
    verb: str | None,
    config: object = CONFIG,
    *,
    handler: Callable[[Request], Any] = lambda request: Result(),
    host: NetNS | None = None,
    plugin: Mapping[str, Any] = {},
    **environ: str | None,
) -> Answer:
    """Serve one call with a plugin whose every verb is `handler`; a variable of None is unset."""
    requests: list[Request] = []

    def handle(request: Request) -> Any:
        requests.append(request)
        return handler(request)

    handlers = dict.fromkeys(("add", "delete", "check", "gc", "status"), handle)
    frame = Plugin("test", **{**handlers, **plugin})
    stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
    log: list[str] = []
    variables = {**ENVIRON, "CNI_COMMAND": verb, **environ}
    given = {name: value for name, value in variables.items() if value is not None}
    outcome = frame.serve(given, lambda: stdin, log.append, host)
    return Answer(outcome.status, outcome.stdout, "".join(f"{text}\n" for text in log), requests)


# The environment


@pytest.mark.parametrize(
    ("verb", "required"),
    [
        ("ADD", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
        ("CHECK", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
        ("DEL", ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
        ("GC", ["CNI_PATH"]),
        ("STATUS", ["CNI_PATH"]),
        ("VERSION", []),
    ],
)
@pytest.mark.parametrize("absent", [None, ""])
def test_required_variables(verb: str, required: list[str], absent: str | None) -> None:
    for variable in ENVIRON:
        without: dict[str, Any] = {variable: absent}
        answer = serve(verb, **without)
        if variable in required:
            assert answer.error == (4, f"required env variables [{variable}] missing", "")
            assert not answer.requests
        else:
            assert answer.code == 0
    nothing = serve(verb, **dict.fromkeys(ENVIRON, absent))
    if required:
        assert nothing.error == (4, f"required env variables [{','.join(required)}] missing", "")
    else:
        assert nothing.code == 0


BAD_IFNAME_CHARACTERS = "interface name contains / or : or whitespace characters"


@pytest.mark.parametrize(
    ("environ", "error"),
    [
        ({"CNI_CONTAINERID": "some-%%container-id"}, (4, "invalid characters in containerID", "some-%%container-id")),
        ({"CNI_CONTAINERID": "-begins"}, (4, "invalid characters in containerID", "-begins")),
        ({"CNI_CONTAINERID": "newline\n"}, (4, "invalid characters in containerID", "newline\n")),
        ({"CNI_CONTAINERID": "d\u00e9j\u00e0"}, (4, "invalid characters in containerID", "d\u00e9j\u00e0")),
        ({"CNI_CONTAINERID": "../../etc"}, (4, "invalid characters in containerID", "../../etc")),
        (
            {"CNI_IFNAME": "1234567890123456"},
            (4, "interface name is too long", "interface name should be less than 16 characters"),
        ),
        (
            {"CNI_IFNAME": "\u00e9" * 8},
            (4, "interface name is too long", "interface name should be less than 16 characters"),
        ),
        ({"CNI_IFNAME": "."}, (4, "interface name is . or ..", "")),
        ({"CNI_IFNAME": ".."}, (4, "interface name is . or ..", "")),
        ({"CNI_IFNAME": "test/test"}, (4, BAD_IFNAME_CHARACTERS, "")),
        ({"CNI_IFNAME": "1234:567"}, (4, BAD_IFNAME_CHARACTERS, "")),
        ({"CNI_IFNAME": "1234 567"}, (4, BAD_IFNAME_CHARACTERS, "")),
        ({"CNI_IFNAME": "a\u2003b"}, (4, BAD_IFNAME_CHARACTERS, "")),
        # What is bad comes before what is missing, and in the order of the table.
        ({"CNI_CONTAINERID": "%", "CNI_PATH": ""}, (4, "invalid characters in containerID", "%")),
        ({"CNI_CONTAINERID": "", "CNI_IFNAME": "."}, (4, "interface name is . or ..", "")),
        ({"CNI_CONTAINERID": "%", "CNI_IFNAME": "."}, (4, "invalid characters in containerID", "%")),
    ],
)
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL"])
def test_bad_variables(verb: str, environ: dict[str, Any], error: tuple[int, str, str]) -> None:
    answer = serve(verb, **environ)
    assert answer.error == error
    assert not answer.requests


@pytest.mark.parametrize("verb", ["GC", "STATUS", "VERSION"])
def test_variables_that_a_verb_does_not_need_are_not_looked_at(verb: str) -> None:
    assert serve(verb, CNI_CONTAINERID="%", CNI_IFNAME="..").code == 0


@pytest.mark.parametrize("ifname", ["eth0", "123456789012345", "a\x1cb", "\u00e9" * 7, "..."])
def test_good_interface_names(ifname: str) -> None:
    names.check_ifname(ifname)


@pytest.mark.parametrize("name", ["a", "0", "a_b.c-d", "A" * 300])
def test_good_names(name: str) -> None:
    names.check_container_id(name)
    names.check_network_name(name)


@pytest.mark.parametrize(
    ("check", "code", "msg"),
    [
        (names.check_container_id, 3, "missing containerID"),
        (names.check_network_name, 7, "missing network name:"),
        (names.check_ifname, 4, "interface name is empty"),
    ],
)
def test_empty_names(check: Callable[[str], None], code: int, msg: str) -> None:
    with pytest.raises(CNIError) as caught:
        check("")
    assert (caught.value.code, caught.value.msg) == (code, msg)


@pytest.mark.parametrize("verb", [None, ""])
def test_without_a_verb(verb: str | None) -> None:
    assert serve(verb, plugin={"about": None}).error == (4, "required env variables [CNI_COMMAND] missing", "")


@pytest.mark.parametrize("verb", [None, ""])
def test_about(verb: str | None) -> None:
    about = {"about": "AWESOME PLUGIN", "versions": ("9.8.7", "10.0.0")}
    answer = serve(verb, plugin=about)
    assert (answer.code, answer.stdout) == (0, "")
    assert answer.stderr == "AWESOME PLUGIN\nCNI protocol versions supported: 9.8.7, 10.0.0\n"


def test_what_a_plugin_says_of_itself_by_default() -> None:
    answer = serve(None)
    assert (answer.code, answer.stdout) == (0, "")
    assert answer.stderr.splitlines()[0] == f"CNI test plugin v{__version__}"


# stdin


def broken_stdin() -> bytes:
    raise OSError("banana")


def test_unreadable_stdin() -> None:
    frame = Plugin("test", add=lambda request: Result())
    outcome = frame.serve({**ENVIRON, "CNI_COMMAND": "ADD"}, broken_stdin, print)
    assert json.loads(outcome.stdout) == {"code": 5, "msg": "error reading from stdin: banana"}


@pytest.mark.parametrize("verb", ["VERSION", None])
def test_stdin_is_left_alone(verb: str | None) -> None:
    frame = Plugin("test", add=lambda request: Result(), about="text")
    environ = {} if verb is None else {"CNI_COMMAND": verb}
    assert frame.serve(environ, broken_stdin, print).status == 0


def test_version() -> None:
    answer = serve("VERSION", b"\xff", plugin={"versions": ("0.4.0", "1.0.0")})
    assert answer.stdout == '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0"]}\n'
    assert (answer.code, answer.stderr, answer.requests) == (0, "", [])


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"5", b'{"name": 5}', b"null"])
@pytest.mark.parametrize("verb", [*EVERY_VERB, "NOPE"])
def test_undecodable_configuration(verb: str, config: bytes) -> None:
    answer = serve(verb, config)
    code, msg, _ = answer.error
    assert code == 6
    assert msg.startswith("error unmarshall network config: ")
    assert not answer.requests


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({}, (7, "missing network name", "")),
        ({"name": ""}, (7, "missing network name", "")),
        ({"name": None}, (7, "missing network name", "")),
        ({"name": "n<"}, (7, "invalid characters found in network name", "n<")),
        ({"name": "te%%st"}, (7, "invalid characters found in network name", "te%%st")),
        ({"name": "../up"}, (7, "invalid characters found in network name", "../up")),
    ],
)
@pytest.mark.parametrize("verb", [*EVERY_VERB, "NOPE"])
def test_bad_network_names(verb: str, config: dict[str, Any], error: tuple[int, str, str]) -> None:
    answer = serve(verb, {"cniVersion": "1.1.0", **config})
    assert answer.error == error
    assert not answer.requests


def test_keys_match_whatever_their_case() -> None:
    assert serve("STATUS", {"CNIVERSION": "1.1.0", "Name": "net"}).code == 0


def test_error_text_is_escaped_as_go_does() -> None:
    assert serve("ADD", {"name": "n<"}).stdout == (
        '{\n    "code": 7,\n    "msg": "invalid characters found in network name",\n    "details": "n\\u003c"\n}'
    )


# Verbs and versions


def test_unknown_verb() -> None:
    answer = serve("NOPE")
    assert answer.error == (4, "unknown CNI_COMMAND: NOPE", "")
    assert not answer.requests


def test_verbs_are_case_sensitive() -> None:
    assert serve("add").error == (4, "unknown CNI_COMMAND: add", "")


@pytest.mark.parametrize(("verb", "since"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
@pytest.mark.parametrize("configured", version.ALL)
def test_gates(verb: str, since: str, configured: str) -> None:
    answer = serve(verb, {**CONFIG, "cniVersion": configured})
    if version.ALL.index(configured) >= version.ALL.index(since):
        assert (answer.code, len(answer.requests)) == (0, 1)
    else:
        assert answer.error == (1, f"config version does not allow {verb}", "")
        assert not answer.requests


INCOMPATIBLE = "incompatible CNI versions"


@pytest.mark.parametrize(
    ("verb", "configured", "supported", "error"),
    [
        ("ADD", None, ("4.3.2",), (1, INCOMPATIBLE, 'config is "0.1.0", plugin supports ["4.3.2"]')),
        ("ADD", "", ("4.3.2",), (1, INCOMPATIBLE, 'config is "0.1.0", plugin supports ["4.3.2"]')),
        ("DEL", "9.9.9", ("1.2.3", "4.3.2"), (1, INCOMPATIBLE, 'config is "9.9.9", plugin supports ["1.2.3" "4.3.2"]')),
        ("ADD", "1.0", ("1.0.0",), (1, INCOMPATIBLE, 'config is "1.0", plugin supports ["1.0.0"]')),
        ("CHECK", None, version.ALL, (1, "config version does not allow CHECK", "")),
        ("CHECK", "0.4.0", ("0.3.1",), (1, "plugin version does not allow CHECK", "")),
        ("GC", "1.1.0", ("1.0.0",), (1, "plugin version does not allow GC", "")),
        ("STATUS", "1.1.0", ("1.0.0",), (1, "plugin version does not allow STATUS", "")),
        ("CHECK", "0.4.0", ("1.0.0",), (1, INCOMPATIBLE, 'config is "0.4.0", plugin supports ["1.0.0"]')),
    ],
)
def test_versions_that_do_not_go_together(
    verb: str, configured: str | None, supported: tuple[str, ...], error: tuple[int, str, str]
) -> None:
    answer = serve(verb, {**CONFIG, "cniVersion": configured}, plugin={"versions": supported})
    assert answer.error == error
    assert not answer.requests


def test_a_missing_version_is_the_oldest() -> None:
    answer = serve("DEL", {"name": "net"}, plugin={"versions": ("0.1.0",)})
    assert answer.code == 0
    assert answer.requests[0].version == "0.1.0"


@pytest.mark.parametrize("cni_version", [5, 0, False, [], {}])
@pytest.mark.parametrize("verb", EVERY_VERB)
def test_a_version_that_is_no_text(verb: str, cni_version: object) -> None:
    code, msg, _ = serve(verb, {**CONFIG, "cniVersion": cni_version}).error
    assert code == 6
    assert msg.startswith("decoding version from network config: ")


@pytest.mark.parametrize(("configured", "supported"), [("adsf.asdf", version.ALL), ("1.1.0", ("adsf",))])
@pytest.mark.parametrize("verb", ["CHECK", "GC", "STATUS"])
def test_versions_that_are_no_numbers(verb: str, configured: str, supported: tuple[str, ...]) -> None:
    code, msg, _ = serve(verb, {**CONFIG, "cniVersion": configured}, plugin={"versions": supported}).error
    assert code == 6
    assert "version part" in msg


@pytest.mark.parametrize("verb", ["DEL", "CHECK", "GC", "STATUS"])
def test_a_verb_without_handler_succeeds_after_the_gates(verb: str) -> None:
    nothing = dict.fromkeys(("delete", "check", "gc", "status"))
    answer = serve(verb, plugin=nothing)
    assert (answer.code, answer.stdout, answer.stderr) == (0, "", "")
    assert serve(verb, {**CONFIG, "cniVersion": "9.9.9"}, plugin=nothing).code == 1


# Handlers


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_what_a_handler_sees(verb: str) -> None:
    answer = serve(verb)
    [request] = answer.requests
    assert request.command == verb
    assert request.container_id == "some-container-id"
    assert request.netns == "/does/not/exist"
    assert request.ifname == "eth0"
    assert request.args == "some;extra;args"
    assert request.path == "/some/cni/path"
    assert json.loads(request.stdin) == CONFIG
    assert request.config.name == "skel-test"
    assert request.version == "1.1.0"
    assert request.environ["CNI_COMMAND"] == verb


@pytest.mark.parametrize("verb", ["DEL", "CHECK", "GC", "STATUS"])
def test_only_add_prints(verb: str) -> None:
    answer = serve(verb)
    assert (answer.code, answer.stdout) == (0, "")


@pytest.mark.parametrize("configured", version.ALL)
def test_add_prints_in_the_version_of_the_configuration(configured: str) -> None:
    made = Result(ips=[IPConfig(CIDR.parse("10.1.2.3/24"))])
    answer = serve("ADD", {**CONFIG, "cniVersion": configured}, handler=lambda request: made)
    assert (answer.code, answer.stderr) == (0, "")
    assert answer.stdout == made.text(configured)


def test_a_result_that_the_version_can_not_say() -> None:
    answer = serve("ADD", {**CONFIG, "cniVersion": "0.2.0"})
    assert answer.error == (999, "cannot convert: no valid IP addresses", "")
    assert len(answer.requests) == 1


def test_an_add_without_a_result() -> None:
    assert serve("ADD", handler=lambda request: None).error == (999, "test: ADD returned no result", "")


class NumberConf(Config):
    mtu = Integer(1500, "MTU")


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_what_the_table_refuses(verb: str) -> None:
    config = {**CONFIG, "mtu": "big"}
    answer = serve(verb, config, plugin={"config": NumberConf})
    assert answer.error == (999, 'failed to load netconf: mtu: "big" is not an integer', "")
    assert not answer.requests
    other = serve(verb, config, plugin={"config": NumberConf, "netconf_error": "bad: "})
    assert other.error == (999, 'bad: mtu: "big" is not an integer', "")


def raising(error: BaseException) -> Callable[[Request], Any]:
    def handler(request: Request) -> Any:
        raise error

    return handler


def wrapped(error: BaseException, *wrappers: BaseException) -> BaseException:
    for wrapper in wrappers:
        wrapper.__cause__ = error
        error = wrapper
    return error


@pytest.mark.parametrize(
    ("error", "printed"),
    [
        (CNIError("some message", 1234, "details"), (1234, "some message", "details")),
        (CNIError("unknown", 0), (0, "unknown", "")),
        (ValueError("potato"), (999, "ValueError: potato", "")),
        (RuntimeError(), (999, "RuntimeError", "")),
        (SystemExit("left"), (999, "SystemExit: left", "")),
        (KeyError("eth0"), (999, "KeyError: 'eth0'", "")),
        (OSError(28, "No space left on device"), (999, "[Errno 28] No space left on device", "")),
        (wrapped(CNIError("inner", 11), RuntimeError("outer")), (11, "inner", "")),
        (wrapped(CNIError("inner", 11), OSError("mid"), RuntimeError("outer")), (11, "inner", "")),
        (wrapped(CNIError("inner", 11), CNIError("middle", 7), RuntimeError("outer")), (7, "middle", "")),
        (wrapped(ValueError("inner"), RuntimeError("outer")), (999, "RuntimeError: outer", "")),
    ],
)
@pytest.mark.parametrize("verb", EVERY_VERB)
def test_errors_of_handlers(verb: str, error: BaseException, printed: tuple[int, str, str]) -> None:
    answer = serve(verb, handler=raising(error))
    assert answer.error == printed
    assert answer.stderr == ""


def test_keyboard_interrupt_gets_out() -> None:
    with pytest.raises(KeyboardInterrupt):
        serve("ADD", handler=raising(KeyboardInterrupt()))


def test_the_traceback_goes_to_stderr_where_asked_for() -> None:
    answer = serve("ADD", handler=raising(ValueError("potato")), CNI_LOG="debug")
    assert answer.error == (999, "ValueError: potato", "")
    assert "\nTraceback (most recent call last):\n" in answer.stderr
    assert answer.stderr.endswith("ValueError: potato\n")


@pytest.mark.parametrize(
    ("outcome", "what"), [(Outcome("{}"), "result"), (Outcome("{}", error=CNIError("no")), "error JSON")]
)
def test_stdout_that_can_not_be_written(outcome: Outcome, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[bytes] = []

    def write_all(fd: int, data: bytes) -> None:
        if fd == 1:
            raise BrokenPipeError(32, "Broken pipe")
        logged.append(data)

    monkeypatch.setattr(frame_module, "write_all", write_all)
    assert frame_module._print(outcome) == 1
    assert b"".join(logged) == f"Error writing {what} to stdout: Broken pipe\n".encode()


# The namespace


SAME_NETNS = (8, "plugin's netns and netns from CNI_NETNS should not be the same", "")


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_the_own_namespace_is_refused_before_the_verb(verb: str) -> None:
    answer = serve(verb, CNI_NETNS=OWN_NETNS)
    assert answer.error == SAME_NETNS
    assert not answer.requests


@pytest.mark.parametrize("verb", ["CHECK", "GC", "STATUS"])
def test_other_verbs_do_not_mind_the_own_namespace(verb: str) -> None:
    assert serve(verb, CNI_NETNS=OWN_NETNS).code == 0


@pytest.mark.parametrize("override", ["1", "true", "TRUE", "True"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_the_check_can_be_turned_off(verb: str, override: str) -> None:
    assert serve(verb, CNI_NETNS=OWN_NETNS, CNI_NETNS_OVERRIDE=override).code == 0


@pytest.mark.parametrize("override", ["", "0", "yes", "false"])
def test_other_values_do_not_turn_it_off(override: str) -> None:
    assert serve("ADD", CNI_NETNS=OWN_NETNS, CNI_NETNS_OVERRIDE=override).error == SAME_NETNS


@pytest.mark.parametrize("netns", ["", "/does/not/exist", "/etc/passwd", "/"])
def test_a_namespace_that_can_not_be_opened_is_left_to_the_handler(netns: str) -> None:
    assert serve("DEL", CNI_NETNS=netns).code == 0


class Elsewhere:
    """A namespace that no path leads to."""

    identity = (0, 0)


def test_the_own_namespace_is_the_given_one() -> None:
    elsewhere: Any = Elsewhere()
    answer = serve("ADD", CNI_NETNS=OWN_NETNS, host=elsewhere)
    assert answer.code == 0
    assert answer.requests[0].host is elsewhere
    with NetNS.open(OWN_NETNS) as own:
        assert serve("ADD", CNI_NETNS=OWN_NETNS, host=own).error == SAME_NETNS


def test_an_own_namespace_that_can_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def current() -> NetNS:
        raise PermissionError(13, "Permission denied", "/proc/thread-self/ns/net")

    monkeypatch.setattr(NetNS, "current", current)
    code, msg, details = serve("ADD", CNI_NETNS=OWN_NETNS).error
    assert (code, msg) == (8, "get plugin's netns failed")
    assert "Permission denied" in details


def test_an_own_namespace_opened_for_a_request_is_closed_with_it() -> None:
    before = os.listdir("/proc/self/fd")
    answer = serve("DEL", handler=lambda request: request.host.identity)
    assert answer.code == 0
    assert os.listdir("/proc/self/fd") == before


# prevResult


def test_prev_result_is_parsed_once() -> None:
    seen = []

    def handler(request: Request) -> Result:
        assert request.prev_result is not None
        seen.append((request.prev_result, request.prev_result))
        return request.prev_result

    prev_result = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}]}
    answer = serve("ADD", {**CONFIG, "prevResult": prev_result}, handler=handler)
    assert json.loads(answer.stdout) == prev_result
    assert seen[0][0] is seen[0][1]


class Sized(Config):
    """A table with a key."""

    size = Integer(0, "")


class Several:
    """Calls of one plugin, one after the other, and the requests that its handlers saw."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.plugin = Plugin("test", config=Sized, add=self.handle, delete=self.handle)

    def handle(self, request: Request) -> Any:
        self.requests.append(request)
        return Result()

    def __call__(self, verb: str, **more: object) -> tuple[int, str]:
        """The exit code, and what is printed."""
        config = json.dumps({**CONFIG, "ipam": {"type": "x"}, "size": 1, **more}).encode()
        outcome = self.plugin.serve({**ENVIRON, "CNI_COMMAND": verb}, lambda: config, print)
        return outcome.status, outcome.stdout


def result(address: str) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "ips": [{"address": address}]}


def test_a_configuration_that_differs_in_its_prev_result_is_parsed_once() -> None:
    call = Several()
    for verb, key in (("DEL", "prevResult"), ("ADD", "prevResult"), ("DEL", "PREVresult")):
        for number in range(1, 4):
            assert call(verb, **{key: result(f"10.0.0.{number}/24")})[0] == 0
            request = call.requests[-1]
            assert str(request.require_prev_result().ips[0].address) == f"10.0.0.{number}/24"
            assert request.config.prevResult["ips"][0]["address"] == f"10.0.0.{number}/24"
    assert call("DEL")[0] == 0
    assert call.requests[-1].prev_result is None
    assert (call.requests[-1].config.prevResult, call.requests[-1].config.has("prevResult")) == ({}, False)
    assert call("DEL", prevResult=None)[0] == 0
    assert call.requests[-1].prev_result is None
    assert len({id(request.config.ipam) for request in call.requests if not request.config.has("PREVresult")}) == 1


@pytest.mark.parametrize(("before", "wrong"), [(1, True), (1, 1.0), (0, False)])
def test_what_is_equal_to_python_is_not_the_same(before: int, wrong: object) -> None:
    call = Several()
    assert call("ADD", size=before, prevResult=result("10.0.0.1/24"))[0] == 0
    status, said = call("ADD", size=wrong, prevResult=result("10.0.0.2/24"))
    assert (status, json.loads(said)["msg"]) == (
        1,
        f"failed to load netconf: size: {gojson.dumps(wrong)} is not an integer",
    )


def test_a_wrong_prev_result_after_a_sound_one() -> None:
    call = Several()
    assert call("ADD", prevResult=result("10.0.0.1/24"))[0] == 0
    status, said = call("ADD", prevResult=[])
    assert (status, json.loads(said)["msg"]) == (1, "failed to load netconf: prevResult: [] is not an object")


@pytest.mark.parametrize("config", [{}, {"prevResult": None}])
def test_no_prev_result(config: dict[str, Any]) -> None:
    [request] = serve("ADD", {**CONFIG, **config}).requests
    assert request.prev_result is None


def test_prev_result_of_another_family() -> None:
    config = {**CONFIG, "prevResult": {"cniVersion": "0.4.0"}}
    answer = serve("DEL", config, handler=lambda request: request.prev_result)
    assert answer.error == (
        999,
        'could not parse prevResult: result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is "0.4.0"',
        "",
    )


# CNI_ARGS


def positive(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"not a number: {text}")
    return int(text)


@pytest.mark.parametrize(
    ("args", "values"),
    [
        ("", {}),
        ("MAC=aa", {"MAC": "aa"}),
        ("MAC=", {"MAC": ""}),
        ("MAC=a;MAC=b", {"MAC": "b"}),
        ("N=5;MAC=a", {"N": 5, "MAC": "a"}),
        ("IgnoreUnknown=1;K8S_POD_NAME=x;MAC=a", {"MAC": "a"}),
        ("K8S_POD_NAME=x;MAC=a;IgnoreUnknown=True", {"MAC": "a"}),
        ("IgnoreUnknown=false", {}),
        ("IgnoreUnknown=0;MAC=a", {"MAC": "a"}),
        ("IgnoreUnknown=1;mac=a", {}),
        ("IgnoreUnknown=0;X=1;IgnoreUnknown=1", {}),
    ],
)
def test_cni_args(args: str, values: dict[str, object]) -> None:
    seen = []
    answer = serve("DEL", handler=lambda request: seen.append(request.cni_args("MAC", N=positive)), CNI_ARGS=args)
    assert (answer.code, seen) == (0, [values])


@pytest.mark.parametrize(
    ("args", "msg"),
    [
        ("MAC", 'ARGS: invalid pair "MAC"'),
        ("MAC=a;", 'ARGS: invalid pair ""'),
        ("MAC=a=b", 'ARGS: invalid pair "MAC=a=b"'),
        ("A=b;C=d", 'ARGS: unknown args ["A=b" "C=d"]'),
        ("A=b;IgnoreUnknown=false", 'ARGS: unknown args ["A=b"]'),
        ("mac=a", 'ARGS: unknown args ["mac=a"]'),
        ("ignoreunknown=1", 'ARGS: unknown args ["ignoreunknown=1"]'),
        (
            "IgnoreUnknown=x",
            'ARGS: error parsing value of pair "IgnoreUnknown=x": boolean unmarshal error: invalid input x',
        ),
        (
            "IgnoreUnknown=",
            'ARGS: error parsing value of pair "IgnoreUnknown=": boolean unmarshal error: invalid input ',
        ),
        ("X=1;N=five", 'ARGS: error parsing value of pair "N=five": not a number: five'),
    ],
)
def test_bad_cni_args(args: str, msg: str) -> None:
    answer = serve("DEL", handler=lambda request: request.cni_args("MAC", N=positive), CNI_ARGS=args)
    assert answer.error == (999, msg, "")


def test_cni_args_are_nobody_s_business_but_who_asks() -> None:
    assert serve("ADD", CNI_ARGS="rubbish").code == 0


# For tests of a plugin


def test_call_returns_the_result() -> None:
    plugin = Plugin("test", add=lambda request: Result(ips=[IPConfig(CIDR.parse("10.1.2.3/24"))]))
    result = plugin.call("ADD", {}, netns="/nowhere")
    assert result
    assert [str(ip.address) for ip in result.ips] == ["10.1.2.3/24"]
    assert plugin.call("DEL", json.dumps(CONFIG).encode()) is None


def test_call_raises_what_would_be_printed() -> None:
    plugin = Plugin("test", config=Sized, add=lambda request: Result())
    with pytest.raises(CNIError, match=r'^failed to load netconf: size: "x" is not an integer$'):
        plugin.call("ADD", {"size": "x"}, netns="/nowhere")


def test_what_call_passes() -> None:
    seen: list[Request[Config]] = []
    plugin = Plugin("test", add=lambda request: Result(), delete=seen.append)
    log: list[str] = []
    plugin.call("DEL", {}, container_id="c", netns="/n", ifname="i", args="A=b", path=["/x", "/y"], log=log.append)
    (request,) = seen
    assert (request.container_id, request.netns, request.ifname, request.args, request.path) == (
        "c",
        "/n",
        "i",
        "A=b",
        "/x:/y",
    )
    assert (request.version, request.config.name) == (version.CURRENT, "test")
    request.log("said")
    assert log == ["said"]


# validate


def test_validate_comes_before_add_alone() -> None:
    steps: list[str] = []

    def validate(request: Request[Config]) -> None:
        steps.append("validate")

    def handler(request: Request[Config]) -> Result:
        steps.append(request.command)
        return Result()

    for verb in EVERY_VERB:
        serve(verb, handler=handler, plugin={"validate": validate})
    assert steps == ["validate", *EVERY_VERB]


@pytest.mark.parametrize("lazily", [False, True])
def test_what_validate_raises_keeps_add_from_running(lazily: bool) -> None:
    def refuse(request: Request[Config]) -> list[str]:
        raise CNIError("no such mode", 7)

    def refuse_lazily(request: Request[Config]) -> Iterator[str]:
        yield "a warning"
        refuse(request)

    answer = serve("ADD", plugin={"validate": refuse_lazily if lazily else refuse})
    assert answer.error == (7, "no such mode", "")
    assert (answer.requests, answer.stderr) == ([], "")


# The attachments that GC names


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        ({}, None),
        ({"cni.dev/valid-attachments": None}, None),
        ({"cni.dev/valid-attachments": []}, []),
        (
            {"cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}, {"containerID": "d"}]},
            [("c", "eth0"), ("d", "")],
        ),
    ],
)
def test_valid_attachments(given: dict[str, Any], valid: list[tuple[str, str]] | None) -> None:
    answer = serve("GC", {**CONFIG, **given})
    assert answer.requests[0].valid_attachments == valid


# As a process


SCRIPT = """
from cni.spec.errors import CNIError
from cni.spec.result import Result
from cni.skel.plugin import Plugin

def add(request):
    print("print()ed", file=__import__("sys").stderr)
    if request.ifname == "raises":
        raise ValueError("d\\u00e9j\\u00e0 vu")
    return Result()

Plugin("script", add=add, about="CNI script plugin").main()
"""


@pytest.fixture
def script(tmp_path: os.PathLike[str]) -> str:
    path = os.path.join(tmp_path, "script.py")
    with open(path, "w") as file:
        file.write(SCRIPT)
    return path


def start(script: str, redirections: str = "", config: object = CONFIG, **environ: str) -> process.Completed:
    variables = {**ENVIRON, "PYTHONPATH": os.pathsep.join(sys.path), "CNI_COMMAND": "ADD", **environ}
    command = ["sh", "-c", f'exec "$0" "$1" {redirections}', sys.executable, script]
    return process.run(command, json.dumps(config).encode(), {**os.environ, **variables}, timeout=LIMIT)


def test_a_process_that_succeeds(script: str) -> None:
    done = start(script)
    assert (done.status, done.stdout) == (0, b'{\n    "cniVersion": "1.1.0"\n}')
    assert done.stderr == b"print()ed\n"


def test_a_process_that_fails(script: str) -> None:
    done = start(script, CNI_IFNAME="raises")
    assert done.status == 1
    assert done.stdout.decode() == '{\n    "code": 999,\n    "msg": "ValueError: d\u00e9j\u00e0 vu"\n}'


@pytest.mark.parametrize("locale", ["C", "POSIX", "de_DE.ISO-8859-1"])
def test_the_locale_changes_nothing(script: str, locale: str) -> None:
    assert "d\u00e9j\u00e0 vu".encode() in start(script, CNI_IFNAME="raises", LC_ALL=locale).stdout


def test_a_process_started_by_hand(script: str) -> None:
    done = start(script, CNI_COMMAND="")
    assert (done.status, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"CNI script plugin\nCNI protocol versions supported: 0.1.0, 0.2.0, ")


@pytest.mark.parametrize(
    ("redirections", "reason"),
    [(">&-", b"Bad file descriptor"), (">/dev/full", b"No space left on device"), (">&- <&-", b"Bad file descriptor")],
)
def test_a_process_without_a_usable_stdout(script: str, redirections: str, reason: bytes) -> None:
    done = start(script, redirections)
    assert done.status == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(b"Error writing ")
    assert last.endswith(reason)


def test_a_process_whose_reader_has_gone(script: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = start(script, f">/proc/{os.getpid()}/fd/{write_end}")
    finally:
        os.close(write_end)
    assert done.status == 1
    assert b"Error writing result to stdout: " in done.stderr


def test_a_process_without_stderr(script: str) -> None:
    assert start(script, "2>&-").status == 0
