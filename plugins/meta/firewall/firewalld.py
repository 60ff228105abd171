"""The backend firewalld: each address becomes a source of a zone, in the running configuration.

The calls go over the system bus. firewalld loses the sources when it is reloaded or restarted.
"""

from __future__ import annotations

import posix

from cni.spec.errors import CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni.netfilter.ruleset import Ruleset
    from cni.spec.ip import IP
    from cni_plugins.meta.firewall.dbus import Bus, Value

_SOCKET = "/run/dbus/system_bus_socket"
_SERVICE, _OBJECT = "org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1"
_EXCEPTION = f"{_SERVICE}.Exception"
# Errors if firewalld is not running.
_ABSENT = ("org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner")


def is_running(environ: Mapping[str, str]) -> bool:
    """Return whether firewalld is on the system bus. Without a bus this takes hardly any time."""
    if not _address(environ):
        return False
    try:
        with _bus(environ) as bus:
            name = "org.freedesktop.DBus"
            return bus.call(name, "/org/freedesktop/DBus", name, "NameHasOwner", _SERVICE) == [True]
    except CNIError:
        return False


def describe(ruleset: Ruleset, addresses: list[IP], zone: str, environ: Mapping[str, str]) -> None:
    """Add steps to the ruleset that make each address a source of the zone."""
    ruleset.afterwards(lambda: _add(addresses, zone, environ), lambda: _check(addresses, zone, environ))


def remove(addresses: list[IP], zone: str, environ: Mapping[str, str]) -> None:
    """Remove the addresses from the zone's sources, as far as they are there. Raises CNIError."""
    from cni_plugins.meta.firewall.dbus import DBusError

    if not is_running(environ):
        return
    with _bus(environ) as bus:
        for address in addresses:
            try:
                _call(bus, "removeSource", zone, address)
            except DBusError as error:
                if error.name not in (*_ABSENT, _EXCEPTION):
                    raise error.prefixed(f"failed to remove the address {address} from {zone} zone: ") from error


def _add(addresses: list[IP], zone: str, environ: Mapping[str, str]) -> None:
    with _bus(environ) as bus:
        for address in addresses:
            try:
                _call(bus, "addSource", zone, address)
            except CNIError as error:
                if "ZONE_ALREADY_SET" not in str(error):
                    raise error.prefixed(f"failed to add the address {address} to {zone} zone: ") from error


def _check(addresses: list[IP], zone: str, environ: Mapping[str, str]) -> None:
    with _bus(environ) as bus:
        for address in addresses:
            failure = f"failed to find the address {address} in {zone} zone"
            try:
                answer = _call(bus, "querySource", zone, address)
            except CNIError as error:
                raise error.prefixed(f"{failure}: ") from error
            if answer != [True]:
                raise CNIError(failure)


def _call(bus: Bus, method: str, zone: str, address: IP) -> list[Value]:
    return bus.call(_SERVICE, _OBJECT, f"{_SERVICE}.zone", method, zone, f"{address}/{address.bits}")


def _bus(environ: Mapping[str, str]) -> Bus:
    from cni_plugins.meta.firewall.dbus import Bus

    return Bus(_address(environ) or f"unix:path={_SOCKET}")


def _address(environ: Mapping[str, str]) -> str:
    """Return the address of the system bus, "" if there seems to be none."""
    address = environ.get("DBUS_SYSTEM_BUS_ADDRESS", "")
    if address:
        return address
    try:
        posix.stat(_SOCKET)
    except OSError:
        return ""
    return f"unix:path={_SOCKET}"
