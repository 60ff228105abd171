"""tuning: changes the container's kernel parameters below net/, and properties of its interface.

ADD sets the parameters, then MAC, promiscuity, MTU, all-multicast mode and length of the transmit queue, whichever
are asked for, and passes the result on with the new MAC and MTU. What the interface had before is first noted in a
file, in Go's form; DEL gives it back and removes the file:

    DATADIR/CONTAINER_IFNAME.json    0600

Kernel parameters stay as they are until the namespace ends: those of an interface end with it, and of the others
another network may have set the same ones since.

There is nothing to do for GC. A file does not tell whose network it is of, so that of an attachment not in a
network's list may be another network's. DEL removes it even where the namespace is gone, and a boot empties /run.
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

    # What an interface has, or is to get, of PROPERTIES.
    State = dict[str, Any]

_ALLOW_LIST = "/etc/cni/tuning/allowlist.conf"
_DATA_DIR = "/run/cni/tuning"
_PLACEHOLDER = "IFNAME"
_RTM_NEWLINK = 16  # linux/rtnetlink.h

# What Go's regular expressions have and Python's don't, but would read as something else.
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

_MOST = (1 << 31) - 1  # MTU: an int of the kernel's
_MOST_PACKETS = (1 << 32) - 1


class RuntimeConf(Settings):
    """What the runtime adds."""

    mac = Text("", "the interface's MAC; goes before MAC in CNI_ARGS and the key mac")


class CNIArgs(Settings):
    """What `args.cni` may hold; each goes before all other places that say the same."""

    sysctl = MapOf(Text(), "kernel parameters, added to those of the key sysctl")
    mac = Text(None, "the interface's MAC")
    promisc = Flag("as the key promisc", default=None)
    mtu = Integer(None, "as the key mtu", minimum=0, maximum=_MOST)
    allmulti = Flag("as the key allmulti", default=None)
    txQLen = Integer(None, "as the key txQLen", minimum=0, maximum=_MOST_PACKETS)


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
    mtu = Integer(0, "the interface's MTU in bytes; 0 leaves it as it is", minimum=0, maximum=_MOST)
    allmulti = Flag("whether the interface takes all multicast packets", default=None)
    txQLen = Integer(
        None, "packets that the interface's transmit queue holds, 0 included", minimum=0, maximum=_MOST_PACKETS
    )
    dataDir = Text(_DATA_DIR, "folder for what the interfaces had before")
    runtimeConfig = Section(RuntimeConf, "the value of the capability mac, put in by the runtime")
    args = Section(Args, "free metadata")


class Before(Settings):
    """The file with what an interface had before."""

    mac = Text(None)
    promisc = Flag(default=None)
    mtu = Integer(None, minimum=0, maximum=_MOST)
    allmulti = Flag(default=None)
    txQLen = Integer(None, minimum=0, maximum=_MOST_PACKETS)


def add(request: Request[Conf]) -> Result:
    """Change what is asked for, or nothing."""
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
    """Give the interface back what it had, if both are still there, and forget it.

    What cannot be given back is no failure: it would keep the plugins before this one from their DEL.
    """
    path = _file(request)
    before = _noted(request, path)
    if before is None:
        return
    try:
        _give_back(request, before)
    except (CNIError, OSError) as error:
        request.log(f"tuning: {request.ifname} is not as it was before, and {path} stays: {error}")
        return
    _forget(path)


def check(request: Request[Conf]) -> None:
    """Everything that ADD has set is still so; the error names all that is not."""
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
    """The node allows the kernel parameters that the configuration has."""
    try:
        _refuse_unlisted(request)
    except CNIError as error:
        raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE, error.details) from error


# ---- the configuration ----


def validate(request: Request[Conf]) -> None:
    """The parameters are below net/ and each is there once; the MAC is one."""
    _refuse_repeated_keys(request)
    _parameters(request)
    _wanted(request)


def _refuse_repeated_keys(request: Request[Conf]) -> None:
    """One of two values for the same key would be lost. Raises CNIError."""
    conf = request.config
    if not conf.sysctl:
        return
    written = [value for key, value in gojson.pairs(request.stdin) if gojson.fold(key) == "sysctl"]
    keys = [f"sysctl.{key}" for value in written if isinstance(value, tuple) for key, _ in value]
    keys += ["sysctl" for _ in written]
    if len(set(keys)) < len(keys):
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise CNIError("duplicated sysctl keys are not allowed", details=f"{repeated} is there more than once")


def _parameters(request: Request[Conf]) -> dict[str, str]:
    """The kernel parameters that are to be set, by path below /proc/sys. Raises CNIError."""
    conf = request.config
    by_args = _by_path(conf.args.cni.sysctl, "args.cni.sysctl", request.ifname)
    return _by_path(conf.sysctl, "sysctl", request.ifname) | by_args


def _by_path(parameters: dict[str, str], where: str, ifname: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for key, value in parameters.items():
        path = _path(key, where, ifname)
        if path in keys:
            raise CNIError("duplicated sysctl keys are not allowed", details=f"{keys[path]} and {key} are the same")
        # A value is one line of text; whatever follows it would be another value, or cut off unseen.
        if not value.replace("\t", " ").isprintable():
            raise ConfigError(f"{where}.{key}", f"the value {quote(value)} has characters that cannot be shown")
        keys[path] = key
    return {path: parameters[key] for path, key in keys.items()}


def _path(key: str, where: str, ifname: str) -> str:
    """The parameter's path below /proc/sys, which is below net/. Raises CNIError."""
    if not key.isprintable():
        raise ConfigError(where, f"the key {quote(key)} has characters that cannot be shown")
    slashed = sysctl.slashed(key)
    parts = [part for part in slashed.replace(_PLACEHOLDER, ifname, 1).split("/") if part]
    if len(parts) < 2 or parts[0] != "net" or "." in parts or ".." in parts:
        raise CNIError(f"invalid net sysctl key: {quote(slashed)}", details=f"{where}.{key} is not below net/")
    return "/".join(parts)


