"""The operations on a network: ADD, CHECK, DEL, GC, STATUS and VERSION (spec sections 3 and 4).

Each operation runs the plugins of a network one after the other, with the configuration derived for each, and the
result of ADD is cached until DEL. A network is a NetworkConfigList or, as before 0.3.0, a single PluginConfig.
"""

from __future__ import annotations

import os
import sys
import time

from cni._core import observed, observer
from cni.invoke import exec as invoke
from cni.runtime.attachment import Attachment, RuntimeConf
from cni.runtime.cache import DEFAULT_FOLDER, ResultCache
from cni.runtime.conf import inject
from cni.runtime.executors import Exec
from cni.spec import names, version
from cni.spec.errors import (
    INCOMPATIBLE_CNI_VERSION,
    INVALID_NETWORK_CONFIG,
    CNIError,
    DeadlineExceeded,
    bracketed,
    joined,
    quote,
    summarized,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, TypeAlias

    from cni.runtime.conf import NetworkConfigList, PluginConfig
    from cni.spec.result import Result

    Network: TypeAlias = NetworkConfigList | PluginConfig

# The exceptions that running a plugin may raise; an exec of the caller's own need not raise CNIError alone.
_FAILURES = (CNIError, OSError, ValueError)


class CheckNotSupported(CNIError):
    """The network's version is older than CHECK (0.4.0)."""


class PluginFailed(CNIError):
    """A plugin of a list failed. Code and details are the plugin's; `cause` is the exception that it raised.

    If the plugin ran out of time, the error is a DeadlineExceeded as well.
    """

    def __init__(self, plugin: PluginConfig, verb: str, cause: Exception) -> None:
        failure = _structured(cause)
        name = f" name={quote(plugin.name)}" if plugin.name else ""
        msg = f"plugin type={quote(plugin.type)}{name} failed ({verb}): {failure.msg}"
        super().__init__(msg, failure.code, failure.details)
        self.plugin = plugin
        self.verb = verb
        self.cause = cause


class PluginTimedOut(PluginFailed, DeadlineExceeded):
    """A plugin of a list was killed or not started, because the operation's timeout had expired."""


class _Deadline:
    """The time that an operation has left, in seconds; its plugins share it."""

    __slots__ = ("_end", "_timeout")

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self, plugin_type: str, verb: str) -> float | None:
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            text = f"{plugin_type} {verb} was not started: the operation's timeout of {self._timeout:g} s has expired"
            raise DeadlineExceeded(text)
        return left


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class CNI:
    """Runs the plugins found in the folders `path` and caches their results below `cache_dir`.

    `exec` replaces how plugins are found and run. `warn` takes a line about a problem that does not stop the operation,
    such as an unreadable cache entry; the default writes it to stderr. `trace` returns the current W3C trace context
    (traceparent, tracestate, baggage), which is passed to the plugins. Without `trace` the operations belong to the
    TRACEPARENT in the environment: each operation is a span, and so is each plugin that it runs (system/tracing.py).

    Every operation takes a `timeout` in seconds for the whole of it and raises DeadlineExceeded when it expires; a
    plugin that is running then is killed. All raise CNIError: a plugin's own failure keeps its code and details.
    """

    def __init__(
        self,
        path: Sequence[str],
        cache_dir: str = "",
        exec: Exec | None = None,
        *,
        warn: Callable[[str], object] = _to_stderr,
        trace: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            folder = os.fsdecode(path)
            raise TypeError(f"path must be a list of folders, not a single one: did you mean [{quote(folder)}]?")
        self.path = list(map(os.fspath, path))
        self.cache_dir = os.fspath(cache_dir)
        self._exec = exec or Exec()
        self._warn = warn
        self._trace = trace

    def __repr__(self) -> str:
        return f"<CNI path={self.path!r} cache_dir={self.cache_dir or DEFAULT_FOLDER!r} exec={self._exec!r}>"

    def add(self, network: Network, rt: RuntimeConf, timeout: float | None = None) -> Result:
        """Attach the container: run the plugins in order, each with the result of the one before.

        Nothing is rolled back on failure: the caller must call `delete` (spec section 3).
        """
        with self._observed("ADD", network, rt):
            result = self._add_all(network, rt, _Deadline(timeout))
            self._remember(network, rt, result)
            return result

    def check(self, network: Network, rt: RuntimeConf, timeout: float | None = None) -> None:
        """Ask the plugins, in order, whether the attachment is as ADD left it, and raise the first failure."""
        if not _at_least(network, "0.4.0"):
            text = f"configuration version {quote(network.cni_version)} does not support the CHECK command"
            raise CheckNotSupported(text, INCOMPATIBLE_CNI_VERSION)
        if network.disable_check:
            return
        deadline = _Deadline(timeout)
        try:
            result = self.cached_result(network, rt)
        except CNIError as error:
            raise error.prefixed(f"failed to get network {quote(network.name)} cached result: ") from error
        with self._observed("CHECK", network, rt):
            for plugin in network.plugins:
                self._ask("CHECK", network, plugin, rt, result, deadline)

    def delete(self, network: Network, rt: RuntimeConf, timeout: float | None = None) -> None:
        """Detach the container: run the plugins in reverse order, each with the final result of ADD.

        Continues after failures and raises them as one; the attachment then stays cached, to be deleted again.
        """
        self._delete(network, rt, _Deadline(timeout))

    def delete_all(self, attachments: Iterable[tuple[Network, RuntimeConf]], timeout: float | None = None) -> None:
        """Call `delete` for many pairs of network and attachment, as many at once as the exec allows.

        Continues after failures and raises them as one; `timeout` applies to all of them together.
        """
        deadline = _Deadline(timeout)
        pairs = list(attachments)
        for pair in pairs:
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], RuntimeConf)):
                raise TypeError(f"attachments must be pairs (network, RuntimeConf or Attachment), not {pair!r}")
        errors = self._delete_each(pairs, deadline)
        if errors:
            raise joined(errors)

    def gc(self, network: Network, valid: Iterable[RuntimeConf] | None = None, timeout: float | None = None) -> None:
        """Delete the network's attachments that are not among `valid`, and run the plugins' GC.

        Attachments are compared by container id and interface name; None means that no attachment is valid any more.
        Continues after failures and raises them as one.
        """
        valid = None if valid is None else list(valid)
        for rt in valid or ():
            if not isinstance(rt, RuntimeConf):
                raise TypeError(f"valid must hold RuntimeConf or Attachment objects, not {rt!r}")
        if network.disable_gc:
            return
        deadline = _Deadline(timeout)
        try:
            attachments = self.cached_attachments()
        except OSError as error:
            self._warn(f"GC of network {quote(network.name)} does nothing: {error}")
            return
        with self._observed("GC", network):
            errors = self._delete_stale(network, attachments, valid or [], deadline)
            if _speaks_1_1(network):
                errors += self._collect(network, valid, deadline)
            if errors:
                raise joined(errors)

    def status(self, network: Network, timeout: float | None = None) -> None:
        """Ask the plugins, in order, whether they are ready for ADD, and raise the first failure unchanged."""
        if not _speaks_1_1(network):
            return
        deadline = _Deadline(timeout)
        with self._observed("STATUS", network):
            for plugin in network.plugins:
                try:
                    config = inject(plugin, _identity(network)).raw
                except CNIError as error:
                    text = f"failed to generate configuration to get plugin STATUS {plugin.type}: "
                    raise error.prefixed(text) from error
                self._execute("STATUS", plugin, config, None, deadline)

    def validate(self, network: Network, timeout: float | None = None) -> list[str]:
        """Find every plugin and ask it whether it supports the network's version.

        Returns the names of the network's enabled capabilities. Raises the failures of all plugins as one.
        """
        deadline = _Deadline(timeout)
        errors = []
        for plugin in network.plugins:
            try:
                self._validate(plugin, network.cni_version or version.OLDEST, deadline)
            except _FAILURES as error:
                if plugin is network:
                    raise
                errors.append(_structured(error))
        if errors:
            raise summarized(errors, bracketed(errors))
        capabilities = (item for plugin in network.plugins for item in plugin.capabilities.items())
        return sorted({name for name, is_enabled in capabilities if is_enabled})

    def version_info(self, plugin_type: str, timeout: float | None = None) -> version.PluginInfo:
        """Ask a plugin which versions it supports."""
        return self._probe(plugin_type, _Deadline(timeout))

    def cached_result(self, network: Network, rt: RuntimeConf) -> Result | None:
        """Return the result of ADD, converted to the network's present version; None if none is cached."""
        return self._cache(rt).result(network.name, rt.container_id, rt.ifname, network.cni_version)

    def cached_config(self, network: Network, rt: RuntimeConf) -> tuple[bytes, RuntimeConf] | None:
        """Return the configuration that ADD was called with, and `rt` with ADD's arguments; None if none is cached.

        The cached capability arguments replace the caller's even if there are none.
        """
        cached = self._cache(rt).attachment(network.name, rt.container_id, rt.ifname)
        if cached is None:
            return None
        args = cached.args or rt.args
        then = RuntimeConf(rt.container_id, rt.netns, rt.ifname, args, cached.capability_args, rt.cache_dir)
        return cached.config, then

    def cached_attachments(self, container_id: str = "") -> list[Attachment]:
        """Return the cached attachments of all containers, or of one. Raises OSError."""
        return ResultCache(self.cache_dir or DEFAULT_FOLDER, self._warn).attachments(container_id)

    def _observed(self, verb: str, network: Network, rt: RuntimeConf | None = None) -> AbstractContextManager[object]:
        """Trace the operation if the environment asks for it; within another traced operation it is a step."""
        is_wanted = "TRACEPARENT" in os.environ or os.environ.get("CNI_LOG") == "debug"
        if not is_wanted or observer():
            return observed("network", f"network {network.name} {verb}")
        from cni.system.tracing import Trace

        environ = dict(os.environ)
        if self._trace:
            environ.pop("TRACEPARENT", None)  # the plugins belong to the caller's own spans
        subject = {"container_id": rt.container_id, "ifname": rt.ifname, "netns": rt.netns} if rt else {}
        return Trace.of_network(network.name, verb, environ, lambda line: self._warn(line.rstrip("\n")), **subject)

    def _add_all(self, network: Network, rt: RuntimeConf, deadline: _Deadline) -> Result:
        result: Result | None = None
        for plugin in network.plugins:
            try:
                result = self._add(network, plugin, rt, result, deadline)
            except _FAILURES as error:
                if plugin is network:
                    raise
                raise _plugin_failed(plugin, "add", error) from error
        if result is None:
            raise CNIError(f"network {quote(network.name)} has no plugins", INVALID_NETWORK_CONFIG)
        return result

    def _add(
        self, network: Network, plugin: PluginConfig, rt: RuntimeConf, previous: Result | None, deadline: _Deadline
    ) -> Result:
        # The names are checked after the lookup, as in Go's library: callers expect the lookup's error first.
        path = self._exec.find(plugin.type, self.path)
        names.check_container_id(rt.container_id)
        names.check_network_name(network.name)
        names.check_ifname(rt.ifname)
        config = plugin_config(network, plugin, rt, previous)
        output = self._exec.execute(path, config, self._environ("ADD", rt), deadline.remaining(plugin.type, "ADD"))
        return invoke.decode_result(output, network.cni_version)

    def _delete(self, network: Network, rt: RuntimeConf, deadline: _Deadline) -> None:
        with self._observed("DEL", network, rt):
            self._delete_observed(network, rt, deadline)

    def _delete_observed(self, network: Network, rt: RuntimeConf, deadline: _Deadline) -> None:
        """Run DEL of every plugin: a failure must not leave the others' addresses and rules behind (Go stops there)."""
        result = self._result_for_delete(network, rt) if _at_least(network, "0.4.0") else None
        failures: list[Exception] = []
        for plugin in reversed(network.plugins):
            try:
                self._ask("DEL", network, plugin, rt, result, deadline)
            except _FAILURES as error:
                failures.append(error if plugin is network else _plugin_failed(plugin, "delete", error))
        if failures:
            raise joined(failures)
        self._cache(rt).remove(network.name, rt.container_id, rt.ifname)

    def _result_for_delete(self, network: Network, rt: RuntimeConf) -> Result | None:
        """Return the cached result; if it cannot be read, the container must still be deleted."""
        try:
            return self.cached_result(network, rt)
        except CNIError as error:
            self._warn(f"DEL goes on without the cached result of network {quote(network.name)}: {error}")
            self._cache(rt).remove(network.name, rt.container_id, rt.ifname)
            return None

    def _delete_stale(
        self, network: Network, attachments: list[Attachment], valid: list[RuntimeConf], deadline: _Deadline
    ) -> list[CNIError]:
        names_of_valid = {(rt.container_id, rt.ifname) for rt in valid}
        stale: list[tuple[Network, RuntimeConf]] = [
            (network, attachment)
            for attachment in attachments
            if attachment.network == network.name and (attachment.container_id, attachment.ifname) not in names_of_valid
        ]
        return [error.prefixed("failed to delete stale attachment ") for error in self._delete_each(stale, deadline)]

    def _delete_each(self, pairs: list[tuple[Network, RuntimeConf]], deadline: _Deadline) -> list[CNIError]:
        """Delete the attachments and return the failures, each beginning with the attachment's names."""

        def delete(pair: tuple[Network, RuntimeConf]) -> CNIError | None:
            network, rt = pair
            try:
                self._delete(network, rt, deadline)
            except _FAILURES as error:
                return _structured(error).prefixed(f"{rt.container_id} {rt.ifname}: ")
            return None

        if self._exec.at_once == 1 or len(pairs) < 2:
            return list(filter(None, map(delete, pairs)))
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self._exec.at_once) as threads:
            return list(filter(None, threads.map(delete, pairs)))

    def _collect(self, network: Network, valid: list[RuntimeConf] | None, deadline: _Deadline) -> list[CNIError]:
        """Run GC of every plugin and return the failures; with `valid` None no list is sent at all."""
        values = _identity(network)
        if valid is not None:
            attachments = [{"containerID": rt.container_id, "ifname": rt.ifname} for rt in valid]
            # The second key is the name that the text of 1.1.0 gave it by mistake.
            values |= {"cni.dev/valid-attachments": attachments, "cni.dev/attachments": attachments}
        errors = []
        for plugin in network.plugins:
            failure = f"failed to generate configuration to GC plugin {plugin.type}: "
            try:
                config = inject(plugin, values).raw
                failure = f"failed to GC plugin {plugin.type}: "
                self._execute("GC", plugin, config, None, deadline)
            except _FAILURES as error:
                errors.append(_structured(error).prefixed(failure))
        return errors

    def _ask(
        self,
        verb: str,
        network: Network,
        plugin: PluginConfig,
        rt: RuntimeConf,
        result: Result | None,
        deadline: _Deadline,
    ) -> None:
        self._execute(verb, plugin, plugin_config(network, plugin, rt, result), rt, deadline)

    def _execute(
        self, verb: str, plugin: PluginConfig, config: bytes, rt: RuntimeConf | None, deadline: _Deadline
    ) -> None:
        """Run a verb that has no result."""
        path = self._exec.find(plugin.type, self.path)
        self._exec.execute(path, config, self._environ(verb, rt), deadline.remaining(plugin.type, verb))

    def _validate(self, plugin: PluginConfig, wanted: str, deadline: _Deadline) -> None:
        if wanted not in self._probe(plugin.type, deadline).supported:
            text = f"plugin {plugin.type} does not support config version {quote(wanted)}"
            raise CNIError(text, INCOMPATIBLE_CNI_VERSION)

    def _probe(self, plugin_type: str, deadline: _Deadline) -> version.PluginInfo:
        path = self._exec.find(plugin_type, self.path)
        return self._exec.probe_version(path, deadline.remaining(plugin_type, "VERSION"))

    def _environ(self, verb: str, rt: RuntimeConf | None) -> dict[str, str]:
        """Return the plugin's environment; GC and STATUS concern no attachment, so its variables are empty then."""
        trace = self._trace() if self._trace else None
        tracing = observer()
        span = tracing.variables() if tracing else {}
        if rt is None:
            return invoke.environment(verb, paths=self.path, trace=trace) | span
        environ = invoke.environment(
            verb,
            container_id=rt.container_id,
            netns=rt.netns,
            ifname=rt.ifname,
            args=";".join(f"{key}={value}" for key, value in rt.args),
            paths=self.path,
            trace=trace,
        )
        return environ | span

    def _cache(self, rt: RuntimeConf) -> ResultCache:
        return ResultCache(self.cache_dir or rt.cache_dir or DEFAULT_FOLDER, self._warn)

    def _remember(self, network: Network, rt: RuntimeConf, result: Result) -> None:
        attachment = Attachment(
            network.name,
            rt.container_id,
            rt.ifname,
            netns=rt.netns,
            config=network.raw,
            args=rt.args,
            capability_args=rt.capability_args,
        )
        try:
            self._cache(rt).store(attachment, result.encode(result.version))
        except _FAILURES as error:
            text = f"failed to set network {quote(network.name)} cached result: "
            raise _structured(error).prefixed(text) from error


