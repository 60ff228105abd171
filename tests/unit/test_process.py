"""cni.system.process: how a program is started, fed, watched and reaped."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from cni.system import process
from tests.waiting import LIMIT, until


def test_stdin_stdout_and_stderr_are_carried() -> None:
    done = process.run(["sh", "-c", "cat; echo oops >&2; exit 3"], b"\x00\xff text")
    assert (done.status, done.stdout, done.stderr) == (3, b"\x00\xff text", b"oops\n")


def test_more_than_a_pipe_holds_each_way() -> None:
    data = os.urandom(1 << 20)
    done = process.run(["sh", "-c", "cat; head -c 1000000 /dev/zero >&2"], data)
    assert (done.status, done.stdout, done.stderr) == (0, data, bytes(1000000))


def test_a_program_that_reads_nothing() -> None:
    assert process.run(["true"], bytes(1 << 20)).status == 0


@pytest.mark.parametrize(
    ("script", "status", "outcome"),
    [
        ("exit 0", 0, "exit status 0"),
        ("exit 7", 7, "exit status 7"),
        ("kill -KILL $$", -9, "signal: killed"),
        ("kill -TERM $$", -15, "signal: terminated"),
        ("kill -HUP $$", -1, "signal: hangup"),
    ],
)
def test_outcome(script: str, status: int, outcome: str) -> None:
    done = process.run(["sh", "-c", script])
    assert (done.status, done.outcome) == (status, outcome)


def test_environment_is_replaced_or_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    script = ["/bin/sh", "-c", "echo $INHERITED-$GIVEN"]
    assert process.run(script).stdout == b"yes-\n"
    assert process.run(script, env={"GIVEN": "it"}).stdout == b"-it\n"


def test_arguments_meet_no_shell() -> None:
    assert process.run(["printf", "%s|", "a b", "$HOME", ";exit 1"]).stdout == b"a b|$HOME|;exit 1|"


def test_signals_that_python_ignores_work_again() -> None:
    """Python ignores SIGPIPE and SIGXFSZ, and what is ignored stays so across an exec."""
    assert process.run(["sh", "-c", "kill -PIPE $$; echo survived"]).outcome == "signal: broken pipe"
    assert process.run(["sh", "-c", "kill -XFSZ $$; echo survived"]).outcome == "signal: file size limit exceeded"


def test_no_memory_file_but_the_three_is_inherited() -> None:
    done = process.run(["sh", "-c", "readlink /proc/self/fd/*"])
    assert [line for line in done.stdout.split(b"\n") if line.startswith(b"/memfd:")] == [
        b"/memfd:stdin (deleted)",
        b"/memfd:stdout (deleted)",
        b"/memfd:stderr (deleted)",
    ]


def test_no_descriptor_is_leaked() -> None:
    before = os.listdir("/proc/self/fd")
    process.run(["true"], timeout=LIMIT)
    with pytest.raises(OSError):
        process.run(["/does/not/exist"])
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_caller_without_standard_descriptors(closed: str, tmp_path: os.PathLike[str]) -> None:
    """The memory files then get the numbers 0 to 2 themselves."""
    script, answer = os.path.join(tmp_path, "caller.py"), os.path.join(tmp_path, "answer")
    with open(script, "w") as file:
        file.write(
            "import sys\n"
            f"sys.path[:0] = {sys.path!r}\n"
            "from cni.system import process\n"
            "done = process.run(['sh', '-c', 'cat; echo err >&2'], b'in ')\n"
            f"open({answer!r}, 'w').write(f'{{done.status}} {{done.stdout}} {{done.stderr}}')\n"
        )
    assert process.run(["sh", "-c", f'exec "$0" "$1" {closed}', sys.executable, script]).status == 0
    with open(answer) as file:
        assert file.read() == "0 b'in ' b'err\\n'"


@pytest.mark.parametrize(
    ("argv", "error"),
    [(["/does/not/exist"], FileNotFoundError), (["no-such-program"], FileNotFoundError), (["/"], PermissionError)],
)
def test_what_can_not_be_started(argv: list[str], error: type[OSError]) -> None:
    with pytest.raises(error):
        process.run(argv)


def test_a_program_of_another_format(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "garbage")
    with open(path, "wb") as file:
        file.write(b"\x01\x02\x03")
    os.chmod(path, 0o755)
    with pytest.raises(OSError, match="Exec format error"):
        process.run([path])


def test_a_timeout_that_is_kept() -> None:
    assert process.run(["echo", "quick"], timeout=LIMIT).stdout == b"quick\n"


def test_a_timeout_kills_and_says_so(tmp_path: os.PathLike[str]) -> None:
    pid_file = os.path.join(tmp_path, "pid")

    def pid_of_killed() -> str:
        with pytest.raises(TimeoutError, match=r"^sh was killed: it had not finished after 0\.3 s$"):
            process.run(["sh", "-c", 'echo $$ > "$0"; exec sleep 3600', pid_file], timeout=0.3)
        with open(pid_file, "a+") as file:
            file.seek(0)
            return file.read().strip()

    assert not os.path.exists(f"/proc/{until(pid_of_killed, 'a shell that is killed after its first command')}")


def test_a_daemon_left_behind_keeps_nobody_waiting() -> None:
    done = process.run(["sh", "-c", f"sleep {LIMIT} & echo $!"])
    os.kill(int(done.stdout), signal.SIGKILL)  # it is still there


def test_a_namespace_given_is_where_it_starts() -> None:
    class Elsewhere:
        calls = 0

        def run(self, function):  # type: ignore[no-untyped-def]
            self.calls += 1
            return function()

    elsewhere = Elsewhere()
    assert process.run(["echo", "there"], netns=elsewhere).stdout == b"there\n"  # type: ignore[arg-type]
    assert elsewhere.calls == 1
