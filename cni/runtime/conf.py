"""Network configurations as a runtime reads them: a list of plugins, or a single plugin (spec section 4).

Messages are those of the Go library, so that programs which search logs keep working; the file that a message is about
is in the error's details.
"""

from __future__ import annotations

import os

from cni.spec import gojson, version
from cni.spec.errors import DECODING_FAILURE, INVALID_NETWORK_CONFIG, IO_FAILURE, CNIError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

DEFAULT_CONF_DIR = "/etc/cni/net.d"
DEFAULT_PLUGIN_DIR = "/opt/cni/bin"

LIST_EXTENSIONS = (".conflist",)
SINGLE_EXTENSIONS = (".conf", ".json")
FOLDER_EXTENSIONS = (".conf",)


def conf_dir() -> str:
    """Return the folder of network configurations: NETCONFPATH, or the default."""
    return os.environ.get("NETCONFPATH") or DEFAULT_CONF_DIR


def plugin_path() -> list[str]:
    """Return the folders of plugins: those of CNI_PATH, or the default."""
    return (os.environ.get("CNI_PATH") or DEFAULT_PLUGIN_DIR).split(os.pathsep)


class NoConfigsFound(CNIError):
    """The folder contains no configuration at all."""

    def __init__(self, folder: str) -> None:
        super().__init__(f"no net configurations found in {folder}", INVALID_NETWORK_CONFIG)
        self.folder = folder


class NotFound(CNIError):
    """The folder contains configurations, but none of this network."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(f'no net configuration with name "{name}" in {folder}', INVALID_NETWORK_CONFIG)
        self.folder = folder
        self.name = name


class PluginConfig:
    """One plugin's configuration: the keys that a runtime needs, and the text from which the plugin's is derived.

    `raw` is the JSON object as loaded; `capabilities` maps a capability's name to whether it is enabled.
    """

    __slots__ = ("capabilities", "cni_version", "name", "raw", "type")

    def __init__(
        self,
        raw: bytes,
        type: str,
        name: str = "",
        cni_version: str = "",
        capabilities: Mapping[str, bool] | None = None,
    ) -> None:
        self.raw = raw
        self.type = type
        self.name = name
        self.cni_version = cni_version
        self.capabilities = dict(capabilities or {})

    def __repr__(self) -> str:
        network = f" of network {self.name!r}" if self.name else ""
        return f"<PluginConfig {self.type!r}{network}{_of_version(self.cni_version)}>"

    @classmethod
    def from_bytes(cls, data: bytes) -> PluginConfig:
        """Read one plugin's JSON object. Raises CNIError `error parsing configuration: ...`."""
        try:
            obj = gojson.loads(data)
            fields = gojson.Fields({} if obj is None else obj, "")
            plugin = cls(
                data,
                fields.get("type", gojson.text, ""),
                fields.get("name", gojson.text, ""),
                fields.get("cniVersion", gojson.text, ""),
                fields.get("capabilities", _capabilities, {}),
            )
            fields.get("ipam", _ipam, None)
            fields.get("dns", gojson.table, None)
            fields.get("prevResult", gojson.table, None)
        except (ValueError, CNIError) as error:
            raise CNIError(f"error parsing configuration: {error}", DECODING_FAILURE) from error
        if not plugin.type:
            raise CNIError("error parsing configuration: missing 'type'", INVALID_NETWORK_CONFIG)
        return plugin

    @classmethod
    def from_file(cls, path: str) -> PluginConfig:
        """Read a file with one plugin's JSON object (`.conf`, `.json`). Raises CNIError."""
        data = _read(path)
        try:
            return cls.from_bytes(data)
        except CNIError as error:
            raise _in_file(path, error) from error

    # A single configuration is the list of its one plugin: the operations need no more of a network than these.
    disable_check = False
    disable_gc = False

    @property
    def plugins(self) -> Sequence[PluginConfig]:
        """The plugin itself, as the only one of its network."""
        return (self,)


