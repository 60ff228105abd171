"""tuning: changes the container's kernel parameters below net/, and properties of its interface.

ADD sets the parameters, then MAC, promiscuous mode, MTU, all-multicast mode and length of the transmit queue, whichever
are configured, and passes the result on with the new MAC and MTU. Before that it saves the interface's former values in
a file, in Go's format; DEL restores them and removes the file:

    DATADIR/CONTAINER_IFNAME.json    0600

Kernel parameters are not restored: those of an interface end with it, and the others may have been set by another
network since.

GC has nothing to do. A file does not name its network, so the file of an attachment that is not in a network's list may
be another network's. DEL removes it even if the namespace is gone, and a boot empties /run.
"""

from __future__ import annotations

import errno

from cni._core import NetlinkError, u32
from cni.kernel import hwaddr, sysctl
from cni.kernel.netns import NetNS, NetNSNotFound, NotANetNS
from cni.skel.config import Config, Flag, Integer, MapOf, Section, Settings, Text
from cni.skel.plugin import Plugin
from cni.spec import gojson
from cni.spec.errors import IO_FAILURE, PLUGIN_NOT_AVAILABLE, CNIError, ConfigError, bracketed, joined, quote
from cni.system import files
from cni.system.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from cni._core import Link, Netlink
    from cni.skel.request import Request
    from cni.spec.result import Result

    # Values of an interface's PROPERTIES.
    State = dict[str, Any]

_ALLOW_LIST = "/etc/cni/tuning/allowlist.conf"
_DATA_DIR = "/run/cni/tuning"
_PLACEHOLDER = "IFNAME"
_RTM_NEWLINK = 16  # linux/rtnetlink.h

# Classes that only Go's regular expressions have. Python's would read them as something else.
_POSIX_CLASSES = {
    "[:alnum:]": "0-9A-Za-z",
    "[:alpha:]": "A-Za-z",
    "[:digit:]": "0-9",
    "[:lower:]": "a-z",
    "[:punct:]": r"!-/:-@\[-`{-~",
    "[:upper:]": "A-Z",
    "[:word:]": "0-9A-Za-z_",
    "[:xdigit:]": "0-9A-Fa-f",
}

_MAX_MTU = (1 << 31) - 1  # an int of the kernel's
_MAX_PACKETS = (1 << 32) - 1


class RuntimeConf(Settings):
    """The capabilities that the runtime passes."""

    mac = Text("", "the interface's MAC; takes precedence over MAC in CNI_ARGS and the key mac")


class CNIArgs(Settings):
    """The keys of `args.cni`. Each takes precedence over all other sources of the same value."""

    sysctl = MapOf(Text(), "kernel parameters, added to those of the key sysctl")
    mac = Text(None, "the interface's MAC")
    promisc = Flag("as the key promisc", default=None)
    mtu = Integer(None, "as the key mtu", minimum=0, maximum=_MAX_MTU)
    allmulti = Flag("as the key allmulti", default=None)
    txQLen = Integer(None, "as the key txQLen", minimum=0, maximum=_MAX_PACKETS)


class Args(Settings):
    """Free metadata."""

    cni = Section(CNIArgs, "arguments of the CNI conventions")


class Conf(Config):
    """The configuration of tuning."""

    sysctl = MapOf(
        Text(),
        "kernel parameters below net/ by name, separated by dots or slashes; IFNAME stands for the interface's name",
    )
    mac = Text("", "the interface's MAC")
    promisc = Flag("the interface takes all packets; false leaves it as it is")
    mtu = Integer(0, "the interface's MTU in bytes; 0 leaves it as it is", minimum=0, maximum=_MAX_MTU)
    allmulti = Flag("the interface takes all multicast packets; false turns that off", default=None)
    txQLen = Integer(
        None, "packets that the interface's transmit queue holds; 0 is set too", minimum=0, maximum=_MAX_PACKETS
    )
    dataDir = Text(_DATA_DIR, "folder for the interfaces' former values")
    runtimeConfig = Section(RuntimeConf, "the value of the capability mac, put in by the runtime")
    args = Section(Args, "free metadata")


class Saved(Settings):
    """The file with an interface's former values."""

    mac = Text(None)
    promisc = Flag(default=None)
    mtu = Integer(None, minimum=0, maximum=_MAX_MTU)
    allmulti = Flag(default=None)
    txQLen = Integer(None, minimum=0, maximum=_MAX_PACKETS)


def add(request: Request[Conf]) -> Result:
    """Set everything that is configured, or nothing."""
    parameters = _parameters(request)
    _refuse_unlisted(request)
    wanted = _wanted(request)
    result = request.require_prev_result()
    with request.open_container() as container, container.netlink() as inside, Undo(request.log) as undo:
        _set_parameters(container, parameters, undo)
        if wanted:
            _change(request, inside, wanted, undo)
    _reflect(request, result, wanted)
    return result


