"""The rules for one network: its keys by the plugins' tables, its versions, the order of its plugins, capabilities."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache

from cni.explain.known import Known, plugins
from cni.explain.tables import ListConf, together
from cni.invoke import exec as invoke
from cni.node.severity import WARNING
from cni.runtime.conf import FOLDER_EXTENSIONS, PluginConfig, config_files, inject
from cni.spec import gojson, version
from cni.spec.errors import CNIError, ConfigError, quote
from cni.spec.names import check_network_name
from cni.validate.findings import Problem, meant
from cni.validate.keys import Reader
from cni.validate.network import Network, Part, text

_PROBE = 5.0  # seconds that a stranger's plugin may take to tell its versions

# Keys of a list that are about a verb, and the version that the verb came with.
_OF_VERBS = {"disableCheck": ("CHECK", "0.4.0"), "disableGC": ("GC", "1.1.0")}
_LISTS_SINCE = "0.3.0"
_ALONE_UNTIL = "1.0.0"
# Keys of routes that came later than routes.
_ROUTE_KEYS_SINCE = "1.1.0"
_ROUTE_KEYS = ("mtu", "advmss", "priority", "table", "scope")


def check(network: Network, paths: Sequence[str] | None) -> None:
    """Report all that is wrong with a network by itself; ``paths`` are CNI_PATH's folders, None not to look there."""
    if not network.is_readable:
        return
    for rule in _RULES:
        rule(network)
    for part in network.asked:
        if part.type and paths is not None:
            _find(network, part, paths)
    # What follows stops at the first fault that it meets, and knows no places: it is for what has not been found.
    for judge in (_ask_plugins, _load):
        if not network.has_errors:
            judge(network)


# ---- keys and values ----


def _repeated(network: Network) -> None:
    for file, document in network.documents:
        part = next((part for part in network.parts if part.file == file and not part.base), None)
        for path in document.repeated:
            words = "is there more than once; the last one counts"
            network.report(Problem("repeated-key", path, words, WARNING, is_key=True), part)


def _list_keys(network: Network) -> None:
    if not network.is_list:
        if "plugins" in network.value and not text(network.value, "type"):
            words = "a list's file has to be called *.conflist; runtimes take this one for a single plugin's"
            network.report(Problem("extension", "plugins", words, is_key=True))
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
            words = f"so {', '.join(files)} does not belong to the network"
            network.report(Problem("folder", "loadOnlyInlinedPlugins", words, WARNING, is_key=True))


def _name(network: Network) -> None:
    if not network.name:
        network.report(Problem("name", "name", "the network has none"))
        return
    try:
        check_network_name(network.name)
    except CNIError:
        words = f"{quote(network.name)} is not letters, digits, dots, dashes and underscores, a letter or digit first"
        network.report(Problem("name", "name", words))


def _plugin_keys(network: Network) -> None:
    for part in network.asked:
        if not part.type:
            network.report(Problem("type", "type", "there is none, so which plugin this is for cannot be told"), part)
        elif part.known:
            _keys_of(network, part, part.known)


def _keys_of(network: Network, part: Part, known: Known) -> None:
    table = together(known.plugin, part.ipam.plugin if part.ipam else None)
    ipam = None if part.has_strange_ipam else part.ipam_type
    for problem in Reader(part.type, ipam, _misplaced(part, known)).problems(part.value, table):
        network.report(problem, part)


def _misplaced(part: Part, known: Known) -> dict[str, str]:
    """Where keys belong that stand at the level of others, by where they stand."""
    own = [field.folded for field in known.plugin.config.fields()]
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
        words = f"there is none, so plugins are asked in {version.OLDEST}, the oldest"
        network.report(Problem("version", "cniVersion", words, WARNING))
    if network.version not in version.ALL:
        likely = meant(network.version, reversed(version.ALL))
        words = f'"{likely}" is probably meant' if likely else f"there are {', '.join(version.ALL)}"
        words = f"{quote(network.version)} is no version of the specification; {words}"
        network.report(Problem("version", "cniVersion", words))
        return
    if network.is_list:
        _keys_of_verbs(network)
    elif version.at_least(network.version, _ALONE_UNTIL):
        words = f"from {_ALONE_UNTIL} on there are lists alone: put the plugin into one, in a file called *.conflist"
        network.report(Problem("version", "cniVersion", words, WARNING))
    for part in network.parts:
        _spoken(network, part)
        _overruled(network, part)
        _route_keys(network, part)


def _keys_of_verbs(network: Network) -> None:
    if network.stated_version and not version.at_least(network.version, _LISTS_SINCE):
        words = f"lists came with {_LISTS_SINCE}"
        network.report(Problem("version", "cniVersion", words, WARNING))
    for key, (verb, since) in _OF_VERBS.items():
        if key in network.value and not version.at_least(network.version, since):
            words = f"it is without effect: {verb} came with {since}, and this network is of {network.version}"
            network.report(Problem("version", key, words, WARNING, is_key=True))


def _spoken(network: Network, part: Part) -> None:
    for name, path, known in part.types:
        if known and network.version not in known.plugin.versions:
            words = f"{name} does not speak {network.version}, but {', '.join(known.plugin.versions)}"
            network.report(Problem("version", path, words), part)


