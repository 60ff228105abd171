"""The rules for a single network: keys by the plugins' tables, versions, the order of the plugins, capabilities."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache

from cni.explain.catalog import CatalogEntry, plugins
from cni.explain.common_keys import ListConf, together
from cni.invoke import exec as invoke
from cni.node.severity import WARNING
from cni.runtime.conf import FOLDER_EXTENSIONS, PluginConfig, config_files, inject
from cni.spec import gojson, version
from cni.spec.errors import CNIError, ConfigError, quote
from cni.spec.names import check_network_name
from cni.validate.findings import Problem, closest
from cni.validate.keys import Reader
from cni.validate.network import Network, Part, text

_PROBE_TIMEOUT = 5.0  # seconds, for a VERSION call of a plugin that is not in the catalog

# The keys of a list that switch off a verb, and the version that introduced the verb.
_VERB_SWITCHES = {"disableCheck": ("CHECK", "0.4.0"), "disableGC": ("GC", "1.1.0")}
_LISTS_SINCE = "0.3.0"
_LISTS_ONLY_SINCE = "1.0.0"
# Keys that routes had not had from the start.
_ROUTE_KEYS_SINCE = "1.1.0"
_ROUTE_KEYS = ("mtu", "advmss", "priority", "table", "scope")


def check(network: Network, paths: Sequence[str] | None) -> None:
    """Report the problems of a single network. ``paths`` are the folders of CNI_PATH; None looks up no plugin."""
    if not network.is_readable:
        return
    for rule in _RULES:
        rule(network)
    for part in network.executed:
        if part.type and paths is not None:
            _look_up(network, part, paths)
    # These two stop at the first problem and do not know its place, so they are for what the rules have not found.
    for final_check in (_validate_by_plugins, _load):
        if not network.has_errors:
            final_check(network)


# ---- keys and values ----


def _repeated(network: Network) -> None:
    for file, document in network.documents:
        part = next((part for part in network.parts if part.file == file and not part.base), None)
        for path in document.repeated:
            message = "is there more than once; the last one counts"
            network.report(Problem("repeated-key", path, message, WARNING, is_key=True), part)


def _list_keys(network: Network) -> None:
    if not network.is_list:
        if "plugins" in network.value and not text(network.value, "type"):
            message = "a list's file has to be called *.conflist; runtimes take this one for a single plugin's"
            network.report(Problem("extension", "plugins", message, is_key=True))
        return
    elsewhere: dict[str, str] = {}
    if "plugins" not in network.value and "type" in network.value:
        elsewhere = dict.fromkeys(map(gojson.fold, network.value), 'into an object in "plugins"')
    reader = Reader("a list", elsewhere=elsewhere, exact=True)
    for problem in reader.problems(network.value, ListConf):
        network.report(problem)
    if not network.parts:
        network.report(Problem("no-plugins", "plugins", "there is no plugin in the list"))


def _folder(network: Network) -> None:
    if network.is_list and network.folder and not network.loads_folder:
        files = config_files(network.folder, FOLDER_EXTENSIONS)
        if files:
            message = f"so {', '.join(files)} does not belong to the network"
            network.report(Problem("folder", "loadOnlyInlinedPlugins", message, WARNING, is_key=True))


def _name(network: Network) -> None:
    if not network.name:
        network.report(Problem("name", "name", "the network has none"))
        return
    try:
        check_network_name(network.name)
    except CNIError:
        message = f"{quote(network.name)} is not letters, digits, dots, dashes and underscores, a letter or digit first"
        network.report(Problem("name", "name", message))


def _plugin_keys(network: Network) -> None:
    for part in network.executed:
        if not part.type:
            network.report(Problem("type", "type", "there is none, so which plugin this is for cannot be told"), part)
        elif part.entry:
            _check_keys(network, part, part.entry)


def _check_keys(network: Network, part: Part, entry: CatalogEntry) -> None:
    table = together(entry.plugin, part.ipam.plugin if part.ipam else None)
    ipam = None if part.has_foreign_ipam else part.ipam_type
    for problem in Reader(part.type, ipam, _misplaced(part, entry)).problems(part.value, table):
        network.report(problem, part)


def _misplaced(part: Part, entry: CatalogEntry) -> dict[str, str]:
    """Return the paths at which keys are misplaced, each with the place where the key belongs."""
    own = [field.folded for field in entry.plugin.config.fields()]
    places = {f"ipam.{key}": 'beside "ipam"' for key in own}
    if part.ipam:
        of_ipam = next(field for field in part.ipam.plugin.config.fields() if field.folded == "ipam").table
        places |= {field.folded: 'into "ipam"' for field in (of_ipam.fields() if of_ipam else ())}
    if part.base:
        places |= {field.folded: 'beside "plugins"' for field in ListConf.fields() if field.folded not in own}
    return places


# ---- versions ----


def _versions(network: Network) -> None:
    if not network.stated_version and not network.value.get("cniVersions"):
        message = f"there is none, so plugins are asked in {version.OLDEST}, the oldest"
        network.report(Problem("version", "cniVersion", message, WARNING))
    if network.version not in version.ALL:
        likely = closest(network.version, reversed(version.ALL))
        hint = f'"{likely}" is probably meant' if likely else f"there are {', '.join(version.ALL)}"
        message = f"{quote(network.version)} is not a version of the specification; {hint}"
        network.report(Problem("version", "cniVersion", message))
        return
    if network.is_list:
        _verb_switches(network)
    elif version.at_least(network.version, _LISTS_ONLY_SINCE):
        message = (
            f"since {_LISTS_ONLY_SINCE} there are only lists: put the plugin into one, in a file called *.conflist"
        )
        network.report(Problem("version", "cniVersion", message, WARNING))
    for part in network.parts:
        _supported_versions(network, part)
        _overruled(network, part)
        _route_keys(network, part)


def _verb_switches(network: Network) -> None:
    if network.stated_version and not version.at_least(network.version, _LISTS_SINCE):
        message = f"lists came with {_LISTS_SINCE}"
        network.report(Problem("version", "cniVersion", message, WARNING))
    for key, (verb, since) in _VERB_SWITCHES.items():
        if key in network.value and not version.at_least(network.version, since):
            message = f"it is without effect: {verb} came with {since}, and this network is of {network.version}"
            network.report(Problem("version", key, message, WARNING, is_key=True))


def _supported_versions(network: Network, part: Part) -> None:
    for name, path, entry in part.types:
        if entry and network.version not in entry.plugin.versions:
            message = f"{name} does not speak {network.version}, but {', '.join(entry.plugin.versions)}"
            network.report(Problem("version", path, message), part)


def _overruled(network: Network, part: Part) -> None:
    if network.document is None or not network.is_list:
        return
    for key, of_list in (("name", network.name), ("cniVersion", network.stated_version)):
        own = text(part.value, key)
        if own and own != of_list:
            message = f"{quote(own)} is without effect: the list's counts"
            network.report(Problem("overruled", key, message, WARNING, is_key=True), part)


def _route_keys(network: Network, part: Part) -> None:
    routes = gojson.get(part.ipam_section, "routes")
    if version.at_least(network.version, _ROUTE_KEYS_SINCE) or not isinstance(routes, list):
        return
    for number, route in enumerate(routes):
        for key in route if isinstance(route, dict) else ():
            if gojson.fold(key) in _ROUTE_KEYS:
                message = f"routes have it since {_ROUTE_KEYS_SINCE}, and this network is of {network.version}"
                path = f"ipam.routes[{number}].{key}"
                network.report(Problem("version", path, message, WARNING, is_key=True), part)


# ---- the chain ----


def _order(network: Network) -> None:
    maker = ""
    for number, part in enumerate(network.parts):
        message = ""
        if part.place == "chained" and number == 0:
            message = f"{part.type} changes what a plugin before it has made: it cannot be the first"
        elif part.place == "ipam":
            message = f'{part.type} gives out addresses: it belongs into "ipam" of the plugin that makes the interface'
        elif part.place == "interface" and maker:
            message = f"{part.type} makes the container's interface, and {maker} before it has already made it"
        elif part.place == "interface":
            maker = part.type
        if message:
            network.report(Problem("order", "type", message), part)
        if part.ipam and part.ipam.plugin.place not in ("ipam", ""):
            network.report(Problem("order", "ipam.type", f"{part.ipam_type} gives out no addresses"), part)


def _capabilities(network: Network) -> None:
    for part in network.parts:
        takes = part.takes
        for name in part.granted if takes is not None else ():
            if takes is not None and name not in takes:
                network.report(_lost(network, part, name, list(takes)), part)


def _lost(network: Network, part: Part, name: str, takes: list[str]) -> Problem:
    path, message = f"capabilities.{name}", f"{part.type} takes nothing of this name"
    others = [other.type for other in network.parts if name in (other.takes or ())]
    if others:
        return Problem("capability", path, f"{message}; {' and '.join(others)} would", WARNING, is_key=True)
    if likely := closest(name, takes):
        return Problem("capability", path, f'{message}; "{likely}" is probably meant', is_key=True)
    return Problem("capability", path, f"{message}, nor does another plugin of the list", WARNING, is_key=True)


_RULES: tuple[Callable[[Network], None], ...] = (
    _repeated,
    _list_keys,
    _folder,
    _name,
    _versions,
    _plugin_keys,
    _order,
    _capabilities,
)


# ---- CNI_PATH ----


def _look_up(network: Network, part: Part, paths: Sequence[str]) -> None:
    for name, path, entry in part.types:
        try:
            executable = invoke.find(name, paths)
        except CNIError:
            network.report(Problem("missing-plugin", path, _missing(name, paths)), part)
            continue
        if not os.access(executable, os.X_OK):
            network.report(Problem("missing-plugin", path, f"{executable} is not executable"), part)
        elif not entry and network.version in version.ALL:
            _probe(network, part, path, executable)


def _missing(name: str, paths: Sequence[str]) -> str:
    message = f"there is no plugin {quote(name)} in CNI_PATH ({os.pathsep.join(paths)})"
    present = [file for folder in paths if os.path.isdir(folder) for file in os.listdir(folder)]
    likely = closest(name, [*present, *plugins()[0]])
    if likely == name:
        return f"{message}; `cni install` puts it there"
    return f'{message}; "{likely}" is probably meant' if likely else message


def _probe(network: Network, part: Part, path: str, executable: str) -> None:
    """Check the version by a VERSION call of a plugin that is not in the catalog."""
    try:
        supported = _versions_of(executable)
    except CNIError as error:
        network.report(Problem("missing-plugin", path, f"{executable} does not answer to VERSION: {error}"), part)
        return
    if network.version not in supported:
        message = f"{os.path.basename(executable)} does not speak {network.version}, but {', '.join(supported)}"
        network.report(Problem("version", path, message), part)


@cache
def _versions_of(executable: str) -> tuple[str, ...]:
    return invoke.probe_version(executable, _PROBE_TIMEOUT).supported


# ---- by the code that will use it ----


def _validate_by_plugins(network: Network) -> None:
    for part in network.parts:
        for _, path, entry in part.types:
            if entry and entry.plugin.validate:
                _validate(network, part, entry, "ipam" if path == "ipam.type" else path)


def _validate(network: Network, part: Part, entry: CatalogEntry, path: str) -> None:
    environ = invoke.environment("ADD", container_id="validate", ifname="eth0")
    try:
        plain = PluginConfig.from_bytes(gojson.dumps(part.value).encode())
        config = inject(plain, {"name": network.name, "cniVersion": network.version}).raw
        with entry.plugin.request(environ, config, lambda _: None) as request:
            warnings = entry.plugin.validate(request) if entry.plugin.validate else ()
    except ConfigError as error:
        network.report(Problem("plugin", error.path, f"{entry.name} refuses this: {error.problem}"), part)
    except (CNIError, OSError) as error:
        network.report(Problem("plugin", path, f"{entry.name} refuses this: {error}"), part)
    else:
        for message in warnings or ():
            network.report(Problem("plugin", path, message, WARNING), part)


def _load(network: Network) -> None:
    try:
        network.load()
    except CNIError as error:
        network.report(Problem("refused", "", f"runtimes refuse this: {error}"))
