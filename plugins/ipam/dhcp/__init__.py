"""dhcp: addresses from a DHCP server of the network.

The plugin is only a client of `dhcp daemon`, the same executable as a service of the node. The daemon acquires the
lease for the container's interface, renews it and releases it. ADD and CHECK call the daemon to return the attachment's
lease, or acquire one; DEL calls it to release the lease. The protocol is that of Go's plugin and daemon (rpc.py), so
ours work with Go's.

The interface must exist before the lease: with dhcp, interface plugins create it before they call this plugin.
"""

from __future__ import annotations

import posix
import sys

from cni.skel.config import Config, Flag, Integer, ListOf, Section, Settings, Table, Text
from cni.skel.plugin import Plugin
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, CNIError
from cni_plugins.ipam.dhcp import rpc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from cni.skel.request import Request
    from cni.spec.result import Result

SOCKET = "/run/cni/dhcp.sock"


class ProvideConf(Settings):
    """An option to send."""

    option = Text(
        "",
        "dhcp-client-identifier, subnet-mask, routers, host-name, user-class, vendor-class-identifier, or a number",
    )
    value = Text("", "its value, sent unchanged")
    fromArg = Text("", "the key in CNI_ARGS that has the value; takes precedence over `value`")


class RequestConf(Settings):
    """An option to request."""

    option = Text("", "its name or number, as in `provide`; if it is absent, only `skipDefault` is used")
    skipDefault = Flag("do not request routers and subnet mask in addition")


class IPAMConf(Settings):
    """The `ipam` section."""

    type = Text("", "dhcp")
    daemonSocketPath = Text("", f"the daemon's socket; by default {SOCKET}")
    provide = ListOf(Table(ProvideConf), "the options to send to the server")
    request = ListOf(Table(RequestConf), "the options to request from the server; routers and subnet mask are added")
    priority = Integer(0, "the metric of the routes; 0 leaves it to the kernel")


class Conf(Config):
    """dhcp's configuration; its own part is the `ipam` section."""

    # The base class has this key in the form that all plugins read.
    ipam = Section(IPAMConf, "the daemon, and the options to send and to request")  # type: ignore[assignment]


def add(request: Request[Conf]) -> Result:
    return rpc.to_result(_call(request, rpc.ALLOCATE))


def delete(request: Request[Conf]) -> None:
    """Release the lease. As with Go, this fails without the daemon, and the runtime must retry."""
    _call(request, rpc.RELEASE)


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless the daemon has, or acquires, a lease for the address that ADD reported."""
    result = rpc.to_result(_call(request, rpc.ALLOCATE))
    previous = request.prev_result
    reported = [ip.address for ip in previous.ips] if previous else []
    leased = [ip.address for ip in result.ips]
    if reported and not any(address in reported for address in leased):
        raise CNIError(f"dhcp: the lease is for {_listed(leased)}, the attachment has {_listed(reported)}")


def gc(request: Request[Conf]) -> None:
    """Release the leases of the network's stale attachments. Go's daemon does not support this."""
    if request.valid_attachments is None:
        request.log(f"dhcp: GC without {Conf.valid_attachments.key}: nothing is released")
        return
    try:
        _call(request, rpc.COLLECT)
    except CNIError as error:
        if rpc.UNKNOWN_METHOD not in error.msg:
            raise
        request.log(f"dhcp: {error}: nothing is released")


def status(request: Request[Conf]) -> None:
    try:
        rpc.ping(_socket_path(request))
    except CNIError as error:
        raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE, error.details) from error


def _call(request: Request[Conf], method: str) -> dict[str, Any]:
    arguments = {
        "ContainerID": request.container_id,
        "Netns": _absolute(request.netns),
        "IfName": request.ifname,
        "Args": request.args,
        "Path": request.path,
        "StdinData": request.stdin,
    }
    return rpc.call(_socket_path(request), method, arguments)


def _socket_path(request: Request[Conf]) -> str:
    return request.config.ipam.daemonSocketPath or SOCKET


def _absolute(path: str) -> str:
    """Return the absolute path, as the daemon's working directory is another one."""
    return path if path.startswith("/") else f"{posix.getcwd()}/{path}".rstrip("/")


def _listed(addresses: list[Any]) -> str:
    return ", ".join(map(str, addresses)) or "no address"


class DHCP(Plugin[Conf]):
    """The plugin, and under `dhcp daemon` the daemon."""

    __slots__ = ()

    def main(self) -> NoReturn:
        if sys.argv[1:2] == ["daemon"]:
            from cni_plugins.ipam.dhcp import daemon

            raise SystemExit(daemon.main(sys.argv[2:]))
        super().main()


plugin = DHCP(
    "dhcp",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    netconf_error="error obtaining socketPath: error parsing socket path conf: ",
    place="ipam",
)
