"""flannel: the configuration of another plugin, from what flanneld tells of the node.

flanneld gives each node its part of the cluster's networks and writes it to subnet.env. ADD makes of that, and of
`delegate` and `ipam`, the configuration of the plugin that does the work: bridge with host-local, if nothing else is
said. What it was is kept, so that DEL and CHECK have the same plugin look after the same, whatever subnet.env says by
then.

It is kept as DATADIR/CONTAINER, where Go's plugin looks for it too. That can tell one attachment of a container only,
the last; so each also has a file of its own, DATADIR/CONTAINER:IFNAME, which goes first.
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

_LARGEST_MTU = (1 << 32) - 1  # that Go's plugin reads
_APART = ":"  # neither in a container's id nor in an interface's name


class Conf(Config):
    """The configuration of flannel."""

    # The base class has this as interface plugins read it.
    ipam = Object(  # type: ignore[assignment]
        "the delegate's section of that name; the node's subnets become its ranges, and the cluster's networks are"
        " added to its routes. Its type is host-local if it names none"
    )
    subnetFile = Text("/run/flannel/subnet.env", "what flanneld tells of the node")
    dataDir = Text("/var/lib/cni/flannel", "where the delegate's configuration is kept from ADD to DEL")
    delegate = Object(
        "further keys for the delegate's configuration. Its type is bridge if it names none; ipMasq, mtu and, for"
        " bridge, isGateway go before what follows from subnet.env; name and ipam are flannel's to set"
    )
    runtimeConfig = Object("the values of capabilities, for the delegate")


def add(request: Request[Conf]) -> Result:
    """Have the delegate make the attachment. If it refuses, what was kept before is kept again."""
    conf = request.config
    config = delegate_config(conf, read_node(conf))
    text = _text(config)
    if request.environ.get("CNI_LOG") == "debug":
        request.log(f"flannel delegates ADD to {config['type']}: {text.decode()}")
    with Undo(request.log) as undo:
        _keep(request, text, undo)
        try:
            return delegate("ADD", config["type"], request, config=text)
        except CNIError as error:
            if error.code == UNKNOWN:
                undo.forget()  # the delegate died, and DEL has to find what it left
            raise error.prefixed("failed to delegate add: ") from error


def delete(request: Request[Conf]) -> None:
    """Have the delegate take the attachment back, and forget it once that is done: until then DEL can be repeated."""
    text = _kept(request)
    if text is None:
        return
    try:
        config = _parse(text, request)
    except CNIError as error:
        request.log(f"flannel has nothing to delegate: {error}")
        return
    _delegate("DEL", config["type"], request, text)
    _forget(request, text)


def check(request: Request[Conf]) -> None:
    """The delegate finds everything as ADD left it."""
    conf = request.config
    text = _kept(request)
    if text is None:
        raise CNIError(f"the container has no attachment: there is neither {' nor '.join(_paths(request))}")
    previous = {"cniVersion": conf.cniVersion, "prevResult": gojson.get(conf.raw, "prevResult")}
    config = {**_parse(text, request), **previous}
    _delegate("CHECK", config["type"], request, _text(config))


def gc(request: Request[Conf]) -> None:
    """Have the delegate take back what belongs to attachments that are gone, and forget those."""
    do_all([lambda: _delegate_gc(request), lambda: _forget_strays(request)])


def status(request: Request[Conf]) -> None:
    """There is what flanneld has to tell, and the delegate is ready."""
    conf = request.config
    try:
        node = read_node(conf)
    except CNIError as error:
        raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE) from error
    config = delegate_config(conf, node)
    _delegate("STATUS", config["type"], request, _text(config))


def rules(request: Request[Conf], ruleset: Ruleset) -> None:
    """What the delegate has in iptables and nftables for the attachment."""
    from cni.invoke import registry  # tools call this, no runtime

    text = _kept(request)
    config = _parse(text, request) if text else {}
    plugin = registry.installed(config["type"]) if config else None
    if plugin and plugin.rules:
        config["prevResult"] = gojson.get(request.config.raw, "prevResult")
        with plugin.request(request.environ, _text(config), request.log, request.host) as delegated:
            plugin.rules(delegated, ruleset)


# ---- what flanneld tells ----


class Node:
    """The cluster's networks, the node's subnets of them, and the MTU in bytes, all as flanneld tells them.

    IPv4 goes before IPv6. `ipmasq` is whether flanneld itself masquerades.
    """

    __slots__ = ("ipmasq", "mtu", "networks", "subnets")

    def __init__(self, networks: list[CIDR], subnets: list[CIDR], mtu: int, ipmasq: bool) -> None:
        self.networks = networks
        self.subnets = subnets
        self.mtu = mtu
        self.ipmasq = ipmasq


def _read_subnet(value: str) -> list[CIDR]:
    return [CIDR.parse(value).network]  # of one with host bits, the gateway's address, the network counts


def _read_networks(value: str) -> list[CIDR]:
    return list(dict.fromkeys(CIDR.parse(one).network for one in value.split(",")))


def _read_mtu(value: str) -> int:
    # int() takes signs, spaces and underscores as well, and no end of digits.
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and int(value) <= _LARGEST_MTU):
        raise ValueError(f"{gojson.dumps(value)} is not an integer from 0 to {_LARGEST_MTU}")
    return int(value)


_READERS: dict[str, Callable[[str], object]] = {
    "FLANNEL_NETWORK": _read_networks,
    "FLANNEL_SUBNET": _read_subnet,
    "FLANNEL_IPV6_NETWORK": _read_networks,
    "FLANNEL_IPV6_SUBNET": _read_subnet,
    "FLANNEL_MTU": _read_mtu,
    "FLANNEL_IPMASQ": lambda value: value == "true",
}
# One of each is needed.
_NETWORKS = ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK")
_SUBNETS = ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET")
_NEEDED = (_NETWORKS, _SUBNETS, ("FLANNEL_MTU",), ("FLANNEL_IPMASQ",))


def read_node(conf: Conf) -> Node:
    """What subnet.env says; raises CNIError."""
    path = conf.subnetFile or Conf.subnetFile.default
    try:
        return _read_node(path)
    except OSError as error:
        problem = f"open {path}: {(error.strerror or str(error)).lower()}"
    except ValueError as error:
        problem = str(error)
    raise CNIError(f"failed to load flannel 'subnet.env' file: {problem}. Check the flannel pod log for this node.")


def _read_node(path: str) -> Node:
    """Raises OSError, and ValueError that names file and line."""
    with open(path, "rb", buffering=0) as file:
        lines = file.read().decode(errors="replace").split("\n")
    values: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        key, equals, value = line.removesuffix("\r").partition("=")
        if key not in _READERS:
            continue
        try:
            if not equals:
                raise ValueError("no = follows")
            values[key] = _READERS[key](value)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {key}: {error}") from None
    missing = [key for keys in _NEEDED if not any(key in values for key in keys) for key in keys]
    if missing:
        raise ValueError(f"{path} is missing {', '.join(missing)}")
    networks, subnets = ([one for key in keys for one in values.get(key, [])] for keys in (_NETWORKS, _SUBNETS))
    return Node(networks, subnets, values["FLANNEL_MTU"], values["FLANNEL_IPMASQ"])


# ---- the delegate ----


def delegate_config(conf: Conf, node: Node) -> dict[str, Any]:
    """The delegate's configuration; raises CNIError for a `delegate` or `ipam` that leaves none."""
    given = conf.delegate
    # Keys of the delegate go by their letters here, as with Go's plugin.
    if not isinstance(given.get("type", ""), str):
        raise CNIError("'delegate' dictionary, if present, must have (string) 'type' field")
    for key in ("name", "ipam"):
        if key in given:
            raise CNIError(f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel")
    config = {"type": "bridge", "ipMasq": not node.ipmasq, "mtu": node.mtu, **given, "name": conf.name}
    if config["type"] == "bridge":
        config.setdefault("isGateway", True)
    if conf.cniVersion:
        config["cniVersion"] = conf.cniVersion
    if conf.has("runtimeConfig"):
        config["runtimeConfig"] = conf.runtimeConfig
    config["ipam"] = _delegate_ipam(conf, node)
    return config


def _delegate_ipam(conf: Conf, node: Node) -> dict[str, Any]:
    given: dict[str, Any] = conf.ipam
    try:
        routes = gojson.Fields({"routes": given.get("routes")}, "ipam").get("routes", gojson.array(Route.decode), [])
    except CNIError as error:
        attempt = "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse "
        raise error.prefixed(attempt) from error
    routes = [*routes, *map(Route, node.networks)]
    return {
        "type": "host-local",
        **given,
        "ranges": [[{"subnet": str(subnet)}] for subnet in node.subnets],
        "routes": [route.encode() for route in routes],
    }


def _text(config: dict[str, Any]) -> bytes:
    """The configuration as Go's plugin writes it."""
    return gojson.dumps(config, sort_keys=True).encode()


def _delegate(verb: str, plugin_type: str, request: Request[Conf], config: bytes) -> None:
    try:
        delegate(verb, plugin_type, request, config=config)
    except CNIError as error:
        raise error.prefixed(f"failed to delegate {verb.lower()}: ") from error


def _delegate_gc(request: Request[Conf]) -> None:
    conf = request.config
    config = delegate_config(conf, read_node(conf))
    # The list of valid attachments has had two names.
    config.update((key, value) for key, value in conf.raw.items() if key.startswith("cni.dev/"))
    _delegate("GC", config["type"], request, _text(config))


# ---- what is kept ----


def _folder(conf: Conf) -> str:
    return (conf.dataDir or Conf.dataDir.default).rstrip("/")


def _paths(request: Request[Conf]) -> tuple[str, str]:
    """The attachment's own file, and the container's that Go's plugin knows. Both names have been looked at."""
    shared = f"{_folder(request.config)}/{request.container_id}"
    return f"{shared}{_APART}{request.ifname}", shared


def _kept(request: Request[Conf]) -> bytes | None:
    for path in _paths(request):
        text = _on_disk(files.read, path)
        if text is not None:
            return text
    return None


def _parse(text: bytes, request: Request[Conf]) -> dict[str, Any]:
    """The delegate's configuration from what is kept; raises CNIError where that is none."""
    try:
        config = gojson.table(gojson.loads(text), "")
        gojson.text(config.get("type"), "type")
    except (CNIError, ValueError) as error:
        raise CNIError(f"no configuration is in {' or '.join(_paths(request))}: {error}") from error
    return config


def _keep(request: Request[Conf], text: bytes, undo: Undo) -> None:
    own, shared = _paths(request)
    for path in (own, shared):
        undo.push(_put_back, path, _on_disk(files.read, path))
        # After a power failure one is enough, and the disk is slow.
        _on_disk(files.write, path, text, sync=path == own)


def _put_back(path: str, text: bytes | None) -> None:
    if text is None:
        files.remove(path)
    else:
        files.write(path, text)


def _forget(request: Request[Conf], text: bytes) -> None:
    """The container's file may by now be about another attachment, and is then still needed."""
    for path in _paths(request):
        if _on_disk(files.read, path) == text:
            _on_disk(files.remove, path)


def _forget_strays(request: Request[Conf]) -> None:
    conf = request.config
    if request.valid_attachments is None:
        return
    valid = {
        name
        for container_id, ifname in request.valid_attachments
        for name in (container_id, f"{container_id}{_APART}{ifname}")
    }
    try:
        names = posix.listdir(_folder(conf))
    except FileNotFoundError:
        return
    # What begins with a dot is a file on its way (files.write).
    strays = [f"{_folder(conf)}/{name}" for name in names if name not in valid and name[0] != "."]
    do_all([lambda path=path: _forget_stray(path, conf.name) for path in strays])  # type: ignore[misc]


def _forget_stray(path: str, network: str) -> None:
    """Only if it is of this network: the folder is all networks'."""
    text = _on_disk(files.read, path) or b""
    try:
        name = gojson.Fields(gojson.loads(text), "").get("name", gojson.text, "")
    except (CNIError, ValueError):
        return  # nobody can tell whose it is
    if name == network:
        _on_disk(files.remove, path)


def _on_disk(step: Callable[Concatenate[str, P], T], path: str, *args: P.args, **kwargs: P.kwargs) -> T:
    """Raises CNIError where the step with this file fails."""
    try:
        return step(path, *args, **kwargs)
    except OSError as error:
        raise CNIError(f"cannot {step.__name__} {path}: {error.strerror}", IO_FAILURE) from error


plugin = Plugin(
    "flannel",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    rules=rules,
    place="interface",
)
