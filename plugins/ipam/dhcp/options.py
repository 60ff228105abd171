"""What a lease's client sends and asks for, by the network's configuration and CNI_ARGS."""

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
_NECESSARY = (message.ROUTERS, message.SUBNET_MASK)
_USUAL = (message.SUBNET_MASK, message.ROUTERS, 15, 6)  # what the Go daemon's library asks for by itself
_LONGEST = 255  # bytes


class Options:
    """`requested` are the numbers of the options asked for; `provided` are those sent, by number."""

    __slots__ = ("provided", "requested")

    def __init__(self, requested: list[int], provided: dict[int, bytes]) -> None:
        self.requested = requested
        self.provided = provided

    @classmethod
    def of(cls, conf: IPAMConf, cni_args: str) -> Options:
        """Raises CNIError for an option that there is none of, and for a value too long for one."""
        return cls(_requested(conf), _provided(conf, cni_args))


def _requested(conf: IPAMConf) -> list[int]:
    # `skipDefault` alone says all it has to; Go wants an option beside it.
    wanted = [_number(one.option) for one in conf.request if one.option or not one.skipDefault]
    if not any(one.skipDefault for one in conf.request):
        wanted += _NECESSARY
    return list(dict.fromkeys(wanted or _USUAL))


def _provided(conf: IPAMConf, cni_args: str) -> dict[int, bytes]:
    arguments = dict(pair.split("=", 1) for pair in cni_args.split(";") if "=" in pair)
    provided = {}
    for one in conf.provide:
        number = _number(one.option)
        if one.value:
            provided[number] = _value(one.value, f"option {quote(one.option)}: {quote(one.value)}")
        if one.fromArg in arguments:
            value = arguments[one.fromArg]
            place = f"option {quote(one.option)} from CNI_ARGS {quote(one.fromArg)}: {quote(value)}"
            provided[number] = _value(value, place)
    return provided


def _number(name: str) -> int:
    if name in _NAMES:
        return _NAMES[name]
    if not (name.isascii() and name.isdigit()):
        raise _no_option(name, "invalid syntax")
    if int(name[:_LONGEST]) > 255:
        raise _no_option(name, "value out of range")
    return int(name)


def _no_option(name: str, problem: str) -> CNIError:
    parsing = f"strconv.ParseUint: parsing {quote(name)}: {problem}"
    return CNIError(f"Can not parse option {quote(name)}: Can not parse option: {parsing}")


def _value(text: str, place: str) -> bytes:
    value = text.encode("utf-8", "surrogateescape")
    if len(value) > _LONGEST:
        raise CNIError(f"value too long for {place}")
    return value