def delete(request: Request[Conf]) -> None:
    """Restore the interface's former values, if interface and file are still there, and remove the file.

    A value that cannot be restored is no error: it would prevent the DEL of the plugins before this one.
    """
    path = _file(request)
    before = _load(request, path)
    if before is None:
        return
    try:
        _restore(request, before)
    except (CNIError, OSError) as error:
        request.log(f"tuning: cannot restore {request.ifname} from {path}: {error}; the file stays")
        return
    _remove(path)


def check(request: Request[Conf]) -> None:
    """Expect all values that ADD has set; the error names every one that has changed."""
    _refuse_repeated_keys(request)
    parameters = _parameters(request)
    wanted = _wanted(request)
    request.require_prev_result()
    with request.open_container() as container, container.netlink() as inside:
        link = inside.find_link(request.ifname)
        if link is None:
            raise CNIError(f"Cannot find container link {request.ifname}")
        drifts = [*_drifts_of_parameters(container, parameters), *_drifts_of_link(link, wanted)]
    if drifts:
        raise CNIError("\n".join(f"Error: Tuning {drift}" for drift in drifts))


def status(request: Request[Conf]) -> None:
    """Raise CNIError if the node does not allow a kernel parameter of the configuration."""
    try:
        _refuse_unlisted(request)
    except CNIError as error:
        raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE, error.details) from error


# ---- the configuration ----


def validate(request: Request[Conf]) -> None:
    """Raise CNIError for a parameter that is not below net/, or is given twice, and for an invalid MAC."""
    _refuse_repeated_keys(request)
    _parameters(request)
    _wanted(request)


def _refuse_repeated_keys(request: Request[Conf]) -> None:
    """Raise CNIError if a key is given twice, as one of its values would be lost."""
    conf = request.config
    if not conf.sysctl:
        return
    written = [value for key, value in gojson.pairs(request.stdin) if gojson.fold(key) == "sysctl"]
    keys = [f"sysctl.{key}" for value in written if isinstance(value, tuple) for key, _ in value]
    keys += ["sysctl" for _ in written]
    if len(set(keys)) < len(keys):
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise CNIError("duplicated sysctl keys are not allowed", details=f"{repeated} occurs more than once")


def _parameters(request: Request[Conf]) -> dict[str, str]:
    """Return the configured kernel parameters by path below /proc/sys. Raises CNIError."""
    conf = request.config
    by_args = _by_path(conf.args.cni.sysctl, "args.cni.sysctl", request.ifname)
    return _by_path(conf.sysctl, "sysctl", request.ifname) | by_args


