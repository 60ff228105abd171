"""static: addresses, routes and resolver settings from the configuration.

ADD returns those of the `ipam` section. Addresses may also come with the call: those of CNI_ARGS are added, those of
`args.cni.ips` replace both, and the runtime's, `runtimeConfig.ips`, replace all others.

The plugin has no state, so DEL and GC have nothing to do.
"""

from __future__ import annotations

from cni.skel.config import Address, Config, Field, ListOf, Resolver, RouteTo, Section, Settings, Table, Text
from cni.skel.plugin import Plugin
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, CNIError, ConfigError
from cni.spec.ip import CIDR, IP
from cni.spec.result import IPConfig, Result
from cni.spec.version import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni.skel.request import Request

_BAD_ADDRESS = "the 'address' field is expected to be in CIDR notation, got: '{}'"
_BAD_IP = "the 'ip' field is expected to be in CIDR notation, got: '{}'"
_BAD_IPS = "an entry in the 'ips' field is NOT in CIDR notation, got: '{}'"


def _cidr(error: str, meaning: str = "") -> Field[CIDR, CIDR | None]:
    """Return a field for a CIDR whose host part is the address. `error` is Go's message for an invalid one there."""

    def read(value: Any, path: str) -> CIDR:
        try:
            return CIDR.parse(value)
        except (AttributeError, ValueError):
            raise ConfigError(path, error.format(value)) from None

    return Field(read, "CIDR", lambda: None, meaning)


class AddressConf(Settings):
    """One address."""

    address = _cidr(_BAD_ADDRESS, "the address, with the length of its network's prefix")
    gateway = Address(None, "the gateway for the result")


class IPAMConf(Settings):
    """The `ipam` section."""

    type = Text("", "static")
    addresses = ListOf(Table(AddressConf), "the container's addresses")
    routes = ListOf(RouteTo(), "the container's routes, copied to the result")
    dns = Resolver("settings for the container's resolver, copied to the result")


class RuntimeConf(Settings):
    """The capabilities that the runtime passes."""

    ips = ListOf(_cidr(_BAD_IPS), "the container's addresses, instead of all others")


class CNIArgs(Settings):
    """The keys of `args.cni`."""

    ips = ListOf(_cidr(_BAD_IPS), "the container's addresses, instead of those in `ipam` and CNI_ARGS")


class Args(Settings):
    """Free metadata."""

    cni = Section(CNIArgs, "arguments of the CNI conventions")


class Conf(Config):
    """static's configuration; its own part is the `ipam` section."""

    # The base class has these keys in the form that all plugins read.
    ipam = Table(IPAMConf, "the contents of the result")  # type: ignore[assignment]
    runtimeConfig = Section(RuntimeConf, "the value of the capability ips, put in by the runtime")
    args = Section(Args, "free metadata")


def add(request: Request[Conf]) -> Result:
    ipam = _ipam(request.config)
    return Result(ips=_addresses(request), routes=ipam.routes, dns=ipam.dns)


def check(request: Request[Conf]) -> None:
    """Raise CNIError if an address has another gateway in the result. As with Go, a missing address is no error."""
    addresses = _addresses(request)
    result = request.prev_result
    if result is None:
        raise CNIError("Required prevResult missing")
    for expected in addresses:
        reported = next((ip for ip in result.ips if ip.address.ip == expected.address.ip), None)
        if reported and expected.gateway and reported.gateway != expected.gateway:
            raise CNIError(f"static: Failed to match addr {expected.address.ip} on interface {request.ifname}")


def status(request: Request[Conf]) -> None:
    """Raise CNIError if the configuration is invalid. It may be without addresses, as they may come with the call."""
    try:
        _addresses(request)
    except CNIError as error:
        raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE, error.details) from error


def validate(request: Request[Conf]) -> list[str]:
    """Raise CNIError for invalid addresses, and warn if there is neither an address nor the capability ips."""
    conf = request.config
    if _addresses(request) or conf.capabilities.get(RuntimeConf.ips.key):
        return []
    return ["no address is configured, and ADD returns none unless CNI_ARGS name one"]


def _ipam(conf: Conf) -> IPAMConf:
    if conf.ipam is None:
        raise CNIError("IPAM config missing 'ipam' key")
    return conf.ipam


def _addresses(request: Request[Conf]) -> list[IPConfig]:
    """Return the container's addresses from the source that takes precedence. Raises CNIError."""
    conf = request.config
    configured = [_configured(index, address) for index, address in enumerate(_ipam(conf).addresses)]
    from_cni_args = _from_cni_args(request)
    replacement = conf.runtimeConfig.ips or conf.args.cni.ips
    addresses = [IPConfig(cidr) for cidr in replacement] or configured + from_cni_args
    families = [ip.address.version for ip in addresses]
    if max(families.count(4), families.count(6)) > 1 and not at_least(conf.cniVersion, "0.3.0"):
        raise CNIError(f"CNI version {conf.cniVersion} does not support more than 1 address per family")
    return addresses


def _configured(index: int, conf: AddressConf) -> IPConfig:
    if conf.address is None:
        raise ConfigError(f"ipam.addresses[{index}].address", _BAD_ADDRESS.format(""))
    return IPConfig(conf.address, conf.gateway)


def _from_cni_args(request: Request[Conf]) -> list[IPConfig]:
    """Return IP's addresses, each with the last of GATEWAY's addresses that lies in its network. Raises CNIError."""
    args = request.cni_args("IP", "GATEWAY")
    addresses = [IPConfig(_parsed(text.strip())) for text in _items(args.get("IP", ""))]
    for text in _items(args.get("GATEWAY", "")):
        gateway = _gateway(text)
        for ip in addresses:
            if gateway in ip.address:
                ip.gateway = gateway
    return addresses


def _items(text: str) -> list[str]:
    return text.split(",") if text else []


def _parsed(text: str) -> CIDR:
    try:
        return CIDR.parse(text)
    except ValueError:
        raise CNIError(_BAD_IP.format(text)) from None


def _gateway(text: str) -> IP:
    try:
        return IP.parse(text.strip())
    except ValueError:
        raise CNIError(f"invalid gateway address: {text}") from None


plugin = Plugin(
    "static",
    config=Conf,
    add=add,
    check=check,
    status=status,
    netconf_error="",
    place="ipam",
    validate=validate,
    arguments={
        "IP": "further addresses, separated by commas, each with its prefix",
        "GATEWAY": "their gateways, separated by commas",
    },
)
