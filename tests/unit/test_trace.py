"""cni.system.tracing: who is told of steps, what becomes of them, and the file, whatever is in its place."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cni._core import observe, observed, observer
from cni.invoke import launcher
from cni.runtime import CNI, Exec, NetworkConfigList, RuntimeConf
from cni.skel.plugin import Plugin
from cni.skel.request import Request
from cni.spec.errors import CNIError
from cni.spec.result import Result
from cni.system import files, process, tracing
from cni.system.undo import Undo
from tests import spans
from tests.spans import CALLER, TRACE, TRACEPARENT
from tests.waiting import LIMIT, lock_waiters, until

CONFIG = json.dumps({"cniVersion": "1.1.0", "name": "net", "type": "x"}).encode()
LINE = re.compile(r"cni x ADD: +\d+\.\d\d +\+\d+\.\d\d ms  (.*)")


class Calls:
    """Calls of a plugin whose ADD is `handler`, with the file for spans in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "traces" / "spans.jsonl"
        self.log = ""
        self.printed = ""

    def add(self, handler: Any = lambda request: Result(), config: bytes = CONFIG, **environ: str) -> int:
        variables = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "some",
            "CNI_NETNS": "/no/such",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/bin",
            "CNI_NETNS_OVERRIDE": "1",  # nobody looks at CNI_NETNS then: the steps are the handler's alone
            "CNI_TRACES": str(self.file),
            **environ,
        }
        logged: list[str] = []
        outcome = Plugin("x", add=handler).serve(variables, lambda: config, logged.append)
        self.printed, self.log = outcome.stdout, "".join(f"{text}\n" for text in logged)
        assert observer() is None
        return outcome.status

    @property
    def lines(self) -> list[str]:
        """Return what the log's lines say after the times."""
        found = [LINE.fullmatch(line) for line in self.log.splitlines()]
        return [match[1] for match in found if match]

    @property
    def root(self) -> spans.Node:
        (root,) = spans.trees(spans.read(self.file))
        return root


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


def steps(request: Request) -> Result:
    with observed("plugin", "outer"):
        with observed("netlink", "first\nsecond\nthird"):
            pass
        with observed("file", "after"):
            pass
    return Result()


