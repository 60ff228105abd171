"""The frame of a plugin: it reads environment and stdin, serves one verb, writes stdout and returns an exit code."""

from __future__ import annotations

import marshal
import posix
import sys

from cni import __version__
from cni._core import fsdecode
from cni.skel.config import Config
from cni.skel.request import Request
from cni.spec import gojson, version
from cni.spec.errors import (
    DECODING_FAILURE,
    INCOMPATIBLE_CNI_VERSION,
    INTERNAL,
    INVALID_ENVIRONMENT_VARIABLES,
    INVALID_NETNS,
    INVALID_NETWORK_CONFIG,
    IO_FAILURE,
    CNIError,
)
from cni.spec.names import check_container_id, check_ifname, check_network_name
from cni.system.process import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, Generic, NoReturn

    from typing_extensions import TypeVar

    from cni.kernel.netns import NetNS
    from cni.netfilter.ruleset import Ruleset
    from cni.spec.result import Result

    C = TypeVar("C", bound=Config, default=Config)

    class _Of(Generic[C]):
        """A base class: plugins are generic in the table of their configuration."""

else:
    from cni.skel.config import Subscriptable as _Of

    C = None

# Variables that a verb requires: (name, verbs, check of the value), in the order in which problems are reported.
# CNI_COMMAND is required by the verb "", which is the one that a missing CNI_COMMAND names.
_ENVIRONMENT: tuple[tuple[str, tuple[str, ...], Callable[[str], None] | None], ...] = (
    ("CNI_COMMAND", ("",), None),
    ("CNI_CONTAINERID", ("ADD", "CHECK", "DEL"), check_container_id),
    ("CNI_NETNS", ("ADD", "CHECK"), None),
    ("CNI_IFNAME", ("ADD", "CHECK", "DEL"), check_ifname),
    ("CNI_PATH", ("ADD", "CHECK", "DEL", "GC", "STATUS"), None),
)

# Verbs that require a configuration of at least this version.
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


class Outcome:
    """The outcome of one call of a plugin.

    `stdout` is the text to print; `result` is the Result of a successful ADD, and `error` the CNIError of a call that
    failed; otherwise both are None.
    """

    __slots__ = ("error", "result", "stdout")

    def __init__(self, stdout: str = "", result: Result | None = None, error: CNIError | None = None) -> None:
        self.stdout = stdout
        self.result = result
        self.error = error

    @property
    def status(self) -> int:
        """The exit code: 0, or 1 for an error."""
        return 1 if self.error else 0

    def __repr__(self) -> str:
        return f"<Outcome error={self.error!r}>" if self.error else f"<Outcome result={self.result!r}>"


