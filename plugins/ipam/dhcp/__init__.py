"""dhcp: addresses that a DHCP server of the network gives out.

The plugin only asks: `dhcp daemon`, the same executable as a service of the node, gets the lease for the container's
interface, keeps it by renewing it, and gives it back. ADD and CHECK have the daemon find the attachment's lease, or
get one; DEL has it given back. They talk as Go's plugin and daemon do (rpc.py), so either may be the other's.

The interface has to be there before the lease: interface plugins make it first where they are asked for dhcp.
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
    value = Text("", "its value, as it is")
    fromArg = Text("", "the key in CNI_ARGS that has the value; goes before `value`")


class RequestConf(Settings):
    """An option to ask for."""

    option = Text("", "its name or number, as in `provide`; without one only `skipDefault` counts")
    skipDefault = Flag("do not ask for routers and subnet mask as well")


class IPAMConf(Settings):
    """The `ipam` section."""

    type = Text("", "dhcp")
    daemonSocketPath = Text("", f"the daemon's socket; without one {SOCKET}")
    provide = ListOf(Table(ProvideConf), "the options to send to the server")
    request = ListOf(Table(RequestConf), "the options to ask it for; routers and subnet mask are added")
    priority = Integer(0, "the metric of the routes; 0 leaves it to the kernel")


class Conf(Config):
    """dhcp's configuration; its own part is the `ipam` section."""

    # The base class has it as any plugin reads it.
    ipam = Section(IPAMConf, "the daemon, and what to tell and ask the server")  # type: ignore[assignment]


def add(request: Request[Conf]) -> Result:
    return rpc.to_result(_ask(request, rpc.ALLOCATE))


def delete(request: Request[Conf]) -> None:
    """As with Go this needs the daemon, which alone can give the lease back; the runtime is to try again."""
    _ask(request, rpc.RELEASE)


def check(request: Request[Conf]) -> None:
    """The daemon has the lease, or gets one; either is to be for the address that ADD reported."""
    result = rpc.to_result(_ask(request, rpc.ALLOCATE))
    previous = request.prev_result
    reported = [ip.address for ip in previous.ips] if previous else []
    leased = [ip.address for ip in result.ips]
    if reported and not any(address in reported for address in leased):
        raise CNIError(f"dhcp: the lease is for {_listed(leased)}, the attachment has {_listed(reported)}")


def gc(request: Request[Conf]) -> None:
    """Give back the network's leases that no valid attachment holds. Go's daemon does not know how to."""
    if request.valid_attachments is None:
        request.log(f"dhcp: GC without {Conf.valid_attachments.key}: nothing is released")
        return
    try:
        _ask(request, rpc.COLLECT)
    except CNIError as error:
        if rpc.UNKNOWN_METHOD not in error.msg:
            raise
        request.log(f"dhcp: {error}: nothing is released")


def status(request: Request[Conf]) -> None:
    try:
        rpc.ping(_socket_path(request))
    except CNIError as error:
        raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE, error.details) from error


def _ask(request: Request[Conf], method: str) -> dict[str, Any]:
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
    """The daemon works from another folder."""
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