class TestSpans:
    def test_a_tree(self, calls: Calls) -> None:
        assert calls.add(steps, TRACEPARENT=TRACEPARENT, TRACESTATE="vendor=1") == 0
        root = calls.root
        assert str(root) == "<x ADD[<outer[<first (+2)>, <after>]>]>"
        assert (root.kind, root.failure) == ("SERVER", "")
        assert root.attributes == {
            "cni.plugin": "x",
            "cni.verb": "ADD",
            "cni.container_id": "some",
            "cni.ifname": "eth0",
            "cni.netns": "/no/such",
            "cni.network": "net",
            "cni.version": "1.1.0",
        }
        outer, first, after = list(root.all())[1:]
        assert [outer.attributes, after.attributes] == [{"cni.step": "plugin"}, {"cni.step": "file"}]
        assert first.requests == ["first", "second", "third"]
        assert {span.kind for span in (outer, first, after)} == {"INTERNAL"}
        for span in root.all():
            assert span.resource["service.name"] == "cni"
            assert span.resource["process.pid"] == os.getpid()
            assert span.span.trace_state == "vendor=1"
            assert span.span.flags == 0x101 | (0x200 if span is root else 0)

    def test_an_error_marks_what_it_goes_through(self, calls: Calls) -> None:
        def fail(request: Request) -> Result:
            with observed("netlink", "fine"):
                pass
            with observed("netlink", "refused"):
                raise CNIError("no\n  way", 11, "details that may be long")

        assert calls.add(fail, TRACEPARENT=TRACEPARENT) == 1
        root, fine, refused = calls.root.all()
        assert [root.failure, fine.failure, refused.failure] == ["no way", "", "no way"]
        assert root.attributes["error.type"] == "CNIError"
        assert root.attributes["cni.error_code"] == 11

    def test_an_error_that_is_handled_leaves_the_call_well(self, calls: Calls) -> None:
        def recover(request: Request) -> Result:
            try:
                with observed("netlink", "tried"):
                    raise OSError(17, "file exists")
            except OSError:
                return Result()

        assert calls.add(recover, TRACEPARENT=TRACEPARENT) == 0
        root, tried = calls.root.all()
        assert (root.failure, tried.failure) == ("", "[Errno 17] file exists")

    def test_what_is_undone(self, calls: Calls) -> None:
        def take_back() -> None:
            with observed("file", "remove it"):
                pass

        def fail(request: Request) -> Result:
            with Undo(request.log) as undo:
                undo.push(take_back)
                raise CNIError("no")

        assert calls.add(fail, TRACEPARENT=TRACEPARENT) == 1
        assert str(calls.root) == "<x ADD[<roll back[<remove it>]>]>"

    @pytest.mark.parametrize("config", [b"", b"[]", b"{", b'{"name": 5}'])
    def test_a_configuration_that_is_none(self, calls: Calls, config: bytes) -> None:
        assert calls.add(config=config, TRACEPARENT=TRACEPARENT) == 1
        assert calls.root.failure
        assert "cni.network" not in calls.root.attributes

    def test_what_is_kept_is_bounded(self, calls: Calls) -> None:
        def many(request: Request) -> Result:
            with observed("plugin", "all of them"):
                for _ in range(tracing._MOST_SPANS + 50):
                    with observed("netlink", "x"):
                        pass
            return Result()

        assert calls.add(many, TRACEPARENT=TRACEPARENT) == 0
        assert len(list(calls.root.all())) == tracing._MOST_SPANS
        assert calls.root.attributes["cni.steps_dropped"] == 52
        with tracing.Trace("t", {"TRACEPARENT": TRACEPARENT, "CNI_TRACES": str(calls.file)}, print, {}) as traced:
            traced.begin("netlink", "\n".join(["y" * 10000] * 300))
            traced.end(None)
        (span,) = [span for span in spans.read(calls.file) if span.name.startswith("yyy")]
        assert len(span.requests) == 101
        assert span.requests[-1] == "and 200 more"
        assert max(map(len, span.requests)) == 500

    def test_a_lock_that_is_waited_for(self, calls: Calls, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        held, wanted = (os.open(path, os.O_CREAT | os.O_RDWR) for _ in range(2))
        fcntl.flock(held, fcntl.LOCK_EX)

        def release() -> None:
            until(lambda: lock_waiters(path), "a caller that waits for the lock")
            os.close(held)

        def wait(request: Request) -> Result:
            threading.Thread(target=release).start()
            assert files.lock(wanted, LIMIT)
            return Result()

        assert calls.add(wait, TRACEPARENT=TRACEPARENT) == 0
        assert str(calls.root) == f"<x ADD[<wait for the lock on {path}>]>"
        os.close(wanted)

    def test_times_are_of_the_epoch(self, calls: Calls) -> None:
        before = time.time_ns()
        calls.add(steps, TRACEPARENT=TRACEPARENT)
        assert before <= calls.root.span.start_time_unix_nano <= calls.root.span.end_time_unix_nano <= time.time_ns()


class TestWhoIsTold:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "nonsense",
            f"00-{TRACE}-{CALLER}",
            f"00-{TRACE}-{CALLER}-01-more",
            f"00-{TRACE}-{CALLER}-1",
            f"00-{TRACE[1:]}-{CALLER}-01",
            f"00-{TRACE.upper()}-{CALLER}-01",
            f"00-{TRACE[1:]}g-{CALLER}-01",
            f"00-{'0' * 32}-{CALLER}-01",
            f"00-{TRACE}-{'0' * 16}-01",
            f"ff-{TRACE}-{CALLER}-01",
            f"0-{TRACE}-{CALLER}-01",
            f"0x-{TRACE}-{CALLER}-01",
            f"00-{TRACE}-{CALLER}-00",  # not sampled
            f"00-{TRACE}-{CALLER}-02",
        ],
    )
    def test_nobody_by(self, calls: Calls, text: str) -> None:
        def handler(request: Request) -> Result:
            assert observer() is None
            return Result()

        assert calls.add(handler, TRACEPARENT=text) == 0
        assert not calls.file.exists()
        assert calls.log == ""

    def test_nobody_where_spans_go_nowhere(self, calls: Calls) -> None:
        assert (
            calls.add(lambda request: Result() if observer() is None else None, TRACEPARENT=TRACEPARENT, CNI_TRACES="")
            == 0
        )

    @pytest.mark.parametrize("text", [f"01-{TRACE}-{CALLER}-01-more", f"fe-{TRACE}-{CALLER}-ff"])
    def test_later_versions_are_read_as_far_as_they_are_known(self, calls: Calls, text: str) -> None:
        def handler(request: Request) -> Result:
            told = observer()
            assert told
            version, *_, flags = told.variables()["TRACEPARENT"].split("-")
            assert (version, flags) == ("00", "01" if "more" in text else "03")
            return Result()

        assert calls.add(handler, TRACEPARENT=text) == 0
        assert calls.root.name == "x ADD"

    def test_one_thread_alone(self, calls: Calls) -> None:
        def handler(request: Request) -> Result:
            seen = []
            other = threading.Thread(target=lambda: seen.append(observer()))
            other.start()
            other.join()
            assert seen == [None]
            assert observer()
            return Result()

        assert calls.add(handler, TRACEPARENT=TRACEPARENT) == 0

    def test_a_call_within_a_call(self, calls: Calls) -> None:
        """As the runtime library's, which runs plugins in its own process."""
        with tracing.Trace("outer", {"TRACEPARENT": TRACEPARENT, "CNI_TRACES": str(calls.file)}, print, {}) as outer:
            inside = observer()
            assert inside is outer
            environ = {"CNI_COMMAND": "VERSION", "CNI_TRACES": str(calls.file), **outer.variables()}
            Plugin("x", add=steps).serve(environ, bytes, print)
            assert observer() is outer
        assert observer() is None
        assert str(calls.root) == "<outer[<x VERSION>]>"

    def test_observers_are_not_kept(self) -> None:
        class Told:
            begin = end = fail = variables = None

        told: Any = Told()
        references = sys.getrefcount(told)
        for _ in range(10):
            assert observe(told) is None
            assert observer() is told
            assert observe(told) is told
            assert observe(None) is told
        assert sys.getrefcount(told) == references

    def test_without_a_wish_nothing_is_imported(self) -> None:
        program = """
import sys
sys.path.insert(0, sys.argv[1])
from cni.skel.plugin import Plugin
from cni.spec.result import Result
environ = dict(pair.split("=") for pair in sys.argv[2:])
outcome = Plugin("x", add=lambda request: Result()).serve(environ, lambda: b'{"name":"n","cniVersion":"1.1.0"}', len)
sys.exit(outcome.status or ("cni.system.tracing" in sys.modules) * 7)
"""
        environ = [
            "CNI_COMMAND=ADD",
            "CNI_CONTAINERID=c",
            "CNI_NETNS=/no",
            "CNI_IFNAME=eth0",
            "CNI_PATH=/",
            "CNI_LOG=info",
        ]
        command = [sys.executable, "-I", "-S", "-E", "-c", program, launcher.PACKAGES, *environ]
        assert subprocess.run(command).returncode == 0
        assert subprocess.run([*command, "CNI_LOG=debug"]).returncode == 7


