"""Run another program, never a shell: bytes in, bytes and an exit status out."""

from __future__ import annotations

import _stat
import _thread
import errno
import posix
import time

from cni._core import observed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Mapping

    from cni.kernel.netns import NetNS
else:
    import _signal  # the C half of `signal`; the other half imports enum

_DEFAULT_PATH = "/bin:/usr/bin"  # without PATH, as execvp(3)

# In a process that serves several callers at once, `caller.environ` is the environment of the thread's caller.
caller = _thread._local()

# Python ignores these two signals, and an ignored signal stays ignored across an exec.
_IGNORED_BY_PYTHON = (_signal.SIGPIPE, _signal.SIGXFSZ)


class Completed:
    """A finished program: `status` is its exit code, or minus the number of the signal that ended it.

    `seconds` is the time from its start to its end, without preparation and collection of its output.
    """

    __slots__ = ("seconds", "status", "stderr", "stdout")

    def __init__(self, status: int, stdout: bytes, stderr: bytes, seconds: float = 0.0) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
        self.seconds = seconds

    @property
    def outcome(self) -> str:
        """The status in Go's words: `exit status 1`, `signal: killed`."""
        if self.status >= 0:
            return f"exit status {self.status}"
        name = _signal.strsignal(-self.status)
        return f"signal: {name.lower() if name else -self.status}"


def run(
    argv: list[str],
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    netns: NetNS | None = None,
    what: str = "",
) -> Completed:
    """Run `argv` to its end.

    `env` None is this process's environment, or that of the caller it serves; `timeout` is in seconds; `netns` is the
    network namespace that the program starts in, None for this process's own. A name without a slash is searched in the
    PATH of `env`. `what` names the step in a trace (`cni._core.observed`), by default the command.

    Raises OSError if the program can't be started and TimeoutError, after killing it, if it takes longer.
    """
    if env is None:
        env = getattr(caller, "environ", None)
    with observed("process", what or " ".join(argv)) as observer:
        if observer is None:
            return _run(argv, stdin, env, timeout, netns)
        completed = _run(argv, stdin, env and {**env, **observer.variables()}, timeout, netns)
        if completed.status:
            observer.fail(f"{completed.outcome} {completed.stderr.decode(errors='replace')}")
        return completed


def _run(
    argv: list[str], stdin: bytes, env: Mapping[str, str] | None, timeout: float | None, netns: NetNS | None
) -> Completed:
    # stdin, stdout and stderr are memory files: unlike pipes they never fill up, and a daemon that the program leaves
    # behind with a copy of its stdout doesn't keep us waiting.
    program = argv[0] if env is None else _find_program(argv[0], env)
    files: list[int] = []
    try:
        # Created in this order, each file has at least the number that it is duplicated to, so that no dup2 below
        # overwrites a later file, whichever of 0, 1 and 2 this process was started without.
        for name in ("stdin", "stdout", "stderr"):
            files.append(posix.memfd_create(name))
        _fill(files[0], stdin)

        def spawn() -> int:
            return posix.posix_spawnp(
                program,
                argv,
                posix.environ if env is None else env,
                file_actions=[(posix.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(files)],
                setsigdef=_IGNORED_BY_PYTHON,
            )

        begin = time.perf_counter()
        pid = spawn() if netns is None else netns.run(spawn)
        if timeout is not None:
            _kill_after(timeout, pid, argv[0])
        _, status = posix.waitpid(pid, 0)
        seconds = time.perf_counter() - begin
        return Completed(posix.waitstatus_to_exitcode(status), _content(files[1]), _content(files[2]), seconds)
    finally:
        for fd in files:
            posix.close(fd)


def _find_program(program: str, env: Mapping[str, str]) -> str:
    """Return the program's path by the PATH of `env`; posix_spawnp would search this process's PATH."""
    if "/" in program:
        return program
    for folder in env.get("PATH", _DEFAULT_PATH).split(":"):
        path = f"{folder or '.'}/{program}"
        if posix.access(path, posix.X_OK) and _stat.S_ISREG(posix.stat(path).st_mode):
            return path
    raise FileNotFoundError(errno.ENOENT, posix.strerror(errno.ENOENT), program)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, in as many writes as it takes. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[posix.write(fd, rest) :]


def _fill(fd: int, data: bytes) -> None:
    write_all(fd, data)
    posix.lseek(fd, 0, 0)


def _content(fd: int) -> bytes:
    return posix.pread(fd, posix.fstat(fd).st_size, 0)


def _kill_after(timeout: float, pid: int, program: str) -> None:
    """Wait for the child `pid` to end without reaping it; past the timeout kill it, reap it and raise TimeoutError."""
    import select  # 0.2 ms, which a run without a timeout need not pay

    pidfd = posix.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(timeout * 1000):
            posix.kill(pid, _signal.SIGKILL)
            posix.waitpid(pid, 0)
            raise TimeoutError(f"{program} was killed: it had not finished after {round(timeout, 3):g} s")
    finally:
        posix.close(pidfd)
