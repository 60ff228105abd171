"""The operations on a network: ADD, CHECK, DEL, GC, STATUS and VERSION (spec sections 3 and 4).

Each runs the plugins of a network one after the other, with the configuration each is to get, and keeps the result of
ADD until DEL. A network is a NetworkConfigList or, as before 0.3.0, a PluginConfig alone.
"""

from __future__ import annotations

import os
import sys
import time

from cni._core import observed, observer
from cni.invoke import exec as invoke
from cni.runtime.cache import DEFAULT_FOLDER, Attachment, ResultCache
from cni.runtime.conf import inject
from cni.spec import names, version
from cni.spec.errors import INCOMPATIBLE_CNI_VERSION, INVALID_NETWORK_CONFIG, CNIError, bracketed, joined, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, TypeAlias

    from cni.runtime.conf import NetworkConfigList, PluginConfig
    from cni.spec.result import Result

    Network: TypeAlias = NetworkConfigList | PluginConfig

# What running a plugin may raise; an exec of the caller's own need not raise CNIError alone.
_FAILURES = (CNIError, OSError, ValueError)


class DeadlineExceeded(CNIError):
    """The operation's time-out was used up before all of its plugins had been started."""


class CheckNotSupported(CNIError):
    """The network's version is from before CHECK (0.4.0)."""


class PluginFailed(CNIError):
    """A plugin of a list failed. Code and details are the plugin's; ``cause`` is what it raised."""

    def __init__(self, plugin: PluginConfig, verb: str, cause: Exception) -> None:
        failure = _structured(cause)
        name = f" name={quote(plugin.name)}" if plugin.name else ""
        msg = f"plugin type={quote(plugin.type)}{name} failed ({verb}): {failure.msg}"
        super().__init__(msg, failure.code, failure.details)
        self.plugin = plugin
        self.verb = verb
        self.cause = cause


class RuntimeConf:
    """One attachment as the runtime asks for it.

    ``netns`` is a path, ``args`` the pairs of CNI_ARGS, ``capability_args`` what each capability is given: a plugin
    gets what its configuration has the capability for. ``cache_dir`` counts where the CNI object names none.
    """

    __slots__ = ("args", "cache_dir", "capability_args", "container_id", "ifname", "netns")

    def __init__(
        self,
        container_id: str,
        netns: str,
        ifname: str,
        args: Iterable[tuple[str, str]] = (),
        capability_args: Mapping[str, Any] | None = None,
        cache_dir: str = "",
    ) -> None:
        self.container_id = container_id
        self.netns = netns
        self.ifname = ifname
        self.args = list(args)
        self.capability_args = dict(capability_args or {})
        self.cache_dir = cache_dir


class Exec:
    """How plugins are found and run. Override what is to be done in another way, by a test for example.

    ``at_once`` is how many attachments are deleted side by side, where many are to be; more than 1 takes threads.
    """

    at_once = 1

    def find(self, plugin_type: str, path: Sequence[str]) -> str:
        """The plugin's executable. Raises CNIError."""
        return invoke.find(plugin_type, path)

    def execute(self, path: str, config: bytes, environ: Mapping[str, str], timeout: float | None) -> bytes:
        """Run it for at most ``timeout`` seconds and return what it printed. Raises CNIError."""
        return invoke.execute(path, config, environ, timeout)

    def probe_version(self, path: str, timeout: float | None) -> version.PluginInfo:
        """Ask it which versions it speaks. Raises CNIError."""
        return invoke.probe_version(path, timeout)


class InProcess(Exec):
    """Runs this package's plugins within this process, which saves nearly all of their time, and others as processes.

    The answers are the same, and so is what is kept on disk; but what runs in this process can't be killed when its
    time is up. Attachments that are deleted at the same time have their links deleted as one group.
    """

    at_once = 64

    def __init__(self) -> None:
        from cni.runtime import group_delete

        group_delete.install()

    def execute(self, path: str, config: bytes, environ: Mapping[str, str], timeout: float | None) -> bytes:
        """Run it, if it has to be as a process for at most ``timeout`` seconds. Raises CNIError."""
        return invoke.run(path, config, environ, timeout)

    def probe_version(self, path: str, timeout: float | None) -> version.PluginInfo:
        """Ask it which versions it speaks. Raises CNIError."""
        return invoke.probe_version(path, timeout, invoke.run)


