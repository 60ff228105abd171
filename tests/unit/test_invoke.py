"""cni.invoke: finding plugins, running them, and the errors they leave (Go's pkg/invoke tests, and more)."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni.invoke import exec as invoke
from cni.invoke import launcher
from cni.skel import ipam
from cni.skel.config import Config
from cni.skel.delegation import delegate
from cni.skel.plugin import Plugin
from cni.skel.request import Request
from cni.spec import gojson
from cni.spec.errors import CNIError
from cni.spec.ip import CIDR
from cni.spec.result import IPConfig, Result
from cni.system import process
from cni.system.undo import Undo

CONFIG = {"cniVersion": "1.0.0", "name": "net", "type": "outer"}
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]}


def shell_plugin(folder: Path, name: str, script: str) -> str:
    """An executable `name` that runs `script`."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def error_of(function: Callable[[], object]) -> tuple[int, str, str]:
    with pytest.raises(CNIError) as caught:
        function()
    return caught.value.code, caught.value.msg, caught.value.details


# Finding


def test_find_takes_the_first_regular_file(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    (first / "plugin").mkdir()
    (second / "plugin").write_text("not executable, found all the same")
    (third / "plugin").write_text("")
    (first / "linked").symlink_to(second / "plugin")
    (first / "dangling").symlink_to(first / "nothing")
    (second / "dangling").write_text("")
    paths = ["", "/does/not/exist", *map(str, (first, second, third))]
    assert invoke.find("plugin", paths) == str(second / "plugin")
    assert invoke.find("linked", paths) == str(first / "linked")
    assert invoke.find("dangling", paths) == str(second / "dangling")


@pytest.mark.parametrize(
    ("name", "paths", "msg"),
    [
        ("", ["/a"], "no plugin name provided"),
        ("plugin", [], "no paths provided"),
        ("plugin", ["/a", "/b c"], 'failed to find plugin "plugin" in path [/a /b c]'),
        ("../plugin", ["/a"], "invalid plugin name: ../plugin"),
        ("a/plugin", ["/a"], "invalid plugin name: a/plugin"),
        ("/bin/sh", ["/"], "invalid plugin name: /bin/sh"),
        (".", ["/a"], "invalid plugin name: ."),
        ("..", ["/a"], "invalid plugin name: .."),
        ("sh\0", ["/bin"], "invalid plugin name: sh\0"),
        ("a\\b", ["/a"], 'failed to find plugin "a\\\\b" in path [/a]'),
    ],
)
def test_find_refuses(name: str, paths: list[str], msg: str) -> None:
    assert error_of(lambda: invoke.find(name, paths)) == (999, msg, "")


def test_an_empty_folder_in_the_path_is_not_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin").write_text("")
    monkeypatch.chdir(tmp_path)
    assert error_of(lambda: invoke.find("plugin", [""]))[1] == 'failed to find plugin "plugin" in path []'


# The environment


def test_environment_sets_all_six(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CNI_")]:  # the tests' own
        monkeypatch.delenv(name)
    monkeypatch.setenv("CNI_IFNAME", "stale")
    monkeypatch.setenv("CNI_ARGS", "stale")
    monkeypatch.setenv("OTHER", "kept")
    environ = invoke.environment("ADD", container_id="c", netns="/n", ifname="eth0", paths=["/a", "/b"])
    assert environ["OTHER"] == "kept"
    assert {key: value for key, value in environ.items() if key.startswith("CNI_")} == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": "/n",
        "CNI_ARGS": "",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/a:/b",
    }


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("context", "variables"),
    [
        ({"traceparent": TRACEPARENT}, {"TRACEPARENT": TRACEPARENT}),
        (
            {"traceparent": TRACEPARENT, "tracestate": "a=b", "baggage": "k=v"},
            {"TRACEPARENT": TRACEPARENT, "TRACESTATE": "a=b", "BAGGAGE": "k=v"},
        ),
        ({"traceparent": TRACEPARENT, "tracestate": "", "baggage": ""}, {"TRACEPARENT": TRACEPARENT}),
        ({"traceparent": TRACEPARENT, "x-other": "1"}, {"TRACEPARENT": TRACEPARENT}),
        ({}, {}),
        ({"baggage": "k=v"}, {}),
        ({"tracestate": "a=b", "traceparent": ""}, {}),
        ({"traceparent": f"00-{'0' * 32}-{SPAN}-01"}, {}),
        ({"traceparent": f"00-{TRACE}-{'0' * 16}-01"}, {}),
        ({"traceparent": f"00-{TRACE.upper()}-{SPAN}-01"}, {}),
        ({"traceparent": f"00-{TRACE}-{SPAN}-1"}, {}),
        ({"traceparent": f"00-{TRACE}-{SPAN}"}, {}),
        ({"traceparent": f"00-{TRACE}-{SPAN}-01-extra"}, {}),
        ({"traceparent": f"ff-{TRACE}-{SPAN}-01"}, {}),
        ({"traceparent": f"00-{TRACE[:-1]}g-{SPAN}-01"}, {}),
        ({"traceparent": "nonsense"}, {}),
    ],
)
def test_trace_context(context: dict[str, str], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke.trace_variables(context) == variables
    monkeypatch.setenv("TRACEPARENT", "inherited")
    monkeypatch.setenv("BAGGAGE", "inherited")
    environ = invoke.environment("ADD", trace=context)
    assert environ["TRACEPARENT"] == variables.get("TRACEPARENT", "inherited")
    assert environ["BAGGAGE"] == variables.get("BAGGAGE", "inherited")


# Processes


def test_execute_delivers_stdin_and_environment(tmp_path: Path) -> None:
    path = shell_plugin(tmp_path, "plugin", 'echo "$CNI_COMMAND $# $0"; cat')
    assert invoke.execute(path, b'{"some": 1}', {"CNI_COMMAND": "DEL"}) == f'DEL 0 {path}\n{{"some": 1}}'.encode()


def test_stderr_is_passed_on_when_it_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shell_plugin(tmp_path, "plugin", "echo said >&2; echo {}")
    said: list[str] = []
    assert invoke.execute(path, b"", {}, log=said.append) == b"{}\n"
    assert said == ["said"]
    invoke.execute(path, b"", {})
    assert capsys.readouterr() == ("", "said\n")


FAILED = "netplugin failed"
UNPARSABLE = "netplugin failed but error parsing its diagnostic message"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("exit 1", (0, f"{FAILED} with no error message: exit status 1", "")),
        ("exit 42", (0, f"{FAILED} with no error message: exit status 42", "")),
        ("kill -KILL $$", (0, f"{FAILED} with no error message: signal: killed", "")),
        ("echo some stderr message >&2; exit 1", (0, f'{FAILED}: "some stderr message\\n": exit status 1', "")),
        ("""printf '"\\377' >&2; kill -TERM $$""", (0, f'{FAILED}: "\\"\\xff": signal: terminated', "")),
        ("""echo '{"code": 7, "msg": "m", "details": "d"}'; echo noise >&2; exit 1""", (7, "m", "d")),
        ("""echo '{"Code": 7, "MSG": "m", "cniVersion": "1.0.0"}'; exit 1""", (7, "m", "")),
        ("echo '{}'; exit 1", (0, "", "")),
        ("echo null; exit 1", (0, "", "")),
        ("printf '{'; exit 1", (0, f'{UNPARSABLE} "{{": ', "")),
        ("echo nope; echo noise >&2; exit 1", (0, f'{UNPARSABLE} "nope\\n": ', "")),
        ("echo '{}{}'; exit 1", (0, f'{UNPARSABLE} "{{}}{{}}\\n": ', "")),
        ("echo '[]'; exit 1", (0, f'{UNPARSABLE} "[]\\n": [] is not an object', "")),
        ("""echo '{"code": "x"}'; exit 1""", (0, f'{UNPARSABLE} "{{\\"code\\": \\"x\\"}}\\n": ', "")),
    ],
)
def test_failures(script: str, error: tuple[int, str, str], tmp_path: Path) -> None:
    path = shell_plugin(tmp_path, "plugin", script)
    said: list[str] = []
    code, msg, details = error_of(lambda: invoke.execute(path, b"", {}, log=said.append))
    assert (code, details) == (error[0], error[2])
    assert msg.startswith(error[1]) if error[1].endswith(": ") else msg == error[1]
    assert said == []