def _by_path(parameters: dict[str, str], where: str, ifname: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for key, value in parameters.items():
        path = _path(key, where, ifname)
        if path in keys:
            details = f"{keys[path]} and {key} are the same parameter"
            raise CNIError("duplicated sysctl keys are not allowed", details=details)
        # A value is one line of text. The kernel would take the next line for another value, or silently cut it off.
        if not value.replace("\t", " ").isprintable():
            raise ConfigError(f"{where}.{key}", f"the value {quote(value)} has characters that are not printable")
        keys[path] = key
    return {path: parameters[key] for path, key in keys.items()}


def _path(key: str, where: str, ifname: str) -> str:
    """Return the parameter's path below /proc/sys. Raises CNIError if it is not below net/."""
    if not key.isprintable():
        raise ConfigError(where, f"the key {quote(key)} has characters that are not printable")
    slashed = sysctl.slashed(key)
    parts = [part for part in slashed.replace(_PLACEHOLDER, ifname, 1).split("/") if part]
    if len(parts) < 2 or parts[0] != "net" or "." in parts or ".." in parts:
        raise CNIError(f"invalid net sysctl key: {quote(slashed)}", details=f"{where}.{key} is not below net/")
    return "/".join(parts)


def _refuse_unlisted(request: Request[Conf]) -> None:
    """Raise CNIError if the node has an allow list, and a key, as written, matches none of its regular expressions."""
    conf = request.config
    try:
        with open(_ALLOW_LIST, "rb", buffering=0) as file:
            lines = [line.strip() for line in file.read().decode(errors="replace").split("\n")]
    except FileNotFoundError:
        return
    except OSError as error:
        raise CNIError(f"cannot read the list of allowed sysctls {_ALLOW_LIST}: {error.strerror}") from error
    allowed = [line for line in lines if line]
    patterns = [*map(_compiled, allowed)]
    for key in conf.sysctl | conf.args.cni.sysctl:
        if not any(pattern.search(key) for pattern in patterns):
            text = f"Sysctl {key} is not allowed. Only the following sysctls are allowed: {bracketed(allowed)}"
            raise CNIError(text, details=f"by {_ALLOW_LIST} on this node")


def _compiled(expression: str) -> Any:
    import re  # expensive to import, and only needed on nodes that have the file

    text = expression
    for name, characters in _POSIX_CLASSES.items():
        text = text.replace(name, characters)
    try:
        return re.compile(text, re.ASCII)
    except re.error as error:
        raise CNIError(f"{_ALLOW_LIST}: {quote(expression)} is not a regular expression: {error}") from error


def _wanted(request: Request[Conf]) -> State:
    """Return the configured values of the interface. Raises CNIError."""
    conf = request.config
    args = conf.args.cni
    mac = conf.runtimeConfig.mac or request.cni_args("MAC").get("MAC") or conf.mac
    mac = _first(args.mac, mac)
    configured = {
        "mac": hwaddr.requested(mac, f"invalid args {mac} for MAC addr") or None,
        "promisc": _first(args.promisc, conf.promisc) or None,
        "mtu": _first(args.mtu, conf.mtu) or None,
        "allmulti": _first(args.allmulti, conf.allmulti),
        "txQLen": _first(args.txQLen, conf.txQLen),
    }
    return {key: value for key, value in configured.items() if value is not None}


def _first(by_args: Any, by_key: Any) -> Any:
    """Return the value of `args.cni`, even if it is false, 0 or empty, else that of the key."""
    return by_key if by_args is None else by_args


# ---- kernel parameters ----


def _set_parameters(container: NetNS, parameters: dict[str, str], undo: Undo) -> None:
    before = {path: _current(container, path) for path in parameters}
    for path, value in parameters.items():
        former = before[path]
        try:
            # Even if it has the value: a write to conf/all/* changes every interface.
            sysctl.write(container, path, value)
        except OSError as error:
            # Where /proc/sys is read-only the runtime may have set the value.
            if former is None or former.split() != value.split():
                raise CNIError(f"failed to set sysctl {path} to {quote(value)}: {error.strerror}") from error
        if former is not None:
            undo.push(sysctl.write, container, path, former)


def _current(container: NetNS, path: str) -> str | None:
    """Return a parameter's value, None for a write-only one. Raises CNIError if there is no such parameter."""
    try:
        return sysctl.read(container, path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            return None
        raise CNIError(f"the container's namespace has no sysctl {path}: {error.strerror}") from error


def _drifts_of_parameters(container: NetNS, parameters: dict[str, str]) -> Iterator[str]:
    for path, value in parameters.items():
        current = _current(container, path)
        # The kernel puts tabs between the numbers of one parameter.
        if current is not None and current.split() != value.split():
            yield f"configured value of /proc/sys/{path} is {value}, current value is {current}"


# ---- the interface ----


class Attribute:
    """A property of an interface that is an IFLA_ attribute (linux/if_link.h) and the `field` of a Link.

    `words` describe it in errors, with two {} for the interface and the value.
    """

    __slots__ = ("field", "number", "pack", "words")

    def __init__(self, words: str, number: int, field: str, pack: Callable[[Any], bytes] = u32) -> None:
        self.words = words
        self.number = number
        self.field = field
        self.pack = pack

    def of(self, link: Link) -> Any:
        """Return the link's value."""
        return getattr(link, self.field)

    def request(self, link: Link, value: Any) -> tuple[bytes, list[tuple[int, bytes]]]:
        """Return header and attributes of the request that sets the value."""
        return _ifinfomsg(link), [(self.number, self.pack(value))]


class Bit:
    """A property of an interface that is an IFF_ flag (linux/if.h).

    The kernel counts separately what programs such as tcpdump request for a while.
    """

    __slots__ = ("mask", "words")

    def __init__(self, words: str, mask: int) -> None:
        self.words = words
        self.mask = mask

    def of(self, link: Link) -> bool:
        """Return the link's value."""
        return bool(link.flags & self.mask)

    def request(self, link: Link, value: bool) -> tuple[bytes, list[tuple[int, bytes]]]:
        """Return header and attributes of the request that sets the value."""
        return _ifinfomsg(link, self.mask if value else 0, self.mask), []


def _ifinfomsg(link: Link, flags: int = 0, change: int = 0) -> bytes:
    """Return a struct ifinfomsg (linux/rtnetlink.h): family and type, index, flags, and the mask of those to change."""
    return u32(0) + u32(link.index) + u32(flags) + u32(change)


def _packed_mac(text: str) -> bytes:
    """Return the bytes of a MAC of any length: InfiniBand's has 20. Raises ValueError."""
    return bytes.fromhex(text.replace(":", ""))


# By configuration key, in the order of a file's keys.
PROPERTIES: dict[str, Attribute | Bit] = {
    "mac": Attribute("configured Ethernet of {} is {}", 1, "hwaddr", _packed_mac),
    "promisc": Bit("link {} configured promisc is {}", 0x100),
    "mtu": Attribute("configured MTU of {} is {}", 4, "mtu"),
    "allmulti": Bit("configured all-multicast mode of {} is {}", 0x200),
    "txQLen": Attribute("configured Transmit Queue Length of {} is {}", 13, "txqlen"),
}


def _change(request: Request[Conf], inside: Netlink, wanted: State, undo: Undo) -> None:
    link = inside.find_link(request.ifname)
    if link is None:
        raise CNIError(f"failed to get {quote(request.ifname)}: Link not found")
    before = _state(link, wanted)
    path = _file(request)
    saved = _load(request, path) or {}
    # An earlier ADD has saved the original values.
    _save(path, before | saved)

    def roll_back() -> None:
        _set(inside, link, before)  # if that fails, DEL needs the file
        if saved:
            _save(path, saved)
        else:
            _remove(path)

    undo.push(roll_back)
    _set(inside, link, wanted)


def _restore(request: Request[Conf], before: State) -> None:
    if not before:
        return
    try:
        container = NetNS.open(request.netns)
    except (NetNSNotFound, NotANetNS):
        return  # an unmounted namespace may leave its file
    except OSError as error:
        raise CNIError(f"failed to open netns {quote(request.netns)}: {error}") from error
    with container, container.netlink() as inside:
        link = inside.find_link(request.ifname)
        if link:
            _set(inside, link, before)


def _state(link: Link, keys: Iterable[str]) -> State:
    """Return the link's values of these properties, without the MAC if it has none, as that could not be restored."""
    values = {key: PROPERTIES[key].of(link) for key in keys}
    return {key: value for key, value in values.items() if value != ""}


def _set(inside: Netlink, link: Link, state: State) -> None:
    """Set the values, with a request for each, so that the others are set if one is refused. Raises CNIError."""
    batch = inside.batch()
    for key, value in state.items():
        header, attributes = PROPERTIES[key].request(link, value)
        batch.request(_RTM_NEWLINK, 0, header, attributes, "set %s of %s to %s", (key, link.name, _shown(value)))
    try:
        batch.commit()
    except NetlinkError as error:
        raise joined([error, *error.others]) from error


def _drifts_of_link(link: Link, wanted: State) -> Iterator[str]:
    for key, value in wanted.items():
        current = PROPERTIES[key].of(link)
        if current != value:
            yield f"{PROPERTIES[key].words.format(link.name, _shown(value))}, current value is {_shown(current)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else gojson.dumps(value)


def _reflect(request: Request[Conf], result: Result, changed: State) -> None:
    """Put the new MAC into the result, and the new MTU if the result has an MTU."""
    candidates = [interface for interface in result.interfaces if interface.name == request.ifname]
    # An interface without a sandbox is the node's, unless the plugin that made it never names a sandbox.
    for interface in [interface for interface in candidates if interface.sandbox] or candidates:
        interface.mac = changed.get("mac", interface.mac)
        if interface.mtu:
            interface.mtu = changed.get("mtu", interface.mtu)


# ---- the file of former values ----


def _file(request: Request[Conf]) -> str:
    conf = request.config
    return f"{(conf.dataDir or _DATA_DIR).rstrip('/')}/{request.container_id}_{request.ifname}.json"


def _save(path: str, state: State) -> None:
    ordered = {key: state[key] for key in PROPERTIES if key in state}
    try:
        files.write(path, gojson.dumps(ordered, indent=1).encode())
    except OSError as error:
        raise CNIError(f"failed to save file {path}: {error.strerror}", IO_FAILURE) from error


def _load(request: Request[Conf], path: str) -> State | None:
    """Return the file's values, None if there is no file. Raises CNIError.

    A damaged file has no values: Go's plugin was killed while it wrote the file, before it changed anything.
    """
    try:
        data = files.read(path)
    except OSError as error:
        raise CNIError(f"cannot read {path}: {error.strerror}", IO_FAILURE) from error
    if data is None:
        return None
    try:
        saved = Saved.parse(gojson.loads(data))
        values = {key: getattr(saved, key) for key in PROPERTIES if saved.has(key)}
        _packed_mac(values.get("mac", ""))
    except (CNIError, ValueError) as error:
        request.log(f"tuning: {path} is damaged and is ignored: {error}")
        return {}
    return values


def _remove(path: str) -> None:
    try:
        files.remove(path)
    except OSError as error:
        raise CNIError(f"cannot remove {path}: {error.strerror}", IO_FAILURE) from error


plugin = Plugin(
    "tuning",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    status=status,
    place="chained",
    validate=validate,
    arguments={"MAC": "the interface's MAC"},
)