class NetworkConfigList:
    """A network: its name, the version in which its plugins are called, and the plugins in the order of ADD.

    `raw` is the text as loaded, unchanged: it is stored in the result cache.
    """

    __slots__ = ("cni_version", "disable_check", "disable_gc", "load_only_inlined_plugins", "name", "plugins", "raw")

    def __init__(
        self,
        raw: bytes,
        name: str,
        cni_version: str = "",
        plugins: Sequence[PluginConfig] = (),
        *,
        disable_check: bool = False,
        disable_gc: bool = False,
        load_only_inlined_plugins: bool = False,
    ) -> None:
        self.raw = raw
        self.name = name
        self.cni_version = cni_version
        self.plugins: Sequence[PluginConfig] = list(plugins)
        self.disable_check = disable_check
        self.disable_gc = disable_gc
        self.load_only_inlined_plugins = load_only_inlined_plugins

    def __repr__(self) -> str:
        types = ", ".join(plugin.type for plugin in self.plugins)
        return f"<NetworkConfigList {self.name!r}{_of_version(self.cni_version)}: {types or 'no plugins'}>"

    @classmethod
    def from_bytes(cls, data: bytes) -> NetworkConfigList:
        """Read a network's JSON object; without plugins, they are expected in the sibling folder (`from_file`).

        Raises CNIError `error parsing configuration list: ...` or `failed to parse plugin config I: ...`.
        """
        try:
            network, elements = cls._head(data)
        except (ValueError, CNIError) as error:
            raise CNIError(f"error parsing configuration list: {error}", DECODING_FAILURE) from error
        network.plugins = [_inlined(index, element) for index, element in enumerate(elements)]
        return network

    @classmethod
    def from_file(cls, path: str) -> NetworkConfigList:
        """Read a `.conflist` file and, unless it sets loadOnlyInlinedPlugins, the `.conf` files of the folder beside it
        that has the network's name. Raises CNIError.
        """
        data = _read(path)
        try:
            network = cls.from_bytes(data)
        except CNIError as error:
            raise _in_file(path, error) from error
        if not network.load_only_inlined_plugins:
            network.plugins = [*network.plugins, *_folder_plugins(os.path.dirname(path), network.name)]
        if not network.plugins:
            raise CNIError("no plugin configs found", INVALID_NETWORK_CONFIG, f"in {path}")
        return network

    @classmethod
    def from_plugin(cls, plugin: PluginConfig) -> NetworkConfigList:
        """Convert a single configuration to a list; keys of lists in it, such as disableCheck, have no effect."""
        obj = {"name": plugin.name, "cniVersion": plugin.cni_version, "plugins": [gojson.loads(plugin.raw)]}
        return cls.from_bytes(_canonical(obj))

    @classmethod
    def _head(cls, data: bytes) -> tuple[NetworkConfigList, list[Any]]:
        obj = gojson.loads(data)
        obj = {} if obj is None else gojson.table(obj, "")
        if "name" not in obj:
            raise ValueError("no name")
        if not isinstance(obj["name"], str):
            raise ValueError(f"invalid name type {_go_type(obj['name'])}")
        network = cls(
            data,
            obj["name"],
            _choose_version(obj),
            disable_check=_flag(obj, "disableCheck"),
            disable_gc=_flag(obj, "disableGC"),
            load_only_inlined_plugins=_flag(obj, "loadOnlyInlinedPlugins"),
        )
        if "plugins" in obj:
            return network, _elements(obj["plugins"])
        if network.load_only_inlined_plugins:
            raise ValueError("`loadOnlyInlinedPlugins` is true, and no 'plugins' key")
        return network, []


def load_network_list(folder: str, name: str) -> NetworkConfigList:
    """Load a network by name from a folder: first from the `.conflist` files, then from single configurations.

    A file that cannot be read ends the search, since it may be the network's. Raises NoConfigsFound, NotFound,
    CNIError.
    """
    lists = config_files(folder, LIST_EXTENSIONS)
    for path in lists:
        network = NetworkConfigList.from_file(path)
        if network.name == name:
            return network
    try:
        return NetworkConfigList.from_plugin(load_plugin(folder, name))
    except NoConfigsFound:
        if not lists:
            raise
        raise NotFound(folder, name) from None


def load_networks(folder: str, warn: Callable[[str], object]) -> list[NetworkConfigList]:
    """Load every network that is configured in a folder. A file that cannot be read is left out with a warning.

    Of several networks with one name the first is kept, in the order in which load_network_list() searches. Raises
    CNIError if the folder cannot be read.
    """
    networks: dict[str, NetworkConfigList] = {}
    for path in [*config_files(folder, LIST_EXTENSIONS), *config_files(folder, SINGLE_EXTENSIONS)]:
        try:
            network = _load_file(path)
        except CNIError as error:
            warn(f"{path} is left out: {error.msg}")
            continue
        networks.setdefault(network.name, network)
    return list(networks.values())


def _load_file(path: str) -> NetworkConfigList:
    if path.endswith(LIST_EXTENSIONS):
        return NetworkConfigList.from_file(path)
    return NetworkConfigList.from_plugin(PluginConfig.from_file(path))


def load_plugin(folder: str, name: str) -> PluginConfig:
    """Load a single configuration (`.conf`, `.json`) by name. Raises NoConfigsFound, NotFound, CNIError."""
    paths = config_files(folder, SINGLE_EXTENSIONS)
    if not paths:
        raise NoConfigsFound(folder)
    for path in paths:
        plugin = PluginConfig.from_file(path)
        if plugin.name == name:
            return plugin
    raise NotFound(folder, name)