def _overruled(network: Network, part: Part) -> None:
    if network.document is None or not network.is_list:
        return
    for key, of_list in (("name", network.name), ("cniVersion", network.stated_version)):
        own = text(part.value, key)
        if own and own != of_list:
            words = f"{quote(own)} is without effect: the list's counts"
            network.report(Problem("overruled", key, words, WARNING, is_key=True), part)


def _route_keys(network: Network, part: Part) -> None:
    routes = gojson.get(part.ipam_section, "routes")
    if version.at_least(network.version, _ROUTE_KEYS_SINCE) or not isinstance(routes, list):
        return
    for number, route in enumerate(routes):
        for key in route if isinstance(route, dict) else ():
            if gojson.fold(key) in _ROUTE_KEYS:
                words = f"routes have it since {_ROUTE_KEYS_SINCE}, and this network is of {network.version}"
                path = f"ipam.routes[{number}].{key}"
                network.report(Problem("version", path, words, WARNING, is_key=True), part)


# ---- the chain ----


def _order(network: Network) -> None:
    maker = ""
    for number, part in enumerate(network.parts):
        words = ""
        if part.place == "chained" and number == 0:
            words = f"{part.type} changes what a plugin before it has made: it cannot be the first"
        elif part.place == "ipam":
            words = f'{part.type} gives out addresses: it belongs into "ipam" of the plugin that makes the interface'
        elif part.place == "interface" and maker:
            words = f"{part.type} makes the container's interface, and {maker} before it has already made it"
        elif part.place == "interface":
            maker = part.type
        if words:
            network.report(Problem("order", "type", words), part)
        if part.ipam and part.ipam.plugin.place not in ("ipam", ""):
            network.report(Problem("order", "ipam.type", f"{part.ipam_type} gives out no addresses"), part)


def _capabilities(network: Network) -> None:
    for part in network.parts:
        takes = part.takes
        for name in part.granted if takes is not None else ():
            if takes is not None and name not in takes:
                network.report(_lost(network, part, name, list(takes)), part)


def _lost(network: Network, part: Part, name: str, takes: list[str]) -> Problem:
    path, words = f"capabilities.{name}", f"{part.type} takes nothing of this name"
    others = [other.type for other in network.parts if name in (other.takes or ())]
    if others:
        return Problem("capability", path, f"{words}; {' and '.join(others)} would", WARNING, is_key=True)
    if likely := meant(name, takes):
        return Problem("capability", path, f'{words}; "{likely}" is probably meant', is_key=True)
    return Problem("capability", path, f"{words}, nor does another plugin of the list", WARNING, is_key=True)


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


def _find(network: Network, part: Part, paths: Sequence[str]) -> None:
    for name, path, known in part.types:
        try:
            found = invoke.find(name, paths)
        except CNIError:
            network.report(Problem("missing-plugin", path, _missing(name, paths)), part)
            continue
        if not os.access(found, os.X_OK):
            network.report(Problem("missing-plugin", path, f"{found} is not executable"), part)
        elif not known and network.version in version.ALL:
            _probe(network, part, path, found)


def _missing(name: str, paths: Sequence[str]) -> str:
    words = f"there is no plugin {quote(name)} in CNI_PATH ({os.pathsep.join(paths)})"
    there = [file for folder in paths if os.path.isdir(folder) for file in os.listdir(folder)]
    likely = meant(name, [*there, *plugins()[0]])
    if likely == name:
        return f"{words}; `cni install` puts it there"
    return f'{words}; "{likely}" is probably meant' if likely else words


def _probe(network: Network, part: Part, path: str, executable: str) -> None:
    """A plugin whose table is not here is asked itself which versions it speaks."""
    try:
        speaks = _versions_of(executable)
    except CNIError as error:
        network.report(Problem("missing-plugin", path, f"{executable} does not tell its versions: {error}"), part)
        return
    if network.version not in speaks:
        words = f"{os.path.basename(executable)} does not speak {network.version}, but {', '.join(speaks)}"
        network.report(Problem("version", path, words), part)


@cache
def _versions_of(executable: str) -> tuple[str, ...]:
    return invoke.probe_version(executable, _PROBE).supported


# ---- as it will be used ----


def _ask_plugins(network: Network) -> None:
    for part in network.parts:
        for _, path, known in part.types:
            if known and known.plugin.validate:
                _ask(network, part, known, "ipam" if path == "ipam.type" else path)


def _ask(network: Network, part: Part, known: Known, path: str) -> None:
    environ = invoke.environment("ADD", container_id="validate", ifname="eth0")
    try:
        plain = PluginConfig.from_bytes(gojson.dumps(part.value).encode())
        config = inject(plain, {"name": network.name, "cniVersion": network.version}).raw
        with known.plugin.request(environ, config, lambda _: None) as request:
            warnings = known.plugin.validate(request) if known.plugin.validate else ()
    except ConfigError as error:
        network.report(Problem("plugin", error.path, f"{known.name} refuses this: {error.problem}"), part)
    except (CNIError, OSError) as error:
        network.report(Problem("plugin", path, f"{known.name} refuses this: {error}"), part)
    else:
        for words in warnings or ():
            network.report(Problem("plugin", path, words, WARNING), part)


def _load(network: Network) -> None:
    try:
        network.load()
    except CNIError as error:
        network.report(Problem("refused", "", f"runtimes refuse this: {error}"))