class TestLog:
    def test_lines(self, calls: Calls) -> None:
        assert calls.add(steps, CNI_LOG="debug") == 0
        assert calls.lines == ["  first; second; third", "  after", "outer", "total"]
        assert len(calls.log.splitlines()) == 4
        assert not calls.file.exists()

    def test_both(self, calls: Calls) -> None:
        assert calls.add(steps, CNI_LOG="debug", TRACEPARENT=TRACEPARENT) == 0
        assert len(calls.lines) == 4
        assert len(list(calls.root.all())) == 4

    def test_a_failure(self, calls: Calls) -> None:
        def fail(request: Request) -> Result:
            with observed("netlink", "refused"):
                raise OSError(1, "the kernel's words")

        assert calls.add(fail, CNI_LOG="debug") == 1
        words = "-- failed: [Errno 1] the kernel's words"
        assert calls.lines == [f"refused {words}", f"total {words}"]
        assert json.loads(calls.printed)["msg"] == "[Errno 1] the kernel's words"

    @pytest.mark.parametrize("level", ["", "info", "DEBUG", "trace"])
    def test_other_levels_say_nothing(self, calls: Calls, level: str) -> None:
        assert calls.add(steps, CNI_LOG=level) == 0
        assert calls.log == ""

    def test_no_configuration(self, calls: Calls) -> None:
        secret = {"cniVersion": "1.1.0", "name": "net", "type": "x", "token": "hush-hush"}
        calls.add(steps, json.dumps(secret).encode(), CNI_LOG="debug", TRACEPARENT=TRACEPARENT)
        assert "hush" not in calls.log + calls.file.read_text()


