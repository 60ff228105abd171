"""flannel: configures another plugin with the node's subnets, and delegates to it.

flanneld gives each node its part of the cluster's networks and writes it to subnet.env. ADD combines that with
`delegate` and `ipam` to the configuration of the delegate, the plugin that does the work: by default bridge with
host-local. It saves the configuration, so that DEL and CHECK call the same plugin with the same one, even if subnet.env
has changed.

The file is DATADIR/CONTAINER, where Go's plugin looks for it too. That name has room for one attachment of a container
only, the last; so each attachment also has a file of its own, DATADIR/CONTAINER:IFNAME, which is read first.
"""

from __future__ import annotations

import posix

from cni.skel.config import Config, Object, Text
from cni.skel.delegation import delegate
from cni.skel.plugin import Plugin
from cni.spec import gojson
from cni.spec.errors import IO_FAILURE, PLUGIN_NOT_AVAILABLE, UNKNOWN, CNIError
from cni.spec.ip import CIDR
from cni.spec.result import Route
from cni.system import files
from cni.system.undo import Undo, do_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Concatenate, ParamSpec, TypeVar

    from cni.netfilter.ruleset import Ruleset
    from cni.skel.request import Request
    from cni.spec.result import Result

    P = ParamSpec("P")
    T = TypeVar("T")

_MAX_MTU = (1 << 32) - 1  # of Go's plugin
_SEPARATOR = ":"  # neither in a container's id nor in an interface's name


class Conf(Config):
    """The configuration of flannel."""

    # The base class has this key in the form that interface plugins read.
    ipam = Object(  # type: ignore[assignment]
        "the delegate's section ipam; the node's subnets become its ranges, and the cluster's networks are added to its"
        " routes. The default type is host-local"
    )
    subnetFile = Text("/run/flannel/subnet.env", "file in which flanneld describes the node's subnets")
    dataDir = Text("/var/lib/cni/flannel", "folder for the delegate's configuration from ADD to DEL")
    delegate = Object(
        "further keys for the delegate's configuration. The default type is bridge; ipMasq, mtu and, for bridge,"
        " isGateway override the values derived from subnet.env; name and ipam are not allowed, since flannel sets them"
    )
    runtimeConfig = Object("the values of capabilities, for the delegate")


def add(request: Request[Conf]) -> Result:
    """Delegate ADD, with the configuration saved first. If the delegate fails, restore the files as they were."""
    conf = request.config
    config = delegate_config(conf, read_node(conf))
    text = _text(config)
    if request.environ.get("CNI_LOG") == "debug":
        request.log(f"flannel delegates ADD to {config['type']}: {text.decode()}")
    with Undo(request.log) as undo:
        _save(request, text, undo)
        try:
            return delegate("ADD", config["type"], request, config=text)
        except CNIError as error:
            if error.code == UNKNOWN:
                undo.forget()  # the delegate died, and DEL must clean up what it left
            raise error.prefixed("failed to delegate add: ") from error


def delete(request: Request[Conf]) -> None:
    """Delegate DEL, then remove the files: if the delegate fails, DEL can be repeated."""
    text = _load(request)
    if text is None:
        return
    try:
        config = _parse(text, request)
    except CNIError as error:
        request.log(f"flannel cannot delegate DEL: {error}")
        return
    _delegate("DEL", config["type"], request, text)
    _remove(request, text)


def check(request: Request[Conf]) -> None:
    """Delegate CHECK, with the saved configuration."""
    conf = request.config
    text = _load(request)
    if text is None:
        raise CNIError(f"the container has no attachment: there is neither {' nor '.join(_paths(request))}")
    previous = {"cniVersion": conf.cniVersion, "prevResult": gojson.get(conf.raw, "prevResult")}
    config = {**_parse(text, request), **previous}
    _delegate("CHECK", config["type"], request, _text(config))


def gc(request: Request[Conf]) -> None:
    """Delegate GC, and remove the files of stale attachments."""
    do_all([lambda: _delegate_gc(request), lambda: _remove_stale_files(request)])


def status(request: Request[Conf]) -> None:
    """Raise CNIError if subnet.env is not complete, or the delegate is not ready."""
    conf = request.config
    try:
        node = read_node(conf)
    except CNIError as error:
        raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE) from error
    config = delegate_config(conf, node)
    _delegate("STATUS", config["type"], request, _text(config))