class Plugin(_Of[C]):
    """A CNI plugin: its name, the table of its configuration, and a handler for each verb that it acts on.

    `add` returns the Result; the other handlers return None, and a verb without a handler succeeds. `validate` raises
    CNIError for what ADD must refuse in the configuration and arguments, whatever the state of the node, and returns
    warnings about what is allowed but probably not intended; it runs before every ADD, and for `cni validate`.

    `place` is "interface" for a plugin that makes the container's interface, "chained" for one that changes what
    earlier plugins of the list made, "ipam" for one that other plugins ask for addresses, and "" for one that may
    stand anywhere. `rules` describes to a Ruleset, given the result of ADD, the attachment's rules in iptables and
    nftables, so that they can be restored. `arguments` maps the keys of CNI_ARGS that the plugin reads to their
    meaning. `versions` are the spec versions it supports. `about` is printed when it is started by hand, by default its
    name and the version of this package; with None that is an error. `netconf_error` precedes errors about the
    configuration.
    """

    __slots__ = (
        "_handlers",
        "_latest",
        "about",
        "arguments",
        "config",
        "name",
        "netconf_error",
        "place",
        "rules",
        "validate",
        "versions",
    )

    def __init__(
        self,
        name: str,
        *,
        config: type[C] = Config,  # type: ignore[assignment]
        add: Callable[[Request[C]], Result],
        delete: Callable[[Request[C]], None] | None = None,
        check: Callable[[Request[C]], None] | None = None,
        gc: Callable[[Request[C]], None] | None = None,
        status: Callable[[Request[C]], None] | None = None,
        rules: Callable[[Request[C], Ruleset], None] | None = None,
        validate: Callable[[Request[C]], Iterable[str] | None] | None = None,
        place: str = "",
        arguments: Mapping[str, str] | None = None,
        versions: Iterable[str] = version.ALL,
        about: str | None = "",
        netconf_error: str = "failed to load netconf: ",
    ) -> None:
        self.name = name
        self.config = config
        self._handlers: dict[str, Callable[[Request[C]], Result | None] | None] = {
            "ADD": add,
            "DEL": delete,
            "CHECK": check,
            "GC": gc,
            "STATUS": status,
        }
        self.rules = rules
        self.validate = validate
        self.place = place
        self.arguments = dict(arguments or {})
        self.versions = tuple(versions)
        self.about = f"CNI {name} plugin v{__version__}" if about == "" else about
        self.netconf_error = netconf_error
        self._latest: _Parsed | None = None

    def __repr__(self) -> str:
        return f"<Plugin {self.name}>"

    def main(self) -> NoReturn:
        """Serve the one call that environment and stdin describe, then exit the process."""
        _reserve_standard_descriptors()
        status = _print(self.serve(_environ(), _read_stdin, _log))
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()  # whatever a handler print()ed
            except (AttributeError, OSError, ValueError):
                pass  # the process was started without it, or its reader is gone
        # Finalising the interpreter takes a quarter of the process's time, to free what the kernel frees anyway.
        posix._exit(status)

    def call(
        self,
        verb: str,
        config: Mapping[str, Any] | bytes,
        *,
        container_id: str = "test",
        netns: str = "",
        ifname: str = "eth0",
        args: str = "",
        path: Iterable[str] = (),
        host: NetNS | None = None,
        log: Callable[[str], object] = print,
    ) -> Result | None:
        """Serve one call, for a test of the plugin: `plugin.call("ADD", config, netns=container.path)`.

        `config` is a whole configuration, decoded or as JSON; its `name` and `cniVersion` default to "test" and the
        newest version. `netns` is the path of the container's namespace, `path` the folders of CNI_PATH, `host` the
        namespace to work from instead of the thread's own, and `log` takes the lines that the plugin logs.

        Returns the result of ADD, None for other verbs. Raises the CNIError that the plugin would print.
        """
        if not isinstance(config, bytes):
            config = gojson.dumps({"cniVersion": version.CURRENT, "name": "test", **config}).encode()
        stdin = config
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": netns,
            "CNI_IFNAME": ifname,
            "CNI_ARGS": args,
            "CNI_PATH": ":".join(path) or "/nonexistent",
        }
        outcome = self.serve(environ, lambda: stdin, log, host)
        if outcome.error:
            raise outcome.error
        return outcome.result

    def serve(
        self,
        environ: Mapping[str, str],
        stdin: Callable[[], bytes],
        log: Callable[[str], object],
        host: NetNS | None = None,
        parent: Request[Any] | None = None,
    ) -> Outcome:
        """Serve one call. Raises nothing but KeyboardInterrupt.

        `stdin` returns the configuration, and is called only if it is needed. `log` takes lines for stderr. `host` is
        the node's network namespace if that is not the thread's, or one that is kept open (netns.Home). `parent` is the
        request of a plugin in this process that delegates to this one; then the outcome's `stdout` stays empty.
        """
        request: Request[C] = Request(environ, log, host)
        try:
            if self.about and not request.command:
                log(f"{self.about}\nCNI protocol versions supported: {', '.join(self.versions)}")
                return Outcome()
            if parent is None:
                return self._answer(request, stdin)
            result = self._handle(request, stdin(), parent)
            return Outcome(result=result and result.converted(request.version))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a handler raises, even SystemExit, the runtime gets an error as JSON
            if parent is None and environ.get("CNI_LOG") == "debug":
                log(_traceback(error))
            structured = _as_cni_error(error)
            return Outcome(gojson.dumps(structured.to_dict(), indent=4), error=structured)

    def request(
        self,
        environ: Mapping[str, str],
        config: bytes,
        log: Callable[[str], object],
        host: NetNS | None = None,
    ) -> Request[C]:
        """Return the request that ADD's handler would get, without serving it: for `rules` and `validate`.

        Raises CNIError.
        """
        request: Request[C] = Request(environ, log, host)
        self._read(request, config)
        return request

    def _answer(self, request: Request[C], stdin: Callable[[], bytes]) -> Outcome:
        environ = request.environ
        if "TRACEPARENT" not in environ and environ.get("CNI_LOG") != "debug":
            return self._answer_runtime(request, stdin)
        from cni.system.tracing import Trace

        with Trace.of_plugin(self.name, environ, request.log) as trace:
            return self._answer_runtime(request, trace.reading(stdin))

    def _answer_runtime(self, request: Request[C], stdin: Callable[[], bytes]) -> Outcome:
        _check_environment(request.environ)
        if request.command == "VERSION":
            return Outcome(version.PluginInfo(self.versions).encode())
        result = self._handle(request, _read(stdin))
        return Outcome(result.text(request.version), result) if result else Outcome()

    def _handle(self, request: Request[C], config: bytes, parent: Request[Any] | None = None) -> Result | None:
        handler = self._read(request, config, parent)
        if handler is None:
            return None
        with request:
            if parent is None and request.command in ("ADD", "DEL"):
                _refuse_own_netns(request)
            if request.command == "ADD" and self.validate:
                for _ in self.validate(request) or ():
                    pass  # warnings are for `cni validate`; a generator has to be run to its end
            result = handler(request)
        if request.command != "ADD":
            return None
        if result is None:
            raise CNIError(f"{self.name}: ADD returned no result")
        return result

    def _read(
        self, request: Request[C], config: bytes, parent: Request[Any] | None = None
    ) -> Callable[[Request[C]], Result | None] | None:
        """Read the configuration into the request and return the verb's handler. Raises CNIError.

        The steps are in the order in which Go reports errors. What `parent` has decoded is not decoded again.
        """
        latest = self._latest
        same = latest if latest and latest.config == config else None
        decoded = same.fields if same else parent.config.raw if parent and parent.stdin is config else None
        fields = _decode(config) if decoded is None else decoded
        if request.command not in self._handlers:
            raise CNIError(f"unknown CNI_COMMAND: {request.command}", INVALID_ENVIRONMENT_VARIABLES)
        request.stdin = config
        request.version = same.version if same else version.of_config(fields)
        if request.command in _SINCE:
            self._require_version_of(request.command, request.version)
        version.reconcile(request.version, self.versions)
        handler = self._handlers[request.command]
        if handler is None:
            return None
        if same:
            request.config = same.parsed
        else:
            request.config = self._parse(fields, latest)
            self._latest = _Parsed(config, fields, request.version, request.config)
        return handler

    def _require_version_of(self, verb: str, config_version: str) -> None:
        """Raise CNIError if the configuration or the plugin is older than the verb."""
        try:
            if not version.at_least(config_version, _SINCE[verb]):
                raise CNIError(f"config version does not allow {verb}", INCOMPATIBLE_CNI_VERSION)
            if not any(version.at_least(ours, config_version) for ours in self.versions):
                raise CNIError(f"plugin version does not allow {verb}", INCOMPATIBLE_CNI_VERSION)
        except ValueError as error:
            raise CNIError(str(error), DECODING_FAILURE) from error

    def _parse(self, fields: dict[str, Any], latest: _Parsed | None) -> C:
        try:
            if latest and latest.differs_in_prev_result_alone(fields):
                parsed: C = latest.parsed.with_prev_result(fields)
                return parsed
            return self.config.parse(fields)
        except CNIError as error:
            raise error.prefixed(self.netconf_error) from None