class _Deadline:
    """The time an operation has left, in seconds; its plugins share it."""

    __slots__ = ("_end", "_timeout")

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self, plugin_type: str) -> float | None:
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"plugin {plugin_type} was not started: the {self._timeout:g} s for all are used up")
        return left


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class CNI:
    """Runs the plugins found in the folders ``path`` and remembers their results below ``cache_dir``.

    ``exec`` replaces how plugins are found and run. ``warn`` takes a line about what was passed over, such as a
    cache entry that cannot be read; it goes to stderr by default. ``trace`` gives the W3C trace context of the moment
    (traceparent, tracestate, baggage), for the plugins to see. Without it a TRACEPARENT in the environment is what the
    operations are part of: each is a span, and so is each plugin that it runs (cni/trace.py).

    Every operation takes a ``timeout`` in seconds for the whole of it; a plugin that is running when it ends is
    killed. All raise CNIError: a plugin's own failure keeps its code and details.
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
        self.path = list(path)
        self.cache_dir = cache_dir
        self._exec = exec or Exec()
        self._warn = warn
        self._trace = trace

    def add(self, network: Network, rt: RuntimeConf, timeout: float | None = None) -> Result:
        """Attach the container: run the plugins in order, each with the result of the one before.

        Nothing is undone on failure: the caller is to ``delete`` (spec section 3).
        """
        with self._observed("ADD", network, rt):
            result = self._add_all(network, rt, _Deadline(timeout))
            self._remember(network, rt, result)
            return result

    def check(self, network: Network, rt: RuntimeConf, timeout: float | None = None) -> None:
        """Ask the plugins, in order, whether the attachment is as ADD left it; the first that says no ends it."""
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

        Goes on past failures and raises them as one; the attachment then stays remembered, to be deleted again.
        """
        self._delete(network, rt, _Deadline(timeout))

    def delete_all(self, attachments: Iterable[tuple[Network, RuntimeConf]], timeout: float | None = None) -> None:
        """``delete`` many attachments, as many side by side as the exec allows.

        Goes on past failures and raises them as one; ``timeout`` is for all of them.
        """
        deadline = _Deadline(timeout)
        errors = self._delete_each(list(attachments), deadline)
        if errors:
            raise joined(errors)

    def gc(
        self,
        network: Network,
        valid_attachments: Iterable[tuple[str, str]] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Delete the network's attachments that are not among ``valid_attachments``, pairs of container id and
        interface name, and have the plugins collect theirs. None means that nothing is valid any more.

        Goes on past failures and raises them as one.
        """
        if network.disable_gc:
            return
        deadline = _Deadline(timeout)
        valid = None if valid_attachments is None else [(container, ifname) for container, ifname in valid_attachments]
        try:
            attachments = self.cached_attachments()
        except OSError as error:
            self._warn(f"GC of network {quote(network.name)} does nothing: {error}")
            return
        with self._observed("GC", network):
            errors = self._delete_stale(network, attachments, set(valid or ()), deadline)
            if _speaks_1_1(network):
                errors += self._collect(network, valid, deadline)
            if errors:
                raise joined(errors)

    def status(self, network: Network, timeout: float | None = None) -> None:
        """Ask the plugins, in order, whether they are ready for ADD; raises the first one's refusal, code and all."""
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
        """Look for every plugin and ask it whether it speaks the network's version.

        Returns the names of the capabilities the network has. Raises the failures of all plugins as one.
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
            raise CNIError(bracketed(errors), joined(errors).code)
        return sorted({name for plugin in network.plugins for name, on in plugin.capabilities.items() if on})

    def version_info(self, plugin_type: str, timeout: float | None = None) -> version.PluginInfo:
        """The versions a plugin speaks."""
        return self._probe(plugin_type, _Deadline(timeout))

    def cached_result(self, network: Network, rt: RuntimeConf) -> Result | None:
        """What ADD returned, as of the network's version of now; None where nothing is remembered."""
        return self._cache(rt).result(network.name, rt.container_id, rt.ifname, network.cni_version)

    def cached_config(self, network: Network, rt: RuntimeConf) -> tuple[bytes, RuntimeConf] | None:
        """The configuration that ADD was called with and ``rt`` with its arguments; None where nothing is remembered.

        The remembered capability arguments replace the caller's even where there are none.
        """
        cached = self._cache(rt).attachment(network.name, rt.container_id, rt.ifname)
        if cached is None:
            return None
        args = cached.args or rt.args
        then = RuntimeConf(rt.container_id, rt.netns, rt.ifname, args, cached.capability_args, rt.cache_dir)
        return cached.config, then

    def cached_attachments(self, container_id: str = "") -> list[Attachment]:
        """What is remembered of all attachments, or of one container's. Raises OSError."""
        return ResultCache(self.cache_dir or DEFAULT_FOLDER, self._warn).attachments(container_id)

    def _observed(self, verb: str, network: Network, rt: RuntimeConf | None = None) -> AbstractContextManager[object]:
        """Shows the operation's steps to who asks for it in the environment; within another one it is a step itself."""
        is_wanted = "TRACEPARENT" in os.environ or os.environ.get("CNI_LOG") == "debug"
        if not is_wanted or observer():
            return observed("network", f"network {network.name} {verb}")
        from cni.system.tracing import Trace

        environ = dict(os.environ)
        if self._trace:
            environ.pop("TRACEPARENT", None)  # the caller has spans of his own, which the plugins belong to
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
                raise PluginFailed(plugin, "add", error) from error
        if result is None:
            raise CNIError(f"network {quote(network.name)} has no plugins", INVALID_NETWORK_CONFIG)
        return result

    def _add(
        self, network: Network, plugin: PluginConfig, rt: RuntimeConf, before: Result | None, deadline: _Deadline
    ) -> Result:
        # The names are checked after the look-up, as Go's library does: that is the error its callers expect first.
        path = self._exec.find(plugin.type, self.path)
        names.check_container_id(rt.container_id)
        names.check_network_name(network.name)
        names.check_ifname(rt.ifname)
        config = plugin_config(network, plugin, rt, before)
        output = self._exec.execute(path, config, self._environ("ADD", rt), deadline.remaining(plugin.type))
        return invoke.decode_result(output, network.cni_version)

    def _delete(self, network: Network, rt: RuntimeConf, deadline: _Deadline) -> None:
        with self._observed("DEL", network, rt):
            self._delete_observed(network, rt, deadline)

    def _delete_observed(self, network: Network, rt: RuntimeConf, deadline: _Deadline) -> None:
        """Every plugin gets its DEL: one that fails must not keep the others' addresses and rules (Go stops there)."""
        result = self._result_for_delete(network, rt) if _at_least(network, "0.4.0") else None
        failures: list[Exception] = []
        for plugin in reversed(network.plugins):
            try:
                self._ask("DEL", network, plugin, rt, result, deadline)
            except _FAILURES as error:
                failures.append(error if plugin is network else PluginFailed(plugin, "delete", error))
        if failures:
            raise joined(failures)
        self._cache(rt).remove(network.name, rt.container_id, rt.ifname)

    def _result_for_delete(self, network: Network, rt: RuntimeConf) -> Result | None:
        """The cached result; one that cannot be read must not keep a container from being deleted."""
        try:
            return self.cached_result(network, rt)
        except CNIError as error:
            self._warn(f"DEL goes on without the cached result of network {quote(network.name)}: {error}")
            self._cache(rt).remove(network.name, rt.container_id, rt.ifname)
            return None

    def _delete_stale(
        self, network: Network, attachments: list[Attachment], valid: set[tuple[str, str]], deadline: _Deadline
    ) -> list[CNIError]:
        stale = [
            (network, RuntimeConf(each.container_id, each.netns, each.ifname, each.args, each.capability_args))
            for each in attachments
            if each.network == network.name and (each.container_id, each.ifname) not in valid
        ]
        return [error.prefixed("failed to delete stale attachment ") for error in self._delete_each(stale, deadline)]

    def _delete_each(self, attachments: list[tuple[Network, RuntimeConf]], deadline: _Deadline) -> list[CNIError]:
        """The failures, each beginning with the attachment that it is about."""

        def delete(attachment: tuple[Network, RuntimeConf]) -> CNIError | None:
            network, rt = attachment
            try:
                self._delete(network, rt, deadline)
            except _FAILURES as error:
                return _structured(error).prefixed(f"{rt.container_id} {rt.ifname}: ")
            return None

        if self._exec.at_once == 1 or len(attachments) < 2:
            return list(filter(None, map(delete, attachments)))
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self._exec.at_once) as threads:
            return list(filter(None, threads.map(delete, attachments)))

    def _collect(self, network: Network, valid: list[tuple[str, str]] | None, deadline: _Deadline) -> list[CNIError]:
        """Run GC of every plugin; ``valid`` None sends no list at all."""
        values = _identity(network)
        if valid is not None:
            attachments = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in valid]
            # The second key is what the text of 1.1.0 called it by mistake.
            values |= {"cni.dev/valid-attachments": attachments, "cni.dev/attachments": attachments}
        errors = []
        for plugin in network.plugins:
            doing = f"failed to generate configuration to GC plugin {plugin.type}: "
            try:
                config = inject(plugin, values).raw
                doing = f"failed to GC plugin {plugin.type}: "
                self._execute("GC", plugin, config, None, deadline)
            except _FAILURES as error:
                errors.append(_structured(error).prefixed(doing))
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
        self._exec.execute(path, config, self._environ(verb, rt), deadline.remaining(plugin.type))

    def _validate(self, plugin: PluginConfig, wanted: str, deadline: _Deadline) -> None:
        if wanted not in self._probe(plugin.type, deadline).supported:
            text = f"plugin {plugin.type} does not support config version {quote(wanted)}"
            raise CNIError(text, INCOMPATIBLE_CNI_VERSION)

    def _probe(self, plugin_type: str, deadline: _Deadline) -> version.PluginInfo:
        path = self._exec.find(plugin_type, self.path)
        return self._exec.probe_version(path, deadline.remaining(plugin_type))

    def _environ(self, verb: str, rt: RuntimeConf | None) -> dict[str, str]:
        """The plugin's environment; GC and STATUS are not about an attachment and leave its variables empty."""
        trace = self._trace() if self._trace else None
        told = observer()
        span = told.variables() if told else {}
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
    """The configuration a plugin gets for an attachment (spec section 3, "Deriving execution configuration").

    Raises CNIError.
    """
    values = _identity(network)
    if result is not None:
        values["prevResult"] = result.encode(result.version)
    given = rt.capability_args
    granted = {name: given[name] for name, on in plugin.capabilities.items() if on and name in given}
    if granted:
        values["runtimeConfig"] = granted
    return inject(plugin, values).raw


def _identity(network: Network) -> dict[str, Any]:
    return {"name": network.name, "cniVersion": network.cni_version}


def _at_least(network: Network, minimum: str) -> bool:
    try:
        return version.at_least(network.cni_version, minimum)
    except ValueError as error:
        raise CNIError(str(error), INVALID_NETWORK_CONFIG) from error


def _speaks_1_1(network: Network) -> bool:
    """Whether GC and STATUS may be asked for; a version that cannot be read is none that has them."""
    try:
        return version.at_least(network.cni_version, "1.1.0")
    except ValueError:
        return False


def _structured(error: Exception) -> CNIError:
    return error if isinstance(error, CNIError) else CNIError(str(error))