def rules(request: Request[Conf], ruleset: Ruleset) -> None:
    """Describe the delegate's rules for the attachment in iptables and nftables."""
    from cni.invoke import registry  # only tools call this, no runtime

    text = _load(request)
    config = _parse(text, request) if text else {}
    plugin = registry.installed(config["type"]) if config else None
    if plugin and plugin.rules:
        config["prevResult"] = gojson.get(request.config.raw, "prevResult")
        with plugin.request(request.environ, _text(config), request.log, request.host) as delegated:
            plugin.rules(delegated, ruleset)


# ---- subnet.env ----


class Node:
    """The contents of subnet.env: the cluster's networks, the node's subnets of them, and the MTU in bytes.

    IPv4 comes before IPv6. `ipmasq` is True if flanneld itself masquerades.
    """

    __slots__ = ("ipmasq", "mtu", "networks", "subnets")

    def __init__(self, networks: list[CIDR], subnets: list[CIDR], mtu: int, ipmasq: bool) -> None:
        self.networks = networks
        self.subnets = subnets
        self.mtu = mtu
        self.ipmasq = ipmasq


def _read_subnet(value: str) -> list[CIDR]:
    return [CIDR.parse(value).network]  # flanneld writes the gateway's address, with host bits


def _read_networks(value: str) -> list[CIDR]:
    return list(dict.fromkeys(CIDR.parse(text).network for text in value.split(",")))


def _read_mtu(value: str) -> int:
    # int() also accepts signs, spaces and underscores, and any number of digits.
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and int(value) <= _MAX_MTU):
        raise ValueError(f"{gojson.dumps(value)} is not an integer from 0 to {_MAX_MTU}")
    return int(value)


_READERS: dict[str, Callable[[str], object]] = {
    "FLANNEL_NETWORK": _read_networks,
    "FLANNEL_SUBNET": _read_subnet,
    "FLANNEL_IPV6_NETWORK": _read_networks,
    "FLANNEL_IPV6_SUBNET": _read_subnet,
    "FLANNEL_MTU": _read_mtu,
    "FLANNEL_IPMASQ": lambda value: value == "true",
}
_NETWORKS = ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK")
_SUBNETS = ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET")
# At least one key of each group is required.
_REQUIRED = (_NETWORKS, _SUBNETS, ("FLANNEL_MTU",), ("FLANNEL_IPMASQ",))


def read_node(conf: Conf) -> Node:
    """Read subnet.env. Raises CNIError."""
    path = conf.subnetFile or Conf.subnetFile.default
    try:
        return _read_node(path)
    except OSError as error:
        problem = f"open {path}: {(error.strerror or str(error)).lower()}"
    except ValueError as error:
        problem = str(error)
    raise CNIError(f"failed to load flannel 'subnet.env' file: {problem}. Check the flannel pod log for this node.")


def _read_node(path: str) -> Node:
    """Read subnet.env. Raises OSError, and ValueError with file and line."""
    with open(path, "rb", buffering=0) as file:
        lines = file.read().decode(errors="replace").split("\n")
    values: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        key, equals, value = line.removesuffix("\r").partition("=")
        if key not in _READERS:
            continue
        try:
            if not equals:
                raise ValueError("there is no = after it")
            values[key] = _READERS[key](value)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {key}: {error}") from None
    missing = [key for keys in _REQUIRED if not any(key in values for key in keys) for key in keys]
    if missing:
        raise ValueError(f"{path} is missing {', '.join(missing)}")
    networks, subnets = ([cidr for key in keys for cidr in values.get(key, [])] for keys in (_NETWORKS, _SUBNETS))
    return Node(networks, subnets, values["FLANNEL_MTU"], values["FLANNEL_IPMASQ"])


# ---- the delegate ----