class _Parsed:
    """The latest configuration and its parsed form, which is never changed.

    The calls for a network's containers have the same configuration; only in DEL and CHECK, and in chained plugins, it
    has each container's own prevResult.
    """

    __slots__ = ("_rest", "config", "fields", "parsed", "version")

    def __init__(self, config: bytes, fields: dict[str, Any], config_version: str, parsed: Any) -> None:
        self.config = config
        self.fields = fields
        self.version = config_version
        self.parsed = parsed
        self._rest = b""

    def differs_in_prev_result_alone(self, fields: dict[str, Any]) -> bool:
        try:
            self._rest = self._rest or _without_prev_result(self.fields)
            return self._rest == _without_prev_result(fields)
        except ValueError:  # nested too deeply for marshal
            return False


def _without_prev_result(fields: dict[str, Any]) -> bytes:
    """Marshal everything but prevResult, because == takes 1, 1.0 and True for equal (version 2: no back-references)."""
    return marshal.dumps({**fields, "prevResult": None}, 2)


def _check_environment(environ: Mapping[str, str]) -> None:
    verb = environ.get("CNI_COMMAND", "")
    missing = []
    for name, verbs, validate in _ENVIRONMENT:
        if verb not in verbs:
            continue
        value = environ.get(name, "")
        if not value:
            missing.append(name)
        elif validate:
            validate(value)
    if missing:
        raise CNIError(f"required env variables [{','.join(missing)}] missing", INVALID_ENVIRONMENT_VARIABLES)


