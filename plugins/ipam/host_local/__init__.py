"""host-local: addresses from ranges that this host allocates by itself.

ADD reserves one address of every range set for the container: the requested one, or the next free one. DEL releases
all addresses of the container's interface. The reservations are files below dataDir, which Go's plugin may use at the
same time (store.py); ranges.py has the ranges and the order of allocation.
"""

from __future__ import annotations

from cni.skel.config import Address, Config, Field, ListOf, Network, RouteTo, Section, Settings, Table, Text
from cni.skel.plugin import Plugin
from cni.spec import gojson
from cni.spec.errors import IO_FAILURE, PLUGIN_NOT_AVAILABLE, CNIError, ConfigError, joined
from cni.spec.ip import CIDR, IP
from cni.spec.names import check_container_id
from cni.spec.result import DNS, IPConfig, Result
from cni_plugins.ipam.host_local.ranges import Range, RangeSet, check_together, requested_ip
from cni_plugins.ipam.host_local.store import Store, holder, is_torn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni.skel.request import Request


def _read_requested(value: Any, path: str) -> IP:
    try:
        return requested_ip(gojson.text(value, path))
    except ValueError as error:
        raise ConfigError(path, str(error)) from None


_REQUESTED: Field[IP, None] = Field(_read_requested, "IP address or CIDR", lambda: None, "")


class RangeConf(Settings):
    """One range."""

    subnet = Network(None, "the subnet of the addresses; at most /30 or /126")
    rangeStart = Address(None, "the first address to allocate; by default the subnet's first")
    rangeEnd = Address(None, "the last address to allocate; by default the subnet's last, for IPv4 the last but one")
    gateway = Address(None, "the gateway for the result, never allocated; by default the subnet's first address")


class IPAMConf(RangeConf):
    """The `ipam` section. With `subnet` it is a range itself, the old form of `ranges`."""

    type = Text("", "host-local")
    ranges = ListOf(ListOf(Table(RangeConf)), "range sets; one address is allocated from each")
    routes = ListOf(RouteTo(), "the container's routes, copied to the result")
    dataDir = Text("/var/lib/cni/networks", "folder of the reservations, with a folder for each network")
    resolvConf = Text("", "a file in the format of resolv.conf(5), with the resolver settings for the result")


class RuntimeConf(Settings):
    """The capabilities that the runtime passes."""

    ipRanges = ListOf(ListOf(Table(RangeConf)), "further range sets, before all others")
    ips = ListOf(_REQUESTED, "addresses to allocate, from the range sets they lie in")


class CNIArgs(Settings):
    """The keys of `args.cni`."""

    ips = ListOf(_REQUESTED, "addresses to allocate, from the range sets they lie in")


class Args(Settings):
    """Free metadata."""

    cni = Section(CNIArgs, "arguments of the CNI conventions")


class Conf(Config):
    """host-local's configuration; its own part is the `ipam` section."""

    # The base class has these keys in the form that all plugins read.
    ipam = Table(IPAMConf, "the ranges, and further contents of the result")  # type: ignore[assignment]
    runtimeConfig = Section(RuntimeConf, "values of the capabilities ipRanges and ips, put in by the runtime")
    args = Section(Args, "free metadata")


def add(request: Request[Conf]) -> Result:
    ipam, sets, unallocated = _ipam(request.config), range_sets(request.config), _requested(request)
    result = Result(routes=ipam.routes, dns=_resolver(ipam.resolvConf))
    with _store(request) as store:
        own, old = store.held(request.container_id, request.ifname)
        for number, ranges in enumerate(sets):
            requested = next((ip for ip in unallocated if ranges.find(ip)), None)
            try:
                if requested:
                    unallocated.remove(requested)
                    address, source = _check_requested(requested, ranges, store)
                else:
                    _refuse_second(request.container_id, ranges, [*own, *old])
                    address, source = _next(request, number, ranges, store)
                store.reserve(address, request.container_id, request.ifname, number)
            except CNIError as error:
                raise error.prefixed(f"failed to allocate for range {number}: ") from None
            result.ips.append(IPConfig(CIDR(IP.parse(address), source.subnet.prefix), source.gateway))
        if unallocated:
            raise CNIError(f"failed to allocate all requested IPs: {' '.join(map(str, unallocated))}")
    return result