def _refuse_unlisted(request: Request[Conf]) -> None:
    """Where the node has a list of regular expressions, each key as written must match one of them. Raises CNIError."""
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
            words = f"Sysctl {key} is not allowed. Only the following sysctls are allowed: {bracketed(allowed)}"
            raise CNIError(words, details=f"by {_ALLOW_LIST} on this node")


def _compiled(expression: str) -> Any:
    import re  # dear, and only for nodes that have the file

    text = expression
    for name, characters in _POSIX_CLASSES.items():
        text = text.replace(name, characters)
    try:
        return re.compile(text, re.ASCII)
    except re.error as error:
        raise CNIError(f"{_ALLOW_LIST}: {quote(expression)} is not a regular expression: {error}") from error


def _wanted(request: Request[Conf]) -> State:
    """What the interface is to get. Raises CNIError."""
    conf = request.config
    args = conf.args.cni
    mac = conf.runtimeConfig.mac or request.cni_args("MAC").get("MAC") or conf.mac
    mac = _first(args.mac, mac)
    asked = {
        "mac": hwaddr.requested(mac, f"invalid args {mac} for MAC addr") or None,
        "promisc": _first(args.promisc, conf.promisc) or None,
        "mtu": _first(args.mtu, conf.mtu) or None,
        "allmulti": _first(args.allmulti, conf.allmulti),
        "txQLen": _first(args.txQLen, conf.txQLen),
    }
    return {key: value for key, value in asked.items() if value is not None}


def _first(by_args: Any, by_key: Any) -> Any:
    """What `args.cni` says counts, be it false, 0 or empty."""
    return by_key if by_args is None else by_args


# ---- kernel parameters ----


def _set_parameters(container: NetNS, parameters: dict[str, str], undo: Undo) -> None:
    before = {path: _current(container, path) for path in parameters}
    for path, value in parameters.items():
        former = before[path]
        try:
            # Even if it has the value: conf/all/* go on to every interface when they are written.
            sysctl.write(container, path, value)
        except OSError as error:
            # Where /proc/sys is read-only the runtime may have set it.
            if former is None or former.split() != value.split():
                raise CNIError(f"failed to set sysctl {path} to {quote(value)}: {error.strerror}") from error
        if former is not None:
            undo.push(sysctl.write, container, path, former)


def _current(container: NetNS, path: str) -> str | None:
    """A parameter's value; None for one that can only be written. Raises CNIError where there is no such parameter."""
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
    """A property of an interface that is an IFLA_ attribute (linux/if_link.h), and in a Link the field.

    `words` say it in errors.
    """

    __slots__ = ("field", "number", "pack", "words")

    def __init__(self, words: str, number: int, field: str, pack: Callable[[Any], bytes] = u32) -> None:
        self.words = words
        self.number = number
        self.field = field
        self.pack = pack

    def of(self, link: Link) -> Any:
        """What the link has."""
        return getattr(link, self.field)

    def request(self, link: Link, value: Any) -> tuple[bytes, list[tuple[int, bytes]]]:
        """Header and attributes of a request that sets it."""
        return _ifinfomsg(link), [(self.number, self.pack(value))]


