"""Find a plugin and run it: as a process, or in this process if it is one of this package's own."""

from __future__ import annotations

import _stat
import errno
import posix
import sys
import time

from cni.invoke import launcher
from cni.spec import gojson, version
from cni.spec.errors import UNKNOWN, CNIError, DeadlineExceeded, bracketed, quote
from cni.spec.result import Result
from cni.system import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from cni.kernel.netns import NetNS
    from cni.skel.plugin import Plugin

# An executable that is being written can't be executed (ETXTBSY): retry, because its installer will soon finish.
_BUSY_ATTEMPTS = 6
_BUSY_PAUSE = 1.0  # seconds

PATH_SEPARATOR = ":"  # of CNI_PATH: the operating system's


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def find(name: str, paths: Sequence[str]) -> str:
    """Return the path of the first regular file `name` in the folders `paths`. Raises CNIError."""
    if not name:
        raise CNIError("no plugin name provided")
    # CVE-2021-20206: a name must not lead out of the folders.
    if "/" in name or "\0" in name or name in (".", ".."):
        raise CNIError(f"invalid plugin name: {name}")
    if not paths:
        raise CNIError("no paths provided")
    for folder in filter(None, paths):
        path = f"{folder.rstrip('/')}/{name}"
        if _is_regular_file(path):
            return path
    raise CNIError(f"failed to find plugin {quote(name)} in path {bracketed(paths)}")


def _is_regular_file(path: str) -> bool:
    try:
        return _stat.S_ISREG(posix.stat(path).st_mode)
    except OSError:
        return False