def plugin_config(network: Network, plugin: PluginConfig, rt: RuntimeConf, result: Result | None) -> bytes:
    """Return the configuration a plugin gets for an attachment (spec section 3, "Deriving execution configuration").

    Raises CNIError.
    """
    values = _identity(network)
    if result is not None:
        values["prevResult"] = result.encode(result.version)
    enabled = [name for name, is_enabled in plugin.capabilities.items() if is_enabled]
    runtime_config = {name: rt.capability_args[name] for name in enabled if name in rt.capability_args}
    if runtime_config:
        values["runtimeConfig"] = runtime_config
    return inject(plugin, values).raw


def _identity(network: Network) -> dict[str, Any]:
    return {"name": network.name, "cniVersion": network.cni_version}


def _at_least(network: Network, minimum: str) -> bool:
    try:
        return version.at_least(network.cni_version, minimum)
    except ValueError as error:
        raise CNIError(str(error), INVALID_NETWORK_CONFIG) from error


def _speaks_1_1(network: Network) -> bool:
    """Return whether the network's version has GC and STATUS; a version that cannot be parsed has neither."""
    try:
        return version.at_least(network.cni_version, "1.1.0")
    except ValueError:
        return False


def _plugin_failed(plugin: PluginConfig, verb: str, cause: Exception) -> PluginFailed:
    failure = PluginTimedOut if isinstance(cause, DeadlineExceeded) else PluginFailed
    return failure(plugin, verb, cause)


def _structured(error: Exception) -> CNIError:
    return error if isinstance(error, CNIError) else CNIError(str(error))