def test_what_can_not_be_started(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\1\2\3")
    garbage.chmod(0o755)
    for path, reason in [
        (str(plain), "permission denied"),
        (str(garbage), "exec format error"),
        (str(tmp_path / "nothing"), "no such file or directory"),
    ]:
        msg = f"{FAILED} with no error message: fork/exec {path}: {reason}"
        assert error_of(lambda path=path: invoke.execute(path, b"", {})) == (0, msg, "")  # type: ignore[misc]


def test_a_timeout(tmp_path: Path) -> None:
    path = shell_plugin(tmp_path, "slow", "exec sleep 60")
    msg = f"{FAILED}: ADD of {path} was killed: it had not finished after 0.2 s"
    assert error_of(lambda: invoke.execute(path, b"", {"CNI_COMMAND": "ADD"}, 0.2)) == (0, msg, "")


@pytest.mark.parametrize("busy", [1, 5, 6])
def test_an_executable_that_is_being_written(busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[None] = []
    pauses: list[float] = []

    def run(*args: object) -> process.Completed:
        attempts.append(None)
        if len(attempts) <= busy:
            raise OSError(errno.ETXTBSY, "Text file busy")
        return process.Completed(0, b"done", b"")

    monkeypatch.setattr(process, "run", run)
    monkeypatch.setattr("time.sleep", pauses.append)
    if busy < 6:
        assert invoke.execute("/plugin", b"", {}) == b"done"
    else:
        msg = f"{FAILED} with no error message: fork/exec /plugin: text file busy"
        assert error_of(lambda: invoke.execute("/plugin", b"", {})) == (0, msg, "")
    assert len(attempts) == min(busy + 1, 6)
    assert pauses == [1.0] * min(busy, 5)


# Results


@pytest.mark.parametrize(
    ("output", "configured", "decoded"),
    [
        ('{"cniVersion": "0.4.0"}', "1.0.0", "0.4.0"),
        ("{}", "1.0.0", "1.0.0"),
        ('{"cniVersion": ""}', "0.3.1", "0.3.1"),
        ('{"cniVersion": 5}', "0.3.1", "0.3.1"),
        ("{}", "0.1.0", "0.1.0"),
        ("null", "1.0.0", "1.0.0"),
    ],
)
def test_the_version_of_a_result(output: str, configured: str, decoded: str) -> None:
    assert invoke.decode_result(output.encode(), configured).version == decoded


@pytest.mark.parametrize(
    ("output", "msg"),
    [
        ("", "failed to unmarshal raw result: unexpected end of JSON input"),
        ("[]", "failed to unmarshal raw result: [] is not an object"),
        ('{"cniVersion": "0.0.9"}', 'unsupported CNI result version "0.0.9"'),
    ],
)
def test_bad_results(output: str, msg: str) -> None:
    assert error_of(lambda: invoke.decode_result(output.encode(), "1.0.0")) == (999, msg, "")


# VERSION


def test_probe(tmp_path: Path) -> None:
    script = (
        'set > "$0.env"; cat > "$0.stdin"; echo \'{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "9.9.9"]}\''
    )
    path = shell_plugin(tmp_path, "plugin", script)
    info = invoke.probe_version(path)
    assert (info.cni_version, info.supported) == ("1.0.0", ("0.4.0", "9.9.9"))
    assert json.loads((tmp_path / "plugin.stdin").read_text()) == {"cniVersion": "1.1.0"}
    seen = (tmp_path / "plugin.env").read_text().splitlines()
    for name, value in [
        ("COMMAND", "VERSION"),
        ("NETNS", "dummy"),
        ("IFNAME", "dummy"),
        ("PATH", "dummy"),
        ("ARGS", ""),
    ]:
        assert f"CNI_{name}='{value}'" in seen


def test_probe_of_a_plugin_from_before_version(tmp_path: Path) -> None:
    path = shell_plugin(tmp_path, "plugin", """echo '{"code": 100, "msg": "unknown CNI_COMMAND: VERSION"}'; exit 1""")
    assert invoke.probe_version(path).supported == ("0.1.0",)


@pytest.mark.parametrize(
    ("script", "msg"),
    [
        ("""echo '{"code": 100, "msg": "banana"}'; exit 1""", "banana"),
        ("exit 1", f"{FAILED} with no error message: exit status 1"),
        ("echo '{}'", "decoding version info: missing field cniVersion"),
        ("""echo '{"cniVersion": "1.0.0"}'""", "decoding version info: missing field supportedVersions"),
    ],
)
def test_failing_probes(script: str, msg: str, tmp_path: Path) -> None:
    path = shell_plugin(tmp_path, "plugin", script)
    assert error_of(lambda: invoke.probe_version(path))[1] == msg


# Delegation


def request(path: object, config: dict[str, Any] = CONFIG, **environ: str) -> tuple[Request, list[str]]:
    """A request as the plugin `outer` gets it, and its log."""
    log: list[str] = []
    variables = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": "NOPE",
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": "/does/not/exist",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(path),
        **environ,
    }
    stdin = json.dumps(config).encode()
    asked: Request = Request(variables, log.append)
    asked.stdin = stdin
    asked.config = Config.parse(config)
    asked.version = config.get("cniVersion", "0.1.0")
    return asked, log


RECORDING = """
[ "$CNI_COMMAND" = "$FAIL" ] && { echo '{"code": 11, "msg": "no luck", "details": "with '$CNI_COMMAND'"}'; exit 1; }
{ echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_PATH $TRACEPARENT"; cat; echo; } >> "$0.calls"
echo log >&2
[ "$CNI_COMMAND" = ADD ] && echo '{"ips": [{"address": "10.1.2.3/24"}]}'
exit 0
"""


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_delegate(verb: str, tmp_path: Path) -> None:
    shell_plugin(tmp_path, "ipam", RECORDING)
    asked, log = request(f"/does/not/exist:{tmp_path}", TRACEPARENT="inherited")
    result = delegate(verb, "ipam", asked)
    if verb == "ADD":
        assert result == Result(ips=[IPConfig(CIDR.parse("10.1.2.3/24"))], version="1.0.0")
    else:
        assert result is None
    assert (tmp_path / "ipam.calls").read_text().splitlines() == [
        f"{verb} c /does/not/exist eth0 /does/not/exist:{tmp_path} inherited",
        json.dumps(CONFIG),
    ]
    assert log == ["log"]
    assert asked.environ["CNI_COMMAND"] == "NOPE"


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_errors_of_delegates_are_the_caller_s(verb: str, tmp_path: Path) -> None:
    shell_plugin(tmp_path, "ipam", RECORDING)
    asked, _ = request(tmp_path, FAIL=verb)
    assert error_of(lambda: delegate(verb, "ipam", asked)) == (11, "no luck", f"with {verb}")


@pytest.mark.parametrize(
    ("path", "msg"), [("", "no paths provided"), ("/a:/b", 'failed to find plugin "ipam" in path [/a /b]')]
)
def test_delegates_that_are_not_there(path: str, msg: str) -> None:
    asked, _ = request(path)
    assert error_of(lambda: delegate("ADD", "ipam", asked)) == (999, msg, "")


@pytest.mark.parametrize(("given", "decoded"), [({"cniVersion": "0.3.1"}, "0.3.1"), ({}, "0.1.0")])
def test_delegate_with_another_configuration(given: dict[str, str], decoded: str, tmp_path: Path) -> None:
    path = shell_plugin(tmp_path, "bridge", 'cat > "$0.stdin"; echo {}')
    asked, _ = request(tmp_path)
    config = json.dumps(given).encode()
    assert delegate("ADD", "bridge", asked, config=config).version == decoded
    assert Path(f"{path}.stdin").read_bytes() == config


@pytest.mark.parametrize("answer", ["", "nonsense", "[]", '{"cniVersion": "9.9.9"}', '{"ips": 5}'])
def test_an_answer_that_can_not_be_read_is_undone(answer: str, tmp_path: Path) -> None:
    path = shell_plugin(tmp_path, "ipam", f"""echo $CNI_COMMAND >> "$0.calls"; cat > "$0.stdin"; echo '{answer}'""")
    asked, log = request(tmp_path)
    with pytest.raises(CNIError):
        delegate("ADD", "ipam", asked, config=b'{"cniVersion": "1.0.0"}')
    assert Path(f"{path}.calls").read_text().split() == ["ADD", "DEL"]
    assert Path(f"{path}.stdin").read_bytes() == b'{"cniVersion": "1.0.0"}'
    assert log == []


WITH_IPAM = {**CONFIG, "ipam": {"type": "ipam"}}


def verbs(tmp_path: Path) -> list[str]:
    return [line.split()[0] for line in (tmp_path / "ipam.calls").read_text().splitlines() if line[0] != "{"]


def test_addresses_stay_when_all_goes_well(tmp_path: Path) -> None:
    shell_plugin(tmp_path, "ipam", RECORDING)
    asked, log = request(tmp_path, WITH_IPAM)
    with Undo(asked.log) as undo:
        assert str(ipam.add(asked, undo).ips[0].address) == "10.1.2.3/24"
    assert (verbs(tmp_path), log) == (["ADD"], ["log"])


def test_addresses_are_given_back_when_something_fails(tmp_path: Path) -> None:
    shell_plugin(tmp_path, "ipam", RECORDING)
    asked, _ = request(tmp_path, WITH_IPAM)
    with pytest.raises(ValueError, match="the first failure"), Undo(asked.log) as undo:
        ipam.add(asked, undo)
        raise ValueError("the first failure")
    assert verbs(tmp_path) == ["ADD", "DEL"]


def test_a_failing_undo_is_logged_and_the_first_failure_reported(tmp_path: Path) -> None:
    shell_plugin(tmp_path, "ipam", RECORDING)
    asked, log = request(tmp_path, WITH_IPAM, FAIL="DEL")
    with pytest.raises(ValueError, match="the first failure"), Undo(asked.log) as undo:
        ipam.add(asked, undo)
        raise ValueError("the first failure")
    assert log == ["log", "roll back after a failure: no luck; with DEL"]


def test_a_delegate_that_fails_is_not_undone(tmp_path: Path) -> None:
    """As in Go: an ADD that host-local refuses as a duplicate must not free the first one's address."""
    shell_plugin(tmp_path, "ipam", RECORDING)
    asked, _ = request(tmp_path, WITH_IPAM, FAIL="ADD")

    def body() -> None:
        with Undo(asked.log) as undo:
            ipam.add(asked, undo)

    assert error_of(body) == (11, "no luck", "with ADD")
    assert not (tmp_path / "ipam.calls").exists()


# In process: the same plugin both ways must be the same to the caller

PLUGIN = """
import sys
from cni.spec.errors import CNIError
from cni.spec.ip import CIDR
from cni.spec.result import IPConfig, Result
from cni.system.undo import Undo
from cni.skel.plugin import Plugin

def add(request):
    request.stderr("on stderr\\n")
    request.environ["CNI_COMMAND"] = "CHANGED"
    return Result(ips=[IPConfig(CIDR.parse("10.1.2.3/24"))])

def delete(request):
    raise CNIError("typed <&>", 123, "d\\u00e9tails")

def check(request):
    request.stderr("lost with the failure\\n")
    raise KeyError("untyped")

def gc(request):
    sys.exit(3)

plugin = Plugin("inner", add=add, delete=delete, check=check, gc=gc)
if __name__ == "__main__":
    plugin.main()
"""


@pytest.fixture
def inner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an executable `inner` whose object can also be had as inner_plugin:plugin."""
    (tmp_path / "inner_plugin.py").write_text(PLUGIN)
    script = tmp_path / "inner"
    script.write_text(f"#!{sys.executable}\n{PLUGIN}")
    script.chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "inner_plugin", raising=False)
    return tmp_path


class OurTrailer:
    reference = "inner_plugin:plugin"
    is_ours = True


class ForeignTrailer(OurTrailer):
    is_ours = False


def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*args: object, **kwargs: object) -> int:
        raise AssertionError("a process was started")

    monkeypatch.setattr(launcher, "read", lambda path: OurTrailer())
    monkeypatch.setattr(launcher, "load", lambda reference: __import__("inner_plugin").plugin)
    monkeypatch.setattr(os, "posix_spawnp", no_process)
    monkeypatch.setattr(os, "fork", no_process)


def outcome(verb: str, path: Path, config: dict[str, Any]) -> tuple[object, list[str]]:
    asked, log = request(path, config, PYTHONPATH=os.pathsep.join(sys.path))
    try:
        return delegate(verb, "inner", asked), log
    except CNIError as error:
        return error.to_dict(), log


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS", "NOPE"])
@pytest.mark.parametrize("cni_version", ["0.2.0", "0.4.0", "1.1.0", "9.9.9"])
def test_in_process_is_the_same(verb: str, cni_version: str, inner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**CONFIG, "cniVersion": cni_version}
    monkeypatch.setattr(launcher, "read", lambda path: ForeignTrailer())
    as_process = outcome(verb, inner, config)
    in_process(monkeypatch)
    assert outcome(verb, inner, config) == as_process


def test_in_process_hands_on_the_namespace(inner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        identity = (0, 0)

    elsewhere: Any = Elsewhere()
    seen = []
    frame = Plugin("inner", add=lambda request: Result(), status=lambda request: seen.append(request.host))
    in_process(monkeypatch)
    monkeypatch.setattr(launcher, "load", lambda reference: frame)
    asked, _ = request(inner, {**CONFIG, "cniVersion": "1.1.0"})
    asked._host = elsewhere
    delegate("STATUS", "inner", asked)
    assert seen == [elsewhere]


@pytest.mark.parametrize(("config", "decoded"), [(None, 1), (b'{"cniVersion": "1.1.0", "name": "other"}', 2)])
def test_in_process_a_configuration_is_decoded_once(
    config: bytes | None, decoded: int, inner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, texts = gojson.loads, []
    monkeypatch.setattr(gojson, "loads", lambda text: (texts.append(text), loads(text))[1])
    in_process(monkeypatch)
    ipam = Plugin("inner", add=lambda request: Result())
    monkeypatch.setattr(launcher, "load", lambda reference: ipam)
    outer = Plugin("outer", add=lambda request: delegate("ADD", "inner", request, config=config))
    assert outer.call("ADD", CONFIG, netns="/nowhere", path=[str(inner)])
    assert len(texts) == decoded


def test_another_s_executable_starts_in_the_namespace(inner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell_plugin(inner, "ipam", "echo {}")

    class Elsewhere:
        calls = 0
        is_own = False

        def run(self, function: Callable[[], int]) -> int:
            self.calls += 1
            return function()

    elsewhere: Any = Elsewhere()
    asked, _ = request(inner)
    asked._host = elsewhere
    delegate("ADD", "ipam", asked)
    assert elsewhere.calls == 1


# The example in the documentation


def test_the_example_plugin(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "note.py"
    notes = tmp_path / "notes"
    path = shell_plugin(tmp_path, "note", f'exec "{sys.executable}" "{example}"')
    assert os.stat(path).st_mode & stat.S_IXUSR
    config = {**CONFIG, "type": "note", "file": str(notes), "prevResult": RESULT}
    asked, log = request(tmp_path, config, PYTHONPATH=os.pathsep.join(sys.path))
    result = delegate("ADD", "note", asked)
    assert result.encode("1.0.0") == RESULT
    delegate("DEL", "note", asked)
    assert notes.read_text() == "ADD c eth0 10.1.2.3/24\nDEL c eth0\n"
    alone, _ = request(tmp_path, {**CONFIG, "file": str(notes)}, PYTHONPATH=os.pathsep.join(sys.path))
    code, msg, _ = error_of(lambda: delegate("ADD", "note", alone))
    assert (code, msg) == (7, "note must come after a plugin that makes an interface")
    assert log == []
    assert invoke.probe_version(path).supported[-1] == "1.1.0"