def environment(
    verb: str,
    *,
    container_id: str = "",
    netns: str = "",
    ifname: str = "",
    args: str = "",
    paths: Iterable[str] = (),
    trace: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return a plugin's environment: the runtime's own, the six CNI variables (all set), and the trace context."""
    import os

    return {
        **os.environ,
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container_id,
        "CNI_NETNS": netns,
        "CNI_ARGS": args,
        "CNI_IFNAME": ifname,
        "CNI_PATH": PATH_SEPARATOR.join(paths),
        **trace_variables(trace or {}),
    }


def trace_variables(context: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that carry a W3C trace context.

    `context` is a mapping as tracing libraries inject it, with the keys traceparent, tracestate and baggage. Without a
    valid traceparent there is no parent span, and the result is empty.
    """
    if not context.get("traceparent"):
        return {}
    from cni.system.tracing import Context

    if Context.parse(context["traceparent"]) is None:
        return {}
    return {key.upper(): context[key] for key in ("traceparent", "tracestate", "baggage") if context.get(key)}


def execute(
    path: str,
    config: bytes,
    environ: Mapping[str, str],
    timeout: float | None = None,
    *,
    log: Callable[[str], object] = _to_stderr,
    netns: NetNS | None = None,
) -> bytes:
    """Run the plugin at `path` as a process and return its stdout; its stderr is passed to `log`.

    `timeout` is in seconds; `netns` is the namespace to start it in if that is not this process's own.
    Raises the CNIError that the plugin printed, or one that says how it failed.
    """
    done = complete(path, config, environ, timeout, netns=netns)
    if done.stderr:
        log(done.stderr.decode(errors="replace").removesuffix("\n"))
    return done.stdout


def complete(
    path: str,
    config: bytes,
    environ: Mapping[str, str],
    timeout: float | None = None,
    *,
    netns: NetNS | None = None,
) -> process.Completed:
    """Run like `execute`, but return the completed process, with its stderr."""
    try:
        done = _start(path, config, environ, timeout, netns)
    except TimeoutError as error:
        verb = environ.get("CNI_COMMAND", "")
        raise DeadlineExceeded(f"netplugin failed: {verb} of {error}", UNKNOWN) from error
    except OSError as error:
        reason = posix.strerror(error.errno).lower() if error.errno else str(error)
        raise _failure(f"fork/exec {path}: {reason}", b"", b"") from error
    if done.status != 0:
        raise _failure(done.outcome, done.stdout, done.stderr)
    return done


def _start(
    path: str, config: bytes, environ: Mapping[str, str], timeout: float | None, netns: NetNS | None
) -> process.Completed:
    what = f"{path.rpartition('/')[2]} {environ.get('CNI_COMMAND', '')}"
    for _ in range(_BUSY_ATTEMPTS - 1):
        try:
            return process.run([path], config, environ, timeout, netns, what)
        except OSError as error:
            if error.errno != errno.ETXTBSY:
                raise
        time.sleep(_BUSY_PAUSE)
    return process.run([path], config, environ, timeout, netns, what)


def _failure(outcome: str, stdout: bytes, stderr: bytes) -> CNIError:
    """Return the error of a failed plugin, from its outcome and output; in Go's words."""
    if not stdout and not stderr:
        return CNIError(f"netplugin failed with no error message: {outcome}", UNKNOWN)
    if not stdout:
        return CNIError(f"netplugin failed: {quote(stderr.decode(errors='surrogateescape'))}: {outcome}", UNKNOWN)
    try:
        return CNIError.from_dict(decode_object(stdout))
    except (CNIError, ValueError) as error:
        message = quote(stdout.decode(errors="surrogateescape"))
        return CNIError(f"netplugin failed but error parsing its diagnostic message {message}: {error}", UNKNOWN)


def call(
    plugin: Plugin[Any],
    config: bytes,
    environ: Mapping[str, str],
    *,
    log: Callable[[str], object] = _to_stderr,
    host: NetNS | None = None,
) -> bytes:
    """Run `plugin` in this process; output and errors are as those of `execute`.

    `host` is as for Plugin.serve.
    """
    logged: list[str] = []
    outcome = plugin.serve(environ, lambda: config, logged.append, host)
    if outcome.error:
        raise outcome.error
    for text in logged:  # of a call that fails, only the error is kept, as with a process
        log(text)
    return outcome.stdout.encode(errors="replace")


def run(
    path: str,
    config: bytes,
    environ: Mapping[str, str],
    timeout: float | None = None,
    *,
    log: Callable[[str], object] = _to_stderr,
    host: NetNS | None = None,
) -> bytes:
    """Run the plugin at `path` in the quickest way: `call` for an executable of this package, else `execute`.

    `timeout` has effect for processes only.
    """
    plugin = own_plugin(path)
    if plugin:
        return call(plugin, config, environ, log=log, host=host)
    return execute(path, config, environ, timeout, log=log, netns=host)


def own_plugin(path: str) -> Plugin[Any] | None:
    """Return the plugin that the executable at `path` starts, if it would run the very code that runs here."""
    try:
        status = posix.stat(path)
    except OSError:
        return None
    identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    cached_identity, plugin = _cache.get(path, (None, None))
    if cached_identity == identity:
        return plugin
    trailer = launcher.read(path)
    plugin = launcher.load(trailer.reference) if trailer and trailer.is_ours else None
    if len(_cache) < _CACHE_SIZE:
        _cache[path] = identity, plugin
    return plugin


# The identity of executables, and the plugin of each; None for those of others.
_cache: dict[str, tuple[tuple[int, ...] | None, Plugin[Any] | None]] = {}
_CACHE_SIZE = 100


def decode_result(output: bytes, config_version: str) -> Result:
    """Return the result that a plugin printed; by default its version is the configuration's. Raises CNIError."""
    try:
        fields = decode_object(output)
    except (CNIError, ValueError) as error:
        raise CNIError(f"failed to unmarshal raw result: {error}") from error
    return Result.decode(fields, config_version)


def decode_object(text: bytes) -> dict[str, Any]:
    """Decode a JSON object; null is an empty one, as in Go. Raises ValueError or ConfigError."""
    decoded = gojson.loads(text)
    return gojson.table({} if decoded is None else decoded, "")


def probe_version(path: str, timeout: float | None = None, run: Callable[..., bytes] = execute) -> version.PluginInfo:
    """Ask the plugin at `path` which spec versions it supports; `timeout` is in seconds. Raises CNIError.

    `run` runs the plugin: `execute`, which starts a process, or this module's `run`.
    """
    # Plugins older than VERSION check the other variables first, and have to get as far as refusing the verb.
    environ = environment("VERSION", netns="dummy", ifname="dummy", paths=["dummy"])
    try:
        output = run(path, gojson.dumps({"cniVersion": version.CURRENT}).encode(), environ, timeout)
    except CNIError as error:
        if str(error) == "unknown CNI_COMMAND: VERSION":
            return version.PluginInfo(("0.1.0",))
        raise
    return version.PluginInfo.decode(output)
