"""Delegation: have another plugin serve a verb, such as the IPAM plugin of a configuration."""

from __future__ import annotations

from cni._core import observed
from cni.invoke.exec import PATH_SEPARATOR, decode_object, decode_result, execute, find, own_plugin
from cni.spec import version
from cni.system.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, overload

    from cni.skel.plugin import Plugin
    from cni.skel.request import Request
    from cni.spec.result import Result

if TYPE_CHECKING:

    @overload
    def delegate(
        verb: Literal["ADD"], plugin_type: str, request: Request, *, config: bytes | None = None
    ) -> Result: ...
    @overload
    def delegate(verb: str, plugin_type: str, request: Request, *, config: bytes | None = None) -> Result | None: ...


def delegate(verb: str, plugin_type: str, request: Request, *, config: bytes | None = None) -> Result | None:
    """Have the plugin `plugin_type` serve `verb`: same environment, same stdin unless `config` is given.

    Returns the delegate's Result for ADD, None for other verbs. An ADD whose result can't be read is rolled back.
    Raises the delegate's own CNIError, unchanged.
    """
    path = find(plugin_type, request.path.split(PATH_SEPARATOR) if request.path else [])
    stdin = request.stdin if config is None else config
    environ = {**request.environ, "CNI_COMMAND": verb}
    plugin = own_plugin(path)
    if plugin:
        with observed("plugin", f"{plugin_type} {verb}"):
            return _serve(plugin, environ, stdin, request)
    output = execute(path, stdin, environ, log=request.log, netns=request.host)
    if verb != "ADD":
        return None
    with Undo(request.log) as undo:
        undo.push(delegate, "DEL", plugin_type, request, config=config)
        config_version = request.version if config is None else version.of_config(decode_object(config))
        return decode_result(output, config_version)


def _serve(plugin: Plugin[Any], environ: dict[str, str], stdin: bytes, request: Request) -> Result | None:
    logged: list[str] = []
    outcome = plugin.serve(environ, lambda: stdin, logged.append, request.host, request)
    if outcome.error:
        raise outcome.error
    for text in logged:  # of a call that fails, only the error is kept, as with a process
        request.log(text)
    return outcome.result