def delegate_config(conf: Conf, node: Node) -> dict[str, Any]:
    """Return the delegate's configuration. Raises CNIError for an invalid `delegate` or `ipam`."""
    configured = conf.delegate
    # These keys are case-sensitive, as in Go's plugin.
    if not isinstance(configured.get("type", ""), str):
        raise CNIError("'delegate' dictionary, if present, must have (string) 'type' field")
    for key in ("name", "ipam"):
        if key in configured:
            raise CNIError(f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel")
    config = {"type": "bridge", "ipMasq": not node.ipmasq, "mtu": node.mtu, **configured, "name": conf.name}
    if config["type"] == "bridge":
        config.setdefault("isGateway", True)
    if conf.cniVersion:
        config["cniVersion"] = conf.cniVersion
    if conf.has("runtimeConfig"):
        config["runtimeConfig"] = conf.runtimeConfig
    config["ipam"] = _delegate_ipam(conf, node)
    return config


def _delegate_ipam(conf: Conf, node: Node) -> dict[str, Any]:
    ipam: dict[str, Any] = conf.ipam
    try:
        routes = gojson.Fields({"routes": ipam.get("routes")}, "ipam").get("routes", gojson.array(Route.decode), [])
    except CNIError as error:
        attempt = "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse "
        raise error.prefixed(attempt) from error
    routes = [*routes, *map(Route, node.networks)]
    return {
        "type": "host-local",
        **ipam,
        "ranges": [[{"subnet": str(subnet)}] for subnet in node.subnets],
        "routes": [route.encode() for route in routes],
    }


def _text(config: dict[str, Any]) -> bytes:
    """Encode the configuration as Go's plugin does."""
    return gojson.dumps(config, sort_keys=True).encode()


def _delegate(verb: str, plugin_type: str, request: Request[Conf], config: bytes) -> None:
    try:
        delegate(verb, plugin_type, request, config=config)
    except CNIError as error:
        raise error.prefixed(f"failed to delegate {verb.lower()}: ") from error


def _delegate_gc(request: Request[Conf]) -> None:
    conf = request.config
    config = delegate_config(conf, read_node(conf))
    # The key of the valid attachments has had two names.
    config.update((key, value) for key, value in conf.raw.items() if key.startswith("cni.dev/"))
    _delegate("GC", config["type"], request, _text(config))


# ---- the saved configuration ----


def _folder(conf: Conf) -> str:
    return (conf.dataDir or Conf.dataDir.default).rstrip("/")


def _paths(request: Request[Conf]) -> tuple[str, str]:
    """Return the attachment's own file, and the container's, which Go's plugin reads. The names are validated."""
    shared = f"{_folder(request.config)}/{request.container_id}"
    return f"{shared}{_SEPARATOR}{request.ifname}", shared


def _load(request: Request[Conf]) -> bytes | None:
    for path in _paths(request):
        text = _on_disk(files.read, path)
        if text is not None:
            return text
    return None


def _parse(text: bytes, request: Request[Conf]) -> dict[str, Any]:
    """Parse the saved configuration. Raises CNIError if it is invalid."""
    try:
        config = gojson.table(gojson.loads(text), "")
        gojson.text(config.get("type"), "type")
    except (CNIError, ValueError) as error:
        raise CNIError(f"no valid configuration in {' or '.join(_paths(request))}: {error}") from error
    return config


def _save(request: Request[Conf], text: bytes, undo: Undo) -> None:
    own, shared = _paths(request)
    for path in (own, shared):
        undo.push(_restore, path, _on_disk(files.read, path))
        # After a power failure one file is enough, and the disk is slow.
        _on_disk(files.write, path, text, sync=path == own)


def _restore(path: str, text: bytes | None) -> None:
    if text is None:
        files.remove(path)
    else:
        files.write(path, text)


def _remove(request: Request[Conf], text: bytes) -> None:
    """Remove the files that have this text. The container's may now be another attachment's, and is still needed."""
    for path in _paths(request):
        if _on_disk(files.read, path) == text:
            _on_disk(files.remove, path)


def _remove_stale_files(request: Request[Conf]) -> None:
    conf = request.config
    if request.valid_attachments is None:
        return
    valid = {
        name
        for container_id, ifname in request.valid_attachments
        for name in (container_id, f"{container_id}{_SEPARATOR}{ifname}")
    }
    try:
        names = posix.listdir(_folder(conf))
    except FileNotFoundError:
        return
    # A name with a dot at the beginning is a temporary file of files.write.
    stale = [f"{_folder(conf)}/{name}" for name in names if name not in valid and name[0] != "."]
    do_all([lambda path=path: _remove_if_of(conf.name, path) for path in stale])  # type: ignore[misc]


def _remove_if_of(network: str, path: str) -> None:
    """Remove the file if it is of this network: the folder has the files of all networks."""
    text = _on_disk(files.read, path) or b""
    try:
        name = gojson.Fields(gojson.loads(text), "").get("name", gojson.text, "")
    except (CNIError, ValueError):
        return  # its network is unknown
    if name == network:
        _on_disk(files.remove, path)


def _on_disk(step: Callable[Concatenate[str, P], T], path: str, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the step with this path and these arguments. Raises CNIError instead of OSError."""
    try:
        return step(path, *args, **kwargs)
    except OSError as error:
        raise CNIError(f"cannot {step.__name__} {path}: {error.strerror}", IO_FAILURE) from error


plugin = Plugin(
    "flannel", config=Conf, add=add, delete=delete, check=check, gc=gc, status=status, rules=rules, place="interface"
)
