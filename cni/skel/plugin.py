"""A plugin's frame: environment and stdin in, one verb, stdout and an exit code out."""

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
from cni.spec.result import Result
from cni.system.process import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, NoReturn

    from cni.kernel.netns import NetNS
    from cni.netfilter.ruleset import Ruleset

__all__ = ["Plugin", "Request"]

# Each variable that some verb can't do without, those verbs, and what its value has to be for them; in the order in
# which problems are reported. CNI_COMMAND is needed by the verb "", which is the one it names when it is missing.
_ENVIRONMENT: tuple[tuple[str, tuple[str, ...], Callable[[str], None] | None], ...] = (
    ("CNI_COMMAND", ("",), None),
    ("CNI_CONTAINERID", ("ADD", "CHECK", "DEL"), check_container_id),
    ("CNI_NETNS", ("ADD", "CHECK"), None),
    ("CNI_IFNAME", ("ADD", "CHECK", "DEL"), check_ifname),
    ("CNI_PATH", ("ADD", "CHECK", "DEL", "GC", "STATUS"), None),
)

# Verbs that a configuration has to be new enough for.
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


class Plugin:
    """A CNI plugin: a name, a table of its configuration, and a handler for each verb it has something to do for.

    `add` returns the Result; the other handlers return None, and a verb without a handler succeeds.
    `rules` describes to a Ruleset, given the result of ADD, what the attachment has in iptables and nftables, for it to
    be restored. `versions` are the spec versions it can be configured in; `about` is told to who starts it by hand, by
    default its name and the version of this package; None is nothing, and an error then.
    `netconf_error` goes before what is wrong with the configuration.

    For who looks at configurations before they are used: `place` is "interface" for a plugin that makes the container's
    interface, "chained" for one that changes what others before it have made, "ipam" for one that those ask for
    addresses, and "" for one that may stand anywhere. `validate` raises what ADD would refuse in the configuration
    whatever the node is like, and gives warnings of what is allowed, but hardly meant. `arguments` are the keys of
    CNI_ARGS that it reads, and what they mean.
    """

    __slots__ = (
        "_latest",
        "about",
        "arguments",
        "config",
        "handlers",
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
        config: type[Config] = Config,
        add: Callable[[Request], Result],
        delete: Callable[[Request], None] | None = None,
        check: Callable[[Request], None] | None = None,
        gc: Callable[[Request], None] | None = None,
        status: Callable[[Request], None] | None = None,
        rules: Callable[[Request, Ruleset], None] | None = None,
        validate: Callable[[Request], Iterable[str] | None] | None = None,
        place: str = "",
        arguments: Mapping[str, str] | None = None,
        versions: Iterable[str] = version.ALL,
        about: str | None = "",
        netconf_error: str = "failed to load netconf: ",
    ) -> None:
        self.name = name
        self.config = config
        self.handlers: dict[str, Callable[[Request], Result | None] | None] = {
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
        self._latest: _Known | None = None

    def main(self) -> NoReturn:
        """Be the plugin's process: serve the one call that environment and stdin describe, then exit."""
        _reserve_standard_descriptors()
        status = self.run(_environ(), _read_stdin, _print, _log)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()  # whatever a handler print()ed
            except (AttributeError, OSError, ValueError):
                pass  # started without it, or nobody reads it any more
        # Finalising the interpreter would free what the kernel frees anyway, for a quarter of the process's time.
        posix._exit(status)

    def run(
        self,
        environ: Mapping[str, str],
        stdin: Callable[[], bytes],
        stdout: Callable[[str], object],
        stderr: Callable[[str], object],
        host: NetNS | None = None,
    ) -> int:
        """Serve one call and return its exit code. Nothing but KeyboardInterrupt gets out.

        `host` is the network namespace to work from where that is not the thread's, or one that is kept (netns.Home).
        """
        try:
            if self.about and not environ.get("CNI_COMMAND"):
                stderr(f"{self.about}\nCNI protocol versions supported: {', '.join(self.versions)}\n")
                return 0
            stdout(self._serve(environ, stdin, stderr, host))
            return 0
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a handler raises, SystemExit too: the runtime gets its JSON
            if environ.get("CNI_LOG") == "debug":
                stderr(_traceback(error))
            _print_error(error, stdout, stderr)
            return 1

    def request(
        self, environ: Mapping[str, str], config: bytes, stderr: Callable[[str], object], host: NetNS | None = None
    ) -> Request:
        """A call as handlers see it, for who calls them otherwise than by run(). Raises CNIError."""
        fields = _decode(config)
        config_version = version.of_config(fields)
        version.reconcile(config_version, self.versions)
        parsed = self._parse(fields)
        return Request(environ, stdin=config, config=parsed, version=config_version, stderr=stderr, host=host)

    def delegated(
        self, environ: Mapping[str, str], config: bytes, stderr: Callable[[str], object], host: NetNS | None = None
    ) -> Result | None:
        """Serve a plugin of this very process that delegates to this one: what it would read of ADD's output.

        The environment is the one that it was called with itself.

        Raises the CNIError that would be printed.
        """
        try:
            made, config_version = self._handle(environ, config, stderr, host, is_nested=True)
            return made and made.converted(config_version)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise _as_cni_error(error) from error

    def _serve(
        self,
        environ: Mapping[str, str],
        stdin: Callable[[], bytes],
        stderr: Callable[[str], object],
        host: NetNS | None,
    ) -> str:
        """What is to be printed."""
        if "TRACEPARENT" not in environ and environ.get("CNI_LOG") != "debug":
            return self._answer(environ, stdin, stderr, host)
        from cni.system.tracing import Trace  # for who wants to see the steps

        with Trace.of_plugin(self.name, environ, stderr) as trace:
            return self._answer(environ, trace.reading(stdin), stderr, host)

    def _answer(
        self,
        environ: Mapping[str, str],
        stdin: Callable[[], bytes],
        stderr: Callable[[str], object],
        host: NetNS | None,
    ) -> str:
        _check_environment(environ)
        if environ["CNI_COMMAND"] == "VERSION":
            return version.PluginInfo(self.versions).encode()
        made, config_version = self._handle(environ, _read(stdin), stderr, host)
        return made.text(config_version) if made else ""

    def _handle(
        self,
        environ: Mapping[str, str],
        config: bytes,
        stderr: Callable[[str], object],
        host: NetNS | None,
        *,
        is_nested: bool = False,
    ) -> tuple[Result | None, str]:
        """ADD's result, and the version to tell it in; the order of the steps is that in which errors count."""
        verb = environ["CNI_COMMAND"]
        latest = self._latest
        known = latest if latest and latest.config == config else None
        fields = known.fields if known else _decode(config)
        if verb not in self.handlers:
            raise CNIError(f"unknown CNI_COMMAND: {verb}", INVALID_ENVIRONMENT_VARIABLES)
        config_version = known.version if known else version.of_config(fields)
        if verb in _SINCE:
            self._check_gate(verb, config_version)
        version.reconcile(config_version, self.versions)
        handler = self.handlers[verb]
        if handler is None:
            return None, config_version
        parsed = known.parsed if known else self._parse(fields, latest)
        if not known:
            self._latest = _Known(config, fields, config_version, parsed)
        with Request(environ, stdin=config, config=parsed, version=config_version, stderr=stderr, host=host) as request:
            if verb in ("ADD", "DEL") and not is_nested:
                _refuse_own_netns(request)
            made = handler(request)
        if verb != "ADD":
            return None, config_version
        if made is None:
            raise CNIError(f"{self.name}: ADD made no result")
        return made, config_version

    def _check_gate(self, verb: str, config_version: str) -> None:
        """Raises CNIError where configuration or plugin are older than the verb."""
        try:
            if not version.at_least(config_version, _SINCE[verb]):
                raise CNIError(f"config version does not allow {verb}", INCOMPATIBLE_CNI_VERSION)
            if not any(version.at_least(ours, config_version) for ours in self.versions):
                raise CNIError(f"plugin version does not allow {verb}", INCOMPATIBLE_CNI_VERSION)
        except ValueError as error:
            raise CNIError(str(error), DECODING_FAILURE) from error

    def _parse(self, fields: dict[str, Any], latest: _Known | None = None) -> Config:
        try:
            if latest and latest.differs_in_result_alone(fields):
                return latest.parsed.with_result(fields)
            return self.config.parse(fields)
        except CNIError as error:
            raise error.prefixed(self.netconf_error) from None


class _Known:
    """A configuration that came, and what it is.

    A network's containers come with the same one, one after the other; with DEL and CHECK, and in a chain, it has each
    container's own prevResult. Nobody changes what it was parsed to.
    """

    __slots__ = ("_essence", "config", "fields", "parsed", "version")

    def __init__(self, config: bytes, fields: dict[str, Any], config_version: str, parsed: Config) -> None:
        self.config = config
        self.fields = fields
        self.version = config_version
        self.parsed = parsed
        self._essence = b""

    def differs_in_result_alone(self, fields: dict[str, Any]) -> bool:
        try:
            self._essence = self._essence or _essence(self.fields)
            return self._essence == _essence(fields)
        except ValueError:  # nested too deeply for that
            return False


def _essence(fields: dict[str, Any]) -> bytes:
    """All but the prevResult. As bytes, since 1, 1.0 and true would be equal; in a form that shares no parts."""
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
    """The configuration as an object with a sound network name."""
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
    """Before anything is made or taken away: CNI_NETNS must not be the namespace the plugin itself works from.

    Go checks when the verb is done. A path that can't be opened is left for the handler to judge: DEL tolerates it.
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
    """The first structured error of the chain `raise ... from ...` made; any other error is an internal one."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, CNIError):
            return link
        link = link.__cause__
    return CNIError(str(error) or type(error).__name__, INTERNAL)


def _print_error(error: BaseException, stdout: Callable[[str], object], stderr: Callable[[str], object]) -> None:
    try:
        stdout(gojson.dumps(_as_cni_error(error).to_dict(), indent=4))
    except (CNIError, OSError) as problem:
        stderr(f"Error writing error JSON to stdout: {problem}\n")


def _traceback(error: BaseException) -> str:
    import traceback  # dear, and only for who debugs

    return "".join(traceback.format_exception(error))


def _reserve_standard_descriptors() -> None:
    """Fill 0, 1 and 2 where the caller closed them, lest a netlink socket be opened there and be printed to.

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


def _print(text: str) -> None:
    """Write to stdout; what UTF-8 has no bytes for becomes a `?`."""
    try:
        write_all(1, text.encode(errors="replace"))
    except OSError as error:
        raise CNIError(f"writing to stdout: {error}", IO_FAILURE) from error


def _log(text: str) -> None:
    try:
        write_all(2, text.encode(errors="replace"))
    except OSError:
        pass  # there is nowhere left to tell