def _read(stdin: Callable[[], bytes]) -> bytes:
    try:
        return stdin()
    except OSError as error:
        raise CNIError(f"error reading from stdin: {error}", IO_FAILURE) from error


def _decode(config: bytes) -> dict[str, Any]:
    """Decode the configuration: an object with a valid network name. Raises CNIError."""
    try:
        fields = gojson.table(gojson.loads(config), "")
        name = gojson.Fields(fields, "").get("name", gojson.text, "")
    except (CNIError, ValueError) as error:
        raise CNIError(f"error unmarshall network config: {error}", DECODING_FAILURE) from None
    if not name:
        raise CNIError("missing network name", INVALID_NETWORK_CONFIG)
    check_network_name(name)
    return fields


def _refuse_own_netns(request: Request) -> None:
    """Raise CNIError if CNI_NETNS is the namespace that the plugin itself works from.

    Go checks after the verb, this before anything is made or deleted. A path that can't be opened is left to the
    handler: DEL tolerates it.
    """
    if request.environ.get("CNI_NETNS_OVERRIDE", "").upper() in ("1", "TRUE"):
        return
    try:
        is_own = request.is_in_own_netns()
    except (CNIError, OSError) as error:
        raise CNIError("get plugin's netns failed", INVALID_NETNS, str(error)) from error
    if is_own:
        raise CNIError("plugin's netns and netns from CNI_NETNS should not be the same", INVALID_NETNS)


def _as_cni_error(error: BaseException) -> CNIError:
    """Return the first structured error of the chain that `raise ... from ...` made.

    Without one, an error of the system is an internal error with its text; of any other, a fault in a plugin, the
    type is named too, since its text alone ("'eth0'" of a KeyError) may say nothing.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, CNIError):
            return link
        link = link.__cause__
    name, text = type(error).__name__, str(error)
    if isinstance(error, OSError) and text:
        return CNIError(text, INTERNAL)
    return CNIError(f"{name}: {text}" if text else name, INTERNAL)


def _traceback(error: BaseException) -> str:
    import traceback  # expensive, and only for debugging

    return "".join(traceback.format_exception(error)).rstrip("\n")


def _reserve_standard_descriptors() -> None:
    """Open 0, 1 and 2 if the caller closed them: otherwise a netlink socket may get one of them, and be printed to.

    Read-only, so that writing to one still fails as it does on a closed descriptor.
    """
    while (fd := posix.open("/dev/null", posix.O_RDONLY)) <= 2:
        pass
    posix.close(fd)


def _environ() -> dict[str, str]:
    return {fsdecode(name): fsdecode(value) for name, value in posix.environ.items()}


def _read_stdin() -> bytes:
    chunks = []
    while chunk := posix.read(0, 1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def _print(outcome: Outcome) -> int:
    """Write the outcome to stdout and return the exit code; what UTF-8 can't encode becomes a `?`."""
    try:
        write_all(1, outcome.stdout.encode(errors="replace"))
        return outcome.status
    except OSError as error:
        what = "error JSON" if outcome.error else "result"
        _log(f"Error writing {what} to stdout: {error.strerror}")
        return 1


def _log(text: str) -> None:
    try:
        write_all(2, f"{text}\n".encode(errors="replace"))
    except OSError:
        pass  # its reader is gone