def delete(request: Request[Conf]) -> None:
    range_sets(request.config)  # Go refuses a wrong configuration here, too
    with _store(request) as store:
        own, old = store.held(request.container_id, request.ifname)
        store.release(own or old)


def check(request: Request[Conf]) -> None:
    range_sets(request.config)
    with _store(request) as store:
        own, old = store.held(request.container_id, request.ifname)
    if not (own or old):
        raise CNIError(f"host-local: Failed to find address added by container {request.container_id}")


def gc(request: Request[Conf]) -> None:
    """Release the addresses of stale attachments, and the torn files that a crash left (plugins#498).

    An empty list means that all attachments are stale. Without a list nothing is released.
    """
    if request.valid_attachments is None:
        request.log(f"host-local: GC without {Conf.valid_attachments.key}: nothing is released")
        return
    valid = set(request.valid_attachments)
    valid |= {(container_id, "") for container_id, _ in valid}  # reservations of old releases name no interface
    with _store(request) as store:
        reservations, errors = store.reservations()
        try:
            store.release({a: owner for a, owner in reservations.items() if _is_stale(owner, valid)})
        except CNIError as error:
            errors.append(error)
    if errors:
        raise joined(errors)


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless the next ADD can succeed: the files are accessible, and every range set has an address."""
    sets = range_sets(request.config)
    try:
        _resolver(_ipam(request.config).resolvConf)
        with _store(request) as store:
            store.require_writable()
            for number, ranges in enumerate(sets):
                _next(request, number, ranges, store)
    except CNIError as error:
        raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE, error.details) from error


def validate(request: Request[Conf]) -> None:
    """Raise CNIError for invalid or overlapping ranges. With the capability ipRanges they may come with the call."""
    conf = request.config
    ipam = _ipam(conf)
    if ipam.subnet or ipam.ranges or not conf.capabilities.get(RuntimeConf.ipRanges.key):
        range_sets(conf)


def _ipam(conf: Conf) -> IPAMConf:
    if conf.ipam is None:
        raise CNIError("IPAM config missing 'ipam' key")
    return conf.ipam


def _store(request: Request[Conf]) -> Store:
    return Store(_ipam(request.config).dataDir or IPAMConf.dataDir.default, request.config.name)


def range_sets(conf: Conf) -> list[RangeSet]:
    """Return all range sets in the order of their numbers. Raises CNIError for an invalid or overlapping one."""
    global _latest
    latest = _latest
    if not (latest and latest[0] is conf.ipam and latest[1] is conf.runtimeConfig):
        latest = _latest = conf.ipam, conf.runtimeConfig, _range_sets(conf)
    return latest[2]


# A process that serves many calls parses a configuration once (cni.skel).
_latest: tuple[IPAMConf | None, RuntimeConf, list[RangeSet]] | None = None


def _range_sets(conf: Conf) -> list[RangeSet]:
    ipam = _ipam(conf)
    single: list[list[RangeConf]] = [[ipam]] if ipam.subnet else []
    sets = []
    for number, ranges in enumerate([*conf.runtimeConfig.ipRanges, *single, *ipam.ranges]):
        try:
            sets.append(RangeSet([_range(range_conf) for range_conf in ranges]))
        except ValueError as error:
            raise CNIError(f"invalid range set {number}: {error}") from None
    check_together(sets, conf.cniVersion)
    return sets


def _range(conf: RangeConf) -> Range:
    if conf.subnet and conf.subnet.version == 4 and ":" in gojson.get(conf.raw, RangeConf.subnet.key):
        raise ValueError("IPNet IP and Mask version mismatch")  # ::ffff:10.0.0.0/120
    return Range(conf.subnet, conf.rangeStart, conf.rangeEnd, conf.gateway)


def _requested(request: Request[Conf]) -> list[IP]:
    """Return the requested addresses of three sources without duplicates: podman repeats them after a reload.

    Only ADD reads CNI_ARGS: DEL must succeed for a container whose ADD failed because of them.
    """
    from_args = request.cni_args(IP=lambda text: requested_ip(text) if text else None)
    requested = [*from_args.values(), *request.config.args.cni.ips, *request.config.runtimeConfig.ips]
    return [ip for ip in dict.fromkeys(requested) if ip]


def _check_requested(ip: IP, ranges: RangeSet, store: Store) -> tuple[str, Range]:
    """Return the requested address and its range. Raises CNIError if it is not available.

    As with Go, a container that already has an address may request another one.
    """
    source = ranges.find(ip)
    if source and ip == source.gateway:
        raise CNIError(f"requested ip {ip} is subnet's gateway")
    if source is None or not store.is_free(str(ip)):
        raise CNIError(f"requested IP address {ip} is not available in range set {ranges}")
    return str(ip), source


def _refuse_second(container_id: str, ranges: RangeSet, held: list[str]) -> None:
    for address in held:
        if ranges.find(IP.parse(address)):
            raise CNIError(f"{address} has been allocated to {container_id}, duplicate allocation is not allowed")


def _next(request: Request[Conf], number: int, ranges: RangeSet, store: Store) -> tuple[str, Range]:
    """Return the next free address and its range. Raises CNIError if there is none."""
    try:
        last = store.last_reserved(number)
    except OSError as error:
        request.log(f"Error retrieving last reserved ip: {error}")
        last = None
    candidate = store.free(ranges.candidates(last))
    if candidate is None:
        raise _exhausted(request.config.name, ranges, store)
    return candidate


def _exhausted(network: str, ranges: RangeSet, store: Store) -> CNIError:
    from cni_plugins.ipam.host_local.holders import suspects  # not imported by a successful ADD

    dead = "; ".join(suspects(network, ranges, store))
    addresses = f"all {ranges.size} addresses are" if ranges.size > 1 else "the only address is"
    return CNIError(
        f"no IP addresses available in range set: {ranges}",
        details=f"{addresses} reserved in {store.path}, see `cni ipam show {network}`; "
        + (f"these holders look dead, `cni gc` releases the stale ones: {dead}" if dead else "no holder looks dead"),
    )


def _is_stale(owner: bytes, valid: set[tuple[str, str]]) -> bool:
    if is_torn(owner):
        return True
    container_id, ifname = holder(owner)
    try:
        check_container_id(container_id)
    except CNIError:
        return False  # no reservation: an administrator blocks the address with a file
    return (container_id, ifname) not in valid


def _resolver(path: str) -> DNS:
    """Read the settings of a resolv.conf(5); there are none without a path. Raises CNIError if it cannot be read."""
    if not path:
        return DNS()
    try:
        with open(path, "rb", buffering=0) as file:
            lines = [line.split() for line in file.read().decode(errors="replace").split("\n")]
    except OSError as error:
        raise CNIError(f"cannot read resolvConf {path}: {error.strerror}", IO_FAILURE) from error
    settings: dict[str, list[str]] = {"nameserver": [], "domain": [""], "search": [], "options": []}
    for keyword, *values in (line for line in lines if line):
        if keyword in ("search", "options"):
            settings[keyword] += values
        elif keyword in settings:  # with one value; the rest of the line is a comment
            settings[keyword] += values[:1]
    return DNS(settings["nameserver"], settings["domain"][-1], settings["search"], settings["options"])


plugin = Plugin(
    "host-local",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    netconf_error="",
    place="ipam",
    validate=validate,
    arguments={"IP": "an address to allocate"},
)