class TestPrograms:
    def test_a_program_gets_the_steps_id(self, calls: Calls) -> None:
        seen: list[bytes] = []

        def handler(request: Request) -> Result:
            seen.append(process.run(["sh", "-c", "echo $TRACEPARENT $TRACESTATE"], env=request.environ).stdout)
            return Result()

        environ = {"PATH": os.environ["PATH"], "TRACEPARENT": TRACEPARENT, "TRACESTATE": "a=b"}
        assert calls.add(handler, **environ) == 0
        (step,) = calls.root.children
        assert step.name == "sh -c echo $TRACEPARENT $TRACESTATE"
        assert (step.kind, step.attributes["cni.step"]) == ("CLIENT", "process")
        assert seen == [f"00-{TRACE}-{step.id}-01 a=b\n".encode()]

    def test_a_program_that_fails(self, calls: Calls) -> None:
        def handler(request: Request) -> Result:
            process.run(["sh", "-c", "echo what went wrong >&2; exit 3"])
            return Result()

        assert calls.add(handler, TRACEPARENT=TRACEPARENT) == 0
        assert [span.failure for span in calls.root.all()] == ["", "exit status 3 what went wrong"]

    def test_a_context_that_is_not_sampled_is_passed_on_as_it_is(self, calls: Calls) -> None:
        seen: list[bytes] = []

        def handler(request: Request) -> Result:
            seen.append(process.run(["sh", "-c", "echo $TRACEPARENT"], env=request.environ).stdout)
            return Result()

        unsampled = TRACEPARENT[:-1] + "0"
        calls.add(handler, TRACEPARENT=unsampled, CNI_LOG="debug", PATH=os.environ["PATH"])
        assert seen == [f"{unsampled}\n".encode()]
        assert not calls.file.exists()


