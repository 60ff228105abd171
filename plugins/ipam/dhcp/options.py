"""The options that a client sends and requests, from the network's configuration and CNI_ARGS."""

from __future__ import annotations

from cni.spec.errors import CNIError, quote
from cni_plugins.ipam.dhcp import IPAMConf, message

_NAMES = {
    "dhcp-client-identifier": message.CLIENT_ID,
    "subnet-mask": message.SUBNET_MASK,
    "routers": message.ROUTERS,
    "host-name": message.HOST_NAME,
    "user-class": message.USER_CLASS,
    "vendor-class-identifier": message.VENDOR_CLASS,
}
_REQUIRED = (message.ROUTERS, message.SUBNET_MASK)
_DEFAULT = (message.SUBNET_MASK, message.ROUTERS, 15, 6)  # the default of the Go daemon's library
_MAX_LENGTH = 255  # bytes


class Options:
    """`requested` are numbers of options; `provided` are the values to send, by number."""

    __slots__ = ("provided", "requested")

    def __init__(self, requested: list[int], provided: dict[int, bytes]) -> None:
        self.requested = requested
        self.provided = provided

    @classmethod
    def of(cls, conf: IPAMConf, cni_args: str) -> Options:
        """Return the configured options. Raises CNIError for an unknown option, and for a value that is too long."""
        return cls(_requested(conf), _provided(conf, cni_args))


def _requested(conf: IPAMConf) -> list[int]:
    # `skipDefault` may stand without an option; Go requires one.
    requested = [_number(entry.option) for entry in conf.request if entry.option or not entry.skipDefault]
    if not any(entry.skipDefault for entry in conf.request):
        requested += _REQUIRED
    return list(dict.fromkeys(requested or _DEFAULT))


def _provided(conf: IPAMConf, cni_args: str) -> dict[int, bytes]:
    arguments = dict(pair.split("=", 1) for pair in cni_args.split(";") if "=" in pair)
    provided = {}
    for entry in conf.provide:
        number = _number(entry.option)
        if entry.value:
            provided[number] = _value(entry.value, f"option {quote(entry.option)}: {quote(entry.value)}")
        if entry.fromArg in arguments:
            value = arguments[entry.fromArg]
            place = f"option {quote(entry.option)} from CNI_ARGS {quote(entry.fromArg)}: {quote(value)}"
            provided[number] = _value(value, place)
    return provided


def _number(name: str) -> int:
    if name in _NAMES:
        return _NAMES[name]
    if not (name.isascii() and name.isdigit()):
        raise _unknown_option(name, "invalid syntax")
    if int(name[:_MAX_LENGTH]) > 255:
        raise _unknown_option(name, "value out of range")
    return int(name)


def _unknown_option(name: str, problem: str) -> CNIError:
    parsing = f"strconv.ParseUint: parsing {quote(name)}: {problem}"
    return CNIError(f"Can not parse option {quote(name)}: Can not parse option: {parsing}")


def _value(text: str, place: str) -> bytes:
    value = text.encode("utf-8", "surrogateescape")
    if len(value) > _MAX_LENGTH:
        raise CNIError(f"value too long for {place}")
    return value