def config_files(folder: str, extensions: Sequence[str]) -> list[str]:
    """Return the paths of a folder's files with these extensions, ordered by the bytes of their names.

    A missing folder has none. Subfolders are ignored (links to folders are not). Raises CNIError if the folder exists
    but cannot be read.
    """
    if isinstance(extensions, str):
        raise TypeError(f'extensions must be a list, not a string: did you mean ["{extensions}"]?')
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CNIError(f"cannot list {folder}: {error.strerror}", IO_FAILURE) from error
    matching = [name for name in names if name[name.rfind(".") :] in extensions and "." in name]
    return [os.path.join(folder, name) for name in sorted(matching, key=os.fsencode)]


def inject(plugin: PluginConfig, values: Mapping[str, Any]) -> PluginConfig:
    """Return a copy of the configuration in which these top-level keys are set.

    Keys are sorted, so that of `cniVersion` and a user's `CNIVersion` a case-insensitive decoder takes ours.
    Raises CNIError for an empty key, a None value or a configuration that is not a JSON object.
    """
    try:
        obj = gojson.table(gojson.loads(plugin.raw), "")
    except (ValueError, CNIError) as error:
        raise CNIError(f"unmarshal existing network bytes: {error}", DECODING_FAILURE) from error
    for key, value in values.items():
        if not key:
            raise CNIError("keys cannot be empty", INVALID_NETWORK_CONFIG)
        if value is None:
            raise CNIError(f"key '{key}' value must not be nil", INVALID_NETWORK_CONFIG)
        obj[key] = value
    return PluginConfig.from_bytes(_canonical(obj))


_GO_TYPES = {
    type(None): "<nil>",
    bool: "bool",
    int: "float64",
    float: "float64",
    str: "string",
    list: "[]interface {}",
    dict: "map[string]interface {}",
}


def _of_version(text: str) -> str:
    return f" {text}" if text else ""


def _go_type(value: object) -> str:
    return _GO_TYPES[type(value)]


def _capabilities(value: Any, path: str) -> dict[str, bool]:
    enabled = gojson.table(value, path)
    return {name: flag is not None and gojson.flag(flag, f"{path}.{name}") for name, flag in enabled.items()}


def _ipam(value: Any, path: str) -> None:
    gojson.Fields(value, path).get("type", gojson.text, "")


def _flag(obj: dict[str, Any], key: str) -> bool:
    value = obj.get(key, False)
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError(f"invalid type {_go_type(value)} for {key}")
    text = value.lower()
    if text not in ("true", "false"):
        raise ValueError(f"invalid value {quote(text)} for {key}")
    return text == "true"


def _choose_version(obj: dict[str, Any]) -> str:
    """Return the version in which plugins are called: the newest of cniVersion and cniVersions that we support.

    Without cniVersions the text of cniVersion is taken unchanged: plugins refuse a version that they do not support.
    """
    stated = obj.get("cniVersion", "")
    if not isinstance(stated, str):
        raise ValueError(f"invalid cniVersion type {_go_type(stated)}")
    if "cniVersions" not in obj:
        return stated
    offered = obj["cniVersions"]
    if not isinstance(offered, list):
        raise ValueError("invalid type for cniVersions: []interface {}")
    supported = [entry for index, entry in enumerate(offered) if _is_supported(entry, index)]
    if stated and _not_newer(stated, f"invalid cniVersion {stated}"):
        supported.append(stated)
    return max(supported, key=version.parse, default=stated)


def _is_supported(entry: object, index: int) -> bool:
    if not isinstance(entry, str):
        raise ValueError(f"invalid type for cniVersions index {index}: {_go_type(entry)}")
    return _not_newer(entry, f"invalid cniVersions entry {entry} at index {index}")


def _not_newer(text: str, complaint: str) -> bool:
    try:
        return not version.greater(text, version.CURRENT)
    except ValueError as error:
        raise ValueError(f"{complaint}: {error}") from error


def _elements(plugins: object) -> list[Any]:
    if not isinstance(plugins, list):
        raise ValueError(f"invalid 'plugins' type {_go_type(plugins)}")
    if not plugins:
        raise ValueError("no plugins in list")
    return plugins


def _inlined(index: int, element: object) -> PluginConfig:
    try:
        return PluginConfig.from_bytes(_canonical(element))
    except CNIError as error:
        raise error.prefixed(f"failed to parse plugin config {index}: ") from error


def _folder_plugins(folder: str, name: str) -> list[PluginConfig]:
    """Read the plugins of the folder with the network's name. A name that would lead elsewhere has no folder."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        return []
    path = os.path.join(folder, name)
    try:
        files = config_files(path, FOLDER_EXTENSIONS)
    except CNIError as error:
        raise error.prefixed(f"failed to read plugin config files in {path}: ") from error
    return [PluginConfig.from_file(file) for file in files]


def _canonical(obj: object) -> bytes:
    return gojson.dumps(obj, sort_keys=True).encode()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CNIError(f"error reading {path}: {error.strerror}", IO_FAILURE) from error


def _in_file(path: str, error: CNIError) -> CNIError:
    return CNIError(error.msg, error.code, f"in {path}")