class Bit:
    """A property of an interface that is an IFF_ flag (linux/if.h), the interface's own.

    What other programs, tcpdump for one, hold the interface in for a while is counted apart by the kernel.
    """

    __slots__ = ("mask", "words")

    def __init__(self, words: str, mask: int) -> None:
        self.words = words
        self.mask = mask

    def of(self, link: Link) -> bool:
        """What the link has."""
        return bool(link.flags & self.mask)

    def request(self, link: Link, value: bool) -> tuple[bytes, list[tuple[int, bytes]]]:
        """Header and attributes of a request that sets it."""
        return _ifinfomsg(link, self.mask if value else 0, self.mask), []


def _ifinfomsg(link: Link, flags: int = 0, change: int = 0) -> bytes:
    """An ifinfomsg (linux/rtnetlink.h): family and type, index, flags, and which of them are to change."""
    return u32(0) + u32(link.index) + u32(flags) + u32(change)


def _packed_mac(text: str) -> bytes:
    """Of any length: that of InfiniBand has 20 bytes. Raises ValueError."""
    return bytes.fromhex(text.replace(":", ""))


# By name in configurations, and in the files in this order.
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
    noted = _noted(request, path) or {}
    # What a former ADD has noted is what the interface had at first.
    _note(path, before | noted)

    def take_back() -> None:
        _set(inside, link, before)  # if that fails, the file is what DEL needs
        if noted:
            _note(path, noted)
        else:
            _forget(path)

    undo.push(take_back)
    _set(inside, link, wanted)


def _give_back(request: Request[Conf], before: State) -> None:
    if not before:
        return
    try:
        container = NetNS.open(request.netns)
    except (NetNSNotFound, NotANetNS):
        return  # the file of a namespace that was unmounted may still be there
    except OSError as error:
        raise CNIError(f"failed to open netns {quote(request.netns)}: {error}") from error
    with container, container.netlink() as inside:
        link = inside.find_link(request.ifname)
        if link:
            _set(inside, link, before)


def _state(link: Link, keys: Iterable[str]) -> State:
    """What the link has of these; a link that has no MAC at all can't be given that back."""
    values = {key: PROPERTIES[key].of(link) for key in keys}
    return {key: value for key, value in values.items() if value != ""}


def _set(inside: Netlink, link: Link, state: State) -> None:
    """Have the link be so: one request each, so that one's refusal keeps none of the others. Raises CNIError."""
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
    """Tell the new MAC, and the new MTU where the result has one."""
    named = [interface for interface in result.interfaces if interface.name == request.ifname]
    # One without a sandbox is the node's, unless the plugin that made it names none at all.
    for interface in [interface for interface in named if interface.sandbox] or named:
        interface.mac = changed.get("mac", interface.mac)
        if interface.mtu:
            interface.mtu = changed.get("mtu", interface.mtu)


# ---- what was before, on disk ----


def _file(request: Request[Conf]) -> str:
    conf = request.config
    return f"{(conf.dataDir or _DATA_DIR).rstrip('/')}/{request.container_id}_{request.ifname}.json"


def _note(path: str, state: State) -> None:
    ordered = {key: state[key] for key in PROPERTIES if key in state}
    try:
        files.write(path, gojson.dumps(ordered, indent=1).encode())
    except OSError as error:
        raise CNIError(f"failed to save file {path}: {error.strerror}", IO_FAILURE) from error


def _noted(request: Request[Conf], path: str) -> State | None:
    """What the file says; None where there is no file. Raises CNIError.

    One that is damaged says nothing: Go's plugin was killed while it wrote the file, before it changed anything.
    """
    try:
        data = files.read(path)
    except OSError as error:
        raise CNIError(f"cannot read {path}: {error.strerror}", IO_FAILURE) from error
    if data is None:
        return None
    try:
        before = Before.parse(gojson.loads(data))
        noted = {key: getattr(before, key) for key in PROPERTIES if before.has(key)}
        _packed_mac(noted.get("mac", ""))
    except (CNIError, ValueError) as error:
        request.log(f"tuning: {path} is damaged and counts for nothing: {error}")
        return {}
    return noted


def _forget(path: str) -> None:
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