class TestRuntime:
    @pytest.fixture
    def cni(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CNI:
        """With a plugin that notes its TRACEPARENT, and succeeds but for CHECK."""
        program = tmp_path / "x"
        program.write_text(f"""#!/bin/sh
echo "$CNI_COMMAND $TRACEPARENT" >>{tmp_path}/seen
[ "$CNI_COMMAND" != CHECK ] || {{ echo '{{"code": 50, "msg": "not now"}}'; exit 1; }}
echo '{{"cniVersion": "1.1.0"}}'
""")
        program.chmod(0o755)
        monkeypatch.setenv("TRACEPARENT", TRACEPARENT)
        monkeypatch.setenv("CNI_TRACES", str(tmp_path / "traces" / "spans.jsonl"))
        return CNI([str(tmp_path)], str(tmp_path / "cache"))

    network = NetworkConfigList.from_bytes(
        json.dumps({"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "x"}, {"type": "x"}]}).encode()
    )
    rt = RuntimeConf("some", "/no/such", "eth0")

    def run_all(self, cni: CNI) -> None:
        cni.add(self.network, self.rt)
        with pytest.raises(CNIError):
            cni.check(self.network, self.rt)
        cni.status(self.network)
        cni.delete(self.network, self.rt)
        cni.gc(self.network)

    def test_a_span_for_the_list_and_one_for_each_plugin(self, cni: CNI, calls: Calls, tmp_path: Path) -> None:
        self.run_all(cni)
        roots = spans.trees(spans.read(calls.file))
        verbs = ("ADD", "CHECK", "STATUS", "DEL", "GC")
        assert [root.name for root in roots] == [f"network net {verb}" for verb in verbs]
        plugins = {root.attributes["cni.verb"]: [c for c in root.children if c.kind == "CLIENT"] for root in roots}
        assert {verb: [p.name for p in some] for verb, some in plugins.items()} == {
            verb: [f"x {verb}"] * (1 if verb == "CHECK" else 2) for verb in verbs
        }
        seen = (tmp_path / "seen").read_text().splitlines()
        assert seen == [f"{verb} 00-{TRACE}-{span.id}-01" for verb in verbs for span in plugins[verb]]
        add, check, status, *_ = roots
        assert [add.failure, check.failure] == ["", "not now"]
        assert add.attributes == {
            "cni.network": "net",
            "cni.verb": "ADD",
            "cni.container_id": "some",
            "cni.ifname": "eth0",
            "cni.netns": "/no/such",
        }
        assert set(status.attributes) == {"cni.network", "cni.verb"}
        assert [child.name for child in add.children[2:]] == [f"write {tmp_path}/cache/results/net-some-eth0"]

    def test_gc_has_what_it_deletes_in_it(self, cni: CNI, calls: Calls) -> None:
        cni.add(self.network, self.rt)
        calls.file.unlink()
        cni.gc(self.network, [])
        assert [child.name for child in calls.root.children] == ["network net DEL", "x GC", "x GC"]

    def test_a_callers_own_spans_are_what_the_plugins_belong_to(self, calls: Calls, cni: CNI, tmp_path: Path) -> None:
        own = f"00-{TRACE}-{'c' * 16}-01"
        self.run_all(CNI(cni.path, cni.cache_dir, trace=lambda: {"traceparent": own}))
        assert {line.split()[1] for line in (tmp_path / "seen").read_text().splitlines()} == {own}
        assert not calls.file.exists()

    def test_an_exec_of_the_callers_own(self, cni: CNI, calls: Calls) -> None:
        seen: list[str] = []

        class Noting(Exec):
            def execute(self, path: str, config: bytes, environ: Mapping[str, str], timeout: float | None) -> bytes:
                seen.append(environ["TRACEPARENT"])
                return b"{}"

        CNI(cni.path, cni.cache_dir, Noting()).add(self.network, self.rt)
        assert seen == [f"00-{TRACE}-{calls.root.id}-01"] * 2

    def test_lines(self, cni: CNI, monkeypatch: pytest.MonkeyPatch, calls: Calls) -> None:
        monkeypatch.setenv("CNI_LOG", "debug")
        warned: list[str] = []
        own = f"00-{TRACE}-{'c' * 16}-01"
        cni = CNI(cni.path, cni.cache_dir, warn=warned.append, trace=lambda: {"traceparent": own})
        cni.add(self.network, self.rt)
        words = [line.partition(" ms  ")[2] for line in warned]
        assert words[:2] == ["x ADD", "x ADD"]
        assert words[-1] == "total"
        assert not calls.file.exists()


class TestFile:
    def append(self, calls: Calls, times: int = 1) -> None:
        for _ in range(times):
            assert calls.add(TRACEPARENT=TRACEPARENT) == 0, calls.printed

    def test_modes(self, calls: Calls) -> None:
        calls.file = calls.file.parent / "further" / "spans.jsonl"
        self.append(calls, 2)
        assert stat.S_IMODE(calls.file.stat().st_mode) == 0o600
        assert {stat.S_IMODE(folder.stat().st_mode) for folder in list(calls.file.parents)[:2]} == {0o700}
        assert len(spans.read(calls.file)) == 2
        assert calls.log == ""

    def test_a_call_is_one_write(self, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
        written: list[bytes] = []
        write = os.write
        monkeypatch.setattr(tracing.posix, "write", lambda fd, data: (written.append(data), write(fd, data))[1])
        calls.add(steps, TRACEPARENT=TRACEPARENT)
        (line,) = written
        assert line.count(b"\n") == 1
        assert calls.file.read_bytes() == line

    def test_the_folder_that_one_is_in(self, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert calls.add(TRACEPARENT=TRACEPARENT, CNI_TRACES="here.jsonl") == 0
        assert len(spans.read(tmp_path / "here.jsonl")) == 1

    @pytest.mark.parametrize("what", ["link", "dangling link", "fifo", "folder", "another's", "no folder", "device"])
    def test_something_else_in_its_place(self, calls: Calls, what: str, tmp_path: Path) -> None:
        target = tmp_path / "target"
        calls.file.parent.mkdir()
        match what:
            case "link":
                target.write_text("precious")
                calls.file.symlink_to(target)
            case "dangling link":
                calls.file.symlink_to(target)
            case "fifo":
                os.mkfifo(calls.file)
            case "folder":
                calls.file.mkdir()
            case "another's":
                calls.file.write_text("")
                os.chown(calls.file, 1234, 1234)
            case "no folder":
                calls.file.parent.rmdir()
                calls.file.parent.write_text("")
            case "device":
                calls.file.symlink_to(target)
                calls.file = Path("/dev/null")
        self.append(calls)
        (line,) = calls.log.splitlines()
        assert line.startswith(f"cni x ADD: write the spans to {calls.file}: ")
        assert not line.endswith(": ")
        if what == "link":
            assert target.read_text() == "precious"
        elif what == "another's":
            assert calls.file.read_text() == ""
        else:
            assert not target.exists()

    def test_where_it_may_not_be_written(self, calls: Calls) -> None:
        calls.file = Path("/proc/no/such/file")
        self.append(calls)
        assert "write the spans to /proc/no/such/file: No such file or directory" in calls.log

    def test_rotation(self, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
        self.append(calls)
        line = calls.file.read_bytes()
        old = Path(f"{calls.file}.1")
        old.write_text("older")
        monkeypatch.setattr(tracing, "_LARGEST_FILE", 3 * len(line) + 20)
        self.append(calls, 2)
        assert old.read_text() == "older"
        self.append(calls)
        assert [len(spans.read(path)) for path in (old, calls.file)] == [3, 1]
        monkeypatch.setattr(tracing, "_LARGEST_FILE", 10)  # one line is more than that: it gets a file of its own
        self.append(calls)
        assert [len(spans.read(path)) for path in (old, calls.file)] == [1, 1]

    def test_rotation_where_something_is_in_the_way(self, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
        self.append(calls)
        Path(f"{calls.file}.1").mkdir()
        monkeypatch.setattr(tracing, "_LARGEST_FILE", 10)
        self.append(calls)
        assert "write the spans to" in calls.log
        assert len(spans.read(calls.file)) == 1

    def test_many_writers_at_once_lose_nothing(self, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
        self.append(calls)
        writers, each = 8, 40
        # The file is full once on the way.
        monkeypatch.setattr(tracing, "_LARGEST_FILE", calls.file.stat().st_size * writers * each * 2 // 3)
        threads = [
            threading.Thread(target=self.append, args=(Calls(calls.file.parents[1]), each)) for _ in range(writers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        old = Path(f"{calls.file}.1")
        assert old.exists()
        assert len({span.id for span in spans.read(old, calls.file)}) == 1 + writers * each

    def test_others_that_do_not_let_go(self, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
        self.append(calls)
        monkeypatch.setattr(tracing, "_LOCK_TIMEOUT", 0.05)
        with open(calls.file) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.append(calls)
        assert "write the spans to" in calls.log
        assert "it has been locked" in calls.log

    def test_a_full_disk_leaves_no_half_lines(self, calls: Calls) -> None:
        self.append(calls)
        before = calls.file.read_bytes()
        program = """
import resource, sys
from cni.system import tracing
path, room = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
try:
    tracing._append(path, b"x" * 200 + b"\\n")
except OSError as error:
    print(error.strerror)
"""
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-P", "-c", program, str(calls.file), str(len(before) + 100)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert done.stdout == "No space left on device\n", done.stderr
        assert calls.file.read_bytes() == before
